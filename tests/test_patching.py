"""Class attributes are replaced in place and put back, those of immutable C types too."""

from __future__ import annotations

import _sqlite3
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2._psycopg
import pytest

from asyncsafe import patching
from asyncsafe.patching import Patch

IMMUTABLE = 1 << 8

C_TYPES = [
    _sqlite3.Connection,
    _sqlite3.Cursor,
    _sqlite3.Blob,
    psycopg2._psycopg.connection,
    psycopg2._psycopg.cursor,
    psycopg2._psycopg.ReplicationConnection,
]


def state(owner: Any) -> Any:
    """Every attribute by identity, and the flags but for the one that comes and goes by itself."""
    flags = owner.__flags__ & ~patching._VALID_VERSION if isinstance(owner, type) else None
    return {name: id(value) for name, value in vars(owner).items()}, flags


def stand_in(*args: Any) -> str:
    return "ours"


class Plain:
    def greet(self) -> str:
        return "hello"


class Below(Plain):
    pass


class TestPatch:
    @pytest.mark.parametrize("owner", [Plain, types], ids=["class", "module"])
    def test_replaced_and_put_back(self, owner: Any) -> None:
        name = "greet" if owner is Plain else "new_class"
        before = state(owner)
        patch = Patch(owner, name, stand_in)
        assert getattr(owner, name) is stand_in
        patch.undo()
        assert state(owner) == before

    @pytest.mark.parametrize("cls", C_TYPES)
    def test_immutable_type(self, cls: Any) -> None:
        before = state(cls)
        assert before[1] & IMMUTABLE
        with pytest.raises(TypeError, match="immutable"):
            cls.__repr__ = stand_in
        patch = Patch(cls, "__repr__", stand_in)
        assert cls.__repr__ is stand_in
        # It stays unlocked, since CPython's JIT doesn't watch immutable types.
        assert before[1] ^ state(cls)[1] == IMMUTABLE
        patch.undo()
        assert state(cls) == before
        with pytest.raises(TypeError, match="immutable"):
            cls.__repr__ = stand_in

    def test_reaches_slots_and_what_exists(self) -> None:
        with closing(_sqlite3.connect(":memory:")) as connection:
            cursor = connection.cursor()
            patch = Patch(_sqlite3.Cursor, "__next__", lambda self: "ours")
            assert next(cursor) == "ours"
            patch.undo()
            with pytest.raises(StopIteration):
                next(cursor)

    def test_reaches_subclasses(self) -> None:
        patch = Patch(Plain, "greet", stand_in)
        assert Below().greet() == "ours"
        patch.undo()
        assert Below().greet() == "hello"

    def test_attribute_that_was_not_there(self) -> None:
        before = state(_sqlite3.Blob)
        patch = Patch(_sqlite3.Blob, "__iter__", None)
        assert vars(_sqlite3.Blob)["__iter__"] is None
        patch.undo()
        assert state(_sqlite3.Blob) == before

    def test_inherited_attribute_is_inherited_again(self) -> None:
        patch = Patch(Below, "greet", stand_in)
        assert (Below().greet(), Plain().greet()) == ("ours", "hello")
        patch.undo()
        assert "greet" not in vars(Below)

    def test_original_given(self) -> None:
        """What the wrapper of an earlier round stands for is put back in its place."""
        original = vars(Plain)["greet"]
        earlier = Patch(Plain, "greet", stand_in)
        later = Patch(Plain, "greet", lambda self: "later", original)
        later.undo()
        assert vars(Plain)["greet"] is original
        earlier.undo()
        assert vars(Plain)["greet"] is original


class TestSomebodyElse:
    @pytest.mark.parametrize("cls", [Plain, _sqlite3.Cursor])
    def test_theirs_stays(self, cls: Any) -> None:
        name = "greet" if cls is Plain else "fetchone"
        before = state(cls)
        patch = Patch(cls, name, stand_in)
        ours = vars(cls)[name]

        def theirs(*args: Any) -> str:
            return f"theirs over {ours(*args)}"

        setattr(cls, name, theirs)
        patch.undo()
        assert vars(cls)[name] is theirs
        assert state(cls)[1] == before[1]
        Patch(cls, name, stand_in, patch.original).undo()
        assert state(cls) == before

    def test_deleted(self) -> None:
        original = vars(Plain)["greet"]
        patch = Patch(Plain, "greet", stand_in)
        del Plain.greet
        patch.undo()
        assert "greet" not in vars(Plain)
        Plain.greet = original  # type: ignore[method-assign]


class TestSeveral:
    def test_locked_again_with_the_last(self) -> None:
        before = state(_sqlite3.Cursor)
        first = Patch(_sqlite3.Cursor, "fetchone", stand_in)
        second = Patch(_sqlite3.Cursor, "fetchall", stand_in)
        first.undo()
        assert not _sqlite3.Cursor.__flags__ & IMMUTABLE
        second.undo()
        assert state(_sqlite3.Cursor) == before

    def test_nothing_is_left(self) -> None:
        assert patching._patched == {}
        assert patching._unlocked == {}

    @pytest.mark.parametrize("cls", C_TYPES)
    def test_many_rounds(self, cls: Any) -> None:
        before = state(cls)
        references = sys.getrefcount(vars(cls)["__repr__"] if "__repr__" in vars(cls) else cls)
        for _ in range(300):
            Patch(cls, "__repr__", stand_in).undo()
        after = sys.getrefcount(vars(cls)["__repr__"] if "__repr__" in vars(cls) else cls)
        assert state(cls) == before
        assert after == references


class TestBlob:
    """mp_subscript and sq_item share the name __getitem__: set once, Python fills both."""

    def attempts(self, blob: Any) -> list[str]:
        told = []
        for attempt in (
            iter,
            list,
            tuple,
            reversed,
            sum,
            lambda b: [*b],
            lambda b: b"e" in b,
            lambda b: b * 2,
            lambda b: b + b,
            lambda b: b[0],
            lambda b: b[0:2],
            lambda b: b[-1],
            lambda b: b[99],
            lambda b: b["x"],
            len,
        ):
            try:
                told.append(repr(attempt(blob)))
            except Exception as error:
                told.append(type(error).__name__)
        return told

    def test_as_before(self) -> None:
        with closing(_sqlite3.connect(":memory:")) as connection:
            connection.execute("create table t (b)")
            connection.execute("insert into t values (x'616263')")
            blob = connection.blobopen("t", "b", 1)
            bare = self.attempts(blob)
            assert bare[0] == "TypeError"
            getter = vars(_sqlite3.Blob)["__getitem__"]
            patches = [
                Patch(_sqlite3.Blob, "__iter__", None),
                Patch(_sqlite3.Blob, "__getitem__", lambda self, key: getter(self, key)),
            ]
            assert self.attempts(blob) == bare
            for patch in reversed(patches):
                patch.undo()
            assert self.attempts(blob) == bare


# What might be different on another interpreter, simulated in a process of its own; and what the
# error then says.
ELSEWHERE = {
    "no CPython": ("sys.implementation.name = 'otherpython'", "otherpython isn't CPython"),
    "free-threaded": ("sys._is_gil_enabled = lambda: False", "free-threaded"),
    "no ctypes": ("sys.modules['ctypes'] = None", "it has no ctypes"),
    "flags nowhere": ("patching._TYPE_SIZE = 0", "found in 0 places"),
    "another byte": ("patching._byte_of_flag = lambda: 0", "the byte that should hold its flags"),
    "another bit": (
        "flags = patching._flags; patching._flags = Once(flags)",
        "its flags did not change as they should",
    ),
}

PROGRAM = """
import sys, sqlite3, _sqlite3
import psycopg2._psycopg, psycopg2.pool
import asyncsafe
from asyncsafe import patching

class Once:
    # Doesn't see that the flag was cleared.
    def __init__(self, read):
        self.read = read
        self.known = {}
    def __call__(self, cls):
        return self.known.setdefault(cls, self.read(cls))

TYPES = [_sqlite3.Connection, _sqlite3.Cursor, _sqlite3.Blob, psycopg2._psycopg.connection,
         psycopg2._psycopg.cursor, psycopg2._psycopg.lobject, psycopg2.pool.SimpleConnectionPool]

def state():
    return [({n: id(v) for n, v in vars(t).items()}, t.__flags__ & ~(1 << 19)) for t in TYPES]

before = state()
ELSEWHERE
for library in ("sqlite3", "psycopg2"):
    try:
        asyncsafe.install(library)
    except asyncsafe.InstallationError as error:
        print(error)
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    asyncsafe.install()
print([w.category.__name__ for w in caught])
# A class of ours, which stands in for what Django makes, is guarded on any interpreter.
theirs = [t for t in patching._patched if not t.__module__.startswith("asyncsafe.")]
print(state() == before, theirs, patching._unlocked)
connection = sqlite3.connect(":memory:")
print(connection.execute("select 1").fetchall())
asyncsafe.uninstall()
print(state() == before)
"""


@pytest.mark.parametrize("case", ELSEWHERE)
def test_nothing_is_written_where_a_check_fails(case: str, tmp_path: Path) -> None:
    change, why = ELSEWHERE[case]
    result = run_python(tmp_path, PROGRAM.replace("ELSEWHERE", change))
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    for line, cls in zip(lines[:2], ("sqlite3.Connection", "connection"), strict=True):
        assert cls in line
        assert why in line
        assert "can't be guarded on this interpreter" in line
        assert "Nothing was changed" in line
    assert lines[2:] == [
        "['AsyncUnsafeWarning', 'AsyncUnsafeWarning']",
        "True [] {}",
        "[(1,)]",
        "True",
    ]


def run_python(tmp_path: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(code)
    return subprocess.run(
        [sys.executable, *options, str(program)], capture_output=True, text=True, check=False
    )


class TestWarnings:
    """C code warns about the frame that called it, which is now our wrapper's."""

    PROGRAM = """\
import asyncio, operator, sys
from asyncsafe.wrappers import Guard, wrap
from asyncsafe.patching import Patch

class One(int):
    pass

class Index:
    def __index__(self):
        return One(1)

if GUARDED:
    Patch(operator, "index", wrap(operator.index, Guard("index")))
for _ in range(2):
    operator.index(Index())
    operator.index(Index())
import library
library.use(operator, Index)
async def coroutine():
    operator.index(Index())
if ON_LOOP:
    import asyncsafe
    asyncsafe.configure(mode="record")
    asyncio.run(coroutine())
"""
    LIBRARY = "def use(operator, Index):\n    for _ in range(2):\n        operator.index(Index())\n"

    def told(self, tmp_path: Path, guarded: bool, *options: str, on_loop: bool = False) -> Any:
        (tmp_path / "library.py").write_text(self.LIBRARY)
        code = self.PROGRAM.replace("GUARDED", str(guarded)).replace("ON_LOOP", str(on_loop))
        result = run_python(tmp_path, code, *options)
        assert result.returncode == 0, result.stderr
        return [
            line.replace(str(tmp_path), "").partition(": ")[0]
            for line in result.stderr.splitlines()
            if "DeprecationWarning" in line
        ]

    def test_default_filters(self, tmp_path: Path) -> None:
        """Each line of __main__ once, and no other module's."""
        assert self.told(tmp_path, guarded=True) == ["/program.py:15", "/program.py:16"]
        assert self.told(tmp_path, guarded=False) == ["/program.py:15", "/program.py:16"]

    @pytest.mark.parametrize(
        "option",
        ["default", "always", "once", "module", "ignore", "default::DeprecationWarning:library"],
    )
    def test_filters(self, tmp_path: Path, option: str) -> None:
        bare = self.told(tmp_path, False, f"-W{option}")
        assert self.told(tmp_path, True, f"-W{option}") == bare

    def test_on_the_loop(self, tmp_path: Path) -> None:
        told = self.told(tmp_path, True, "-Wdefault", on_loop=True)
        assert told == self.told(tmp_path, False, "-Wdefault", on_loop=True)
        assert told[-1] == "/program.py:20"

    def test_error(self, tmp_path: Path) -> None:
        code = self.PROGRAM.replace("GUARDED", "True").replace("ON_LOOP", "False")
        result = run_python(tmp_path, code, "-Werror::DeprecationWarning")
        assert result.returncode == 1
        assert 'program.py", line 15' in result.stderr
        assert "DeprecationWarning" in result.stderr.splitlines()[-1]

    def test_hook_is_put_back(self) -> None:
        import warnings

        before = warnings._showwarnmsg
        first, second = Patch(Plain, "greet", stand_in), Patch(Below, "greet", stand_in)
        assert warnings._showwarnmsg is not before
        first.undo()
        assert warnings._showwarnmsg is not before
        second.undo()
        assert warnings._showwarnmsg is before

    def test_somebody_elses_hook_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import warnings

        told: list[str] = []
        monkeypatch.setattr(warnings, "_showwarnmsg", warnings._showwarnmsg)
        monkeypatch.setattr(patching, "_show", None)
        patch = Patch(Plain, "greet", stand_in)
        ours = warnings._showwarnmsg

        def theirs(message: Any) -> None:
            told.append(str(message.message))
            ours(message)

        warnings._showwarnmsg = theirs
        patch.undo()
        assert warnings._showwarnmsg is theirs
        with pytest.warns(UserWarning, match="heard"):
            warnings.warn("heard", UserWarning, stacklevel=1)
        assert told == ["heard"]
        # And the next round goes on from there.
        Patch(Plain, "greet", stand_in).undo()
        with pytest.warns(UserWarning, match="again"):
            warnings.warn("again", UserWarning, stacklevel=1)
        assert told == ["heard", "again"]

    def test_what_is_used_of_warnings_in_private(self) -> None:
        """C hands every warning to it, and so does Python: else ours would hear nothing."""
        import warnings

        heard: list[Any] = []
        show: Callable[..., Any] = warnings._showwarnmsg
        warnings._showwarnmsg = heard.append
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("one", UserWarning, stacklevel=1)
        finally:
            warnings._showwarnmsg = show
        assert [str(message.message) for message in heard] == ["one"]
