"""The setting ASYNCSAFE: {"mode": "raise", "aliases": {"d1": "off"}, "install": ["django.caches"]}."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...exceptions import ConfigurationError
from ...installation import OPTIONAL
from ...policy import MODES, STARTUPS, set_project_mode
from ...scopes import is_exempt

if TYPE_CHECKING:
    from ...policy import Mode

#: The settings there are.
KNOWN = ("mode", "startup", "aliases", "install")

_STARTUP = 'ASYNCSAFE["startup"]'

_aliases: dict[str, Mode] = {}


def read() -> dict[str, Any]:
    """The setting, validated. Raises ConfigurationError, naming the key."""
    from django.conf import settings

    given = getattr(settings, "ASYNCSAFE", {})
    if not isinstance(given, dict):
        raise ConfigurationError(f"ASYNCSAFE is a dictionary, not {type(given).__name__}")
    if "mode" in given:
        _check(given["mode"], MODES, 'ASYNCSAFE["mode"]')
    if "startup" in given:
        _check(given["startup"], STARTUPS, _STARTUP)
    aliases = given.get("aliases", {})
    if not isinstance(aliases, dict):
        raise ConfigurationError(f'ASYNCSAFE["aliases"] is a dictionary, not {aliases!r}')
    for alias, mode in aliases.items():
        if alias not in settings.DATABASES:
            known = ", ".join(map(repr, settings.DATABASES))
            raise ConfigurationError(
                f'ASYNCSAFE["aliases"] names {alias!r}, which is not in DATABASES: {known}'
            )
        _check(mode, MODES, f'ASYNCSAFE["aliases"][{alias!r}]')
    extra = given.get("install", [])
    if not isinstance(extra, (list, tuple)) or any(name not in OPTIONAL for name in extra):
        raise ConfigurationError(
            f'ASYNCSAFE["install"] is a list of some of {", ".join(OPTIONAL)}, not {extra!r}'
        )
    return given


def apply() -> None:
    """Have the process's mode, and the aliases', be what the setting says."""
    given = read()
    aliases = given.get("aliases", {})
    own_modes = any(mode != "off" for mode in aliases.values())
    startup = (given["startup"], _STARTUP) if "startup" in given else None
    set_project_mode(given.get("mode"), 'ASYNCSAFE["mode"]', own_modes=own_modes, startup=startup)
    _aliases.clear()
    _aliases.update(aliases)


def mode_of(thing: Any) -> Mode | None:
    """The mode that the setting says for a DatabaseWrapper, or what belongs to one. None: none."""
    wrapper = getattr(thing, "db", thing)
    alias = getattr(wrapper, "alias", "")
    db = sys.modules["django.db"]
    # django.db.connection stands for the default one of every task.
    if is_exempt(wrapper) or (alias == db.DEFAULT_DB_ALIAS and is_exempt(db.connection)):
        return "off"
    return _aliases.get(alias)


def _check(value: Any, values: tuple[str, ...], where: str) -> None:
    if value not in values:
        raise ConfigurationError(f"{where} must be one of {', '.join(values)}; it is {value!r}")
