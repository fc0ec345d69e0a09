"""apsw's own tests, which are installed with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import installed
from .suites import Suite


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("apsw")
    yield [Suite("apsw", f"apsw {version}", ["apsw.tests"], [])]
