"""duckdb: what runs a query or comes to a file is refused on the loop, and nothing else is touched.

The tests pass with duckdb 1.5 and with 2: what only one of them has is skipped in the other.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, refused

duckdb = pytest.importorskip("duckdb")
Connection, Relation = duckdb.DuckDBPyConnection, duckdb.DuckDBPyRelation
IS_1 = duckdb.__version__.startswith("1.")
connect_by_name = duckdb.connect

ROWS = [(1, "one"), (2, "two"), (3, "three")]
SELECT = "select id, body from letters order by id"
INSERT = "insert into letters values (4, 'four')"

by_default = duckdb.values([7])  # a variable of this module's, which queries find by its name


class Database:
    """A file with three letters, connections to it, and what is seen of it from outside."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.path = str(directory / "letters.db")
        self.csv = str(directory / "letters.csv")
        Path(self.csv).write_text("id,body\n1,one\n")
        self.opened: list[Any] = []
        connection = self.connect()
        connection.execute("create table letters (id integer primary key, body text)")
        connection.executemany("insert into letters values (?, ?)", ROWS)
        connection.execute("checkpoint")

    def connect(self) -> Any:
        self.opened.append(duckdb.connect(self.path))
        return self.opened[-1]

    def writing(self) -> Any:
        """A connection in a transaction with a fourth row that nobody else sees."""
        connection = self.connect()
        connection.begin()
        connection.execute(INSERT)
        return connection

    def selected(self) -> Any:
        return self.connect().execute(SELECT)

    def relation(self, query: str = SELECT) -> Any:
        return self.connect().sql(query)

    def to(self, name: str) -> str:
        return str(self.directory / name)

    def appender(self) -> Any:
        appender = self.connect().appender("letters")
        appender.append_row(4, "four")
        return appender

    def rows(self) -> list[Any]:
        with closing(duckdb.connect(self.path)) as connection:
            rows: list[Any] = connection.execute(SELECT).fetchall()
            return rows

    def seen(self) -> Any:
        """The rows from a second connection, and the database's files byte for byte."""
        files = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        return self.rows(), files

    def close(self) -> None:
        for connection in self.opened:
            with suppress(duckdb.Error):
                connection.close()
        self.opened.clear()
        with suppress(duckdb.Error):
            duckdb.fetchall()  # what is left on the process's own connection


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
    if isinstance(result, Connection):
        return type(result)
    if isinstance(result, Relation):
        return result.columns
    if type(result).__name__ == "generator":
        return list(result)
    return result


def leave(manager: Any) -> None:
    with manager:
        pass


def closed(thing: Any) -> Any:
    thing.close()
    return thing


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


def only(owner: Any, name: str, *rest: Any, version: str) -> Any:
    """A case for the version that has this method."""
    mark = pytest.mark.skipif(not hasattr(owner, name), reason=f"of duckdb {version}")
    return pytest.param(*rest, id=name, marks=mark)


# hooks.md, section 2: what does I/O, or computes. Each makes the call to be tried, with all that
# comes before it; the second column is what the message names.
C, R = "DuckDBPyConnection", "DuckDBPyRelation"
IO = [
    *params(
        ("connect", "connect", lambda db: partial(duckdb.connect, db.path)),
        ("imported by name", "connect", lambda db: partial(connect_by_name, db.path)),
        ("execute", f"{C}.execute", lambda db: partial(db.connect().execute, SELECT)),
        ("a write", f"{C}.execute", lambda db: partial(db.connect().execute, INSERT)),
        (
            "executemany",
            f"{C}.executemany",
            lambda db: partial(
                db.connect().executemany, "insert into letters values (?, '')", [[4], [5]]
            ),
        ),
        ("sql, a write", f"{C}.sql", lambda db: partial(db.connect().sql, INSERT)),
        ("query, a write", f"{C}.query", lambda db: partial(db.connect().query, INSERT)),
        (
            "sql, several",
            f"{C}.sql",
            lambda db: partial(db.connect().sql, f"{INSERT}; select 1 as one"),
        ),
        ("fetchone", f"{C}.fetchone", lambda db: db.selected().fetchone),
        ("fetchmany", f"{C}.fetchmany", lambda db: partial(db.selected().fetchmany, 2)),
        ("fetchall", f"{C}.fetchall", lambda db: db.selected().fetchall),
        ("commit", f"{C}.commit", lambda db: db.writing().commit),
        ("checkpoint", f"{C}.checkpoint", lambda db: db.connect().checkpoint),
        ("close", f"{C}.close", lambda db: db.connect().close),
        ("with", f"{C}.__exit__", lambda db: partial(leave, db.connect())),
        ("read_csv", f"{C}.read_csv", lambda db: partial(db.connect().read_csv, db.csv)),
        (
            "table_function",
            f"{C}.table_function",
            lambda db: partial(db.connect().table_function, "read_csv", [db.csv]),
        ),
        (
            "load_extension",
            f"{C}.load_extension",
            lambda db: partial(db.connect().load_extension, "parquet"),
        ),
        ("relation.fetchall", f"{R}.fetchall", lambda db: db.relation().fetchall),
        ("len", f"{R}.__len__", lambda db: partial(len, db.relation())),
        ("shape", f"{R}.shape", lambda db: partial(getattr, db.relation(), "shape")),
        ("repr", f"{R}.__repr__", lambda db: partial(repr, db.relation())),
        ("str", f"{R}.__str__", lambda db: partial(str, db.relation())),
        ("show", f"{R}.show", lambda db: db.relation().show),
        ("explain", f"{R}.explain", lambda db: db.relation().explain),
        ("filtered", f"{R}.fetchall", lambda db: db.relation().filter("id > 1").fetchall),
        ("create", f"{R}.create", lambda db: partial(db.relation().create, "copied")),
        ("to_table", f"{R}.to_table", lambda db: partial(db.relation().to_table, "copied")),
        ("create_view", f"{R}.create_view", lambda db: partial(db.relation().create_view, "v")),
        ("to_view", f"{R}.to_view", lambda db: partial(db.relation().to_view, "v")),
        (
            "insert_into",
            f"{R}.insert_into",
            lambda db: partial(db.relation("select 4, 'four'").insert_into, "letters"),
        ),
        (
            "insert",
            f"{R}.insert",
            lambda db: partial(db.connect().table("letters").insert, [4, "four"]),
        ),
        (
            "update",
            f"{R}.update",
            lambda db: partial(
                db.connect().table("letters").update, {"body": duckdb.ConstantExpression("a")}
            ),
        ),
        ("write_csv", f"{R}.write_csv", lambda db: partial(db.relation().write_csv, db.to("a"))),
        (
            "write_parquet",
            f"{R}.write_parquet",
            lambda db: partial(db.relation().write_parquet, db.to("a")),
        ),
        ("duckdb.execute", "execute", lambda db: partial(duckdb.execute, "select 1")),
        ("duckdb.sql", "sql", lambda db: partial(duckdb.sql, "set threads = 2")),
        ("duckdb.read_csv", "read_csv", lambda db: partial(duckdb.read_csv, db.csv)),
        (
            "duckdb.fetchall",
            "fetchall",
            lambda db: (duckdb.execute("select 1"), duckdb.fetchall)[1],
        ),
        ("duckdb.sql().fetchall", f"{R}.fetchall", lambda db: duckdb.sql("select 1").fetchall),
    ),
    only(Connection, "complete", f"{C}.complete", lambda db: db.selected().complete, version="2"),
    only(
        Connection,
        "complete",
        "complete",
        lambda db: (duckdb.execute("select 1"), duckdb.complete)[1],
        version="2",
    ),
    only(Relation, "materialize", f"{R}.materialize", lambda db: db.relation().materialize, version="2"),
    only(Relation, "to_dicts", f"{R}.to_dicts", lambda db: db.relation().to_dicts, version="2"),
    only(Relation, "preview", f"{R}.preview", lambda db: db.relation().preview, version="2"),
    only(
        Relation,
        "iter_rows",
        f"{R}.iter_rows",
        lambda db: (lambda relation: lambda: list(relation.iter_rows()))(db.relation()),
        version="2",
    ),
    only(
        Connection,
        "appender",
        "Appender.flush",
        lambda db: db.appender().flush,
        version="2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        bare = tell(make(another())())
        asyncsafe.install("duckdb")
        call = make(db)
        before = db.seen()
        assert refused(call).operation == f"duckdb.{operation}"
        assert db.seen() == before
        # Nothing was consumed, nothing is locked: off the loop it does what it always did.
        assert tell(call()) == bare

    def test_untouched_in_a_thread(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        reference = another()
        bare = tell(make(reference)())
        asyncsafe.install("duckdb")
        calls = [make(db)]
        assert in_thread(lambda: tell(calls[0]())) == bare
        assert not asyncsafe.violations
        calls.clear()  # a relation keeps its database open
        for each in (db, reference):
            each.close()
        assert db.rows() == reference.rows()

    def test_recorded_on_the_loop(
        self, operation: str, make: Any, db: Database, another: Any
    ) -> None:
        bare = tell(make(another())())
        asyncsafe.install("duckdb")
        call = make(db)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        assert f"duckdb.{operation}" in {s.violation.operation for s in asyncsafe.violations}


# hooks.md, section 2: what runs nothing.
NO_IO = params(
    ("cursor", lambda db: db.connect().cursor),
    ("duplicate", lambda db: db.connect().duplicate),
    ("begin", lambda db: db.connect().begin),
    ("rollback", lambda db: db.writing().rollback),
    ("interrupt", lambda db: db.connect().interrupt),
    ("sql", lambda db: partial(db.connect().sql, SELECT)),
    ("query", lambda db: partial(db.connect().query, SELECT)),
    ("duckdb.sql", lambda db: partial(duckdb.sql, "select 1")),
    ("table", lambda db: partial(db.connect().table, "letters")),
    ("values", lambda db: partial(db.connect().values, [1, 2])),
    ("table_function", lambda db: partial(db.connect().table_function, "range", [3])),
    ("filter", lambda db: partial(db.relation().filter, "id > 1")),
    ("limit", lambda db: partial(db.relation().limit, 1)),
    ("columns", lambda db: partial(getattr, db.relation(), "columns")),
    ("types", lambda db: partial(getattr, db.relation(), "types")),
    ("sql_query", lambda db: db.relation().sql_query),
    ("extract_statements", lambda db: partial(db.connect().extract_statements, SELECT)),
    ("get_table_names", lambda db: partial(db.connect().get_table_names, SELECT)),
    ("description", lambda db: partial(getattr, db.selected(), "description")),
    ("with, entered", lambda db: db.connect().__enter__),
    ("closed again", lambda db: closed(db.connect()).close),
)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, db: Database, heard: list[Any]) -> None:
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    assert db.seen() == before


#: What the one version has, and the other hasn't.
OF_1 = {
    *("DuckDBPyConnection.pl", "DuckDBPyConnection.arrow", "DuckDBPyConnection.fetch_arrow_table"),
    *("DuckDBPyConnection.fetch_record_batch", "DuckDBPyRelation.fetchone"),
    *("DuckDBPyRelation.fetchmany", "DuckDBPyRelation.fetch_df_chunk", "DuckDBPyRelation.execute"),
    *(".pl", ".fetch_arrow_table", ".fetch_record_batch"),
}
OF_2 = {
    *("DuckDBPyConnection._submit", "DuckDBPyRelation.to_dicts", "DuckDBPyRelation.iter_rows"),
    *("DuckDBPyRelation.materialize", "DuckDBPyRelation._repr_mimebundle_"),
    *("DuckDBPyRelation.preview", "DuckDBPyConnection.complete", ".complete"),
    *("Appender.append_row", "Appender.append_rows", "Appender.flush", "Appender.__exit__"),
}


@pytest.mark.parametrize(
    ("class_name", "operation"),
    [
        pytest.param(class_name, operation, id=f"{class_name}.{operation.name}")
        for class_name, operations in integration("duckdb").operations["duckdb"].items()
        for operation in operations
    ],
)
def test_every_operation_exists(class_name: str, operation: Any) -> None:
    """What the installed duckdb lacks is passed over, which must not happen unseen."""
    exists = f"{class_name}.{operation.name}" not in (OF_2 if IS_1 else OF_1)
    owner: Any = importlib.import_module("duckdb")
    owner = getattr(owner, class_name, None) if class_name else owner
    assert (owner is not None and operation.name in vars(owner)) is exists
    asyncsafe.install("duckdb")
    guarded = vars(owner).get(operation.name) if owner is not None else None
    guarded = guarded.fget if operation.getter and guarded else guarded
    assert hasattr(guarded, "__async_unsafe__") is exists


class TestVariables:
    """A query reads variables of the frame that calls it."""

    @pytest.mark.parametrize("mode", ["raise", "record"])
    @pytest.mark.parametrize("run", [lambda call: call(), on_loop], ids=["off", "on"])
    def test_of_the_caller(self, db: Database, guarded: None, run: Any, mode: Any) -> None:
        connection = db.connect()
        asyncsafe.configure(mode=mode)

        def use() -> Any:
            mine = connection.values([42])  # noqa: F841
            with asyncsafe.allow("to see what it finds"):
                connection.execute("insert into letters select col0, 'found' from mine")
                return [
                    connection.execute("from mine").fetchall(),
                    connection.sql("from mine").fetchall(),
                    connection.query("from mine").fetchall(),
                    duckdb.execute("from by_default").fetchall(),
                    duckdb.sql("from by_default").fetchall(),
                ]

        assert run(use) == [[(42,)]] * 3 + [[(7,)]] * 2
        assert connection.execute("select max(id) from letters").fetchone() == (42,)

    def test_they_are_found_through_functions_of_duckdbs_own(
        self, db: Database, guarded: None
    ) -> None:
        connection = db.connect()
        mine = connection.values([42])  # noqa: F841
        assert connection.sql("from mine").filter("col0 > 1").fetchall() == [(42,)]
        found = connection.sql("from mine").query("one", "from mine, one").fetchall()
        assert found == [(42, 42)]

    def test_they_are_the_callers_alone(self, db: Database, guarded: None) -> None:
        """Nor those of our own functions, whose names are easily met: `args`, `call`, `guard`."""
        connection = db.connect()
        asyncsafe.configure(mode="record")

        def use(name: str) -> None:
            with pytest.raises(duckdb.CatalogException, match=name):
                connection.execute(f"from {name}")

        def call() -> None:
            mine = connection.values([42])  # noqa: F841
            for name in ("mine", "args", "kwargs", "call", "guard", "query", "self"):
                use(name)

        call()
        on_loop(call)

    def test_currentframe_is_everybody_elses_still(self, db: Database, guarded: None) -> None:
        """What duckdb asks for its caller's variables is ours while it is guarded."""

        def frame() -> Any:
            return inspect.currentframe()

        assert inspect.currentframe.__module__.startswith("asyncsafe.")
        assert inspect.currentframe() is sys._getframe()
        found = asyncsafe.async_unsafe(frame)()
        assert found.f_code is frame.__code__
        asyncsafe.uninstall()
        assert inspect.currentframe.__module__ == "inspect"

    def test_they_are_let_go(self, db: Database, guarded: None) -> None:
        """Nothing but the function itself holds what its variables hold."""
        connection = db.connect()

        class Big:
            pass

        def use() -> int:
            big = Big()
            connection.execute("select 1").fetchall()
            before = sys.getrefcount(big)
            connection.execute("select 1").fetchall()
            return sys.getrefcount(big) - before

        assert use() == 0

    def test_unknown_ones(self, db: Database, guarded: None) -> None:
        with pytest.raises(duckdb.CatalogException, match="no_such"):
            db.connect().execute("from no_such")


@pytest.mark.usefixtures("guarded")
class TestTransactions:
    def test_refused_commit_leaves_it_open(self, db: Database) -> None:
        connection = db.writing()
        refused(connection.commit)
        assert db.rows() == ROWS
        connection.commit()
        assert db.rows() == [*ROWS, (4, "four")]

    def test_application_error_arrives(self, db: Database, heard: list[Any]) -> None:
        connection = db.writing()

        def use() -> None:
            with connection:
                raise LookupError("the application's")

        with pytest.raises(LookupError, match="the application's") as caught:
            on_loop(use)
        assert caught.value.__context__ is None
        assert [(v.operation, v.outcome) for v in heard] == [
            ("duckdb.DuckDBPyConnection.__exit__", "allowed")
        ]
        assert db.rows() == ROWS

    def test_an_errors_way_out(self, db: Database, heard: list[Any]) -> None:
        connection = db.writing()

        def use() -> None:
            try:
                connection.commit()
            finally:
                connection.close()

        assert refused(use).operation == "duckdb.DuckDBPyConnection.commit"
        assert [v.outcome for v in heard] == ["raised", "allowed"]
        assert db.rows() == ROWS

    def test_results_after_refusals(self, db: Database) -> None:
        cursor = db.selected()
        for call in (cursor.fetchone, cursor.fetchall, partial(cursor.execute, "select 1")):
            refused(call)
        assert cursor.fetchall() == ROWS


class TestAsBefore:
    def test_made_before(self, db: Database) -> None:
        connection, cursor, relation = db.writing(), db.selected(), db.relation()
        asyncsafe.install("duckdb")
        for call in (
            partial(connection.execute, SELECT),
            connection.commit,
            connection.close,
            cursor.fetchone,
            relation.fetchall,
            partial(repr, relation),
        ):
            refused(call)
        assert relation.fetchall() == cursor.fetchall() == ROWS

    def test_uninstalled_again(self, db: Database) -> None:
        kinds = [Connection, Relation]
        bare = {k: dict(vars(k)) for k in kinds}
        functions = dict(vars(duckdb))
        for _ in range(3):
            asyncsafe.install("duckdb")
            assert connect_by_name is duckdb.connect
            kept = db.selected().fetchone
            asyncsafe.uninstall()
            assert {k: dict(vars(k)) for k in kinds} == bare
            assert dict(vars(duckdb)) == functions
            assert connect_by_name is functions["connect"]
            assert on_loop(kept) == ROWS[0]
        assert repr(db.relation())
        assert not asyncsafe.violations

    def test_errors_of_its_own(self, db: Database) -> None:
        def error(call: Callable[[], Any]) -> tuple[type, str]:
            with pytest.raises(Exception) as caught:
                call()
            return type(caught.value), str(caught.value)

        calls: list[Callable[[], Any]] = [
            lambda: duckdb.connect("/no/such/directory/file"),
            lambda: db.connect().execute("nonsense"),
            lambda: db.connect().sql("nonsense"),
            lambda: closed(db.connect()).execute(SELECT),
            lambda: closed(db.connect()).commit(),
            lambda: db.connect().fetchall(),
        ]
        bare = [error(call) for call in calls]
        asyncsafe.install("duckdb")
        assert [error(call) for call in calls] == bare
        with pytest.raises(duckdb.ConnectionException, match="closed"):
            on_loop(closed(db.connect()).execute, SELECT)
        with pytest.raises(duckdb.ParserException):
            on_loop(db.connect().sql, "nonsense")

    def test_statement_without_parameters(self, db: Database, guarded: None) -> None:
        query = "insert into letters values (?, ?)"
        violation = refused(partial(db.connect().execute, query, [4, "a secret"]))
        assert violation.statement == query
        assert "a secret" not in violation.message()

    def test_statement_of_a_relation(self, db: Database, guarded: None) -> None:
        statement = refused(db.relation("select 42 as answer").fetchall).statement
        assert statement is not None
        assert "42" in statement

    @pytest.mark.skipif(IS_1, reason="of duckdb 2")
    def test_what_has_no_entry_of_its_own(self, db: Database, guarded: None) -> None:
        """Whatever a relation runs passes one method, below all that is named here."""
        grouped = db.connect().table("letters").group_by("id").agg("count(*)")
        asyncsafe.uninstall()
        bare = dict(vars(Relation))["fetchall"]
        asyncsafe.install("duckdb")
        violation = refused(lambda: bare(grouped))
        assert violation.operation == "duckdb.DuckDBPyConnection._submit"
        assert "DuckDBPyRelation.fetchall() was called" in violation.message()

    def test_exempt(self, db: Database, guarded: None, heard: list[Any]) -> None:
        connection, other = db.connect(), db.connect()
        asyncsafe.exempt(connection)
        assert on_loop(lambda: connection.execute(SELECT).fetchall()) == ROWS
        assert heard == []
        refused(partial(other.execute, SELECT))

    def test_dropped_on_the_loop(
        self, db: Database, guarded: None, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        things = [db.writing(), db.selected(), db.relation()]
        db.opened.clear()
        on_loop(lambda: (things.clear(), gc.collect()))
        assert (unraisable, heard) == ([], [])
        assert db.rows() == ROWS
