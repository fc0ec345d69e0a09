"""What a guarded call of psycopg, pg8000 and pyodbc costs where no event loop runs."""

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
    for driver in ("psycopg", "pg8000", "pyodbc"):
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

    connection = _CONNECT[driver](dsn)
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


def _connect_pyodbc(dsn: str) -> Any:
    import pyodbc
    from psycopg2.extensions import parse_dsn

    found = parse_dsn(dsn)
    return pyodbc.connect(
        f"Driver=PostgreSQL Unicode;Servername={found.get('host', 'localhost')};"
        f"Port={found.get('port', 5432)};Database={found.get('dbname', '')};"
        f"Uid={found['user']};Pwd={found.get('password', '')}",
        autocommit=True,
    )


_CONNECT = {"psycopg": _connect_psycopg, "pg8000": _connect_pg8000, "pyodbc": _connect_pyodbc}


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install(*_CONNECT)
    try:
        yield
    finally:
        asyncsafe.uninstall()
