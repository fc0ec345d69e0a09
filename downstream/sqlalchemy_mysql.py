"""SQLAlchemy's own tests on MySQL or MariaDB, with each driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .mysql import running_mysql
from .sqlalchemy import ASYNCHRONOUS, DIALECT, OFF_LOOP, suite
from .suites import Suite

#: By driver: the libraries that are guarded.
SYNCHRONOUS = {"pymysql": ["pymysql"], "mysqldb": ["mysqlclient"]}
OTHERS: dict[str, list[str]] = {"aiomysql": ["pymysql"], "asyncmy": []}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    with running_mysql() as server:
        server.fresh("test_schema")  # by this name, as its README.unittests.rst says
        suites = []
        for driver, libraries in {**SYNCHRONOUS, **OTHERS}.items():
            tests = [*DIALECT, OFF_LOOP] if driver in SYNCHRONOUS else ASYNCHRONOUS
            uri = f"mysql+{driver}://{server.url}/{server.fresh()}?charset=utf8mb4"
            suites.append(suite(directory, driver, tests, uri, libraries))
        yield suites
