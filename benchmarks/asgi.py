"""What ConnectionMiddleware costs for each request, beside how Django keeps requests apart."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async

import asyncsafe
from asyncsafe.asgi import ConnectionMiddleware

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

BARE = "bare application"
OURS = "ConnectionMiddleware"
CONTEXT = "asgiref's ThreadSensitiveContext alone"
#: What django.core.handlers.asgi.ASGIHandler does about connections, and nothing else of it.
DJANGO = "Django: that, and the signals that close connections"

KINDS = {
    "none": "a request that makes no synchronous call",
    "call": "a request with one sync_to_async call",
    "query": "a request with one query in a database_sync_to_async call",
}

#: Requests in one call of a statement: one after the other, each in a task of its own, as servers
#: have them.
_REQUESTS = 20


def measure(quick: bool) -> Iterator[Table]:
    """One table for each kind of request."""
    rounds, processes = (30, 2) if quick else (100, 4)
    for kind, what in KINDS.items():
        yield Table(
            f"ASGI: {what}",
            "µs",
            in_processes(time_requests, kind, rounds, processes=processes),
            dict.fromkeys([BARE, CONTEXT, DJANGO, OURS], BARE),
            # A context does nothing as long as no thread is needed: told.
            [
                Ratio("of the context's", of=CONTEXT, at_most={} if kind == "none" else {OURS: 1}),
                Ratio("of Django's", of=DJANGO, at_most={OURS: 1}),
            ],
        )


def time_requests(kind: str, rounds: int) -> Values:
    connections = asyncsafe.ConnectionHandler({"default": lambda: sqlite3.connect(":memory:")})

    def query() -> None:
        connections["default"].execute("select 1").fetchone()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "call":
            await sync_to_async(_nothing)()
        elif kind == "query":
            await asyncsafe.database_sync_to_async(query)()

    async def in_context(scope: Any, receive: Any, send: Any) -> None:
        async with ThreadSensitiveContext():
            await app(scope, receive, send)

    apps: dict[str, Any] = {
        BARE: app,
        CONTEXT: in_context,
        OURS: ConnectionMiddleware(app, connections),
    }
    if not missing("django"):
        apps[DJANGO] = _as_django_does(app)
    with asyncio.Runner() as runner:

        def serve(app: Any) -> None:
            runner.run(_serve(app))

        cases = [
            Case(name, "serve(app)", {"serve": serve, "app": app}, calls=_REQUESTS, duration=0.01)
            for name, app in apps.items()
        ]
        return take_turns(cases, rounds)


def _as_django_does(app: Any) -> Any:
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    )
    from django.core import signals
    from django.db import connections  # noqa: F401  (it connects the signals' receivers)

    def close() -> None:  # HttpResponse.close()
        signals.request_finished.send(sender=None)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        async with ThreadSensitiveContext():
            await signals.request_started.asend(sender=None, scope=scope)
            await app(scope, receive, send)
            await sync_to_async(close)()

    return serve


async def _serve(app: Any) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(_REQUESTS):
        await loop.create_task(app({"type": "http", "method": "GET", "path": "/"}, None, None))


def _nothing() -> None:
    pass
