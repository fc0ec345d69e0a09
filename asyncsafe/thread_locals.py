"""use_local(): an ORM's threading.local, swapped for state that belongs to who uses it.

A `threading.local` is the same for every task of a loop's thread. What takes its place keeps one
state for each owner (a task; outside of tasks a thread; a request), makes it as `threading.local`
would, by calling the class's `__init__` with the same arguments, and lets it go when its owner ends.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import MemberDescriptorType, ModuleType
from typing import Any

from . import owners
from .exceptions import ConfigurationError, SynchronousOnlyOperation

__all__ = ["OwnerLocal", "SwappedLocal", "use_local"]

#: Whose thread-local state asyncsafe knows how to find: integrations/NAME.py has a `use_local`.
LIBRARIES = ("peewee", "pony", "sqlalchemy")

#: Special methods that a class has without being asked for, or that OwnerLocal has its own of.
_NOT_FORWARDED = frozenset(
    {"__class__", "__class_getitem__", "__del__", "__delattr__", "__dir__", "__getattr__"}
    | {"__getattribute__", "__init__", "__init_subclass__", "__new__", "__setattr__"}
    | {"__subclasshook__"}
)
#: What can be told to differ from what a class's `__init__` has set. Of locks, say, no two are equal.
_COMPARABLE = (type(None), bool, int, float, str, bytes, tuple, list, dict, set, frozenset)


class SwappedLocal:
    """A `threading.local` that `use_local` has swapped: `ConnectionMiddleware` takes it.

    It keeps the states, of which each owner has one.

    make: called without arguments for a new state.
    kind: the class that `isinstance` shall find.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        kind: type,
        release: Callable[[Any], object] | None = None,
        undo: Callable[[], object] | None = None,
    ) -> None:
        self.kind = kind
        self._make = make
        self._release = release
        self._undo = undo

    def state(self) -> Any:
        """The caller's own state: an instance of the class that was thread-local."""
        owner = owners.current()
        try:
            return owner.kept[self]
        except KeyError:
            owners.end_finished()
            state = self._make()
            owner.keep(self, state)
            return state

    def opened(self) -> None:
        """The caller's own state has got a connection, in this thread: it is closed here."""
        owner = owners.current()
        if self in owner.kept:
            owner.made_in[self] = threading.get_ident()

    def release(self, kept: Any) -> None:
        """Close what an owner's state holds."""
        if self._release is not None:
            self._release(kept)

    def close_all(self) -> None:
        """Close what the caller's own state holds, and forget it.

        Where a guard refuses that, nothing is forgotten.
        """
        owner = owners.current()
        if self in owner.kept:
            try:
                self.release(owner.kept[self])
            except SynchronousOnlyOperation:
                raise
            except BaseException:
                owner.drop(self)
                raise
            owner.drop(self)

    def undo(self) -> None:
        """Put the `threading.local` back. What the states hold is left to their owners."""
        if self._undo is not None:
            self._undo()


class OwnerLocal:
    """What stands in for a `threading.local`: its attributes are those of the caller's own state."""

    __slots__ = ("__weakref__", "_asyncsafe")

    _asyncsafe: SwappedLocal

    def __init__(self, swapped: SwappedLocal) -> None:
        object.__setattr__(self, "_asyncsafe", swapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asyncsafe.state(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._asyncsafe.state(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._asyncsafe.state(), name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._asyncsafe.kind

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        attributes: dict[str, Any] = vars(self._asyncsafe.state())
        return attributes

    def __dir__(self) -> list[str]:
        return dir(self._asyncsafe.state())


def use_local(thing: Any, /, *args: Any, **kwargs: Any) -> SwappedLocal:
    """Swap the thread-local state of `thing` for one that belongs to each task, thread or request.

    thing: a peewee Database; a SQLAlchemy scoped_session; pony (the module, or "pony"), before
        pony.orm is imported; or (object, attribute), where the attribute holds a `threading.local`.
    args, kwargs: for (object, attribute): what the class of that local was called with, if it is a
        subclass whose `__init__` takes arguments.

    What was swapped already is left as it is. Raises ConfigurationError, with what to do instead,
    where it can't be done: while a connection is open, for instance.
    """
    if isinstance(thing, tuple):
        if len(thing) != 2 or not isinstance(thing[1], str):
            raise ConfigurationError(
                'use_local() takes a pair of an object and an attribute\'s name: (registry, "local")'
            )
        return swap(*thing, make=None, arguments=(args, kwargs))
    if args or kwargs:
        raise ConfigurationError("arguments go with use_local((object, attribute), ...) alone")
    for library in LIBRARIES:
        if library in _libraries_of(thing):
            swapped: SwappedLocal = _integration(library).use_local(thing)
            return swapped
    raise ConfigurationError(
        f"use_local() doesn't know {type(thing).__module__}.{type(thing).__qualname__}: it takes a "
        'peewee Database, a SQLAlchemy scoped_session, "pony", or (object, attribute), where the '
        "attribute holds a threading.local"
    )


def swap(
    holder: Any,
    attribute: str,
    *,
    make: Callable[[], Any] | None = None,
    release: Callable[[Any], object] | None = None,
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
) -> SwappedLocal:
    """Put an OwnerLocal where this attribute holds a `threading.local`.

    make: called without arguments for a new state; by default what the local's class makes of
        `arguments`.
    release: called with the state when its owner ends.
    """
    name = f"{getattr(holder, '__name__', type(holder).__qualname__)}.{attribute}"
    try:
        local = getattr(holder, attribute)
    except AttributeError:
        raise ConfigurationError(f"{name} doesn't exist") from None
    if isinstance(local, OwnerLocal):
        return local._asyncsafe
    fresh = None
    if make is None:
        if not isinstance(local, threading.local):
            raise ConfigurationError(
                f"{name} holds a {type(local).__module__}.{type(local).__qualname__}, which is no "
                "threading.local"
            )
        make = _maker(local, *arguments)
        fresh = _fresh(name, local, make)
    undo = functools.partial(setattr, holder, attribute, local)
    swapped = SwappedLocal(make, type(local), release, undo)
    try:
        setattr(holder, attribute, _stand_in(swapped))
    except (AttributeError, TypeError) as error:
        raise ConfigurationError(f"{name} can't be set: {error}") from error
    if fresh is not None:
        owners.current().keep(swapped, fresh)  # its __init__ was called: not twice for one owner
    return swapped


def local_base(release: Callable[[Any], object] | None = None) -> type:
    """A class to inherit from instead of `threading.local`, by libraries that have it as a base.

    release: called with an instance's state when its owner ends.
    """

    class Local:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            def make() -> Any:
                state = object.__new__(cls)
                cls.__init__(state, *args, **kwargs)
                return state

            return _stand_in(SwappedLocal(make, cls, release))

    return Local


def _stand_in(swapped: SwappedLocal) -> OwnerLocal:
    """An OwnerLocal with the special methods of the class: Python looks them up in the type."""
    forwarded = {
        name: _forward(name)
        for name in dir(swapped.kind)
        if name.startswith("__") and name.endswith("__") and name not in _NOT_FORWARDED
        if getattr(swapped.kind, name) is not getattr(threading.local, name, None)
        and callable(getattr(swapped.kind, name))
    }
    if not forwarded:
        return OwnerLocal(swapped)
    kind: type[OwnerLocal] = type("OwnerLocal", (OwnerLocal,), {"__slots__": (), **forwarded})
    return kind(swapped)


def _forward(name: str) -> Callable[..., Any]:
    def special(self: OwnerLocal, *args: Any, **kwargs: Any) -> Any:
        state = self._asyncsafe.state()
        result = getattr(state, name)(*args, **kwargs)
        return self if result is state else result  # `with local as same:`, `local += 1`

    return special


def _maker(local: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """What makes states as the class of this `threading.local` would."""
    kind: type = type(local)
    if kind is threading.local:
        return type("State", (), {"__doc__": "The attributes that were set."})
    for special in ("__getattribute__", "__setattr__", "__delattr__"):
        if getattr(kind, special) is not getattr(threading.local, special):
            raise ConfigurationError(
                f"{kind.__qualname__} has a {special} of its own, which use_local() can't carry "
                "over: leave it out, or use a property"
            )
    # Its methods and its super() work on, as they do not in a copy without its base. But its
    # attributes are an object's: in every thread the same.
    own: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__getattribute__": object.__getattribute__,
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,
    }
    for base in kind.__mro__[: kind.__mro__.index(threading.local)]:
        for name, slot in vars(base).items():
            if isinstance(slot, MemberDescriptorType):
                own[name] = _shared(slot, local)
    return functools.partial(type(kind)(kind.__name__, (kind,), own), *args, **kwargs)


def _shared(slot: MemberDescriptorType, local: Any) -> property:
    """A slot of a `threading.local` is not thread-local: it stays where it is, for everybody."""
    return property(
        lambda _: slot.__get__(local),
        lambda _, value: slot.__set__(local, value),
        lambda _: slot.__delete__(local),
    )


def _fresh(name: str, local: Any, make: Callable[[], Any]) -> Any:
    """A new state. Raises ConfigurationError if this local holds something that it lacks."""
    try:
        fresh = make()
    except TypeError as error:
        raise ConfigurationError(
            f"the class of {name} takes arguments; pass them on: use_local((object, attribute), "
            f"*args, **kwargs). {error}"
        ) from error
    made = vars(fresh)
    set_already = sorted(
        key
        for key, held in vars(local).items()
        if key not in made or (isinstance(made[key], _COMPARABLE) and held != made[key])
    )
    if set_already:
        raise ConfigurationError(
            f"{name} holds {', '.join(set_already)} in this thread already, which would be lost: "
            "call use_local() before it is used, with the arguments that its class was called with"
        )
    return fresh


def _libraries_of(thing: Any) -> set[str]:
    if isinstance(thing, str):
        return {thing}
    if isinstance(thing, ModuleType):
        return {thing.__name__.partition(".")[0]}
    modules = {kind.__module__.partition(".")[0] for kind in type(thing).__mro__}
    return modules | ({"peewee"} if "playhouse" in modules else set())


def _integration(library: str) -> Any:
    name = f"{__package__}.integrations.{library}"
    __import__(name)
    return sys.modules[name]
