"""aioodbc's own tests, from the source distribution of the version that is installed: on PostgreSQL.

They are for sqlite, whose ODBC driver few have: some fail here, in both runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .postgres import needed_postgres, odbc
from .sources import fetch
from .suites import Suite

REQUIREMENTS = ["aioodbc", "pyodbc", "pytest<9", "pytest-asyncio<1", "uvloop"]


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("aioodbc")
    sources = fetch("aioodbc", version, directory, without="aioodbc")
    python = environment(REQUIREMENTS, directory)
    with needed_postgres() as dsn:
        yield [
            Suite(
                "aioodbc",
                f"aioodbc {version} on PostgreSQL",
                ["tests"],
                ["pyodbc"],
                pytest=True,
                python=python,
                directory=sources,
                environment=lambda: {"DSN": odbc(dsn)},
            )
        ]
