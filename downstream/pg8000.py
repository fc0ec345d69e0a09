"""pg8000's own tests, from the source distribution of the version that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .postgres import libpq_environment, listening_postgres
from .sources import fetch
from .suites import Suite

TESTS = ["pytest", "pytest-benchmark", "pytest-mock", "pytz", "docutils"]

RESETS = "fails by itself now and then: whether a write or a read finds the connection gone"
UNSTEADY = {
    f"test/{api}/test_connection.py::test_broken_pipe_read": RESETS
    for api in ("dbapi", "legacy", "native")
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("pg8000")
    sources = fetch("pg8000", version, directory)
    python = environment(["pg8000", *TESTS], directory)
    with listening_postgres() as dsn:
        yield [
            Suite(
                "pg8000",
                f"pg8000 {version}",
                ["test", "--benchmark-disable"],
                ["pg8000"],
                pytest=True,
                python=python,
                directory=sources,
                environment=lambda: libpq_environment(dsn),
                unsteady=UNSTEADY,
            )
        ]
