"""databases' own tests, from the source distribution of the version that is installed: on sqlite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .sources import fetch
from .suites import Suite

REQUIREMENTS = ["databases", "sqlalchemy", "aiosqlite", "asyncpg", "aiopg", "psycopg2-binary"]
REQUIREMENTS += ["aiomysql", "asyncmy", "pymysql"]
TESTS = ["pytest", "starlette<1", "httpx"]  # its application uses what Starlette 1 has no more

KEEPS = "databases opens sqlite3 on the loop, to keep the memory that its connections share"
DIFFER = {
    "tests/test_databases.py::test_should_maintain_ref_when_cache_param": KEEPS,
    "tests/test_databases.py::test_should_remove_ref_on_disconnect": KEEPS,
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("databases")
    sources = fetch("databases", version, directory, without="databases")
    python = environment([*REQUIREMENTS, *TESTS], directory)
    yield [
        Suite(
            "sqlite",
            f"databases {version} on sqlite",
            ["tests"],
            ["sqlalchemy", "sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
            environment=lambda: {"TEST_DATABASE_URLS": "sqlite:///testsuite"},
            differ=DIFFER,
        )
    ]
