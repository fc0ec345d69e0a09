"""Tortoise ORM's own tests, from the source distribution of the version that is installed: on sqlite.

Nothing of it may ever be refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .sources import fetch
from .suites import Suite

TESTS = ["pytest", "pytest-asyncio", "asyncpg", "pydantic"]


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("tortoise-orm")
    sources = fetch("tortoise-orm", version, directory, without="tortoise")
    python = environment(["tortoise-orm", "aiosqlite", *TESTS], directory)
    yield [
        Suite(
            "sqlite",
            f"Tortoise ORM {version} on sqlite",
            ["tests"],
            ["sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
        )
    ]
