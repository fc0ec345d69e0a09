"""mysqlclient's own tests, from the source distribution of the version that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .mysql import Mysql, running_mysql
from .sources import fetch
from .suites import Suite

OPTIONS = """\
[MySQLdb-tests]
host = {server.host}
port = {server.port}
user = {server.user}
password = {server.password}
database = {database}
default-character-set = utf8mb4
"""

#: Two threads race for one result, and the second comes too late now and then.
UNSTEADY = {
    "tests/test_connection.py::test_result_concurrent_use_raises": "it is a race, which it lost bare"
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("mysqlclient")
    sources = fetch("mysqlclient", version, directory)
    python = environment(["mysqlclient", "pytest"], directory)
    with running_mysql() as server:
        yield [
            Suite(
                "mysqlclient",
                f"mysqlclient {version}",
                ["tests"],
                ["mysqlclient"],
                pytest=True,
                python=python,
                directory=sources,
                unsteady=UNSTEADY,
                environment=lambda: _environment(server, directory / "tests.cnf"),
            )
        ]


def _environment(server: Mysql, options: Path) -> dict[str, str]:
    """What its tests/configdb.py reads: an option file, here of a new database."""
    options.write_text(OPTIONS.format(server=server, database=server.fresh()))
    return {"TESTDB": str(options)}
