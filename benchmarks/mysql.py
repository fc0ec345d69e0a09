"""What a guarded call of PyMySQL, mysqlclient and mysql.connector costs where no event loop runs.

The server is ASYNCSAFE_TEST_MYSQL (a URL), or root without a password on port 3306.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncsafe

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

OURS = "asyncsafe.install()"
#: The library, as install() takes it, and its module.
DRIVERS = {"pymysql": "pymysql", "mysqlclient": "MySQLdb", "mysql.connector": "mysql.connector"}


def measure(quick: bool) -> Iterator[Table]:
    """One table for each driver."""
    rounds, processes = (50, 1) if quick else (150, 3)
    for driver, module in DRIVERS.items():
        bare = f"bare {driver}"
        values: Values = {}
        if not missing(module) and _is_running():
            values = in_processes(time_driver, driver, bare, rounds, processes=processes)
        yield Table(
            f"{driver}, off the loop: cursor.execute('select 1'); cursor.fetchone()",
            "µs",
            values,
            {bare: bare, OURS: bare},
            [Ratio("of bare", at_most={OURS: 1.03})],
        )


def time_driver(driver: str, bare: str, rounds: int) -> Values:
    import asyncio  # noqa: F401  (without it the guards have nothing to ask)

    connection = _connect(DRIVERS[driver])
    names = {"cursor": connection.cursor()}
    query = "cursor.execute('select 1'); cursor.fetchone()"
    try:
        # One connection for both: two have two server threads, which are not equally fast.
        cases = [Case(bare, query, names), Case(OURS, query, names, _installed)]
        for case in cases:
            case.duration = 0.02
        return take_turns(cases, rounds)
    finally:
        connection.close()


def _connect(module: str) -> Any:
    import importlib

    url = urlsplit(os.environ.get("ASYNCSAFE_TEST_MYSQL", "mysql://root@127.0.0.1:3306"))
    connection = importlib.import_module(module).connect(
        host=url.hostname,
        port=url.port or 3306,
        user=unquote(url.username or "root"),
        password=unquote(url.password or ""),
    )
    cursor = connection.cursor()
    cursor.execute("set autocommit = 1")
    cursor.close()
    return connection


def _is_running() -> bool:
    import pymysql

    try:
        _connect("pymysql").close()
    except pymysql.err.OperationalError:
        return False
    return True


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install(*DRIVERS)
    try:
        yield
    finally:
        asyncsafe.uninstall()
