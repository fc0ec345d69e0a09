"""Datasette's own tests, from its source distribution: an ASGI application on sqlite in threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment
from .sources import fetch
from .suites import Suite

VERSION = "0.65.5"
TESTS = ["pytest", "pytest-asyncio", "pytest-timeout", "beautifulsoup4", "trustme"]


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    sources = fetch("datasette", VERSION, directory, without="datasette")
    python = environment([f"datasette=={VERSION}", *TESTS], directory)
    yield [
        Suite(
            "datasette",
            f"Datasette {VERSION}",
            ["tests"],
            ["sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
        )
    ]
