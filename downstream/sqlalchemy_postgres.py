"""SQLAlchemy's own tests on PostgreSQL, with each driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .postgres import fresh, listening_postgres, url
from .sqlalchemy import ASYNCHRONOUS, DIALECT, OFF_LOOP, suite
from .suites import Suite

#: By driver: the libraries that are guarded.
SYNCHRONOUS = {"psycopg2": ["psycopg2"], "psycopg": ["psycopg"], "pg8000": ["pg8000"]}
OTHERS: dict[str, list[str]] = {"asyncpg": [], "psycopg_async": ["psycopg"]}

#: What its README.unittests.rst asks for.
SCHEMAS = ("create schema test_schema", "create schema test_schema_2")


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    with listening_postgres() as dsn:
        suites = []
        for driver, libraries in {**SYNCHRONOUS, **OTHERS}.items():
            tests = [*DIALECT, OFF_LOOP] if driver in SYNCHRONOUS else ASYNCHRONOUS
            uri = url(dsn, f"postgresql+{driver}", fresh(dsn, *SCHEMAS))
            suites.append(suite(directory, driver, tests, uri, libraries))
        yield suites
