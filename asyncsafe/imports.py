"""Tell us when a module is imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Callback = Callable[[ModuleType], None]

_watched: dict[str, list[Callback]] = {}


def when_imported(name: str, callback: Callback) -> None:
    """Call `callback` with the module `name`: now if it is there, and each time it is executed.

    A reload counts, since it makes new classes. What `callback` raises on a later import is
    logged and goes no further: a mistake of ours never breaks the user's import.
    """
    _watched.setdefault(name, []).append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if sys.modules.get(name) is not None:  # None: the program has blocked its import
        # Another thread may be in the midst of importing it: this waits until it is done.
        __import__(name)
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is not None and not getattr(spec, "_initializing", False):
        callback(module)


def forget(name: str, callback: Callback) -> None:
    """Take `when_imported` back."""
    callbacks = _watched.get(name, [])
    if callback in callbacks:
        callbacks.remove(callback)
    if not callbacks:
        _watched.pop(name, None)
    if not _watched and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder:
    """Finds nothing itself: asks the other finders, and puts `_Loader` round what they found."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _watched:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, name)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """The module's own loader, and our callbacks after it."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name  # the module's __name__ may differ: _decimal calls itself decimal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is its loader's alone (pickle, inspect, importlib.resources).
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        called: list[Callback] = []
        # One may ask for another: an integration that is loaded when its library is imported.
        while waiting := [c for c in _watched.get(self._name, ()) if c not in called]:
            called += waiting
            for callback in waiting:
                try:
                    callback(module)
                except Exception:
                    import logging

                    logging.getLogger("asyncsafe").exception(
                        "asyncsafe could not follow the import of %s", self._name
                    )


_finder: Any = _Finder()
