"""A MySQL or MariaDB server: ASYNCSAFE_TEST_MYSQL (a URL), or root without a password on port 3306."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from .suites import NotRun


@dataclass
class Mysql:
    """A server to do with as one likes, and the databases that were made there."""

    host: str
    port: int
    user: str
    password: str
    made: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """All of a URL but its scheme and its path."""
        user = quote(self.user) + (f":{quote(self.password)}" if self.password else "")
        return f"{user}@{self.host}:{self.port}"

    def fresh(self, name: str | None = None) -> str:
        """The name of a new, empty database; by default one that nobody has."""
        name = name or f"asyncsafe_downstream_{os.getpid()}_{next(self._numbers)}"
        self.ask(f"drop database if exists {name}")
        self.ask(f"create database {name} character set utf8mb4")
        self.made.append(name)
        return name

    def ask(self, statement: str) -> Any:
        """The first row of its result, if it has one."""
        import pymysql

        connection = pymysql.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, autocommit=True
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()


@contextmanager
def running_mysql() -> Iterator[Mysql]:
    """Raises NotRun where there is none. What was made there is dropped."""
    url = urlsplit(os.environ.get("ASYNCSAFE_TEST_MYSQL", "mysql://root@127.0.0.1:3306"))
    server = Mysql(
        url.hostname or "127.0.0.1",
        url.port or 3306,
        unquote(url.username or "root"),
        unquote(url.password or ""),
    )
    try:
        import pymysql

        server.ask("select 1")
    except ImportError as error:
        raise NotRun("it takes PyMySQL to make databases") from error
    except pymysql.err.OperationalError as error:
        raise NotRun(f"it needs a MySQL or MariaDB server: {error}") from error
    try:
        yield server
    finally:
        for name in server.made:
            server.ask(f"drop database if exists {name}")
