"""apsw: each call that does I/O is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

import asyncsafe
from asyncsafe.installation import integration
from asyncsafe.transactions import in_transaction

from ..running import in_thread, on_loop, refused

apsw = pytest.importorskip("apsw")

ROWS = [(1, b"one"), (2, b"two"), (3, b"three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (?, ?)"
RETURNING = "insert into letters values (4, 'a'), (5, 'b') returning id"


class Database:
    """A file with three letters, connections to it, and what is seen of it from outside."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.path = str(directory / "letters.db")
        self.opened: list[Any] = []
        self.kept: list[Any] = []
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("create table letters (id integer primary key, body blob)")
            connection.executemany(INSERT, ROWS)

    def connect(self, path: str | None = None) -> Any:
        self.opened.append(apsw.Connection(path or self.path))
        return self.opened[-1]

    def writing(self) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect()
        connection.execute("begin immediate")
        connection.execute(INSERT, (4, b"four"))
        return connection

    def entered(self) -> Any:
        connection = self.connect()
        connection.__enter__()
        connection.execute(INSERT, (4, b"four"))
        return connection

    def keep(self, thing: Any) -> Any:
        self.kept.append(thing)
        return thing

    def selected(self) -> Any:
        return self.connect().execute(SELECT)

    def returning(self) -> Any:
        """A statement that writes, and has been run halfway."""
        return self.connect().execute(RETURNING)

    def blob(self) -> Any:
        return self.keep(self.connect().blob_open("main", "letters", "body", 1, True))

    def backup(self) -> Any:
        other = self.connect(str(self.directory / "other.db"))
        return self.keep(other.backup("main", self.connect(), "main"))

    def session(self) -> Any:
        connection = self.connect()
        session = self.keep(apsw.Session(connection, "main"))
        session.attach("letters")
        connection.execute(INSERT, (4, b"four"))
        return session

    def changeset(self) -> Any:
        """A fourth row, to be written."""
        connection = self.connect()
        session = self.keep(apsw.Session(connection, "main"))
        session.attach("letters")
        with suppress(LookupError), connection:
            connection.execute(INSERT, (4, b"four"))
            changeset = session.changeset()
            raise LookupError
        return changeset

    def builder(self, connection: Any = None) -> Any:
        builder = self.keep(apsw.ChangesetBuilder())
        if connection is not None:
            builder.schema(connection, "main")
        return builder

    def rows(self) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(SELECT).fetchall()

    def seen(self) -> Any:
        """The rows from a second connection, every file byte for byte, the state of each connection."""
        files = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        states = [bool(c) and (c.in_transaction, c.total_changes()) for c in self.opened]
        return self.rows(), files, states

    def close(self) -> None:
        for thing in (*self.kept, *self.opened):
            with suppress(apsw.Error):
                thing.close()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "db")
    yield database
    asyncsafe.uninstall()
    database.close()


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[[], Database]]:
    made: list[Database] = []

    def make() -> Database:
        made.append(Database(tmp_path / f"another{len(made)}"))
        return made[-1]

    yield make
    asyncsafe.uninstall()
    for database in made:
        database.close()


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, apsw.Connection):
        result.close()
        return type(result)
    if isinstance(result, apsw.Cursor):
        return result.fetchall()
    if isinstance(result, (apsw.Blob, apsw.Backup)):
        result.close()
        return type(result)
    return result


def leave(manager: Any) -> None:
    with manager:
        pass


def first_of_loop(iterable: Any) -> Any:
    for item in iterable:
        return item
    return None


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


# What does I/O, by strace. Each makes the call to be tried, with all that comes before it; the
# second column is what the message names.
IO = params(
    ("Connection()", "Connection", lambda db: partial(apsw.Connection, db.path)),
    ("execute", "Connection.execute", lambda db: partial(db.connect().execute, SELECT)),
    ("a write", "Connection.execute", lambda db: partial(db.connect().execute, INSERT, (4, b""))),
    (
        "executemany",
        "Connection.executemany",
        lambda db: partial(db.connect().executemany, INSERT, [(4, b""), (5, b"")]),
    ),
    (
        "Cursor.execute",
        "Cursor.execute",
        lambda db: partial(db.connect().cursor().execute, SELECT),
    ),
    (
        "Cursor.executemany",
        "Cursor.executemany",
        lambda db: partial(db.connect().cursor().executemany, INSERT, [(4, b""), (5, b"")]),
    ),
    ("fetchone", "Cursor.fetchone", lambda db: db.selected().fetchone),
    ("fetchall", "Cursor.fetchall", lambda db: db.selected().fetchall),
    ("get", "Cursor.get", lambda db: partial(getattr, db.selected(), "get")),
    ("next", "Cursor.__next__", lambda db: partial(next, db.selected())),
    ("for", "Cursor.__next__", lambda db: partial(first_of_loop, db.selected())),
    ("list", "Cursor.__next__", lambda db: partial(list, db.selected())),
    ("close halfway", "Cursor.close", lambda db: partial(db.returning().close, True)),
    ("pragma", "Connection.pragma", lambda db: partial(db.connect().pragma, "user_version", 3)),
    ("with", "Connection.__enter__", lambda db: partial(leave, db.connect())),
    ("leaving", "Connection.__exit__", lambda db: partial(db.entered().__exit__, None, None, None)),
    ("close", "Connection.close", lambda db: db.connect().close),
    ("close in a transaction", "Connection.close", lambda db: db.writing().close),
    (
        "backup",
        "Connection.backup",
        lambda db: partial(
            db.connect(str(db.directory / "other.db")).backup, "main", db.connect(), "main"
        ),
    ),
    (
        "blob_open",
        "Connection.blob_open",
        lambda db: partial(db.connect().blob_open, "main", "letters", "body", 1, False),
    ),
    ("serialize", "Connection.serialize", lambda db: partial(db.connect().serialize, "main")),
    (
        "deserialize",
        "Connection.deserialize",
        lambda db: partial(db.connect().deserialize, "main", Path(db.path).read_bytes()),
    ),
    ("read", "Connection.read", lambda db: partial(db.connect().read, "main", 0, 0, 16)),
    (
        "table_exists",
        "Connection.table_exists",
        lambda db: partial(db.connect().table_exists, None, "letters"),
    ),
    (
        "column_metadata",
        "Connection.column_metadata",
        lambda db: partial(db.connect().column_metadata, None, "letters", "id"),
    ),
    ("wal_checkpoint", "Connection.wal_checkpoint", lambda db: db.connect().wal_checkpoint),
    ("cache_flush", "Connection.cache_flush", lambda db: db.writing().cache_flush),
    ("Blob.read", "Blob.read", lambda db: partial(db.blob().read, 2)),
    ("Blob.read_into", "Blob.read_into", lambda db: partial(db.blob().read_into, bytearray(2))),
    ("Blob.write", "Blob.write", lambda db: partial(db.blob().write, b"ONE")),
    ("Blob.reopen", "Blob.reopen", lambda db: partial(db.blob().reopen, 2)),
    ("Blob.close", "Blob.close", lambda db: db.blob().close),
    ("with Blob", "Blob.__exit__", lambda db: partial(leave, db.blob())),
    ("Backup.step", "Backup.step", lambda db: partial(db.backup().step, 1)),
    ("Backup.finish", "Backup.finish", lambda db: db.backup().finish),
    ("Backup.close", "Backup.close", lambda db: db.backup().close),
    ("with Backup", "Backup.__exit__", lambda db: partial(leave, db.backup())),
    ("Session.changeset", "Session.changeset", lambda db: db.session().changeset),
    ("Session.patchset", "Session.patchset", lambda db: db.session().patchset),
    (
        "Session.changeset_stream",
        "Session.changeset_stream",
        lambda db: partial(db.session().changeset_stream, lambda piece: None),
    ),
    (
        "Session.patchset_stream",
        "Session.patchset_stream",
        lambda db: partial(db.session().patchset_stream, lambda piece: None),
    ),
    (
        "Changeset.apply",
        "Changeset.apply",
        lambda db: partial(apsw.Changeset.apply, db.changeset(), db.connect()),
    ),
    (
        "ChangesetBuilder.add",
        "ChangesetBuilder.add",
        lambda db: partial(db.builder(db.connect()).add, db.changeset()),
    ),
)


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        bare = tell(make(another())())
        asyncsafe.install("apsw")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"apsw.{operation}"
        assert db.seen() == before
        # Nothing was consumed, nothing is locked: off the loop it does what it always did.
        assert tell(call()) == bare

    def test_untouched_in_a_thread(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        reference = another()
        bare = tell(make(reference)())
        asyncsafe.install("apsw")
        calls = [make(db)]
        assert in_thread(lambda: tell(calls[0]())) == bare
        assert not asyncsafe.violations
        calls.clear()
        for each in (db, reference):
            each.close()
        assert db.rows() == reference.rows()

    def test_recorded_on_the_loop(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        bare = tell(make(another())())
        asyncsafe.install("apsw")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert f"apsw.{operation}" in {s.violation.operation for s in asyncsafe.violations}


# What does no I/O, by strace.
NO_IO = params(
    ("cursor", lambda db: db.connect().cursor),
    ("in_transaction", lambda db: partial(getattr, db.writing(), "in_transaction")),
    ("changes", lambda db: db.writing().changes),
    ("total_changes", lambda db: db.writing().total_changes),
    ("last_insert_rowid", lambda db: db.writing().last_insert_rowid),
    ("txn_state", lambda db: db.writing().txn_state),
    ("data_version", lambda db: db.connect().data_version),
    ("db_names", lambda db: db.connect().db_names),
    ("readonly", lambda db: partial(db.connect().readonly, "main")),
    ("interrupt", lambda db: db.connect().interrupt),
    ("set_busy_timeout", lambda db: partial(db.connect().set_busy_timeout, 10)),
    (
        "create_scalar_function",
        lambda db: partial(db.connect().create_scalar_function, "f", lambda: 1),
    ),
    ("create_collation", lambda db: partial(db.connect().create_collation, "c", None)),
    ("set_authorizer", lambda db: partial(db.connect().set_authorizer, None)),
    ("release_memory", lambda db: db.connect().release_memory),
    ("closed again", lambda db: closed(db.connect()).close),
    ("iter", lambda db: partial(iter, db.selected())),
    ("description", lambda db: db.selected().get_description),
    ("cursor.close", lambda db: partial(db.selected().close, True)),
    ("cursor.close, unused", lambda db: db.connect().cursor().close),
    ("cursor closed again", lambda db: partial(closed(db.connect().cursor()).close)),
    ("Blob.seek", lambda db: partial(db.blob().seek, 1)),
    ("Blob.tell", lambda db: db.blob().tell),
    ("Blob.length", lambda db: db.blob().length),
    ("Blob closed again", lambda db: closed(db.blob()).close),
    ("Backup.page_count", lambda db: partial(getattr, db.backup(), "page_count")),
    ("Session.close", lambda db: db.session().close),
    ("ChangesetBuilder.add", lambda db: partial(db.builder().add, db.changeset())),
    ("ChangesetBuilder.schema", lambda db: partial(db.builder().schema, db.connect(), "main")),
    ("complete", lambda db: partial(apsw.complete, SELECT)),
)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Database, heard: list[Any]) -> None:
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    assert db.seen() == before


#: What apsw has had another name for, in builds that keep those.
OLD_NAMES = {"blobopen", "cacheflush"}


@pytest.mark.parametrize(
    ("class_name", "operation"),
    [
        pytest.param(class_name, operation, id=f"{class_name}.{operation.name}")
        for class_name, operations in integration("apsw").operations["apsw"].items()
        for operation in operations
        if operation.name not in OLD_NAMES or hasattr(apsw.Connection, operation.name)
    ],
)
def test_every_operation_exists(class_name: str, operation: Any) -> None:
    """What the installed apsw lacks is passed over, which must not happen unseen."""
    owner = getattr(importlib.import_module("apsw"), class_name)
    assert operation.name in vars(owner)
    asyncsafe.install("apsw")
    guarded = vars(owner)[operation.name]
    guarded = guarded.fget if operation.getter else guarded
    assert hasattr(getattr(guarded, "__func__", guarded), "__async_unsafe__")


@pytest.mark.usefixtures("guarded")
class TestTransactions:
    def test_refused_with_leaves_no_savepoint(self, db: Database) -> None:
        connection = db.connect()
        refused(lambda: leave(connection))
        assert not connection.in_transaction
        leave(connection)

    def test_refused_exit_leaves_it_open(self, db: Database) -> None:
        connection = db.entered()
        refused(partial(connection.__exit__, None, None, None))
        assert db.rows() == ROWS
        connection.__exit__(None, None, None)
        assert db.rows() == [*ROWS, (4, b"four")]

    def test_application_error_arrives_and_is_rolled_back(
        self, db: Database, heard: list[asyncsafe.Violation]
    ) -> None:
        connection = db.connect()

        def use() -> None:
            with asyncsafe.allow("to get there"):
                connection.__enter__()
                connection.execute(INSERT, (4, b"four"))
            try:
                raise LookupError("the application's")
            except LookupError as error:
                connection.__exit__(type(error), error, error.__traceback__)
                raise

        with pytest.raises(LookupError, match="the application's") as caught:
            on_loop(use)
        assert caught.value.__context__ is None
        assert db.rows() == ROWS
        assert (heard[-1].operation, heard[-1].outcome) == ("apsw.Connection.__exit__", "allowed")
        assert not connection.in_transaction

    def test_two_tasks(self, db: Database) -> None:
        connection = db.connect()

        async def begin() -> None:
            with asyncsafe.allow("to begin"):
                connection.execute("begin immediate")

        async def use() -> None:
            with asyncsafe.allow("to go on"):
                connection.execute(SELECT)

        async def main() -> None:
            await asyncio.create_task(begin(), name="the first")
            await asyncio.create_task(use())

        with pytest.raises(asyncsafe.ConnectionSharingError, match="the first"):
            asyncio.run(main())
        assert in_transaction(connection)
        connection.execute("rollback")
        assert in_transaction(connection) is False
        connection.close()
        assert in_transaction(connection) is False


class Overriding(apsw.Connection):  # type: ignore[misc]
    """A user's subclass, with methods of its own that call ours."""

    def execute(self, *args: Any) -> Any:
        return super().execute(*args)


class TestAsBefore:
    def test_made_before(self, db: Database) -> None:
        connection, cursor, blob = db.connect(), db.selected(), db.blob()
        asyncsafe.install("apsw")
        for call in (
            partial(connection.execute, SELECT),
            connection.close,
            cursor.fetchone,
            partial(list, cursor),
            blob.read,
        ):
            refused(call)
        assert cursor.fetchall() == ROWS
        assert blob.read() == b"one"

    def test_subclass(self, db: Database, guarded: None) -> None:
        assert refused(partial(Overriding, db.path)).operation == "apsw.Connection"
        connection = Overriding(db.path)
        db.opened.append(connection)
        refused(partial(connection.execute, SELECT))
        assert connection.execute(SELECT).fetchall() == ROWS

    def test_uninstalled_again(self, db: Database) -> None:
        kinds = [getattr(apsw, name) for name in integration("apsw").operations["apsw"]]
        bare = {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds}
        for _ in range(3):
            asyncsafe.install("apsw")
            cursor = db.selected()
            kept = cursor.fetchone
            asyncsafe.uninstall()
            assert {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds} == bare
            assert on_loop(kept) == ROWS[0]
        assert not asyncsafe.violations

    def test_errors_of_its_own(self, db: Database) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        def no_such() -> Any:
            return db.connect().execute("nonsense")

        calls: list[Callable[[], Any]] = [
            no_such,
            lambda: apsw.Connection("/no/such/directory/file"),
            lambda: db.connect().execute(),
            lambda: closed(db.connect()).execute(SELECT),
            lambda: closed(db.connect().cursor()).fetchone(),
            lambda: closed(db.blob()).read(),
        ]
        bare = [error(call) for call in calls]
        asyncsafe.install("apsw")
        assert [error(call) for call in calls] == bare
        # Nothing of what is closed does I/O: it has the same error on the loop.
        with pytest.raises(apsw.ConnectionClosedError):
            on_loop(closed(db.connect()).execute, SELECT)
        with pytest.raises(apsw.CursorClosedError):
            on_loop(closed(db.connect().cursor()).fetchone)

    def test_statement_without_parameters(self, db: Database, guarded: None) -> None:
        violation = refused(partial(db.connect().execute, INSERT, (4, "a secret")))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()

    def test_exempt(self, db: Database, guarded: None, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection:
                blob = connection.blob_open("main", "letters", "body", 1, False)
                assert blob.read() == b"one"
                blob.close()
                return connection.execute(SELECT).fetchall()

        assert on_loop(use) == ROWS
        assert heard == []
        refused(partial(other.execute, SELECT))

    def test_dropped_on_the_loop(
        self, db: Database, guarded: None, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.selected()]
        db.opened.clear()
        db.kept.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert (unraisable, heard) == ([], [])
        assert db.rows() == ROWS


@pytest.mark.skipif(not hasattr(apsw.Connection, "as_async"), reason="new in apsw 3.52")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_asynchronous_connections(
    db: Database,
    guarded: None,
    heard: list[Any],
    recwarn: pytest.WarningsRecorder,
    run: Callable[..., Any],
) -> None:
    async def main() -> Any:
        connection = await apsw.Connection.as_async(db.path)
        async with connection:
            await connection.execute(INSERT, (4, b"four"))
        await connection.pragma("user_version")
        rows = [row async for row in await connection.execute(SELECT)]
        cursor = await connection.execute(SELECT)
        assert len(await cursor.get) == 4
        async with await connection.blob_open("main", "letters", "body", 1, False) as blob:
            assert await blob.read() == b"one"
        if hasattr(apsw, "Session"):
            session = await apsw.aio.make_session(connection, "main")
            await session.attach()
            await connection.execute("update letters set body = ? where id = 4", (b"IV",))
            assert b"IV" in await session.changeset()
            assert b"IV" in await session.patchset()
            await session.aclose()
            await connection.execute("update letters set body = ? where id = 4", (b"four",))
        async with await apsw.Connection.as_async("") as other:
            backup = await other.backup("main", connection, "main")
            await backup.step(-1)
            await backup.afinish()
        await other.aclose()
        await connection.aclose()
        return rows

    assert run(main()) == [*ROWS, (4, b"four")]
    assert heard == []
    assert not list(recwarn)  # no coroutine of theirs was made and left
