"""PyMySQL's own tests, from the last source distribution that carries them, with what is installed.

Later ones have none. They are a package in pymysql, and so they are put beside what is installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed, packages
from .mysql import Mysql, running_mysql
from .sources import fetch
from .suites import Suite

CARRIES_TESTS = "0.10.1"


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("pymysql")
    sources = fetch("pymysql", CARRIES_TESTS, directory) / "pymysql"
    python = environment(["pymysql", "pytest"], directory)
    package = packages(python) / "pymysql"
    shutil.copytree(sources / "tests", package / "tests", dirs_exist_ok=True)
    # What the tests use, and what is gone: of PyMySQL, and of the standard library.
    for module in "_compat.py", "util.py":
        shutil.copy(sources / module, package)
    (package.parent / "imp.py").write_text("from importlib import reload\n")
    with running_mysql() as server:
        yield [
            Suite(
                "pymysql",
                f"PyMySQL {version}, by the tests of {CARRIES_TESTS}",
                ["--pyargs", "pymysql.tests"],
                ["pymysql"],
                pytest=True,
                python=python,
                environment=lambda: _environment(server, package / "tests"),
            )
        ]


def _environment(server: Mysql, tests: Path) -> dict[str, str]:
    """Its tests/base.py reads what to connect with from a file: here of two new databases."""
    given = {"host": server.host, "port": server.port, "user": server.user}
    given |= {"passwd": server.password, "use_unicode": True, "local_infile": True}
    databases = [{**given, "db": server.fresh()} for _ in range(2)]
    (tests / "databases.json").write_text(json.dumps(databases))
    return {}
