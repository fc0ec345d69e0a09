"""pyodbc, through unixODBC and PostgreSQL's driver: what may talk to the server is refused on the loop."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import uvloop

import asyncsafe
from asyncsafe.installation import integration

from ..conftest import missing
from ..running import in_thread, on_loop, refused

# Without unixODBC, there is no library for it to load.
pyodbc = pytest.importorskip("pyodbc", exc_type=ImportError)
aioodbc = pytest.importorskip("aioodbc", exc_type=ImportError)
connect_by_name = pyodbc.connect

DRIVER = "PostgreSQL Unicode"
ROWS = [(1, "one"), (2, "two"), (3, "three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (?, ?)"
NAME = "asyncsafe-test-odbc"


class Server:
    """Three letters, connections to them, and what the server knows of those connections."""

    def __init__(self, dsn: str) -> None:
        found = psycopg2.extensions.parse_dsn(dsn)
        self.dsn = (
            f"Driver={DRIVER};Servername={found.get('host', 'localhost')};"
            f"Port={found.get('port', 5432)};Database={found.get('dbname', '')};"
            f"Uid={found['user']};Pwd={found.get('password', '')};"
            # Sent with each connection: the driver has no option for it.
            f"ConnSettings=set+application_name+to+'{NAME}'"
        )
        self.opened: list[Any] = []
        self.watch = psycopg2.connect(dsn)
        self.watch.autocommit = True

    def ask(self, query: str, *parameters: Any) -> list[Any]:
        """From a connection of its own."""
        with self.watch.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def fill(self) -> None:
        self.ask("delete from letters")
        self.ask("insert into letters values (1, 'one'), (2, 'two'), (3, 'three')")

    def rows(self) -> list[Any]:
        return self.ask(SELECT)

    def seen(self) -> Any:
        """The rows, and of each backend what it did last and when: a query shows, whatever it is."""
        query = (
            "select pid, state, query, xact_start, query_start, state_change, backend_xid::text"
            " from pg_stat_activity where application_name = %s order by pid"
        )
        return self.rows(), self.ask(query, NAME)

    def backends(self) -> int:
        query = "select count(*) from pg_stat_activity where application_name = %s"
        count: int = self.ask(query, NAME)[0][0]
        return count

    def connect(self, **kwargs: Any) -> Any:
        self.opened.append(pyodbc.connect(self.dsn, **kwargs))
        return self.opened[-1]

    def writing(self) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect()
        connection.execute(INSERT, 4, "four")
        return connection

    def selected(self) -> Any:
        return self.connect().execute(SELECT)

    def written(self) -> Any:
        return self.connect().execute(INSERT, 4, "four")

    def empty(self) -> None:
        for connection in self.opened:
            with suppress(pyodbc.ProgrammingError):  # closed already
                connection.close()
        self.opened.clear()
        assert any(self.backends() == 0 for _ in range(5000))


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[Server]:
    if DRIVER not in pyodbc.drivers():
        missing("PostgreSQL's ODBC driver", "apt-get install odbc-postgresql")
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


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, pyodbc.Connection):
        result.close()
        return type(result)
    if isinstance(result, pyodbc.Cursor):
        return [tuple(row) for row in result.fetchall()] if result.description else result.rowcount
    if isinstance(result, pyodbc.Row):
        return tuple(result)
    if isinstance(result, list):
        return [tell(each) for each in result]
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


def of_catalog(name: str, *arguments: Any, **kwargs: Any) -> tuple[str, str, Any]:
    def make(db: Server) -> Callable[[], Any]:
        return partial(getattr(db.connect().cursor(), name), *arguments, **kwargs)

    return name, f"Cursor.{name}", make


ISOLATION = ("SQL_ATTR_TXN_ISOLATION", "SQL_TXN_SERIALIZABLE")

# hooks.md, section 2: what does I/O, with this driver or with another. Each makes the call to be
# tried, with all that comes before it; the second column is what the message names.
IO = params(
    ("connect", "connect", lambda db: partial(pyodbc.connect, db.dsn)),
    ("imported by name", "connect", lambda db: partial(connect_by_name, db.dsn)),
    ("drivers", "drivers", lambda db: pyodbc.drivers),
    ("dataSources", "dataSources", lambda db: pyodbc.dataSources),
    (
        "Connection.execute",
        "Connection.execute",
        lambda db: partial(db.connect().execute, SELECT),
    ),
    ("execute", "Cursor.execute", lambda db: partial(db.connect().cursor().execute, SELECT)),
    (
        "a write",
        "Cursor.execute",
        lambda db: partial(db.connect().cursor().execute, INSERT, 4, "four"),
    ),
    (
        "executemany",
        "Cursor.executemany",
        lambda db: partial(db.connect().cursor().executemany, INSERT, [(4, ""), (5, "")]),
    ),
    (
        "map",
        "Cursor.execute",
        lambda db: (lambda c: lambda: [tell(r) for r in map(c.execute, [SELECT])])(
            db.connect().cursor()
        ),
    ),
    of_catalog("tables", "letters"),
    of_catalog("tablePrivileges", "letters"),
    of_catalog("columns", "letters"),
    of_catalog("statistics", "letters"),
    of_catalog("rowIdColumns", "letters"),
    of_catalog("rowVerColumns", "letters"),
    of_catalog("primaryKeys", "letters"),
    of_catalog("foreignKeys", table="letters"),
    of_catalog("getTypeInfo"),
    of_catalog("procedures", "no such"),
    of_catalog("procedureColumns", "no such"),
    ("fetchone", "Cursor.fetchone", lambda db: db.selected().fetchone),
    ("fetchval", "Cursor.fetchval", lambda db: db.selected().fetchval),
    ("fetchmany", "Cursor.fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
    ("fetchall", "Cursor.fetchall", lambda db: db.selected().fetchall),
    ("next", "Cursor.__next__", lambda db: partial(next, db.selected())),
    ("for", "Cursor.__next__", lambda db: partial(first_of_loop, db.selected())),
    ("list", "Cursor.__next__", lambda db: partial(list, db.selected())),
    ("skip", "Cursor.skip", lambda db: partial(db.selected().skip, 1)),
    ("nextset", "Cursor.nextset", lambda db: db.selected().nextset),
    ("commit", "Connection.commit", lambda db: db.writing().commit),
    ("rollback", "Connection.rollback", lambda db: db.writing().rollback),
    ("with", "Connection.__exit__", lambda db: partial(leave, db.writing())),
    ("close", "Connection.close", lambda db: db.connect().close),
    ("close in a transaction", "Connection.close", lambda db: db.writing().close),
    ("Cursor.commit", "Cursor.commit", lambda db: db.written().commit),
    ("Cursor.rollback", "Cursor.rollback", lambda db: db.written().rollback),
    ("with a cursor", "Cursor.__exit__", lambda db: partial(leave, db.written())),
    # A statement with parameters is prepared on the server.
    ("Cursor.close", "Cursor.close", lambda db: db.written().close),
    ("Cursor.cancel", "Cursor.cancel", lambda db: db.selected().cancel),
    (
        "autocommit = True",
        "Connection.autocommit",
        lambda db: partial(setattr, db.writing(), "autocommit", True),
    ),
    (
        "set_attr",
        "Connection.set_attr",
        lambda db: partial(db.connect().set_attr, *(getattr(pyodbc, name) for name in ISOLATION)),
    ),
    (
        "getinfo",
        "Connection.getinfo",
        lambda db: partial(db.connect().getinfo, pyodbc.SQL_MAX_IDENTIFIER_LEN),
    ),
)


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("pyodbc")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"pyodbc.{operation}"
        assert db.seen() == before
        # Nothing was consumed, nothing is locked: off the loop it does what it always did.
        assert tell(call()) == bare

    def test_untouched_in_a_thread(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        rows = db.rows()
        db.empty()
        db.fill()
        asyncsafe.install("pyodbc")
        call = make(db)
        assert in_thread(lambda: tell(call())) == bare
        assert not asyncsafe.violations
        assert db.rows() == rows

    def test_recorded_on_the_loop(self, operation: str, make: Any, db: Server) -> None:
        bare = tell(make(db)())
        db.empty()
        db.fill()
        asyncsafe.install("pyodbc")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert f"pyodbc.{operation}" in {s.violation.operation for s in asyncsafe.violations}


# hooks.md, section 2: what does no I/O.
NO_IO = params(
    ("cursor", lambda db: db.connect().cursor),
    ("with, entered", lambda db: db.connect().__enter__),
    ("with a cursor, entered", lambda db: db.selected().__enter__),
    ("closed", lambda db: partial(getattr, db.connect(), "closed")),
    ("autocommit", lambda db: partial(getattr, db.connect(), "autocommit")),
    ("autocommit, as it is", lambda db: partial(setattr, db.writing(), "autocommit", False)),
    ("maxwrite", lambda db: partial(setattr, db.connect(), "maxwrite", 1000)),
    ("searchescape", lambda db: partial(getattr, db.connect(), "searchescape")),
    ("setencoding", lambda db: partial(db.connect().setencoding, "utf-8")),
    ("setdecoding", lambda db: partial(db.connect().setdecoding, pyodbc.SQL_CHAR, "utf-8")),
    ("add_output_converter", lambda db: partial(db.connect().add_output_converter, -1, str)),
    ("commit under autocommit", lambda db: db.connect(autocommit=True).commit),
    ("rollback under autocommit", lambda db: db.connect(autocommit=True).rollback),
    ("with under autocommit", lambda db: partial(leave, db.connect(autocommit=True))),
    ("Cursor.close, unused", lambda db: db.connect().cursor().close),
    ("iter", lambda db: partial(iter, db.selected())),
    ("description", lambda db: partial(getattr, db.selected(), "description")),
    ("rowcount", lambda db: partial(getattr, db.selected(), "rowcount")),
    ("connection", lambda db: partial(getattr, db.selected(), "connection")),
    ("arraysize", lambda db: partial(setattr, db.selected(), "arraysize", 3)),
    ("fast_executemany", lambda db: partial(setattr, db.selected(), "fast_executemany", True)),
    ("setinputsizes", lambda db: partial(db.connect().cursor().setinputsizes, [])),
    ("setoutputsize", lambda db: partial(db.connect().cursor().setoutputsize, 1)),
)


@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Server, guarded: None, heard: list[Any]) -> None:
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    assert db.seen() == before


@pytest.mark.parametrize(
    ("class_name", "operation"),
    [
        pytest.param(class_name, operation, id=f"{class_name}.{operation.name}")
        for class_name, operations in integration("pyodbc").operations["pyodbc"].items()
        for operation in operations
    ],
)
def test_every_operation_exists(class_name: str, operation: Any) -> None:
    """What the installed pyodbc lacks is passed over, which must not happen unseen."""
    owner: Any = importlib.import_module("pyodbc")
    owner = getattr(owner, class_name) if class_name else owner
    assert operation.name in vars(owner)
    asyncsafe.install("pyodbc")
    guarded = vars(owner)[operation.name]
    assert hasattr(guarded.fset if operation.setter else guarded, "__async_unsafe__")


def test_public_calls_are_guarded_or_known(guarded: None) -> None:
    """A method that a new version brings is looked at before it is passed over."""
    known = {
        pyodbc.Connection: {
            *("cursor", "setencoding", "setdecoding", "add_output_converter"),
            *("get_output_converter", "remove_output_converter", "clear_output_converters"),
        },
        pyodbc.Cursor: {"setinputsizes", "setoutputsize"},
    }
    for owner, names in known.items():
        bare = {
            name
            for name, value in vars(owner).items()
            if callable(value)
            and not name.startswith("_")
            and not hasattr(value, "__async_unsafe__")
        }
        assert bare == names, owner


@pytest.mark.usefixtures("guarded")
class TestTransactions:
    def test_refused_commit_leaves_it_open(self, db: Server) -> None:
        connection = db.writing()
        assert refused(lambda: leave(connection)).operation == "pyodbc.Connection.__exit__"
        assert db.rows() == ROWS
        connection.commit()
        assert db.rows() == [*ROWS, (4, "four")]

    def test_the_protocol_stays_in_step(self, db: Server) -> None:
        cursor = db.selected()
        for call in (cursor.fetchone, cursor.fetchall, partial(next, cursor), cursor.close):
            refused(call)
        refused(partial(cursor.execute, "select 111"))
        assert [tuple(row) for row in cursor.fetchall()] == ROWS
        assert cursor.execute("select 222").fetchval() == 222

    @pytest.mark.parametrize("of", ["connection", "cursor"])
    def test_application_error_arrives(self, db: Server, heard: list[Any], of: str) -> None:
        cursor = db.written()
        thing = cursor if of == "cursor" else cursor.connection

        def use() -> None:
            with thing:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's") as caught:
            on_loop(use)
        assert caught.value.__context__ is None
        assert [(v.operation.rpartition(".")[2], v.outcome) for v in heard] == [
            ("__exit__", "allowed")
        ]
        cursor.connection.rollback()
        assert db.rows() == ROWS

    @pytest.mark.parametrize("name", ["rollback", "close"])
    def test_an_errors_way_out(self, db: Server, heard: list[Any], name: str) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                connection.commit()
            finally:
                getattr(connection, name)()

        assert refused(use).operation == "pyodbc.Connection.commit"
        assert [v.outcome for v in heard] == ["raised", "allowed"]
        assert db.rows() == ROWS


class TestAsBefore:
    def test_made_before(self, db: Server) -> None:
        connection, cursor = db.writing(), db.selected()
        asyncsafe.install("pyodbc")
        before = db.seen()
        for call in (
            partial(connection.execute, SELECT),
            connection.commit,
            connection.rollback,
            connection.close,
            cursor.fetchone,
            partial(list, cursor),
            cursor.close,
        ):
            refused(call)
        assert db.seen() == before
        assert [tuple(row) for row in cursor] == ROWS

    def test_uninstalled_again(self, db: Server) -> None:
        kinds = (pyodbc.Connection, pyodbc.Cursor)
        bare = {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds}
        functions = dict(vars(pyodbc))
        for _ in range(3):
            asyncsafe.install("pyodbc")
            assert connect_by_name is pyodbc.connect
            assert connect_by_name is not functions["connect"]
            asyncsafe.uninstall()
            assert {k: (dict(vars(k)), k.__flags__ & 1 << 8) for k in kinds} == bare
            assert dict(vars(pyodbc)) == functions
            assert connect_by_name is functions["connect"]

    def test_kept_is_inert(self, db: Server) -> None:
        asyncsafe.install("pyodbc")
        kept_connect, kept = pyodbc.connect, db.selected().fetchone
        asyncsafe.uninstall()
        assert tuple(on_loop(kept)) == ROWS[0]
        on_loop(kept_connect, db.dsn).close()
        assert not asyncsafe.violations

    def test_errors_of_its_own(self, db: Server) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: pyodbc.connect("Driver=no such"),
            lambda: pyodbc.connect(),
            lambda: db.connect().cursor().execute("nonsense"),
            lambda: db.connect().cursor().execute(),
            lambda: db.connect().cursor().fetchone(),
            lambda: closed(db.connect().cursor()).execute(SELECT),
            lambda: closed(db.connect().cursor()).fetchone(),
            lambda: closed(db.connect().cursor()).close(),
            lambda: closed(db.connect()).commit(),
            lambda: closed(db.connect()).rollback(),
            lambda: closed(db.connect()).close(),
        ]
        bare = [error(call) for call in calls]
        asyncsafe.install("pyodbc")
        assert [error(call) for call in calls] == bare
        # Nothing of what is closed does I/O: it has the same errors on the loop.
        things = (closed(db.connect()), closed(db.connect().cursor()))
        for thing, *names in ((things[0], "commit", "close"), (things[1], "fetchone", "close")):
            for name in names:
                with pytest.raises(pyodbc.ProgrammingError, match="closed"):
                    on_loop(getattr(thing, name))

    def test_statement_without_parameters(self, db: Server, guarded: None) -> None:
        violation = refused(partial(db.connect().execute, INSERT, 4, "a secret"))
        assert violation.statement == INSERT
        assert "a secret" not in violation.message()

    def test_exempt(self, db: Server, guarded: None, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)

        def use() -> Any:
            with connection.cursor() as cursor:
                cursor.execute(INSERT, 4, "four")
                return cursor.execute(SELECT).fetchall()

        assert len(on_loop(use)) == 4
        assert heard == []
        refused(partial(other.execute, SELECT))

    def test_dropped_on_the_loop(
        self, db: Server, guarded: None, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.selected()]
        db.opened.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert (unraisable, heard) == ([], [])
        assert any(db.backends() == 0 for _ in range(5000))
        assert db.rows() == ROWS


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_aioodbc(db: Server, guarded: None, heard: list[Any], run: Any) -> None:
    """It calls pyodbc in threads; what it calls on the loop, nobody can await."""

    async def main() -> Any:
        async with aioodbc.connect(dsn=db.dsn) as connection, connection.cursor() as cursor:
            await cursor.execute(INSERT, 4, "four")
            connection.autocommit = True
            await cursor.execute(SELECT)
            rows = await cursor.fetchall()
            await cursor.columns(table="letters")
            await connection.commit()
            async with aioodbc.create_pool(dsn=db.dsn) as pool, pool.acquire() as another:
                await another.execute(SELECT)
        return [tuple(row) for row in rows]

    assert run(main()) == [*ROWS, (4, "four")]
    assert heard == []
    assert not asyncsafe.violations
