"""async_unsafe: a guard round anything synchronous that can be called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType

from .callables import is_asynchronous, is_made_by, makes_generators
from .guards import Guard
from .wrappers import guard_of, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, overload

    Target = TypeVar("Target")
else:

    def overload(function):
        """typing.overload takes 7 ms to import."""
        return function


@overload
def async_unsafe(message: str, /) -> Callable[[Target], Target]: ...
@overload
def async_unsafe(target: Target, /) -> Target: ...  # noqa: F811  (ruff knows typing's overload)
def async_unsafe(target: Any, /) -> Any:  # noqa: F811
    """Refuse calls of a synchronous function from a running event loop.

    Django's decorator (ticket #30451): the same name and the same two forms, bare or with the
    message to raise instead of ours. It takes

    - a function, a method, a callable without a Python signature, and classmethod, staticmethod,
      property or functools.cached_property, on either side of it;
    - a generator function, whose generator is checked each time it is advanced. A refused step is
      thrown into the generator at its `yield`, so that its own `except` and `finally` run;
    - a function made by contextlib.contextmanager: checked on entry and on exit;
    - a class: the public methods that it defines, and those of them that subclasses override.

    Returns the same kind of thing, with its name, signature, documentation and types. What is
    decorated already is not checked twice. Calls raise SynchronousOnlyOperation where the mode
    says so. Raises TypeError for coroutine functions and asynchronous generators: they are the
    event loop's own.
    """
    if isinstance(target, str):
        return functools.partial(_guarded, headline=target)
    return _guarded(target, None)


def _guarded(target: Any, headline: str | None) -> Any:
    if guard_of(target) is not None:
        return target if headline is None else _guarded(target.__wrapped__, headline)
    if isinstance(target, type):
        return _guard_class(target, headline)
    if isinstance(target, (staticmethod, classmethod)):
        return type(target)(_guarded(target.__func__, headline))
    if isinstance(target, property):
        fget, fset, fdel = (
            f and _guarded(f, headline) for f in (target.fget, target.fset, target.fdel)
        )
        return type(target)(fget, fset, fdel, target.__doc__)
    if isinstance(target, functools.cached_property):
        return _guard_cached_property(target, headline)
    if not callable(target):
        raise TypeError(
            "async_unsafe takes a function, a method, a property, a class or a message, "
            f"not {type(target).__name__}"
        )
    _refuse_asynchronous(target)
    if is_made_by("contextmanager", target):
        from contextlib import contextmanager

        return contextmanager(_guarded(getattr(target, "__wrapped__"), headline))
    hint = _GENERATOR_HINT if makes_generators(target) else None
    return wrap(target, Guard(_name(target), headline=headline, hint=hint))


_GENERATOR_HINT = (
    "await asyncsafe.database_sync_to_async(f)(...), with f a function that takes the items"
)


def _guard_cached_property(target: Any, headline: str | None) -> Any:
    guarded = type(target)(_guarded(target.func, headline))
    guarded.attrname = target.attrname
    return guarded


def _guard_class(cls: type, headline: str | None) -> type:
    """Guard the public methods that the class defines, and their overrides in its subclasses."""
    names = [
        name
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and isinstance(value, (FunctionType, staticmethod, classmethod))
        and not is_asynchronous(value)
    ]

    def guard_methods(owner: type) -> None:
        for name in names:
            value = vars(owner).get(name)
            if isinstance(value, (FunctionType, staticmethod, classmethod)):
                if not is_asynchronous(value):
                    setattr(owner, name, _guarded(value, headline))

    def guard_subclasses(owner: type[Any]) -> None:
        guard_methods(owner)
        for subclass in owner.__subclasses__():
            guard_subclasses(subclass)

    guard_subclasses(cls)
    own = vars(cls).get("__init_subclass__")

    def __init_subclass__(subclass: Any, /, **kwargs: Any) -> None:  # noqa: N807
        if own is not None:
            own.__get__(None, subclass)(**kwargs)
        else:  # the next one's, for `subclass`. dataclass(slots=True) puts a copy in place of `cls`
            owner = next(c for c in subclass.__mro__ if vars(c).get("__init_subclass__") is hook)
            super(owner, subclass).__init_subclass__(**kwargs)
        guard_methods(subclass)

    hook: Any = classmethod(__init_subclass__)
    setattr(cls, "__init_subclass__", hook)
    return cls


def _refuse_asynchronous(target: Any) -> None:
    if is_asynchronous(target):
        raise TypeError(
            f"async_unsafe guards synchronous functions; {_name(target)} is asynchronous and made "
            "for the event loop. Decorate the synchronous functions that it calls."
        )


def _name(target: Any) -> str:
    while isinstance(target, functools.partial):
        target = target.func
    named = target if hasattr(target, "__qualname__") else type(target)
    module = getattr(named, "__module__", None)
    return (
        f"{module}.{named.__qualname__}" if module not in {None, "__main__"} else named.__qualname__
    )
