"""What a guard costs where it has found a running loop: one call refused, allowed, recorded."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncsafe

from .timing import Case, Table, Values, in_processes, missing, take_turns

CALL = "a function, unguarded"
QUERY = "sqlite3 execute, unguarded"
RAISED = "raise and catch an exception"
DJANGO_ALLOWED = "Django: allowed by DJANGO_ALLOW_ASYNC_UNSAFE"
DJANGO_REFUSED = "Django: refused and caught"
RECORDED, RECORDED_QUERY = "recorded", "sqlite3 execute, recorded"

CASES = {
    CALL: CALL,
    RECORDED: CALL,
    "allowed by allow()": CALL,
    DJANGO_ALLOWED: CALL,
    RAISED: CALL,
    "refused and caught": CALL,
    DJANGO_REFUSED: CALL,
    QUERY: QUERY,
    RECORDED_QUERY: QUERY,
}


def measure(quick: bool) -> Iterator[Table]:
    """One table for each depth of the stack."""
    rounds, processes = (50, 2) if quick else (200, 4)
    for depth, where in {0: "in a coroutine", 30: "30 functions below a coroutine"}.items():
        yield Table(
            f"On the loop, one call {where}",
            "µs",
            in_processes(time_calls, depth, rounds, processes=processes),
            CASES,
            # The walk to the coroutine takes its time by the frame: told, not held to a target.
            added_at_most={} if depth else {RECORDED: 10, RECORDED_QUERY: 10},
        )


def time_calls(depth: int, rounds: int) -> Values:
    def find(number: int) -> None:
        pass

    def raise_and_catch() -> None:
        try:
            raise RuntimeError
        except RuntimeError:
            pass

    refuse = "try:\n    find(1)\nexcept SynchronousOnlyOperation:\n    pass\nelse:\n    raise RuntimeError"
    ours = {
        "find": asyncsafe.async_unsafe(find),
        "SynchronousOnlyOperation": asyncsafe.SynchronousOnlyOperation,
    }
    plain, guarded = (sqlite3.connect(":memory:").cursor() for _ in range(2))
    query = "cursor.execute('select 1')"
    cases = [
        Case(CALL, "find(1)", {"find": find}),
        Case(RECORDED, "find(1)", ours, _recording),
        Case("allowed by allow()", "find(1)", ours, lambda: asyncsafe.allow("measured")),
        Case(RAISED, "catch()", {"catch": raise_and_catch}),
        Case("refused and caught", refuse, ours),
        Case(QUERY, query, {"cursor": plain}),
        Case(RECORDED_QUERY, query, {"cursor": guarded}, _recording_sqlite3),
    ]
    if not missing("django"):
        from django.core.exceptions import SynchronousOnlyOperation
        from django.utils.asyncio import async_unsafe

        theirs: dict[str, Any] = {
            "find": async_unsafe(find),
            "SynchronousOnlyOperation": SynchronousOnlyOperation,
        }
        cases += [
            Case(DJANGO_ALLOWED, "find(1)", theirs, _allowed_by_environment),
            Case(DJANGO_REFUSED, refuse, theirs),
        ]

    async def main() -> Values:
        return _below(depth, take_turns, cases, rounds)

    return asyncio.run(main())


def _below(depth: int, function: Callable[..., Values], *arguments: object) -> Values:
    return _below(depth - 1, function, *arguments) if depth else function(*arguments)


@contextmanager
def _recording() -> Iterator[None]:
    asyncsafe.configure(mode="record")
    try:
        yield
    finally:
        asyncsafe.configure(mode=None)


@contextmanager
def _recording_sqlite3() -> Iterator[None]:
    asyncsafe.install("sqlite3")
    try:
        with _recording():
            yield
    finally:
        asyncsafe.uninstall("sqlite3")


@contextmanager
def _allowed_by_environment() -> Iterator[None]:
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    try:
        yield
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
