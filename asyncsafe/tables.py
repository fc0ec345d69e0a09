"""What is guarded: an integration is a table of a library's operations, put in place and taken back."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import ModuleType

from .callables import is_asynchronous
from .exceptions import InstallationError
from .guards import Guard
from .imports import forget, when_imported
from .locks import ForkSafeLock
from .patching import Patch
from .stacks import add_guarded
from .wrappers import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType
    from typing import Any

    from .policy import Mode
    from .violation import Told


class Operation:
    """An attribute of a class (or module) that does I/O when it is called.

    name: the attribute.
    called: its name in messages, by default "library.Class.name".
    statement: called with the call's arguments: the SQL, as text or bytes.
    does_block: called with the call's arguments, only where a loop runs: whether this call does
        I/O. None: always.
    cleans_up: it ends something, and is never refused while an exception is on its way.
    setter: it is an attribute whose assignment does I/O; reading it is free.
    getter: it is an attribute whose reading does I/O.
    parameters: a C method's, where it doesn't tell them (`__text_signature__`), in that form. With
        them its guard costs a quarter of one that takes anything.
    adapt: called with the original: what is guarded in its place, where the original can't be
        called as it is once its type is patched.
    hint: what to write instead, where the coroutine makes the call itself.
    describe: called with the call's arguments: what it asks for, and what to write instead, where
        the integration's own `describe` has nothing to tell of the frames. None: it can't say.

    Raises TypeError for what is none of that.
    """

    __slots__ = (
        "adapt",
        "called",
        "cleans_up",
        "describe",
        "does_block",
        "getter",
        "hint",
        "name",
        "parameters",
        "setter",
        "statement",
    )

    def __init__(
        self,
        name: str,
        *,
        called: str | None = None,
        statement: Callable[..., object] | None = None,
        does_block: Callable[..., bool] | None = None,
        cleans_up: bool = False,
        setter: bool = False,
        getter: bool = False,
        parameters: str | None = None,
        adapt: Callable[[Any], Callable[..., Any]] | None = None,
        hint: str | None = None,
        describe: Callable[..., Told | None] | None = None,
    ) -> None:
        _check_operation(name, called, hint, parameters, statement, does_block, adapt)
        self.name: str = name
        self.called: str | None = called
        self.statement: Callable[..., object] | None = statement
        self.does_block: Callable[..., bool] | None = does_block
        self.cleans_up: bool = cleans_up
        self.setter: bool = setter
        self.getter: bool = getter
        self.parameters: str | None = parameters
        self.adapt: Callable[[Any], Callable[..., Any]] | None = adapt
        self.hint: str | None = hint
        self.describe: Callable[..., Told | None] | None = describe


class Integration:
    """A library: its modules, their classes, and the operations of each that do I/O.

    name: the library's, as install() takes it.
    operations: {module: {class: [Operation, ...]}}, "" for the module's own functions. A module
        is guarded when it is imported; what the installed version lacks is passed over.
    replaced: {module: {class: {attribute: what stands there while the library is guarded}}}. What
        is in a module of another package, which the library uses, is replaced with the first of
        the library's own.
    does_block: asked for every operation beside its own `does_block`, with the same arguments.
    connection: called with what an operation is of: the connection that it is or belongs to.
    trusted: packages that use the library on the loop and know what they do.
    describe: called with the frames from the call outwards, up to the user's: what the user's line
        asked for, and what to write instead; None where nothing better than the call is known.
    mode: called with what an operation is of: the mode that holds for it alone, or None.
    counts_frames: it finds the user's line for its warnings by the names of the frames' modules.
    distributions: those that may have installed it, for its version.
    tested: the versions that its tests have passed with, oldest first: ("2.0.51", "2.1.9").
    exempt: what is never refused, for the documentation: {what: why}.
    not_guarded: what can block and isn't guarded, for the documentation: {what: why}.

    Raises TypeError for a table of another form, and says what belongs there.
    """

    def __init__(
        self,
        name: str,
        operations: Mapping[str, Mapping[str, Sequence[Operation]]],
        *,
        replaced: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
        does_block: Callable[..., bool] | None = None,
        connection: Callable[[Any], Any] | None = None,
        trusted: tuple[str, ...] = (),
        describe: Callable[[list[FrameType]], Told | None] | None = None,
        mode: Callable[[Any], Mode | None] | None = None,
        counts_frames: bool = False,
        distributions: tuple[str, ...] = (),
        tested: tuple[str, ...] = (),
        exempt: Mapping[str, str] | None = None,
        not_guarded: Mapping[str, str] | None = None,
    ) -> None:
        _check_tables(name, operations, replaced or {})
        self.name = name
        self.operations = operations
        self.replaced: Mapping[str, Mapping[str, Mapping[str, Any]]] = replaced or {}
        self.describe: Callable[[list[FrameType]], Told | None] | None = describe
        self.mode: Callable[[Any], Mode | None] | None = mode
        self.does_block = does_block
        self.connection: Callable[[Any], Any] | None = connection
        self.trusted = trusted
        self.counts_frames = counts_frames
        self.distributions = distributions
        self.tested = tested
        self.exempt: Mapping[str, str] = exempt or {}
        self.not_guarded: Mapping[str, str] = not_guarded or {}
        self.installed: bool = False
        packages = {_package(module) for module in self.operations or self.replaced}
        add_guarded(packages)
        self._modules = [
            module
            for module in {**self.operations, **self.replaced}
            if _package(module) in packages
        ]
        self._others = [module for module in self.replaced if _package(module) not in packages]
        self._patches: list[tuple[Patch, Guard | None]] = []

    def install(self) -> None:
        """Guard it, now or when it is imported. Raises InstallationError where that can't be."""
        if self.installed:
            return
        self.installed = True
        try:
            for module in self._modules:
                when_imported(module, self._guard_module)
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Put everything back."""
        self.installed = False
        for module in self._modules:
            forget(module, self._guard_module)
        while self._patches:
            patch, guard = self._patches.pop()
            if guard is not None:
                guard.enabled = False
            patch.undo()

    def missing(self) -> list[str]:
        """What of the table isn't there in the installed version: ["theirlib.Client.ping", ...].

        For a test of the integration's author, which tells when the library renames something. It
        imports the modules of the table; one that can't be imported is missing with all it has.
        """
        found = []
        for module_name in (*self._modules, *self._others):
            try:
                __import__(module_name)
                module = sys.modules[module_name]
            except Exception as error:
                found.append(f"{module_name}: {type(error).__name__}: {error}")
                continue
            operations = self.operations.get(module_name, {})
            replaced = self.replaced.get(module_name, {})
            for class_name in {**operations, **replaced}:
                owner = getattr(module, class_name, None) if class_name else module
                where = f"{module_name}.{class_name}" if class_name else module_name
                if owner is None:
                    found.append(where)
                    continue
                there = {**vars(owner), **replaced.get(class_name, {})}
                found += [
                    f"{where}.{operation.name}{_is_inherited(owner, operation.name)}"
                    for operation in operations.get(class_name, ())
                    if operation.name not in there
                ]
        return found

    def _guard_module(self, module: ModuleType) -> None:
        if not self._patches:
            for name in self._others:
                __import__(name)
                self._patch_module(sys.modules[name])
        self._patch_module(module)

    def _patch_module(self, module: ModuleType) -> None:
        with _guard_lock:
            replaced = self.replaced.get(module.__name__, {})
            operations = self.operations.get(module.__name__, {})
            for class_name in {**operations, **replaced}:
                owner = getattr(module, class_name, None) if class_name else module
                if owner is None:
                    continue
                for attribute, replacement in replaced.get(class_name, {}).items():
                    self._patches.append((Patch(owner, attribute, replacement), None))
                for operation in operations.get(class_name, ()):
                    if operation.name in vars(owner):
                        self._guard_operation(owner, operation)

    def functions(self) -> Iterator[tuple[int, tuple[Integration, Patch, Guard]]]:
        """The guarded functions of its modules, by the id of what stood in their place."""
        for patch, guard in self._patches:
            # Without a guard it is no operation, but a name of the module's own: asyncio's
            # get_running_loop in django.utils.asyncio, which is everybody's elsewhere.
            if guard is not None and isinstance(patch.owner, ModuleType):
                yield id(patch.original), (self, patch, guard)

    def guard_name(self, module: ModuleType, name: str, patch: Patch, guard: Guard) -> None:
        """Guard a function under the name that another module has for it."""
        self._patches.append((Patch(module, name, patch.replacement, patch.original), guard))

    def _guard_operation(self, owner: Any, operation: Operation) -> None:
        current = vars(owner)[operation.name]
        guarded = _guarded.get((owner, operation.name))
        if guarded is None or current not in (guarded.original, guarded.replacement):
            guarded = self._build(owner, operation, current)
            _guarded[owner, operation.name] = guarded
        guarded.guard.enabled = True
        patch = Patch(owner, operation.name, guarded.replacement, guarded.original)
        self._patches.append((patch, guarded.guard))

    def _build(self, owner: Any, operation: Operation, current: Any) -> _Guarded:
        known = _originals.get(id(current))
        if known is not None:  # the wrapper of another name for the same function
            return known
        guard = Guard(
            operation.called or f"{self.name}.{owner.__name__}.{operation.name}",
            library=self.name,
            hint=operation.hint,
            statement=operation.statement,
            does_block=_both(operation.does_block, self.does_block),
            cleans_up=operation.cleans_up,
            connection=self.connection,
            trusted=self.trusted,
            describe=self.describe,
            describe_call=operation.describe,
            mode=self.mode,
        )
        _check_attribute(owner, operation, current)
        if operation.setter:
            replacement: Any = property(
                current.__get__, wrap(current.__set__, guard), current.__delete__
            )
            replacement.__doc__ = current.__doc__  # else it would be the getter's
        elif operation.getter:
            replacement = property(wrap(current.__get__, guard), doc=current.__doc__)
        else:
            kind = type(current) if isinstance(current, (classmethod, staticmethod)) else None
            function: Any = current.__func__ if kind else current
            original = operation.adapt(function) if operation.adapt else function
            replacement = wrap(original, guard, operation.parameters, counted=self.counts_frames)
            if kind:
                replacement = kind(replacement)
        guarded = _originals[id(replacement)] = _Guarded(current, replacement, guard)
        return guarded


def guard_names(integrations: Iterable[Integration]) -> None:
    """Guard what other modules imported by name (`from duckdb import connect`) before they could be guarded.

    Of a class that is no matter, since the class is what is guarded; a module's function is
    replaced where it stands. One look for all: there are tens of thousands of names.
    """
    with _guard_lock:
        functions = dict(found for one in integrations for found in one.functions())
        for module in tuple(sys.modules.values()) if functions else ():
            if not issubclass(type(module), ModuleType):
                continue
            # Not vars(): a lazy module would be executed for it.
            names = object.__getattribute__(module, "__dict__")
            for name, value in tuple(names.items()):
                if id(value) in functions:
                    one, patch, guard = functions[id(value)]
                    # A module that takes no assignments keeps its own.
                    with suppress(Exception):
                        one.guard_name(module, name, patch, guard)


def _package(module: str) -> str:
    return module.partition(".")[0]


def default_does_block(does_block: Callable[..., bool], *operations: Operation) -> list[Operation]:
    """These operations; those that have no `does_block` have this one."""
    for operation in operations:
        operation.does_block = operation.does_block or does_block
    return list(operations)


class _Guarded:
    """An attribute, its guarded replacement, and the guard."""

    __slots__ = ("guard", "original", "replacement")

    def __init__(self, original: Any, replacement: Any, guard: Guard) -> None:
        self.original = original
        self.replacement = replacement
        self.guard = guard


# What was once installed is kept for ever: traces that CPython's JIT made may point to it.
_guarded: dict[tuple[Any, str], _Guarded] = {}
_originals: dict[int, _Guarded] = {}
# Held without waiting for anything: while a thread that imports a library guards it, another may
# be waiting, in install(), for that import to end.
_guard_lock = ForkSafeLock()


def _check_operation(
    name: object,
    called: object,
    hint: object,
    parameters: object,
    *functions: object,
) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"Operation({name!r}): the first argument is an attribute's name")
    for text in (called, hint, parameters):
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"Operation({name!r}): called, hint and parameters are strings, not {text!r}"
            )
    for function in functions:
        if function is not None and not callable(function):
            raise TypeError(
                f"Operation({name!r}): statement, does_block and adapt are functions, not "
                f"{function!r}"
            )


def _check_tables(name: object, operations: object, replaced: object) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError(f"Integration({name!r}): the first argument is the library's name")
    for what, table in (("operations", operations), ("replaced", replaced)):
        form = (
            "{module: {class: [Operation(...), ...]}}"
            if what == "operations"
            else "{module: {class: {attribute: what stands there}}}"
        )
        for module, classes in _items(table, f"Integration({name!r}): {what}", form):
            for class_name, entries in _items(classes, f"{what}[{module!r}] of {name}", form):
                where = f"{what}[{module!r}][{class_name!r}] of {name}"
                if what == "replaced":
                    _items(entries, where, form)
                    continue
                for entry in entries if isinstance(entries, (list, tuple)) else [entries]:
                    if not isinstance(entry, Operation) or entry is entries:
                        raise TypeError(f"{where} has {entry!r}; the form is {form}")


def _items(table: Any, where: str, form: str) -> list[tuple[str, Any]]:
    if not hasattr(table, "items") or not all(isinstance(key, str) for key in table):
        raise TypeError(f"{where} is {table!r}; the form is {form}")
    return list(table.items())


def _check_attribute(owner: Any, operation: Operation, current: Any) -> None:
    """Raise InstallationError for an attribute that can't be guarded as the table says."""
    name = f"{owner.__name__}.{operation.name}"
    function = getattr(current, "__func__", current)
    if operation.setter:
        if not hasattr(current, "__set__"):
            raise InstallationError(f"{name} is no attribute to assign to: leave out setter=True")
    elif operation.getter:
        if not hasattr(current, "__get__"):
            raise InstallationError(f"{name} is no attribute to read: leave out getter=True")
    elif not callable(function):
        raise InstallationError(
            f"{name} is a {type(current).__name__}, and not called: an operation is a function, or "
            "an attribute whose assignment (setter=True) or reading (getter=True) does I/O"
        )
    elif is_asynchronous(function):
        raise InstallationError(f"{name} is asynchronous, and blocks nobody: leave it out")


def _is_inherited(owner: Any, name: str) -> str:
    """For `missing()`: where else the attribute is."""
    for base in getattr(owner, "__mro__", ())[1:]:
        if name in vars(base):
            return f" (it is {base.__module__}.{base.__qualname__}'s: name that class)"
    return ""


def _both(
    first: Callable[..., bool] | None, second: Callable[..., bool] | None
) -> Callable[..., bool] | None:
    if first is None or second is None:
        return first or second
    return lambda *args, **kwargs: first(*args, **kwargs) and second(*args, **kwargs)
