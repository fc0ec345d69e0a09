"""psycopg2: each call that talks to the server is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import pickle
import select
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiopg
import psycopg2
import psycopg2.extensions as ext
import psycopg2.extras
import psycopg2.pool
import psycopg2.sql
import pytest
import uvloop
from psycopg2 import connect as connect_by_name

import asyncsafe
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, refused

Refused = asyncsafe.SynchronousOnlyOperation

ROWS = [(1, "one"), (2, "two"), (3, "three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (%s, %s)"
NAME = "asyncsafe-test"


class Server:
    """Three letters, connections to them, and what the server knows of those connections."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = ext.make_dsn(dsn, application_name=NAME)
        self.directory = directory
        self.opened: list[Any] = []
        self.watch = psycopg2.connect(dsn)
        self.watch.autocommit = True

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

    def seen(self) -> Any:
        """The rows, and of each backend what it did last and when: a query shows, whatever it is."""
        return (
            self.rows(),
            self.ask("select oid from pg_largeobject_metadata order by oid"),
            self.ask(
                "select pid, state, query, xact_start, query_start, state_change, backend_xid::text"
                " from pg_stat_activity where application_name = %s order by pid",
                NAME,
            ),
            sorted(path.name for path in self.directory.iterdir()),
            [(c.closed, c.status) for c in self.opened],
        )

    def backends(self) -> int:
        query = "select count(*) from pg_stat_activity where application_name = %s"
        count: int = self.ask(query, NAME)[0][0]
        return count

    def connect(self, **kwargs: Any) -> Any:
        self.opened.append(psycopg2.connect(self.dsn, **kwargs))
        return self.opened[-1]

    def autocommit(self, **session: Any) -> Any:
        connection = self.connect()
        connection.set_session(autocommit=True, **session)
        return connection

    def writing(self) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect()
        connection.cursor().execute(INSERT, (4, "four"))
        return connection

    def cursor(self) -> Any:
        return self.connect().cursor()

    def selected(self, **kwargs: Any) -> Any:
        """A client-side cursor: it has its rows."""
        cursor = self.connect(**kwargs).cursor()
        cursor.execute(SELECT)
        return cursor

    def named(self) -> Any:
        """A server-side cursor: the server has its rows."""
        cursor = self.connect().cursor("letters", scrollable=True)
        cursor.execute(SELECT)
        return cursor

    def large(self) -> Any:
        large_object = self.connect().lobject(0, "wb")
        large_object.write(b"large")
        large_object.seek(0)
        return large_object

    def two_phase(self) -> Any:
        connection = self.connect()
        connection.tpc_begin(connection.xid(1, "letters", "branch"))
        return connection

    def pool(self, cls: Any = psycopg2.pool.SimpleConnectionPool, size: int = 1) -> Any:
        pool = cls(size, 2, self.dsn)
        self.opened.extend(pool._pool)
        return pool

    def empty(self) -> None:
        for connection in self.opened:
            connection.close()
        self.opened.clear()
        assert eventually(lambda: self.backends() == 0)


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(postgres, tmp_path_factory.mktemp("exported"))
    server.ask("drop table if exists letters")
    server.ask("create table letters (id integer primary key, body text)")
    server.ask("drop type if exists pair")
    server.ask("create type pair as (a integer, b text)")
    # A stand-in: the embedded server comes without the extension.
    server.ask("drop domain if exists hstore")
    server.ask("create domain hstore as text")
    yield server
    server.watch.close()


@pytest.fixture
def db(server: Server) -> Iterator[Server]:
    server.fill()
    yield server
    asyncsafe.uninstall()
    ext.set_wait_callback(None)
    server.empty()
    for path in server.directory.iterdir():
        path.unlink()


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, ext.connection):
        result.close()
        return type(result)
    if isinstance(result, ext.lobject):
        result.close()
        return "a large object"
    if isinstance(result, str) and result.startswith("SCRAM-SHA-256$"):
        return "a salted hash"
    return result


def leave(manager: Any) -> None:
    with manager:
        pass


def first_of_loop(iterable: Any) -> Any:
    for item in iterable:
        return item
    return None


def mapped(cursor: Any) -> Callable[[], Any]:
    return lambda: list(map(cursor.execute, [SELECT]))


def recovered(connection: Any) -> Callable[[], Any]:
    return lambda: [str(xid) for xid in connection.tpc_recover()]


def copied_out(cursor: Any, call: Any) -> Callable[[], str]:
    def copy() -> str:
        file = io.StringIO()
        call(cursor, file)
        return file.getvalue()

    return copy


def composed(connection: Any) -> Callable[[], Any]:
    return lambda: psycopg2.extras.register_composite("pair", connection).attnames


def encrypted(connection: Any, *algorithm: str) -> Callable[[], str]:
    return lambda: ext.encrypt_password("p", "u", connection, *algorithm)


def io_table(*rows: tuple[str, str, Any]) -> list[Any]:
    return [pytest.param(operation, make, id=name) for name, operation, make in rows]


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the second column is what the message names.
IO = io_table(
    ("connect", "connect", lambda db: partial(psycopg2.connect, db.dsn)),
    ("connect, by keywords", "connect", lambda db: partial(psycopg2.connect, dsn=db.dsn)),
    ("connect, imported by name", "connect", lambda db: partial(connect_by_name, db.dsn)),
    ("extensions.connection()", "connect", lambda db: partial(ext.connection, db.dsn)),
    ("connection(dsn, 0, 0)", "connect", lambda db: partial(ext.connection, db.dsn, 0, 0)),
    ("connection(async=0)", "connect", lambda db: partial(ext.connection, db.dsn, **{"async": 0})),
    ("execute", "cursor.execute", lambda db: partial(db.cursor().execute, SELECT)),
    (
        "execute, a write",
        "cursor.execute",
        lambda db: partial(db.cursor().execute, INSERT, (4, "")),
    ),
    (
        "execute, by keywords",
        "cursor.execute",
        lambda db: partial(db.cursor().execute, query=INSERT, vars=(4, "")),
    ),
    (
        "executemany",
        "cursor.executemany",
        lambda db: partial(db.cursor().executemany, INSERT, [(4, ""), (5, "")]),
    ),
    (
        "executemany of a generator",
        "cursor.executemany",
        lambda db: partial(db.cursor().executemany, INSERT, ((n, "") for n in (4, 5))),
    ),
    ("map", "cursor.execute", lambda db: mapped(db.cursor())),
    ("callproc", "cursor.callproc", lambda db: partial(db.cursor().callproc, "abs", (-1,))),
    (
        "copy_from",
        "cursor.copy_from",
        lambda db: partial(db.cursor().copy_from, io.StringIO("4\tfour\n"), "letters"),
    ),
    (
        "copy_to",
        "cursor.copy_to",
        lambda db: copied_out(db.cursor(), lambda c, file: c.copy_to(file, "letters")),
    ),
    (
        "copy_expert",
        "cursor.copy_expert",
        lambda db: copied_out(
            db.cursor(), lambda c, file: c.copy_expert("copy letters to stdout", file)
        ),
    ),
    ("commit", "connection.commit", lambda db: db.writing().commit),
    ("rollback", "connection.rollback", lambda db: db.writing().rollback),
    ("with", "connection.commit", lambda db: partial(leave, db.writing())),
    ("reset", "connection.reset", lambda db: db.writing().reset),
    ("cancel", "connection.cancel", lambda db: db.connect().cancel),
    ("poll", "connection.poll", lambda db: db.connect().poll),
    ("close", "connection.close", lambda db: db.connect().close),
    ("close in a transaction", "connection.close", lambda db: db.writing().close),
    ("lobject", "connection.lobject", lambda db: db.connect().lobject),
    ("lobject, written", "connection.lobject", lambda db: partial(db.connect().lobject, 0, "w")),
    ("lobject.read", "lobject.read", lambda db: db.large().read),
    ("lobject.write", "lobject.write", lambda db: partial(db.large().write, b"LARGE")),
    ("lobject.seek", "lobject.seek", lambda db: partial(db.large().seek, 2)),
    ("lobject.tell", "lobject.tell", lambda db: db.large().tell),
    ("lobject.truncate", "lobject.truncate", lambda db: partial(db.large().truncate, 2)),
    (
        "lobject.export",
        "lobject.export",
        lambda db: partial(db.large().export, str(db.directory / "exported")),
    ),
    ("lobject.unlink", "lobject.unlink", lambda db: db.large().unlink),
    ("lobject.close", "lobject.close", lambda db: db.large().close),
    (
        "named execute",
        "cursor.execute",
        lambda db: partial(db.connect().cursor("named").execute, SELECT),
    ),
    ("named fetchone", "cursor.fetchone", lambda db: db.named().fetchone),
    ("named fetchmany", "cursor.fetchmany", lambda db: partial(db.named().fetchmany, 2)),
    ("named fetchall", "cursor.fetchall", lambda db: db.named().fetchall),
    ("named scroll", "cursor.scroll", lambda db: partial(db.named().scroll, 1)),
    ("named next", "cursor.__next__", lambda db: partial(next, db.named())),
    ("named for", "cursor.__next__", lambda db: partial(first_of_loop, db.named())),
    ("named list", "cursor.__next__", lambda db: partial(list, db.named())),
    ("named close", "cursor.close", lambda db: db.named().close),
    ("named with", "cursor.close", lambda db: partial(leave, db.named())),
    ("named close, unused", "cursor.close", lambda db: db.connect().cursor("unused").close),
    (
        "tpc_begin",
        "connection.tpc_begin",
        lambda db: (lambda c: partial(c.tpc_begin, c.xid(1, "letters", "b")))(db.connect()),
    ),
    ("tpc_commit", "connection.tpc_commit", lambda db: db.two_phase().tpc_commit),
    ("tpc_rollback", "connection.tpc_rollback", lambda db: db.two_phase().tpc_rollback),
    ("tpc_recover", "connection.tpc_recover", lambda db: recovered(db.connect())),
    (
        "set_client_encoding",
        "connection.set_client_encoding",
        lambda db: partial(db.connect().set_client_encoding, "latin1"),
    ),
    (
        "set_isolation_level(0) in a transaction",
        "connection.set_isolation_level",
        lambda db: partial(db.writing().set_isolation_level, 0),
    ),
    (
        "set_isolation_level(1) in a transaction",
        "connection.set_isolation_level",
        lambda db: partial(db.writing().set_isolation_level, 1),
    ),
    (
        "set_isolation_level(1) out of autocommit",
        "connection.set_isolation_level",
        lambda db: partial(db.autocommit(readonly=True).set_isolation_level, 1),
    ),
    (
        "autocommit = False, of a read-only session",
        "connection.autocommit",
        lambda db: partial(setattr, db.autocommit(readonly=True), "autocommit", False),
    ),
    (
        "isolation_level = in autocommit",
        "connection.isolation_level",
        lambda db: partial(setattr, db.autocommit(), "isolation_level", "SERIALIZABLE"),
    ),
    (
        "readonly = in autocommit",
        "connection.readonly",
        lambda db: partial(setattr, db.autocommit(), "readonly", True),
    ),
    (
        "deferrable = in autocommit",
        "connection.deferrable",
        lambda db: partial(setattr, db.autocommit(), "deferrable", None),
    ),
    (
        "set_session in autocommit",
        "connection.set_session",
        lambda db: partial(db.autocommit().set_session, "SERIALIZABLE"),
    ),
    (
        "set_session into autocommit",
        "connection.set_session",
        lambda db: partial(db.connect().set_session, readonly=True, autocommit=True),
    ),
    (
        "set_session out of autocommit",
        "connection.set_session",
        lambda db: partial(db.autocommit(deferrable=True).set_session, autocommit=False),
    ),
    (
        "encrypt_password",
        "extensions.encrypt_password",
        lambda db: encrypted(db.connect()),
    ),
    (
        "encrypt_password, of _psycopg, by a cursor",
        "extensions.encrypt_password",
        lambda db: partial(psycopg2._psycopg.encrypt_password, "p", "u", scope=db.cursor()),
    ),
    (
        "register_hstore",
        "cursor.execute",
        lambda db: partial(psycopg2.extras.HstoreAdapter.get_oids, db.connect()),
    ),
    (
        "register_composite",
        "cursor.execute",
        lambda db: composed(db.connect()),
    ),
    (
        "execute_values",
        "cursor.execute",
        lambda db: partial(
            psycopg2.extras.execute_values,
            db.cursor(),
            "insert into letters values %s returning id",
            [(4, ""), (5, "")],
            fetch=True,
        ),
    ),
    (
        "execute_batch",
        "cursor.execute",
        lambda db: partial(psycopg2.extras.execute_batch, db.cursor(), INSERT, [(4, ""), (5, "")]),
    ),
)

#: What leaves no trace in pg_stat_activity: it shows what a backend was asked to execute.
UNSEEN = {"cancel", "poll"}


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Server, request: pytest.FixtureRequest
    ) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("psycopg2")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"psycopg2.{operation}"
        assert db.seen() == before
        # Off the loop it does what it always did, and that is seen.
        result = call()
        changed = request.node.callspec.id in UNSEEN or eventually(lambda: db.seen() != before)
        assert tell(result) == bare or operation.startswith(("connection.lobject", "lobject"))
        assert changed

    def test_untouched_in_a_thread(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        rows = db.rows()
        db.empty()
        db.fill()
        asyncsafe.install("psycopg2")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("psycopg2")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert f"psycopg2.{operation}" in {s.violation.operation for s in asyncsafe.violations}


def eventually(question: Callable[[], bool]) -> bool:
    """Whether it comes true: a server takes a while to notice that a connection was closed."""
    return any(question() for _ in range(5000))


def without_io(*rows: tuple[str, Any]) -> list[Any]:
    return [pytest.param(make, id=name) for name, make in rows]


# hooks.md, section 2: what does no I/O.
NO_IO = without_io(
    ("cursor", lambda db: db.connect().cursor),
    ("cursor, named", lambda db: partial(db.connect().cursor, "named")),
    ("extensions.cursor()", lambda db: partial(ext.cursor, db.connect())),
    ("fetchone", lambda db: db.selected().fetchone),
    ("fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
    ("fetchmany, by keyword", lambda db: partial(db.selected().fetchmany, size=2)),
    ("fetchall", lambda db: db.selected().fetchall),
    ("next", lambda db: partial(next, db.selected())),
    ("for", lambda db: partial(first_of_loop, db.selected())),
    ("list", lambda db: partial(list, db.selected())),
    ("scroll", lambda db: partial(db.selected().scroll, 1)),
    ("cursor.close", lambda db: db.selected().close),
    ("with cursor", lambda db: partial(leave, db.selected())),
    ("mogrify", lambda db: partial(db.cursor().mogrify, INSERT, (4, ""))),
    ("cast", lambda db: partial(db.selected().cast, 23, "1")),
    ("setinputsizes", lambda db: partial(db.cursor().setinputsizes, ())),
    ("description", lambda db: partial(getattr, db.selected(), "description")),
    ("rowcount", lambda db: partial(getattr, db.selected(), "rowcount")),
    ("itersize", lambda db: partial(setattr, db.named(), "itersize", 5)),
    ("named close, after an error", lambda db: failed(db.named()).close),
    ("named closed again", lambda db: closed(db.named()).close),
    ("commit outside of a transaction", lambda db: db.connect().commit),
    ("rollback outside of a transaction", lambda db: db.connect().rollback),
    ("commit in autocommit", lambda db: db.autocommit().commit),
    ("with, outside of a transaction", lambda db: partial(leave, db.connect())),
    ("with, entered", lambda db: db.writing().__enter__),
    ("closed again", lambda db: closed(db.connect()).close),
    ("autocommit = True", lambda db: partial(setattr, db.connect(), "autocommit", True)),
    ("autocommit = False", lambda db: partial(setattr, db.autocommit(), "autocommit", False)),
    ("isolation_level =", lambda db: partial(setattr, db.connect(), "isolation_level", 1)),
    ("readonly =", lambda db: partial(setattr, db.connect(), "readonly", True)),
    ("deferrable =", lambda db: partial(setattr, db.connect(), "deferrable", True)),
    ("isolation_level", lambda db: partial(getattr, db.writing(), "isolation_level")),
    ("set_session", lambda db: partial(db.connect().set_session, "SERIALIZABLE", True, True)),
    ("set_session(autocommit)", lambda db: partial(db.connect().set_session, autocommit=True)),
    ("set_isolation_level(0)", lambda db: partial(db.connect().set_isolation_level, 0)),
    ("set_isolation_level(1)", lambda db: partial(db.connect().set_isolation_level, 1)),
    ("set_client_encoding, same", lambda db: partial(db.connect().set_client_encoding, "utf-8")),
    ("xid", lambda db: partial(db.connect().xid, 1, "a", "b")),
    ("info", lambda db: partial(getattr, db.connect(), "info")),
    ("info.*", lambda db: all_of_info(db.connect())),
    ("notices", lambda db: partial(getattr, db.connect(), "notices")),
    ("notifies", lambda db: partial(getattr, db.connect(), "notifies")),
    ("status", lambda db: partial(getattr, db.connect(), "status")),
    ("get_transaction_status", lambda db: db.writing().get_transaction_status),
    ("get_backend_pid", lambda db: db.writing().get_backend_pid),
    ("get_dsn_parameters", lambda db: db.writing().get_dsn_parameters),
    ("get_parameter_status", lambda db: partial(db.writing().get_parameter_status, "TimeZone")),
    ("fileno", lambda db: db.connect().fileno),
    ("isexecuting", lambda db: db.connect().isexecuting),
    ("lobject closed again", lambda db: closed(db.large()).close),
    ("lobject.oid", lambda db: partial(getattr, db.large(), "oid")),
    ("quote_ident", lambda db: partial(ext.quote_ident, "letters", db.connect())),
    ("as_string", lambda db: partial(psycopg2.sql.Identifier("letters").as_string, db.connect())),
    ("register_type", lambda db: partial(ext.register_type, ext.UNICODE, db.connect())),
    ("register_uuid", lambda db: partial(psycopg2.extras.register_uuid, None, db.connect())),
    (
        "register_default_jsonb",
        lambda db: partial(psycopg2.extras.register_default_jsonb, db.connect()),
    ),
    (
        "register_adapter",
        lambda db: partial(ext.register_adapter, uuid.UUID, psycopg2.extras.UUID_adapter),
    ),
    ("adapt", lambda db: partial(ext.adapt, "letters")),
    ("parse_dsn", lambda db: partial(ext.parse_dsn, db.dsn)),
    (
        "encrypt_password, by algorithm",
        lambda db: encrypted(db.connect(), "md5"),
    ),
    ("encrypt_password, no connection", lambda db: encrypted(None, "md5")),
    ("pool.getconn, an idle one", lambda db: db.pool().getconn),
    ("pool.putconn, idle", lambda db: (lambda p: partial(p.putconn, p.getconn()))(db.pool())),
    ("pool.closeall, empty", lambda db: db.pool(size=0).closeall),
)


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def failed(cursor: Any) -> Any:
    with pytest.raises(psycopg2.Error):
        cursor.connection.cursor().execute("nonsense")
    return cursor


def all_of_info(connection: Any) -> Callable[[], Any]:
    names = [name for name in vars(ext.ConnectionInfo) if not name.startswith("_")]
    attributes = [n for n in names if n not in {"parameter_status", "ssl_attribute"}]
    assert len(attributes) > 12
    return lambda: (
        [getattr(connection.info, name) for name in attributes],
        connection.info.parameter_status("TimeZone"),
        connection.info.ssl_attribute("library"),
    )


@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Server, guarded: None, heard: list[Any]) -> None:
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    after = db.seen()
    assert after[:4] == before[:4]


@pytest.mark.parametrize(
    ("module", "class_name", "operation"),
    [
        pytest.param(module, class_name, operation, id=f"{module}:{class_name}.{operation.name}")
        for module, classes in integration("psycopg2").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed psycopg2 lacks is passed over, which must not happen unseen."""
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    assert operation.name in vars(owner)
    asyncsafe.install("psycopg2")
    guarded = vars(owner)[operation.name]
    assert hasattr(guarded.fset if operation.setter else guarded, "__async_unsafe__")


def test_what_is_read_of_psycopg2_in_private() -> None:
    """The pool tells nowhere in public what it holds."""
    pool = psycopg2.pool.SimpleConnectionPool(0, 1)
    assert (pool._pool, pool._used) == ([], {})
    assert psycopg2._psycopg.get_wait_callback is ext.get_wait_callback
    constants = ("STATUS_BEGIN", "TRANSACTION_STATUS_IDLE")
    assert [getattr(ext, name) for name in constants] == [2, 0]
    assert (ext.TRANSACTION_STATUS_INERROR, ext.TRANSACTION_STATUS_UNKNOWN) == (3, 4)


@pytest.mark.usefixtures("guarded")
class TestWith:
    def test_refused_commit_leaves_the_transaction_open(self, db: Server) -> None:
        connection = db.writing()
        assert refused(lambda: leave(connection)).operation == "psycopg2.connection.commit"
        assert connection.status == ext.STATUS_BEGIN
        assert db.rows() == ROWS
        connection.commit()
        assert db.rows() == [*ROWS, (4, "four")]

    def test_application_error_arrives_and_is_rolled_back(
        self, db: Server, heard: list[asyncsafe.Violation]
    ) -> None:
        connection = db.writing()

        async def coroutine() -> None:
            with connection:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's") as caught:
            asyncio.run(coroutine())
        assert caught.value.__context__ is None
        assert connection.status == ext.STATUS_READY
        assert db.rows() == ROWS
        assert [(v.operation, v.outcome) for v in heard] == [
            ("psycopg2.connection.rollback", "allowed")
        ]

    def test_refusal_inside_is_not_refused_again(self, db: Server) -> None:
        connection = db.writing()

        def use() -> None:
            with connection, connection.cursor() as cursor:
                cursor.execute(SELECT)

        assert refused(use).operation == "psycopg2.cursor.execute"
        assert connection.status == ext.STATUS_READY

    def test_named_cursor_on_an_errors_way_out(
        self, db: Server, heard: list[asyncsafe.Violation]
    ) -> None:
        cursor = db.named()

        def use() -> None:
            with cursor:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert cursor.closed
        assert [(v.operation, v.outcome) for v in heard] == [("psycopg2.cursor.close", "allowed")]

    def test_close_in_finally(self, db: Server, heard: list[asyncsafe.Violation]) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                raise LookupError("the application's")
            finally:
                connection.close()

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert connection.closed
        assert [(v.operation, v.outcome) for v in heard] == [
            ("psycopg2.connection.close", "allowed")
        ]

    def test_commit_while_an_error_is_handled_is_refused(self, db: Server) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                raise LookupError
            except LookupError:
                connection.commit()

        refused(use)
        assert db.rows() == ROWS


class TestMadeBefore:
    """install() reaches what was opened or imported before it."""

    def test_connection_and_cursors(self, db: Server) -> None:
        connection = db.writing()
        named, client = db.named(), db.selected()
        asyncsafe.install("psycopg2")
        before = db.seen()
        for call in (
            partial(connection.cursor().execute, SELECT),
            connection.commit,
            connection.rollback,
            connection.close,
            partial(client.execute, SELECT),
            named.fetchone,
            partial(next, named),
            partial(list, named),
        ):
            refused(call)
        assert db.seen() == before
        assert list(named) == on_loop(client.fetchall) == ROWS

    def test_uninstalled_again(self, db: Server) -> None:
        asyncsafe.install("psycopg2")
        connection, named = db.writing(), db.named()
        kept = named.fetchone
        asyncsafe.uninstall()
        assert on_loop(kept) == ROWS[0]
        assert on_loop(named.fetchall) == ROWS[1:]
        on_loop(connection.commit)
        assert not asyncsafe.violations


class OverridingConnection(ext.connection):
    """A user's subclass, with methods of its own that call ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initialized = True

    def commit(self) -> None:
        super().commit()


class OverridingCursor(ext.cursor):
    executed = 0

    def execute(self, *args: Any, **kwargs: Any) -> None:
        self.executed += 1
        super().execute(*args, **kwargs)

    def fetchone(self) -> Any:
        return super().fetchone()


class OverridingReplication(psycopg2.extras.LogicalReplicationConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initialized = True


FACTORIES = [
    psycopg2.extras.DictConnection,
    psycopg2.extras.RealDictConnection,
    psycopg2.extras.NamedTupleConnection,
    psycopg2.extras.LoggingConnection,
    psycopg2.extras.MinTimeLoggingConnection,
    OverridingConnection,
]
CURSORS = [
    psycopg2.extras.DictCursor,
    psycopg2.extras.RealDictCursor,
    psycopg2.extras.NamedTupleCursor,
    OverridingCursor,
]


@pytest.mark.usefixtures("guarded")
class TestSubclasses:
    @pytest.mark.parametrize("factory", FACTORIES)
    def test_connection(self, db: Server, factory: Any) -> None:
        call = partial(psycopg2.connect, db.dsn, connection_factory=factory)
        before = db.seen()
        assert refused(call).operation == "psycopg2.connect"
        assert refused(partial(factory, db.dsn)).operation == "psycopg2.connect"
        assert db.seen() == before
        connection = db.connect(connection_factory=factory)
        assert type(connection) is factory
        if hasattr(connection, "initialize"):
            connection.initialize(io.StringIO())
        cursor = connection.cursor()
        assert refused(partial(cursor.execute, SELECT)).operation == "psycopg2.cursor.execute"
        cursor.execute(SELECT)
        assert len(on_loop(cursor.fetchall)) == 3
        assert refused(connection.commit).operation == "psycopg2.connection.commit"
        connection.commit()

    def test_function_as_factory(self, db: Server) -> None:
        call = partial(psycopg2.connect, db.dsn, connection_factory=lambda dsn: ext.connection(dsn))
        assert refused(call).operation == "psycopg2.connect"
        call().close()

    @pytest.mark.parametrize("named", [False, True])
    @pytest.mark.parametrize("factory", CURSORS)
    def test_cursor(self, db: Server, factory: Any, named: bool) -> None:
        connection = db.connect()
        cursor = connection.cursor("letters" if named else None, cursor_factory=factory)
        assert type(cursor) is factory
        before = db.seen()
        assert refused(partial(cursor.execute, SELECT)).operation == "psycopg2.cursor.execute"
        assert db.seen() == before
        cursor.execute(SELECT)
        if named:
            assert refused(cursor.fetchone).operation == "psycopg2.cursor.fetchone"
            assert refused(partial(next, iter(cursor))).operation.startswith("psycopg2.cursor.")
            assert len(cursor.fetchall()) == 3
            refused(cursor.close)
            cursor.close()
        else:
            assert on_loop(cursor.fetchone)
            assert len(on_loop(partial(list, cursor))) == 2
            on_loop(cursor.close)

    def test_cursor_of_the_connection(self, db: Server) -> None:
        cursor = db.connect(cursor_factory=OverridingCursor).cursor()
        refused(partial(cursor.execute, SELECT))
        assert cursor.executed == 1


class TestReplication:
    """Its C constructor calls that of `connection` through the type, which is patched."""

    @pytest.mark.parametrize("installed", [False, True])
    @pytest.mark.parametrize(
        "factory",
        [
            psycopg2.extras.LogicalReplicationConnection,
            psycopg2.extras.PhysicalReplicationConnection,
            OverridingReplication,
        ],
    )
    def test_off_the_loop(self, db: Server, factory: Any, installed: bool) -> None:
        if installed:
            asyncsafe.install("psycopg2")
        connection = db.connect(connection_factory=factory)
        assert type(connection) is factory
        assert connection.cursor_factory is psycopg2.extras.ReplicationCursor
        logical = factory is not psycopg2.extras.PhysicalReplicationConnection
        kinds = (psycopg2.extras.REPLICATION_PHYSICAL, psycopg2.extras.REPLICATION_LOGICAL)
        assert connection.replication_type == kinds[logical]
        assert getattr(connection, "initialized", None) in {None, True}
        cursor = connection.cursor()
        cursor.execute("IDENTIFY_SYSTEM")
        assert len(cursor.fetchall()) == 1

    def test_direct(self, db: Server, guarded: None) -> None:
        call = partial(
            psycopg2._psycopg.ReplicationConnection,
            db.dsn,
            replication_type=psycopg2.extras.REPLICATION_LOGICAL,
        )
        refused(call)
        call().close()
        with pytest.raises(TypeError):
            psycopg2._psycopg.ReplicationConnection()

    def test_on_the_loop(self, db: Server, guarded: None) -> None:
        factory = psycopg2.extras.LogicalReplicationConnection
        before = db.seen()
        call = partial(psycopg2.connect, db.dsn, connection_factory=factory)
        assert refused(call).operation == "psycopg2.connect"
        assert refused(partial(factory, db.dsn)).operation == "psycopg2.connect"
        assert db.seen() == before
        connection = db.connect(connection_factory=factory)
        cursor = connection.cursor()
        before = db.seen()
        for operation, call in {
            "start_replication_expert": partial(cursor.start_replication, "slot"),
            "execute": partial(cursor.create_replication_slot, "slot", output_plugin="pgoutput"),
            "consume_stream": partial(cursor.consume_stream, print),
            "send_feedback": cursor.send_feedback,
        }.items():
            assert refused(call).operation == f"psycopg2.{cursor_class(operation)}.{operation}"
        assert db.seen() == before

    def test_recorded_once(self, db: Server, guarded: None, heard: list[Any]) -> None:
        asyncsafe.configure(mode="record")
        factory = psycopg2.extras.LogicalReplicationConnection
        on_loop(lambda: db.connect(connection_factory=factory))
        assert [violation.operation for violation in heard] == ["psycopg2.connect"]

    def test_wrong_server(self, db: Server, guarded: None) -> None:
        factory = psycopg2.extras.LogicalReplicationConnection
        for _ in range(2):
            with pytest.raises(psycopg2.OperationalError):
                psycopg2.connect("host=/nonexistent", connection_factory=factory)

    def test_asynchronous(self, db: Server, guarded: None, heard: list[Any]) -> None:
        def use() -> None:
            connection = psycopg2.connect(
                db.dsn,
                connection_factory=psycopg2.extras.LogicalReplicationConnection,
                async_=1,
            )
            psycopg2.extras.wait_select(connection)
            connection.close()

        on_loop(use)
        assert heard == []


def cursor_class(operation: str) -> str:
    return "cursor" if operation == "execute" else "ReplicationCursor"


POOLS = pytest.mark.parametrize(
    "cls", [psycopg2.pool.SimpleConnectionPool, psycopg2.pool.ThreadedConnectionPool]
)


@POOLS
class TestPools:
    @pytest.fixture(autouse=True)
    def guard(self, guarded: None) -> None:
        pass

    def held(self, pool: Any) -> tuple[int, int, bool]:
        return len(pool._pool), len(pool._used), pool.closed

    def test_constructor(self, db: Server, cls: Any) -> None:
        before = db.seen()
        assert refused(partial(cls, 1, 2, db.dsn)).operation == "psycopg2.connect"
        assert db.seen() == before

    def test_getconn(self, db: Server, cls: Any) -> None:
        """A refusal takes no place: both are there afterwards, and no third."""
        pool = db.pool(cls, size=0)
        for _ in range(5):
            assert refused(pool.getconn).operation == "psycopg2.connect"
            assert self.held(pool) == (0, 0, False)
        assert db.backends() == 0
        got = [pool.getconn(), pool.getconn()]
        with pytest.raises(psycopg2.pool.PoolError, match="exhausted"):
            pool.getconn()
        for connection in got:
            pool.putconn(connection)
        pool.closeall()

    @pytest.mark.parametrize("how", ["in a transaction", "surplus", "close=True"])
    def test_putconn(self, db: Server, cls: Any, how: str) -> None:
        pool = db.pool(cls, size=0 if how == "surplus" else 1)
        connection = pool.getconn()
        db.opened.append(connection)
        if how == "in a transaction":
            connection.cursor().execute(INSERT, (4, "four"))
        before, held = db.seen(), self.held(pool)
        put = partial(pool.putconn, connection, close=how == "close=True")
        for _ in range(3):
            assert refused(put).operation == f"psycopg2.{cls.__name__}.putconn"
        assert (db.seen(), self.held(pool)) == (before, held)
        put()
        assert self.held(pool) == (how == "in a transaction", 0, False)
        assert connection.closed == (how != "in a transaction")
        # It is as usable as before.
        connection = pool.getconn()
        connection.cursor().execute(SELECT)
        pool.putconn(connection)
        pool.closeall()

    def test_closeall(self, db: Server, cls: Any) -> None:
        pool = db.pool(cls)
        before, held = db.seen(), self.held(pool)
        assert refused(pool.closeall).operation == f"psycopg2.{cls.__name__}.closeall"
        assert (db.seen(), self.held(pool)) == (before, held)
        connection = pool.getconn()
        connection.cursor().execute(SELECT)
        pool.putconn(connection)
        pool.closeall()
        assert connection.closed
        assert pool.closed

    def test_closeall_on_an_errors_way_out(
        self, db: Server, cls: Any, heard: list[asyncsafe.Violation]
    ) -> None:
        pool = db.pool(cls)

        def use() -> None:
            try:
                raise LookupError("the application's")
            finally:
                pool.closeall()

        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert pool.closed
        assert all(connection.closed for connection in db.opened)
        assert [v.outcome for v in heard] == ["allowed"]

    def test_putconn_on_an_errors_way_out(
        self, db: Server, cls: Any, heard: list[asyncsafe.Violation]
    ) -> None:
        pool = db.pool(cls)

        def use() -> None:
            connection = pool.getconn()
            try:
                connection.cursor().execute(INSERT, (4, "four"))
            finally:
                pool.putconn(connection)

        assert refused(use).operation == "psycopg2.cursor.execute"
        assert self.held(pool) == (1, 0, False)
        connection = pool.getconn()
        connection.cursor().execute(INSERT, (4, "four"))

        def fail() -> None:
            try:
                raise LookupError("the application's")
            finally:
                pool.putconn(connection)

        with pytest.raises(LookupError, match="the application's"):
            on_loop(fail)
        assert self.held(pool) == (1, 0, False)
        assert [v.operation for v in heard if v.outcome == "allowed"] == [
            f"psycopg2.{cls.__name__}.putconn"
        ]
        pool.closeall()

    def test_exempt_connection(self, db: Server, cls: Any, heard: list[Any]) -> None:
        pool = db.pool(cls)
        connection = pool.getconn()
        connection.cursor().execute(SELECT)
        asyncsafe.exempt(connection)
        on_loop(partial(pool.putconn, connection))
        on_loop(pool.closeall)
        assert heard == []


class TestAsBefore:
    """What goes on as before install(): types, and what checks them in C."""

    @pytest.mark.usefixtures("guarded")
    def test_types(self, db: Server) -> None:
        connection = db.connect()
        assert type(connection) is ext.connection
        assert type(connection.cursor()) is ext.cursor
        assert type(connection.lobject(0, "w")) is ext.lobject
        assert ext.cursor(connection).connection is connection

    @pytest.mark.usefixtures("guarded")
    def test_registering(self, db: Server) -> None:
        connection = db.connect()
        cursor = connection.cursor()
        psycopg2.extras.register_uuid(None, connection)
        psycopg2.extras.register_default_jsonb(connection, loads=lambda text: ("json", text))
        ext.register_type(ext.new_type((23,), "LOUD", lambda value, _: f"{value}!"), cursor)
        value = uuid.UUID(int=7)
        cursor.execute("select %s::uuid, '{}'::jsonb, 7", (str(value),))
        assert cursor.fetchone() == (value, ("json", "{}"), "7!")
        pair = psycopg2.extras.register_composite("pair", connection)
        cursor.execute("select (1, 'b')::pair")
        assert str(cursor.fetchone()[0]) == str(pair.type("1!", "b"))

    @pytest.mark.usefixtures("guarded")
    def test_quoting(self, db: Server) -> None:
        connection = db.connect()
        assert ext.quote_ident('a"b', connection) == '"a""b"'
        assert ext.quote_ident("a", connection.cursor()) == '"a"'
        identifier = psycopg2.sql.Identifier("letters")
        assert identifier.as_string(connection) == '"letters"'
        query = psycopg2.sql.SQL("select count(*) from {}").format(identifier)
        cursor = connection.cursor()
        assert refused(partial(cursor.execute, query)).statement == 'select count(*) from "letters"'
        cursor.execute(query)
        assert cursor.fetchone() == (3,)
        adapted = ext.adapt("it's")
        adapted.prepare(connection)
        assert adapted.getquoted() == b"'it''s'"

    @pytest.mark.usefixtures("guarded")
    def test_pickled_rows(self, db: Server) -> None:
        for factory in (psycopg2.extras.DictCursor, psycopg2.extras.RealDictCursor):
            cursor = db.connect().cursor(cursor_factory=factory)
            cursor.execute(SELECT)
            row = cursor.fetchone()
            assert pickle.loads(pickle.dumps(row)) == row
            assert row["body"] == "one"

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (ext.connection, "commit"),
            (ext.connection, "set_session"),
            (ext.connection, "autocommit"),
            (ext.connection, "readonly"),
            (ext.cursor, "execute"),
            (ext.cursor, "fetchone"),
            (ext.lobject, "read"),
            (psycopg2._psycopg.ReplicationConnection, "__init__"),
            (psycopg2._psycopg, "encrypt_password"),
            (psycopg2.pool.ThreadedConnectionPool, "putconn"),
        ],
    )
    def test_name_and_documentation(self, owner: Any, name: str) -> None:
        def told() -> Any:
            attribute = getattr(owner, name)
            if isinstance(owner, type) and name in {"autocommit", "readonly"}:
                return attribute.__doc__
            return attribute.__doc__, attribute.__name__, attribute.__qualname__

        bare = told()
        asyncsafe.install("psycopg2")
        assert told() == bare

    def test_errors_of_its_own(self, db: Server) -> None:
        connection = db.connect()

        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: psycopg2.connect("nonsense"),
            lambda: ext.connection(1),
            lambda: setattr(connection, "isolation_level", 99),
            lambda: setattr(connection, "readonly", "x"),
            lambda: connection.set_client_encoding("nonsense"),
            lambda: connection.cursor().execute("nonsense"),
            lambda: (connection.rollback(), connection.set_session("nonsense"))[1],
            lambda: connection.cursor().fetchone(),
            lambda: connection.cursor("named").scroll(1),
            lambda: closed(db.connect()).commit(),
            lambda: ext.encrypt_password("p", "u", "not a connection"),
            lambda: psycopg2.pool.SimpleConnectionPool(0, 1).putconn(None),
        ]
        bare = [error(call) for call in calls]
        connection.rollback()
        asyncsafe.install("psycopg2")
        assert [error(call) for call in calls] == bare


@pytest.mark.usefixtures("guarded")
class TestGarbage:
    def test_dropped_on_the_loop(
        self, db: Server, monkeypatch: pytest.MonkeyPatch, heard: list[Any]
    ) -> None:
        """C closes what is dropped: nothing raises, and the server is told."""
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.named(), db.large()]
        db.opened.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert eventually(lambda: db.backends() == 0)
        assert (unraisable, heard) == ([], [])
        assert db.rows() == ROWS

    def test_close_in_a_finalizer(self, db: Server, heard: list[asyncsafe.Violation]) -> None:
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


@pytest.mark.usefixtures("guarded")
class TestExempt:
    def test_connection_and_what_belongs_to_it(self, db: Server, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection, connection.cursor() as cursor:
                cursor.execute(INSERT, (4, "four"))
            with connection.cursor("named") as cursor:
                cursor.execute(SELECT)
                rows = list(cursor)
            connection.lobject(0, "w")
            connection.rollback()
            ext.encrypt_password("p", "u", connection)
            connection.close()
            return rows

        assert on_loop(use) == [*ROWS, (4, "four")]
        assert heard == []
        refused(partial(other.cursor().execute, SELECT))

    def test_cursor_alone(self, db: Server) -> None:
        connection = db.connect()
        cursor = connection.cursor()
        asyncsafe.exempt(cursor)
        on_loop(partial(cursor.execute, SELECT))
        refused(partial(connection.cursor().execute, SELECT))
        refused(connection.commit)

    def test_large_object(self, db: Server) -> None:
        large_object = db.large()
        refused(large_object.read)
        asyncsafe.exempt(large_object)
        assert on_loop(large_object.read) == b"large"

    def test_does_not_keep_a_connection(self, db: Server) -> None:
        asyncsafe.exempt(db.connect())
        db.opened.clear()
        gc.collect()
        assert eventually(lambda: db.backends() == 0)


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@contextmanager
def wait_callback(callback: Any) -> Iterator[None]:
    ext.set_wait_callback(callback)
    try:
        yield
    finally:
        ext.set_wait_callback(None)


class TestAsynchronous:
    """What waits without blocking, or knows what it does, is nobody's violation."""

    @pytest.mark.parametrize(
        "connect",
        [
            partial(psycopg2.connect, async_=1),
            partial(psycopg2.connect, **{"async": True}),
            lambda dsn: ext.connection(dsn, 1),
            lambda dsn: ext.connection(dsn, 0, 1),
            partial(ext.connection, async_=1),
            partial(psycopg2.connect, async_=1, connection_factory=OverridingConnection),
        ],
    )
    def test_connection(self, db: Server, guarded: None, heard: list[Any], connect: Any) -> None:
        def use() -> Any:
            connection = connect(db.dsn)
            psycopg2.extras.wait_select(connection)
            assert connection.poll() == ext.POLL_OK
            cursor = connection.cursor()
            cursor.execute(SELECT)
            psycopg2.extras.wait_select(connection)
            rows = cursor.fetchall()
            connection.close()
            return rows

        assert on_loop(use) == ROWS
        assert heard == []

    def test_wait_callback(self, db: Server, guarded: None, heard: list[Any]) -> None:
        with wait_callback(psycopg2.extras.wait_select):

            def use() -> Any:
                connection = psycopg2.connect(db.dsn)
                with connection, connection.cursor() as cursor:
                    cursor.execute(INSERT, (4, "four"))
                with connection.cursor("named") as cursor:
                    cursor.execute(SELECT)
                    rows = cursor.fetchall()
                pool = psycopg2.pool.SimpleConnectionPool(1, 1, db.dsn)
                pool.putconn(pool.getconn(), close=True)
                pool.closeall()
                connection.close()
                return rows

            assert on_loop(use) == [*ROWS, (4, "four")]
        assert heard == []
        refused(partial(psycopg2.connect, db.dsn))

    @LOOPS
    def test_aiopg(self, run: Any, db: Server, guarded: None, heard: list[Any]) -> None:
        async def coroutine() -> Any:
            async with aiopg.create_pool(db.dsn, minsize=2, maxsize=3) as pool:

                async def one(n: int) -> Any:
                    async with pool.acquire() as connection, connection.cursor() as cursor:
                        await cursor.execute("select %s", (n,))
                        return await cursor.fetchone()

                answers = await asyncio.gather(*map(one, range(6)))
                async with pool.acquire() as connection, connection.cursor() as cursor:
                    await cursor.execute("begin")
                    await cursor.execute(INSERT, (4, "four"))
                    await cursor.execute(SELECT)
                    rows = [row async for row in cursor]
                    await cursor.execute("commit")
            return answers, rows

        assert run(coroutine()) == ([(n,) for n in range(6)], [*ROWS, (4, "four")])
        assert heard == []

    def test_psycopg2_itself_beside_aiopg(self, db: Server, guarded: None) -> None:
        async def coroutine() -> None:
            async with aiopg.connect(db.dsn):
                psycopg2.connect(db.dsn)

        with pytest.raises(Refused):
            asyncio.run(coroutine())


@pytest.mark.usefixtures("guarded")
class TestOthers:
    """Calls whose effect isn't a row."""

    def test_cancel(self, db: Server) -> None:
        """Refused, it cancels nothing; off the loop it does."""
        for cancels in (False, True):
            connection = db.connect()
            db.ask("select pg_advisory_lock(42)")
            outcome: list[Any] = []
            worker = threading.Thread(target=wait_for_lock, args=(connection, outcome))
            worker.start()
            assert eventually(partial(is_waiting, db, connection))
            if cancels:
                connection.cancel()
            else:
                assert refused(connection.cancel).operation == "psycopg2.connection.cancel"
                db.ask("select pg_advisory_unlock(42)")
            worker.join()
            db.ask("select pg_advisory_unlock_all()")
            assert outcome == ["cancelled" if cancels else "locked"]
            connection.close()

    def test_notifications(self, db: Server) -> None:
        connection = db.autocommit()
        connection.cursor().execute("listen news")
        db.ask("notify news, 'printed'")
        select.select([connection], [], [])
        refused(connection.poll)
        assert connection.notifies == []
        connection.poll()
        assert [notify.payload for notify in connection.notifies] == ["printed"]

    def test_prepared_transactions(self, db: Server) -> None:
        """The refusal alone where the server has them switched off, as the embedded one does."""
        connection = db.two_phase()
        before = db.seen()
        for call in (connection.tpc_prepare, connection.tpc_commit, connection.tpc_rollback):
            refused(call)
        assert db.seen() == before
        if db.ask("show max_prepared_transactions") == [("0",)]:
            with pytest.raises(psycopg2.Error, match="disabled"):
                connection.tpc_prepare()
        else:
            connection.tpc_prepare()
        connection.tpc_rollback()

    def test_statement_without_parameters(self, db: Server) -> None:
        violation = refused(partial(db.cursor().execute, INSERT, (4, "a secret")))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()
        violation = refused(partial(db.cursor().copy_to, io.StringIO(), "letters"))
        assert violation.statement == "COPY letters TO STDOUT"

    def test_blocking_register_hstore(self, db: Server) -> None:
        connection = db.connect()
        refused(partial(psycopg2.extras.register_hstore, connection))
        assert connection.status == ext.STATUS_READY
        psycopg2.extras.register_hstore(connection, oid=1, array_oid=2)
        on_loop(partial(psycopg2.extras.register_hstore, connection, oid=1, array_oid=2))


def wait_for_lock(connection: Any, outcome: list[Any]) -> None:
    try:
        connection.cursor().execute("select pg_advisory_lock(42)")
    except ext.QueryCanceledError:
        outcome.append("cancelled")
    else:
        outcome.append("locked")


def is_waiting(db: Server, connection: Any) -> bool:
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    return bool(db.ask(query, connection.info.backend_pid)[0][0])
