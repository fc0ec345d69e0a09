"""sqlite3: each call that does I/O is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import operator
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from sqlite3 import connect as connect_by_name
from typing import Any

import aiosqlite
import pytest
import uvloop

import asyncsafe
from asyncsafe import scopes
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, refused

Refused = asyncsafe.SynchronousOnlyOperation

NEW_IN_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")

ROWS = [(1, b"one"), (2, b"two"), (3, b"three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (?, ?)"


def state(connection: sqlite3.Connection) -> Any:
    try:
        return connection.in_transaction, connection.total_changes
    except sqlite3.ProgrammingError:
        return "closed"


class Database:
    """A file with three letters, connections to it, and what is seen of it from outside."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.path = str(directory / "letters.db")
        self.opened: list[sqlite3.Connection] = []
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("create table letters (id integer primary key, body blob)")
            connection.executemany(INSERT, ROWS)

    def connect(self, path: str | None = None, **kwargs: Any) -> sqlite3.Connection:
        kwargs.setdefault("check_same_thread", False)
        self.opened.append(sqlite3.connect(path or self.path, **kwargs))
        return self.opened[-1]

    def writing(self, **kwargs: Any) -> sqlite3.Connection:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect(**kwargs)
        connection.execute(INSERT, (4, b"four"))
        return connection

    def selected(self) -> sqlite3.Cursor:
        return self.connect().execute(SELECT)

    def returning(self, **kwargs: Any) -> sqlite3.Cursor:
        """A statement that writes, and has been run halfway."""
        query = "insert into letters values (4, 'a'), (5, 'b') returning id"
        return self.connect(**kwargs).execute(query)

    def blob(self) -> sqlite3.Blob:
        return self.connect().blobopen("letters", "body", 1)

    def other(self) -> str:
        return str(self.directory / "other.db")

    def rows(self) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(SELECT).fetchall()

    def seen(self) -> Any:
        """The rows from a second connection, every file byte for byte, the state of each connection."""
        files = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        return self.rows(), files, list(map(state, self.opened))

    def close(self) -> None:
        for connection in self.opened:
            connection.close()


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


def last(cursor: sqlite3.Cursor) -> sqlite3.Cursor:
    cursor.fetchall()
    return cursor


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, sqlite3.Connection):
        result.close()
        return type(result)
    if isinstance(result, sqlite3.Cursor):
        return result.fetchall()
    if isinstance(result, sqlite3.Blob):
        result.close()
        return "a blob"
    return result


def leave(manager: Any) -> None:
    with manager:
        pass


def first_of_loop(iterable: Any) -> Any:
    for item in iterable:
        return item
    return None


def dumped(connection: sqlite3.Connection) -> Callable[[], list[str]]:
    return lambda: list(connection.iterdump())


def mapped(cursor: sqlite3.Cursor) -> Callable[[], Any]:
    return lambda: [done.fetchall() for done in map(cursor.execute, [SELECT])]


def set_item(target: Any, key: Any, value: Any) -> None:
    target[key] = value


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the first column is what the message names.
IO: list[Any] = [
    pytest.param(operation, make, id=name, marks=marks)
    for name, operation, make, *marks in [
        ("connect", "connect", lambda db: partial(sqlite3.connect, db.path)),
        ("connect, imported by name", "connect", lambda db: partial(connect_by_name, db.path)),
        ("dbapi2.connect", "connect", lambda db: partial(sqlite3.dbapi2.connect, db.path)),
        ("Connection()", "connect", lambda db: partial(sqlite3.Connection, db.path)),
        (
            "Connection.execute",
            "Connection.execute",
            lambda db: partial(db.connect().execute, SELECT),
        ),
        (
            "Connection.execute, a write",
            "Connection.execute",
            lambda db: partial(db.connect().execute, INSERT, (4, b"four")),
        ),
        (
            "Connection.executemany",
            "Connection.executemany",
            lambda db: partial(db.connect().executemany, INSERT, [(4, b""), (5, b"")]),
        ),
        (
            "Connection.executescript",
            "Connection.executescript",
            lambda db: partial(db.connect().executescript, "delete from letters; select 1;"),
        ),
        (
            "Cursor.close halfway",
            "Cursor.close",
            lambda db: db.returning(isolation_level=None).close,
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
        (
            "Cursor.executescript",
            "Cursor.executescript",
            lambda db: partial(db.connect().cursor().executescript, "delete from letters"),
        ),
        ("fetchone", "Cursor.fetchone", lambda db: db.selected().fetchone),
        ("fetchmany", "Cursor.fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
        (
            "fetchmany, size by name",
            "Cursor.fetchmany",
            lambda db: partial(db.selected().fetchmany, size=2),
        ),
        ("fetchmany, no size", "Cursor.fetchmany", lambda db: db.selected().fetchmany),
        ("fetchall", "Cursor.fetchall", lambda db: db.selected().fetchall),
        ("next", "Cursor.__next__", lambda db: partial(next, db.selected())),
        ("for", "Cursor.__next__", lambda db: partial(first_of_loop, db.selected())),
        ("list", "Cursor.__next__", lambda db: partial(list, db.selected())),
        ("commit", "Connection.commit", lambda db: db.writing().commit),
        ("rollback", "Connection.rollback", lambda db: db.writing().rollback),
        ("with", "Connection.__exit__", lambda db: partial(leave, db.writing())),
        ("close", "Connection.close", lambda db: db.connect().close),
        ("close in a transaction", "Connection.close", lambda db: db.writing().close),
        (
            "backup",
            "Connection.backup",
            lambda db: partial(db.connect().backup, db.connect(db.other())),
        ),
        ("iterdump", "Cursor.execute", lambda db: dumped(db.connect())),
        ("serialize", "Connection.serialize", lambda db: db.connect().serialize),
        (
            "blobopen",
            "Connection.blobopen",
            lambda db: partial(db.connect().blobopen, "letters", "body", 1),
        ),
        ("Blob.read", "Blob.read", lambda db: db.blob().read),
        ("Blob.read, a part", "Blob.read", lambda db: partial(db.blob().read, 2)),
        ("Blob.write", "Blob.write", lambda db: partial(db.blob().write, b"ONE")),
        ("Blob[0]", "Blob.__getitem__", lambda db: partial(db.blob().__getitem__, 0)),
        ("Blob[0:2]", "Blob.__getitem__", lambda db: partial(db.blob().__getitem__, slice(0, 2))),
        ("Blob[0] =", "Blob.__setitem__", lambda db: partial(set_item, db.blob(), 0, 65)),
        ("Blob.close", "Blob.close", lambda db: db.blob().close),
        ("with Blob", "Blob.__exit__", lambda db: partial(leave, db.blob())),
        (
            "isolation_level = None in a transaction",
            "Connection.isolation_level",
            lambda db: partial(setattr, db.writing(), "isolation_level", None),
        ),
        (
            "autocommit = True in a transaction",
            "Connection.autocommit",
            lambda db: partial(setattr, db.writing(autocommit=False), "autocommit", True),
            NEW_IN_312,
        ),
        # What calls it from C.
        ("map", "Cursor.execute", lambda db: mapped(db.connect().cursor())),
        (
            "executemany of a generator",
            "Cursor.executemany",
            lambda db: partial(
                db.connect().cursor().executemany, INSERT, ((n, b"") for n in (4, 5))
            ),
        ),
        ("tuple", "Cursor.__next__", lambda db: partial(tuple, db.selected())),
        ("dict", "Cursor.__next__", lambda db: partial(dict, db.selected())),
        ("sorted", "Cursor.__next__", lambda db: partial(sorted, db.selected())),
        ("in", "Cursor.__next__", lambda db: partial(operator.contains, db.selected(), ROWS[1])),
        (
            "zip",
            "Cursor.__next__",
            lambda db: partial(list, zip(db.selected(), "abc", strict=True)),
        ),
    ]
]


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        bare = tell(make(another())())
        asyncsafe.install("sqlite3")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"sqlite3.{operation}"
        assert db.seen() == before
        # Nothing was consumed, nothing is locked: off the loop it does what it always did.
        assert tell(call()) == bare

    def test_untouched_in_a_thread(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        reference = another()
        bare = tell(make(reference)())
        asyncsafe.install("sqlite3")
        calls = [make(db)]
        assert in_thread(lambda: tell(calls[0]())) == bare
        assert not asyncsafe.violations
        asyncsafe.uninstall()
        calls.clear()  # what a blob writes is committed when it is closed
        assert db.rows() == reference.rows()

    def test_recorded_on_the_loop(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        bare = tell(make(another())())
        asyncsafe.install("sqlite3")
        asyncsafe.configure(mode="record")
        call = make(db)
        assert on_loop(lambda: tell(call())) == bare
        assert f"sqlite3.{operation}" in {s.violation.operation for s in asyncsafe.violations}


class Letter:
    pass


def closed(thing: Any) -> Any:
    thing.close()
    return thing


# hooks.md, section 2: what does no I/O.
NO_IO: list[Any] = [
    pytest.param(make, id=name, marks=marks)
    for name, make, *marks in [
        ("cursor", lambda db: db.connect().cursor),
        ("Cursor()", lambda db: partial(sqlite3.Cursor, db.connect())),
        ("in_transaction", lambda db: partial(getattr, db.writing(), "in_transaction")),
        ("total_changes", lambda db: partial(getattr, db.writing(), "total_changes")),
        ("create_function", lambda db: partial(db.connect().create_function, "f", 0, int)),
        ("create_aggregate", lambda db: partial(db.connect().create_aggregate, "f", 0, None)),
        ("create_collation", lambda db: partial(db.connect().create_collation, "c", None)),
        (
            "create_window_function",
            lambda db: partial(db.connect().create_window_function, "f", 0, None),
        ),
        ("interrupt", lambda db: db.connect().interrupt),
        ("set_authorizer", lambda db: partial(db.connect().set_authorizer, None)),
        ("set_progress_handler", lambda db: partial(db.connect().set_progress_handler, None, 1)),
        ("set_trace_callback", lambda db: partial(db.connect().set_trace_callback, None)),
        ("Connection()", lambda db: partial(db.connect(), SELECT)),
        ("iterdump, not iterated", lambda db: db.connect().iterdump),
        ("getlimit", lambda db: partial(db.connect().getlimit, sqlite3.SQLITE_LIMIT_SQL_LENGTH)),
        ("setlimit", lambda db: partial(db.connect().setlimit, sqlite3.SQLITE_LIMIT_SQL_LENGTH, 9)),
        ("getconfig", lambda db: partial(db.connect().getconfig, 1003), NEW_IN_312),
        ("row_factory", lambda db: partial(setattr, db.connect(), "row_factory", sqlite3.Row)),
        ("text_factory", lambda db: partial(setattr, db.connect(), "text_factory", bytes)),
        ("isolation_level", lambda db: partial(getattr, db.writing(), "isolation_level")),
        (
            "isolation_level = None outside of a transaction",
            lambda db: partial(setattr, db.connect(), "isolation_level", None),
        ),
        (
            "isolation_level = IMMEDIATE in a transaction",
            lambda db: partial(setattr, db.writing(), "isolation_level", "IMMEDIATE"),
        ),
        ("autocommit", lambda db: partial(getattr, db.connect(), "autocommit"), NEW_IN_312),
        (
            "autocommit = True outside of a transaction",
            lambda db: partial(setattr, db.connect(), "autocommit", True),
            NEW_IN_312,
        ),
        ("with, entered", lambda db: db.connect().__enter__),
        ("closed again", lambda db: closed(db.connect()).close),
        ("iter", lambda db: partial(iter, db.selected())),
        ("Cursor.close", lambda db: db.selected().close),
        (
            "Cursor.close after the last row",
            lambda db: last(db.returning(isolation_level=None)).close,
        ),
        ("description", lambda db: partial(getattr, db.selected(), "description")),
        ("lastrowid", lambda db: partial(getattr, db.selected(), "lastrowid")),
        ("rowcount", lambda db: partial(getattr, db.selected(), "rowcount")),
        ("connection", lambda db: partial(getattr, db.selected(), "connection")),
        ("arraysize", lambda db: partial(setattr, db.selected(), "arraysize", 3)),
        ("setinputsizes", lambda db: partial(db.selected().setinputsizes, ())),
        ("setoutputsize", lambda db: partial(db.selected().setoutputsize, 1)),
        ("Blob.seek", lambda db: partial(db.blob().seek, 1)),
        ("Blob.tell", lambda db: db.blob().tell),
        ("len(Blob)", lambda db: partial(len, db.blob())),
        ("Blob closed again", lambda db: closed(db.blob()).close),
        ("complete_statement", lambda db: partial(sqlite3.complete_statement, SELECT)),
        ("register_adapter", lambda db: partial(sqlite3.register_adapter, Letter, bytes)),
        ("register_converter", lambda db: partial(sqlite3.register_converter, "letter", bytes)),
    ]
]


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Database, heard: list[Any]) -> None:
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    assert db.seen() == before


@pytest.mark.usefixtures("guarded")
def test_cursor_closed_halfway_in_a_transaction(db: Database, heard: list[Any]) -> None:
    """The end of its statement commits nothing."""
    on_loop(db.returning().close)
    assert heard == []
    assert db.rows() == ROWS


MISSING = {("Connection", "autocommit"): (3, 12)}


@pytest.mark.parametrize(
    ("module", "class_name", "operation"),
    [
        pytest.param(module, class_name, operation, id=f"{class_name}.{operation.name}")
        for module, classes in integration("sqlite3").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What this version of Python lacks is passed over, which must not happen unseen."""
    owner = getattr(importlib.import_module(module), class_name)
    exists = sys.version_info >= MISSING.get((class_name, operation.name), (3, 11))
    assert (operation.name in vars(owner)) is exists
    asyncsafe.install("sqlite3")
    guarded = vars(owner).get(operation.name)
    guarded = guarded.fset if operation.setter and guarded else guarded
    assert hasattr(guarded, "__async_unsafe__") is exists


class TestWith:
    @pytest.fixture(autouse=True)
    def guard(self, guarded: None) -> None:
        pass

    def test_refused_commit_leaves_the_transaction_open(self, db: Database) -> None:
        connection = db.writing()
        assert refused(lambda: leave(connection)).operation == "sqlite3.Connection.__exit__"
        assert connection.in_transaction
        assert db.rows() == ROWS
        connection.commit()
        assert db.rows() == [*ROWS, (4, b"four")]

    def test_application_error_arrives_and_is_rolled_back(
        self, db: Database, heard: list[asyncsafe.Violation]
    ) -> None:
        connection = db.writing()

        async def coroutine() -> None:
            with connection:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's") as caught:
            asyncio.run(coroutine())
        assert caught.value.__context__ is None
        assert not connection.in_transaction
        assert db.rows() == ROWS
        assert [(v.operation, v.outcome) for v in heard] == [
            ("sqlite3.Connection.__exit__", "allowed")
        ]

    def test_refusal_inside_is_not_refused_again(self, db: Database) -> None:
        connection = db.writing()

        def use() -> None:
            with connection:
                connection.execute(SELECT)

        assert refused(use).operation == "sqlite3.Connection.execute"
        assert not connection.in_transaction

    def test_close_in_finally(self, db: Database, heard: list[asyncsafe.Violation]) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                raise LookupError("the application's")
            finally:
                connection.close()

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.total_changes
        assert [(v.operation, v.outcome) for v in heard] == [
            ("sqlite3.Connection.close", "allowed")
        ]

    def test_rollback_while_an_error_is_handled(
        self, db: Database, heard: list[asyncsafe.Violation]
    ) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                raise LookupError
            except LookupError:
                connection.rollback()

        on_loop(use)
        assert not connection.in_transaction
        assert [(v.operation, v.outcome) for v in heard] == [
            ("sqlite3.Connection.rollback", "allowed")
        ]

    def test_commit_while_an_error_is_handled_is_refused(self, db: Database) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                raise LookupError
            except LookupError:
                connection.commit()

        assert refused(use).operation == "sqlite3.Connection.commit"
        assert db.rows() == ROWS

    def test_blob(self, db: Database) -> None:
        blob = db.blob()

        def leave_with_error() -> None:
            with blob:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's"):
            on_loop(leave_with_error)
        with pytest.raises(sqlite3.ProgrammingError, match="closed blob"):
            blob.tell()


class TestMadeBefore:
    """install() reaches what was opened or imported before it."""

    def test_connection_and_cursor(self, db: Database) -> None:
        connection = db.connect()
        cursor = connection.execute(SELECT)
        blob = connection.blobopen("letters", "body", 1)
        asyncsafe.install("sqlite3")
        for call in (
            partial(connection.execute, SELECT),
            connection.commit,
            connection.close,
            cursor.fetchone,
            partial(next, cursor),
            partial(list, cursor),
            blob.read,
            partial(blob.__getitem__, 0),
        ):
            refused(call)
        assert cursor.fetchall() == ROWS
        assert blob.read() == b"one"

    def test_uninstalled_again(self, db: Database) -> None:
        asyncsafe.install("sqlite3")
        cursor = db.selected()
        kept = cursor.fetchone
        asyncsafe.uninstall()
        assert on_loop(kept) == ROWS[0]
        assert on_loop(cursor.fetchall) == ROWS[1:]
        assert not asyncsafe.violations


class Overriding(sqlite3.Connection):
    """A user's subclass, with methods of its own that call ours."""

    executed = 0

    def execute(self, *args: Any) -> Any:
        self.executed += 1
        return super().execute(*args)

    def commit(self) -> None:
        super().commit()


class OverridingCursor(sqlite3.Cursor):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.executed = 0

    def execute(self, *args: Any) -> Any:
        self.executed += 1
        return super().execute(*args)

    def __next__(self) -> Any:
        return super().__next__()


class PlainSubclass(sqlite3.Connection):
    pass


@pytest.mark.usefixtures("guarded")
class TestSubclasses:
    @pytest.mark.parametrize("factory", [Overriding, PlainSubclass])
    def test_factory(self, db: Database, factory: type[sqlite3.Connection]) -> None:
        call = partial(sqlite3.connect, db.path, factory=factory)
        assert refused(call).operation == "sqlite3.connect"
        assert refused(partial(factory, db.path)).operation == "sqlite3.connect"
        connection = db.connect(factory=factory)
        assert type(connection) is factory
        assert (
            refused(partial(connection.execute, SELECT)).operation == "sqlite3.Connection.execute"
        )
        assert refused(connection.commit).operation == "sqlite3.Connection.commit"
        assert connection.execute(SELECT).fetchall() == ROWS

    def test_function_as_factory(self, db: Database) -> None:
        def factory(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            return sqlite3.Connection(*args, **kwargs)

        call: Callable[[], Any] = partial(sqlite3.connect, db.path, factory=factory)  # type: ignore[arg-type]
        assert refused(call).operation == "sqlite3.connect"
        with closing(call()) as connection:
            assert connection.execute(SELECT).fetchall() == ROWS

    def test_cursor(self, db: Database) -> None:
        cursor = db.connect().cursor(OverridingCursor)
        assert refused(partial(cursor.execute, SELECT)).operation == "sqlite3.Cursor.execute"
        assert cursor.executed == 1
        cursor.execute(SELECT)
        assert refused(partial(next, cursor)).operation == "sqlite3.Cursor.__next__"
        assert refused(partial(list, cursor)).operation == "sqlite3.Cursor.__next__"
        assert list(cursor) == ROWS

    def test_made_while_guarded_and_used_after(self, db: Database) -> None:
        class Late(sqlite3.Cursor):
            pass

        cursor = db.connect().cursor(Late)
        refused(partial(cursor.execute, SELECT))
        asyncsafe.uninstall()
        assert on_loop(lambda: list(cursor.execute(SELECT))) == ROWS


class TestAsBefore:
    """What goes on as before install()."""

    def test_types(self, db: Database, guarded: None) -> None:
        connection = db.connect()
        cursor = connection.execute(SELECT)
        assert type(connection) is sqlite3.Connection
        assert type(cursor) is sqlite3.Cursor
        assert type(connection.blobopen("letters", "body", 1)) is sqlite3.Blob
        assert cursor.connection is connection
        assert isinstance(sqlite3.Row(cursor, (1, b"")), sqlite3.Row)

    def test_backup_and_row(self, db: Database, guarded: None) -> None:
        with closing(sqlite3.connect(":memory:")) as target:
            db.connect().backup(target)
            target.row_factory = sqlite3.Row
            row = target.execute(SELECT).fetchone()
            assert (row["id"], row["body"]) == ROWS[0]

    @pytest.mark.parametrize(
        ("cls", "name"),
        [
            (sqlite3.Connection, "execute"),
            (sqlite3.Connection, "commit"),
            (sqlite3.Connection, "backup"),
            (sqlite3.Connection, "isolation_level"),
            (sqlite3.Cursor, "fetchmany"),
            (sqlite3.Blob, "read"),
        ],
    )
    def test_name_and_documentation(self, cls: Any, name: str) -> None:
        def told() -> Any:
            attribute = getattr(cls, name)
            return attribute.__doc__, [
                getattr(attribute, a, None) for a in ("__name__", "__qualname__")
            ]

        doc, names = told()
        asyncsafe.install("sqlite3")
        assert told()[0] == doc
        if name != "isolation_level":
            assert told()[1] == names

    @pytest.mark.parametrize("installed", [False, True])
    def test_blob_is_not_iterable(self, db: Database, installed: bool) -> None:
        blob = db.blob()
        if installed:
            asyncsafe.install("sqlite3")
        for attempt in (iter, list, lambda b: b"o" in b, lambda b: [*b], reversed, sum):
            with pytest.raises(TypeError):
                attempt(blob)
        assert (blob[0], blob[0:3], blob[-1]) == (ord("o"), b"one", ord("e"))

    def test_wrong_arguments(self, db: Database) -> None:
        connection = db.connect()

        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value).partition("(")[0].rpartition(".")[2][:7]

        calls: list[Callable[[], Any]] = [
            lambda: connection.execute(),  # type: ignore[call-arg]
            lambda: connection.execute(SELECT, (), ()),  # type: ignore[call-arg]
            lambda: connection.execute(sql=SELECT),  # type: ignore[call-arg]
            lambda: connection.execute(1),  # type: ignore[arg-type]
            lambda: connection.execute("nonsense"),
            lambda: connection.cursor().fetchmany("x"),  # type: ignore[arg-type]
            lambda: connection.commit(1),  # type: ignore[call-arg]
            lambda: sqlite3.connect(),  # type: ignore[call-overload]
            lambda: setattr(connection, "isolation_level", "nonsense"),
            lambda: delattr(connection, "isolation_level"),
        ]
        bare = [error(call)[0] for call in calls]
        asyncsafe.install("sqlite3")
        assert [error(call)[0] for call in calls] == bare

    def test_closed_connection_says_so(self, db: Database, guarded: None) -> None:
        connection = closed(db.connect())
        assert on_loop(connection.close) is None
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            on_loop(lambda: setattr(connection, "isolation_level", None))


class TestGarbage:
    """What the garbage collector ends raises nothing, also on the loop."""

    def test_connection_in_a_transaction(self, db: Database, guarded: None) -> None:
        unraisable: list[Any] = []
        hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
        try:
            connections = [sqlite3.connect(db.path)]
            connections[0].execute(INSERT, (4, b"four"))
            on_loop(lambda: (connections.clear(), gc.collect()))
        finally:
            sys.unraisablehook = hook
        assert not [u for u in unraisable if isinstance(u.exc_value, Refused)]
        assert db.rows() == ROWS

    def test_close_in_a_finalizer(
        self, db: Database, guarded: None, heard: list[asyncsafe.Violation]
    ) -> None:
        class Repository:
            def __init__(self) -> None:
                self.connection = db.connect()

            def __del__(self) -> None:
                self.connection.close()

        repositories = [Repository()]
        connection = repositories[0].connection
        on_loop(lambda: (repositories.clear(), gc.collect()))
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.total_changes
        assert [v.outcome for v in heard] == ["allowed"]


class TestExempt:
    @pytest.fixture(autouse=True)
    def guard(self, guarded: None) -> None:
        pass

    def test_connection_and_its_cursors(self, db: Database, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection:
                cursor = connection.cursor()
                cursor.execute(INSERT, (4, b"four"))
            connection.isolation_level = None
            return list(connection.execute(SELECT))

        assert on_loop(use) == [*ROWS, (4, b"four")]
        assert heard == []
        refused(partial(other.execute, SELECT))
        refused(partial(other.cursor().execute, SELECT))

    def test_cursor_alone(self, db: Database) -> None:
        connection = db.connect()
        cursor = connection.cursor()
        asyncsafe.exempt(cursor)
        assert on_loop(lambda: cursor.execute(SELECT).fetchall()) == ROWS
        refused(partial(connection.execute, SELECT))
        refused(partial(connection.cursor().execute, SELECT))

    def test_blob(self, db: Database) -> None:
        blob = db.blob()
        refused(blob.read)
        asyncsafe.exempt(blob)
        assert on_loop(blob.read) == b"one"
        assert on_loop(lambda: blob[0]) == ord("o")

    def test_blob_of_an_exempt_connection(self, db: Database) -> None:
        connection = db.connect()
        blob = connection.blobopen("letters", "body", 1)
        refused(blob.read)
        asyncsafe.exempt(connection)
        assert on_loop(blob.read) == b"one"
        on_loop(blob.close)

    def test_holds_nothing_for_long(self, db: Database) -> None:
        gc.collect()
        before = len(scopes._exempt)
        for _ in range(50):
            connection = sqlite3.connect(":memory:")
            asyncsafe.exempt(connection)
            connection.close()
            del connection
        assert len(scopes._exempt) <= before + 1

    def test_a_new_object_at_the_same_address_is_not_exempt(self, db: Database) -> None:
        for _ in range(50):
            exempted = sqlite3.connect(db.path)
            asyncsafe.exempt(exempted)
            exempted.close()
            del exempted
            refused(partial(db.connect().execute, SELECT))


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class TestAiosqlite:
    """It calls sqlite3 in a thread of its own; what it does on the loop is its own affair."""

    @LOOPS
    def test_round_trip(self, run: Any, db: Database, guarded: None, heard: list[Any]) -> None:
        async def coroutine() -> None:
            async with aiosqlite.connect(db.path) as connection:
                await connection.execute(INSERT, (4, b"four"))
                assert connection.in_transaction
                assert connection.total_changes == 1
                await connection.rollback()
                await connection.executemany(INSERT, [(4, b"four"), (5, b"five")])
                await connection.commit()
                connection.row_factory = aiosqlite.Row
                async with connection.execute(SELECT) as cursor:
                    assert [row["id"] async for row in cursor] == [1, 2, 3, 4, 5]
                    assert await cursor.fetchone() is None
                cursor = await connection.execute(SELECT)
                assert len(await cursor.fetchmany(2)) == 2
                assert len(list(await cursor.fetchall())) == 3
                await cursor.close()
                await connection.executescript("delete from letters where id > 3")
                await connection.create_function("double", 1, lambda n: 2 * n)
                assert [
                    tuple(r) for r in await connection.execute_fetchall("select double(4)")
                ] == [(8,)]
                await connection.interrupt()
                assert len([line async for line in connection.iterdump()]) == 6
                async with aiosqlite.connect(db.other()) as target:
                    await connection.backup(target)
                    copied = list(await target.execute_fetchall(SELECT))
                    assert [tuple(row) for row in copied] == ROWS

        run(coroutine())
        assert heard == []

    @LOOPS
    def test_isolation_level(self, run: Any, db: Database, heard: list[Any]) -> None:
        """A property that runs on the loop, and commits when it is set to None."""

        async def coroutine() -> list[Any]:
            told: list[Any] = []
            async with aiosqlite.connect(db.path, check_same_thread=False) as connection:
                for value in ("IMMEDIATE", None, "DEFERRED"):
                    connection.isolation_level = value
                    told.append(connection.isolation_level)
                await connection.execute(INSERT, (9, b"nine"))
                connection.isolation_level = None
                told.append(connection.in_transaction)
                await connection.execute("delete from letters where id = 9")
            return told

        bare = run(coroutine())
        asyncsafe.install()
        assert run(coroutine()) == bare == ["IMMEDIATE", None, "DEFERRED", False]
        assert heard == []

    def test_sqlite3_itself_is_still_refused(self, db: Database, guarded: None) -> None:
        async def coroutine() -> None:
            async with aiosqlite.connect(db.path):
                sqlite3.connect(db.path)

        with pytest.raises(Refused):
            asyncio.run(coroutine())


def run_python(path: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    path.write_text(code)
    return subprocess.run(
        [sys.executable, *options, str(path)], capture_output=True, text=True, check=False
    )


@NEW_IN_312
class TestDeprecations:
    """sqlite3 deprecates things from C; the warning must name the line that did them."""

    PROGRAM = """\
import datetime, sqlite3, sys
import asyncsafe

asyncsafe.install()
connection = sqlite3.connect(":memory:")
for _ in range(2):
    connection.execute("select :a", (1,))
    connection.execute("select ?", (datetime.date(2025, 1, 1),))
sys.path.insert(0, {directory!r})
import repository
repository.find(connection)
"""
    LIBRARY = 'def find(c):\n    for _ in range(2):\n        c.execute("select :a", (1,))\n'

    @pytest.fixture
    def program(self, tmp_path: Path) -> Path:
        (tmp_path / "repository.py").write_text(self.LIBRARY)
        path = tmp_path / "program.py"
        path.write_text(self.PROGRAM.format(directory=str(tmp_path)))
        return path

    def told(self, program: Path, *options: str, bare: bool = False) -> list[str]:
        """The lines of standard error that are the beginning of a warning."""
        code = program.read_text()
        if bare:
            code = code.replace("asyncsafe.install()", "")
        result = run_python(program, code, *options)
        assert result.returncode == 0, result.stderr
        return [line for line in result.stderr.splitlines() if "DeprecationWarning" in line]

    def test_default_filters(self, program: Path) -> None:
        """Each line of __main__ once, and no other module's."""
        told = self.told(program)
        assert told == self.told(program, bare=True)
        assert [line.partition(": ")[0] for line in told] == [f"{program}:7", f"{program}:8"]

    @pytest.mark.parametrize("option", ["-Wdefault", "-Wonce", "-Wmodule", "-Walways", "-Wignore"])
    def test_other_filters(self, program: Path, option: str) -> None:
        told = self.told(program, option)
        assert told == self.told(program, option, bare=True)

    def test_error(self, tmp_path: Path) -> None:
        code = """\
import sqlite3
import asyncsafe
asyncsafe.install()
connection = sqlite3.connect(":memory:")
try:
    connection.execute("select :a", (1,))
except DeprecationWarning:
    print("raised")
print(connection.execute("select 1").fetchall())
connection.close()
"""
        result = run_python(tmp_path / "program.py", code, "-Werror")
        assert (result.stdout, result.stderr) == ("raised\n[(1,)]\n", "")

    def test_recorded_by_pytest(self, db: Database, guarded: None) -> None:
        connection = db.connect()
        with pytest.warns(DeprecationWarning, match="placeholder") as caught:
            connection.execute("select :a", (1,))
        assert [w.filename for w in caught] == [__file__]

    def test_on_the_loop(self, db: Database, guarded: None) -> None:
        asyncsafe.configure(mode="record")
        connection = db.connect()
        with pytest.warns(DeprecationWarning, match="placeholder") as caught:
            on_loop(lambda: connection.execute("select :a", (1,)))
        assert [w.filename for w in caught] == [__file__]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="these are deprecated from Python 3.12 on")
@pytest.mark.parametrize("mode", ["off", "record"])
def test_what_sqlite3_deprecates_is_told_of_the_callers_line(tmp_path: Path, mode: str) -> None:
    """With Python's default filters, on the loop: a warning of C code's, and one of Python code's
    that looks for its caller (stacklevel 2)."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, datetime, sqlite3, asyncsafe\n"
        "asyncsafe.install()\n"
        f"asyncsafe.configure(mode={mode!r})\n"
        "async def main():\n"
        "    connection = sqlite3.connect(':memory:')\n"
        "    connection.execute('SELECT ?', (datetime.date(2000, 1, 1),))\n"
        "    connection.execute('SELECT :name', (1,))\n"
        "asyncio.run(main())\n"
    )

    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True
    )

    assert f"{program}:6: DeprecationWarning: The default date adapter" in done.stderr
    assert f"{program}:7: DeprecationWarning: Binding 1 (':name')" in done.stderr
