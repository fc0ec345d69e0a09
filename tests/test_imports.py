"""Following the import of a module, without a trace on it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.resources
import importlib.util
import inspect
import logging
import pickle
import pkgutil
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncsafe.imports import forget, when_imported

from . import running

SOURCE = '''\
"""A shop."""

ready = True

class Order:
    """What a customer wants."""
'''


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that can be imported, and its directory."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE)
    (package / "__main__.py").write_text("print(__spec__.name, __loader__.name)\n")
    (package / "goods.py").write_text("names = ['tea']\n")
    (package / "prices.txt").write_text("tea 3")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture
def watch() -> Iterator[Callable[..., list[Any]]]:
    """Follow a module for the length of the test: the list of what the callback was given."""
    watched = []

    def watch(name: str, note: Callable[[ModuleType], Any] = lambda module: module) -> list[Any]:
        noted: list[Any] = []

        def callback(module: ModuleType) -> None:
            noted.append(note(module))

        watched.append((name, callback))
        when_imported(name, callback)
        return noted

    yield watch
    for name, callback in watched:
        forget(name, callback)


@pytest.mark.usefixtures("shop")
def test_a_module_is_told_when_it_is_imported_and_not_before(watch: Any) -> None:
    told = watch("shop", lambda module: module.ready)

    assert told == []
    assert "shop" not in sys.modules
    import_again = [importlib.import_module("shop") for _ in range(2)]
    assert told == [True]
    assert import_again[0] is import_again[1]


@pytest.mark.usefixtures("shop")
def test_a_module_that_is_there_already_is_told_at_once(watch: Any) -> None:
    module = importlib.import_module("shop")

    assert watch("shop") == [module]


@pytest.mark.usefixtures("shop")
def test_only_the_module_that_was_named_is_told(watch: Any) -> None:
    package, goods = watch("shop"), watch("shop.goods")

    module = importlib.import_module("shop.goods")

    assert goods == [module]
    assert package == [sys.modules["shop"]]


@pytest.mark.usefixtures("shop")
def test_everybody_who_asked_is_told_in_order(watch: Any) -> None:
    order: list[str] = []
    watch("shop", lambda module: order.append("first"))
    watch("shop", lambda module: order.append("second"))

    importlib.import_module("shop")

    assert order == ["first", "second"]


def test_a_reload_is_told_with_its_new_classes(shop: Path, watch: Any) -> None:
    told = watch("shop", lambda module: module.Order)
    module = importlib.import_module("shop")
    importlib.reload(module)

    assert len(told) == 2
    assert told[0] is not told[1]
    assert told[1] is module.Order


@pytest.mark.usefixtures("shop")
def test_a_module_that_is_imported_anew_is_told(watch: Any) -> None:
    told = watch("shop")
    importlib.import_module("shop")
    del sys.modules["shop"]
    importlib.import_module("shop")

    assert len(told) == 2


@pytest.mark.usefixtures("shop")
def test_a_lazily_loaded_module_is_told_when_it_is_loaded(watch: Any) -> None:
    told = watch("shop", lambda module: module.ready)
    spec = importlib.util.find_spec("shop")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules["shop"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert told == []
    assert module.Order.__name__ == "Order"
    assert told == [True]


@pytest.mark.parametrize("name", ["_decimal", "sqlite3.dump", "__phello__"])
def test_a_module_in_c_in_python_and_frozen_is_told(name: str) -> None:
    code = f"""
import importlib
from asyncsafe.imports import when_imported

when_imported({name!r}, lambda module: print("told", module.__spec__.name))
importlib.import_module({name!r})
"""
    # Frozen __phello__ prints as well.
    assert f"told {name}\n" in running.python(code, Path.cwd()).stdout


def test_a_module_that_can_t_be_found_raises_what_it_always_did(watch: Any) -> None:
    told = watch("shop_that_is_not_there")

    with pytest.raises(ModuleNotFoundError, match="No module named 'shop_that_is_not_there'"):
        importlib.import_module("shop_that_is_not_there")
    assert told == []


def test_a_module_that_raises_is_not_told(shop: Path, watch: Any) -> None:
    told = watch("shop")
    (shop / "__init__.py").write_text("raise LookupError('no tea')")

    with pytest.raises(LookupError, match="no tea"):
        importlib.import_module("shop")
    assert told == []
    assert "shop" not in sys.modules


@pytest.mark.usefixtures("shop")
def test_an_error_of_ours_is_logged_and_the_import_goes_on(
    watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def mistake(module: ModuleType) -> None:
        raise LookupError("a mistake of ours")

    watch("shop", mistake)
    others = watch("shop")
    with caplog.at_level(logging.ERROR, "asyncsafe"):
        module = importlib.import_module("shop")

    assert module.ready
    assert others == [module]
    (record,) = caplog.records
    assert record.getMessage() == "asyncsafe could not follow the import of shop"
    assert "a mistake of ours" in str(record.exc_info)


@pytest.mark.usefixtures("shop")
def test_a_module_that_was_forgotten_is_not_told() -> None:
    told: list[ModuleType] = []
    when_imported("shop", told.append)
    forget("shop", told.append)
    forget("shop", told.append)  # twice does no harm

    importlib.import_module("shop")

    assert told == []


@pytest.mark.usefixtures("shop")
def test_to_forget_one_callback_leaves_the_others(watch: Any) -> None:
    told: list[ModuleType] = []
    others = watch("shop")
    when_imported("shop", told.append)
    forget("shop", told.append)

    module = importlib.import_module("shop")

    assert told == []
    assert others == [module]


def test_the_finder_leaves_with_the_last_module_that_is_followed() -> None:
    code = """
import sys

def ours():
    return [finder for finder in sys.meta_path if type(finder).__module__ == "asyncsafe.imports"]

from asyncsafe.imports import forget, when_imported
print(len(ours()))
when_imported("shop", print)
when_imported("stock", print)
print(len(ours()))
forget("shop", print)
print(len(ours()))
forget("stock", print)
print(len(ours()))
"""
    assert running.python(code, Path.cwd()).stdout.split() == ["0", "1", "1", "0"]


# A followed module is like any other ------------------------------------------------------------


@pytest.fixture
def followed(shop: Path, watch: Any) -> ModuleType:
    told = watch("shop")
    importlib.import_module("shop")
    return told[0]


def test_its_loader_is_its_own(followed: ModuleType) -> None:
    assert type(followed.__loader__) is importlib.machinery.SourceFileLoader
    assert followed.__spec__.loader is followed.__loader__


def test_its_loader_is_its_own_while_it_is_executed(shop: Path, watch: Any) -> None:
    (shop / "__init__.py").write_text("loaders = type(__loader__), type(__spec__.loader)")
    watch("shop")

    loaders = importlib.import_module("shop").loaders

    assert loaders == (importlib.machinery.SourceFileLoader,) * 2


def test_inspect_reads_its_source(followed: ModuleType) -> None:
    assert inspect.getsource(followed) == SOURCE
    assert inspect.getsource(followed.Order) == SOURCE[SOURCE.index("class") :]


def test_importlib_resources_reads_its_files(followed: ModuleType) -> None:
    assert importlib.resources.files(followed).joinpath("prices.txt").read_text() == "tea 3"


@pytest.mark.usefixtures("followed")
def test_pkgutil_reads_its_files_and_lists_its_modules() -> None:
    assert pkgutil.get_data("shop", "prices.txt") == b"tea 3"
    assert {module.name for module in pkgutil.iter_modules(sys.modules["shop"].__path__)} == {
        "__main__",
        "goods",
    }


def test_its_objects_can_be_pickled(followed: ModuleType) -> None:
    assert type(pickle.loads(pickle.dumps(followed.Order()))) is followed.Order


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", ["shop", "shop.goods"])
def test_its_spec_can_be_asked_before_it_is_imported(name: str, watch: Any) -> None:
    told = watch(name)
    spec = importlib.util.find_spec(name)

    assert spec.loader.get_source(name)
    assert spec.loader.get_filename(name) == spec.origin
    assert told == []


def test_pkgutil_reads_its_files_before_it_is_imported(shop: Path, watch: Any) -> None:
    told = watch("shop")

    assert pkgutil.get_data("shop", "prices.txt") == b"tea 3"
    assert len(told) == 1


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", ["shop", "shop.__main__", "shop.goods"])
def test_runpy_runs_it(name: str, watch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    watch("shop"), watch(name)

    names = runpy.run_module(name, run_name="__main__")

    assert names["__name__"] == "__main__"
    expected = "" if name == "shop.goods" else "shop.__main__ shop.__main__\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("package", ["json.tool", "unittest", "timeit"])
def test_python_m_runs_it_where_it_was_followed_from_the_start(
    package: str, tmp_path: Path
) -> None:
    """As `asyncsafe run -m` does: what runs is hooked before runpy looks for it."""
    code = f"""
import runpy, sys
from asyncsafe.imports import when_imported

for name in ("json", "json.tool", "unittest", "unittest.__main__", "timeit"):
    when_imported(name, lambda module: None)
sys.argv = [{package!r}, "--help"]
runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
"""
    assert running.python(code, tmp_path).stdout


def test_a_blocked_import_is_left_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules: what programs, and Django's own tests, write to do without a library."""
    monkeypatch.setitem(sys.modules, "a_blocked_module", None)
    seen: list[object] = []
    when_imported("a_blocked_module", seen.append)
    forget("a_blocked_module", seen.append)
    assert seen == []
    with pytest.raises(ImportError):
        importlib.import_module("a_blocked_module")
