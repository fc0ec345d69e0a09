"""Run a program in this process as Python itself would: a script, a module, an installed command."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import sysconfig
from types import CodeType, ModuleType

from .stacks import is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import TracebackType


class NotATarget(Exception):  # noqa: N818  (it names what the argument is)
    """There is no such program; the message says what was looked for."""


class Target:
    """A program and its arguments. `load()` it, then `run()` it."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.arguments = arguments

    def load(self) -> None:
        """Find and compile it. Raises NotATarget where that can't be."""
        self._set_path()
        self._main = ModuleType("__main__")
        _hide_our_frames()
        self._code = self._load(self._main)

    def run(self) -> None:
        """Run it to its end. What it raises (SystemExit among it) comes out, without our frames."""
        main = self._main
        main.__dict__["__builtins__"] = builtins
        sys.argv = [self._argv0(main), *self.arguments]
        sys.modules["__main__"] = main
        exec(self._code, main.__dict__)  # noqa: S102

    def _set_path(self) -> None:
        """Put first on sys.path what Python puts there."""
        raise NotImplementedError

    def _argv0(self, main: ModuleType) -> str:
        return str(main.__file__)

    def _load(self, main: ModuleType) -> CodeType:
        """The code, and in `main` the attributes that belong to it."""
        raise NotImplementedError


class _Script(Target):
    def __init__(self, name: str, arguments: list[str], path: str) -> None:
        super().__init__(name, arguments)
        self._path = path

    def _set_path(self) -> None:
        if not sys.flags.safe_path:
            sys.path[0] = os.path.dirname(os.path.realpath(self._path))

    def _load(self, main: ModuleType) -> CodeType:
        path = os.path.abspath(self._path)
        main.__file__ = path
        main.__dict__["__cached__"] = None
        with open(path, "rb") as file:
            source = file.read()
        first_line = source.partition(b"\n")[0]
        if b"\0" in source or (first_line.startswith(b"#!") and b"python" not in first_line):
            raise NotATarget(f"{self.name} ({path}) is not a Python program")
        # For multiprocessing, tracebacks and inspect, as for `python FILE`.
        main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
        return compile(source, path, "exec", dont_inherit=True)

    def _argv0(self, main: ModuleType) -> str:
        return self._path


class _Module(Target):
    def _set_path(self) -> None:
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd()

    def _load(self, main: ModuleType) -> CodeType:
        spec = self._find()
        loader = spec.loader
        get_code = getattr(loader, "get_code", None)
        code: CodeType | None = get_code(spec.name) if get_code else None
        if code is None:
            raise NotATarget(f"module {self.name} has no code to run")
        main.__file__ = spec.origin
        main.__spec__ = spec
        main.__loader__ = loader
        main.__package__ = spec.parent
        main.__dict__["__cached__"] = spec.cached
        return code

    def _find(self) -> ModuleSpec:
        name = self.name
        if name.startswith("."):
            raise NotATarget(f"{name} is not a module to run: name it from its root")
        for _ in range(2):
            try:
                spec = importlib.util.find_spec(name)
            except ModuleNotFoundError as error:
                if not name.startswith(str(error.name)):
                    raise  # an import of the program's own has failed
                raise NotATarget(f"there is no module {name}: {error}") from error
            if spec is None:
                raise NotATarget(f"there is no module {name}")
            if spec.submodule_search_locations is None:
                return spec
            name += ".__main__"
        raise NotATarget(f"{self.name} is a package without a __main__ module")


class _Directory(_Module):
    """A directory or zip file with a __main__.py in it."""

    def _argv0(self, main: ModuleType) -> str:
        return self.name

    def _set_path(self) -> None:
        # Python puts it there whether the path is "safe" or not.
        sys.path[0 : not sys.flags.safe_path] = [os.path.abspath(self.name)]

    def _find(self) -> ModuleSpec:
        spec = importlib.machinery.PathFinder.find_spec("__main__", [self.name])
        if spec is None:
            raise NotATarget(f"there is no __main__.py in {self.name}")
        return spec


def find_target(arguments: list[str]) -> Target:
    """What `asyncsafe run` is to run. Raises NotATarget where there is no such program."""
    name, *rest = arguments
    if name == "-m":
        if not rest:
            raise NotATarget("-m: name a module")
        return _Module(rest[0], rest[1:])
    if os.path.isfile(name) and not _is_zip(name):
        return _Script(name, rest, name)
    if os.path.exists(name):
        return _Directory(name, rest)
    command = _find_command(name)
    if command is None:
        raise NotATarget(
            f"there is no file {name}, and no installed command of that name; "
            f"a module is run by `asyncsafe run -m {name}`"
        )
    return _Script(name, rest, command)


def _is_zip(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _find_command(name: str) -> str | None:
    """The script of a command: beside this Python's own before those on PATH."""
    if os.path.dirname(name):
        return None
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def _hide_our_frames() -> None:
    """Have an uncaught exception's traceback begin in the target's own code, if it came that far."""
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        entry = _skip(traceback, ours=False)
        entry = _skip(entry, ours=True) if entry is not None else traceback
        error.__traceback__ = entry  # what is printed, whatever the hook is given
        hook(kind, error, entry)

    sys.excepthook = excepthook


def _skip(entry: TracebackType | None, *, ours: bool) -> TracebackType | None:
    """The first entry from here on that is (or isn't) asyncsafe's own."""
    while entry is not None and is_ours(entry.tb_frame.f_code.co_filename) is ours:
        entry = entry.tb_next
    return entry
