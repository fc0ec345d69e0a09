"""psycopg 3: each call that waits for the server is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import logging
import select
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import psycopg.copy
import psycopg.crdb
import psycopg.types
import psycopg_pool
import pytest
import uvloop
from psycopg import connect as connect_by_name
from psycopg import rows, sql

import asyncsafe
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, python, refused

ROWS = [(1, "one"), (2, "two"), (3, "three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (%s, %s)"
COPY_IN = "copy letters from stdin"
COPY_OUT = "copy (select id, body from letters order by id) to stdout"
MANY = "select n from generate_series(1, 100000) n"
NAME = "asyncsafe-test"
IDLE, ACTIVE, INTRANS, INERROR = 0, 1, 2, 3

#: A bound method that no module holds by a name.
TAKEN_BEFORE = (psycopg.connect,)


class Server:
    """Three letters, connections to them, and what the server knows of those connections."""

    def __init__(self, dsn: str) -> None:
        self.dsn = psycopg.conninfo.make_conninfo(dsn, application_name=NAME)
        self.opened: list[Any] = []
        self.pools: list[Any] = []
        self.watch = psycopg.connect(dsn, autocommit=True)

    def ask(self, query: str, *parameters: Any) -> list[Any]:
        """From a connection of its own."""
        cursor = self.watch.execute(query, parameters)  # type: ignore[call-overload]
        return list(cursor.fetchall()) if cursor.description else []

    def fill(self) -> None:
        self.ask("delete from letters")
        self.ask("insert into letters values (1, 'one'), (2, 'two'), (3, 'three')")

    def rows(self) -> list[Any]:
        return self.ask(SELECT)

    def seen(self) -> Any:
        """The rows, and of each backend what it did last and when: a query shows, whatever it is."""
        return (
            self.rows(),
            self.ask(
                "select pid, state, query, xact_start, query_start, state_change, backend_xid::text"
                " from pg_stat_activity where application_name = %s order by pid",
                NAME,
            ),
            [states(connection) for connection in self.opened],
            [pool.get_stats()["pool_available"] for pool in self.pools],
        )

    def backends(self) -> int:
        query = "select count(*) from pg_stat_activity where application_name = %s"
        count: int = self.ask(query, NAME)[0][0]
        return count

    def connect(self, **kwargs: Any) -> Any:
        self.opened.append(psycopg.connect(self.dsn, **kwargs))
        return self.opened[-1]

    def writing(self) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect()
        connection.execute(INSERT, (4, "four"))
        return connection

    def cursor(self, **kwargs: Any) -> Any:
        return self.connect(**kwargs).cursor()

    def selected(self) -> Any:
        """A client-side cursor: it has its rows."""
        return self.connect().execute(SELECT)

    def named(self, **options: Any) -> Any:
        """A server-side cursor: the server has its rows."""
        return self.connect().cursor("letters", **options).execute(SELECT)

    def piped(self) -> Any:
        """A connection in a pipeline."""
        connection = self.connect(autocommit=True)
        connection.entered = connection.pipeline()  # as long as the connection
        connection.pipe = connection.entered.__enter__()
        return connection

    def asked(self) -> Any:
        """A cursor in a pipeline, whose result has come and has not been fetched."""
        cursor = self.piped().execute(SELECT)
        pgconn = cursor.connection.pgconn
        pgconn.send_flush_request()
        pgconn.flush()
        assert select.select([cursor.connection], [], [], 20)[0]
        return cursor

    def copying(self, statement: str) -> Any:
        copy = self.cursor().copy(statement)
        entered = copy.__enter__()
        self.opened[-1].entered = copy  # as long as the connection
        return entered

    def transaction(self) -> Any:
        """A transaction, entered, in which a fourth row was written."""
        transaction = psycopg.Transaction(self.connect())
        transaction.__enter__()
        transaction.connection.execute(INSERT, (4, "four"))
        return transaction

    def two_phase(self) -> Any:
        connection = self.connect()
        connection.tpc_begin(connection.xid(1, "letters", "branch"))
        return connection

    def pool(self, cls: Any = psycopg_pool.ConnectionPool, **options: Any) -> Any:
        options = {"min_size": 1, "max_size": 2, "open": True, "timeout": 20, **options}
        before = self.backends()
        pool = cls(self.dsn, **options)
        self.pools.append(pool)
        pool.wait()
        # A null pool tries a connection, and closes it. What was closed before may go only now.
        assert eventually(lambda: self.backends() <= before + options["min_size"])
        return pool

    def borrowed(self, *statement: Any, **options: Any) -> Any:
        """A connection out of a pool."""
        connection = self.pool(**options).getconn()
        self.opened.append(connection)
        if statement:
            connection.execute(*statement)
        return connection

    def empty(self) -> None:
        for pool in self.pools:
            pool.close()
        for connection in self.opened:
            connection.close()
        self.pools.clear()
        self.opened.clear()
        assert eventually(lambda: self.backends() == 0)


def states(connection: Any) -> Any:
    info = connection.info
    return connection.closed, info.transaction_status, info.pipeline_status


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[Server]:
    server = Server(postgres)
    server.ask("drop table if exists letters")
    server.ask("create table letters (id integer primary key, body text)")
    yield server
    server.watch.close()


@pytest.fixture
def db(server: Server) -> Iterator[Server]:
    server.fill()
    yield server
    asyncsafe.uninstall()
    server.empty()


def eventually(question: Callable[[], bool]) -> bool:
    """Whether it comes true: a server takes a while to notice that a connection was closed."""
    return any(question() for _ in range(5000))


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, psycopg.Connection):
        pool = getattr(result, "_pool", None)
        result.close() if pool is None else pool.putconn(result)
        return type(result)
    if isinstance(result, psycopg.Cursor):
        return type(result)
    if isinstance(result, psycopg.types.TypeInfo):
        return result.oid
    return type(result) if isinstance(result, (psycopg.Transaction, psycopg.Pipeline)) else result


def leave(manager: Any) -> None:
    with manager:
        pass


def first_of(iterable: Any) -> Any:
    for item in iterable:
        return item
    return None


def copy_in(cursor: Any) -> None:
    with cursor.copy(COPY_IN) as copy:
        copy.write("4\tfour\n")


def copy_out(cursor: Any) -> list[bytes]:
    with cursor.copy(COPY_OUT) as copy:
        return [bytes(block) for block in copy]


def recovered(connection: Any) -> Callable[[], Any]:
    return lambda: [str(xid) for xid in connection.tpc_recover()]


def streamed(cursor: Any) -> Callable[[], Any]:
    """The second row of a stream; the first was fetched."""
    stream = cursor.stream(MANY)
    next(stream)
    cursor.connection.stream = stream  # as long as the connection
    return partial(next, stream)


def returned(connection: Any) -> Callable[[], Any]:
    return partial(connection._pool.putconn, connection)


def io_table(*table: tuple[str, str, Any]) -> list[Any]:
    return [pytest.param(operation, make, id=name) for name, operation, make in table]


def with_connection(method: str, *args: Any) -> Any:
    return lambda db: partial(getattr(db.connect(), method), *args)


def with_pool(method: str, *args: Any, **options: Any) -> Any:
    return lambda db: partial(getattr(db.pool(**options), method), *args)


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the second column is what the message names.
IO = io_table(
    ("connect", "connect", lambda db: partial(psycopg.connect, db.dsn)),
    ("connect, by keywords", "connect", lambda db: partial(psycopg.connect, conninfo=db.dsn)),
    ("connect, imported by name", "connect", lambda db: partial(connect_by_name, db.dsn)),
    ("Connection.connect", "connect", lambda db: partial(psycopg.Connection.connect, db.dsn)),
    ("subclass.connect", "connect", lambda db: partial(Overriding.connect, db.dsn)),
    ("crdb.connect", "connect", lambda db: partial(psycopg.crdb.connect, db.dsn)),
    ("execute", "Cursor.execute", lambda db: partial(db.cursor().execute, SELECT)),
    ("a write", "Cursor.execute", lambda db: partial(db.cursor().execute, INSERT, (4, ""))),
    (
        "execute, by keywords",
        "Cursor.execute",
        lambda db: partial(db.cursor().execute, query=INSERT, params=(4, ""), prepare=True),
    ),
    ("Connection.execute", "Connection.execute", with_connection("execute", SELECT)),
    (
        "executemany",
        "Cursor.executemany",
        lambda db: partial(db.cursor().executemany, INSERT, ((n, "") for n in (4, 5))),
    ),
    ("ClientCursor", "Cursor.execute", lambda db: special(db, psycopg.ClientCursor)),
    ("RawCursor", "Cursor.execute", lambda db: special(db, psycopg.RawCursor)),
    (
        "stream",
        "Connection.wait",
        lambda db: (lambda c: lambda: list(c.stream(SELECT)))(db.cursor()),
    ),
    ("copy from", "Connection.wait", lambda db: partial(copy_in, db.cursor())),
    ("copy to", "Connection.wait", lambda db: partial(copy_out, db.cursor())),
    ("commit", "Connection.commit", lambda db: db.writing().commit),
    ("rollback", "Connection.rollback", lambda db: db.writing().rollback),
    ("rollback in a pipeline", "Connection.rollback", lambda db: db.piped().rollback),
    ("with", "Connection.__exit__", lambda db: partial(leave, db.writing())),
    ("with, idle", "Connection.__exit__", lambda db: partial(leave, db.connect())),
    ("close", "Connection.close", lambda db: db.connect().close),
    ("close in a transaction", "Connection.close", lambda db: db.writing().close),
    ("cancel", "Connection.cancel", with_connection("cancel")),
    ("cancel_safe", "Connection.cancel_safe", with_connection("cancel_safe")),
    (
        "transaction",
        "Transaction.__enter__",
        lambda db: (lambda c: lambda: leave(c.transaction()))(db.connect()),
    ),
    (
        "Transaction",
        "Transaction.__enter__",
        lambda db: psycopg.Transaction(db.connect()).__enter__,
    ),
    (
        "savepoint",
        "Transaction.__enter__",
        lambda db: (lambda c: lambda: leave(c.transaction()))(db.writing()),
    ),
    (
        "transaction left",
        "Transaction.__exit__",
        lambda db: partial(db.transaction().__exit__, None, None, None),
    ),
    ("notifies", "Connection.wait", lambda db: notified(db)),
    (
        "pipeline",
        "Pipeline.__enter__",
        lambda db: (lambda c: lambda: leave(c.pipeline()))(db.connect()),
    ),
    ("pipeline.sync", "Pipeline.sync", lambda db: db.piped().pipe.sync),
    (
        "pipeline left",
        "Pipeline.__exit__",
        lambda db: partial(db.asked().connection.pipe.__exit__, None, None, None),
    ),
    ("fetchone in a pipeline", "Connection.wait", lambda db: db.asked().fetchone),
    ("fetchall in a pipeline", "Connection.wait", lambda db: db.asked().fetchall),
    ("for in a pipeline", "Connection.wait", lambda db: partial(first_of, db.asked())),
    (
        "autocommit = in a pipeline",
        "Connection.set_autocommit",
        lambda db: partial(setattr, db.piped(), "autocommit", True),
    ),
    (
        "set_read_only in a pipeline",
        "Connection.set_read_only",
        lambda db: partial(db.piped().set_read_only, True),
    ),
    ("wait", "Connection.wait", lambda db: waited(db.connect())),
    (
        "TypeInfo.fetch",
        "types.TypeInfo.fetch",
        lambda db: partial(psycopg.types.TypeInfo.fetch, db.connect(), "text"),
    ),
    (
        "EnumInfo.fetch",
        "types.TypeInfo.fetch",
        lambda db: partial(psycopg.types.enum.EnumInfo.fetch, db.connect(), "nonsense"),
    ),
    (
        "named execute",
        "ServerCursor.execute",
        lambda db: partial(db.connect().cursor("named").execute, SELECT),
    ),
    ("named fetchone", "ServerCursor.fetchone", lambda db: db.named().fetchone),
    ("named fetchmany", "ServerCursor.fetchmany", lambda db: partial(db.named().fetchmany, 2)),
    ("named fetchall", "ServerCursor.fetchall", lambda db: db.named().fetchall),
    ("named scroll", "ServerCursor.scroll", lambda db: partial(db.named().scroll, 1)),
    ("named next", "ServerCursor.__next__", lambda db: partial(next, db.named())),
    ("named list", "ServerCursor.__next__", lambda db: partial(list, db.named())),
    ("named close", "ServerCursor.close", lambda db: db.named().close),
    ("named with", "ServerCursor.close", lambda db: partial(leave, db.named())),
    ("copy.read", "Copy.read", lambda db: db.copying(COPY_OUT).read),
    ("copy.read_row", "Copy.read_row", lambda db: db.copying(COPY_OUT).read_row),
    ("copy for", "Copy.read", lambda db: partial(first_of, db.copying(COPY_OUT))),
    (
        "copy.rows",
        "Copy.read_row",
        lambda db: (lambda c: lambda: list(c.rows()))(db.copying(COPY_OUT)),
    ),
    ("copy.write", "Copy.write", lambda db: partial(db.copying(COPY_IN).write, b"4\tfour\n")),
    (
        "copy.write_row",
        "Copy.write_row",
        lambda db: partial(db.copying(COPY_IN).write_row, (4, "four")),
    ),
    ("copy.finish", "Copy.finish", lambda db: partial(db.copying(COPY_IN).finish, None)),
    (
        "copy left",
        "Copy.__exit__",
        lambda db: partial(db.copying(COPY_IN).__exit__, None, None, None),
    ),
    (
        "a writer by itself",
        "Connection.wait",
        lambda db: partial(db.copying(COPY_IN).writer.write, b"4\tfour\n"),
    ),
    (
        "tpc_begin",
        "Connection.tpc_begin",
        lambda db: (lambda c: partial(c.tpc_begin, c.xid(1, "letters", "b")))(db.connect()),
    ),
    ("tpc_commit", "Connection.tpc_commit", lambda db: db.two_phase().tpc_commit),
    ("tpc_rollback", "Connection.tpc_rollback", lambda db: db.two_phase().tpc_rollback),
    ("tpc_recover", "Connection.tpc_recover", lambda db: recovered(db.connect())),
    ("getconn", "_pool.ConnectionPool.getconn", with_pool("getconn")),
    (
        "pool.connection",
        "_pool.ConnectionPool.getconn",
        lambda db: (lambda pool: lambda: leave(pool.connection()))(db.pool()),
    ),
    (
        "getconn, null pool",
        "_pool.ConnectionPool.getconn",
        lambda db: db.pool(NULL, min_size=0).getconn,
    ),
    ("putconn", "_pool.ConnectionPool.putconn", lambda db: returned(db.borrowed(INSERT, (4, "")))),
    (
        "putconn, null pool",
        "_pool.ConnectionPool.putconn",
        lambda db: returned(db.borrowed(cls=NULL, min_size=0)),
    ),
    (
        "putconn, drained",
        "_pool.ConnectionPool.putconn",
        lambda db: returned(drained(db.borrowed())),
    ),
    (
        "putconn, pool closed",
        "_pool.ConnectionPool.putconn",
        lambda db: returned(orphan(db.borrowed())),
    ),
    (
        "with, of a pool",
        "Connection.__exit__",
        lambda db: partial(leave, db.borrowed(INSERT, (4, "four"))),
    ),
    (
        "close, close_returns",
        "Connection.close",
        lambda db: db.borrowed(INSERT, (4, ""), close_returns=True).close,
    ),
    ("pool.wait", "_pool.ConnectionPool.wait", with_pool("wait")),
    (
        "pool.wait, null pool",
        "_pool.NullConnectionPool.wait",
        lambda db: db.pool(NULL, min_size=0).wait,
    ),
    (
        "pool.open(wait=True)",
        "_pool.ConnectionPool.open",
        lambda db: partial(unopened(db).open, wait=True),
    ),
    ("pool.check", "_pool.ConnectionPool.check", with_pool("check")),
    (
        "pool.check_connection",
        "Connection.execute",
        lambda db: partial(psycopg_pool.ConnectionPool.check_connection, db.connect()),
    ),
    ("pool.drain", "_pool.ConnectionPool.drain", with_pool("drain")),
    ("pool.close", "_pool.ConnectionPool.close", with_pool("close")),
    ("with pool", "_pool.ConnectionPool.__exit__", lambda db: partial(leave, db.pool())),
)

#: What leaves no trace at the server, or one that tests of its own look at.
UNSEEN = {
    "cancel",
    "cancel_safe",
    "notifies",
    "pool.wait",
    "pool.wait, null pool",
    "copy.read",
    "copy.read_row",
    "copy for",
    "copy.write",
    "copy.write_row",
    "a writer by itself",
    "fetchone in a pipeline",
    "fetchall in a pipeline",
    "for in a pipeline",
    "autocommit = in a pipeline",
    "set_read_only in a pipeline",
    "pipeline",
    "pipeline.sync",
    "rollback in a pipeline",
    "getconn, null pool",
    "getconn",
    "pool.connection",
}

NULL = psycopg_pool.NullConnectionPool


class Overriding(psycopg.Connection[Any]):
    """A user's subclass, with methods of its own that call ours."""

    def commit(self) -> None:
        super().commit()


def special(db: Server, cls: Any) -> Callable[[], Any]:
    return partial(cls(db.connect()).execute, SELECT)


def notified(db: Server) -> Callable[[], Any]:
    connection = db.connect(autocommit=True)
    connection.execute("listen news")
    db.ask("notify news, 'printed'")
    return lambda: [n.payload for n in connection.notifies(timeout=20, stop_after=1)]


def waited(connection: Any) -> Callable[[], Any]:
    def wait() -> Any:
        connection.pgconn.send_query(b"select 1")
        return [len(connection.wait(psycopg.generators.execute(connection.pgconn)))]

    return wait


def drained(connection: Any) -> Any:
    connection._pool.drain()
    return connection


def orphan(connection: Any) -> Any:
    connection._pool.close()
    return connection


def unopened(db: Server) -> Any:
    pool = psycopg_pool.ConnectionPool(db.dsn, min_size=1, open=False)
    db.pools.append(pool)
    return pool


def full(operation: str) -> str:
    return f"psycopg{operation if operation.startswith('_pool') else f'.{operation}'}"


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Server, request: pytest.FixtureRequest
    ) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("psycopg")
        call = make(db)
        before = db.seen()
        case = request.node.callspec.id
        assert refused(call).operation == full(operation)
        if case != "wait":  # what it waits for was sent before
            assert db.seen() == before
            # Off the loop it does what it always did, and that is seen.
            result = call()
            changed = case in UNSEEN or eventually(lambda: db.seen() != before)
            assert tell(result) == bare
            assert changed

    def test_untouched_in_a_thread(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        rows_then = db.rows()
        db.empty()
        db.fill()
        asyncsafe.install("psycopg")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows_then

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("psycopg")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert full(operation) in {site.violation.operation for site in asyncsafe.violations}


def without_io(*table: tuple[str, Any]) -> list[Any]:
    return [pytest.param(make, id=name) for name, make in table]


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def failed(cursor: Any) -> Any:
    with pytest.raises(psycopg.Error):
        cursor.connection.execute("nonsense")
    return cursor


# hooks.md, section 2: what does no I/O.
NO_IO = without_io(
    ("cursor", lambda db: db.connect().cursor),
    ("cursor, named", lambda db: (lambda c: lambda: closed(c.cursor("named")))(closed_later(db))),
    ("Cursor()", lambda db: partial(psycopg.Cursor, db.connect())),
    ("fetchone", lambda db: db.selected().fetchone),
    ("fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
    ("fetchall", lambda db: db.selected().fetchall),
    ("next", lambda db: partial(next, db.selected())),
    ("list", lambda db: partial(list, db.selected())),
    ("results", lambda db: (lambda c: lambda: list(c.results()))(db.selected())),
    ("nextset", lambda db: db.selected().nextset),
    ("scroll", lambda db: partial(db.selected().scroll, 1)),
    ("cursor.close", lambda db: db.selected().close),
    ("with cursor", lambda db: partial(leave, db.selected())),
    ("stream, not advanced", lambda db: partial(db.cursor().stream, SELECT)),
    ("notifies, not advanced", lambda db: db.connect().notifies),
    ("transaction, not entered", lambda db: db.connect().transaction),
    ("named close, after an error", lambda db: failed(db.named()).close),
    ("named closed again", lambda db: closed(db.named()).close),
    ("named close, after the transaction", lambda db: ended(db.named()).close),
    ("commit outside of a transaction", lambda db: db.connect().commit),
    ("rollback outside of a transaction", lambda db: db.connect().rollback),
    ("closed again", lambda db: closed(db.connect()).close),
    ("with, closed", lambda db: partial(leave, closed(db.connect()))),
    ("cancel, closed", lambda db: closed(db.connect()).cancel),
    ("cancel_safe, closed", lambda db: closed(db.connect()).cancel_safe),
    ("autocommit =", lambda db: partial(setattr, db.connect(), "autocommit", True)),
    ("isolation_level =", lambda db: partial(setattr, db.connect(), "isolation_level", 1)),
    ("read_only =", lambda db: partial(setattr, db.connect(), "read_only", True)),
    ("deferrable =", lambda db: partial(setattr, db.connect(), "deferrable", True)),
    ("set_autocommit", lambda db: partial(db.connect().set_autocommit, True)),
    ("isolation_level", lambda db: partial(getattr, db.writing(), "isolation_level")),
    ("prepare_threshold =", lambda db: partial(setattr, db.connect(), "prepare_threshold", 1)),
    ("xid", lambda db: partial(db.connect().xid, 1, "a", "b")),
    ("info", lambda db: partial(getattr, db.connect().info, "backend_pid")),
    ("parameter_status", lambda db: partial(db.connect().info.parameter_status, "TimeZone")),
    ("fileno", lambda db: db.connect().fileno),
    ("add_notify_handler", lambda db: partial(db.connect().add_notify_handler, print)),
    ("as_string", lambda db: partial(sql.Identifier("letters").as_string, db.connect())),
    ("register", lambda db: text_of(db).register),
    ("fetchone in a pipeline, fetched", lambda db: fetched(db.asked()).fetchone),
    ("copy to, at its end", lambda db: partial(at_end(db).__exit__, None, None, None)),
    ("copy to a file", lambda db: written_to_file(db)),
    ("make_conninfo", lambda db: partial(psycopg.conninfo.make_conninfo, db.dsn, dbname="x")),
    ("ConnectionPool()", lambda db: partial(unopened, db)),
    ("pool.get_stats", with_pool("get_stats")),
    ("pool.open", lambda db: unopened(db).open),
    ("pool.resize", with_pool("resize", 1, 3)),
    ("pool.check, null pool", lambda db: db.pool(NULL, min_size=0).check),
    ("pool.drain, empty", lambda db: (lambda p: (p.getconn().close(), p.drain)[1])(db.pool())),
    ("pool.close, closed", lambda db: closed(db.pool()).close),
    ("putconn, idle", lambda db: returned(db.borrowed())),
    ("putconn, closed", lambda db: returned(closed(db.borrowed()))),
    ("putconn, reset in a thread", lambda db: returned(db.borrowed(SELECT, reset=roll_back))),
    ("close, close_returns", lambda db: db.borrowed(close_returns=True).close),
    ("with, of a pool, idle", lambda db: partial(leave, db.borrowed())),
)


def closed_later(db: Server) -> Any:
    return db.connect()


def ended(cursor: Any) -> Any:
    cursor.connection.rollback()
    return cursor


def text_of(db: Server) -> Any:
    return psycopg.types.TypeInfo.fetch(db.connect(), "text")


def fetched(cursor: Any) -> Any:
    cursor.fetchone()
    return cursor


def at_end(db: Server) -> Any:
    copy = db.copying(COPY_OUT)
    assert len(list(copy)) == 3
    return copy


class BytesWriter(psycopg.copy.Writer):
    """A writer of a user's own, which sends nothing."""

    def __init__(self) -> None:
        self.file = io.BytesIO()

    def write(self, data: Any) -> None:
        self.file.write(data)


def written_to_file(db: Server) -> Callable[[], Any]:
    cursor = db.cursor()

    def write() -> bytes:
        writer = BytesWriter()
        with psycopg.Copy(cursor, writer=writer) as copy:
            copy.write_row((1, "one"))
            copy.write_row((2, "two"))
        return writer.file.getvalue()

    assert write() == b"1\tone\n2\ttwo\n"
    return write


def roll_back(connection: Any) -> None:
    connection.rollback()


@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Server, guarded: None, heard: list[Any]) -> None:
    call = make(db)
    if not db.pools:
        assert eventually(lambda: db.backends() == sum(not c.closed for c in db.opened))
    before = db.seen()
    on_loop(call)
    assert heard == []
    if not db.pools:  # whose own threads work beside it
        assert db.seen()[:2] == before[:2]


@pytest.mark.parametrize(
    ("module", "class_name", "operation"),
    [
        pytest.param(module, class_name, operation, id=f"{module}:{class_name}.{operation.name}")
        for module, classes in integration("psycopg").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed psycopg lacks is passed over, which must not happen unseen."""
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    bare = vars(owner)[operation.name]
    asyncsafe.install("psycopg")
    guarded = vars(owner)[operation.name]
    assert type(guarded) is type(bare) or class_name == ""
    assert hasattr(getattr(guarded, "__func__", guarded), "__async_unsafe__")
    asyncsafe.uninstall()
    assert vars(owner)[operation.name] is bare


def test_what_waits_has_a_guard_of_its_own_or_passes_wait() -> None:
    """Methods of the synchronous classes that a later version adds are seen here first."""
    known = {
        psycopg.Connection: "connect transaction pipeline notifies cursor cursor_factory "
        "row_factory server_cursor_factory",
        psycopg.Cursor: "close row_factory stream results set_result fetchone fetchmany fetchall "
        "scroll copy",
        psycopg.ServerCursor: "executemany",
        psycopg.Copy: "rows writer",
        psycopg.Transaction: "connection",
        psycopg.Pipeline: "",
        psycopg_pool.ConnectionPool: "connection resize check_connection reconnect_failed "
        "run_task schedule_task worker",
        psycopg_pool.NullConnectionPool: "resize check",
    }
    operations = integration("psycopg").operations
    for cls, unguarded in known.items():
        table = operations["psycopg_pool" if "Pool" in cls.__name__ else "psycopg"]
        guarded = {operation.name for operation in table[cls.__name__]}
        public = {name for name in vars(cls) if not name.startswith("_")}
        assert public - guarded - set(unguarded.split()) == set(), cls


def test_what_is_read_of_psycopg_in_private(db: Server) -> None:
    """Where neither tells in public: whose a connection is, and when a pool closes it."""
    connection = db.connect()
    assert psycopg.Pipeline(connection)._conn is connection
    assert not hasattr(connection, "_pool")
    borrowed = db.borrowed()
    pool = borrowed._pool
    assert isinstance(pool, psycopg_pool.ConnectionPool)
    assert pool._reset is None
    assert pool._drained_at < borrowed._created_at < borrowed._expire_at
    returned(borrowed)()
    status = psycopg.pq.TransactionStatus
    assert (status.IDLE, status.ACTIVE, status.INTRANS, status.INERROR) == (0, 1, 2, 3)
    assert psycopg.pq.ExecStatus.COPY_IN == 4


@pytest.mark.usefixtures("guarded")
class TestLeaving:
    """A refusal leaves a block as it was: nothing is lost, and it can be left in a thread."""

    def test_connection(self, db: Server) -> None:
        connection = db.writing()
        refused(lambda: leave(connection))
        assert states(connection) == (False, INTRANS, 0)
        assert db.rows() == ROWS
        leave(connection)
        assert connection.closed
        assert db.rows() == [*ROWS, (4, "four")]

    def test_transaction(self, db: Server) -> None:
        """hooks.md, section 7: entered off the loop and left on it."""
        connection = db.connect()
        block = connection.transaction()
        transaction = block.__enter__()
        connection.execute(INSERT, (4, "four"))
        violation = refused(lambda: block.__exit__(None, None, None))
        assert violation.operation == "psycopg.Transaction.__exit__"
        assert violation.subject == "psycopg.Connection.transaction() was called"
        assert states(connection) == (False, INTRANS, 0)
        assert transaction.status == transaction.Status.ACTIVE
        transaction.__exit__(None, None, None)
        assert states(connection) == (False, IDLE, 0)
        assert db.rows() == [*ROWS, (4, "four")]
        with connection.transaction():
            connection.execute(INSERT, (5, "five"))
        assert len(db.rows()) == 5

    def test_pipeline(self, db: Server) -> None:
        connection = db.connect(autocommit=True)
        block = connection.pipeline()
        pipeline = block.__enter__()
        cursor = connection.execute(SELECT)
        refused(lambda: block.__exit__(None, None, None))
        pipeline.__exit__(None, None, None)
        assert cursor.fetchall() == ROWS
        leave(connection.pipeline())
        assert states(connection) == (False, IDLE, 0)
        assert connection.execute(SELECT).fetchall() == ROWS

    def test_pipeline_is_not_entered(self, db: Server) -> None:
        connection = db.connect(autocommit=True)
        for _ in range(3):
            refused(lambda: leave(connection.pipeline()))
        assert states(connection) == (False, IDLE, 0)
        assert connection.execute(SELECT).fetchall() == ROWS

    def test_copy(self, db: Server) -> None:
        cursor = db.connect(autocommit=True).cursor()
        block = cursor.copy(COPY_IN)
        copy = block.__enter__()
        copy.write("4\tfour\n")
        refused(partial(copy.write, "5\tfive\n"))
        refused(lambda: block.__exit__(None, None, None))
        assert states(cursor.connection) == (False, ACTIVE, 0)
        copy.finish(None)
        assert db.rows() == [*ROWS, (4, "four")]
        assert cursor.connection.execute(SELECT).fetchall() == db.rows()

    def test_named_cursor(self, db: Server) -> None:
        cursor = db.named()
        refused(partial(leave, cursor))
        assert not cursor.closed
        assert cursor.fetchall() == ROWS
        cursor.close()

    def test_half_of_a_stream(self, db: Server, heard: list[Any]) -> None:
        """psycopg itself ends the query, as it does for whoever leaves the loop early."""
        cursor = db.cursor(autocommit=True)
        next_row = streamed(cursor)
        assert refused(next_row).subject == "psycopg.Cursor.stream() was called"
        assert states(cursor.connection) == (False, IDLE, 0)
        assert [v.operation for v in heard] == ["psycopg.Connection.wait"]
        assert cursor.execute(SELECT).fetchall() == ROWS

    def test_stream_closed_on_the_loop(self, db: Server, heard: list[Any]) -> None:
        cursor = db.cursor(autocommit=True)
        stream = cursor.stream(MANY)
        next(stream)
        on_loop(stream.close)
        assert states(cursor.connection) == (False, IDLE, 0)
        assert {violation.outcome for violation in heard} <= {"allowed"}
        assert cursor.execute(SELECT).fetchall() == ROWS

    def test_notifies(self, db: Server) -> None:
        connection = db.connect(autocommit=True)
        connection.execute("listen news")
        refused(lambda: next(connection.notifies()))
        db.ask("notify news, 'printed'")
        notify = next(connection.notifies(timeout=20))
        assert notify.payload == "printed"


BLOCKS: dict[str, tuple[Any, str]] = {
    "connection": (lambda db: db.writing(), "Connection.__exit__"),
    "named cursor": (lambda db: db.named(), "ServerCursor.close"),
    "pool": (lambda db: db.pool(), "_pool.ConnectionPool.__exit__"),
}


@pytest.mark.usefixtures("guarded")
class TestErrors:
    """On an error's way out, what ends something is let through, and the error arrives."""

    @pytest.mark.parametrize("name", BLOCKS)
    def test_with(self, db: Server, heard: list[Any], name: str) -> None:
        make, operation = BLOCKS[name]
        manager = make(db)

        def use() -> None:
            with manager:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's") as caught:
            on_loop(use)
        assert caught.value.__context__ is None
        assert manager.closed
        assert [(v.operation, v.outcome) for v in heard] == [(full(operation), "allowed")]
        assert db.rows() == ROWS

    @pytest.mark.parametrize("entered", ["transaction", "copy", "pipeline"])
    def test_block_of_a_connection(self, db: Server, heard: list[Any], entered: str) -> None:
        connection = db.connect()
        cursor = connection.cursor()
        block = cursor.copy(COPY_IN) if entered == "copy" else getattr(connection, entered)()
        inside = block.__enter__()
        if entered == "copy":
            inside.write("4\tfour\n")
        else:
            cursor.execute(INSERT, (4, "four"))
        error = LookupError("the application's")

        def use() -> None:
            try:
                raise error
            except LookupError as raised:
                if not block.__exit__(LookupError, raised, None):
                    raise

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert [v.outcome for v in heard] == ["allowed"]
        connection.rollback()
        assert states(connection) == (False, IDLE, 0)
        assert db.rows() == ROWS

    def test_refusal_inside_is_not_refused_again(self, db: Server) -> None:
        connection = db.connect()
        with connection.transaction():
            violation = refused(partial(connection.execute, SELECT))
        assert violation.operation == "psycopg.Connection.execute"

        def use() -> None:
            with connection:
                connection.execute(SELECT)

        assert refused(use).operation == "psycopg.Connection.execute"
        assert connection.closed

    def test_commit_while_an_error_is_handled_is_refused(self, db: Server) -> None:
        connection = db.writing()

        def use(call: Callable[[], Any]) -> None:
            try:
                raise LookupError
            except LookupError:
                call()

        refused(partial(use, connection.commit))
        refused(partial(use, lambda: copy_in(connection.cursor())))
        assert db.rows() == ROWS

    def test_close_in_a_finalizer(self, db: Server, heard: list[Any]) -> None:
        class Repository:
            def __init__(self) -> None:
                self.connection = db.connect()

            def __del__(self) -> None:
                self.connection.close()

        repositories = [Repository()]
        connection = repositories[0].connection
        on_loop(lambda: (repositories.clear(), gc.collect()))
        assert connection.closed
        assert [v.outcome for v in heard] == ["allowed"]

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_dropped_on_the_loop(
        self, db: Server, monkeypatch: pytest.MonkeyPatch, heard: list[Any]
    ) -> None:
        """Nothing raises, and the server is told: connections, cursors, pools, open blocks."""
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        # What psycopg logs of errors in clean-up holds their frames, and pytest holds the log.
        monkeypatch.setattr(logging.getLogger("psycopg"), "disabled", True)
        stream = db.cursor().stream(MANY)
        next(stream)
        things = [db.writing(), db.named(), db.pool(), stream, db.asked(), db.copying(COPY_IN)]
        del stream
        db.opened.clear()
        db.pools.clear()
        on_loop(lambda: (things.clear(), gc.collect(), gc.collect()))
        assert eventually(lambda: db.backends() == 0)
        assert unraisable == []
        assert {violation.outcome for violation in heard} <= {"allowed"}
        assert db.rows() == ROWS


@pytest.mark.usefixtures("guarded")
class TestPools:
    @pytest.mark.parametrize("cls", [psycopg_pool.ConnectionPool, NULL])
    def test_refused_and_usable_afterwards(self, db: Server, cls: Any) -> None:
        """A refusal takes no place, loses none, and rolls nothing back."""
        pool = db.pool(cls, min_size=0, max_size=1)
        for _ in range(3):
            refused(pool.getconn)
            refused(lambda: leave(pool.connection()))
        connection = pool.getconn()
        connection.execute(INSERT, (4, "four"))
        for _ in range(3):
            refused(partial(pool.putconn, connection))
            assert states(connection) == (False, INTRANS, 0)
        connection.commit()
        pool.putconn(connection)
        for _ in range(3):
            for call in (pool.check, pool.drain) if cls is not NULL else ():
                refused(call)
            refused(pool.close)
        with pool.connection(timeout=20) as connection:
            assert connection.execute(SELECT).fetchall() == [*ROWS, (4, "four")]

    def test_putconn_on_an_errors_way_out(self, db: Server, heard: list[Any]) -> None:
        pool = db.pool(max_size=1)
        connection = pool.getconn()
        connection.execute(INSERT, (4, "four"))

        def use() -> None:
            try:
                raise LookupError("the application's")
            finally:
                pool.putconn(connection)

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert [(v.operation, v.outcome) for v in heard] == [
            ("psycopg_pool.ConnectionPool.putconn", "allowed")
        ]
        assert pool.getconn() is connection
        assert connection.execute(SELECT).fetchall() == ROWS
        connection.rollback()
        pool.putconn(connection)

    def test_waiting_client_in_a_thread(self, db: Server, heard: list[Any]) -> None:
        """What the loop gives back without I/O, a thread gets."""
        pool = db.pool(max_size=1)

        async def coroutine() -> Any:
            connection = await asyncio.to_thread(pool.getconn)
            waiting = asyncio.create_task(asyncio.to_thread(pool.getconn))
            while not pool.get_stats()["requests_waiting"]:
                await asyncio.sleep(0)
            pool.putconn(connection)
            assert await waiting is connection
            pool.putconn(connection)

        asyncio.run(coroutine())
        assert heard == []

    def test_its_threads_are_never_flagged(self, db: Server, heard: list[Any]) -> None:
        """They connect, configure, check and reset while the loop runs."""
        called: list[str] = []

        def configure(connection: Any) -> None:
            connection.execute(SELECT)
            connection.commit()
            called.append("configure")

        def reset(connection: Any) -> None:
            connection.execute(SELECT)
            connection.rollback()
            called.append("reset")

        async def coroutine() -> None:
            pool = psycopg_pool.ConnectionPool(
                db.dsn, min_size=1, open=True, configure=configure, reset=reset
            )
            db.pools.append(pool)
            connection = await asyncio.to_thread(pool.getconn)
            pool.putconn(connection)
            while "reset" not in called:
                await asyncio.sleep(0)
            await asyncio.to_thread(pool.close)

        asyncio.run(coroutine())
        assert called == ["configure", "reset"]
        assert heard == []

    def test_exempt(self, db: Server, heard: list[Any]) -> None:
        pool = db.pool()
        asyncsafe.exempt(pool)
        connection = on_loop(pool.getconn)
        connection.execute(SELECT)
        on_loop(partial(pool.putconn, connection))
        connection = db.borrowed()
        asyncsafe.exempt(connection)
        on_loop(partial(connection.execute, SELECT))
        on_loop(returned(connection))
        assert heard == []


class TestMadeBefore:
    """install() reaches what was opened or imported before it, and uninstall() lets go of it."""

    def test_connection_and_cursors(self, db: Server) -> None:
        connection, named, client = db.writing(), db.named(), db.selected()
        pool = db.pool()
        asyncsafe.install("psycopg")
        before = db.seen()
        for call in (
            partial(connection.execute, SELECT),
            connection.commit,
            connection.close,
            partial(client.execute, SELECT),
            named.fetchone,
            partial(list, named),
            pool.getconn,
        ):
            refused(call)
        assert db.seen() == before
        assert list(named) == on_loop(client.fetchall) == ROWS

    def test_connect(self, db: Server) -> None:
        """Refused at its entry; taken before as a bound method, by what it calls first."""
        asyncsafe.install("psycopg")
        for call in (
            partial(psycopg.connect, db.dsn),
            partial(psycopg.connect, conninfo=db.dsn),
            partial(psycopg.Connection.connect, db.dsn),
            partial(Overriding.connect, conninfo=db.dsn),
            partial(connect_by_name, db.dsn),
        ):
            assert refused(call).subject is None
        violation = refused(partial(TAKEN_BEFORE[0], db.dsn))
        assert violation.subject == "psycopg.Connection.connect() was called"

    def test_uninstalled_again(self, db: Server) -> None:
        connect = psycopg.connect, vars(psycopg.Connection)["connect"]
        asyncsafe.install("psycopg")
        connection, named = db.writing(), db.named()
        kept = named.fetchone, psycopg.connect, psycopg.Connection.connect
        asyncsafe.uninstall()
        assert on_loop(kept[0]) == ROWS[0]
        on_loop(lambda: (kept[1](db.dsn).close(), kept[2](db.dsn).close()))
        on_loop(connection.commit)
        assert not asyncsafe.violations
        assert (psycopg.connect, vars(psycopg.Connection)["connect"]) == connect
        assert vars(psycopg.Connection)["connect"] is connect[1]


@pytest.mark.usefixtures("guarded")
class TestAsBefore:
    def test_types(self, db: Server) -> None:
        connection = db.connect()
        assert type(connection) is psycopg.Connection
        assert type(connection.cursor()) is psycopg.Cursor
        assert type(connection.cursor("named")) is psycopg.ServerCursor
        assert type(psycopg.crdb.connect(db.dsn)) is psycopg.crdb.CrdbConnection
        opened = Overriding.connect(db.dsn, row_factory=rows.dict_row)
        db.opened.append(opened)
        assert type(opened) is Overriding
        assert opened.execute(SELECT).fetchone() == {"id": 1, "body": "one"}
        refused(opened.commit)
        opened.commit()

    def test_factories(self, db: Server) -> None:
        connection = db.connect(cursor_factory=psycopg.ClientCursor)
        assert type(connection.cursor()) is psycopg.ClientCursor
        query = sql.SQL("select count(*) from {}").format(sql.Identifier("letters"))
        violation = refused(partial(connection.execute, query))
        assert violation.statement == 'select count(*) from "letters"'
        assert connection.execute(query).fetchone() == (3,)
        for cls in (psycopg.ServerCursor, psycopg.RawServerCursor):
            connection.server_cursor_factory = cls
            with connection.cursor("letters") as cursor:
                refused(partial(cursor.execute, SELECT))
                cursor.execute(SELECT)
                refused(cursor.fetchone)
                assert cursor.fetchall() == ROWS

    def test_statement_without_parameters(self, db: Server) -> None:
        violation = refused(partial(db.connect().execute, INSERT, (4, "a secret")))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()

    def test_message_names_what_was_called(self, db: Server) -> None:
        violation = refused(partial(copy_in, db.cursor()))
        assert violation.message().startswith(
            "psycopg.Cursor.copy() was called from a running event loop (asyncio)."
        )

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (psycopg, "connect"),
            (psycopg.Connection, "connect"),
            (psycopg.Connection, "execute"),
            (psycopg.Cursor, "execute"),
            (psycopg.ServerCursor, "fetchone"),
            (psycopg.types.TypeInfo, "fetch"),
            (psycopg_pool.ConnectionPool, "getconn"),
        ],
    )
    def test_name_documentation_and_signature(self, owner: Any, name: str) -> None:
        import inspect

        def told() -> Any:
            attribute = getattr(owner, name)
            return attribute.__doc__, attribute.__name__, inspect.signature(attribute)

        guarded = told()
        asyncsafe.uninstall()
        assert told() == guarded

    def test_errors_of_its_own(self, db: Server) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: psycopg.connect("nonsense"),
            lambda: psycopg.connect(1),  # type: ignore[call-overload]
            lambda: db.connect().execute("nonsense"),
            lambda: db.cursor().fetchone(),
            lambda: closed(db.connect()).execute(SELECT),
            lambda: closed(db.connect()).commit(),
            lambda: db.connect().set_isolation_level(99),
            lambda: db.pool().putconn(db.connect()),
            lambda: closed(db.pool()).getconn(),
        ]
        guarded = [error(call) for call in calls]
        on_the_loop = [error(partial(on_loop, closed(db.connect()).commit))]
        assert on_the_loop == [guarded[5]]
        asyncsafe.uninstall()
        bare = [error(call) for call in calls]
        assert [kind for kind, _ in guarded] == [kind for kind, _ in bare]
        assert guarded[:7] == bare[:7]


@pytest.mark.usefixtures("guarded")
class TestExempt:
    def test_connection_and_what_belongs_to_it(self, db: Server, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(INSERT, (4, "four"))
                list(cursor.stream(SELECT))
                found = copy_out(cursor)
            with connection.pipeline():
                connection.execute(SELECT)
            with connection.cursor("named") as cursor:
                cursor.execute(SELECT)
                list(cursor)
            psycopg.types.TypeInfo.fetch(connection, "text")
            connection.cancel()
            connection.close()
            return len(found)

        assert on_loop(use) == 4
        assert heard == []
        refused(partial(other.execute, SELECT))

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_does_not_keep_a_connection(self, db: Server) -> None:
        asyncsafe.exempt(db.connect())
        db.opened.clear()
        gc.collect()
        assert eventually(lambda: db.backends() == 0)


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@LOOPS
@pytest.mark.usefixtures("guarded")
class TestAsynchronous:
    """psycopg's asynchronous side shares base classes with the other, and is nobody's violation."""

    def test_connection(self, run: Any, db: Server, heard: list[Any]) -> None:
        async def coroutine() -> Any:
            async with await psycopg.AsyncConnection.connect(db.dsn) as connection:
                await connection.set_autocommit(True)
                await connection.set_autocommit(False)
                async with connection.transaction(), connection.cursor() as cursor:
                    await cursor.execute(INSERT, (4, "four"))
                    await cursor.executemany(INSERT, [(5, "five"), (6, "six")])
                    streamed = [row async for row in cursor.stream(SELECT)]
                    async with cursor.copy(COPY_OUT) as copy:
                        copied = [bytes(block) async for block in copy]
                    async with cursor.copy(COPY_IN) as copy:
                        await copy.write("7\tseven\n")
                        await copy.write_row((8, "eight"))
                async with connection.cursor("named") as cursor:
                    await cursor.execute(SELECT)
                    named = await cursor.fetchmany(2) + [row async for row in cursor]
                await connection.rollback()
                async with connection.pipeline() as pipeline:
                    cursor = await connection.execute(SELECT)
                    await pipeline.sync()
                    piped = await cursor.fetchall()
                await connection.commit()
                assert await psycopg.types.TypeInfo.fetch(connection, "text")
                connection.cancel()
                await connection.cancel_safe()
                await connection.tpc_recover()
                async for _ in connection.notifies(timeout=0):
                    pass
                await connection.commit()
            return len(streamed), len(copied), len(named), len(piped)

        assert run(coroutine()) == (6, 6, 8, 8)
        assert heard == []

    def test_pool(self, run: Any, db: Server, heard: list[Any]) -> None:
        async def coroutine() -> Any:
            async with psycopg_pool.AsyncConnectionPool(db.dsn, min_size=1, max_size=2) as pool:
                await pool.wait()

                async def one(n: int) -> Any:
                    async with pool.connection() as connection:
                        cursor = await connection.execute("select %s::int", (n,))
                        return await cursor.fetchone()

                answers = await asyncio.gather(*map(one, range(6)))
                connection = await pool.getconn()
                await connection.execute(SELECT)
                await pool.putconn(connection)
                await pool.check()
                await pool.drain()
            return answers

        assert run(coroutine()) == [(n,) for n in range(6)]
        assert heard == []

    def test_the_synchronous_side_beside_it(self, run: Any, db: Server) -> None:
        connection = db.connect()

        async def coroutine() -> None:
            async with await psycopg.AsyncConnection.connect(db.dsn) as other:
                await other.execute(SELECT)
                connection.execute(SELECT)

        with pytest.raises(asyncsafe.SynchronousOnlyOperation):
            run(coroutine())


@pytest.mark.usefixtures("guarded")
class TestSharing:
    """One connection, two tasks."""

    @pytest.mark.parametrize("begin", ["execute", "transaction", "cursor", "copy"])
    def test_second_task(self, db: Server, begin: str) -> None:
        connection = db.connect()

        async def first(begun: asyncio.Event, done: asyncio.Event) -> None:
            with asyncsafe.allow("the test is about sharing"):
                if begin == "transaction":
                    connection.entered = connection.transaction()  # type: ignore[attr-defined]
                    connection.entered.__enter__()  # type: ignore[attr-defined]
                elif begin == "cursor":
                    connection.cursor("named").execute(SELECT)
                elif begin == "copy":
                    copy_in(connection.cursor())
                else:
                    connection.execute(INSERT, (4, "four"))
                begun.set()
                await done.wait()

        async def second() -> None:
            with asyncsafe.allow("the test is about sharing"):
                for call in (
                    connection.commit,
                    partial(connection.execute, SELECT),
                    partial(connection.cursor().execute, SELECT),
                    lambda: leave(connection.transaction()),
                    lambda: leave(connection.pipeline()),
                    lambda: copy_out(connection.cursor()),
                ):
                    with pytest.raises(asyncsafe.ConnectionSharingError):
                        call()

        async def coroutine() -> None:
            begun, done = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(first(begun, done))
            await begun.wait()
            await asyncio.create_task(second())
            done.set()
            await task

        asyncio.run(coroutine())
        assert connection.info.transaction_status == INTRANS
        assert db.rows() == ROWS


@pytest.mark.usefixtures("guarded")
def test_cancel(db: Server) -> None:
    """Refused, it cancels nothing; off the loop it does."""
    for method in ("cancel", "cancel_safe"):
        for cancels in (False, True):
            connection = db.connect()
            db.ask("select pg_advisory_lock(42)")
            outcome: list[Any] = []
            worker = threading.Thread(target=wait_for_lock, args=(connection, outcome))
            worker.start()
            assert eventually(partial(is_waiting, db, connection))
            if cancels:
                getattr(connection, method)()
            else:
                refused(getattr(connection, method))
                db.ask("select pg_advisory_unlock(42)")
            worker.join()
            db.ask("select pg_advisory_unlock_all()")
            assert outcome == ["cancelled" if cancels else "locked"]
            connection.close()


def wait_for_lock(connection: Any, outcome: list[Any]) -> None:
    try:
        connection.execute("select pg_advisory_lock(42)")
    except psycopg.errors.QueryCanceled:
        outcome.append("cancelled")
    else:
        outcome.append("locked")


def is_waiting(db: Server, connection: Any) -> bool:
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    return bool(db.ask(query, connection.info.backend_pid)[0][0])


IMPLEMENTATION = """
import asyncio, psycopg, asyncsafe
from psycopg import pq
connection = psycopg.connect({dsn!r}, autocommit=True)
asyncsafe.install()
calls = {{
    "execute": lambda: connection.execute("select 1"),
    "stream": lambda: list(connection.cursor().stream("select 1")),
    "connect": lambda: psycopg.connect({dsn!r}),
    "cancel": connection.cancel,
    "close": connection.close,
}}
async def main():
    for name, call in calls.items():
        try:
            call()
        except asyncsafe.SynchronousOnlyOperation:
            print(name, end=" ")
    async with await psycopg.AsyncConnection.connect({dsn!r}) as other:
        cursor = await other.execute("select 1")
        print(await cursor.fetchone())
asyncio.run(main())
print(connection.execute("select 1").fetchone(), pq.__impl__, len(asyncsafe.violations))
"""


@pytest.mark.parametrize("implementation", ["binary", "python"])
def test_implementations(postgres: str, tmp_path: Path, implementation: str) -> None:
    """The pure one needs a libpq that is installed; the other brings its own."""
    import ctypes.util

    if implementation == "python" and ctypes.util.find_library("pq") is None:
        pytest.skip("libpq is not installed")
    told = python(IMPLEMENTATION.format(dsn=postgres), tmp_path, PSYCOPG_IMPL=implementation).stdout
    assert told.split("\n")[:2] == [
        "execute stream connect cancel close (1,)",
        f"(1,) {implementation} 5",
    ]


DJANGO = """
import asyncio, asyncsafe, django, sys
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
found = conninfo_to_dict({dsn!r})
settings.configure(
    DATABASES={{"default": {{
        "ENGINE": "django.db.backends.postgresql", "NAME": found["dbname"], "USER": found["user"],
        "HOST": found.get("host", ""), "PORT": found.get("port", ""),
        "PASSWORD": found.get("password", ""),
    }}}},
)
django.setup()
asyncsafe.install()
from django.db import connection
from django.core.exceptions import SynchronousOnlyOperation
def ask():
    with connection.cursor() as cursor:
        cursor.execute("select 1")
        return cursor.fetchone()
print(ask(), type(connection.connection).__module__)
raw = connection.connection
def raw_on_loop():
    return raw.execute("select 1")
async def main():
    for call in (ask, raw_on_loop):
        try:
            call()
        except SynchronousOnlyOperation as error:
            print(error.violation.library)
asyncio.run(main())
print(ask())
"""


def test_below_django(postgres: str, tmp_path: Path) -> None:
    """Django's guards answer for its own calls, psycopg's for what goes past them."""
    told = python(DJANGO.format(dsn=postgres), tmp_path).stdout
    assert told.split("\n")[:4] == [
        "(1,) psycopg",
        "django",
        "psycopg",
        "(1,)",
    ]
