"""install() and uninstall(): guard a library when it is imported, and take it back cleanly."""

from __future__ import annotations

import sys
from types import ModuleType

from . import policy
from .exceptions import AsyncUnsafeWarning, InstallationError
from .guards import Guard
from .imports import forget, when_imported
from .locks import ForkSafeLock
from .patching import Patch
from .wrappers import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType
    from typing import Any

    from .policy import Mode
    from .violation import Told

#: The libraries that have an integration: asyncsafe/integrations/NAME.py.
LIBRARIES = (
    "apsw",
    "django",
    "duckdb",
    "mysql.connector",
    "mysqlclient",
    "oracledb",
    "pg8000",
    "psycopg",
    "psycopg2",
    "pymysql",
    "pyodbc",
    "pysqlite3",
    "sqlite3",
)
#: What else of them can block, and is guarded where install() is asked for it.
OPTIONAL = ("django.caches", "django.files", "django.mail", "django.sessions")


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
    """

    __slots__ = (
        "adapt",
        "called",
        "cleans_up",
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
    ) -> None:
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


class Integration:
    """A library: its modules, their classes, and the operations of each that do I/O.

    name: the library's, as install() takes it.
    operations: {module: {class: [Operation, ...]}}, "" for the module's own functions. A module
        is guarded when it is imported; what the installed version lacks is passed over.
    replaced: {module: {class: {attribute: what stands there while the library is guarded}}}.
    does_block: asked for every operation beside its own `does_block`, with the same arguments.
    connection: called with what an operation is of: the connection that it is or belongs to.
    trusted: packages that use the library on the loop and know what they do.
    describe: called with the frames from the call outwards, up to the user's: what the user's line
        asked for, and what to write instead; None where nothing better than the call is known.
    mode: called with what an operation is of: the mode that holds for it alone, or None.
    distributions: those that may have installed it, for its version.
    tested: the versions that its tests have passed with, oldest first: ("2.0.51", "2.1.9").
    exempt: what is never refused, for the documentation: {what: why}.
    not_guarded: what can block and isn't guarded, for the documentation: {what: why}.
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
        distributions: tuple[str, ...] = (),
        tested: tuple[str, ...] = (),
        exempt: Mapping[str, str] | None = None,
        not_guarded: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.operations = operations
        self.replaced: Mapping[str, Mapping[str, Mapping[str, Any]]] = replaced or {}
        self.describe: Callable[[list[FrameType]], Told | None] | None = describe
        self.mode: Callable[[Any], Mode | None] | None = mode
        self.does_block = does_block
        self.connection: Callable[[Any], Any] | None = connection
        self.trusted = trusted
        self.distributions = distributions
        self.tested = tested
        self.exempt: Mapping[str, str] = exempt or {}
        self.not_guarded: Mapping[str, str] = not_guarded or {}
        self.installed: bool = False
        self._patches: list[tuple[Patch, Guard | None]] = []

    def install(self) -> None:
        """Guard it, now or when it is imported. Raises InstallationError where that can't be."""
        if self.installed:
            return
        self.installed = True
        try:
            for module in {**self.operations, **self.replaced}:
                when_imported(module, self._guard_module)
            self._guard_names()
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Put everything back."""
        self.installed = False
        for module in {**self.operations, **self.replaced}:
            forget(module, self._guard_module)
        while self._patches:
            patch, guard = self._patches.pop()
            if guard is not None:
                guard.enabled = False
            patch.undo()

    def _guard_module(self, module: ModuleType) -> None:
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

    def _guard_names(self) -> None:
        """What other modules imported by name (`from duckdb import connect`) before they could be guarded.

        Of a class that is no matter, since the class is what is guarded; a module's function is
        replaced where it stands.
        """
        with _guard_lock:
            functions = {
                id(patch.original): (patch, guard)
                for patch, guard in self._patches
                if isinstance(patch.owner, ModuleType) and patch.original is not patch.replacement
            }
            for module in tuple(sys.modules.values()) if functions else ():
                if not issubclass(type(module), ModuleType):
                    continue
                # Not vars(): a lazy module would be executed for it.
                names = object.__getattribute__(module, "__dict__")
                for name, value in tuple(names.items()):
                    if id(value) in functions:
                        patch, guard = functions[id(value)]
                        another = Patch(module, name, patch.replacement, value)
                        self._patches.append((another, guard))

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
            mode=self.mode,
        )
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
            replacement = wrap(original, guard, operation.parameters)
            if kind:
                replacement = kind(replacement)
        guarded = _originals[id(replacement)] = _Guarded(current, replacement, guard)
        return guarded


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

_integrations: dict[str, Integration] = {}
_lock = ForkSafeLock()
# Held without waiting for anything: while a thread that imports a library guards it, another may
# be waiting, in install(), for that import to end.
_guard_lock = ForkSafeLock()


def install(*libraries: str) -> None:
    """Guard libraries: their synchronous operations are refused from a running event loop.

    libraries: "sqlite3", "psycopg2", ...; none: every supported one. What is not imported yet is
        guarded when it is, and never imported by this. Connections made before are guarded too.

    Raises ValueError for a name that is not supported, InstallationError where a library can't
    be guarded on this interpreter (without names: a warning), ConfigurationError where the
    environment or pyproject.toml holds a bad setting.
    """
    policy.current_mode()
    with _lock:
        for name in _checked(libraries, LIBRARIES):
            try:
                integration(name).install()
            except InstallationError as error:
                if libraries:
                    raise
                import warnings

                warnings.warn(str(error), AsyncUnsafeWarning, stacklevel=2)


def uninstall(*libraries: str) -> None:
    """Take `install()` back, for the libraries named or for all: their types are as they were.

    Where somebody else has patched over a guard, theirs stays, and the guard below it lets
    everything through.

    Raises ValueError for a name that is not supported.
    """
    with _lock:
        for name in _checked(libraries, (*LIBRARIES, *OPTIONAL)):
            integration(name).uninstall()


def integration(name: str) -> Integration:
    """The integration of a library, from its module in asyncsafe.integrations."""
    if name not in _integrations:
        module = __import__(f"{__package__}.integrations.{name}", fromlist=["integration"])
        _integrations[name] = module.integration
    return _integrations[name]


def _checked(libraries: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    for name in libraries:
        if name not in (*LIBRARIES, *OPTIONAL):
            known = ", ".join(sorted((*LIBRARIES, *OPTIONAL)))
            raise ValueError(f"asyncsafe has no guard for {name!r}; it has: {known}")
    return libraries or default


def _both(
    first: Callable[..., bool] | None, second: Callable[..., bool] | None
) -> Callable[..., bool] | None:
    if first is None or second is None:
        return first or second
    return lambda *args, **kwargs: first(*args, **kwargs) and second(*args, **kwargs)
