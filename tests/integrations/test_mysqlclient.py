"""mysqlclient: each call that talks to the server is refused on the loop, and nothing else is touched."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import asyncsafe
from asyncsafe.installation import integration

from ..fix_mysql import INSERT, ROWS, SELECT, Letters, eventually
from ..running import in_thread, on_loop, refused

# It comes without wheels for Linux: building it takes the headers of libmysqlclient or libmariadb.
MySQLdb = pytest.importorskip("MySQLdb")
_mysql = pytest.importorskip("MySQLdb._mysql")
cursors = pytest.importorskip("MySQLdb.cursors")

TWO = "select 1; select 2"
SS = cursors.SSCursor
Connection = importlib.import_module("MySQLdb.connections").Connection


class Server(Letters):
    def unread(self, query: str = SELECT, cursor: Any = SS, **kwargs: Any) -> Any:
        """An SSCursor: its rows are still to be read."""
        unread = self.keep(self.connect(**kwargs).cursor(cursor))
        unread.execute(query)
        return unread

    def several(self, cursor: Any = cursors.Cursor) -> Any:
        """A cursor with the first of two results."""
        return self.unread(TWO, cursor)

    def sent_query(self, query: bytes = b"select 1") -> Any:
        """A connection with a result that is still to be read."""
        connection = self.connect()
        connection.query(query)
        return connection

    def half_sent(self) -> Any:
        connection = self.connect()
        connection.send_query(b"select 1")
        return connection


@pytest.fixture(scope="module")
def server(mysql: dict[str, Any]) -> Iterator[Server]:
    server = Server(mysql, MySQLdb.connect)
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
    if isinstance(result, _mysql.connection):
        result.close()
        return type(result)
    if isinstance(result, _mysql.result):
        return result.fetch_row(0)
    if str(result).startswith("Uptime"):
        return "statistics"
    return result


def leave(manager: Any) -> None:
    with manager:
        pass


def first_of_loop(iterable: Any) -> Any:
    for item in iterable:
        return item
    return None


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


def account(db: Server) -> tuple[str, str, str]:
    return db.settings["user"], db.settings["password"], db.settings["database"]


def raw(db: Server) -> Any:
    """A connection of the C module's."""
    db.opened.append(_mysql.connect(**db.settings))
    return db.opened[-1]


# hooks.md, section 2: what does I/O. Each makes the call to be tried, with all that comes before
# it; the second column is what the message names.
IO = params(
    ("connect", "connect", lambda db: partial(MySQLdb.connect, **db.settings)),
    ("Connect", "connect", lambda db: partial(MySQLdb.Connect, **db.settings)),
    ("Connection()", "connect", lambda db: partial(Connection, **db.settings)),
    ("_mysql.connect", "_mysql.connect", lambda db: partial(_mysql.connect, **db.settings)),
    ("_mysql.connection()", "connect", lambda db: partial(_mysql.connection, **db.settings)),
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
    ("ping", "Connection.ping", lambda db: db.connect().ping),
    ("query", "Connection.query", lambda db: partial(db.connect().query, SELECT)),
    (
        "send_query",
        "Connection.send_query",
        lambda db: partial(db.connect().send_query, b"select 1"),
    ),
    (
        "read_query_result",
        "Connection.read_query_result",
        lambda db: db.half_sent().read_query_result,
    ),
    ("store_result", "Connection.store_result", lambda db: db.sent_query().store_result),
    ("discard_result", "Connection.discard_result", lambda db: db.sent_query().discard_result),
    (
        "next_result",
        "Connection.next_result",
        lambda db: (lambda c: (c.store_result(), c.next_result)[1])(db.sent_query(TWO.encode())),
    ),
    (
        "select_db",
        "Connection.select_db",
        lambda db: partial(db.connect().select_db, db.settings["database"]),
    ),
    (
        "set_character_set",
        "Connection.set_character_set",
        lambda db: partial(db.connect().set_character_set, "latin1"),
    ),
    ("set_sql_mode", "Connection.set_sql_mode", lambda db: partial(db.connect().set_sql_mode, "")),
    ("autocommit", "Connection.autocommit", lambda db: partial(db.connect().autocommit, True)),
    ("show_warnings", "Connection.show_warnings", lambda db: db.connect().show_warnings),
    (
        "set_server_option",
        "Connection.set_server_option",
        lambda db: partial(db.connect().set_server_option, 1),
    ),
    (
        "change_user",
        "Connection.change_user",
        lambda db: partial(db.connect().change_user, *account(db)),
    ),
    ("stat", "Connection.stat", lambda db: db.connect().stat),
    ("dump_debug_info", "Connection.dump_debug_info", lambda db: db.connect().dump_debug_info),
    ("kill", "Connection.kill", lambda db: partial(db.connect().kill, db.connect().thread_id())),
    ("close", "Connection.close", lambda db: db.connect().close),
    ("close in a transaction", "Connection.close", lambda db: db.writing().close),
    ("with", "Connection.close", lambda db: partial(leave, db.connect())),
    ("_mysql's commit", "Connection.commit", lambda db: raw(db).commit),
    ("_mysql's query", "Connection.query", lambda db: partial(raw(db).query, b"set @a = 1")),
    ("_mysql's autocommit", "Connection.autocommit", lambda db: partial(raw(db).autocommit, True)),
    (
        "_mysql's set_character_set",
        "Connection.set_character_set",
        lambda db: partial(raw(db).set_character_set, "latin1"),
    ),
    (
        "SSCursor.execute",
        "Cursor.execute",
        lambda db: partial(db.cursor(cursorclass=SS).execute, SELECT),
    ),
    ("SSCursor.fetchone", "SSCursor.fetchone", lambda db: db.unread().fetchone),
    ("SSCursor.fetchmany", "SSCursor.fetchmany", lambda db: partial(db.unread().fetchmany, 2)),
    ("SSCursor.fetchall", "SSCursor.fetchall", lambda db: db.unread().fetchall),
    ("SSCursor next", "SSCursor.fetchone", lambda db: partial(next, db.unread())),
    ("SSCursor for", "SSCursor.fetchone", lambda db: partial(first_of_loop, db.unread())),
    ("SSCursor list", "SSCursor.fetchone", lambda db: partial(list, db.unread())),
    (
        "SSDictCursor",
        "SSCursor.fetchone",
        lambda db: db.unread(cursor=cursors.SSDictCursor).fetchone,
    ),
    ("SSCursor.close", "Cursor.close", lambda db: db.unread().close),
    ("with SSCursor", "Cursor.close", lambda db: partial(leave, db.unread())),
    ("SSCursor.nextset", "Cursor.nextset", lambda db: db.several(SS).nextset),
)

#: What sends nothing, and reads what the server has sent.
READS = {
    *("nextset", "close with results", "with, with results", "next_result"),
    *("read_query_result", "store_result", "discard_result"),
    *(p.id for p in IO if str(p.id).removeprefix("with ").startswith("SS")),
} - {"SSCursor.execute"}


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Server, request: pytest.FixtureRequest
    ) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("mysqlclient")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"MySQLdb.{operation}"
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
        asyncsafe.install("mysqlclient")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("mysqlclient")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert f"MySQLdb.{operation}" in {s.violation.operation for s in asyncsafe.violations}


def closed(thing: Any) -> Any:
    thing.close()
    return thing


# hooks.md, section 2: what does no I/O.
NO_IO = params(
    ("cursor", lambda db: db.connect().cursor),
    ("cursor, of a class", lambda db: partial(db.connect().cursor, SS)),
    ("fetchone", lambda db: db.selected().fetchone),
    ("fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
    ("fetchall", lambda db: db.selected().fetchall),
    ("for", lambda db: partial(first_of_loop, db.selected())),
    ("list", lambda db: partial(list, db.selected())),
    ("scroll", lambda db: partial(db.selected().scroll, 1)),
    ("DictCursor", lambda db: db.selected(cursorclass=cursors.DictCursor).fetchall),
    ("nextset, none", lambda db: db.selected().nextset),
    ("cursor.close", lambda db: db.selected().close),
    ("cursor closed again", lambda db: closed(db.selected()).close),
    ("with cursor", lambda db: partial(leave, db.selected())),
    ("executemany of nothing", lambda db: partial(db.cursor().executemany, INSERT, [])),
    ("mogrify", lambda db: partial(db.cursor().mogrify, INSERT, (4, ""))),
    ("SSCursor closed again", lambda db: closed(db.unread()).close),
    ("SSCursor.close, unused", lambda db: db.keep(db.connect().cursor(SS)).close),
    ("autocommit, as it is", lambda db: partial(db.connect().autocommit, False)),
    ("next_result, none", lambda db: db.connect().next_result),
    ("store_result, of nothing", lambda db: db.sent_query(b"set @a = 1").store_result),
    ("use_result", lambda db: db.sent_query().use_result),
    ("more_results", lambda db: db.connect().more_results),
    ("get_autocommit", lambda db: db.connect().get_autocommit),
    ("literal", lambda db: partial(db.connect().literal, "it's")),
    ("escape_string", lambda db: partial(db.connect().escape_string, b"it's")),
    ("thread_id", lambda db: db.connect().thread_id),
    ("fileno", lambda db: db.connect().fileno),
    ("character_set_name", lambda db: db.connect().character_set_name),
    ("get_character_set_info", lambda db: db.connect().get_character_set_info),
    ("get_host_info", lambda db: db.connect().get_host_info),
    ("get_server_info", lambda db: db.connect().get_server_info),
    ("insert_id", lambda db: db.writing().insert_id),
    ("affected_rows", lambda db: db.writing().affected_rows),
    ("warning_count", lambda db: db.writing().warning_count),
    ("info", lambda db: db.writing().info),
    ("error", lambda db: db.writing().error),
    ("field_count", lambda db: db.writing().field_count),
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
        for module, classes in integration("mysqlclient").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed mysqlclient lacks is passed over, which must not happen unseen."""
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    assert operation.name in vars(owner)
    asyncsafe.install("mysqlclient")
    assert hasattr(vars(owner)[operation.name], "__async_unsafe__")


def test_public_calls_are_guarded_or_known(guarded: None) -> None:
    """A method that a new version brings is looked at before it is passed over."""
    known = {
        _mysql.connection: {
            *("affected_rows", "character_set_name", "errno", "error", "escape", "escape_string"),
            *("field_count", "fileno", "get_autocommit", "get_character_set_info", "info"),
            *("get_host_info", "get_proto_info", "get_server_info", "insert_id", "more_results"),
            *("sqlstate", "string_literal", "thread_id", "use_result", "warning_count"),
        },
        # query() calls the C type's before it changes anything.
        Connection: {"cursor", "literal", "query"},
        cursors.BaseCursor: {"mogrify", "setinputsizes", "setoutputsizes"},
        cursors.CursorUseResultMixIn: set(),
        cursors.CursorStoreResultMixIn: {"fetchall", "fetchmany", "fetchone", "scroll"},
    }
    for owner, names in known.items():
        bare = {
            name
            for name, value in vars(owner).items()
            if callable(value)
            and not name.startswith("_")
            and not isinstance(value, type)
            and not hasattr(value, "__async_unsafe__")
        }
        assert bare == names, owner


@pytest.mark.usefixtures("guarded")
class TestWith:
    def test_refused_close_leaves_the_transaction_open(self, db: Server) -> None:
        connection = db.writing()
        assert refused(lambda: leave(connection)).operation == "MySQLdb.Connection.close"
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
            ("MySQLdb.Connection.close", "allowed")
        ]

    def test_rollback_in_except(self, db: Server, heard: list[asyncsafe.Violation]) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                connection.commit()
            except asyncsafe.SynchronousOnlyOperation:
                connection.rollback()
                raise

        assert refused(use).operation == "MySQLdb.Connection.commit"
        assert [v.outcome for v in heard] == ["raised", "allowed"]
        assert db.rows() == ROWS


@pytest.mark.usefixtures("guarded")
class TestGarbage:
    def test_dropped_on_the_loop(
        self, db: Server, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C drains and closes what is dropped: nothing raises, and the server is told."""
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.unread()]
        db.opened.clear()
        db.kept.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert eventually(lambda: db.backends() == 0)
        assert (unraisable, heard) == ([], [])
        assert db.rows() == ROWS

    def test_unread_cursor_dropped_on_the_loop(self, db: Server, heard: list[Any]) -> None:
        connection = db.connect()
        holder = [connection.cursor(SS)]
        holder[0].execute(SELECT)
        on_loop(lambda: (holder.clear(), gc.collect()))
        assert heard == []
        cursor = connection.cursor()
        cursor.execute("select 111")
        assert cursor.fetchall() == ((111,),)


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
        assert list(cursor.fetchall()) == ROWS[1:]
        cursor.execute("select 222")
        assert cursor.fetchall() == ((222,),)

    def test_results_after_refusals(self, db: Server) -> None:
        cursor = db.several()
        assert on_loop(cursor.fetchall) == ((1,),)
        refused(cursor.nextset)
        refused(cursor.close)
        assert cursor.nextset()
        assert on_loop(cursor.fetchall) == ((2,),)
        assert on_loop(cursor.nextset) is None

    def test_rows_of_a_cursor_whose_execute_is_refused(self, db: Server) -> None:
        """execute() forgets the last result before it sends anything."""
        cursor = db.selected()
        refused(partial(cursor.execute, "select 1"))
        assert list(on_loop(cursor.fetchall)) == ROWS


class Overriding(Connection):  # type: ignore[misc, valid-type]
    """A user's subclass, with methods of its own that call ours."""

    def commit(self) -> None:
        super().commit()


class TestClasses:
    def test_subclass(self, db: Server, guarded: None) -> None:
        refused(partial(Overriding, **db.settings))
        connection = Overriding(**db.settings)
        db.opened.append(connection)
        assert refused(connection.commit).operation == "MySQLdb.Connection.commit"
        connection.commit()

    def test_made_before(self, db: Server) -> None:
        connection, cursor, unread = db.writing(), db.selected(), db.unread()
        asyncsafe.install("mysqlclient")
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
        kinds = (_mysql.connection, Connection, cursors.BaseCursor, cursors.CursorUseResultMixIn)
        bare = {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds}
        asyncsafe.install("mysqlclient")
        connection, unread = db.writing(), db.unread()
        kept = unread.fetchone
        asyncsafe.uninstall()
        assert {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds} == bare
        assert on_loop(kept) == ROWS[0]
        on_loop(connection.commit)
        assert not asyncsafe.violations

    def test_types(self, db: Server, guarded: None) -> None:
        connection = db.connect()
        assert type(connection) is Connection
        assert isinstance(connection, _mysql.connection)
        assert type(connection.cursor()) is cursors.Cursor

    def test_errors_of_its_own(self, db: Server) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: MySQLdb.connect(nonsense=1),
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
        asyncsafe.install("mysqlclient")
        assert [error(call) for call in calls] == bare

    def test_statement_without_parameters(self, db: Server, guarded: None) -> None:
        violation = refused(partial(db.cursor().execute, INSERT, (4, "a secret")))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()


@pytest.mark.usefixtures("guarded")
def test_refused_shutdown(db: Server) -> None:
    assert refused(db.connect().shutdown).operation == "MySQLdb.Connection.shutdown"
    assert db.rows() == ROWS


@pytest.mark.usefixtures("guarded")
def test_exempt(db: Server, heard: list[Any]) -> None:
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
