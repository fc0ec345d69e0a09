"""pyodbc's own tests of PostgreSQL, from the source distribution of the version that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .postgres import needed_postgres, odbc
from .sources import fetch
from .suites import Suite


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("pyodbc")
    sources = fetch("pyodbc", version, directory)
    python = environment(["pyodbc", "pytest"], directory)
    with needed_postgres() as dsn:
        yield [
            Suite(
                "postgres",
                f"pyodbc {version} on PostgreSQL",
                ["tests/postgresql_test.py"],
                ["pyodbc"],
                pytest=True,
                python=python,
                directory=sources,
                environment=lambda: {"PYODBC_POSTGRESQL": odbc(dsn)},
            )
        ]
