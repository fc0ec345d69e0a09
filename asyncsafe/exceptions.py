"""What asyncsafe raises and warns."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .violation import Violation


class AsyncsafeError(Exception):
    """The base of the errors that are about asyncsafe itself."""


class ConfigurationError(AsyncsafeError, ValueError):
    """A setting has a value that asyncsafe doesn't know; the message lists those that it does."""


class InstallationError(AsyncsafeError, RuntimeError):
    """A library can't be guarded here; the message says which and why. Nothing was changed."""


class SynchronousOnlyOperation(Exception):  # noqa: N818  (Django's name for it)
    """A synchronous operation was called from a running event loop, and refused.

    Nothing of it had reached the database. ``violation`` is what is known about the call; the
    text of the exception is written when it is asked for. Named after
    ``django.core.exceptions.SynchronousOnlyOperation`` (Django ticket #30451).
    """

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation)
        self.violation = violation

    def __str__(self) -> str:
        return self.violation.message()


class AsyncUnsafeWarning(RuntimeWarning):
    """A synchronous operation was called from a running event loop, and made (mode ``warn``)."""
