"""What kind of function this is. The inspect module, which knows too, takes 12 ms to import."""

from __future__ import annotations

import functools
import sys
from types import FunctionType, MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: inspect.CO_GENERATOR
GENERATOR_CODE = 0x20
_COROUTINE = 0x80 | 0x100  # CO_COROUTINE, CO_ITERABLE_COROUTINE (types.coroutine)
_ASYNC_GENERATOR = 0x200  # CO_ASYNC_GENERATOR

#: Code that an event loop runs.
ASYNC_CODE: int = _COROUTINE | _ASYNC_GENERATOR


def is_asynchronous(target: Any) -> bool:
    """Whether calling this makes a coroutine, asynchronous generator or context manager."""
    if _flags(target) & ASYNC_CODE or is_made_by("asynccontextmanager", target):
        return True
    # inspect.markcoroutinefunction (Python 3.12): nobody can have marked what never imported it.
    inspect = sys.modules.get("inspect")
    return bool(inspect and inspect.iscoroutinefunction(target))


def is_coroutine_function(target: Any) -> bool:
    """Whether calling this makes a coroutine."""
    return bool(_flags(target) & _COROUTINE)


def makes_generators(target: Any) -> bool:
    """Whether calling this makes a generator, synchronous or not."""
    return bool(_flags(target) & (GENERATOR_CODE | _ASYNC_GENERATOR))


def is_made_by(decorator: str, target: Any) -> bool:
    """Whether a decorator of contextlib made this function: its code is the helper's in there."""
    contextlib = sys.modules.get("contextlib")
    if contextlib is None or not isinstance(target, FunctionType):
        return False
    made: FunctionType = getattr(contextlib, decorator)(_flags)
    return target.__code__ is made.__code__


def _flags(target: Any) -> int:
    """The code's flags, seen through methods and partials; a callable object's are its __call__'s."""
    while isinstance(target, (functools.partial, MethodType, staticmethod, classmethod)):
        target = target.func if isinstance(target, functools.partial) else target.__func__
    called = target if isinstance(target, FunctionType) else type(target).__call__
    return called.__code__.co_flags if isinstance(called, FunctionType) else 0
