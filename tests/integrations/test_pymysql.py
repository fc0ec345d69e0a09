"""PyMySQL: each call that talks to the server is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiomysql
import asyncmy
import pymysql
import pymysql.cursors
import pytest
import uvloop
from pymysql import connect as connect_by_name

import asyncsafe
from asyncsafe import ConnectionSharingError, database_sync_to_async
from asyncsafe.installation import integration

from ..fix_mysql import INSERT, ROWS, SELECT, Letters, eventually
from ..running import in_thread, on_loop, python, refused

TWO = "select 1; select 2"
SS = pymysql.cursors.SSCursor


class Server(Letters):
    def unread(self, query: str = SELECT, cursor: Any = SS, **kwargs: Any) -> Any:
        """An SSCursor: its rows are still to be read."""
        unread = self.keep(self.connect(**kwargs).cursor(cursor))
        unread.execute(query)
        return unread

    def several(self, cursor: Any = pymysql.cursors.Cursor) -> Any:
        """A cursor with the first of two results."""
        flag = pymysql.constants.CLIENT.MULTI_STATEMENTS
        return self.unread(TWO, cursor, client_flag=flag)

    def deferred(self) -> Any:
        return self.connect(defer_connect=True)


@pytest.fixture(scope="module")
def server(mysql: dict[str, Any]) -> Iterator[Server]:
    server = Server(mysql, pymysql.connect)
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
    if isinstance(result, pymysql.connections.Connection):
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


def drop(cursor: Any) -> Callable[[], Any]:
    """Take the last reference to a cursor, in the call."""
    holder = [cursor]
    return holder.clear


def sent(connection: Any, query: str) -> Any:
    """Send a query, and have its result still to be read."""
    connection._execute_command(pymysql.constants.COMMAND.COM_QUERY, query)
    return connection


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the second column is what the message names.
IO = params(
    ("connect", "connect", lambda db: partial(pymysql.connect, **db.settings)),
    ("connect, imported by name", "connect", lambda db: partial(connect_by_name, **db.settings)),
    ("Connection()", "connect", lambda db: partial(pymysql.Connection, **db.settings)),
    (
        "connect, deferred",
        "Connection.connect",
        lambda db: db.deferred().connect,
    ),
    ("execute", "Cursor.execute", lambda db: partial(db.cursor().execute, SELECT)),
    ("a write", "Cursor.execute", lambda db: partial(db.cursor().execute, INSERT, (4, ""))),
    (
        "by keywords",
        "Cursor.execute",
        lambda db: partial(db.cursor().execute, query=INSERT, args=(4, "")),
    ),
    (
        "executemany",
        "Cursor.executemany",
        lambda db: partial(db.cursor().executemany, INSERT, [(4, ""), (5, "")]),
    ),
    (
        "map",
        "Cursor.execute",
        lambda db: (lambda c: lambda: [*map(c.execute, [SELECT])])(db.cursor()),
    ),
    ("callproc", "Cursor.callproc", lambda db: partial(db.cursor().callproc, "spell", (2,))),
    ("nextset", "Cursor.nextset", lambda db: db.several().nextset),
    ("close with results", "Cursor.close", lambda db: db.several().close),
    ("with, with results", "Cursor.close", lambda db: partial(leave, db.several())),
    ("commit", "Connection.commit", lambda db: db.writing().commit),
    ("commit, of nothing", "Connection.commit", lambda db: db.connect().commit),
    ("rollback", "Connection.rollback", lambda db: db.writing().rollback),
    ("begin", "Connection.begin", lambda db: db.connect().begin),
    ("ping", "Connection.ping", lambda db: partial(db.connect().ping, reconnect=False)),
    ("query", "Connection.query", lambda db: partial(db.connect().query, SELECT)),
    ("next_result", "Connection.next_result", lambda db: sent(db.connect(), SELECT).next_result),
    (
        "select_db",
        "Connection.select_db",
        lambda db: partial(db.connect().select_db, db.settings["database"]),
    ),
    (
        "set_charset",
        "Connection.set_charset",
        lambda db: partial(db.connect().set_charset, "latin1"),
    ),
    (
        "set_character_set",
        "Connection.set_character_set",
        lambda db: partial(db.connect().set_character_set, "latin1"),
    ),
    ("autocommit", "Connection.autocommit", lambda db: partial(db.connect().autocommit, True)),
    ("show_warnings", "Connection.show_warnings", lambda db: db.connect().show_warnings),
    (
        "kill",
        "Connection.kill",
        lambda db: partial(db.connect().kill, db.connect().thread_id()),
    ),
    ("close", "Connection.close", lambda db: db.connect().close),
    ("close in a transaction", "Connection.close", lambda db: db.writing().close),
    ("with", "Connection.close", lambda db: partial(leave, db.connect())),
    (
        "SSCursor.execute",
        "Cursor.execute",
        lambda db: partial(db.cursor(cursorclass=SS).execute, SELECT),
    ),
    ("SSCursor.fetchone", "SSCursor.fetchone", lambda db: db.unread().fetchone),
    ("SSCursor.fetchmany", "SSCursor.fetchmany", lambda db: partial(db.unread().fetchmany, 2)),
    ("SSCursor.fetchall", "SSCursor.fetchall", lambda db: db.unread().fetchall),
    (
        "SSCursor.fetchall_unbuffered",
        "SSCursor.fetchone",
        lambda db: (lambda c: lambda: list(c.fetchall_unbuffered()))(db.unread()),
    ),
    ("SSCursor.read_next", "SSCursor.read_next", lambda db: db.unread().read_next),
    ("SSCursor.scroll", "SSCursor.scroll", lambda db: partial(db.unread().scroll, 1)),
    ("SSCursor next", "SSCursor.fetchone", lambda db: partial(next, db.unread())),
    ("SSCursor for", "SSCursor.fetchone", lambda db: partial(first_of_loop, db.unread())),
    ("SSCursor list", "SSCursor.fetchone", lambda db: partial(list, db.unread())),
    (
        "SSDictCursor",
        "SSCursor.fetchone",
        lambda db: db.unread(cursor=pymysql.cursors.SSDictCursor).fetchone,
    ),
    ("SSCursor.close", "SSCursor.close", lambda db: db.unread().close),
    ("with SSCursor", "SSCursor.close", lambda db: partial(leave, db.unread())),
    (
        "SSCursor.nextset",
        "SSCursor.nextset",
        lambda db: (lambda c: (c.fetchall(), c.nextset)[1])(db.several(SS)),
    ),
)

#: What sends nothing, and reads what the server has sent.
READS = {
    "nextset",
    "close with results",
    "with, with results",
    "next_result",
    *(p.id for p in IO if str(p.id).removeprefix("with ").startswith("SS")),
} - {"SSCursor.execute"}


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Server, request: pytest.FixtureRequest
    ) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("pymysql")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"pymysql.{operation}"
        assert db.seen() == before
        # Off the loop it does what it always did, and that is seen.
        result = call()
        changed = db.seen() != before
        assert tell(result) == bare
        assert changed or request.node.callspec.id in READS

    def test_untouched_in_a_thread(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        rows = db.rows()
        db.empty()
        db.fill()
        asyncsafe.install("pymysql")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("pymysql")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert f"pymysql.{operation}" in {s.violation.operation for s in asyncsafe.violations}


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def read(cursor: Any) -> Any:
    cursor.fetchall()
    return cursor


# hooks.md, section 2: what does no I/O.
NO_IO = params(
    ("connect, to be deferred", lambda db: partial(pymysql.connect, defer_connect=True)),
    ("cursor", lambda db: db.connect().cursor),
    ("cursor, of a class", lambda db: partial(db.connect().cursor, SS)),
    ("fetchone", lambda db: db.selected().fetchone),
    ("fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
    ("fetchall", lambda db: db.selected().fetchall),
    ("for", lambda db: partial(first_of_loop, db.selected())),
    ("list", lambda db: partial(list, db.selected())),
    ("scroll", lambda db: partial(db.selected().scroll, 1)),
    ("DictCursor", lambda db: db.selected(cursorclass=pymysql.cursors.DictCursor).fetchall),
    ("nextset, none", lambda db: db.selected().nextset),
    ("cursor.close", lambda db: db.selected().close),
    ("cursor closed again", lambda db: closed(db.selected()).close),
    ("with cursor", lambda db: partial(leave, db.selected())),
    ("executemany of nothing", lambda db: partial(db.cursor().executemany, INSERT, [])),
    ("mogrify", lambda db: partial(db.cursor().mogrify, INSERT, (4, ""))),
    ("SSCursor.fetchone, at the end", lambda db: read(db.unread()).fetchone),
    ("SSCursor.fetchall, at the end", lambda db: read(db.unread()).fetchall),
    ("SSCursor.nextset, none", lambda db: read(db.unread()).nextset),
    ("SSCursor.close, at the end", lambda db: read(db.unread()).close),
    ("SSCursor closed again", lambda db: closed(db.unread()).close),
    ("SSCursor.close, unused", lambda db: db.connect().cursor(SS).close),
    ("autocommit, as it is", lambda db: partial(db.connect().autocommit, False)),
    ("get_autocommit", lambda db: db.connect().get_autocommit),
    ("escape", lambda db: partial(db.connect().escape, "it's")),
    ("thread_id", lambda db: db.connect().thread_id),
    ("character_set_name", lambda db: db.connect().character_set_name),
    ("get_host_info", lambda db: db.connect().get_host_info),
    ("get_proto_info", lambda db: db.connect().get_proto_info),
    ("get_server_info", lambda db: db.connect().get_server_info),
    ("insert_id", lambda db: db.writing().insert_id),
    ("affected_rows", lambda db: db.writing().affected_rows),
    ("open", lambda db: partial(getattr, db.connect(), "open")),
    ("escape_string", lambda db: partial(pymysql.converters.escape_string, "it's")),
    ("get_client_info", lambda db: pymysql.get_client_info),
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
        for module, classes in integration("pymysql").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed PyMySQL lacks is passed over, which must not happen unseen."""
    owner = getattr(importlib.import_module(module), class_name)
    assert operation.name in vars(owner)
    asyncsafe.install("pymysql")
    assert hasattr(vars(owner)[operation.name], "__async_unsafe__")


def test_what_is_read_of_pymysql_in_private(db: Server) -> None:
    """What a result has left is nowhere in public; and SSCursor's finalizer is close()."""
    unread, several = db.unread(), db.several()
    assert unread._result is unread.connection._result
    assert (unread._result.unbuffered_active, unread._result.has_next) == (True, None)
    assert several._result is several.connection._result
    assert several._result.has_next
    assert not several._result.unbuffered_active
    assert SS.__del__ is SS.close


def test_public_calls_are_guarded_or_known(guarded: None) -> None:
    """A method that a new version brings is looked at before it is passed over."""
    known = {
        pymysql.connections.Connection: {
            *("affected_rows", "character_set_name", "cursor", "escape", "get_autocommit"),
            *("get_host_info", "get_proto_info", "get_server_info", "insert_id", "literal"),
            *("thread_id", "write_packet"),  # write_packet: internal, of LOAD DATA LOCAL
        },
        pymysql.cursors.Cursor: {
            *("fetchall", "fetchmany", "fetchone", "mogrify", "scroll", "setinputsizes"),
            "setoutputsizes",
        },
        SS: {"fetchall_unbuffered"},
        pymysql.cursors.DictCursorMixin: {"dict_type"},
    }
    for owner, names in known.items():
        public = {
            name
            for name, value in vars(owner).items()
            if callable(value) and not name.startswith("_")
        }
        public = {n for n in public if not isinstance(vars(owner)[n], type) or n == "dict_type"}
        bare = {name for name in public if not hasattr(vars(owner)[name], "__async_unsafe__")}
        assert bare == names, owner


@pytest.mark.usefixtures("guarded")
class TestWith:
    def test_refused_close_leaves_the_transaction_open(self, db: Server) -> None:
        connection = db.writing()
        assert refused(lambda: leave(connection)).operation == "pymysql.Connection.close"
        assert connection.open
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
        assert not connection.open
        assert db.rows() == ROWS
        assert [(v.operation, v.outcome) for v in heard] == [
            ("pymysql.Connection.close", "allowed")
        ]

    def test_refusal_inside_is_not_refused_again(self, db: Server) -> None:
        cursor = db.unread()

        def use() -> None:
            with cursor:
                cursor.fetchone()

        assert refused(use).operation == "pymysql.SSCursor.fetchone"
        assert cursor.connection is None

    def test_rollback_in_except(self, db: Server, heard: list[asyncsafe.Violation]) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                connection.commit()
            except asyncsafe.SynchronousOnlyOperation:
                connection.rollback()
                raise

        assert refused(use).operation == "pymysql.Connection.commit"
        assert [v.outcome for v in heard] == ["raised", "allowed"]
        assert db.rows() == ROWS


@pytest.mark.usefixtures("guarded")
class TestGarbage:
    """hooks.md, section 7: SSCursor.__del__ is close(), and reads what is left."""

    @pytest.mark.filterwarnings("ignore:Previous unbuffered result:UserWarning")
    @pytest.mark.parametrize("make", [lambda db: db.unread(), lambda db: db.several(SS)])
    def test_unread_cursor_dropped_on_the_loop(
        self, make: Any, db: Server, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        cursor = make(db)
        connection = cursor.connection
        db.kept.clear()
        call = drop(cursor)
        del cursor
        on_loop(lambda: (call(), gc.collect()))
        assert unraisable == []
        assert [(v.operation, v.outcome) for v in heard] == [("pymysql.SSCursor.close", "allowed")]
        # The protocol is where it should be.
        after = connection.cursor()
        after.execute("select 111")
        assert after.fetchall() == ((111,),)

    def test_read_cursor_dropped_on_the_loop(self, db: Server, heard: list[Any]) -> None:
        cursor = read(db.unread())
        db.kept.clear()
        call = drop(cursor)
        del cursor
        on_loop(lambda: (call(), gc.collect()))
        assert heard == []

    def test_dropped_off_the_loop(self, db: Server, heard: list[Any]) -> None:
        cursor = db.unread()
        connection = cursor.connection
        db.kept.clear()
        drop(cursor)
        del cursor
        gc.collect()
        assert connection.cursor().execute("select 1") == 1
        assert heard == []

    def test_connection_dropped_on_the_loop(
        self, db: Server, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.unread()]
        db.opened.clear()
        db.kept.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert eventually(lambda: db.backends() == 0)
        assert unraisable == []
        assert {v.outcome for v in heard} <= {"allowed"}
        assert db.rows() == ROWS

    def test_uninstalled_finalizer(self) -> None:
        asyncsafe.uninstall()
        assert SS.__del__ is SS.close


@pytest.mark.usefixtures("guarded")
class TestProtocol:
    """hooks.md, section 7: a refusal leaves the conversation with the server as it was."""

    def test_rows_after_refusals(self, db: Server) -> None:
        cursor = db.unread()
        for call in (cursor.fetchone, cursor.fetchall, partial(next, cursor), cursor.close):
            refused(call)
        assert cursor.fetchone() == ROWS[0]
        refused(cursor.fetchone)
        refused(partial(cursor.execute, "select 111"))
        assert cursor.fetchall() == ROWS[1:]
        assert on_loop(cursor.fetchone) is None
        cursor.execute("select 222")
        assert cursor.fetchall() == [(222,)]

    def test_results_after_refusals(self, db: Server) -> None:
        cursor = db.several()
        assert on_loop(cursor.fetchall) == ((1,),)
        refused(cursor.nextset)
        assert cursor.nextset()
        assert on_loop(cursor.fetchall) == ((2,),)
        assert on_loop(cursor.nextset) is None

    def test_refused_autocommit_changes_nothing(self, db: Server) -> None:
        connection = db.connect()
        refused(partial(connection.autocommit, True))
        assert connection.autocommit_mode is False
        assert connection.get_autocommit() is False
        connection.autocommit(True)
        connection.cursor().execute(INSERT, (4, "four"))
        assert db.rows() == [*ROWS, (4, "four")]

    def test_refused_connect(self, db: Server) -> None:
        """The exception is ours, and not an OperationalError of PyMySQL's."""
        before = db.seen()
        refused(partial(pymysql.connect, **{**db.settings, "host": "no.such.host.invalid"}))
        connection = db.deferred()
        refused(connection.connect)
        assert not connection.open
        assert db.seen() == before


class Overriding(pymysql.connections.Connection):
    """A user's subclass, with methods of its own that call ours."""

    def commit(self) -> None:
        super().commit()


class OverridingCursor(pymysql.cursors.SSCursor):
    executed = 0

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self.executed += 1
        return super().execute(*args, **kwargs)


class TestClasses:
    def test_subclasses(self, db: Server, guarded: None) -> None:
        refused(partial(Overriding, **db.settings))
        connection = Overriding(**db.settings, cursorclass=OverridingCursor)
        db.opened.append(connection)
        refused(connection.commit)
        cursor = connection.cursor()
        assert type(cursor) is OverridingCursor
        assert refused(partial(cursor.execute, SELECT)).operation == "pymysql.Cursor.execute"
        cursor.execute(SELECT)
        assert cursor.executed == 2
        refused(cursor.fetchall)
        assert cursor.fetchall() == ROWS

    def test_made_before(self, db: Server) -> None:
        connection, cursor, unread = db.writing(), db.selected(), db.unread()
        asyncsafe.install("pymysql")
        before = db.seen()
        for call in (
            partial(connection.cursor().execute, SELECT),
            connection.commit,
            connection.rollback,
            connection.close,
            partial(cursor.execute, SELECT),
            unread.fetchone,
            unread.close,
        ):
            refused(call)
        assert db.seen() == before
        assert list(unread) == list(on_loop(cursor.fetchall)) == ROWS

    def test_uninstalled_again(self, db: Server) -> None:
        bare = {
            k: dict(vars(k)) for k in (pymysql.connections.Connection, pymysql.cursors.Cursor, SS)
        }
        asyncsafe.install("pymysql")
        connection, unread = db.writing(), db.unread()
        kept = unread.fetchone
        asyncsafe.uninstall()
        assert {k: dict(vars(k)) for k in bare} == bare
        assert on_loop(kept) == ROWS[0]
        on_loop(connection.commit)
        assert not asyncsafe.violations

    def test_types(self, db: Server, guarded: None) -> None:
        connection = db.connect()
        assert type(connection) is pymysql.connections.Connection is pymysql.connect
        assert type(connection.cursor()) is pymysql.cursors.Cursor
        assert isinstance(connection.cursor(SS), pymysql.cursors.Cursor)

    def test_errors_of_its_own(self, db: Server) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: pymysql.connect(nonsense=1),
            lambda: pymysql.connect("localhost"),  # type: ignore[call-arg]
            lambda: db.cursor().execute("nonsense"),
            lambda: db.cursor().fetchone(),
            lambda: closed(db.cursor()).execute(SELECT),
            lambda: closed(db.connect()).commit(),
            lambda: closed(db.connect()).rollback(),
            lambda: closed(db.connect()).close(),
            lambda: db.connect().kill("nonsense"),
            lambda: db.cursor().execute(),
        ]
        bare = [error(call) for call in calls]
        asyncsafe.install("pymysql")
        assert [error(call) for call in calls] == bare
        connection = closed(db.connect())
        for call in (connection.rollback, connection.close):
            with pytest.raises(pymysql.err.Error):
                on_loop(call)

    def test_warnings_name_the_same_lines(self, db: Server) -> None:
        settings = dict(db.settings)
        settings["db"] = settings.pop("database")

        def warned() -> list[tuple[str, int]]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                connection = pymysql.connect(**settings)
                connection.set_charset("latin1")
                connection.close()
            return [(w.filename, w.lineno) for w in caught if w.category is DeprecationWarning]

        told = []
        for _ in range(2):
            told.append(warned())
            asyncsafe.install("pymysql")
        assert len(told[0]) == 2
        assert told[1] == told[0]

    def test_statement_without_parameters(self, db: Server, guarded: None) -> None:
        violation = refused(partial(db.cursor().execute, INSERT, (4, "a secret")))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()

    def test_as_mysqldb(self, mysql: dict[str, Any], tmp_path: Path) -> None:
        """Under the name of MySQLdb it is guarded as what it is."""
        code = f"""
import asyncio, asyncsafe, pymysql
asyncsafe.install()
pymysql.install_as_MySQLdb()
import MySQLdb
connection = MySQLdb.connect(**{mysql!r})
async def main():
    for call in (lambda: MySQLdb.connect(**{mysql!r}), connection.commit):
        try:
            call()
        except asyncsafe.SynchronousOnlyOperation as error:
            print(error.violation.operation)
asyncio.run(main())
connection.close()
"""
        told = python(code, tmp_path).stdout.split()
        assert told == ["pymysql.connect", "pymysql.Connection.commit"]


@pytest.mark.usefixtures("guarded")
class TestExempt:
    def test_connection_and_its_cursors(self, db: Server, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection.cursor(SS) as cursor:
                cursor.execute(INSERT, (4, "four"))
                cursor.execute(SELECT)
                rows = list(cursor)
            connection.commit()
            connection.close()
            return rows

        assert on_loop(use) == [*ROWS, (4, "four")]
        assert heard == []
        refused(partial(other.cursor().execute, SELECT))


@pytest.mark.usefixtures("guarded")
class TestSharing:
    """One connection, two tasks."""

    @pytest.mark.parametrize("cursor", [pymysql.cursors.Cursor, SS])
    def test_transaction_of_another_task(self, db: Server, cursor: Any) -> None:
        connection = db.connect(cursorclass=cursor)

        @database_sync_to_async
        def insert(n: int) -> None:
            connection.cursor().execute(INSERT, (n, ""))

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


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class TestAsynchronous:
    """What waits without blocking is nobody's violation."""

    @LOOPS
    def test_aiomysql(self, run: Any, db: Server, guarded: None, heard: list[Any]) -> None:
        settings = dict(db.settings)
        settings["db"] = settings.pop("database")

        async def coroutine() -> Any:
            async with (
                aiomysql.create_pool(minsize=1, maxsize=2, **settings) as pool,
                pool.acquire() as connection,
            ):
                async with connection.cursor() as cursor:
                    await cursor.execute(INSERT, (4, "four"))
                    await connection.rollback()
                async with connection.cursor(aiomysql.SSCursor) as cursor:
                    await cursor.execute(SELECT)
                    first = await cursor.fetchone()
                    rows = [first, *[row async for row in cursor]]
                async with connection.cursor(aiomysql.SSCursor) as cursor:
                    await cursor.execute(SELECT)
                await connection.commit()
                await connection.ping()
            return rows

        assert run(coroutine()) == ROWS
        assert heard == []

    @LOOPS
    def test_asyncmy(self, run: Any, db: Server, guarded: None, heard: list[Any]) -> None:
        async def coroutine() -> Any:
            connection = await asyncmy.connect(**db.settings)
            async with connection.cursor() as cursor:
                await cursor.execute(INSERT, (4, "four"))
                await connection.rollback()
                await cursor.execute(SELECT)
                rows = await cursor.fetchall()
            await connection.ensure_closed()
            return list(rows)

        assert run(coroutine()) == ROWS
        assert heard == []
