"""SQLAlchemy's own tests, from the source distribution of the version that is installed: on sqlite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .environments import environment, installed
from .sources import fetch
from .suites import Suite

#: Of all the tests, which take an hour, those of what reaches the database: each dialect's, those
#: of engines, connections, pools and sessions, and of what loads by itself.
DIALECT = ["test/dialect/test_suite.py", "test/orm/test_session.py", "test/orm/test_transaction.py"]
ALL = [*DIALECT, "test/engine", "test/base/test_result.py", "test/orm/test_lazy_relations.py"]
ALL += ["test/orm/test_loading.py", "test/orm/test_query.py", "test/orm/test_scoping.py"]
ALL += ["test/orm/test_unitofwork.py", "test/sql/test_query.py", "test/sql/test_resultset.py"]
ASYNCHRONOUS = ["test/ext/asyncio", "test/dialect/test_suite.py"]
#: In mode "record", which refuses nothing, so that nothing may differ: hundreds of these call
#: synchronous engines and pools, of mocks for the most part, below a coroutine.
RECORDED = [*ALL, "test/base", "test/ext/asyncio"]

#: By default each test, a synchronous driver's too, is run by a greenlet below a coroutine.
OFF_LOOP = "--disable-asyncio"

DIFFER = {
    f"test/ext/asyncio/test_engine.py::TextSyncDBAPI::{test}": (
        "its asynchronous engine is given sqlite3 for a driver, which it calls on the loop"
    )
    for test in (
        "test_sync_driver_execution[<lambda>0]",
        "test_sync_driver_execution[<lambda>1]",
        "test_sync_driver_execution[<lambda>2]",
        "test_sync_driver_run_sync",
    )
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    uri = "sqlite+aiosqlite://"
    asynchronous = suite(directory, "aiosqlite", ASYNCHRONOUS, uri, ["sqlite3"])
    recorded = replace(
        asynchronous,
        name="aiosqlite-recorded",
        title=f"{asynchronous.title}, recorded",
        tests=[*RECORDED, *asynchronous.tests[len(ASYNCHRONOUS) :]],
        environment=lambda: {**asynchronous.environment(), "ASYNCSAFE_MODE": "record"},
        differ={},
    )
    yield [
        suite(directory, "sqlite", [*ALL, OFF_LOOP], "sqlite://", ["sqlite3"]),
        asynchronous,
        recorded,
    ]


def suite(
    directory: Path, driver: str, arguments: list[str], uri: str, libraries: list[str]
) -> Suite:
    """Those tests on the database of the URI, in which they do as they like."""
    version = installed("sqlalchemy")
    requirements = ["sqlalchemy", "greenlet", "pytest", *DRIVERS[driver]]
    return Suite(
        driver,
        f"SQLAlchemy {version} with {driver}",
        [*arguments, "--maxfail=0", f"--dburi={uri}"],
        ["sqlalchemy", *libraries],
        pytest=True,
        python=environment(requirements, directory / driver),
        directory=fetch("sqlalchemy", version, directory),
        # Its conftest.py then takes what is installed, not what lies beside it.
        environment=lambda: {"PYTHONNOUSERSITE": "1"},
        differ=DIFFER if "test/ext/asyncio" in arguments else {},
    )


#: What each needs to be installed.
DRIVERS = {
    "aiomysql": ["aiomysql", "pymysql"],
    "aiosqlite": ["aiosqlite"],
    "asyncmy": ["asyncmy"],
    "asyncpg": ["asyncpg"],
    "mysqldb": ["mysqlclient"],
    "pg8000": ["pg8000"],
    "psycopg": ["psycopg", "psycopg-binary"],
    "psycopg2": ["psycopg2-binary"],
    "psycopg_async": ["psycopg", "psycopg-binary"],
    "pymysql": ["pymysql"],
    "sqlite": [],
}
