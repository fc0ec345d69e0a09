"""install() and uninstall(): guard a library when it is imported, and take it back cleanly."""

from __future__ import annotations

import sys

from . import baseline, discovery, policy
from .exceptions import AsyncUnsafeWarning, InstallationError
from .imports import forget, when_imported
from .locks import ForkSafeLock
from .stacks import is_ours
from .tables import Integration, guard_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

#: The libraries that have an integration: asyncsafe/integrations/NAME.py.
LIBRARIES = (
    "apsw",
    "django",
    "duckdb",
    "mysql.connector",
    "mysqlclient",
    "oracledb",
    "peewee",
    "pg8000",
    "pony",
    "psycopg",
    "psycopg2",
    "pymysql",
    "pyodbc",
    "pysqlite3",
    "sqlalchemy",
    "sqlite3",
)
#: What else of them can block, and is guarded where install() is asked for it.
OPTIONAL = ("django.caches", "django.files", "django.mail", "django.sessions")

_integrations: dict[str, Integration] = {}
#: Those that install() was given, until uninstall().
_given: dict[str, Integration] = {}
#: Those that other distributions bring, by what their entry points say.
_offered: dict[tuple[str, str], _Offered] = {}
_lock = ForkSafeLock()


def install(*libraries: str | Integration) -> None:
    """Guard libraries: their synchronous operations are refused from a running event loop.

    libraries: "sqlite3", "psycopg2", ..., an `Integration`; none: every supported one, those of the
        entry point group `asyncsafe.integrations` among them. What is not imported yet is guarded
        when it is, and never imported by this. Connections made before are guarded too.

    Raises ValueError for a name that is not supported, InstallationError where a library can't
    be guarded on this interpreter (without names: a warning), ConfigurationError where the
    environment or pyproject.toml holds a bad setting or names a baseline that can't be read.
    """
    policy.current_mode()
    policy.current_startup()
    baseline.active()
    with _lock:
        chosen: list[Integration | _Offered] = list(map(_find, libraries))
        if not libraries:
            chosen = [*map(integration, LIBRARIES), *offered()]
        new = [one for one in chosen if isinstance(one, Integration) and not one.installed]
        for one in chosen:
            try:
                if isinstance(one, Integration) and one in libraries:
                    _give(one)
                one.install()
            except InstallationError as error:
                if libraries:
                    raise
                _warn(str(error))
        guard_names(new)


def uninstall(*libraries: str | Integration) -> None:
    """Take `install()` back, for the libraries named or for all: their types are as they were.

    Where somebody else has patched over a guard, theirs stays, and the guard below it lets
    everything through.

    Raises ValueError for a name that is not supported.
    """
    with _lock:
        chosen: list[Integration | _Offered] = list(map(_find, libraries))
        if not libraries:
            ours = map(integration, (*LIBRARIES, *OPTIONAL))
            chosen = [*ours, *_given.values(), *_offered.values()]
        for one in chosen:
            one.uninstall()
            if _given.get(one.name) is one:
                del _given[one.name]


def integration(name: str) -> Integration:
    """The integration of a library, from its module in asyncsafe.integrations."""
    if name not in _integrations:
        module = __import__(f"{__package__}.integrations.{name}", fromlist=["integration"])
        _integrations[name] = module.integration
    return _integrations[name]


def _find(library: str | Integration) -> Integration | _Offered:
    """What install() and uninstall() were called with."""
    if isinstance(library, Integration):
        if library.name in (*LIBRARIES, *OPTIONAL):
            raise ValueError(f"asyncsafe has an integration {library.name!r} itself: rename yours")
        return library
    if not isinstance(library, str):
        raise TypeError(
            f"name a library, or give an asyncsafe.Integration, not {type(library).__name__}"
        )
    if library in (*LIBRARIES, *OPTIONAL):
        return integration(library)
    if library in _given:
        return _given[library]
    others = {one.name: one for one in offered()}
    if library in others:
        return others[library]
    known = ", ".join(sorted({*LIBRARIES, *OPTIONAL, *_given, *others}))
    raise ValueError(f"asyncsafe has no guard for {library!r}; it has: {known}")


def _give(one: Integration) -> None:
    """Take this one in place of another of its name: one that was made anew in a notebook."""
    earlier = _given.get(one.name)
    if earlier is not None and earlier is not one:
        earlier.uninstall()
    _given[one.name] = one


# Those of other distributions -----------------------------------------------------------------


class _Offered:
    """An integration that another distribution brings. It is loaded when its library is imported."""

    def __init__(self, offer: discovery.Offer) -> None:
        self.name: str = offer.name
        self.distribution: str = offer.distribution
        self.value: str = offer.value
        self._offer = offer
        self._integration: Integration | None = None
        self._installed: bool = False

    def install(self) -> None:
        """Guard it, now or when it is imported. What is wrong with it is a warning."""
        if not self._installed:
            self._installed = True
            when_imported(self.name, self._load)

    def uninstall(self) -> None:
        """Put everything back."""
        self._installed = False
        forget(self.name, self._load)
        if self._integration is not None:
            self._integration.uninstall()

    def _load(self, module: ModuleType) -> None:
        try:
            loaded = self._checked(self._offer.load())
            if self._integration is not None and self._integration is not loaded:
                self._integration.uninstall()  # its own module was imported anew
            self._integration = loaded
            loaded.install()
            guard_names([loaded])
        except Exception as error:
            # Whoever uses the library has no part in it, and goes on.
            _warn(
                f"{self.name} is not guarded: its integration, {self.value} of {self.distribution}, "
                f"can't be used. {type(error).__name__}: {error}"
            )

    def _checked(self, loaded: Any) -> Integration:
        if not isinstance(loaded, Integration):
            raise TypeError(
                f"the entry point must name an asyncsafe.Integration, not {type(loaded).__name__}"
            )
        if loaded.name != self.name:
            raise ValueError(
                f"the entry point is called {self.name!r} and its Integration {loaded.name!r}: "
                "both are the name of the library's module"
            )
        return loaded


def offered() -> list[_Offered]:
    """The integrations of other distributions, none of which is loaded. A name has one."""
    found: dict[str, _Offered] = {}
    try:
        offers = discovery.offers()
    except Exception as error:  # metadata that somebody has broken
        _warn(f"integrations of other distributions can't be read: {type(error).__name__}: {error}")
        offers = []
    for offer in offers:
        one = _offered.setdefault((offer.name, offer.value), _Offered(offer))
        ignored = f"the integration {offer.name!r} of {offer.distribution} is ignored:"
        if offer.name in (*LIBRARIES, *OPTIONAL):
            _warn(f"{ignored} asyncsafe has one itself")
        elif offer.name in found:
            _warn(f"{ignored} {found[offer.name].distribution} has one, too")
        elif not all(map(str.isidentifier, offer.name.split("."))):
            _warn(f"{ignored} an entry point of {discovery.GROUP} is called as a module is")
        else:
            found[offer.name] = one
    return list(found.values())


def _warn(message: str) -> None:
    import warnings

    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, AsyncUnsafeWarning, stacklevel=level)
