"""Whose code is on the stack: the frames that lead to a call, and which of them are the user's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, ModuleType
    from typing import Any, Literal

    Owner = Literal["ours", "library", "installed", "user"]

#: The file name of the wrappers that wrappers.py compiles. Python's own warnings machinery skips
#: frames whose file name holds these two words when it looks for the caller (``stacklevel``), as
#: it does for its import system: what a guarded function warns about is blamed on its caller.
WRAPPER_FILE = "<asyncsafe wrapper, not importlib._bootstrap>"
#: That of wrappers for a library which counts frames itself (SQLAlchemy's util.warn): none is skipped.
COUNTED_WRAPPER_FILE = "<asyncsafe wrapper>"

#: os.getcwd as Python has it ("posix" and "nt" are its modules): a detector of other blocking calls
#: (blockbuster) replaces the one in `os`, and would be told of the reading of a line number.
working_directory: Callable[[], str] = sys.modules[os.name].getcwd

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_COMMANDS = os.path.join(sys.prefix, "Scripts" if os.name == "nt" else "bin") + os.sep
_owners: dict[str, Owner] = {}
#: Packages that are guarded: no program is theirs.
_guarded: set[str] = set()


def greenlets() -> ModuleType | None:
    """The greenlet module, if the program has imported it."""
    module = sys.modules.get("greenlet")
    return module if module is not None and hasattr(module, "getcurrent") else None


def call_chain(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames from `frame` outwards, on through the greenlets that are this one's parents."""
    while frame is not None:
        yield frame
        frame = frame.f_back
    if (greenlet := greenlets()) is None:
        return
    for parent in lineage(greenlet.getcurrent())[1:]:
        frame = parent.gr_frame
        while frame is not None:
            yield frame
            frame = frame.f_back


def lineage(greenlet: Any) -> list[Any]:
    """A greenlet, its parent, and so on to the main greenlet of its thread."""
    found = []
    while greenlet is not None:
        found.append(greenlet)
        greenlet = greenlet.parent
    return found


def absolute(filename: str) -> str:
    """The path that a code object's file name stands for."""
    if filename.startswith("<") or os.path.isabs(filename):
        return filename
    try:
        return os.path.normpath(os.path.join(working_directory(), filename))
    except OSError:  # it is gone
        return filename


def whose(filename: str) -> Owner:
    """Whose code this is: the "user"'s, asyncsafe's ("ours"), a "library"'s, or "installed".

    A library is Python's own, or one that is guarded. What else is installed may be the program:
    `asyncsafe run jupyterhub` has no other.
    """
    owner = _owners.get(filename)
    if owner is None:
        owner = _owners[filename] = _find_owner(filename)
    return owner


def whose_frame(frame: FrameType) -> Owner:
    """As `whose`, for what was made by exec(), too: it belongs to the module that made it."""
    filename = frame.f_code.co_filename
    if filename != "<string>":
        return whose(filename)
    name = frame.f_globals.get("__name__")
    if name is None:  # a decorator's, pony's for one
        return "library"
    file = getattr(sys.modules.get(name), "__file__", None)
    return "user" if name == "__main__" or file is None else whose(file)


def is_ours(filename: str) -> bool:
    """Whether this is asyncsafe's own code."""
    return whose(filename) == "ours"


def add_guarded(packages: set[str]) -> None:
    """From now on, what these packages have installed is a library's."""
    if not packages <= _guarded:
        _guarded.update(packages)
        _owners.clear()


def _find_owner(filename: str) -> Owner:
    if filename in (WRAPPER_FILE, COUNTED_WRAPPER_FILE) or filename.startswith(_OURS):
        return "ours"
    if filename.startswith("<frozen "):
        return "library"
    if filename.startswith("<"):  # "<sqlalchemy generated ...>", "<attrs generated methods ...>"
        return "library" if " generated " in filename else "user"
    if filename.startswith((_STANDARD_LIBRARY, _COMMANDS)):
        # The standard library's folder is where packages are installed, too.
        return _find_installer(filename) or "library"
    return _find_installer(filename) or "user"


def _find_installer(filename: str) -> Owner | None:
    for folder in ("site-packages", "dist-packages"):
        _, found, path = filename.rpartition(f"{os.sep}{folder}{os.sep}")
        if found:
            package = path.partition(os.sep)[0].partition(".")[0]
            return "library" if package in _guarded else "installed"
    return None
