"""Keep synchronous database connections off the event loop.

Every public name is imported when it is first used, so that ``import asyncsafe`` costs next to
nothing: neither asyncio nor asgiref nor any driver comes with it.

PYTEST_DONT_REWRITE: it may be imported before pytest loads its plugins (`asyncsafe run pytest`).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import asgi as asgi
    from .connections import Alias as Alias
    from .connections import ConnectionHandler as ConnectionHandler
    from .connections import Local as Local
    from .connections import ManagedConnection as ManagedConnection
    from .connections import database_sync_to_async as database_sync_to_async
    from .decorators import async_unsafe as async_unsafe
    from .exceptions import AsyncsafeError as AsyncsafeError
    from .exceptions import AsyncUnsafeWarning as AsyncUnsafeWarning
    from .exceptions import ConfigurationError as ConfigurationError
    from .exceptions import ConnectionSharingError as ConnectionSharingError
    from .exceptions import InstallationError as InstallationError
    from .exceptions import SynchronousOnlyOperation as SynchronousOnlyOperation
    from .guards import check as check
    from .installation import install as install
    from .installation import uninstall as uninstall
    from .loops import running_loop as running_loop
    from .policy import configure as configure
    from .recorder import CallSite as CallSite
    from .recorder import Stall as Stall
    from .recorder import violations as violations
    from .scopes import allow as allow
    from .scopes import exempt as exempt
    from .scopes import forbid as forbid
    from .tables import Integration as Integration
    from .tables import Operation as Operation
    from .thread_locals import use_local as use_local
    from .violation import Frame as Frame
    from .violation import Told as Told
    from .violation import Violation as Violation

__version__ = "0.1.0"

_HOMES = {
    "Alias": "connections",
    "AsyncUnsafeWarning": "exceptions",
    "AsyncsafeError": "exceptions",
    "CallSite": "recorder",
    "ConfigurationError": "exceptions",
    "ConnectionHandler": "connections",
    "ConnectionSharingError": "exceptions",
    "Frame": "violation",
    "InstallationError": "exceptions",
    "Integration": "tables",
    "Local": "connections",
    "ManagedConnection": "connections",
    "Operation": "tables",
    "Stall": "recorder",
    "SynchronousOnlyOperation": "exceptions",
    "Told": "violation",
    "Violation": "violation",
    "allow": "scopes",
    "asgi": "asgi",
    "async_unsafe": "decorators",
    "check": "guards",
    "configure": "policy",
    "database_sync_to_async": "connections",
    "exempt": "scopes",
    "forbid": "scopes",
    "install": "installation",
    "running_loop": "loops",
    "uninstall": "installation",
    "use_local": "thread_locals",
    "violations": "recorder",
}
#: What IPython's %load_ext and %unload_ext call, and nobody else.
_HOOKS = {"load_ipython_extension": "ipython", "unload_ipython_extension": "ipython"}

__all__ = [
    "Alias",
    "AsyncUnsafeWarning",
    "AsyncsafeError",
    "CallSite",
    "ConfigurationError",
    "ConnectionHandler",
    "ConnectionSharingError",
    "Frame",
    "InstallationError",
    "Integration",
    "Local",
    "ManagedConnection",
    "Operation",
    "Stall",
    "SynchronousOnlyOperation",
    "Told",
    "Violation",
    "allow",
    "asgi",
    "async_unsafe",
    "check",
    "configure",
    "database_sync_to_async",
    "exempt",
    "forbid",
    "install",
    "running_loop",
    "uninstall",
    "use_local",
    "violations",
]

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name) or _HOOKS.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = __import__(f"{__name__}.{home}", fromlist=[name])
        # asyncsafe.asgi is a module itself.
        value = globals()[name] = module if name == home else getattr(module, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
