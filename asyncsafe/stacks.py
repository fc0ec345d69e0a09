"""Whose code is on the stack: the frames that lead to a call, and which of them are the user's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, ModuleType
    from typing import Any, Literal

    Owner = Literal["ours", "library", "user"]

#: The file name of the wrappers that wrappers.py compiles. Python's own warnings machinery skips
#: frames whose file name holds these two words when it looks for the caller (``stacklevel``), as
#: it does for its import system: what a guarded function warns about is blamed on its caller.
WRAPPER_FILE = "<asyncsafe wrapper, not importlib._bootstrap>"
#: That of wrappers for a library which counts frames itself (SQLAlchemy's util.warn): none is skipped.
COUNTED_WRAPPER_FILE = "<asyncsafe wrapper>"

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_COMMANDS = os.path.join(sys.prefix, "Scripts" if os.name == "nt" else "bin") + os.sep
_owners: dict[str, Owner] = {}


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


def whose(filename: str) -> Owner:
    """Whose code this is: "ours" (asyncsafe's), "library" (installed, or Python's), or the "user"'s."""
    owner = _owners.get(filename)
    if owner is None:
        owner = _owners[filename] = _find_owner(filename)
    return owner


def is_ours(filename: str) -> bool:
    """Whether this is asyncsafe's own code."""
    return whose(filename) == "ours"


def is_user(filename: str) -> bool:
    """Whether this is the user's code: not ours, the standard library's or an installed package's."""
    return whose(filename) == "user"


def _find_owner(filename: str) -> Owner:
    if filename in (WRAPPER_FILE, COUNTED_WRAPPER_FILE) or filename.startswith(_OURS):
        return "ours"
    library = (
        filename.startswith(("<frozen ", _STANDARD_LIBRARY, _COMMANDS))
        # "<sqlalchemy generated _go() wrapper for ...>", "<attrs generated methods ...>"
        or (filename.startswith("<") and " generated " in filename)
        or f"{os.sep}site-packages{os.sep}" in filename
        or f"{os.sep}dist-packages{os.sep}" in filename
    )
    return "library" if library else "user"
