"""What asyncsafe raises and warns."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from .violation import Violation

#: Called with each exception that refuses a call, before it is raised: the last one alone.
listeners: list[Callable[[SynchronousOnlyOperation | ConnectionSharingError], object]] = []


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
        if listeners:
            listeners[-1](self)

    def __str__(self) -> str:
        return self.violation.message()

    def __reduce__(self) -> tuple[Callable[[Violation], Exception], tuple[Violation]]:
        return refusal, (self.violation,)


_refusal: type[SynchronousOnlyOperation] = SynchronousOnlyOperation


def refusal(violation: Violation) -> SynchronousOnlyOperation:
    """The exception to raise. Once Django is imported, it is Django's as well."""
    return _refusal(violation)


def django_imported(exceptions: ModuleType) -> None:
    """Have refusals be `django.core.exceptions.SynchronousOnlyOperation`, too."""
    global _refusal
    name = SynchronousOnlyOperation.__name__
    both = (SynchronousOnlyOperation, exceptions.SynchronousOnlyOperation)
    namespace = {"__module__": __name__, "__doc__": SynchronousOnlyOperation.__doc__}
    _refusal = type(name, both, namespace)


class ConnectionSharingError(RuntimeError):
    """A connection was used by another task or thread than the one that it belongs to.

    Django's ``validate_thread_sharing``, extended to tasks. ``violation`` is what is known about
    the call where a guard refused it, and None where a ConnectionHandler did.
    """

    def __init__(self, message: str | Violation) -> None:
        super().__init__(message)
        self.violation: Violation | None = None if isinstance(message, str) else message
        if listeners and self.violation is not None:
            listeners[-1](self)

    def __str__(self) -> str:
        return str(self.args[0]) if self.violation is None else self.violation.message()


class AsyncUnsafeWarning(RuntimeWarning):
    """A synchronous operation was called from a running event loop, and made (mode ``warn``)."""
