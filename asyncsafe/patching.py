"""The one mechanism: replace a class's attributes in place, and put them back.

It reaches what was made or imported before, subclasses, C callers and type slots, since it is a
plain `setattr`. C types that forbid it (Py_TPFLAGS_IMMUTABLETYPE) are unlocked for as long as
they are patched.
"""

from __future__ import annotations

import sys

from .exceptions import InstallationError
from .locks import ForkSafeLock
from .stacks import COUNTED_WRAPPER_FILE, WRAPPER_FILE, is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    import warnings
    from collections.abc import Callable
    from typing import Any

_MISSING: Any = object()

#: Type slots that share an attribute with another: set again over ours, Python would fill both.
_SHARE_A_SLOT = frozenset({"__getitem__", "__setitem__", "__delitem__"})

_lock = ForkSafeLock()
_patched: dict[Any, int] = {}


class Patch:
    """One attribute of a class or module, replaced. `undo()` puts the very object back."""

    __slots__ = ("name", "original", "owner", "replacement")

    def __init__(self, owner: Any, name: str, replacement: Any, original: Any = _MISSING) -> None:
        """Replace `owner.name`. Raises InstallationError, and changes nothing, where it can't be.

        original: what `undo()` puts back; by default what `owner` itself holds now.
        """
        self.owner: Any = owner
        self.name: str = name
        self.replacement: Any = replacement
        self.original: Any = vars(owner).get(name, _MISSING) if original is _MISSING else original
        with _lock:
            _unlock(owner)
            setattr(owner, name, replacement)
            _patched[owner] = _patched.get(owner, 0) + 1
            _blame_callers()

    def undo(self) -> None:
        """Put the original back, unless somebody has replaced our replacement: theirs stays."""
        with _lock:
            if vars(self.owner).get(self.name, _MISSING) is self.replacement:
                if self.original is _MISSING or self.name in _SHARE_A_SLOT:
                    delattr(self.owner, self.name)
                if self.original is not _MISSING:
                    setattr(self.owner, self.name, self.original)
            _patched[self.owner] -= 1
            if not _patched[self.owner]:
                del _patched[self.owner]
                _relock(self.owner)
            if not _patched:
                _stop_blaming_callers()


# Immutable types -----------------------------------------------------------------------------

_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE, CPython 3.10+ (Include/object.h)
_VALID_VERSION = 1 << 19  # Py_TPFLAGS_VALID_VERSION_TAG: comes and goes by itself
_TYPE_SIZE: int = vars(type)["__basicsize__"].__get__(type)
_unlocked: dict[type, int] = {}


def _unlock(cls: Any) -> None:
    """Make an immutable C type take attributes. It stays so until `_relock`.

    Only the bit that forbids it is cleared, in the one byte that holds it: another thread may
    change other bits of the word. It isn't set again in between, because CPython's JIT takes the
    attributes of immutable types for constants and doesn't watch them.
    """
    if not isinstance(cls, type) or not _flags(cls) & _IMMUTABLE:
        return
    address = id(cls) + _flags_offset(cls) + _byte_of_flag()
    _write_bit(cls, address, set_it=False)
    _unlocked[cls] = address


def _relock(cls: Any) -> None:
    address = _unlocked.pop(cls, None) if isinstance(cls, type) else None
    if address is not None:
        _write_bit(cls, address, set_it=True)


def _write_bit(cls: type, address: int, *, set_it: bool) -> None:
    from ctypes import c_ubyte

    before = _flags(cls)
    bit = _IMMUTABLE >> 8
    byte = c_ubyte.from_address(address)
    if byte.value != (before >> 8) & 0xFF:
        raise _not_here(cls, "the byte that should hold its flags doesn't")
    byte.value = byte.value | bit if set_it else byte.value & ~bit
    if (_flags(cls) ^ before) & ~_VALID_VERSION != _IMMUTABLE:
        byte.value = (before >> 8) & 0xFF
        raise _not_here(cls, "its flags did not change as they should")


def _flags(cls: type) -> int:
    flags: int = type.__dict__["__flags__"].__get__(cls)
    return flags


def _flags_offset(cls: type) -> int:
    """Where a type object holds tp_flags: the only place at which many types show their `__flags__`."""
    if sys.implementation.name != "cpython":
        raise _not_here(cls, f"{sys.implementation.name} isn't CPython")
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise _not_here(cls, "a free-threaded interpreter reads the flags without a lock")
    try:
        from ctypes import c_ulong, sizeof
    except ImportError as error:
        raise _not_here(cls, "it has no ctypes") from error
    known: tuple[type[Any], ...] = (int, str, type, dict, BaseException, Patch, cls)
    offsets: list[int] = [
        offset
        for offset in range(0, _TYPE_SIZE, sizeof(c_ulong))
        if all(
            (c_ulong.from_address(id(one) + offset).value ^ _flags(one)) & ~_VALID_VERSION == 0
            for one in known
        )
    ]
    if len(offsets) != 1:
        raise _not_here(cls, f"the flags of types were found in {len(offsets)} places")
    return offsets[0]


def _byte_of_flag() -> int:
    from ctypes import c_ulong, sizeof

    return 1 if sys.byteorder == "little" else sizeof(c_ulong) - 2


def _not_here(cls: type, why: str) -> InstallationError:
    return InstallationError(
        f"{cls.__module__}.{cls.__qualname__} can't be guarded on this interpreter "
        f"({sys.implementation.name} {sys.version.split()[0]}): {why}. Nothing was changed."
    )


# Warnings --------------------------------------------------------------------------------------

_show: Callable[[warnings.WarningMessage], None] | None = None


def _blame_callers() -> None:
    """Have a warning from guarded C code name the line that called it, not our wrapper.

    C code warns about the Python frame that called it (PyErr_WarnEx with stack_level 1), which
    is the wrapper's. warnings._showwarnmsg is what C hands every warning to; the public
    showwarning is passed over inside catch_warnings(record=True), so in pytest and unittest.
    """
    global _show
    if _show is not None:
        return
    import warnings

    _show = warnings._showwarnmsg  # type: ignore[attr-defined]
    warnings._showwarnmsg = _show_at_caller  # type: ignore[attr-defined]


def _stop_blaming_callers() -> None:
    global _show
    import warnings

    # Where somebody has replaced ours in between, theirs goes on calling it.
    if warnings._showwarnmsg is _show_at_caller:  # type: ignore[attr-defined]
        warnings._showwarnmsg = _show  # type: ignore[attr-defined]
        _show = None


def _show_at_caller(message: warnings.WarningMessage) -> None:
    if message.filename not in (WRAPPER_FILE, COUNTED_WRAPPER_FILE):
        assert _show is not None
        return _show(message)
    import warnings

    frame = sys._getframe(1)
    while frame.f_back is not None and not is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    # Ours is not the place that it was shown for: the next caller's is another.
    frame.f_globals.pop("__warningregistry__", None)
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return warnings.warn_explicit(
        message.message,
        message.category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
        source=message.source,
    )
