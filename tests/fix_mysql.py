"""A MySQL or MariaDB server: ASYNCSAFE_TEST_MYSQL (a URL), or root without a password on port 3306."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from .conftest import missing

ROWS = [(1, "one"), (2, "two"), (3, "three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (%s, %s)"

#: struct tcp_info: how many segments with data were sent, and how many bytes wait to be.
_SENT, _WAITING = 156, 144


@pytest.fixture(scope="session")
def mysql() -> Iterator[dict[str, Any]]:
    """What to connect with, by keywords: a database that tests may do what they like with."""
    how = "set ASYNCSAFE_TEST_MYSQL to a URL, or start a server on port 3306; pip install PyMySQL"
    try:
        import pymysql
    except ImportError:
        missing("PyMySQL", how)
    url = urlsplit(os.environ.get("ASYNCSAFE_TEST_MYSQL", "mysql://root@127.0.0.1:3306"))
    settings: dict[str, Any] = {
        "host": url.hostname,
        "port": url.port or 3306,
        "user": unquote(url.username or "root"),
        "password": unquote(url.password or ""),
    }
    name = f"asyncsafe_test_{os.getpid()}"
    try:
        connection = pymysql.connect(**settings)
    except pymysql.err.OperationalError:
        missing("MySQL", how)
    with connection:
        connection.query(f"create database {name}")
        yield {**settings, "database": name}
        connection.ping(reconnect=False)
        connection.query(f"drop database {name}")


class Letters:
    """Three letters, connections to them, and what the server and the kernel know of those."""

    def __init__(self, settings: dict[str, Any], connect: Callable[..., Any]) -> None:
        import pymysql

        self.settings = settings
        self.opened: list[Any] = []
        self.kept: list[Any] = []
        self._connect = connect
        self.watch = pymysql.connect(**settings, autocommit=True)
        self.ask("drop table if exists letters")
        self.ask("create table letters (id integer primary key, body text) engine=InnoDB")
        self.ask("drop procedure if exists spell")
        self.ask("create procedure spell(in n integer) select body from letters where id = n")
        self.fill()

    def ask(self, query: str, *parameters: Any) -> list[Any]:
        """From a connection of its own."""
        with self.watch.cursor() as cursor:
            cursor.execute(query, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def fill(self) -> None:
        self.ask("delete from letters")
        self.ask("insert into letters values (1, 'one'), (2, 'two'), (3, 'three')")

    def rows(self) -> list[Any]:
        return self.ask(SELECT)

    def backends(self) -> int:
        """How many connections there are to this database, but its own."""
        query = "select count(*) from information_schema.processlist where db = %s"
        count: int = self.ask(query, self.settings["database"])[0][0]
        return count - 1

    def sent(self) -> list[Any]:
        """Of each of this process's connections to the server, how much has been sent on it."""
        found = []
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as one:
                    peer = one.getpeername()
                    if not isinstance(peer, tuple) or peer[1] != self.settings["port"]:
                        continue
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                    counts = [struct.unpack_from("I", info, at)[0] for at in (_SENT, _WAITING)]
                    found.append((one.getsockname()[1], *counts))
        watched = self.watch._sock.getsockname()[1]
        return sorted(each for each in found if each[0] != watched)

    def seen(self) -> Any:
        return self.rows(), self.sent()

    def connect(self, **kwargs: Any) -> Any:
        self.opened.append(self._connect(**{**self.settings, **kwargs}))
        return self.opened[-1]

    def writing(self, **kwargs: Any) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect(**kwargs)
        cursor = self.keep(connection.cursor())
        cursor.execute(INSERT, (4, "four"))
        return connection

    def keep(self, thing: Any) -> Any:
        """A cursor, say, that would close itself if it were dropped."""
        self.kept.append(thing)
        return thing

    def cursor(self, **kwargs: Any) -> Any:
        return self.keep(self.connect(**kwargs).cursor())

    def selected(self, query: str = SELECT, **kwargs: Any) -> Any:
        cursor = self.cursor(**kwargs)
        cursor.execute(query)
        return cursor

    def empty(self) -> None:
        """Close what is open: cursors first, which read what is left, and nobody holds a lock."""
        for cursor in self.kept:
            with suppress(Exception):  # closed already, with its connection or without
                cursor.close()
        self.kept.clear()
        for connection in self.opened:
            with suppress(Exception):  # closed already
                connection.close()
        self.opened.clear()
        assert eventually(lambda: self.backends() == 0)

    def end(self) -> None:
        self.watch.close()


def eventually(question: Callable[[], bool]) -> bool:
    """Whether it comes true: a server takes a while to notice that a connection was closed."""
    return any(question() for _ in range(5000))
