"""pony's own tests, which are installed with it, on sqlite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .suites import Suite


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("pony")
    python = environment(["pony", "pytest"], directory)
    yield [
        Suite(
            "sqlite",
            f"pony {version} on sqlite",
            ["--pyargs", "pony.orm.tests"],
            ["pony", "sqlite3"],
            pytest=True,
            python=python,
        )
    ]
