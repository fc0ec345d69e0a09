"""mysql.connector: each call that talks to the server is refused on the loop, and nothing else is touched.

Both of its implementations. Where the C extension doesn't load, for want of the OpenSSL that it
brings along, its tests are run in another process that finds that one first.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mysql.connector
import mysql.connector.aio
import mysql.connector.cursor
import mysql.connector.errors
import mysql.connector.pooling
import pytest
import uvloop
from mysql.connector import connect as connect_by_name
from mysql.connector.pooling import MySQLConnectionPool, PooledMySQLConnection

import asyncsafe
from asyncsafe import ConnectionSharingError, database_sync_to_async
from asyncsafe.installation import integration

from ..fix_mysql import INSERT, ROWS, SELECT, Letters, eventually
from ..running import in_thread, on_loop, refused

TWO = "select 1; select 2"
VENDOR = Path(mysql.connector.__file__).parent.parent / "vendor"
NAMES = map("pool{}".format, itertools.count())


class Server(Letters):
    def __init__(self, settings: dict[str, Any], pure: bool) -> None:
        super().__init__(settings, mysql.connector.connect)
        self.pure = pure
        self.settings = {**settings, "use_pure": pure}
        self.bare = settings
        module = importlib.import_module(f"mysql.connector.connection{'' if pure else '_cext'}")
        self.Connection: Any = getattr(module, "MySQLConnection" if pure else "CMySQLConnection")

    def name(self, operation: str) -> str:
        """As the message names it: "$Cursor.execute"."""
        return "mysql.connector." + operation.replace("$", "MySQL" if self.pure else "CMySQL")

    def unread(self, query: str = SELECT, **kinds: Any) -> Any:
        """A cursor whose rows are still to be read."""
        connection = self.connect()
        cursor = self.keep(connection.cursor(**kinds))
        cursor.execute(query)
        return cursor

    def prepared_cursor(self) -> Any:
        return self.keep(self.connect().cursor(prepared=True))

    def prepared(self, query: str = SELECT) -> Any:
        return self.unread(query, prepared=True)

    def several(self) -> Any:
        """A cursor with the first of two results."""
        return self.unread(TWO, buffered=True)

    def queried(self) -> Any:
        """A connection with a result that is still to be read."""
        connection = self.connect()
        connection.cmd_query(SELECT)
        return connection

    def consuming(self) -> Any:
        """A cursor with a result to be read, on a connection that drops those."""
        connection = self.connect(consume_results=True)
        cursor = self.keep(connection.cursor())
        cursor.execute(SELECT)
        return cursor

    def pool(self, **options: Any) -> Any:
        arguments = {"pool_name": next(NAMES), "pool_size": 2, **self.settings, **options}
        pool = MySQLConnectionPool(**arguments)
        self.opened.extend(pool._cnx_queue.queue)
        self.opened.append(SimpleNamespace(close=pool._remove_connections))
        return pool

    def pooled(self, **options: Any) -> Any:
        return self.pool(**options).get_connection()


IMPLEMENTATIONS = ["pure", *(["cext"] if mysql.connector.HAVE_CEXT else [])]


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def server(mysql: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(mysql, request.param == "pure")
    yield server
    server.end()


@pytest.fixture
def db(server: Server) -> Iterator[Server]:
    server.fill()
    yield server
    asyncsafe.uninstall()
    server.empty()


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, PooledMySQLConnection):
        pool = result._cnx_pool
        result.close()
        pool._remove_connections()
        return type(result)
    if isinstance(
        result,
        (
            mysql.connector.abstracts.MySQLConnectionAbstract,
            mysql.connector.abstracts.MySQLCursorAbstract,
        ),
    ):
        result.close()
        return type(result)
    if isinstance(result, MySQLConnectionPool):
        return result.pool_size, result._remove_connections()
    if type(result).__name__ in {"MySQLPrepStmt", "CMySQLPrepStmt"}:
        return "a prepared statement"
    if isinstance(result, dict):
        return sorted(result)
    return result


def leave(manager: Any) -> None:
    with manager:
        pass


def first_of_loop(iterable: Any) -> Any:
    for item in iterable:
        return item
    return None


def then(first: Any, *rest: Callable[[Any], Any]) -> Any:
    """Something made of something made of `first`."""
    for make in rest:
        first = make(first)
    return first


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


def account(db: Server) -> tuple[str, str, str]:
    return db.settings["user"], db.settings["password"], db.settings["database"]


STATUS = mysql.connector.RefreshOption.STATUS


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the second column is what the message names.
IO = params(
    ("connect", "connect", lambda db: partial(mysql.connector.connect, **db.settings)),
    ("Connect", "connect", lambda db: partial(mysql.connector.Connect, **db.settings)),
    (
        "pooling.connect",
        "connect",
        lambda db: partial(mysql.connector.pooling.connect, **db.settings),
    ),
    ("connect, imported by name", "connect", lambda db: partial(connect_by_name, **db.settings)),
    (
        "connect, failing over",
        "connect",
        lambda db: partial(
            mysql.connector.connect,
            failover=[{"host": db.settings["host"]}],
            **{k: v for k, v in db.settings.items() if k != "host"},
        ),
    ),
    (
        "connect, to a pool",
        "connect",
        lambda db: partial(
            mysql.connector.connect, pool_name=next(NAMES), pool_size=1, **db.settings
        ),
    ),
    ("Connection()", "connect", lambda db: partial(db.Connection, **db.bare)),
    ("Connection.connect", "MySQLConnection.connect", lambda db: db.connect().connect),
    ("reconnect", "MySQLConnection.reconnect", lambda db: db.connect().reconnect),
    ("cursor", "$Connection.cursor", lambda db: db.connect().cursor),
    ("execute", "$Cursor.execute", lambda db: partial(db.cursor().execute, SELECT)),
    ("a write", "$Cursor.execute", lambda db: partial(db.cursor().execute, INSERT, (4, ""))),
    (
        "by keywords",
        "$Cursor.execute",
        lambda db: partial(db.cursor().execute, operation=INSERT, params=(4, "")),
    ),
    (
        "executemany",
        "$Cursor.executemany",
        lambda db: partial(db.cursor().executemany, INSERT, [(4, ""), (5, "")]),
    ),
    ("callproc", "$Cursor.callproc", lambda db: partial(db.cursor().callproc, "spell", (2,))),
    ("buffered", "$Cursor.execute", lambda db: partial(db.cursor(buffered=True).execute, SELECT)),
    ("fetchone", "$Cursor.fetchone", lambda db: db.unread().fetchone),
    ("fetchmany", "$Cursor.fetchmany", lambda db: partial(db.unread().fetchmany, 2)),
    ("fetchall", "$Cursor.fetchall", lambda db: db.unread().fetchall),
    ("next", "$Cursor.fetchone", lambda db: partial(next, db.unread())),
    ("for", "$Cursor.fetchone", lambda db: partial(first_of_loop, db.unread())),
    ("list", "$Cursor.fetchone", lambda db: partial(list, db.unread())),
    ("fetchsets", "$Cursor.fetchall", lambda db: (lambda c: lambda: [*c.fetchsets()])(db.unread())),
    ("dictionary", "$Cursor.fetchone", lambda db: db.unread(dictionary=True).fetchone),
    ("dictionaries", "$Cursor.fetchall", lambda db: db.unread(dictionary=True).fetchall),
    ("nextset", "$Cursor.nextset", lambda db: db.several().nextset),
    ("close, consuming", "$Cursor.close", lambda db: db.consuming().close),
    ("with, consuming", "$Cursor.close", lambda db: partial(leave, db.consuming())),
    (
        "prepare",
        "$CursorPrepared.execute",
        lambda db: partial(db.prepared_cursor().execute, SELECT),
    ),
    (
        "prepare many",
        "$CursorPrepared.executemany",
        lambda db: partial(db.prepared_cursor().executemany, INSERT, [(4, ""), (5, "")]),
    ),
    ("prepared fetchone", "$CursorPrepared.fetchone", lambda db: db.prepared().fetchone),
    (
        "prepared fetchmany",
        "$CursorPrepared.fetchmany",
        lambda db: partial(db.prepared().fetchmany, 2),
    ),
    ("prepared fetchall", "$CursorPrepared.fetchall", lambda db: db.prepared().fetchall),
    ("prepared list", "$CursorPrepared.fetchone", lambda db: partial(list, db.prepared())),
    (
        "prepared close",
        "$CursorPrepared.close",
        lambda db: then(db.prepared(), lambda c: (c.fetchall(), c.close)[1]),
    ),
    (
        "prepared reset",
        "$CursorPrepared.reset",
        lambda db: then(db.prepared(), lambda c: (c.fetchall(), c.reset)[1]),
    ),
    ("commit", "$Connection.commit", lambda db: db.writing().commit),
    ("commit, of nothing", "$Connection.commit", lambda db: db.connect().commit),
    ("rollback", "$Connection.rollback", lambda db: db.writing().rollback),
    (
        "start_transaction",
        "MySQLConnection.start_transaction",
        lambda db: db.connect().start_transaction,
    ),
    (
        "start_transaction, in full",
        "MySQLConnection.start_transaction",
        lambda db: partial(db.connect().start_transaction, True, "SERIALIZABLE"),
    ),
    ("is_connected", "$Connection.is_connected", lambda db: db.connect().is_connected),
    ("ping", "$Connection.ping", lambda db: db.connect().ping),
    ("reset_session", "$Connection.reset_session", lambda db: db.connect().reset_session),
    (
        "autocommit",
        "$Connection.info_query",
        lambda db: partial(getattr, db.connect(), "autocommit"),
    ),
    ("database", "$Connection.info_query", lambda db: partial(getattr, db.connect(), "database")),
    ("time_zone", "$Connection.info_query", lambda db: partial(getattr, db.connect(), "time_zone")),
    ("sql_mode", "$Connection.info_query", lambda db: partial(getattr, db.connect(), "sql_mode")),
    ("autocommit =", "$autocommit", lambda db: partial(setattr, db.connect(), "autocommit", True)),
    (
        "database =",
        "$Connection.database",
        lambda db: partial(setattr, db.connect(), "database", db.settings["database"]),
    ),
    (
        "time_zone =",
        "MySQLConnection.time_zone",
        lambda db: partial(setattr, db.connect(), "time_zone", "+00:00"),
    ),
    (
        "sql_mode =",
        "MySQLConnection.sql_mode",
        lambda db: partial(setattr, db.connect(), "sql_mode", ""),
    ),
    (
        "set_charset_collation",
        "MySQLConnection.set_charset_collation",
        lambda db: partial(db.connect().set_charset_collation, "latin1"),
    ),
    (
        "info_query",
        "$Connection.info_query",
        lambda db: partial(db.connect().info_query, "select 1"),
    ),
    ("get_row", "$Connection.get_row", lambda db: db.queried().get_row),
    ("get_rows", "$Connection.get_rows", lambda db: db.queried().get_rows),
    ("consume_results", "$Connection.consume_results", lambda db: db.queried().consume_results),
    (
        "cmd_init_db",
        "$Connection.cmd_init_db",
        lambda db: partial(db.connect().cmd_init_db, db.settings["database"]),
    ),
    (
        "cmd_query",
        "$Connection.cmd_query",
        lambda db: partial(db.connect().cmd_query, "set @a = 1"),
    ),
    (
        "cmd_refresh",
        "$Connection.cmd_refresh",
        lambda db: partial(db.connect().cmd_refresh, STATUS),
    ),
    ("cmd_quit", "$Connection.cmd_quit", lambda db: db.connect().cmd_quit),
    ("cmd_statistics", "$Connection.cmd_statistics", lambda db: db.connect().cmd_statistics),
    (
        "cmd_process_kill",
        "$Connection.cmd_process_kill",
        lambda db: partial(db.connect().cmd_process_kill, db.connect().connection_id),
    ),
    (
        "cmd_change_user",
        "$Connection.cmd_change_user",
        lambda db: partial(db.connect().cmd_change_user, *account(db)),
    ),
    (
        "cmd_reset_connection",
        "$Connection.cmd_reset_connection",
        lambda db: db.connect().cmd_reset_connection,
    ),
    (
        "cmd_stmt_prepare",
        "$Connection.cmd_stmt_prepare",
        lambda db: partial(db.connect().cmd_stmt_prepare, b"select 1"),
    ),
    ("close", "$Connection.close", lambda db: db.connect().close),
    ("disconnect", "$Connection.disconnect", lambda db: db.connect().disconnect),
    ("close in a transaction", "$Connection.close", lambda db: db.writing().close),
    ("with", "$Connection.close", lambda db: partial(leave, db.connect())),
    (
        "MySQLConnectionPool()",
        "MySQLConnectionPool",
        lambda db: partial(MySQLConnectionPool, 2, next(NAMES), **db.settings),
    ),
    (
        "get_connection",
        "MySQLConnectionPool.get_connection",
        lambda db: db.pool().get_connection,
    ),
    (
        "add_connection",
        "MySQLConnectionPool.add_connection",
        lambda db: then(db.pool(), lambda p: (p.get_connection(), p.add_connection)[1]),
    ),
    (
        "_remove_connections",
        "MySQLConnectionPool._remove_connections",
        lambda db: db.pool()._remove_connections,
    ),
    ("pooled close", "PooledMySQLConnection.close", lambda db: db.pooled().close),
    ("with pooled", "PooledMySQLConnection.close", lambda db: partial(leave, db.pooled())),
    ("pooled commit", "$Connection.commit", lambda db: db.pooled().commit),
)

#: Of the Python implementation alone.
PURE = params(
    ("raw", "$CursorRaw.fetchone", lambda db: db.unread(raw=True).fetchone),
    ("raw rows", "$CursorRaw.fetchall", lambda db: db.unread(raw=True).fetchall),
    (
        "config",
        "MySQLConnection.config",
        lambda db: partial(db.Connection().config, user=db.settings["user"]),
    ),
    ("cmd_ping", "$Connection.cmd_ping", lambda db: db.connect().cmd_ping),
    ("cmd_debug", "$Connection.cmd_debug", lambda db: db.connect().cmd_debug),
    (
        "cmd_query_iter",
        "$Connection.cmd_query_iter",
        lambda db: then(
            db.connect(), lambda c: lambda: [sorted(x) for x in c.cmd_query_iter("set @a = 1")]
        ),
    ),
    (
        "cmd_stmt_execute",
        "$Connection.cmd_stmt_execute",
        lambda db: then(
            db.connect(),
            lambda c: partial(c.cmd_stmt_execute, c.cmd_stmt_prepare(b"do 1")["statement_id"]),
        ),
    ),
    (
        "cmd_stmt_close",
        "$Connection.cmd_stmt_close",
        lambda db: then(
            db.connect(),
            lambda c: partial(c.cmd_stmt_close, c.cmd_stmt_prepare(b"do 1")["statement_id"]),
        ),
    ),
    (
        "cmd_stmt_reset",
        "$Connection.cmd_stmt_reset",
        lambda db: then(
            db.connect(),
            lambda c: partial(c.cmd_stmt_reset, c.cmd_stmt_prepare(b"do 1")["statement_id"]),
        ),
    ),
)

#: Of the C implementation alone.
CEXT = params(
    ("raw", "$Cursor.fetchone", lambda db: db.unread(raw=True).fetchone),
    ("cursor reset", "$Cursor.reset", lambda db: db.unread().reset),
    (
        "buffered reset",
        "$CursorBuffered.reset",
        lambda db: then(
            db.connect(),
            lambda c: (db.keep(c.cursor(buffered=True)), c.cmd_query(SELECT))[0].reset,
        ),
    ),
    ("free_result", "$Connection.free_result", lambda db: db.queried().free_result),
    ("next_result", "$Connection.next_result", lambda db: db.queried().next_result),
    (
        "set_character_set_name",
        "$Connection.set_character_set_name",
        lambda db: partial(db.connect().set_character_set_name, "latin1"),
    ),
    (
        "cmd_stmt_close",
        "$Connection.cmd_stmt_close",
        lambda db: then(
            db.connect(), lambda c: partial(c.cmd_stmt_close, c.cmd_stmt_prepare(b"do 1"))
        ),
    ),
)

#: What sends nothing, and reads what the server has sent.
READS = {
    *("fetchone", "fetchmany", "fetchall", "next", "for", "list", "fetchsets", "dictionary"),
    *("dictionaries", "nextset", "close, consuming", "with, consuming", "prepared fetchone"),
    *("prepared fetchmany", "prepared fetchall", "prepared list", "get_row", "get_rows"),
    *(
        "config",
        "buffered reset",
        "consume_results",
        "raw",
        "raw rows",
        "cursor reset",
        "free_result",
        "next_result",
    ),
}


def unless_of_the_other(db: Server, implementation: str) -> None:
    if implementation not in {"both", "pure" if db.pure else "cext"}:
        pytest.skip("of the other implementation")


@pytest.mark.parametrize(
    ("implementation", "operation", "make"),
    [
        pytest.param(implementation, *row.values, id=f"{implementation}-{row.id}")
        for implementation, rows in (("both", IO), ("pure", PURE), ("cext", CEXT))
        for row in rows
    ],
)
class TestIO:
    def test_refused_on_the_loop(
        self,
        implementation: str,
        operation: str,
        make: Any,
        db: Server,
        request: pytest.FixtureRequest,
    ) -> None:
        unless_of_the_other(db, implementation)
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("mysql.connector")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == self.named(db, operation)
        assert db.seen() == before
        # Off the loop it does what it always did, and that is seen.
        result = call()
        changed = db.seen() != before
        assert tell(result) == bare
        name = request.node.callspec.id.split("-", 2)[2]
        assert changed or name in READS

    def test_untouched_in_a_thread(
        self, implementation: str, operation: str, make: Any, db: Server
    ) -> None:
        unless_of_the_other(db, implementation)
        bare = tell(make(db)())
        rows = db.rows()
        db.empty()
        db.fill()
        asyncsafe.install("mysql.connector")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows

    def test_recorded_on_the_loop(
        self, implementation: str, operation: str, make: Any, db: Server
    ) -> None:
        unless_of_the_other(db, implementation)
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("mysql.connector")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        told = {s.violation.operation for s in asyncsafe.violations}
        assert self.named(db, operation) in told

    def named(self, db: Server, operation: str) -> str:
        if operation == "$autocommit":  # each implementation has one of its own
            operation = "MySQLConnection.autocommit" if db.pure else "$Connection.autocommit"
        return db.name(operation)


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def read(cursor: Any) -> Any:
    cursor.fetchall()
    return cursor


# hooks.md, section 2: what does no I/O.
NO_IO = params(
    ("Connection(), unconnected", lambda db: db.Connection),
    ("connect(), unconnected", lambda db: mysql.connector.connect),
    ("buffered fetchone", lambda db: db.unread(buffered=True).fetchone),
    ("buffered fetchmany", lambda db: partial(db.unread(buffered=True).fetchmany, 2)),
    ("buffered fetchall", lambda db: db.unread(buffered=True).fetchall),
    ("buffered for", lambda db: partial(first_of_loop, db.unread(buffered=True))),
    ("buffered list", lambda db: partial(list, db.unread(buffered=True))),
    ("buffered dictionary", lambda db: db.unread(buffered=True, dictionary=True).fetchall),
    ("buffered raw", lambda db: db.unread(buffered=True, raw=True).fetchall),
    ("fetchone, at the end", lambda db: read(db.unread()).fetchone),
    ("fetchmany, at the end", lambda db: read(db.unread()).fetchmany),
    ("fetchall, at the end", lambda db: read(db.unread()).fetchall),
    ("prepared, at the end", lambda db: read(db.prepared()).fetchone),
    ("nextset, none", lambda db: read(db.unread()).nextset),
    ("stored results", lambda db: then(db.cursor(), called, lambda c: lambda: stored(c))),
    ("cursor.close", lambda db: read(db.unread()).close),
    ("cursor.close, buffered", lambda db: db.unread(buffered=True).close),
    ("cursor closed again", lambda db: closed(db.cursor()).close),
    ("with cursor", lambda db: partial(leave, db.cursor())),
    ("prepared close, unused", lambda db: db.connect().cursor(prepared=True).close),
    ("execute of nothing", lambda db: partial(db.cursor().execute, "")),
    ("executemany of nothing", lambda db: partial(db.cursor().executemany, INSERT, [])),
    ("description", lambda db: partial(getattr, db.unread(), "description")),
    ("rowcount", lambda db: partial(getattr, db.unread(), "rowcount")),
    ("lastrowid", lambda db: partial(getattr, db.unread(), "lastrowid")),
    ("column_names", lambda db: partial(getattr, db.unread(), "column_names")),
    ("statement", lambda db: partial(getattr, db.unread(), "statement")),
    ("warnings", lambda db: partial(getattr, db.unread(), "warnings")),
    ("in_transaction", lambda db: partial(getattr, db.writing(), "in_transaction")),
    ("sql_mode, asked before", lambda db: then(db.connect(), asked, lambda c: lambda: c.sql_mode)),
    ("connection_id", lambda db: partial(getattr, db.connect(), "connection_id")),
    ("server_info", lambda db: partial(getattr, db.connect(), "server_info")),
    ("charset", lambda db: partial(getattr, db.connect(), "charset")),
    ("unread_result", lambda db: partial(getattr, db.queried(), "unread_result")),
    ("consume_results, none", lambda db: db.connect().consume_results),
    ("closed again", lambda db: closed(db.connect()).close),
    ("closed, is_connected", lambda db: closed(db.connect()).is_connected),
    ("pool_name", lambda db: partial(getattr, db.pool(), "pool_name")),
    (
        "pooled close, without a reset",
        lambda db: db.pooled(pool_reset_session=False).close,
    ),
)


def called(cursor: Any) -> Any:
    cursor.callproc("spell", (2,))
    return cursor


def stored(cursor: Any) -> Any:
    return [result.fetchall() for result in cursor.stored_results()]


def asked(connection: Any) -> Any:
    assert connection.sql_mode is not None
    return connection


@pytest.mark.filterwarnings("ignore:.*stored_results:DeprecationWarning")
@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Server, guarded: None, heard: list[Any]) -> None:
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    assert db.seen() == before


@pytest.mark.parametrize(
    ("module", "class_name", "operation"),
    [
        pytest.param(module, class_name, operation, id=f"{module}:{class_name}.{operation.name}")
        for module, classes in integration("mysql.connector").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed version lacks is passed over, which must not happen unseen."""
    if module.endswith("_cext") and not mysql.connector.HAVE_CEXT:
        pytest.skip("the C extension doesn't load: see test_c_extension_in_another_process")
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    assert operation.name in vars(owner)
    asyncsafe.install("mysql.connector")
    guarded = vars(owner)[operation.name]
    assert hasattr(guarded.fset if operation.setter else guarded, "__async_unsafe__")


@pytest.mark.skipif(mysql.connector.HAVE_CEXT, reason="it is tested here")
@pytest.mark.skipif(not VENDOR.is_dir(), reason="this build brings no OpenSSL")
def test_c_extension_in_another_process() -> None:
    path = os.pathsep.join(map(str, (VENDOR, VENDOR / "private")))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cext", __file__],
        env={**os.environ, "LD_LIBRARY_PATH": path},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.usefixtures("guarded")
class TestWith:
    def test_refused_close_leaves_the_transaction_open(self, db: Server) -> None:
        connection = db.writing()
        assert refused(lambda: leave(connection)).operation == db.name("$Connection.close")
        assert connection.in_transaction
        connection.commit()
        assert db.rows() == [*ROWS, (4, "four")]

    def test_application_error_arrives(self, db: Server, heard: list[asyncsafe.Violation]) -> None:
        connection = db.writing()

        def use() -> None:
            with connection:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's") as caught:
            on_loop(use)
        assert caught.value.__context__ is None
        assert eventually(lambda: db.backends() == 0)
        assert db.rows() == ROWS
        assert [(v.operation, v.outcome) for v in heard] == [
            (db.name("$Connection.close"), "allowed")
        ]

    def test_rollback_in_except(self, db: Server, heard: list[asyncsafe.Violation]) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                connection.commit()
            except asyncsafe.SynchronousOnlyOperation:
                connection.rollback()
                raise

        assert refused(use).operation == db.name("$Connection.commit")
        assert [v.outcome for v in heard] == ["raised", "allowed"]
        assert db.rows() == ROWS


@pytest.mark.usefixtures("guarded")
class TestPool:
    """hooks.md, section 7: a refusal in its depths costs a pool a connection."""

    def test_refused_return(self, db: Server) -> None:
        pool = db.pool()
        pooled, other = pool.get_connection(), pool.get_connection()
        for _ in range(3):
            refused(pooled.close)
        assert pooled.is_connected()
        pooled.close()
        other.close()
        again = [pool.get_connection() for _ in range(2)]
        with pytest.raises(mysql.connector.errors.PoolError, match="exhausted"):
            pool.get_connection()
        for one in again:
            one.close()

    def test_refused_get(self, db: Server) -> None:
        pool = db.pool()
        for _ in range(5):
            refused(pool.get_connection)
        for one in [pool.get_connection() for _ in range(2)]:
            one.close()

    def test_return_on_an_errors_way_out(self, db: Server, heard: list[Any]) -> None:
        pool = db.pool(pool_size=1)
        pooled = pool.get_connection()

        def use() -> None:
            with pooled:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert [(v.operation, v.outcome) for v in heard] == [
            ("mysql.connector.PooledMySQLConnection.close", "allowed")
        ]
        pool.get_connection().close()

    def test_refused_removal(self, db: Server) -> None:
        pool = db.pool()
        refused(pool._remove_connections)
        assert pool._remove_connections() == 2

    def test_refused_pool_by_name(self, db: Server) -> None:
        """connect() makes the pool: nothing is left of it."""
        name = next(NAMES)
        connect = partial(mysql.connector.connect, pool_name=name, pool_size=1, **db.settings)
        refused(connect)
        assert name not in mysql.connector.pooling._CONNECTION_POOLS
        connection = connect()
        db.opened.append(connection._cnx)
        assert connection.is_connected()


@pytest.mark.usefixtures("guarded")
class TestProtocol:
    """hooks.md, section 7: a refusal leaves the conversation with the server as it was."""

    def test_rows_after_refusals(self, db: Server) -> None:
        cursor = db.unread()
        for call in (cursor.fetchone, cursor.fetchall, partial(next, cursor)):
            refused(call)
        assert cursor.fetchone() == ROWS[0]
        refused(cursor.fetchone)
        refused(partial(cursor.execute, "select 111"))
        assert cursor.fetchall() == ROWS[1:]
        cursor.execute("select 222")
        assert cursor.fetchall() == [(222,)]

    def test_callproc_is_refused_as_such(self, db: Server) -> None:
        """It turns what is raised inside into an InterfaceError."""
        cursor = db.cursor()
        refused(partial(cursor.callproc, "spell", (2,)))
        assert cursor.callproc("spell", (2,)) == (2,)

    def test_warnings_are_refused_as_such(self, db: Server) -> None:
        """So does the query for a result's warnings."""
        cursor = db.cursor(get_warnings=True)
        cursor.execute("select 1 / 0")
        assert refused(cursor.fetchall).operation == db.name("$Cursor.fetchall")
        if db.pure:
            return
        # The C implementation asks for them after the last row.
        assert cursor.fetchone() == (None,)
        assert not db.opened[-1].unread_result
        assert refused(cursor.fetchone).operation == db.name("$Cursor.fetchone")

    def test_results_after_refusals(self, db: Server) -> None:
        cursor = db.several()
        assert on_loop(cursor.fetchall) == [(1,)]
        refused(cursor.nextset)
        assert cursor.nextset()
        assert on_loop(cursor.fetchall) == [(2,)]

    def test_refused_reset_of_a_prepared_statement(self, db: Server) -> None:
        cursor = read(db.prepared("select 1"))
        refused(cursor.reset)
        refused(cursor.close)
        cursor.execute("select 2")
        assert cursor.fetchall() == [(2,)]

    def test_statements_that_are_left_to_send(self, db: Server) -> None:
        cursor = db.cursor()
        cursor.execute(TWO, map_results=True)
        cursor.fetchall()
        refused(cursor.nextset)
        assert cursor.nextset()
        assert cursor.fetchall() == [(2,)]

    def test_refused_connect(self, db: Server) -> None:
        before = db.seen()
        settings = {**db.settings, "host": "no.such.host.invalid"}
        refused(partial(mysql.connector.connect, **settings))
        connection = db.Connection()
        refused(partial(connection.connect, **db.bare))
        refused(connection.reconnect)
        assert db.seen() == before

    def test_refused_shutdown(self, db: Server) -> None:
        assert refused(db.connect().cmd_shutdown).operation == db.name("$Connection.cmd_shutdown")
        assert db.rows() == ROWS


class TestClasses:
    def test_subclass(self, db: Server, guarded: None) -> None:
        class Overriding(db.Connection):  # type: ignore[name-defined]
            def commit(self) -> None:
                super().commit()

        refused(partial(Overriding, **db.bare))
        connection = Overriding(**db.bare)
        db.opened.append(connection)
        assert refused(connection.commit).operation == db.name("$Connection.commit")
        connection.commit()

    def test_made_before(self, db: Server) -> None:
        connection, unread, buffered = db.writing(), db.unread(), db.unread(buffered=True)
        cursor = connection.cursor()
        asyncsafe.install("mysql.connector")
        before = db.seen()
        for call in (
            partial(cursor.execute, SELECT),
            connection.commit,
            connection.rollback,
            connection.close,
            unread.fetchone,
            unread.fetchall,
        ):
            refused(call)
        assert db.seen() == before
        assert list(unread) == on_loop(buffered.fetchall) == ROWS

    def test_uninstalled_again(self, db: Server) -> None:
        cursor = mysql.connector.cursor.MySQLCursor
        abstract = mysql.connector.abstracts.MySQLConnectionAbstract
        kinds = (db.Connection, cursor, abstract, MySQLConnectionPool, mysql.connector)
        bare = {k: dict(vars(k)) for k in kinds}
        asyncsafe.install("mysql.connector")
        connection, unread = db.writing(), db.unread()
        kept = unread.fetchone
        asyncsafe.uninstall()
        assert {k: dict(vars(k)) for k in kinds} == bare
        assert on_loop(kept) == ROWS[0]
        on_loop(connection.commit)
        assert not asyncsafe.violations

    def test_types(self, db: Server, guarded: None) -> None:
        connection = db.connect()
        assert type(connection) is db.Connection
        assert isinstance(connection, mysql.connector.abstracts.MySQLConnectionAbstract)

    def test_errors_of_its_own(self, db: Server) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: mysql.connector.connect(**db.settings, nonsense=1),
            lambda: db.cursor().execute("nonsense"),
            lambda: db.cursor().fetchone(),
            lambda: closed(db.cursor()).execute(SELECT),
            lambda: closed(db.connect()).cursor(),
            lambda: db.connect().cmd_process_kill("nonsense"),
            lambda: db.cursor().execute(),
            lambda: setattr(db.connect(), "database", "no_such_database"),
            lambda: db.unread().close(),
            lambda: db.prepared_cursor().callproc("spell"),
        ]
        bare = [error(call) for call in calls]
        asyncsafe.install("mysql.connector")
        assert [error(call) for call in calls] == bare
        connection = closed(db.connect())
        for call in (connection.cursor, connection.commit, connection.rollback, connection.ping):
            assert error(partial(on_loop, call)) == error(call)
        refused(partial(connection.ping, reconnect=True))

    def test_statement_without_parameters(self, db: Server, guarded: None) -> None:
        violation = refused(partial(db.cursor().execute, INSERT, (4, "a secret")))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()
        connection = db.connect()
        assert refused(lambda: connection.database).statement == "SELECT DATABASE()"


@pytest.mark.usefixtures("guarded")
class TestGarbage:
    def test_dropped_on_the_loop(
        self, db: Server, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.unread(), db.pool()]
        db.opened.clear()
        db.kept.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert eventually(lambda: db.backends() == 0)
        assert (unraisable, heard) == ([], [])
        assert db.rows() == ROWS

    def test_cursor_outlives_its_connection(self, db: Server) -> None:
        """A cursor holds its connection by a weak reference."""
        holder = [db.connect()]
        cursor = holder[0].cursor()
        db.opened.clear()
        holder.clear()
        gc.collect()
        with pytest.raises((ReferenceError, mysql.connector.Error)):
            cursor.execute(SELECT)
        for call in (partial(cursor.execute, SELECT), cursor.fetchone, cursor.close):
            with pytest.raises(
                (ReferenceError, mysql.connector.Error, asyncsafe.SynchronousOnlyOperation)
            ):
                on_loop(call)


@pytest.mark.usefixtures("guarded")
class TestOwner:
    def test_exempt(self, db: Server, heard: list[Any]) -> None:
        connection, other = db.connect(), db.cursor()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection.cursor() as cursor:
                cursor.execute(INSERT, (4, "four"))
                cursor.execute(SELECT)
                rows = cursor.fetchall()
            connection.autocommit = False
            assert connection.autocommit is False
            connection.commit()
            connection.close()
            return rows

        assert on_loop(use) == [*ROWS, (4, "four")]
        assert heard == []
        refused(partial(other.execute, SELECT))

    @pytest.mark.parametrize("pooled", [False, True])
    def test_transaction_of_another_task(self, db: Server, pooled: bool) -> None:
        connection = db.pooled() if pooled else db.connect()

        @database_sync_to_async
        def insert(n: int) -> None:
            cursor = connection.cursor()
            cursor.execute(INSERT, (n, ""))
            cursor.close()

        async def main() -> None:
            begun, done = asyncio.Event(), asyncio.Event()

            async def first() -> None:
                await insert(4)
                begun.set()
                await done.wait()
                await database_sync_to_async(connection.commit)()

            async def second() -> None:
                await begun.wait()
                try:
                    with pytest.raises(ConnectionSharingError):
                        await insert(5)
                    with pytest.raises(ConnectionSharingError):
                        await database_sync_to_async(connection.rollback)()
                finally:
                    done.set()

            await asyncio.gather(first(), second())
            await asyncio.create_task(insert(6))

        asyncio.run(main())
        connection.rollback()
        assert db.rows() == [*ROWS, (4, "")]

    def test_chained_transactions(self, db: Server) -> None:
        """COMMIT AND CHAIN: whether that begins one is found out without a query."""
        connection = db.connect()
        connection.cmd_query("set completion_type = 1")
        cursor = connection.cursor(buffered=True)
        cursor.execute(INSERT, (4, ""))

        def questions() -> int:
            cursor.execute("show session status like 'questions'")
            return int(cursor.fetchone()[1])

        async def main() -> tuple[int, int]:
            with asyncsafe.allow("these are counted"):
                first, second = questions(), questions()
                connection.commit()
                return second - first, questions() - second

        alone, with_commit = asyncio.run(main())
        assert with_commit == alone + 1
        assert connection.in_transaction
        assert db.rows() == [*ROWS, (4, "")]


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@LOOPS
def test_aio(run: Any, db: Server, guarded: None, heard: list[Any]) -> None:
    """What waits without blocking is nobody's violation."""

    async def coroutine() -> Any:
        connection = await mysql.connector.aio.connect(**db.bare, ssl_disabled=True)
        async with await connection.cursor() as cursor:
            await cursor.execute(INSERT, (4, "four"))
            await connection.rollback()
            await cursor.execute(SELECT)
            rows = await cursor.fetchall()
        await connection.ping()
        await connection.commit()
        await connection.close()
        return rows

    assert run(coroutine()) == ROWS
    assert heard == []
