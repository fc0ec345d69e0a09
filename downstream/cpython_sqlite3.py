"""The interpreter's own tests of its sqlite3 module. A Python packaged without `test` lacks them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .suites import Suite


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    yield [Suite("sqlite3", "CPython's test_sqlite3", ["test.test_sqlite3"], ["sqlite3"])]
