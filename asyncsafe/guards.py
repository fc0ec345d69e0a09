"""check() and wrap(): the hot path, and the only place where wrappers are built.

A wrapper has the guarded function's own signature, which costs a third of `*args, **kwargs`, and
one branch: `get_running_loop` is CPython's C function that returns None where no loop runs on
this thread. All that is slow lives behind it, in `blocked()`.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from time import perf_counter
from types import CodeType, FunctionType, MethodDescriptorType, WrapperDescriptorType

from . import loops, policy, scopes
from .callables import makes_generators
from .exceptions import AsyncUnsafeWarning, SynchronousOnlyOperation
from .recorder import Pending, violations
from .stacks import WRAPPER_FILE, greenlets
from .violation import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, Literal

    from .violation import Outcome

    Activity = Literal["call", "telling"]


_VARARGS, _VARKEYWORDS = 0x4, 0x8  # inspect.CO_*


class Guard:
    """What is known beforehand about a guarded callable."""

    __slots__ = (
        "cleans_up",
        "does_block",
        "enabled",
        "headline",
        "hint",
        "library",
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
        trusted: tuple[str, ...] = (),
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
        #: Packages that call it on the loop and know what they do.
        self.trusted: tuple[str, ...] = trusted
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


def blocked(
    guard: Guard, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A loop runs on this thread: find out whether this call would block it, and act on it."""
    pending = _admit(guard, args, kwargs)
    return call(*args, **kwargs) if pending is None else _make(pending, call, args, kwargs)


def _admit(
    guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any], cleaning_up: bool = False
) -> Pending | None:
    """What to record of a call that is to be made; None if nothing. Raises if it is refused."""
    if not guard.enabled:
        return None
    running = loops.find_running()
    if running is None:
        return None
    inside = _active_greenlets().get(_greenlet_id())
    if inside == "telling" or (inside == "call" and not scopes.forbidden(running)):
        return None
    if args and scopes.is_exempt(args[0]):
        return None
    if guard.does_block is not None and not _does_block(guard.does_block, args, kwargs):
        return None
    answer = policy.answer(running)
    if answer.mode == "off":
        return None
    call = Call(
        running,
        guard.operation,
        library=guard.library,
        headline=guard.headline,
        hint=guard.hint,
        statement=guard.statement and functools.partial(guard.statement, *args, **kwargs),
        frame=sys._getframe(1),
    )
    if guard.trusted and call.made_by(guard.trusted):
        return None
    if answer.mode == "raise":
        reason = _why_never_refused(guard, call, args, cleaning_up)
        if reason is None:
            with _Inside("telling"):
                violation = violations.refuse(call)
            raise SynchronousOnlyOperation(violation)
        answer = policy.Answer("allow", reason)
    with _Inside("telling"):
        if answer.mode == "warn":
            return _warn(call)
        outcome: Outcome = "recorded" if answer.mode == "record" else "allowed"
        return violations.begin(call, outcome, answer.reason)


def _make(
    pending: Pending, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Make the call, timed; guarded calls that it makes are part of it."""
    with _Inside("call") as inside:
        start = perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds = perf_counter() - start
            inside.becomes("telling")
            violations.end(pending, seconds)


def _does_block(
    does_block: Callable[..., bool], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    try:
        return does_block(*args, **kwargs)
    except Exception:
        # A closed connection, or arguments that don't fit: the call itself has the right error.
        return False


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


def _warn(call: Call) -> Pending:
    pending = violations.begin(call, "warned", None)
    site = pending.site
    if not site.warned:
        import warnings

        from .messages import describe

        where = site.violation.call_site
        warnings.warn_explicit(
            describe(site.violation), AsyncUnsafeWarning, where.filename, where.lineno
        )
        site.warned = True
    return pending


class _Inside:
    """Where a guarded call, or our own telling of one, is under way: by thread and greenlet.

    A guarded call within it is part of the outer one; within the telling (a subscriber's, a log
    handler's) it is nobody's, whatever forbids it. Not a context variable: tasks that are
    started inside would inherit that.
    """

    __slots__ = ("active", "greenlet", "outer")

    def __init__(self, what: Activity) -> None:
        self.active: dict[int, Activity] = _active_greenlets()
        self.greenlet: int = _greenlet_id()
        self.outer: Activity | None = self.active.get(self.greenlet)
        self.becomes(what)

    def becomes(self, what: Activity) -> None:
        self.active[self.greenlet] = what

    def __enter__(self) -> _Inside:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.outer is None:
            del self.active[self.greenlet]
        else:
            self.active[self.greenlet] = self.outer


_thread = threading.local()


def _active_greenlets() -> dict[int, Activity]:
    active: dict[int, Activity] | None = getattr(_thread, "active", None)
    if active is None:
        active = _thread.active = {}
    return active


def _greenlet_id() -> int:
    greenlet = greenlets()
    return 0 if greenlet is None else id(greenlet.getcurrent())


# Wrappers --------------------------------------------------------------------------------------


def wrap(
    call: Callable[..., Any], guard: Guard, parameters: str | None = None
) -> Callable[..., Any]:
    """A function that is `call`, guarded: its signature, name and documentation.

    call: a Python function, or any callable that takes arguments.
    parameters: those of a C method that doesn't tell its own, as `__text_signature__` would.
    """
    template = _GENERATOR_WRAPPER if makes_generators(call) else _WRAPPER
    signature, arguments = _signature(call, parameters)
    code = _compile(template.format(parameters=signature, **arguments))
    namespace: dict[str, Any] = {**loops.namespace, **_NAMES, "_call": call, "_guard": guard}
    exec(_own_copy(code), namespace)  # noqa: S102
    wrapper: FunctionType = namespace.pop("wrapper")
    loops.keep_bound(wrapper)
    functools.update_wrapper(wrapper, call)
    wrapper.__async_unsafe__ = guard  # type: ignore[attr-defined]
    return wrapper


def guard_of(function: Any) -> Guard | None:
    """The guard of a wrapper that `wrap` built; None for everything else."""
    if isinstance(function, FunctionType) and function.__code__.co_filename == WRAPPER_FILE:
        guard: Guard = getattr(function, "__async_unsafe__")
        return guard
    return None


_MISSING = object()

# A wrapper has its own copy of its code: CPython specializes code for the very function that it
# calls, and wrappers of one signature that shared it would undo that for each other. It also has
# its own global namespace: a closure costs a third more.
_WRAPPER = """\
def wrapper({parameters}):
    if get_running_loop() is not None:
        return _blocked(_guard, _call, {positional}, {keywords}){short}
    return _call({all})
"""

_GENERATOR_WRAPPER = """\
def wrapper({parameters}):
    return (yield from _advance(_guard, _call({all})))
"""

#: Where C code has a default of its own, a call that leaves the argument out must leave it out.
_WITHOUT_LAST = """ if {last} is not _MISSING else _blocked(_guard, _call, {positional}, {{}})
    if {last} is _MISSING:
        return _call({all})"""


@functools.cache
def _compile(source: str) -> CodeType:
    return compile(source, WRAPPER_FILE, "exec", dont_inherit=True)


def _own_copy(code: CodeType) -> CodeType:
    """A copy of this code, and of the code of the functions that it defines."""
    constants = (_own_copy(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=tuple(constants))


def _signature(call: Callable[..., Any], parameters: str | None) -> tuple[str, dict[str, str]]:
    """The parameters of a wrapper, and the arguments with which it makes the call."""
    if isinstance(call, FunctionType) and _READ.isdisjoint(call.__code__.co_varnames):
        return _python_signature(call)
    return _c_signature(call, parameters) or (
        "*args, **kwargs",
        {"positional": "args", "keywords": "kwargs", "all": "*args, **kwargs", "short": ""},
    )


def _python_signature(function: FunctionType) -> tuple[str, dict[str, str]]:
    code = function.__code__
    count = code.co_argcount
    positional = code.co_varnames[:count]
    keyword_only = code.co_varnames[count : count + code.co_kwonlyargcount]
    rest = iter(code.co_varnames[count + code.co_kwonlyargcount :])
    first_default = count - len(function.__defaults__ or ())
    # Defaults are the function's own from the start: CPython 3.13 doesn't specialize calls of a
    # function whose __defaults__ or __kwdefaults__ were ever set, a third of what a guard costs.
    parameters = [
        name if i < first_default else f"{name}=_call.__defaults__[{i - first_default}]"
        for i, name in enumerate(positional)
    ]
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    arguments = list(positional)
    keywords = [f"{name!r}: {name}" for name in keyword_only]
    passed = [f"{name}={name}" for name in keyword_only]
    if code.co_flags & _VARARGS:
        name = next(rest)
        parameters.append(f"*{name}")
        arguments.append(f"*{name}")
    elif keyword_only:
        parameters.append("*")
    optional = function.__kwdefaults__ or {}
    parameters += [
        f"{name}=_call.__kwdefaults__[{name!r}]" if name in optional else name
        for name in keyword_only
    ]
    if code.co_flags & _VARKEYWORDS:
        name = next(rest)
        parameters.append(f"**{name}")
        keywords.append(f"**{name}")
        passed.append(f"**{name}")
    return ", ".join(parameters), {
        "positional": f"({''.join(f'{argument}, ' for argument in arguments)})",
        "keywords": f"{{{', '.join(keywords)}}}",
        "all": ", ".join(arguments + passed),
        "short": "",
    }


def _c_signature(call: Any, told: str | None) -> tuple[str, dict[str, str]] | None:
    """For a C method that has one default at most: "($self, sql, parameters=(), /)"."""
    if not isinstance(call, (MethodDescriptorType, WrapperDescriptorType)):
        return None
    text = getattr(call, "__text_signature__", None) or told or ""
    self, *names = (part.strip() for part in text[1:-1].split(","))
    by_position_only = names[-1:] == ["/"]
    if by_position_only:
        names.pop()
    if self != "$self":
        return None
    required = ["self", *(name for name in names if "=" not in name)]
    optional = [name.partition("=")[0] for name in names if "=" in name]
    if len(optional) > 1 or not all(map(str.isidentifier, required + optional)):
        return None
    parameters = [*required, *(f"{name}=_MISSING" for name in optional)]
    parameters.insert(len(parameters) if by_position_only else 1, "/")
    without = {"positional": f"({', '.join(required)},)", "all": ", ".join(required)}
    with_all = [*required, *optional]
    return ", ".join(parameters), {
        "positional": f"({', '.join(with_all)},)",
        "keywords": "{}",
        "all": ", ".join(with_all),
        "short": _WITHOUT_LAST.format(last=optional[0], **without) if optional else "",
    }


def _advance(guard: Guard, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """`yield from generator`, each step of which is a guarded call."""
    step: Callable[[Any], Any] = generator.send
    argument: Any = None
    started = cleaning_up = False
    while True:
        pending = None
        if loops.namespace["get_running_loop"]() is not None:
            try:
                pending = _admit(guard, (), {}, cleaning_up)
            except (SynchronousOnlyOperation, AsyncUnsafeWarning) as refusal:
                if not started:
                    raise
                step, argument = generator.throw, refusal
        started = True
        try:
            item = step(argument) if pending is None else _make(pending, step, (argument,), {})
        except StopIteration as stop:
            return stop.value
        try:
            step, argument, cleaning_up = generator.send, (yield item), False
        except GeneratorExit:
            generator.close()
            raise
        except BaseException as error:
            step, argument, cleaning_up = generator.throw, error, True


#: What the code of every wrapper reads, beside its parameters and get_running_loop.
_NAMES = {"_MISSING": _MISSING, "_advance": _advance, "_blocked": blocked}
_READ = frozenset({*_NAMES, "_call", "_guard", "get_running_loop"})
