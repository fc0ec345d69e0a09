"""What a guarded database call costs where no event loop runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncsafe
from downstream.postgres import running_postgres

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

OURS = "asyncsafe.install()"
BLOCKBUSTER = "blockbuster"
OPENTELEMETRY = "OpenTelemetry, no exporter"


def measure(quick: bool) -> Iterator[Table]:
    """One table for each driver."""
    yield _sqlite3(quick)
    yield _psycopg2(quick)
    yield _duckdb(quick)


def _sqlite3(quick: bool) -> Table:
    """Every contender in processes of its own beside the bare call: they patch the same things."""
    rounds, processes = (50, 2) if quick else (200, 5)
    contenders = {
        OURS: "asyncsafe",
        BLOCKBUSTER: "blockbuster",
        OPENTELEMETRY: "opentelemetry.instrumentation.sqlite3",
    }
    values: Values = {}
    cases = {}
    for contender, module in contenders.items():
        bare = f"bare, beside {contender}"
        cases.update({bare: bare, contender: bare})
        if not missing(module):
            values |= in_processes(time_sqlite3, contender, bare, rounds, processes=processes)
    return Table(
        "sqlite3 in memory, off the loop: cursor.execute('select 1'); cursor.fetchone()",
        "ns",
        values,
        cases,
        [Ratio("of bare", at_most={OURS: 1.3})],
    )


def time_sqlite3(contender: str, bare: str, rounds: int) -> Values:
    import asyncio  # noqa: F401  (without it the guards have nothing to ask)
    import sqlite3

    # Each has its own connection: two cursors of one compete for its cached statement.
    def cursor() -> Any:
        return sqlite3.connect(":memory:").cursor()

    scopes = {OURS: _installed, BLOCKBUSTER: _blockbuster_active}
    query = "cursor.execute('select 1'); cursor.fetchone()"
    cases = [Case(bare, query, {"cursor": cursor()})]
    if contender == OPENTELEMETRY:
        cases.append(Case(contender, query, {"cursor": _instrumented_cursor()}))
    else:
        cases.append(Case(contender, query, {"cursor": cursor()}, scopes[contender]))
    return take_turns(cases, rounds)


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install()
    try:
        yield
    finally:
        asyncsafe.uninstall()


@contextmanager
def _blockbuster_active() -> Iterator[None]:
    from blockbuster import blockbuster_ctx

    with blockbuster_ctx():
        yield


def _instrumented_cursor() -> Any:
    import sqlite3

    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

    return SQLite3Instrumentor().instrument_connection(sqlite3.connect(":memory:")).cursor()


def _psycopg2(quick: bool) -> Table:
    rounds, processes = (50, 1) if quick else (150, 3)
    bare = "bare psycopg2"
    values: Values = {}
    if not missing("psycopg2"):
        with running_postgres() as dsn:
            if dsn is not None:
                values = in_processes(time_psycopg2, dsn, bare, rounds, processes=processes)
    return Table(
        "psycopg2, off the loop: cursor.execute('select 1'); cursor.fetchone()",
        "µs",
        values,
        {bare: bare, OURS: bare},
        [Ratio("of bare", at_most={OURS: 1.03})],
    )


def time_psycopg2(dsn: str, bare: str, rounds: int) -> Values:
    import asyncio  # noqa: F401

    import psycopg2

    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    names = {"cursor": connection.cursor()}
    query = "cursor.execute('select 1'); cursor.fetchone()"
    try:
        # One connection for both: two have two server processes, which are not equally fast.
        cases = [Case(bare, query, names), Case(OURS, query, names, _installed)]
        for case in cases:
            case.duration = 0.02
        return take_turns(cases, rounds)
    finally:
        connection.close()


def _duckdb(quick: bool) -> Table:
    rounds, processes = (50, 1) if quick else (150, 3)
    bare = "bare duckdb"
    values: Values = {}
    if not missing("duckdb"):
        values = in_processes(time_duckdb, bare, rounds, processes=processes)
    return Table(
        "duckdb in memory, off the loop: connection.execute('select 1'); connection.fetchone()",
        "µs",
        values,
        {bare: bare, OURS: bare},
        [Ratio("of bare", at_most={OURS: 1.03})],
    )


def time_duckdb(bare: str, rounds: int) -> Values:
    import asyncio  # noqa: F401

    import duckdb

    names = {"connection": duckdb.connect()}
    query = "connection.execute('select 1'); connection.fetchone()"
    cases = [Case(bare, query, names), Case(OURS, query, names, _installed)]
    for case in cases:
        case.duration = 0.02
    return take_turns(cases, rounds)
