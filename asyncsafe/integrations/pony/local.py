"""Sessions, caches and connections, which pony keeps for each thread.

Its classes inherit from `pony.utils.localbase`, which is `threading.local`. A base can't be changed
once a class has it, so that it is replaced before `pony.orm` is imported.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from ... import owners
from ...exceptions import ConfigurationError
from ...imports import forget, when_imported
from ...thread_locals import SwappedLocal, local_base

if TYPE_CHECKING:
    from types import ModuleType

#: Where all of `pony.orm` takes it from.
_MODULE = "pony.utils"

_swapped: _Pony | None = None


class _Pony(SwappedLocal):
    """All of pony's thread-local state: each of its objects keeps a part."""

    def __init__(self) -> None:
        super().__init__(object, object, undo=self._restore)
        self.base = local_base(_release)

    def close_all(self) -> None:
        """Close the caller's own connections, and forget the session that is open on them."""
        owner = owners.current()
        for keeper in tuple(owner.kept):
            if isinstance(keeper, SwappedLocal) and issubclass(keeper.kind, self.base):
                keeper.close_all()

    def replace(self, module: ModuleType) -> None:
        """Make ours the base of the classes that are defined from here on."""
        if not hasattr(module, "localbase"):
            raise ConfigurationError(f"this version of pony has no {module.__name__}.localbase")
        module.localbase = self.base  # type: ignore[attr-defined]

    def _restore(self) -> None:
        global _swapped
        if "pony.orm" in sys.modules:
            raise ConfigurationError(
                "pony.orm was imported with it: a base that classes have can't be changed"
            )
        forget(_MODULE, self.replace)
        if _MODULE in sys.modules:
            sys.modules[_MODULE].localbase = threading.local  # type: ignore[attr-defined]
        _swapped = None


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
    swapped = _Pony()
    when_imported(_MODULE, swapped.replace)
    _swapped = swapped
    return swapped


def _release(state: Any) -> None:
    """Pool and its kin hold a connection. A transaction that is open on it goes with it."""
    if getattr(state, "con", None) is not None:
        state.disconnect()
