"""peewee's own tests: on sqlite, PostgreSQL (with psycopg2 and psycopg), and MySQL or MariaDB.

Its distributions on the package index have none of them: they are those of the version in Debian,
run with that version and, as far as they go, with the one that is installed here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .mysql import Mysql, running_mysql
from .postgres import fresh, needed_postgres, parts
from .sources import fetch_from_debian
from .suites import Suite

REQUIREMENTS = ["pymysql", "psycopg2-binary", "psycopg", "psycopg-binary"]

#: What every database of its tests is called.
NAME = "peewee_test"


#: For a later version: what it has moved is found, and what it no longer has is passed over.
ADAPTED = """\
import importlib, pkgutil, sys, unittest
from playhouse import postgres_ext

sys.modules["playhouse.psycopg3_ext"] = postgres_ext
for found in pkgutil.iter_modules(__path__):
    if found.name == "__main__":
        continue
    try:
        module = importlib.import_module(f"{__name__}.{found.name}")
    except Exception as error:
        print(f"{found.name} is not run: {error!r}", file=sys.stderr)
        continue
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            globals()[f"{found.name}_{name}"] = value
"""


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    sources = fetch_from_debian("peewee", directory)
    own = sources.name.removeprefix("peewee-")
    with running_mysql() as mysql, needed_postgres() as postgres:
        backends: dict[tuple[str, str], Callable[[], dict[str, str]]] = {
            ("sqlite", "sqlite3"): dict,
            ("postgres", "psycopg2"): lambda: _on_postgres(postgres),
            ("psycopg3", "psycopg"): lambda: _on_postgres(postgres),
            ("mysql", "pymysql"): lambda: _on_mysql(mysql),
        }
        yield [
            suite
            for version in (own, installed("peewee"))
            for suite in _suites(sources, version, directory / version, backends)
        ]


def _suites(
    sources: Path,
    version: str,
    directory: Path,
    backends: dict[tuple[str, str], Callable[[], dict[str, str]]],
) -> Iterator[Suite]:
    """Those tests with one version of peewee, on every database."""
    directory.mkdir(parents=True, exist_ok=True)
    python = environment([f"peewee=={version}", *REQUIREMENTS], directory)
    folder = directory / "suite"  # without the peewee that lies beside them
    shutil.copytree(sources / "tests", folder / "tests", dirs_exist_ok=True)
    if sources.name != f"peewee-{version}":
        (folder / "tests/__init__.py").write_text(ADAPTED)

    for (backend, driver), databases in backends.items():

        def variables(
            backend: str = backend, databases: Callable[[], dict[str, str]] = databases
        ) -> dict[str, str]:
            for left in folder.glob("*.db"):
                left.unlink()
            return {"PEEWEE_TEST_BACKEND": backend, **databases()}

        yield Suite(
            f"{backend}-{version}",
            f"peewee {version} on {backend}",
            ["tests"],
            ["peewee", driver],
            python=python,
            directory=folder,
            environment=variables,
        )


def _on_postgres(dsn: str) -> dict[str, str]:
    fresh(dsn, name=NAME)
    return {f"PEEWEE_PSQL_{key.upper()}": value for key, value in parts(dsn).items()}


def _on_mysql(server: Mysql) -> dict[str, str]:
    server.fresh(NAME)
    given = {"HOST": server.host, "PORT": str(server.port), "USER": server.user}
    given |= {"PASSWORD": server.password} if server.password else {}
    return {f"PEEWEE_MYSQL_{key}": value for key, value in given.items()}
