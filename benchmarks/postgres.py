"""What a guarded call of psycopg and pg8000 costs where no event loop runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncsafe
from downstream.postgres import running_postgres

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

OURS = "asyncsafe.install()"


def measure(quick: bool) -> Iterator[Table]:
    """One table for each driver."""
    rounds, processes = (50, 1) if quick else (150, 3)
    for driver in ("psycopg", "pg8000"):
        bare = f"bare {driver}"
        values: Values = {}
        if not missing(driver):
            with running_postgres() as dsn:
                if dsn is not None:
                    values = in_processes(
                        time_driver, driver, dsn, bare, rounds, processes=processes
                    )
        yield Table(
            f"{driver}, off the loop: cursor.execute('select 1'); cursor.fetchone()",
            "µs",
            values,
            {bare: bare, OURS: bare},
            [Ratio("of bare", at_most={OURS: 1.03})],
        )


def time_driver(driver: str, dsn: str, bare: str, rounds: int) -> Values:
    import asyncio  # noqa: F401  (without it the guards have nothing to ask)

    connection = _connect_psycopg(dsn) if driver == "psycopg" else _connect_pg8000(dsn)
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


def _connect_psycopg(dsn: str) -> Any:
    import psycopg

    return psycopg.connect(dsn, autocommit=True)


def _connect_pg8000(dsn: str) -> Any:
    import pg8000.dbapi
    from psycopg2.extensions import parse_dsn

    found = parse_dsn(dsn)
    host, port = found.get("host", "localhost"), int(found.get("port", 5432))
    place: dict[str, Any] = {"host": host, "port": port}
    if host.startswith("/"):
        place = {"unix_sock": f"{host}/.s.PGSQL.{port}"}
    connection = pg8000.dbapi.connect(
        found["user"], password=found.get("password"), database=found.get("dbname"), **place
    )
    connection.autocommit = True
    return connection


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install("psycopg", "pg8000")
    try:
        yield
    finally:
        asyncsafe.uninstall()
