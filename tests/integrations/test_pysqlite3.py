"""pysqlite3, which has sqlite3's table: that it fits, and that what it has of its own is guarded too.

peewee prefers it to the standard library's where it is installed, so that these tests run in an
environment of their own.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe.installation import integration
from asyncsafe.transactions import in_transaction

from ..running import in_thread, on_loop, refused

pysqlite3 = pytest.importorskip("pysqlite3")
_sqlite3 = pytest.importorskip("pysqlite3._sqlite3")

ROWS = [(1, b"one"), (2, b"two"), (3, b"three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (?, ?)"

connect_by_name = pysqlite3.connect


class Database:
    """A file with three letters, connections to it, and what is seen of it from outside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "letters.db")
        self.opened: list[Any] = []
        with closing(pysqlite3.connect(self.path)) as connection, connection:
            connection.execute("create table letters (id integer primary key, body blob)")
            connection.executemany(INSERT, ROWS)

    def connect(self) -> Any:
        self.opened.append(pysqlite3.connect(self.path, check_same_thread=False))
        return self.opened[-1]

    def writing(self) -> Any:
        connection = self.connect()
        connection.execute(INSERT, (4, b"four"))
        return connection

    def selected(self) -> Any:
        return self.connect().execute(SELECT)

    def rows(self) -> list[Any]:
        with closing(pysqlite3.connect(self.path)) as connection:
            rows: list[Any] = connection.execute(SELECT).fetchall()
            return rows

    def seen(self) -> Any:
        files = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        return self.rows(), files, [in_transaction(c) for c in self.opened]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    asyncsafe.uninstall()
    for connection in database.opened:
        connection.close()


def leave(manager: Any) -> None:
    with manager:
        pass


IO = [
    ("connect", "connect", lambda db: partial(pysqlite3.connect, db.path)),
    ("imported by name", "connect", lambda db: partial(connect_by_name, db.path)),
    ("execute", "Connection.execute", lambda db: partial(db.connect().execute, SELECT)),
    (
        "executemany",
        "Connection.executemany",
        lambda db: partial(db.connect().executemany, INSERT, [(4, b"")]),
    ),
    (
        "executescript",
        "Connection.executescript",
        lambda db: partial(db.connect().executescript, "delete from letters"),
    ),
    (
        "Cursor.execute",
        "Cursor.execute",
        lambda db: partial(db.connect().cursor().execute, SELECT),
    ),
    ("fetchone", "Cursor.fetchone", lambda db: db.selected().fetchone),
    ("fetchmany", "Cursor.fetchmany", lambda db: partial(db.selected().fetchmany, size=2)),
    ("fetchall", "Cursor.fetchall", lambda db: db.selected().fetchall),
    ("list", "Cursor.__next__", lambda db: partial(list, db.selected())),
    ("commit", "Connection.commit", lambda db: db.writing().commit),
    ("rollback", "Connection.rollback", lambda db: db.writing().rollback),
    ("with", "Connection.__exit__", lambda db: partial(leave, db.writing())),
    ("close", "Connection.close", lambda db: db.connect().close),
    (
        "backup",
        "Connection.backup",
        lambda db: partial(db.connect().backup, pysqlite3.connect(":memory:")),
    ),
    (
        "open_blob",
        "Connection.open_blob",
        lambda db: partial(db.connect().open_blob, "letters", "body", 1),
    ),
    (
        "isolation_level = None in a transaction",
        "Connection.isolation_level",
        lambda db: partial(setattr, db.writing(), "isolation_level", None),
    ),
]


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(("operation", "make"), [pytest.param(*r, id=i) for i, *r in IO])
class TestIO:
    def test_refused_on_the_loop(self, operation: str, make: Any, db: Database) -> None:
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"pysqlite3.{operation}"
        assert db.seen() == before
        call()

    def test_untouched_in_a_thread(self, operation: str, make: Any, db: Database) -> None:
        in_thread(make(db))
        assert not asyncsafe.violations

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Database) -> None:
        call = make(db)
        asyncsafe.configure(mode="record")
        on_loop(call)
        assert f"pysqlite3.{operation}" in {s.violation.operation for s in asyncsafe.violations}


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(
    "make",
    [
        lambda db: db.connect().cursor,
        lambda db: db.connect().interrupt,
        lambda db: partial(db.connect().create_function, "f", 0, int),
        lambda db: partial(getattr, db.writing(), "in_transaction"),
        lambda db: db.connect().__enter__,
        lambda db: partial(setattr, db.connect(), "isolation_level", None),
        lambda db: db.selected().close,
        lambda db: partial(iter, db.selected()),
    ],
)
def test_no_io_is_not_flagged(make: Any, db: Database, heard: list[Any]) -> None:
    call = make(db)
    on_loop(call)
    assert heard == []


#: What the standard library's sqlite3 has, and pysqlite3 hasn't.
LACKS = {"serialize", "blobopen", "autocommit"}


@pytest.mark.parametrize(
    ("class_name", "operation"),
    [
        pytest.param(class_name, operation, id=f"{class_name}.{operation.name}")
        for class_name, found in integration("pysqlite3").operations["pysqlite3._sqlite3"].items()
        for operation in found
    ],
)
def test_every_operation_exists(class_name: str, operation: Any) -> None:
    owner = getattr(importlib.import_module("pysqlite3._sqlite3"), class_name)
    exists = operation.name not in LACKS
    assert (operation.name in vars(owner)) is exists
    asyncsafe.install("pysqlite3")
    guarded = vars(owner).get(operation.name)
    guarded = guarded.fset if operation.setter and guarded else guarded
    assert hasattr(guarded, "__async_unsafe__") is exists


def test_made_before_and_uninstalled_again(db: Database) -> None:
    kinds = (_sqlite3.Connection, _sqlite3.Cursor)
    bare = {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds}
    connection, cursor = db.writing(), db.selected()
    asyncsafe.install("pysqlite3")
    for call in (connection.commit, connection.close, cursor.fetchone, partial(list, cursor)):
        refused(call)
    asyncsafe.uninstall()
    assert {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds} == bare
    assert on_loop(cursor.fetchall) == ROWS


def test_application_error_arrives(db: Database, guarded: None, heard: list[Any]) -> None:
    connection = db.writing()

    def use() -> None:
        with connection:
            raise LookupError("the application's")

    with pytest.raises(LookupError, match="the application's") as caught:
        on_loop(use)
    assert caught.value.__context__ is None
    assert db.rows() == ROWS
    assert [v.outcome for v in heard] == ["allowed"]


def test_two_tasks(db: Database, guarded: None) -> None:
    connection = db.connect()

    async def call(query: str, *parameters: Any) -> None:
        with asyncsafe.allow("to begin"):
            connection.execute(query, *parameters)

    async def main() -> None:
        await asyncio.create_task(call(INSERT, (4, b"four")), name="the first")
        await asyncio.create_task(call(SELECT))

    with pytest.raises(asyncsafe.ConnectionSharingError, match="the first"):
        asyncio.run(main())
    connection.rollback()
