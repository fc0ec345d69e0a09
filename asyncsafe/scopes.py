"""Where a rule holds: allow() and forbid() for a block of code, exempt() for an object."""

from __future__ import annotations

import functools
import sys
from contextvars import ContextVar

from . import loops
from .callables import is_coroutine_function, is_made_by, makes_generators
from .locks import ForkSafeLock
from .stacks import lineage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])


class _Entry:
    """One entry of a scope, by one caller. A context variable carries it to the calls below.

    Contexts are copied, to child tasks and sometimes to threads, so an entry counts only for
    the caller that made it, and not after it has ended.
    """

    __slots__ = (
        "active",
        "forbids",
        "greenlet",
        "outer",
        "reason",
        "scope",
        "task",
        "thread",
        "token",
    )

    def __init__(self, scope: _Scope, outer: _Entry | None) -> None:
        self.scope = scope
        self.thread, greenlet, task = loops.current_caller(loops.find_running())
        self.greenlet = None if greenlet is None else _reference(greenlet)
        self.task = None if task is None else _reference(task)
        self.outer = outer
        self.forbids = scope._forbids
        self.reason = scope._reason
        self.active = True
        self.token: Token[_Entry | None] | None = None

    def holds_for(self, caller: loops.Caller) -> bool:
        thread, greenlet, task = caller
        if self.thread != thread or (None if self.task is None else self.task()) is not task:
            return False
        if self.task is not None and task is None:
            return False  # the task that entered is gone
        if self.greenlet is None or self.greenlet() is greenlet:
            return True
        # SQLAlchemy's greenlets run below the coroutine that spawned them, in its task.
        return task is not None and greenlet is not None and self.greenlet() in lineage(greenlet)


_innermost: ContextVar[_Entry | None] = ContextVar("asyncsafe.scope", default=None)
_forbidding = 0
_lock = ForkSafeLock()


def current_scopes(running: loops.Running | None) -> list[_Entry]:
    """The entries that hold for whoever runs now, innermost first."""
    entry = _innermost.get()
    if entry is None:
        return []
    caller = loops.current_caller(running)
    held = []
    while entry is not None:
        if entry.active and entry.holds_for(caller):
            held.append(entry)
        entry = entry.outer
    return held


class _Scope:
    """A context manager, synchronous and asynchronous, and a decorator. Re-entrant, reusable."""

    _forbids = False
    _reason: str | None = None

    def __init__(self) -> None:
        self._entries: dict[_Entry, None] = {}

    def __enter__(self) -> None:
        outer = _innermost.get()
        while outer is not None and not outer.active:
            outer = outer.outer
        entry = _Entry(self, outer)
        entry.token = _innermost.set(entry)
        self._entries[entry] = None
        if self._forbids:
            _count_forbidding(1)

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        entry = self._take_entry()
        entry.active = False
        if self._forbids:
            _count_forbidding(-1)
        if _innermost.get() is entry and entry.token is not None:
            try:
                _innermost.reset(entry.token)
            except ValueError:
                # Left in a copy of the context that it was entered in (an async fixture's
                # teardown, an async generator's finalizer). The entry is inactive all the same.
                _innermost.set(entry.outer)

    def _take_entry(self) -> _Entry:
        """The innermost entry by whoever leaves; without one, the last that anybody made."""
        entry = _innermost.get()
        while entry is not None and not (entry.scope is self and entry.active):
            entry = entry.outer
        if entry is None:
            if not self._entries:
                raise RuntimeError(f"{type(self).__name__}() was left without having been entered")
            # Entered in another context than it is left in: an async fixture's, say.
            entry = next(reversed(self._entries))
        self._entries.pop(entry, None)
        return entry

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.__exit__()

    def _copy(self) -> _Scope:
        copied = object.__new__(type(self))
        _Scope.__init__(copied)
        copied._reason = self._reason
        return copied

    def __call__(self, function: Function) -> Function:
        name = type(self).__name__
        if not callable(function) or isinstance(function, (staticmethod, type)):
            raise TypeError(f"@{name}() decorates a function, not {type(function).__name__}")
        if makes_generators(function) or is_made_by("contextmanager", function):
            raise TypeError(
                f"@{name}() doesn't decorate a generator function, whose caller would run inside "
                f"the scope as well: write `with asyncsafe.{name}(...)` round the lines it is for"
            )

        if is_coroutine_function(function):

            @functools.wraps(function)
            async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._copy():
                    return await function(*args, **kwargs)

            return async_wrapper  # type: ignore[return-value]

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._copy():
                return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


class allow(_Scope):  # noqa: N801  (used like a function)
    """Let guarded calls through, in this block and the calls below it.

    `with`, `async with`, or a decorator of a function or coroutine function. It holds for the
    task (or greenlet, or thread) that entered it alone: not for tasks started inside, nor for
    threads that inherit the context. It ends on every exit.

    reason: why this is fine. It stands in the record of each call that was let through.
    """

    def __init__(self, reason: str | None = None) -> None:
        if reason is not None and not isinstance(reason, str):
            raise TypeError('write allow("why this is fine"), with the reason as a string')
        super().__init__()
        self._reason = reason


class forbid(_Scope):  # noqa: N801  (used like a function)
    """Refuse guarded calls on the loop, in this block and the calls below it.

    The opposite of `allow()`, used and held in the same ways, and stronger than it, than the
    environment and than any mode.
    """

    _forbids = True

    def __init__(self) -> None:
        super().__init__()


def _count_forbidding(step: int) -> None:
    global _forbidding
    with _lock:
        _forbidding += step
        if _forbidding:
            loops.wake(True)  # answer() puts them to sleep again where the mode is "off"


def sleep_unless_forbidding() -> None:
    with _lock:
        if not _forbidding:
            loops.wake(False)


def forbidden(running: loops.Running) -> bool:
    """Whether the caller is inside `forbid()`."""
    return bool(_forbidding) and any(scope.forbids for scope in current_scopes(running))


# exempt()


def exempt(connection: Any) -> None:
    """Let one object through: a connection that is safe on the loop, or what a guarded method is of.

    A connection's cursors are let through with it, and so is all that its own calls call; with an
    engine of SQLAlchemy's its connections, and the sessions and results that use it. It is
    held by a weak reference; an object that allows none (sqlite3.Connection) is held until the
    first exempt() after everybody else has let go of it.

    Raises TypeError for what is no such object.
    """
    if connection is None or isinstance(connection, (str, bytes, int, float, tuple, list, dict)):
        raise TypeError(
            f"exempt() takes a connection, an engine or a database, not {type(connection).__name__}"
        )
    # What guards see is the driver's: below a ConnectionHandler, and below SQLAlchemy's pools.
    connection = getattr(connection, "driver_connection", connection)
    _drop_unused()
    _exempt[id(connection)] = _reference(connection)


def is_exempt(thing: Any, connection: Callable[[Any], Any] | None = None) -> bool:
    """Whether `exempt()` was called with this object, or with what `connection` finds for it."""
    if not _exempt:
        return False
    return _is_listed(thing) or (connection is not None and _is_listed(connection(thing)))


def exempted() -> list[Any]:
    """What `exempt()` was called with, and is still there."""
    things = (reference() for reference in tuple(_exempt.values()))
    return [thing for thing in things if thing is not None]


class _Held:
    """A strong reference that is called like a weak one."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __call__(self) -> Any:
        return self.thing


_exempt: dict[int, Callable[[], Any]] = {}


def _reference(thing: Any) -> Callable[[], Any]:
    """A weak reference where the type allows one."""
    from weakref import ref

    try:
        return ref(thing)
    except TypeError:
        return _Held(thing)


def _is_listed(thing: Any) -> bool:
    reference = _exempt.get(id(thing))
    return reference is not None and reference() is thing


def _drop_unused() -> None:
    for key, reference in tuple(_exempt.items()):
        # Two references are left where nobody else holds it: _Held's and getrefcount's argument.
        unused = isinstance(reference, _Held) and sys.getrefcount(reference.thing) <= 2
        if unused or reference() is None:
            _exempt.pop(key, None)
