"""check(), and what is done about a guarded call while a loop runs on its thread."""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Callable
from time import perf_counter
from types import FunctionType

from . import baseline, loops, owners, policy, scopes, sharing
from .exceptions import AsyncUnsafeWarning, ConnectionSharingError, django_imported, refusal
from .imports import when_imported
from .nesting import Inside, under_way
from .recorder import Pending, violations
from .stacks import COUNTED_WRAPPER_FILE, WRAPPER_FILE
from .violation import Call, call_site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, TypeVar

    from .nesting import Activity
    from .violation import Frame, Told

    Function = TypeVar("Function", bound=FunctionType | Callable[..., Any])


class Guard:
    """What is known beforehand about a guarded callable."""

    __slots__ = (
        "cleans_up",
        "connection",
        "describe",
        "describe_call",
        "does_block",
        "enabled",
        "headline",
        "hint",
        "library",
        "mode",
        "operation",
        "statement",
        "trusted",
    )

    def __init__(
        self,
        operation: str,
        *,
        headline: str | None = None,
        hint: str | None = None,
        library: str | None = None,
        does_block: Callable[..., bool] | None = None,
        statement: Callable[..., object] | None = None,
        cleans_up: bool = False,
        connection: Callable[[Any], Any] | None = None,
        trusted: tuple[str, ...] = (),
        describe: Callable[[list[FrameType]], Told | None] | None = None,
        describe_call: Callable[..., Told | None] | None = None,
        mode: Callable[[Any], policy.Mode | None] | None = None,
    ) -> None:
        #: Its name in messages, without the parentheses.
        self.operation: str = operation
        #: What to say instead of the message's first line.
        self.headline: str | None = headline
        #: What to write instead, where the coroutine makes the call itself.
        self.hint: str | None = hint
        #: The library that it belongs to, or None.
        self.library: str | None = library
        #: Called with the call's arguments: whether this call can block at all. None: always.
        self.does_block: Callable[..., bool] | None = does_block
        #: Called with the call's arguments: the SQL.
        self.statement: Callable[..., object] | None = statement
        #: Whether it ends something (close, rollback, __exit__): never refused on an error's way out.
        self.cleans_up: bool = cleans_up
        #: Called with the first argument: the connection that it is, or belongs to.
        self.connection: Callable[[Any], Any] | None = connection
        #: Packages that call it on the loop and know what they do.
        self.trusted: tuple[str, ...] = trusted
        #: Called with the frames from the call to the user's: what the user's line asked for.
        self.describe: Callable[[list[FrameType]], Told | None] | None = describe
        #: Called with the call's arguments, where that tells nothing.
        self.describe_call: Callable[..., Told | None] | None = describe_call
        #: Called with the first argument: the mode that holds for it alone, or None.
        self.mode: Callable[[Any], policy.Mode | None] | None = mode
        #: False once uninstalled: a wrapper that somebody kept is a plain call from then on.
        self.enabled: bool = True


def check(operation: str | None = None) -> None:
    """Refuse to go on from here in a running event loop, as a call of `operation` would.

    operation: what the message names, "orders.find"; by default the calling function.
    Raises SynchronousOnlyOperation where the mode says so; does nothing where no loop runs.
    """
    if loops.namespace["get_running_loop"]() is not None:
        if operation is None:
            operation = sys._getframe(1).f_code.co_qualname
        elif not isinstance(operation, str):
            raise TypeError(f"check() takes the operation's name, not {type(operation).__name__}")
        blocked(Guard(operation), loops.nothing, (), {})


# Behind the branch ---------------------------------------------------------------------------

#: Where a call's connection is watched: not within another call that has one.
_WATCHED = (None, "connecting")


def _unseen(function: Function) -> Function:
    """Have warnings that look for a caller pass over this function, as over a wrapper."""
    function.__code__ = function.__code__.replace(co_filename=WRAPPER_FILE)
    return function


@_unseen
def _forward(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call(*args, **kwargs)


# C code's warnings are attributed to the frame that makes the call: on the loop, to this one.
_forward = FunctionType(_forward.__code__, {**loops.namespace, "__builtins__": builtins})


@_unseen
def blocked(
    guard: Guard, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A loop runs on this thread: find out whether this call would block it, and act on it.

    Or this thread works for a task, and the call is one on a connection, which another task may
    be using.
    """
    if guard.does_block is not None and not _does_block(guard.does_block, args, kwargs):
        # Here, since asynchronous engines' calls (SQLAlchemy's) come this way many times a query.
        return _forward(call, args, kwargs)
    if args and scopes.is_exempt(args[0], guard.connection):
        with Inside("unguarded"):
            return _forward(call, args, kwargs)
    if guard.mode is not None and args and guard.mode(args[0]) == "off" and not _forbidden():
        with Inside("unguarded"):
            return _forward(call, args, kwargs)
    activity: Activity = "call"
    if guard.connection is not None and args and guard.enabled and under_way() in _WATCHED:
        user = owners.at_work()
        if user is not None and policy.current_mode()[0] != "off":
            connection = guard.connection(args[0])
            if connection is not None:
                return _call_on_connection(guard, call, args, kwargs, user, connection)
            activity = "connecting"
    pending = admit(guard, args, kwargs)
    if pending is None:
        return _forward(call, args, kwargs)
    return make(pending, call, args, kwargs, activity)


@_unseen
def _call_on_connection(
    guard: Guard,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    user: owners.Owner,
    connection: Any,
) -> Any:
    """As `blocked`, while keeping book of who began which transaction."""
    nobodys = sharing.is_nobodys(connection)
    begun = sharing.begun_by_another(connection, user)
    if begun is not None:
        _tell_sharing(guard, args, kwargs, user, begun)
    pending = admit(guard, args, kwargs)
    returned = None
    try:
        if pending is not None:
            result = make(pending, call, args, kwargs)
        elif begun is None:
            result = _forward(call, args, kwargs)
        else:
            with Inside("call"):  # it was told: not once more by what it calls
                result = _forward(call, args, kwargs)
        returned = guard.operation
        return result
    finally:
        if connection is None:  # an ORM's call may have opened it
            assert guard.connection is not None
            connection = guard.connection(args[0])
        sharing.used(connection, user, functools.partial(_call_site, pending), returned, nobodys)


@functools.cache
def blocked_in(module: str) -> Callable[..., Any]:
    """`blocked`, whose frames are this module's: its library counts its own to find who called it."""
    namespace = {**globals(), "__name__": module}
    for function in (_forward, make, _call_on_connection, blocked):
        code = function.__code__.replace(co_filename=COUNTED_WRAPPER_FILE)
        name = function.__name__
        namespace[name] = FunctionType(code, namespace, name, function.__defaults__)
    counted: Callable[..., Any] = namespace["blocked"]
    return counted


def admit(
    guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any], cleaning_up: bool = False
) -> Pending | None:
    """What to record of a call that is to be made; None if nothing. Raises if it is refused."""
    if not guard.enabled:
        return None
    running = loops.find_running()
    if running is None:
        return None
    inside = under_way()
    if inside == "description":
        # Not the description's: the garbage collector came in between.
        if guard.cleans_up or isinstance(sys.exc_info()[1], GeneratorExit):
            return None
        if Call(running, guard, args, kwargs).finalizing:
            return None
        raise RuntimeError(f"{guard.operation}() in the description of another call")
    if inside == "unguarded" or (inside is not None and not scopes.forbidden(running)):
        return None
    if guard.does_block is not None and not _does_block(guard.does_block, args, kwargs):
        return None
    call = Call(running, guard, args, kwargs)
    own_mode = guard.mode(args[0]) if guard.mode and args else None
    answer = policy.answer(running, own_mode, call.phase)
    if answer.mode == "off":
        return None
    if guard.trusted and call.made_by(guard.trusted):
        return None
    if answer.mode == "allow":
        return violations.begin(call, "allowed", answer.reason)
    if answer.mode == "raise" or baseline.active() is not None:
        reason = _why_let_through(guard, call, args, answer, cleaning_up)
        if reason is not None:
            return violations.begin(call, "allowed", reason)
        if answer.mode == "raise":
            raise refusal(violations.refuse(call))
    return _warn(call) if answer.mode == "warn" else violations.begin(call, "recorded", None)


@_unseen
def make(
    pending: Pending,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    activity: Activity = "call",
) -> Any:
    """Make the call, timed; guarded calls that it makes are part of it."""
    start = perf_counter()
    try:
        with Inside(activity):
            return _forward(call, args, kwargs)
    finally:
        violations.end(pending, perf_counter() - start)


def _tell_sharing(
    guard: Guard,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    user: owners.Owner,
    begun: sharing.Begun,
) -> None:
    """`user` is about to use a connection with a transaction of another's: raise, warn or record.

    allow() and DJANGO_ALLOW_ASYNC_UNSAFE lift the check for blocking, not this one; nor is
    clean-up let through, which would end the other's transaction: only what a finalizer does, or
    a generator that is being closed, where a refusal would be lost.
    """
    running = loops.find_running()
    if guard.does_block is not None and not _does_block(guard.does_block, args, kwargs):
        return
    if guard.cleans_up and begun.owner.ended:
        return  # the other is gone, and nobody else is left to end its transaction
    call = Call(running or ("asyncio", None), guard, args, kwargs, begun, user)
    if guard.trusted and call.made_by(guard.trusted):
        return
    mode = policy.mode_for_sharing(running)
    lost = call.finalizing or isinstance(call.exception_on_its_way(), GeneratorExit)
    forbidden = running is not None and scopes.forbidden(running)
    known = None if lost or forbidden else baseline.active()
    reason = None if known is None else known.allows(call)
    if known is not None and reason is None:
        known.add(call)
    if mode == "raise" and not lost and reason is None:
        raise ConnectionSharingError(violations.refuse(call))
    if reason is not None:
        pending = violations.begin(call, "allowed", reason)
    else:
        pending = _warn(call) if mode == "warn" else violations.begin(call, "recorded", None)
    if pending is not None:
        violations.end(pending, 0.0)


def _call_site(pending: Pending | None) -> Frame:
    if pending is not None and pending.site.violation.begun_at is None:
        return pending.site.violation.call_site
    return call_site(sys._getframe(1))


def _forbidden() -> bool:
    running = loops.find_running()
    return running is not None and scopes.forbidden(running)


def _does_block(
    does_block: Callable[..., bool], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    try:
        return does_block(*args, **kwargs)
    except Exception:
        # A closed connection, or arguments that don't fit: the call itself has the right error.
        return False


def _why_let_through(
    guard: Guard, call: Call, args: tuple[Any, ...], answer: policy.Answer, cleaning_up: bool
) -> str | None:
    """Why this call is no violation: the baseline knows it, or its refusal would lose something."""
    known = None if answer is policy.FORBIDDEN or _is_startups(call) else baseline.active()
    reason = None if known is None else known.allows(call)
    if reason is not None or (known is None and answer.mode != "raise"):
        return reason
    reason = _why_never_refused(guard, call, args, cleaning_up)
    if known is not None and reason is None:
        known.add(call)
    return reason if answer.mode == "raise" else None


def _is_startups(call: Call) -> bool:
    """Whether the setting `startup` decides on this call, and not the baseline."""
    return call.phase is not None and policy.current_startup()[0] != "raise"


def _why_never_refused(
    guard: Guard, call: Call, args: tuple[Any, ...], cleaning_up: bool
) -> str | None:
    """Why refusing this call would lose something, or None.

    A refusal out of a finalizer is lost, with what was to be freed; one on an error's way out
    hides the error and leaves a transaction open.
    """
    if call.finalizing:
        return "in a finalizer"
    on_its_way = call.exception_on_its_way()
    if isinstance(on_its_way, GeneratorExit):
        return "a generator is being closed"
    if not (guard.cleans_up or cleaning_up):
        return None
    if cleaning_up or on_its_way is not None or any(isinstance(a, BaseException) for a in args):
        return "clean-up while an exception is on its way"
    return None


def _warn(call: Call) -> Pending | None:
    pending = violations.begin(call, "warned", None)
    if pending is not None and not pending.site.warned:
        import warnings

        violation = pending.site.violation
        where = violation.call_site
        with Inside("unguarded"):
            warnings.warn_explicit(
                violation.message(), AsyncUnsafeWarning, where.filename, where.lineno
            )
        pending.site.warned = True
    return pending


when_imported("django.core.exceptions", django_imported)
