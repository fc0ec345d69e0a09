"""pg8000: each call that talks to the server is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pg8000
import pg8000.dbapi
import pg8000.legacy
import pg8000.native
import psycopg2.extensions
import pytest
import uvloop
from pg8000.dbapi import connect as connect_by_name

import asyncsafe
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, refused

ROWS = [[1, "one"], [2, "two"], [3, "three"]]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (4, 'four')"
WITH_VALUES = "insert into letters values (%s, %s)"
NAME = "asyncsafe-test"


class Server:
    """Three letters, connections to them, and what the server knows of those connections."""

    def __init__(self, dsn: str) -> None:
        found = psycopg2.extensions.parse_dsn(dsn)
        port = int(found.get("port", 5432))
        host = found.get("host", "localhost")
        place: dict[str, Any] = {"host": host, "port": port}
        if host.startswith("/"):
            place = {"unix_sock": f"{host}/.s.PGSQL.{port}"}
        self.options: dict[str, Any] = {
            "user": found["user"],
            "password": found.get("password"),
            "database": found.get("dbname"),
            **place,
        }
        self.opened: list[Any] = []
        self.watch = pg8000.native.Connection(**self.options)
        self.options["application_name"] = NAME

    def ask(self, query: str, **parameters: Any) -> list[Any]:
        """From a connection of its own."""
        return self.watch.run(query, **parameters) or []

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
                "select pid, state, query, xact_start, query_start, state_change,"
                " backend_xid::text from pg_stat_activity where application_name = :name"
                " order by pid",
                name=NAME,
            ),
        )

    def backends(self) -> int:
        query = "select count(*) from pg_stat_activity where application_name = :name"
        count: int = self.ask(query, name=NAME)[0][0]
        return count

    def connect(self, module: Any = pg8000.dbapi, autocommit: bool = False) -> Any:
        connection = module.connect(**self.options)
        connection.autocommit = autocommit
        self.opened.append(connection)
        return connection

    def native(self) -> Any:
        connection = pg8000.native.Connection(**self.options)
        self.opened.append(connection)
        return connection

    def writing(self, module: Any = pg8000.dbapi) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect(module)
        connection.cursor().execute(INSERT)
        return connection

    def selected(self, module: Any = pg8000.dbapi) -> Any:
        cursor = self.connect(module).cursor()
        cursor.execute(SELECT)
        return cursor

    def two_phase(self, module: Any = pg8000.dbapi) -> Any:
        connection = self.connect(module)
        connection.tpc_begin(connection.xid(1, "letters", "branch"))
        connection.cursor().execute(INSERT)
        return connection

    def empty(self) -> None:
        for connection in self.opened:
            try:
                connection.close()
            except pg8000.exceptions.InterfaceError as error:
                assert "closed" in str(error)  # noqa: PT017
        self.opened.clear()
        assert eventually(lambda: self.backends() == 0)


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[Server]:
    server = Server(postgres)
    server.ask("drop table if exists letters")
    server.ask("create table letters (id integer primary key, body text)")
    server.ask("create or replace procedure nothing(n integer) language sql as 'select n'")
    yield server
    server.ask("drop procedure nothing")
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
    if isinstance(result, pg8000.core.CoreConnection):
        result.close()
        return type(result)
    if isinstance(result, (str, int, list, tuple, type(None))):
        return result
    return type(result)


def leave(manager: Any) -> None:
    with manager:
        pass


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def copy_in(cursor: Any) -> Callable[[], Any]:
    stream = io.BytesIO(b"4\tfour\n")
    return partial(cursor.execute, "copy letters from stdin", stream=stream)


def table(*rows: tuple[str, str, Any]) -> list[Any]:
    return [pytest.param(operation, make, id=name) for name, operation, make in rows]


def of_each(*rows: tuple[str, str, Any]) -> list[Any]:
    """What the DB-API and the legacy connection both have."""
    return [
        pytest.param(operation, partial(make, module=module), id=f"{module.__name__}: {name}")
        for name, operation, make in rows
        for module in (pg8000.dbapi, pg8000.legacy)
    ]


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the second column is what the message names.
IO = [
    *table(
        ("pg8000.connect", "connect", lambda db: partial(pg8000.connect, **db.options)),
        ("imported by name", "connect", lambda db: partial(connect_by_name, **db.options)),
        ("Connection", "connect", lambda db: partial(pg8000.dbapi.Connection, **db.options)),
        ("native", "connect", lambda db: partial(pg8000.native.Connection, **db.options)),
        ("subclass", "connect", lambda db: partial(Overriding, **db.options)),
        ("native run", "Connection.run", lambda db: partial(db.native().run, SELECT)),
        (
            "native run, with values",
            "Connection.run",
            lambda db: partial(db.native().run, "insert into letters values (:a, '')", a=4),
        ),
        ("native prepare", "Connection.prepare", lambda db: partial(db.native().prepare, SELECT)),
        ("native prepared", "PreparedStatement.run", lambda db: db.native().prepare(SELECT).run),
        (
            "PreparedStatement",
            "Connection.prepare_statement",
            lambda db: partial(pg8000.native.PreparedStatement, db.native(), SELECT),
        ),
        (
            "native prepared, close",
            "PreparedStatement.close",
            lambda db: db.native().prepare(SELECT).close,
        ),
        ("native close", "Connection.close", lambda db: db.native().close),
        ("native with", "Connection.__exit__", lambda db: partial(leave, db.native())),
        (
            "execute_simple",
            "Connection.execute_simple",
            lambda db: partial(db.native().execute_simple, SELECT),
        ),
        (
            "execute_unnamed",
            "Connection.execute_unnamed",
            lambda db: partial(db.native().execute_unnamed, SELECT),
        ),
        (
            "callproc",
            "Cursor.callproc",
            lambda db: partial(db.connect().cursor().callproc, "nothing", (1,)),
        ),
        ("legacy run", "Connection.run", lambda db: partial(db.connect(pg8000).run, SELECT)),
        (
            "legacy prepare",
            "Connection.prepare",
            lambda db: partial(db.connect(pg8000).prepare, SELECT),
        ),
        (
            "legacy prepared",
            "PreparedStatement.run",
            lambda db: db.connect(pg8000).prepare(SELECT).run,
        ),
        (
            "legacy prepared, close",
            "PreparedStatement.close",
            lambda db: db.connect(pg8000).prepare(SELECT).close,
        ),
    ),
    *of_each(
        (
            "execute",
            "Cursor.execute",
            lambda db, module: partial(db.connect(module).cursor().execute, SELECT),
        ),
        (
            "execute, with values",
            "Cursor.execute",
            lambda db, module: partial(
                db.connect(module).cursor().execute, WITH_VALUES, args=(4, "")
            ),
        ),
        (
            "execute in autocommit",
            "Cursor.execute",
            lambda db, module: partial(db.connect(module, True).cursor().execute, INSERT),
        ),
        (
            "executemany",
            "Cursor.executemany",
            lambda db, module: partial(
                db.connect(module).cursor().executemany, WITH_VALUES, [(4, ""), (5, "")]
            ),
        ),
        ("copy", "Cursor.execute", lambda db, module: copy_in(db.connect(module, True).cursor())),
        ("commit", "Connection.commit", lambda db, module: db.writing(module).commit),
        ("commit, nothing", "Connection.commit", lambda db, module: db.connect(module).commit),
        ("rollback", "Connection.rollback", lambda db, module: db.writing(module).rollback),
        ("close", "Connection.close", lambda db, module: db.writing(module).close),
        ("with", "Connection.__exit__", lambda db, module: partial(leave, db.writing(module))),
        (
            "tpc_begin in autocommit",
            "Connection.tpc_begin",
            lambda db, module: partial(db.connect(module, True).tpc_begin, (0, "letters", "")),
        ),
        ("tpc_commit", "Connection.tpc_commit", lambda db, module: db.two_phase(module).tpc_commit),
        (
            "tpc_rollback",
            "Connection.tpc_rollback",
            lambda db, module: db.two_phase(module).tpc_rollback,
        ),
        (
            "tpc_recover",
            "Connection.tpc_recover",
            lambda db, module: db.connect(module).tpc_recover,
        ),
    ),
]


class Overriding(pg8000.dbapi.Connection):
    """A user's subclass, with methods of its own that call ours."""

    def commit(self) -> None:
        super().commit()


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("pg8000")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"pg8000.{operation}"
        assert db.seen() == before
        # Off the loop it does what it always did, and that is seen.
        result = call()
        changed = eventually(lambda: db.seen() != before)
        assert tell(result) == bare
        assert changed

    def test_untouched_in_a_thread(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        rows = db.rows()
        db.empty()
        db.fill()
        asyncsafe.install("pg8000")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("pg8000")
        call = make(db)
        asyncsafe.configure(mode="record")
        told = on_loop(call)
        # Guarded calls that it makes are part of it.
        assert [(site.violation.operation, site.calls) for site in asyncsafe.violations] == [
            (f"pg8000.{operation}", 1)
        ]
        assert tell(told) == bare


def without_io(*rows: tuple[str, Any]) -> list[Any]:
    return [
        pytest.param(partial(make, module=module), id=f"{module.__name__}: {name}")
        for name, make in rows
        for module in (pg8000.dbapi, pg8000.legacy)
    ]


# hooks.md, section 2: what does no I/O.
NO_IO = without_io(
    ("cursor", lambda db, module: db.connect(module).cursor),
    ("fetchone", lambda db, module: db.selected(module).fetchone),
    ("fetchmany", lambda db, module: partial(db.selected(module).fetchmany, 2)),
    ("fetchall", lambda db, module: db.selected(module).fetchall),
    ("next", lambda db, module: partial(next, db.selected(module))),
    ("list", lambda db, module: partial(list, db.selected(module))),
    ("description", lambda db, module: partial(getattr, db.selected(module), "description")),
    ("cursor.close", lambda db, module: db.selected(module).close),
    ("setinputsizes", lambda db, module: partial(db.selected(module).setinputsizes, 23)),
    ("rollback outside of a transaction", lambda db, module: db.connect(module).rollback),
    ("autocommit =", lambda db, module: partial(setattr, db.connect(module), "autocommit", True)),
    ("xid", lambda db, module: partial(db.connect(module).xid, 1, "a", "b")),
    ("tpc_begin", lambda db, module: partial(db.connect(module).tpc_begin, (0, "letters", ""))),
    ("entered", lambda db, module: db.connect(module).__enter__),
    (
        "register_in_adapter",
        lambda db, module: partial(db.connect(module).register_in_adapter, 25, str),
    ),
    ("notices", lambda db, module: partial(getattr, db.connect(module), "notices")),
)


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
        for module, classes in integration("pg8000").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed pg8000 lacks is passed over, which must not happen unseen."""
    owner: Any = getattr(importlib.import_module(module), class_name)
    bare = vars(owner)[operation.name]
    asyncsafe.install("pg8000")
    assert hasattr(vars(owner)[operation.name], "__async_unsafe__")
    asyncsafe.uninstall()
    assert vars(owner)[operation.name] is bare


def test_public_methods_without_a_guard_are_known() -> None:
    """Methods that a later version adds are seen here first."""
    harmless = {
        "cursor", "xid", "register_in_adapter", "register_out_adapter", "fetchone", "fetchmany",
        "fetchall", "setinputsizes", "setoutputsize", "connection", "rowcount", "description",
        "columns", "row_count", "Warning", "Error", "InterfaceError", "DatabaseError",
        "OperationalError", "IntegrityError", "InternalError", "ProgrammingError",
        "NotSupportedError", "send_PARSE", "send_DESCRIBE_STATEMENT", "send_QUERY", "send_BIND",
        "send_EXECUTE", "handle_messages",
    }  # fmt: skip
    for module, classes in integration("pg8000").operations.items():
        for class_name, operations in classes.items():
            cls = getattr(importlib.import_module(module), class_name)
            public = {name for name in vars(cls) if not name.startswith(("_", "handle_"))}
            unguarded = public - {operation.name for operation in operations} - harmless
            assert unguarded == ({"close"} if class_name == "Cursor" else set()), cls


def test_what_is_read_of_pg8000_in_private(db: Server) -> None:
    """It tells nowhere in public whose a cursor is, nor whether a connection is open or in use."""
    for module in (pg8000.dbapi, pg8000.legacy):
        connection = db.connect(module)
        cursor = connection.cursor()
        assert cursor._c is connection
        assert connection._usock is not None
        assert not connection._in_transaction
        cursor.execute(SELECT)
        assert connection._in_transaction
        assert connection._transaction_status == b"T"
        assert closed(cursor)._c is None
        assert closed(connection)._usock is None


MODULES = pytest.mark.parametrize("module", [pg8000.dbapi, pg8000.legacy])


@MODULES
@pytest.mark.usefixtures("guarded")
class TestTransactions:
    def test_refused_leaves_it_open(self, db: Server, module: Any) -> None:
        connection = db.writing(module)
        for call in (
            connection.commit,
            connection.rollback,
            connection.close,
            partial(leave, connection),
            partial(connection.cursor().execute, SELECT),
        ):
            refused(call)
        assert db.rows() == ROWS
        connection.commit()
        assert db.rows() == [*ROWS, [4, "four"]]
        cursor = connection.cursor()
        cursor.execute(SELECT)
        assert [list(row) for row in cursor.fetchall()] == db.rows()

    def test_the_protocol_stays_in_step(self, db: Server, module: Any) -> None:
        """hooks.md, section 7: after a refusal, each answer is that of its own question."""
        connection = db.connect(module)
        cursor = connection.cursor()
        for number in range(5):
            refused(partial(cursor.execute, "select 111"))
            refused(partial(cursor.executemany, WITH_VALUES, [(7, "")]))
            cursor.execute(f"select {number}")
            assert [list(row) for row in cursor.fetchall()] == [[number]]

    @pytest.mark.parametrize("how", ["with", "close", "rollback"])
    def test_an_errors_way_out(self, db: Server, heard: list[Any], module: Any, how: str) -> None:
        connection = db.writing(module)

        def use() -> None:
            if how == "with":
                with connection:
                    raise LookupError("the application's")
            try:
                raise LookupError("the application's")
            finally:
                getattr(connection, how)()

        with pytest.raises(LookupError, match="the application's") as caught:
            on_loop(use)
        assert caught.value.__context__ is None
        name = "__exit__" if how == "with" else how
        assert [(v.operation, v.outcome) for v in heard] == [
            (f"pg8000.Connection.{name}", "allowed")
        ]
        assert db.rows() == ROWS

    def test_refusal_inside_is_not_refused_again(self, db: Server, module: Any) -> None:
        connection = db.connect(module)

        def use() -> None:
            with connection:
                connection.cursor().execute(SELECT)

        assert refused(use).operation == "pg8000.Cursor.execute"
        assert eventually(lambda: db.backends() == 0)

    def test_two_phases(self, db: Server, module: Any) -> None:
        """The refusal alone where the server has them switched off, as the embedded one does."""
        connection = db.two_phase(module)
        before = db.seen()
        for call in (connection.tpc_prepare, connection.tpc_commit, connection.tpc_rollback):
            refused(call)
        assert not connection.autocommit
        assert db.seen() == before
        if db.ask("show max_prepared_transactions") == [["0"]]:
            with pytest.raises(pg8000.exceptions.DatabaseError, match="disabled"):
                connection.tpc_prepare()
        else:
            connection.tpc_prepare()
        connection.tpc_rollback()

    def test_two_tasks(self, db: Server, module: Any) -> None:
        connection = db.connect(module)

        async def first() -> None:
            with asyncsafe.allow("the test is about sharing"):
                connection.cursor().execute(INSERT)

        async def second() -> None:
            with asyncsafe.allow("the test is about sharing"):
                for call in (connection.commit, partial(connection.cursor().execute, SELECT)):
                    with pytest.raises(asyncsafe.ConnectionSharingError):
                        call()

        async def coroutine() -> None:
            kept = asyncio.create_task(first())
            await kept
            await asyncio.create_task(second())

        asyncio.run(coroutine())
        assert db.rows() == ROWS
        connection.commit()
        assert db.rows() == [*ROWS, [4, "four"]]

    def test_ended_by_its_task(self, db: Server, module: Any, heard: list[Any]) -> None:
        connection = db.connect(module)

        async def whole(number: int) -> None:
            with asyncsafe.allow("the test is about sharing"):
                connection.cursor().execute(WITH_VALUES, (number, ""))
                connection.commit()

        async def coroutine() -> None:
            for number in (4, 5):
                await asyncio.create_task(whole(number))

        asyncio.run(coroutine())
        assert {violation.outcome for violation in heard} == {"allowed"}
        assert len(db.rows()) == 5


@pytest.mark.usefixtures("guarded")
class TestNative:
    def test_refused_and_usable_afterwards(self, db: Server) -> None:
        connection = db.native()
        statement = connection.prepare("select body from letters where id = :id")
        for _ in range(3):
            violation = refused(partial(connection.run, SELECT))
            assert violation.statement == SELECT
            assert refused(partial(statement.run, id=1)).statement is not None
            refused(statement.close)
            refused(partial(connection.prepare, SELECT))
        assert statement.run(id=2) == [["two"]]
        statement.close()
        assert connection.run(SELECT) == ROWS

    def test_two_tasks(self, db: Server) -> None:
        connection = db.native()

        async def run(query: str) -> None:
            with asyncsafe.allow("the test is about sharing"):
                connection.run(query)

        async def coroutine() -> None:
            first = asyncio.create_task(run("begin"))
            await first
            with pytest.raises(asyncsafe.ConnectionSharingError):
                await asyncio.create_task(run("commit"))

        asyncio.run(coroutine())
        connection.run("rollback")


@pytest.mark.usefixtures("guarded")
class TestAsBefore:
    def test_types(self, db: Server) -> None:
        opened = Overriding(**db.options)
        db.opened.append(opened)
        assert isinstance(opened, pg8000.dbapi.Connection)
        assert type(db.connect().cursor()) is pg8000.dbapi.Cursor
        assert type(db.connect(pg8000).cursor()) is pg8000.legacy.Cursor
        refused(opened.commit)
        opened.commit()
        cursor = db.selected()
        rows = cursor.fetchall()
        assert pickle.loads(pickle.dumps(rows)) == tuple(ROWS)

    @pytest.mark.filterwarnings("error")
    def test_no_warning_of_its_own(self, db: Server) -> None:
        """A cursor's `connection` warns whoever reads it."""
        refused(partial(db.connect().cursor().execute, SELECT))
        asyncsafe.configure(mode="record")
        on_loop(partial(db.connect().cursor().execute, SELECT))

    def test_errors_of_its_own(self, db: Server) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: pg8000.connect(None),
            lambda: db.connect().cursor().execute("nonsense"),
            lambda: db.connect().cursor().fetchone(),
            lambda: closed(db.connect()).cursor().execute(SELECT),
            lambda: closed(db.connect().cursor()).execute(SELECT),
            lambda: closed(db.connect()).commit(),
            lambda: closed(db.connect()).close(),
            lambda: closed(db.native()).run(SELECT),
            lambda: pg8000.connect("nobody", unix_sock="/nonexistent"),
        ]
        guarded = [error(call) for call in calls]
        for index, make in enumerate(
            (
                lambda: closed(db.connect().cursor()).execute,
                lambda: closed(db.connect()).cursor().execute,
            )
        ):
            call = partial(make(), SELECT)
            assert error(partial(on_loop, call)) == guarded[4 - index]
        asyncsafe.uninstall()
        assert [error(call) for call in calls] == guarded

    def test_statement_without_values(self, db: Server) -> None:
        violation = refused(partial(db.connect().cursor().execute, WITH_VALUES, (4, "a secret")))
        assert violation.statement == WITH_VALUES
        assert "a secret" not in violation.message()


@pytest.mark.usefixtures("guarded")
class TestMadeBefore:
    def test_connection_and_uninstalled_again(self, db: Server) -> None:
        asyncsafe.uninstall()
        connection, native = db.writing(), db.native()
        cursor = connection.cursor()
        asyncsafe.install("pg8000")
        before = db.seen()
        for call in (partial(cursor.execute, SELECT), connection.commit, connection.close):
            refused(call)
        refused(partial(native.run, SELECT))
        assert db.seen() == before
        kept = connection.commit
        asyncsafe.uninstall()
        asyncsafe.violations.clear()
        on_loop(kept)
        on_loop(partial(native.run, SELECT))
        assert not asyncsafe.violations

    def test_exempt(self, db: Server, heard: list[Any]) -> None:
        connection, native = db.connect(), db.native()
        asyncsafe.exempt(connection)
        asyncsafe.exempt(native)

        def use() -> None:
            cursor = connection.cursor()
            cursor.execute(INSERT)
            connection.commit()
            native.prepare(SELECT).run()
            with native:
                native.run(SELECT)
            connection.close()

        on_loop(use)
        assert heard == []
        refused(partial(db.connect().cursor().execute, SELECT))

    def test_dropped_on_the_loop(
        self, db: Server, monkeypatch: pytest.MonkeyPatch, heard: list[Any]
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.selected(), db.native(), db.selected(pg8000)]
        db.opened.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert eventually(lambda: db.backends() == 0)
        assert (unraisable, heard) == ([], [])

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def test_loops(self, db: Server, run: Any) -> None:
        connection = db.connect()

        async def coroutine() -> Any:
            with pytest.raises(asyncsafe.SynchronousOnlyOperation):
                connection.cursor().execute(SELECT)
            cursor = connection.cursor()
            await asyncio.to_thread(cursor.execute, SELECT)
            return cursor.fetchall()

        assert run(coroutine()) == tuple(ROWS)
