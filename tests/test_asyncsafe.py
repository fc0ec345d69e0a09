"""The package itself: its public names, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncsafe

from .running import on_loop, python


def for_type_checkers() -> dict[str, str]:
    """The names that type checkers see, and the modules that they come from."""
    tree = ast.parse(Path(asyncsafe.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    names = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.level == 1
        for alias in statement.names:
            assert alias.asname == alias.name, "without `as` it isn't public for type checkers"
            names[alias.name] = statement.module or alias.name
    return names


def test_the_lists_of_public_names_agree() -> None:
    assert for_type_checkers() == asyncsafe._HOMES
    assert sorted(asyncsafe.__all__) == sorted(asyncsafe._HOMES)
    assert len(asyncsafe.__all__) == len(set(asyncsafe.__all__))


@pytest.mark.parametrize("name", asyncsafe.__all__)
def test_public_names_are_there(name: str) -> None:
    home = importlib.import_module(f"asyncsafe.{asyncsafe._HOMES[name]}")
    assert getattr(asyncsafe, name) is (home if name == "asgi" else getattr(home, name))
    assert name in dir(asyncsafe)


def test_a_star_import_brings_them_all() -> None:
    namespace: dict[str, object] = {}
    exec("from asyncsafe import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(asyncsafe.__all__)


@pytest.mark.parametrize("name", ["unsafe_async", "Guard", "__wrapped__"])
def test_another_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'asyncsafe' has no attribute '{name}'"):
        getattr(asyncsafe, name)
    assert name not in dir(asyncsafe)


def test_the_version_is_there() -> None:
    assert asyncsafe.__version__.count(".") == 2


# What importing it costs ---------------------------------------------------------------------------

LOADED = """
import sys
before = set(sys.modules)
{code}
after = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(after))
"""

EXPENSIVE = {
    "asgiref",
    "asyncio",
    "contextlib",
    "ctypes",
    "greenlet",
    "inspect",
    "logging",
    "psycopg2",
    "re",
    "sqlite3",
    "tomllib",
    "trio",
    "typing",
}


def loaded(code: str, tmp_path: Path) -> set[str]:
    # -I -S: without the modules that the installed packages' own start-up files import.
    path = f"sys.path.append({str(Path(asyncsafe.__file__).parents[1])!r})\n"
    return set(python(LOADED.format(code=path + code), tmp_path, "-I", "-S").stdout.split())


def test_importing_it_loads_next_to_nothing(tmp_path: Path) -> None:
    assert loaded("import asyncsafe", tmp_path) <= {"__future__", "asyncsafe"}


@pytest.mark.parametrize(
    "code",
    [
        "import asyncsafe\n@asyncsafe.async_unsafe\ndef save(): ...\nsave()",
        "import asyncsafe\nasyncsafe.check('find')",
        "import asyncsafe\nwith asyncsafe.allow(): ...",
        "import asyncsafe\nassert asyncsafe.running_loop() is None",
        "from asyncsafe import SynchronousOnlyOperation, AsyncUnsafeWarning",
    ],
)
def test_using_it_off_the_loop_loads_nothing_expensive(code: str, tmp_path: Path) -> None:
    modules = loaded(code, tmp_path)
    assert "asyncsafe" in modules
    assert modules & EXPENSIVE == set()


# Errors --------------------------------------------------------------------------------------------


@asyncsafe.async_unsafe
def save() -> None: ...


def test_the_refusal_is_pickled() -> None:
    """As by multiprocessing and pytest-xdist, which hand errors from process to process."""
    with pytest.raises(asyncsafe.SynchronousOnlyOperation) as caught:
        on_loop(save)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        same = pickle.loads(pickle.dumps(caught.value, protocol))
        assert type(same) is type(caught.value)
        assert str(same) == str(caught.value)
        assert repr(same.violation) == repr(caught.value.violation)


def test_errors_can_be_caught_by_kind() -> None:
    assert issubclass(asyncsafe.ConfigurationError, (asyncsafe.AsyncsafeError, ValueError))
    assert issubclass(asyncsafe.ConfigurationError, ValueError)
    assert issubclass(asyncsafe.InstallationError, RuntimeError)
    assert issubclass(asyncsafe.InstallationError, asyncsafe.AsyncsafeError)
    assert issubclass(asyncsafe.AsyncUnsafeWarning, RuntimeWarning)
    # It is about the program, not about asyncsafe.
    assert not issubclass(asyncsafe.SynchronousOnlyOperation, asyncsafe.AsyncsafeError)


#: The package from top to bottom: an import only ever points to what stands higher.
LAYERS = [
    "__init__",
    "exceptions",
    "locks",
    "callables",
    "stacks",
    "imports",
    "loops",
    "lifespan",
    "scopes",
    "policy",
    "nesting",
    "owners",
    "transactions",
    "sharing",
    "messages",
    "violation",
    "durations",
    "recorder",
    "baseline",
    "guards",
    "wrappers",
    "decorators",
    "patching",
    "tables",
    "discovery",
    "installation",
    "thread_locals",
    "integrations",
    "connections",
    "wsgi",
    "asgi",
    "reports",
    "following",
    "running",
    "progress",
    "cli",
    "ipython",
    "pytest_summary",
    "pytest_session",
    "pytest_plugin",
    "__main__",
    "bootstrap",
]


def runtime_imports(source: str) -> Iterator[ast.ImportFrom]:
    """The relative imports that are executed: not those for type checkers."""
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node
        nodes += ast.iter_child_nodes(node)


def test_imports_point_up() -> None:
    package = Path(asyncsafe.__file__).parent
    for path in package.rglob("*.py"):
        *folders, name = path.relative_to(package).with_suffix("").parts
        room = folders[0] if folders else name
        for node in runtime_imports(path.read_text()):
            if folders and node.level == 1:  # within the folder
                continue
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            for module in modules:
                other = module.partition(".")[0]
                if other in LAYERS:
                    assert LAYERS.index(other) < LAYERS.index(room), f"{path} imports {module}"
