"""Whether an ASGI server is starting up or shutting down: nobody waits for it then.

A server calls the application once with a `lifespan` scope, before the first request, and that call
ends after the last one (https://asgi.readthedocs.io/en/latest/specs/lifespan.html). What is below
it on the stack is the application's start-up or its shutdown. Tasks that are started there have
stacks of their own: they run while requests are served.
"""

from __future__ import annotations

import functools
from itertools import takewhile

from . import loops
from .callables import ASYNC_CODE
from .stacks import call_chain, greenlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any, Literal

    Phase = Literal["startup", "shutdown"]

_COMPLETE = "lifespan.startup.complete"


def phase_of(coroutine: FrameType | None, running: loops.Running) -> Phase | None:
    """Whether a call is below a `lifespan` scope, and before or after the application's start.

    coroutine: the innermost that it is under; None in a callback. None is the answer where it
        serves a request, or no ASGI server called it.
    """
    if coroutine is None:
        return None
    asynchronous = _asynchronous_frames(coroutine)
    # The outermost scope tells what the server is about: start-up may try out a request.
    while asynchronous:
        kind = _kind_of_scope(asynchronous[-1])
        if kind == "lifespan" and not _is_past_loop(asynchronous[-1], coroutine, running):
            return _phase(asynchronous)
        if kind is not None:
            return None
        asynchronous.pop()
    return None


def _asynchronous_frames(coroutine: FrameType) -> list[FrameType]:
    """Those from `coroutine` outwards. It is what each call pays for, so the walk is short.

    Where it goes past a loop, which asyncio's own alone show at so little cost, it goes too far.
    """
    found = []
    frame: FrameType | None = coroutine
    while frame is not None:
        code = frame.f_code
        if code.co_flags & ASYNC_CODE:
            found.append(frame)
        elif code is loops.asyncio_step:
            return found
        frame = frame.f_back
    if greenlets() is None:
        return found
    return [frame for frame in call_chain(coroutine) if frame.f_code.co_flags & ASYNC_CODE]


def _is_past_loop(frame: FrameType, coroutine: FrameType, running: loops.Running) -> bool:
    """Whether the loop that runs was entered below this frame: then it has tasks of its own."""
    frames = takewhile(lambda inner: inner is not frame, call_chain(coroutine))
    return any(loops.enters_loop(inner, running) for inner in frames)


def _kind_of_scope(frame: FrameType) -> str | None:
    """The type of the ASGI scope that a frame holds: "http", "websocket", "lifespan". None: it has none.

    Servers and applications call it `scope`, as the specification does.
    """
    code = frame.f_code
    if "scope" not in code.co_varnames + code.co_cellvars + code.co_freevars:
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
