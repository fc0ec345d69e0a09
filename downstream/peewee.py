"""peewee's own tests: on sqlite, PostgreSQL (with psycopg2 and psycopg), and MySQL or MariaDB.

Its distributions on the package index have none of them: they are those of the version in Debian,
which is installed for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment
from .mysql import Mysql, running_mysql
from .postgres import fresh, needed_postgres, parts
from .sources import fetch_from_debian
from .suites import Suite

REQUIREMENTS = ["pymysql", "psycopg2-binary", "psycopg", "psycopg-binary"]

#: What every database of its tests is called.
NAME = "peewee_test"


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    sources = fetch_from_debian("peewee", directory)
    version = sources.name.removeprefix("peewee-")
    python = environment([f"peewee=={version}", *REQUIREMENTS], directory)
    tests = directory / "suite"  # without the peewee that lies beside them
    shutil.copytree(sources / "tests", tests / "tests", dirs_exist_ok=True)

    def suite(backend: str, driver: str, databases: Callable[[], dict[str, str]]) -> Suite:
        return Suite(
            backend,
            f"peewee {version} on {backend}",
            ["tests"],
            ["peewee", driver],
            python=python,
            directory=tests,
            environment=lambda: {"PEEWEE_TEST_BACKEND": backend, **databases()},
        )

    with running_mysql() as mysql, needed_postgres() as postgres:
        yield [
            suite("sqlite", "sqlite3", dict),
            suite("postgres", "psycopg2", lambda: _on_postgres(postgres)),
            suite("psycopg3", "psycopg", lambda: _on_postgres(postgres)),
            suite("mysql", "pymysql", lambda: _on_mysql(mysql)),
        ]


def _on_postgres(dsn: str) -> dict[str, str]:
    fresh(dsn, name=NAME)
    return {f"PEEWEE_PSQL_{key.upper()}": value for key, value in parts(dsn).items()}


def _on_mysql(server: Mysql) -> dict[str, str]:
    server.fresh(NAME)
    given = {"HOST": server.host, "PORT": str(server.port), "USER": server.user}
    given |= {"PASSWORD": server.password} if server.password else {}
    return {f"PEEWEE_MYSQL_{key}": value for key, value in given.items()}
