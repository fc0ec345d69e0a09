"""sqlite-utils' own tests, from its source distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment
from .sources import fetch
from .suites import Suite

VERSION = "4.2.1"


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    sources = fetch("sqlite-utils", VERSION, directory, without="sqlite_utils")
    python = environment([f"sqlite-utils=={VERSION}", "pytest", "hypothesis"], directory)
    yield [
        Suite(
            "sqlite_utils",
            f"sqlite-utils {VERSION}",
            ["tests"],
            ["sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
        )
    ]
