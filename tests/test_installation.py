"""install() and uninstall(): which library is guarded, when, and that nothing is left of it."""

from __future__ import annotations

import _sqlite3
import asyncio
import importlib
import importlib.metadata
import importlib.util
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg2._psycopg
import psycopg2.extensions
import psycopg2.pool
import pytest

import asyncsafe
from asyncsafe import Integration, Operation, imports, patching, thread_locals
from asyncsafe.installation import LIBRARIES, OPTIONAL, integration
from asyncsafe.violation import Told

Refused = asyncsafe.SynchronousOnlyOperation


def on_loop(call: Callable[[], Any]) -> Any:
    async def coroutine() -> Any:
        return call()

    return asyncio.run(coroutine())


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        on_loop(call)
    except Refused:
        return True
    return False


def guarded_owners() -> list[Any]:
    """Every class and module that has something guarded."""
    owners = []
    for name in LIBRARIES:
        one = integration(name)
        for module_name in {**one.operations, **one.replaced}:
            try:
                module = importlib.import_module(module_name)
            except Exception:  # Django's backends for drivers that aren't installed
                continue
            classes = {**one.operations.get(module_name, {}), **one.replaced.get(module_name, {})}
            owners += [
                getattr(module, cls) if cls else module
                for cls in classes
                if not cls or hasattr(module, cls)  # another version's
            ]
    return owners


def state() -> Any:
    """Of each, every attribute by identity, and the flags but for the one that comes and goes."""
    return [
        (
            owner,
            {name: id(value) for name, value in vars(owner).items()},
            owner.__flags__ & ~patching._VALID_VERSION if isinstance(owner, type) else None,
        )
        for owner in guarded_owners()
    ]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        yield connection
        asyncsafe.uninstall()


def run_python(tmp_path: Path, code: str, *options: str) -> str:
    """What a program of its own prints. Nothing but it may speak."""
    program = tmp_path / "program.py"
    program.write_text(PRELUDE + code)
    result = subprocess.run(
        [sys.executable, *options, str(program)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


PRELUDE = """\
import sys
import asyncsafe

def is_refused(call):
    import asyncio
    async def coroutine():
        call()
    try:
        asyncio.run(coroutine())
    except asyncsafe.SynchronousOnlyOperation:
        return True
    return False

"""


class TestInstall:
    def test_everything(self, connection: sqlite3.Connection) -> None:
        asyncsafe.install()
        assert is_refused(partial(connection.execute, "select 1"))
        assert is_refused(partial(psycopg2.connect, "host=/nonexistent"))

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_one(self, library: str, connection: sqlite3.Connection) -> None:
        asyncsafe.install(library)
        assert is_refused(partial(connection.execute, "select 1")) is (library == "sqlite3")
        with pytest.raises(Refused if library == "psycopg2" else psycopg2.OperationalError):
            on_loop(partial(psycopg2.connect, "host=/nonexistent"))

    def test_several(self) -> None:
        asyncsafe.install("sqlite3", "psycopg2")
        assert [integration(name).installed for name in ("sqlite3", "psycopg2")] == [True, True]

    def test_idempotent(self, connection: sqlite3.Connection) -> None:
        before = state()
        asyncsafe.install()
        once = state()
        asyncsafe.install()
        asyncsafe.install("sqlite3")
        assert state() == once
        assert is_refused(partial(connection.execute, "select 1"))
        asyncsafe.uninstall()
        assert state() == before
        asyncsafe.uninstall()
        assert state() == before

    @pytest.mark.parametrize("call", [asyncsafe.install, asyncsafe.uninstall])
    def test_unknown_library(self, call: Any, connection: sqlite3.Connection) -> None:
        before = state()
        with pytest.raises(ValueError, match=r"nonsense.*psycopg2.*sqlite3"):
            call("sqlite3", "nonsense")
        assert state() == before

    def test_bad_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from asyncsafe import policy

        monkeypatch.setattr(policy, "_found", None)
        monkeypatch.setenv("ASYNCSAFE_MODE", "nonsense")
        before = state()
        with pytest.raises(asyncsafe.ConfigurationError, match=r"ASYNCSAFE_MODE.*raise"):
            asyncsafe.install()
        assert state() == before

    def test_every_library_has_a_module(self) -> None:
        directory = Path(asyncsafe.__file__).parent / "integrations"
        modules = {path.stem for path in directory.glob("[!_]*.py")}
        packages = {"django", "mysql.connector", "peewee", "pony", "sqlalchemy"}
        assert modules | packages == {*LIBRARIES, *thread_locals.LIBRARIES}
        names = (*LIBRARIES, *OPTIONAL)
        assert [integration(name).name for name in names] == list(names)


class TestNames:
    """A module's function, by the names that other modules imported it by."""

    @pytest.fixture
    def driver(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A driver whose entry is a function, and an application that has imported it by name."""
        driver, application = ModuleType("driver"), ModuleType("application")
        vars(driver).update(connect=lambda: "connected")
        vars(application).update(connect=driver.connect, other=closing)
        for module in (driver, application):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return driver

    def test_replaced_and_put_back(self, driver: Any) -> None:
        application: Any = sys.modules["application"]
        original = driver.connect
        one = Integration("driver", {"driver": {"": [Operation("connect")]}})
        for _ in range(2):
            asyncsafe.install(one)
            assert application.connect is driver.connect is not original
            assert is_refused(application.connect)
            assert application.connect() == "connected"
            kept = application.connect
            asyncsafe.uninstall(one)
            assert application.connect is driver.connect is original
            assert on_loop(kept) == "connected"

    def test_one_that_was_replaced_since_stays(self, driver: Any) -> None:
        application: Any = sys.modules["application"]
        one = Integration("driver", {"driver": {"": [Operation("connect")]}})
        asyncsafe.install(one)
        application.connect = mine = object()
        asyncsafe.uninstall(one)
        assert application.connect is mine

    def test_lazy_modules_are_not_executed(
        self, driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "lazy.py").write_text("raise SystemError('executed')")
        spec = importlib.util.spec_from_file_location("lazy", tmp_path / "lazy.py")
        assert spec is not None
        assert spec.loader is not None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "lazy", module)
        spec.loader.exec_module(module)
        one = Integration("driver", {"driver": {"": [Operation("connect")]}})
        asyncsafe.install(one)
        asyncsafe.uninstall(one)

    def test_getters_and_static_methods(self, driver: Any) -> None:
        class Connection:
            @property
            def status(self) -> str:
                """What the server says."""
                return "fine"

            @staticmethod
            def ping(host: str) -> str:
                return host

        driver.Connection = Connection
        bare = dict(vars(Connection))
        operations = [Operation("status", getter=True), Operation("ping")]
        one = Integration("driver", {"driver": {"Connection": operations}})
        asyncsafe.install(one)
        connection = Connection()
        assert is_refused(lambda: connection.status)
        assert is_refused(partial(connection.ping, "here"))
        assert is_refused(partial(Connection.ping, "here"))
        assert (connection.status, connection.ping("here")) == ("fine", "here")
        assert Connection.status.__doc__ == "What the server says."
        asyncsafe.uninstall(one)
        assert dict(vars(Connection)) == bare


class TestDocumented:
    """What an integration tells the documentation."""

    @pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "django"])
    def test_tested_with_what_is_installed(self, library: str) -> None:
        """A version that is installed here passes these tests: it or a later one is named."""

        def number(version: str) -> list[int]:
            return [int(part) for part in re.findall(r"\d+", version)]

        found = integration(library)
        assert found.tested == tuple(sorted(found.tested, key=number))
        versions = []
        for distribution in found.distributions:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions.append(importlib.metadata.version(distribution))
        if versions:
            assert number(versions[0]) >= number(found.tested[-1])

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_phrases(self, library: str) -> None:
        """Each is a part of a sentence, with its reason."""
        found = integration(library)
        for what, why in {**found.exempt, **found.not_guarded}.items():
            assert what
            assert why
            assert not f"{what}{why}".endswith(".")


class TestUninstall:
    def test_types_are_as_they_were(self) -> None:
        before = state()
        for _ in range(3):
            asyncsafe.install()
            assert [s for s, b in zip(state(), before, strict=True) if s == b] == []
            asyncsafe.uninstall()
            assert state() == before
        assert (patching._patched, patching._unlocked) == ({}, {})
        modules = {module for name in LIBRARIES for module in integration(name).operations}
        assert modules.isdisjoint(imports._watched)

    def test_one_of_several(self, connection: sqlite3.Connection) -> None:
        before = state()
        asyncsafe.install()
        asyncsafe.uninstall("sqlite3")
        on_loop(partial(connection.execute, "select 1"))
        assert is_refused(partial(psycopg2.connect, "host=/nonexistent"))
        asyncsafe.uninstall(*(name for name in LIBRARIES if name != "sqlite3"))
        assert state() == before

    def test_immutable_again(self) -> None:
        asyncsafe.install()
        asyncsafe.uninstall()
        for cls in (_sqlite3.Cursor, psycopg2._psycopg.cursor):
            with pytest.raises(TypeError, match="immutable"):
                cls.execute = None  # type: ignore[method-assign,assignment]

    def test_kept_method_is_inert(self, connection: sqlite3.Connection) -> None:
        asyncsafe.install()
        kept = connection.execute
        assert is_refused(partial(kept, "select 1"))
        asyncsafe.uninstall()
        assert on_loop(lambda: kept("select 1").fetchall()) == [(1,)]
        asyncsafe.install()
        assert is_refused(partial(kept, "select 1"))

    def test_the_same_wrappers_again(self) -> None:
        """One that was once installed is kept: traces of CPython's JIT may point to it."""
        asyncsafe.install()
        first = state()
        asyncsafe.uninstall()
        asyncsafe.install()
        assert state() == first


class TestSomebodyElse:
    """Another tool patches the same attribute while ours is there."""

    @pytest.fixture
    def patched(self) -> Iterator[dict[str, Any]]:
        """Ours, theirs over it, and how often theirs was called."""
        before = state()
        original = vars(sqlite3.Connection)["execute"]
        asyncsafe.install("sqlite3")
        ours = vars(sqlite3.Connection)["execute"]
        calls: list[Any] = []

        def theirs(self: Any, *args: Any) -> Any:
            calls.append(args)
            return ours(self, *args)

        sqlite3.Connection.execute = theirs  # type: ignore[method-assign,assignment]
        yield {"ours": ours, "theirs": theirs, "calls": calls, "original": original}
        asyncsafe.uninstall()
        patching.Patch(sqlite3.Connection, "execute", None, original).undo()
        assert state() == before

    def test_theirs_stays_and_ours_is_inert(
        self, patched: Any, connection: sqlite3.Connection
    ) -> None:
        assert is_refused(partial(connection.execute, "select 1"))
        asyncsafe.uninstall()
        assert vars(sqlite3.Connection)["execute"] is patched["theirs"]
        assert on_loop(lambda: connection.execute("select 1").fetchall()) == [(1,)]
        assert patched["calls"] == [("select 1",), ("select 1",)]
        on_loop(connection.commit)

    def test_installed_again_over_theirs(
        self, patched: Any, connection: sqlite3.Connection, heard: list[Any]
    ) -> None:
        asyncsafe.uninstall()
        asyncsafe.install("sqlite3")
        assert is_refused(partial(connection.execute, "select 1"))
        assert patched["calls"] == []
        assert len(heard) == 1
        assert connection.execute("select 1").fetchall() == [(1,)]
        assert patched["calls"] == [("select 1",)]
        asyncsafe.uninstall()
        assert vars(sqlite3.Connection)["execute"] is patched["theirs"]

    def test_they_put_ours_back_after_uninstall(
        self, patched: Any, connection: sqlite3.Connection
    ) -> None:
        asyncsafe.uninstall()
        asyncsafe.install("sqlite3")
        sqlite3.Connection.execute = patched["ours"]  # type: ignore[method-assign]
        asyncsafe.uninstall()
        assert on_loop(lambda: connection.execute("select 1").fetchall()) == [(1,)]
        asyncsafe.install("sqlite3")
        assert is_refused(partial(connection.execute, "select 1"))
        asyncsafe.uninstall()
        assert vars(sqlite3.Connection)["execute"] is patched["original"]

    def test_they_were_there_first(self, connection: sqlite3.Connection) -> None:
        before = vars(psycopg2.pool.ThreadedConnectionPool)["putconn"]

        def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
            return before(self, *args, **kwargs)

        psycopg2.pool.ThreadedConnectionPool.putconn = theirs
        try:
            asyncsafe.install()
            asyncsafe.uninstall()
            assert vars(psycopg2.pool.ThreadedConnectionPool)["putconn"] is theirs
        finally:
            psycopg2.pool.ThreadedConnectionPool.putconn = before


class TestImports:
    def test_nothing_is_imported_by_us(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
asyncsafe.install()
names = {"sqlite3", "_sqlite3", "psycopg2", "asyncio", "ctypes", "asgiref", "warnings.nothing"}
print(sorted(names & set(sys.modules)))
asyncsafe.uninstall()
print(sorted(names & set(sys.modules)))
""",
        )
        assert told == "[]\n[]\n"

    def test_imported_later(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
asyncsafe.install()
import sqlite3, psycopg2, psycopg2.extensions, psycopg2.pool
from sqlite3 import connect
from psycopg2.extensions import encrypt_password
connection = connect(":memory:")
print(is_refused(lambda: connect(":memory:")))
print(is_refused(lambda: connection.execute("select 1")))
print(is_refused(lambda: psycopg2.connect("host=/nonexistent")))
print(is_refused(lambda: psycopg2.pool.SimpleConnectionPool(1, 1, "host=/nonexistent")))
wrapped = psycopg2.extensions.encrypt_password, psycopg2._psycopg.encrypt_password
print([hasattr(one, "__async_unsafe__") for one in wrapped])
asyncsafe.uninstall()
print(is_refused(lambda: connection.execute("select 1")))
wrapped = psycopg2.extensions.encrypt_password, psycopg2._psycopg.encrypt_password
print([type(one).__name__ for one in wrapped])
connection.close()
""",
        )
        assert told.split("\n") == [
            *["True"] * 4,
            "[True, True]",
            "False",
            "['builtin_function_or_method', 'builtin_function_or_method']",
            "",
        ]

    def test_imported_after_uninstall(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
asyncsafe.install()
asyncsafe.uninstall()
import sqlite3
with sqlite3.connect(":memory:") as connection:
    print(is_refused(lambda: connection.execute("select 1")))
connection.close()
""",
        )
        assert told == "False\n"

    def test_imported_in_a_coroutine(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
asyncsafe.install()
def use():
    import sqlite3
    sqlite3.connect(":memory:")
print(is_refused(use))
""",
        )
        assert told == "True\n"

    def test_reload(self, tmp_path: Path) -> None:
        """The new module has new classes; those of the old one stay guarded."""
        told = run_python(
            tmp_path,
            """
import sqlite3
before = sqlite3.Connection
vars_before = dict(vars(before))
asyncsafe.install()
old = sqlite3.connect(":memory:")
for name in [name for name in sys.modules if name.partition(".")[0] in ("sqlite3", "_sqlite3")]:
    del sys.modules[name]
import sqlite3
print(sqlite3.Connection is before)
new = sqlite3.connect(":memory:")
print(type(new) is sqlite3.Connection)
print(is_refused(lambda: sqlite3.connect(":memory:")))
print(is_refused(lambda: new.execute("select 1")))
print(is_refused(lambda: old.execute("select 1")))
asyncsafe.uninstall()
print(is_refused(lambda: new.execute("select 1")))
print(is_refused(lambda: old.execute("select 1")))
print({n: id(v) for n, v in vars_before.items()} == {n: id(v) for n, v in vars(before).items()})
print([bool(cls.__flags__ & 1 << 8) for cls in (before, sqlite3.Connection)])
old.close()
new.close()
""",
        )
        assert told.split("\n") == [
            "False",
            "True",
            *["True"] * 3,
            "False",
            "False",
            "True",
            "[True, True]",
            "",
        ]

    def test_importlib_reload(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
import importlib, psycopg2.pool
asyncsafe.install()
before = psycopg2.pool.SimpleConnectionPool
importlib.reload(psycopg2.pool)
importlib.reload(psycopg2.pool)
after = psycopg2.pool.SimpleConnectionPool
print(before is after, [hasattr(c.putconn, "__async_unsafe__") for c in (before, after)])
asyncsafe.uninstall()
print([hasattr(c.putconn, "__async_unsafe__") for c in (before, after)])
""",
        )
        assert told == "False [True, True]\n[False, False]\n"

    def test_loader_and_spec_are_the_modules_own(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
asyncsafe.install()
import importlib.util, inspect, psycopg2.pool, sqlite3
for module in (psycopg2.pool, sys.modules["_sqlite3"]):
    print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
print("class SimpleConnectionPool" in inspect.getsource(psycopg2.pool))
print(importlib.util.find_spec("psycopg2.pool").name)
""",
        )
        lines = told.splitlines()
        assert lines[0] == "SourceFileLoader SourceFileLoader"
        assert lines[1] in {
            "ExtensionFileLoader ExtensionFileLoader",
            "BuiltinImporter BuiltinImporter",
            "type type",
        }
        assert lines[2:] == ["True", "psycopg2.pool"]

    def test_library_that_is_missing(self, tmp_path: Path) -> None:
        """That psycopg2 isn't there is for the import to say, in its own words."""
        told = run_python(
            tmp_path,
            """
import importlib.abc
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "psycopg2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
asyncsafe.install()
try:
    import psycopg2
except ImportError as error:
    print(repr(error))
import sqlite3
print(is_refused(lambda: sqlite3.connect(":memory:")))
""",
        )
        assert told == "ModuleNotFoundError(\"No module named 'psycopg2'\")\nTrue\n"

    def test_a_mistake_of_ours_does_not_break_the_import(self, tmp_path: Path) -> None:
        told = run_python(
            tmp_path,
            """
import logging
logged = []
class Handler(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())
logging.getLogger("asyncsafe").addHandler(Handler())
from asyncsafe import patching
patching._TYPE_SIZE = 0
asyncsafe.install()
import sqlite3
with sqlite3.connect(":memory:") as connection:
    print(connection.execute("select 1").fetchall())
connection.close()
print(logged)
asyncsafe.uninstall()
print(bool(sqlite3.Connection.__flags__ & 1 << 8))
""",
        )
        assert told.split("\n") == [
            "[(1,)]",
            "['asyncsafe could not follow the import of _sqlite3']",
            "True",
            "",
        ]


class TestOperation:
    """What an integration may say of a call, on a library made for it."""

    @pytest.fixture
    def library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        (tmp_path / "some_driver.py").write_text(
            "def connect(dsn): return dsn\n"
            "class Connection:\n"
            "    def query(self, sql, *, limit=5): 'Documented.'; return sql, limit\n"
            "    def close(self): return 'closed'\n"
            "    other_close = close\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("some_driver", None)
        integrations: list[Integration] = []

        def make(*operations: Operation, **kwargs: Any) -> Any:
            made = Integration("some_driver", {"some_driver": {"Connection": operations}}, **kwargs)
            integrations.append(made)
            made.install()
            return importlib.import_module("some_driver")

        yield make
        for made in integrations:
            made.uninstall()
        sys.modules.pop("some_driver", None)

    def test_name_statement_and_hint(self, library: Any) -> None:
        driver = library(
            Operation(
                "query",
                called="some_driver.ask",
                statement=lambda self, sql, **kwargs: sql,
                hint="Ask in a thread.",
            )
        )
        connection = driver.Connection()
        with pytest.raises(Refused) as caught:
            on_loop(lambda: connection.query("select 1", limit=2))
        violation = caught.value.violation
        assert (violation.operation, violation.library) == ("some_driver.ask", "some_driver")
        assert violation.statement == "select 1"
        assert "Ask in a thread." in violation.message()
        assert connection.query("select 1") == ("select 1", 5)
        assert driver.Connection.query.__doc__ == "Documented."

    def test_describe(self, library: Any) -> None:
        driver = library(
            Operation(
                "query", describe=lambda self, sql, **kwargs: Told(f"{sql} was asked", "await")
            )
        )
        connection = driver.Connection()
        with pytest.raises(Refused) as caught:
            on_loop(lambda: connection.query("select 1"))
        assert (caught.value.violation.subject, caught.value.violation.hint) == (
            "select 1 was asked",
            "await",
        )

    def test_does_block(self, library: Any) -> None:
        asked: list[Any] = []

        def does_block(self: Any, sql: str, **kwargs: Any) -> bool:
            asked.append(sql)
            return sql == "slow"

        driver = library(Operation("query", does_block=does_block))
        connection = driver.Connection()
        connection.query("slow")
        assert asked == []  # only where a loop runs
        assert on_loop(lambda: connection.query("quick")) == ("quick", 5)
        assert is_refused(lambda: connection.query("slow"))
        with pytest.raises(TypeError):
            on_loop(lambda: connection.query())

    def test_both_are_asked(self, library: Any) -> None:
        driver = library(
            Operation("query", does_block=lambda self, sql, **kwargs: sql != "quick"),
            Operation("close"),
            does_block=lambda self, *args, **kwargs: not getattr(self, "safe", False),
        )
        connection, safe = driver.Connection(), driver.Connection()
        safe.safe = True
        assert is_refused(lambda: connection.query("slow"))
        assert not is_refused(lambda: connection.query("quick"))
        assert not is_refused(lambda: safe.query("slow"))
        assert not is_refused(safe.close)
        assert is_refused(connection.close)

    def test_cleans_up(self, library: Any, heard: list[asyncsafe.Violation]) -> None:
        driver = library(Operation("close", cleans_up=True), Operation("query"))
        connection = driver.Connection()
        assert is_refused(connection.close)

        def use() -> None:
            try:
                raise LookupError
            finally:
                connection.close()

        with pytest.raises(LookupError):
            on_loop(use)
        assert [(v.operation, v.outcome) for v in heard] == [
            ("some_driver.Connection.close", "raised"),
            ("some_driver.Connection.close", "allowed"),
        ]

    def test_one_function_by_two_names(self, library: Any) -> None:
        driver = library(Operation("close"), Operation("other_close"))
        connection = driver.Connection()
        assert is_refused(connection.close)
        assert is_refused(connection.other_close)
        assert connection.close() == connection.other_close() == "closed"

    def test_what_the_version_lacks_is_passed_over(self, library: Any) -> None:
        driver = library(Operation("query"), Operation("not_in_this_version"))
        assert not hasattr(driver.Connection, "not_in_this_version")
        assert is_refused(lambda: driver.Connection().query("select 1"))

    def test_trusted(self, library: Any, tmp_path: Path) -> None:
        (tmp_path / "its_async_cousin.py").write_text(
            "async def query(connection): return connection.query('select 1')\n"
        )
        driver = library(Operation("query"), trusted=("its_async_cousin",))
        cousin = importlib.import_module("its_async_cousin")
        try:
            assert asyncio.run(cousin.query(driver.Connection())) == ("select 1", 5)
            assert is_refused(lambda: driver.Connection().query("select 1"))
        finally:
            del sys.modules["its_async_cousin"]

    def test_adapted(self, library: Any) -> None:
        def adapt(original: Any) -> Any:
            def query(self: Any, sql: str) -> Any:
                return ("adapted", original(self, sql))

            return query

        driver = library(Operation("query", adapt=adapt))
        assert driver.Connection().query("select 1") == ("adapted", ("select 1", 5))
        assert is_refused(lambda: driver.Connection().query("select 1"))

    def test_what_it_uses_of_another_is_replaced_with_it(
        self, library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not before it is imported, and once, though it is imported anew."""
        (tmp_path / "its_helper.py").write_text("def caller(): return 'helper'\n")
        helper = importlib.import_module("its_helper")
        original = helper.caller
        made = Integration(
            "some_driver",
            {"some_driver": {"Connection": [Operation("query")]}},
            replaced={"its_helper": {"": {"caller": lambda: "ours"}}},
        )
        try:
            made.install()
            assert helper.caller is original
            driver = importlib.import_module("some_driver")
            assert helper.caller() == "ours"
            importlib.reload(driver)
            assert helper.caller() == "ours"
            assert made.missing() == []
            made.uninstall()
            assert helper.caller is original
            made.install()
            assert helper.caller() == "ours"
        finally:
            made.uninstall()
            del sys.modules["its_helper"]
        assert helper.caller is original

    def test_function_of_the_module(self, library: Any) -> None:
        made = Integration("some_driver", {"some_driver": {"": [Operation("connect")]}})
        driver = library()
        original = driver.connect
        made.install()
        try:
            assert driver.connect("here") == "here"
            assert is_refused(lambda: driver.connect("here"))
        finally:
            made.uninstall()
        assert driver.connect is original
