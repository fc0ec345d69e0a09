"""SQLModel's own tests, from the source distribution of the version that is installed.

Its tutorials for FastAPI are among them, which create their tables while the application starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .sources import fetch
from .suites import Suite

REQUIREMENTS = ["sqlmodel", "sqlalchemy", "greenlet", "fastapi", "httpx", "pydantic"]
TESTS = ["aiosqlite", "alembic", "black", "coverage[toml]", "dirty-equals", "jinja2", "pymysql"]
TESTS += ["pytest", "pyyaml", "ruff", "typer"]


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("sqlmodel")
    sources = fetch("sqlmodel", version, directory, without="sqlmodel")
    python = environment([*REQUIREMENTS, *TESTS], directory)
    yield [
        Suite(
            "sqlmodel",
            f"SQLModel {version}",
            ["tests"],
            ["sqlalchemy", "sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
        )
    ]
