"""What is known about one call that blocks a running event loop."""

from __future__ import annotations

import sys
from collections import namedtuple
from itertools import pairwise, takewhile

from . import loops
from .callables import ASYNC_CODE, GENERATOR_CODE
from .lifespan import phase_of
from .messages import describe
from .nesting import Inside
from .stacks import absolute, call_chain, is_ours, whose_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType
    from typing import Any, Literal, NamedTuple

    from .guards import Guard
    from .lifespan import Phase
    from .owners import Owner
    from .sharing import Begun
    from .stacks import Owner as Whose

    Outcome = Literal["raised", "warned", "recorded", "allowed"]

    class Frame(NamedTuple):
        """A place in the code: absolute file name, line, the function's qualified name."""

        filename: str
        lineno: int
        function: str
        asynchronous: bool = False

    class Told(NamedTuple):
        """What a line asked a library for ("Order.customer was loaded"), and what to write instead."""

        subject: str
        fix: str | None

else:
    Told = namedtuple("Told", ["subject", "fix"])
    Frame = namedtuple(
        "Frame", ["filename", "lineno", "function", "asynchronous"], defaults=[False]
    )
    Frame.__doc__ = "A place in the code: absolute file name, line, the function's qualified name."

#: How much of a statement is kept, in characters. Parameters never are.
STATEMENT_LIMIT = 500
#: How many frames of the user's are kept.
STACK_LIMIT = 50
#: Coroutines that run what somebody types: further out, there is nothing of the user's. In a
#: Jupyter kernel it is twenty frames from there to the loop.
shells: set[CodeType] = set()


class Violation:
    """One synchronous call that a running event loop had to wait for, or would have.

    Or one on a connection that has another's open transaction: then `begun_by` tells whose.
    """

    __slots__ = (
        "begun_at",
        "begun_by",
        "call_site",
        "coroutine",
        "headline",
        "hint",
        "importing",
        "library",
        "loop",
        "loop_type",
        "operation",
        "outcome",
        "phase",
        "reason",
        "seconds",
        "skipped",
        "stack",
        "statement",
        "subject",
        "task",
        "whole_stack",
    )

    def __init__(
        self,
        operation: str,
        *,
        library: str | None,
        statement: str | None,
        headline: str | None,
        hint: str | None,
        loop: str,
        loop_type: str | None,
        task: str | None,
        call_site: Frame,
        coroutine: Frame | None,
        stack: tuple[Frame, ...],
        whole_stack: tuple[Frame, ...],
        importing: str | None,
        outcome: Outcome,
        reason: str | None,
        subject: str | None = None,
        begun_by: str | None = None,
        begun_at: Frame | None = None,
        phase: Phase | None = None,
    ) -> None:
        #: What was called: "sqlite3.Cursor.execute".
        self.operation: str = operation
        #: The guarded library ("sqlite3"), or None for the user's own functions.
        self.library: str | None = library
        #: The SQL, shortened, without parameters; None where there is none.
        self.statement: str | None = statement
        #: What the author of a decorated function wrote to be told instead of our first line.
        self.headline: str | None = headline
        #: What the user's line asked for, where its library can tell: "Order.customer was loaded".
        self.subject: str | None = subject
        #: What to write instead, where a thread for the function that called it isn't the answer.
        self.hint: str | None = hint
        #: "asyncio", "trio", "curio" or "twisted".
        self.loop: str = loop
        #: The loop's type where it isn't the library's own ("uvloop.Loop"), or None.
        self.loop_type: str | None = loop_type
        #: The name of the task; None in a callback. In a thread that works for a task: that one's.
        self.task: str | None = task
        #: The user's innermost frame; where there is none, that of what else is installed and isn't
        #: guarded; where there is none of these either, the one that made the call.
        self.call_site: Frame = call_site
        #: The coroutine that it ran under: the user's innermost, else the innermost. None in a callback.
        self.coroutine: Frame | None = coroutine
        #: The user's frames, innermost first; where there are none, those of what else is installed
        #: and isn't guarded.
        self.stack: tuple[Frame, ...] = stack
        #: Every frame but asyncsafe's, innermost first, where none is the user's. Empty otherwise.
        self.whole_stack: tuple[Frame, ...] = whole_stack
        #: The module that was being imported, or None.
        self.importing: str | None = importing
        #: "startup" or "shutdown" where it was made under an ASGI server's `lifespan`, before the
        #: first request or after the last. None otherwise.
        self.phase: Phase | None = phase
        #: "raised" (refused), or made and "warned", "recorded" or "allowed".
        self.outcome = outcome
        #: Why it was allowed, or None.
        self.reason: str | None = reason
        #: Where the call uses a connection that has another's open transaction: whose it is ("task
        #: 'Task-2'"), and the line that began it. None where the violation is that it blocks.
        self.begun_by: str | None = begun_by
        self.begun_at: Frame | None = begun_at
        #: How long the call blocked the loop; None where it was refused or hasn't returned.
        self.seconds: float | None = None
        #: For a subscriber that isn't told of all: of how many at this call site it wasn't, since
        #: the one before.
        self.skipped: int = 0

    def __repr__(self) -> str:
        where = f"{self.call_site.filename}:{self.call_site.lineno}"
        return f"<Violation {self.operation} at {where}, {self.outcome}>"

    def message(self) -> str:
        """What is told of it: the operation, the statement, the place, the coroutine, a fix."""
        return describe(self)


class Call:
    """A call that would block: the stack that leads to it, read once."""

    __slots__ = (
        "_args",
        "_caller",
        "_coroutine",
        "_frame",
        "_guard",
        "_innermost",
        "_kwargs",
        "_site",
        "begun",
        "finalizing",
        "key",
        "phase",
        "running",
        "user",
    )

    def __init__(
        self,
        running: loops.Running,
        guard: Guard,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        begun: Begun | None = None,
        user: Owner | None = None,
    ) -> None:
        self.running: loops.Running = running
        #: The transaction of another's that is open on the connection, and who is using it here.
        self.begun: Begun | None = begun
        self.user: Owner | None = user
        #: Whether the call comes out of a finalizer.
        self.finalizing: bool = False
        self._guard = guard
        self._args = args
        self._kwargs = kwargs
        # Not our caller's, which holds this: garbage that keeps the stack. Nor its caller's, which
        # is ours as well: looking at it would take time.
        self._frame = frame = sys._getframe(3)
        if not self._read(call_chain(frame)):
            # The search went past the loop. A compiled loop may have made the call itself: then
            # the frame that runs it is the only one to name.
            if any(not is_ours(f.f_code.co_filename) for f in self._frames_in_loop()):
                self._read(self._frames_in_loop())
        #: Whether an ASGI server makes the call while it starts up or shuts down.
        self.phase: Phase | None = None if begun else phase_of(self._innermost, running)
        site, coroutine = self._site, self._coroutine
        #: What is cheap to compare: calls with the same are of one call site, while `kept()` is.
        self.key: tuple[str, Phase | None, Frame | None, int, int, int | None, int | None] = (
            guard.operation,
            self.phase,
            None if begun is None else begun.place,
            id(site.f_code),
            site.f_lasti,
            coroutine and id(coroutine.f_code),
            coroutine and coroutine.f_lasti,
        )

    @property
    def operation(self) -> str:
        """What is called, as messages name it."""
        return self._guard.operation

    def kept(self) -> tuple[CodeType, CodeType | None]:
        """What `key` names by its id."""
        return self._site.f_code, self._coroutine and self._coroutine.f_code

    def _frames_in_loop(self) -> Iterator[FrameType]:
        """The frames from the call outwards, up to those that run the loop."""
        return takewhile(
            lambda frame: not loops.enters_loop(frame, self.running), call_chain(self._frame)
        )

    def _read(self, frames: Iterator[FrameType]) -> bool:
        """Find the call site, the coroutine, and whether an object is being finalized.

        Returns whether the coroutine is the user's; the search has ended there.
        """
        self.finalizing = False
        site = installed = caller = coroutine = outer_coroutine = None
        for frame in frames:
            code = frame.f_code
            if site is None:
                owner = whose_frame(frame)
                if owner == "user":
                    site = frame
                elif owner == "installed":
                    installed = installed or frame
                if caller is None and owner != "ours":
                    caller = frame
            if code.co_flags & ASYNC_CODE:
                if whose_frame(frame) == "user":
                    coroutine = frame
                    break
                outer_coroutine = outer_coroutine or frame
                if code in shells:
                    coroutine = outer_coroutine
                    break
            elif code.co_name == "__del__" or code is _FINALIZE:
                self.finalizing = self.finalizing or outer_coroutine is None
        self._caller = caller or self._frame
        self._site = site or installed or self._caller
        self._coroutine = coroutine or outer_coroutine
        self._innermost = outer_coroutine or coroutine
        return coroutine is not None

    def call_site(self) -> Frame:
        """The user's innermost frame; where there is none, the one that made the call."""
        return _describe(self._site)

    def made_by(self, packages: tuple[str, ...]) -> bool:
        """Whether the code that makes the call belongs to one of these packages."""
        frame = self._caller
        # `with contextlib.closing(connection):`, as coverage has it since 7.17.
        while frame.f_back is not None and frame.f_globals.get("__name__") == "contextlib":
            frame = frame.f_back
        module = frame.f_globals.get("__name__") or ""
        return module.partition(".")[0] in packages

    def exception_on_its_way(self) -> BaseException | None:
        """The exception that is being handled between the loop and this call, if one is."""
        exception = sys.exc_info()[1]
        if exception is None or exception.__traceback__ is None:
            return exception
        # The traceback begins with the frame that the exception has come to. Where that frame
        # called the loop, the exception is none of this call's.
        handler = exception.__traceback__.tb_frame
        below_loop = False
        for frame in call_chain(self._frame):
            resumable = bool(frame.f_code.co_flags & (ASYNC_CODE | GENERATOR_CODE))
            if (below_loop and not resumable) or loops.enters_loop(frame, self.running):
                return None
            if frame is handler:
                return exception
            below_loop = below_loop or bool(frame.f_code.co_flags & ASYNC_CODE)
        return None

    def _read_line(self) -> Told | None:
        """What the library's description of the user's line is; without such a line, of the call."""
        guard = self._guard
        if guard.describe is None and guard.describe_call is None:
            return None
        loop = (f for f in self._frames_in_loop() if not is_ours(f.f_code.co_filename))
        frames = list(takewhile(lambda frame: whose_frame(frame) != "user", loop))
        try:
            with Inside("description"):
                told = guard.describe and guard.describe(frames)
                if told is None and guard.describe_call is not None:
                    told = guard.describe_call(*self._args, **self._kwargs)
                    # What the user's line calls is another library's, which calls this one.
                    told = told and (Told(told.subject, None) if frames else told)
                return told
        except Exception:  # a library that has changed must not hide the violation
            return None

    def _read_statement(self) -> str | None:
        read = self._guard.statement
        try:
            with Inside("unguarded"):
                statement = read and read(*self._args, **self._kwargs)
        except Exception:  # of a query object of the user's: it must not hide the violation
            return None
        if isinstance(statement, bytes):
            statement = statement.decode("utf-8", "replace")
        if not isinstance(statement, str):
            return None
        statement = " ".join(statement.split())
        if len(statement) <= STATEMENT_LIMIT:
            return statement
        return statement[: STATEMENT_LIMIT - 1] + "…"

    def violation(self, outcome: Outcome, reason: str | None) -> Violation:
        frames = [f for f in self._frames_in_loop() if not is_ours(f.f_code.co_filename)]
        owners = [whose_frame(frame) for frame in frames]
        programs: Whose = "user" if "user" in owners else "installed"
        users = [frame for frame, owner in zip(frames, owners, strict=True) if owner == programs]
        library, loop = self.running
        guard = self._guard
        told = self._read_line()
        return Violation(
            guard.operation,
            library=guard.library,
            statement=self._read_statement(),
            headline=guard.headline,
            subject=told and told.subject,
            hint=(told and told.fix) or guard.hint,
            loop=library,
            loop_type=_loop_type(loop) if library == "asyncio" else None,
            task=_task_name(self.running, self.user),
            call_site=_describe(self._site),
            coroutine=self._coroutine and _describe(self._coroutine),
            stack=tuple(map(_describe, users[:STACK_LIMIT])),
            whole_stack=() if programs == "user" else tuple(map(_describe, frames[:STACK_LIMIT])),
            importing=_importing(frames),
            outcome=outcome,
            reason=reason,
            begun_by=None if self.begun is None else self.begun.owner.name,
            begun_at=None if self.begun is None else self.begun.place,
            phase=self.phase,
        )


def call_site(frame: FrameType) -> Frame:
    """The user's innermost frame from here outwards; without one, an installed program's; without
    that, the outermost that isn't ours.
    """
    last = frame
    installed = None
    for outer in call_chain(frame):
        owner = whose_frame(outer)
        if owner == "user":
            return _describe(outer)
        if owner == "installed":
            installed = installed or outer
        if owner != "ours":
            last = outer
    return _describe(installed or last)


def _describe(frame: FrameType) -> Frame:
    code = frame.f_code
    return Frame(
        absolute(code.co_filename),
        frame.f_lineno or code.co_firstlineno,
        code.co_qualname,
        bool(code.co_flags & ASYNC_CODE),
    )


def _loop_type(loop: Any) -> str | None:
    if loop is None:  # in a worker thread
        return None
    module = type(loop).__module__
    return None if module.partition(".")[0] == "asyncio" else f"{module}.{type(loop).__qualname__}"


def _task_name(running: loops.Running, user: Owner | None) -> str | None:
    task = user.task() if user is not None else loops.current_task(running)
    name = task.get_name if hasattr(task, "get_name") else getattr(task, "name", None)
    return str(name() if callable(name) else name) if name is not None else None


def _importing(frames: list[FrameType]) -> str | None:
    """The innermost module whose import is under way: the import system called its code."""
    for inner, outer in pairwise(frames):
        if inner.f_code.co_name == "<module>" and outer.f_code.co_filename.startswith(
            "<frozen importlib"
        ):
            return str(inner.f_globals.get("__name__"))
    return None


def _finalize_code() -> CodeType:
    from weakref import finalize

    return finalize.__call__.__code__


#: The garbage collector calls weakref.finalize objects; a raise there is lost.
_FINALIZE = _finalize_code()
