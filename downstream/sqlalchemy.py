"""SQLAlchemy's own tests, from the source distribution of the version that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .sources import fetch
from .suites import Suite

REQUIREMENTS = ["sqlalchemy", "greenlet", "aiosqlite", "pytest"]

#: What the counts of calls and the clock decide, and what runs type checkers.
IGNORED = ["test/aaa_profiling", "test/perf", "test/typing"]


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("sqlalchemy")
    sources = fetch("sqlalchemy", version, directory)
    python = environment(REQUIREMENTS, directory)
    yield [
        Suite(
            "sqlite",
            f"SQLAlchemy {version} on sqlite",
            ["test", *(f"--ignore={folder}" for folder in IGNORED), "--maxfail=0", "-q"],
            ["sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
            # Its conftest.py then takes what is installed, not what lies beside it.
            environment=lambda: {"PYTHONNOUSERSITE": "1"},
        )
    ]
