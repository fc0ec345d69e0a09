"""What it costs to watch who began which transaction: off the loop, only in threads that are lent."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncsafe

from .timing import Case, Ratio, Table, Values, in_processes, take_turns

BEFORE = "guarded, no thread was lent yet"
AFTER = "guarded, threads have been lent"
LENT = "guarded, in a thread that is lent to a task"

QUERY = "cursor.execute('select 1'); cursor.fetchone()"


def measure(quick: bool) -> Iterator[Table]:
    """One table: it can't be undone that a thread was lent, so each case has its processes."""
    rounds, processes = (50, 2) if quick else (200, 5)
    values: Values = {}
    cases = {}
    for case in (BEFORE, AFTER, LENT):
        bare = f"bare, beside: {case}"
        cases.update({bare: bare, case: bare})
        values |= in_processes(time_sqlite3, case, bare, rounds, processes=processes)
    yield Table(
        f"sqlite3 in memory, off the loop: {QUERY}",
        "ns",
        values,
        cases,
        # As the guards alone may cost (drivers). In a thread that is lent, it is told.
        [Ratio("of bare", at_most={BEFORE: 1.3, AFTER: 1.3})],
    )


def time_sqlite3(case: str, bare: str, rounds: int) -> Values:
    # Each has its own connection: two cursors of one compete for its cached statement.
    cursors = [sqlite3.connect(":memory:", check_same_thread=False).cursor() for _ in range(2)]
    cases = [
        Case(bare, QUERY, {"cursor": cursors[0]}),
        Case(case, QUERY, {"cursor": cursors[1]}, _installed),
    ]
    if case == LENT:
        return asyncio.run(_lend_thread(take_turns, cases, rounds))
    if case == AFTER:
        asyncio.run(_lend_thread(sqlite3.connect, ":memory:"))
    return take_turns(cases, rounds)


async def _lend_thread(function: Any, *arguments: Any) -> Any:
    return await asyncsafe.database_sync_to_async(function)(*arguments)


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install("sqlite3")
    try:
        yield
    finally:
        asyncsafe.uninstall("sqlite3")
