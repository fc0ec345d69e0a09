"""PyMySQL's own tests, with the version that is installed.

Its distributions on the package index have none of them: they are those of the version in Debian.
They are a package in pymysql, and so they are put beside what is installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed, packages
from .mysql import Mysql, running_mysql
from .sources import fetch_from_debian
from .suites import Suite


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("pymysql")
    sources = fetch_from_debian("python-pymysql", directory)
    python = environment(["pymysql", "pytest"], directory)
    tests = packages(python) / "pymysql" / "tests"
    shutil.copytree(sources / "pymysql" / "tests", tests, dirs_exist_ok=True)
    with running_mysql() as server:
        yield [
            Suite(
                "pymysql",
                f"PyMySQL {version}, by the tests of {sources.name}",
                ["--pyargs", "pymysql.tests"],
                ["pymysql"],
                pytest=True,
                python=python,
                environment=lambda: _environment(server, tests),
            )
        ]


def _environment(server: Mysql, tests: Path) -> dict[str, str]:
    """Its tests/base.py reads what to connect with from a file: here of two new databases."""
    given = {"host": server.host, "port": server.port, "user": server.user}
    given |= {"passwd": server.password, "use_unicode": True, "local_infile": True}
    databases = [{**given, "db": server.fresh()} for _ in range(2)]
    (tests / "databases.json").write_text(json.dumps(databases))
    return {}
