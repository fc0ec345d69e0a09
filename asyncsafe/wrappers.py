"""wrap(): the hot path, and the only place where wrappers are built.

A wrapper has the guarded function's own signature, which costs a third of `*args, **kwargs`, and
one branch: `get_running_loop` is CPython's C function that returns None where no loop runs on
this thread. All that is slow lives behind it, in guards.blocked().
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType, FunctionType, MethodDescriptorType, WrapperDescriptorType

from . import loops
from .callables import makes_generators
from .exceptions import AsyncUnsafeWarning, SynchronousOnlyOperation
from .guards import Guard, admit, blocked, blocked_in, make
from .stacks import COUNTED_WRAPPER_FILE, WRAPPER_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

_VARARGS, _VARKEYWORDS = 0x4, 0x8  # inspect.CO_*


def wrap(
    call: Callable[..., Any], guard: Guard, parameters: str | None = None, *, counted: bool = False
) -> Callable[..., Any]:
    """A function that is `call`, guarded: its signature, name and documentation.

    call: a Python function, or any callable that takes arguments.
    parameters: those of a C method that doesn't tell its own, as `__text_signature__` would.
    counted: its library finds who called it by the names of the frames' modules, and counts them:
        the wrapper's frame is one of its module's.
    """
    template = _GENERATOR_WRAPPER if makes_generators(call) else _WRAPPER
    signature, arguments = _signature(call, parameters)
    source = template.format(parameters=signature, **arguments)
    code = _compile(source, COUNTED_WRAPPER_FILE if counted else WRAPPER_FILE)
    namespace: dict[str, Any] = {**loops.namespace, **_NAMES, "_call": call, "_guard": guard}
    if counted:
        namespace["__name__"] = call.__module__
        namespace["_blocked"] = blocked_in(call.__module__)
    exec(_own_copy(code), namespace)  # noqa: S102
    wrapper: FunctionType = namespace.pop("wrapper")
    loops.keep_bound(wrapper, watches=guard.connection is not None)
    functools.update_wrapper(wrapper, call)
    if isinstance(call, (MethodDescriptorType, WrapperDescriptorType)):
        wrapper.__module__ = call.__objclass__.__module__  # C methods have none; pickle asks for it
    wrapper.__async_unsafe__ = guard  # type: ignore[attr-defined]
    return wrapper


def guard_of(function: Any) -> Guard | None:
    """The guard of a wrapper that `wrap` built; None for everything else."""
    if isinstance(function, FunctionType) and function.__code__.co_filename in _FILES:
        guard: Guard = getattr(function, "__async_unsafe__")
        return guard
    return None


_FILES = (WRAPPER_FILE, COUNTED_WRAPPER_FILE)
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
    return (yield from _advance(_guard, _call({all}), {positional}, {keywords}))
"""

#: Where C code has a default of its own, a call that leaves the argument out must leave it out.
_WITHOUT_LAST = """ if {last} is not _MISSING else _blocked(_guard, _call, {positional}, {{}})
    if {last} is _MISSING:
        return _call({all})"""


@functools.cache
def _compile(source: str, filename: str) -> CodeType:
    return compile(source, filename, "exec", dont_inherit=True)


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
    is_method = isinstance(call, (MethodDescriptorType, WrapperDescriptorType))
    text = (getattr(call, "__text_signature__", None) if is_method else None) or told or ""
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


def _advance(
    guard: Guard, generator: Generator[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Any, Any, Any]:
    """`yield from generator`, each step of which is a guarded call with the arguments it was made of."""
    step: Callable[[Any], Any] = generator.send
    argument: Any = None
    started = cleaning_up = False
    while True:
        pending = None
        if loops.namespace["get_running_loop"]() is not None:
            try:
                pending = admit(guard, args, kwargs, cleaning_up)
            except (SynchronousOnlyOperation, AsyncUnsafeWarning) as refusal:
                if not started:
                    raise
                step, argument = generator.throw, refusal
        started = True
        try:
            item = step(argument) if pending is None else make(pending, step, (argument,), {})
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
