"""Pony: sessions, caches and connections, which it keeps for each thread.

Its classes inherit from `pony.utils.localbase`, which is `threading.local`. A base can't be changed
once a class has it, so that it is replaced before `pony.orm` is imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..exceptions import ConfigurationError
from ..imports import forget, when_imported
from ..thread_locals import SwappedLocal, local_base

if TYPE_CHECKING:
    from types import ModuleType

_swapped: SwappedLocal | None = None


def use_local(pony: Any) -> SwappedLocal:
    """Swap the base of pony's thread-local classes. See `asyncsafe.use_local`."""
    global _swapped
    if _swapped is not None:
        return _swapped
    if "pony.orm" in sys.modules:
        raise ConfigurationError(
            "pony.orm is imported already, and its classes have threading.local for a base: call "
            'asyncsafe.use_local("pony") before its first import'
        )
    base = local_base(_release)

    def replace(module: ModuleType) -> None:
        if not hasattr(module, "localbase"):
            raise ConfigurationError(f"this version of pony has no {module.__name__}.localbase")
        module.localbase = base  # type: ignore[attr-defined]

    def undo() -> None:
        global _swapped
        for module in modules:
            forget(module, replace)
        _swapped = None

    modules = ("pony.utils.utils", "pony.utils")
    for module in modules:
        when_imported(module, replace)
    _swapped = SwappedLocal(object, None, undo)
    return _swapped


def _release(state: Any) -> None:
    """Pool and its kin hold a connection. A transaction that is open on it goes with it."""
    if getattr(state, "con", None) is not None:
        state.disconnect()
