"""An integration that somebody else writes: given to install(), or brought by a distribution."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import asyncsafe
from asyncsafe import AsyncUnsafeWarning, Integration, Operation, SynchronousOnlyOperation

from .running import python
from .test_cli import command

LIBRARY = """
def connect(): return Client()

class Base:
    def ping(self): return "pong"

class Client(Base):
    def fetch(self, query): return query
    @staticmethod
    def resolve(name): return name
    @classmethod
    def open(cls): return cls()
    @property
    def status(self): return "open"
    async def afetch(self, query): return query
"""

TABLE = """
import asyncsafe, theirlib

integration = asyncsafe.Integration(
    "theirlib",
    {"theirlib": {"Client": [asyncsafe.Operation("fetch", statement=lambda client, query: query)]}},
)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a library, which nobody has imported. Afterwards nobody has."""
    before = set(sys.modules)
    (tmp_path / "theirlib.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    asyncsafe.uninstall()
    for name in set(sys.modules) - before:
        if name.startswith("theirlib"):
            del sys.modules[name]


def bring(
    site: Path,
    name: str = "theirlib",
    value: str = "theirlib_asyncsafe:integration",
    table: str = TABLE,
    distribution: str = "theirlib-asyncsafe",
) -> None:
    """Install a distribution that has an entry point, as pip does it."""
    information = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
    )
    (information / "entry_points.txt").write_text(f"[asyncsafe.integrations]\n{name} = {value}\n")
    (site / f"{value.partition(':')[0]}.py").write_text(table)
    importlib.invalidate_caches()


@pytest.fixture
def library(site: Path) -> ModuleType:
    return importlib.import_module("theirlib")


def on_loop(call: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return call()

    return asyncio.run(main())


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        on_loop(call)
    except SynchronousOnlyOperation:
        return True
    return False


def table(*operations: Operation, name: str = "theirlib") -> Integration:
    return Integration(name, {"theirlib": {"Client": list(operations)}})


# Given to install() ------------------------------------------------------------------------------


def test_an_integration_is_given_to_install(library: Any, heard: list[Any]) -> None:
    asyncsafe.install(table(Operation("fetch", statement=lambda client, query: query)))
    client = library.Client()
    assert is_refused(lambda: client.fetch("SELECT 1"))
    assert heard[0].operation == "theirlib.Client.fetch"
    assert heard[0].statement == "SELECT 1"
    assert heard[0].library == "theirlib"
    asyncsafe.uninstall()
    assert on_loop(lambda: client.fetch("SELECT 1")) == "SELECT 1"


def test_it_is_guarded_when_it_is_imported(site: Path) -> None:
    asyncsafe.install(table(Operation("fetch")))
    assert "theirlib" not in sys.modules
    library = importlib.import_module("theirlib")
    assert is_refused(lambda: library.Client().fetch("x"))


def test_it_is_taken_back_by_itself_or_by_its_name(library: Any) -> None:
    one = table(Operation("fetch"))
    for back in (one, "theirlib"):
        asyncsafe.install(one)
        assert is_refused(lambda: library.Client().fetch("x"))
        asyncsafe.uninstall(back)
        assert not is_refused(lambda: library.Client().fetch("x"))
    with pytest.raises(ValueError, match="no guard for 'theirlib'"):
        asyncsafe.uninstall("theirlib")


def test_another_of_its_name_takes_its_place(library: Any) -> None:
    """A notebook's cell that is run again."""
    asyncsafe.install(table(Operation("fetch")))
    asyncsafe.install(table(Operation("ping"), Operation("open")))
    assert not is_refused(lambda: library.Client().fetch("x"))
    assert is_refused(library.Client.open)


@pytest.mark.parametrize("name", ["sqlite3", "django.mail"])
def test_a_name_of_ours_is_not_given_away(name: str) -> None:
    with pytest.raises(ValueError, match=f"asyncsafe has an integration '{name}' itself"):
        asyncsafe.install(Integration(name, {}))


@pytest.mark.parametrize("what", [None, 3, b"sqlite3", ["sqlite3"], Integration])
def test_what_is_no_library(what: Any) -> None:
    with pytest.raises(TypeError, match="name a library, or give an asyncsafe"):
        asyncsafe.install(what)


# What an operation can be ------------------------------------------------------------------------


def test_static_and_class_methods(library: Any) -> None:
    asyncsafe.install(table(Operation("resolve"), Operation("open")))
    client = library.Client()
    assert is_refused(lambda: client.resolve("x"))
    assert is_refused(lambda: library.Client.resolve("x"))
    assert is_refused(client.open)
    assert (client.resolve("x"), type(client.open())) == ("x", library.Client)
    asyncsafe.uninstall()
    assert type(vars(library.Client)["resolve"]) is staticmethod
    assert on_loop(lambda: client.resolve("x")) == "x"


def test_functions_of_a_module(library: Any) -> None:
    asyncsafe.install(Integration("theirlib", {"theirlib": {"": [Operation("connect")]}}))
    assert is_refused(library.connect)


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        (Operation("status"), "Client.status is a property, and not called"),
        (Operation("fetch", setter=True), "Client.fetch is no attribute to assign to"),
        (Operation("afetch"), "Client.afetch is asynchronous, and blocks nobody"),
    ],
)
def test_an_attribute_that_is_no_operation(operation: Operation, told: str, library: Any) -> None:
    before = dict(vars(library.Client))
    with pytest.raises(asyncsafe.InstallationError, match=told):
        asyncsafe.install(table(Operation("open"), operation))
    assert dict(vars(library.Client)) == before


def test_missing_lists_what_the_library_lacks(library: Any) -> None:
    one = Integration(
        "theirlib",
        {
            "theirlib": {
                "Client": [Operation("fetch"), Operation("ping"), Operation("gone")],
                "Pool": [Operation("get")],
                "": [Operation("connect"), Operation("disconnect")],
            },
            "theirlib_pool": {"Pool": [Operation("get")]},
        },
    )
    assert one.missing() == [
        "theirlib.Client.ping (it is theirlib.Base's: name that class)",
        "theirlib.Client.gone",
        "theirlib.Pool",
        "theirlib.disconnect",
        "theirlib_pool: ModuleNotFoundError: No module named 'theirlib_pool'",
    ]
    # An older version of the library is guarded as far as it goes.
    asyncsafe.install(one)
    assert is_refused(library.connect)


FORM = r"the form is \{module: \{class: \[Operation\(\.\.\.\), \.\.\.\]\}\}"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Integration("", {}), "the first argument is the library's name"),
        (lambda: Integration(None, {}), "the first argument is the library's name"),  # type: ignore[arg-type]
        (lambda: Integration("x", []), r"operations is \[\]; " + FORM),  # type: ignore[arg-type]
        (lambda: Integration("x", {"x": [Operation("a")]}), "operations.'x'. of x is .*" + FORM),  # type: ignore[dict-item]
        (lambda: Integration("x", {"x": {"C": ["a"]}}), "of x has 'a'; " + FORM),  # type: ignore[list-item]
        (lambda: Integration("x", {"x": {"C": "a"}}), "of x has 'a'; " + FORM),  # type: ignore[dict-item]
        (lambda: Integration("x", {"x": {"C": Operation("a")}}), "of x has .*; " + FORM),  # type: ignore[dict-item]
        (lambda: Integration("x", {"x": {None: [Operation("a")]}}), "of x is .*" + FORM),  # type: ignore[dict-item]
        (
            lambda: Integration("x", {}, replaced={"x": {"C": ["a"]}}),  # type: ignore[dict-item]
            "replaced.* of x is .'a'.; the form is .module: .class: .attribute: what stands there",
        ),
        (lambda: Operation("a.b"), "the first argument is an attribute's name"),
        (lambda: Operation(len), "the first argument is an attribute's name"),  # type: ignore[arg-type]
        (lambda: Operation("a", statement="SELECT"), "are functions, not 'SELECT'"),  # type: ignore[arg-type]
        (lambda: Operation("a", does_block=True), "are functions, not True"),  # type: ignore[arg-type]
        (lambda: Operation("a", hint=3), "are strings, not 3"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_in_a_table_are_told_when_it_is_made(make: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        make()


# Brought by a distribution -----------------------------------------------------------------------


def test_install_guards_what_a_distribution_brings(site: Path) -> None:
    bring(site)
    asyncsafe.install()
    assert {"theirlib", "theirlib_asyncsafe"}.isdisjoint(sys.modules)
    library = importlib.import_module("theirlib")
    assert is_refused(lambda: library.Client().fetch("x"))
    asyncsafe.uninstall()
    assert not is_refused(lambda: library.Client().fetch("x"))
    asyncsafe.install()
    assert is_refused(lambda: library.Client().fetch("x"))


def test_a_library_that_is_imported_already(site: Path, library: Any) -> None:
    bring(site)
    asyncsafe.install()
    assert is_refused(lambda: library.Client().fetch("x"))


def test_it_is_installed_by_name(site: Path, library: Any) -> None:
    bring(site)
    asyncsafe.install("theirlib")
    assert is_refused(lambda: library.Client().fetch("x"))
    asyncsafe.uninstall("theirlib")
    assert not is_refused(lambda: library.Client().fetch("x"))


def test_it_is_not_guarded_where_others_are_named(site: Path, library: Any) -> None:
    bring(site)
    asyncsafe.install("sqlite3")
    assert not is_refused(lambda: library.Client().fetch("x"))
    assert "theirlib_asyncsafe" not in sys.modules


def test_it_is_not_imported_after_uninstall(site: Path) -> None:
    bring(site)
    asyncsafe.install()
    asyncsafe.uninstall()
    library = importlib.import_module("theirlib")
    assert not is_refused(lambda: library.Client().fetch("x"))
    assert "theirlib_asyncsafe" not in sys.modules


def test_a_reload_is_guarded(site: Path, library: Any) -> None:
    bring(site)
    asyncsafe.install()
    importlib.reload(library)
    assert is_refused(lambda: library.Client().fetch("x"))


def test_names_that_are_brought_are_told(site: Path) -> None:
    bring(site)
    with pytest.raises(ValueError, match=r"no guard for 'otherlib'; it has: .*sqlite3, theirlib"):
        asyncsafe.install("otherlib")


BROKEN = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "imports": (
        "import theirlib_that_is_not_there",
        "No module named 'theirlib_that_is_not_there'",
    ),
    "lacks it": ("", "has no attribute 'integration'"),
    "is no integration": (
        "integration = {'theirlib': {}}",
        "the entry point must name an asyncsafe.Integration, not dict",
    ),
    "has another name": (
        TABLE.replace('"theirlib",', '"theirlib-sync",'),
        "the entry point is called 'theirlib' and its Integration 'theirlib-sync'",
    ),
    "has a mistake": (TABLE.replace('"fetch",', "3,"), "first argument is an attribute's name"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("imported", ["before", "after"])
def test_one_that_is_broken_is_a_warning(broken: str, imported: str, site: Path) -> None:
    code, told = BROKEN[broken]
    bring(site, table=code)
    if imported == "before":
        importlib.import_module("theirlib")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncsafe.install()
        library = importlib.import_module("theirlib")
    assert library.Client().fetch("x") == on_loop(lambda: library.Client().fetch("x"))
    (warning,) = caught
    assert warning.category is AsyncUnsafeWarning
    assert str(warning.message).startswith(
        "theirlib is not guarded: its integration, theirlib_asyncsafe:integration of "
        "theirlib-asyncsafe 1.2, can't be used. "
    )
    assert told in str(warning.message)


def test_an_import_goes_on_where_warnings_are_errors(site: Path) -> None:
    bring(site, table="1 / 0")
    asyncsafe.install()
    assert importlib.import_module("theirlib").Client().fetch("x") == "x"


def ignored(site: Path) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncsafe.install()
    (warning,) = caught
    assert warning.filename == __file__  # where install() is called
    return str(warning.message)


def test_a_name_that_is_ours_is_ignored(site: Path) -> None:
    bring(site, name="sqlite3")
    assert ignored(site) == (
        "the integration 'sqlite3' of theirlib-asyncsafe 1.2 is ignored: asyncsafe has one itself"
    )


def test_of_two_the_first_on_the_path_counts(site: Path, tmp_path: Path) -> None:
    bring(site)
    later = tmp_path / "later"
    later.mkdir()
    bring(later, value="theirlib_too:integration", distribution="theirlib-too")
    sys.path.append(str(later))
    assert ignored(site) == (
        "the integration 'theirlib' of theirlib-too 1.2 is ignored: theirlib-asyncsafe 1.2 has "
        "one, too"
    )
    library = importlib.import_module("theirlib")
    assert is_refused(lambda: library.Client().fetch("x"))


def test_a_name_that_is_no_module_is_ignored(site: Path) -> None:
    bring(site, name="their-lib")
    assert "'their-lib' of theirlib-asyncsafe 1.2 is ignored: an entry point of" in ignored(site)


def test_metadata_that_is_broken_is_a_warning(site: Path, library: Any) -> None:
    bring(site)
    (site / "theirlib_asyncsafe-1.2.dist-info" / "entry_points.txt").write_bytes(
        b"[asyncsafe.integrations]\n\xff\xfe = \n"
    )
    assert "integrations of other distributions can't be read: UnicodeDecodeError" in ignored(site)


def test_a_zip_file_on_the_path(tmp_path: Path) -> None:
    """As zipapp, shiv and pex make them."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as file:
        file.writestr("theirlib.py", LIBRARY)
        file.writestr("theirlib_asyncsafe.py", TABLE)
        file.writestr("theirlib-1.dist-info/METADATA", "Name: theirlib\nVersion: 1\n")
        file.writestr(
            "theirlib-1.dist-info/entry_points.txt",
            "[asyncsafe.integrations]\ntheirlib = theirlib_asyncsafe:integration\n",
        )
    code = (
        "import sys; sys.path.append('app.pyz')\n"
        "import asyncsafe; asyncsafe.install()\n"
        "import theirlib; print(hasattr(theirlib.Client.fetch, '__async_unsafe__'))"
    )
    assert python(code, tmp_path).stdout == "True\n"


def test_install_is_quick_where_nothing_is_brought(tmp_path: Path) -> None:
    """importlib.metadata is slow to import, and slow to read every distribution's files."""
    code = "import sys, asyncsafe; asyncsafe.install(); print('importlib.metadata' in sys.modules)"
    # -S: without the modules that the installed packages' own start-up files import.
    path = f"import sys; sys.path.append({str(Path(asyncsafe.__file__).parents[1])!r})\n"
    assert python(path + code, tmp_path, "-S").stdout == "False\n"


def test_run_and_info_know_it(site: Path) -> None:
    bring(site)
    (site / "program.py").write_text(
        "import asyncio, theirlib\n"
        "async def main():\n    theirlib.Client().fetch('SELECT 1')\n"
        "asyncio.run(main())\n"
    )
    options: dict[str, Any] = {"cwd": site, "capture_output": True, "text": True, "check": True}
    options["env"] = {"PYTHONPATH": str(site)}
    told = subprocess.run(command("info"), **options).stdout
    assert "theirlib     by theirlib_asyncsafe:integration of theirlib-asyncsafe 1.2" in told
    told = subprocess.run(command("run", "program.py"), **options).stderr
    assert "theirlib.Client.fetch  program.py:3 async main()" in told
