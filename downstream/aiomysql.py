"""aiomysql's own tests, from the source distribution of the version that is installed.

Nothing of it may ever be refused. Its `aiomysql.sa` is for SQLAlchemy 1.3. On TCP the tests would
ask for a server with TLS: they are run on its socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment, installed
from .mysql import running_mysql
from .sources import fetch
from .suites import Suite

REQUIREMENTS = ["aiomysql", "pymysql", "pytest<9", "sqlalchemy<1.4", "uvloop"]


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("aiomysql")
    sources = fetch("aiomysql", version, directory, without="aiomysql")
    python = environment(REQUIREMENTS, directory)
    with running_mysql() as server:
        (socket,) = server.ask("select @@socket")
        server.made += ["test_pymysql", "test_pymysql2"]  # which they make
        yield [
            Suite(
                "aiomysql",
                f"aiomysql {version}",
                ["tests", f"--mysql-unix-socket=unix={socket}"],
                ["pymysql"],
                pytest=True,
                python=python,
                directory=sources,
                environment=lambda: {
                    "MYSQL_ROOT_PASSWORD": server.password,
                },
            )
        ]
