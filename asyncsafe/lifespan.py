"""Whether an ASGI server is starting up or shutting down: nobody waits for it then.

A server calls the application once with a `lifespan` scope, before the first request, and that call
ends after the last one (https://asgi.readthedocs.io/en/latest/specs/lifespan.html). What is below
it on the stack is the application's start-up or its shutdown. Tasks that are started there have
stacks of their own: they run while requests are served.
"""

from __future__ import annotations

import functools
import sys

from . import loops
from .callables import ASYNC_CODE
from .stacks import call_chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any, Literal

    Phase = Literal["startup", "shutdown"]

_COMPLETE = "lifespan.startup.complete"


def current_phase(running: loops.Running) -> Phase | None:
    """Whether the caller is below a `lifespan` scope, and before or after the application's start.

    None: it serves a request, or no ASGI server called it.
    """
    # The outermost scope tells what the server is about: start-up may try out a request.
    asynchronous = [
        frame for frame in call_chain(sys._getframe(1)) if frame.f_code.co_flags & ASYNC_CODE
    ]
    while asynchronous:
        kind = _kind_of_scope(asynchronous[-1])
        if kind == "lifespan" and not _is_past_loop(asynchronous[-1], running):
            return _phase(asynchronous)
        if kind is not None:
            return None
        asynchronous.pop()
    return None


def _kind_of_scope(frame: FrameType) -> str | None:
    """The type of the ASGI scope that a frame holds: "http", "websocket", "lifespan". None: it has none.

    Servers and applications call it `scope`, as the specification does.
    """
    code = frame.f_code
    if not any(
        "scope" in names for names in (code.co_varnames, code.co_cellvars, code.co_freevars)
    ):
        return None
    kind = _type_of(frame.f_locals.get("scope"))
    return kind if kind in {"http", "websocket", "lifespan"} else None


def _type_of(event: Any) -> str | None:
    """What an ASGI scope or message says of itself."""
    # By type(): isinstance() would ask a lazy object for its __class__.
    if not issubclass(type(event), dict):
        return None
    kind = dict.get(event, "type")
    return kind if isinstance(kind, str) else None


def _is_past_loop(frame: FrameType, running: loops.Running) -> bool:
    """Whether the loop that runs was entered below this frame: it has tasks of its own."""
    for inner in call_chain(sys._getframe(1)):
        if inner is frame:
            return False
        if loops.enters_loop(inner, running):
            return True
    return False


def _phase(frames: list[FrameType]) -> Phase | None:
    """Where the application is, by the outermost of these that says that its start is complete.

    frames: from the call outwards, to the one with the server's scope.
    """
    for frame in reversed(frames):
        if (complete := _says_complete(frame.f_code)) is None:
            continue
        messages = _messages(frame)
        if "lifespan.shutdown" in messages:
            return "shutdown"
        if frame.f_lasti < complete:
            return "startup"
        # An application that goes on in this task, and has not been told to end, is serving.
        return None if "lifespan.startup" in messages else "shutdown"
    return "startup"


@functools.lru_cache(maxsize=256)
def _says_complete(code: CodeType) -> int | None:
    """Where in this code its message is made: what comes later in it comes after the start."""
    if _COMPLETE not in code.co_consts:
        return None
    import dis

    found = (i.offset for i in dis.get_instructions(code) if i.argval == _COMPLETE)
    return next(found, None)


def _messages(frame: FrameType) -> set[str | None]:
    """The types of the ASGI messages that a frame holds."""
    return set(map(_type_of, frame.f_locals.values()))
