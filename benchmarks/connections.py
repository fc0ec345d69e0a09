"""What it costs to ask for one's connection, and to reach it through its handle."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from typing import Any

import asyncsafe
from asyncsafe.asgi import ConnectionMiddleware

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

DJANGO = "django.db.connections"
OURS = "asyncsafe.ConnectionHandler"

PLACES = {
    "thread": "in a thread",
    "task": "in a task",
    "greenlet": "in a task, greenlet being imported",
    "request": "in a request's task, below ConnectionMiddleware",
    "lent": "in a thread that is lent to a task",
}

RAW = "the driver's connection"
MANAGED, PROXY = 'connections["default"], held', 'connections.proxy("default")'
USES = {
    "an attribute": "connection.isolation_level",
    "a query": "connection.execute('select 1').fetchone()",
}


def measure(quick: bool) -> Iterator[Table]:
    """One table for each place to ask from, and for each use of a connection."""
    rounds, processes = (50, 2) if quick else (200, 4)
    for place, where in PLACES.items():
        yield Table(
            f'connections["default"], {where}',
            "ns",
            in_processes(time_look_up, place, rounds, processes=processes),
            {DJANGO: DJANGO, OURS: DJANGO},
            # It finds out whose the connection is, too.
            [Ratio("of Django's", at_most={OURS: 1.0})],
        )
    for use, statement in USES.items():
        yield Table(
            f"{use.capitalize()} of a connection, in a task: {statement}",
            "ns",
            in_processes(time_use, statement, rounds, processes=processes),
            dict.fromkeys([RAW, MANAGED, PROXY], RAW),
            [Ratio("of the driver's")],
        )


def time_look_up(place: str, rounds: int) -> Values:
    handlers: dict[str, Any] = {OURS: _handler()}
    if not missing("django"):
        handlers[DJANGO] = _django()
    if place == "greenlet":
        import greenlet  # noqa: F401
    cases = [
        Case(name, 'connections["default"]', {"connections": handler})
        for name, handler in handlers.items()
    ]
    if place == "thread":
        return take_turns(cases, rounds)
    return asyncio.run(_in_task(place, cases, rounds))


async def _in_task(place: str, cases: list[Case], rounds: int) -> Values:
    if place == "lent":
        return await asyncsafe.database_sync_to_async(take_turns)(cases, rounds)
    if place != "request":
        return take_turns(cases, rounds)
    values: Values = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        values.update(take_turns(cases, rounds))

    scope: Any = {"type": "http", "method": "GET", "path": "/"}
    nothing: Any = None
    await ConnectionMiddleware(app)(scope, nothing, nothing)
    return values


def time_use(statement: str, rounds: int) -> Values:
    async def main() -> Values:
        connections = _handler()
        held = {
            RAW: sqlite3.connect(":memory:"),
            MANAGED: connections["default"],
            PROXY: connections.proxy("default"),
        }
        return take_turns(
            [Case(name, statement, {"connection": c}) for name, c in held.items()], rounds
        )

    return asyncio.run(main())


def _handler() -> asyncsafe.ConnectionHandler:
    return asyncsafe.ConnectionHandler({"default": lambda: sqlite3.connect(":memory:")})


def _django() -> Any:
    from django.conf import settings
    from django.db import connections

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    )
    return connections
