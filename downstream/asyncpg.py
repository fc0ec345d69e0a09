"""asyncpg's own tests, from the source distribution of the version that is installed.

Nothing of it may ever be refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .postgres import libpq_environment, needed_postgres
from .sources import fetch
from .suites import Suite

WRITES = "fails by itself now and then: whether the server has told its failure before all is sent"
UNSTEADY = {
    "tests/test_execute.py::TestExecuteMany::test_executemany_server_failure_during_writes": WRITES
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("asyncpg")
    sources = fetch("asyncpg", version, directory, without="asyncpg")
    python = environment(["asyncpg", "distro", "pytest", "uvloop"], directory)
    with needed_postgres() as dsn:
        yield [
            Suite(
                "asyncpg",
                f"asyncpg {version}",
                ["tests"],
                [],
                pytest=True,
                python=python,
                directory=sources,
                environment=lambda: libpq_environment(dsn),
                unsteady=UNSTEADY,
            )
        ]
