"""The answer: refuse the call, warn, record it, or let it pass."""

from __future__ import annotations

import os

from . import loops, scopes
from .exceptions import AsyncUnsafeWarning, ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Mode = Literal["raise", "warn", "record", "off"]

MODES: tuple[Mode, ...] = ("raise", "warn", "record", "off")

#: What Django's documentation names for its own guards (async-safety); we obey it as Django does.
DJANGO_VARIABLE = "DJANGO_ALLOW_ASYNC_UNSAFE"
MODE_VARIABLE = "ASYNCSAFE_MODE"

_configured: Mode | None = None
_found: tuple[Mode, str] | None = None
#: What a project's own settings say (Django's), and whether they say more for some connections.
_project: tuple[Mode, str] | None = None
_own_modes = False


#: What `[tool.asyncsafe]` in pyproject.toml may hold.
SETTINGS = ("mode", "baseline")


class Allowance:
    """A reason for which everything in the process is let through, and whether anything was."""

    __slots__ = ("reason", "used")

    def __init__(self, reason: str) -> None:
        self.reason: str = reason
        self.used: bool = False


_allowance: Allowance | None = None


class Answer:
    """What becomes of a call: its `mode`, or "allow" with the reason."""

    __slots__ = ("mode", "reason")

    def __init__(self, mode: Mode | Literal["allow"], reason: str | None = None) -> None:
        self.mode = mode
        self.reason: str | None = reason


_ANSWERS = {mode: Answer(mode) for mode in MODES}
#: forbid()'s: "raise", whatever the baseline knows.
FORBIDDEN = Answer("raise")


def answer(running: loops.Running, own_mode: Mode | None = None) -> Answer:
    """What becomes of a call that would block `running`, by the strongest rule that speaks.

    own_mode: the mode that holds for what is called, in place of the process's.
    """
    if held := scopes.current_scopes(running):
        if any(scope.forbids for scope in held):
            return FORBIDDEN
        return Answer("allow", held[0].reason)
    if _allowance is not None:
        _allowance.used = True
        return Answer("allow", _allowance.reason)
    if value := os.environ.get(DJANGO_VARIABLE):
        _say_that_it_allows(value)
        return Answer("allow", f"{DJANGO_VARIABLE}={value}")
    if own_mode is not None:
        return _ANSWERS[own_mode]
    mode = current_mode()[0]
    if mode == "off" and not _own_modes:
        scopes.sleep_unless_forbidding()
    return _ANSWERS[mode]


def mode_for_sharing(running: loops.Running | None) -> Mode:
    """What becomes of a call on a connection with another task's transaction.

    What allows blocking doesn't allow this: allow(), DJANGO_ALLOW_ASYNC_UNSAFE.
    """
    if running is not None and scopes.forbidden(running):
        return "raise"
    return current_mode()[0]


def current_mode() -> tuple[Mode, str]:
    """The mode, and where it comes from: configure(), the environment, pyproject.toml, the default.

    Raises ConfigurationError where the environment or pyproject.toml holds no valid mode.
    """
    global _found
    if _configured is not None:
        return _configured, "configure()"
    if _found is None:
        _found = _find_mode()
    return _found


def configure(*, mode: Mode | None = None) -> None:
    """Set the mode of this process, over the environment's and pyproject.toml's.

    mode: "raise" (refuse: SynchronousOnlyOperation, before anything reaches the database),
        "warn" (AsyncUnsafeWarning once for each call site, and the call is made), "record" (the
        call is made and timed, nothing is said) or "off". None takes an earlier configure() back.

    Raises ConfigurationError for another value.
    """
    global _configured
    if mode is not None:
        mode = _valid(mode, "configure(mode=...)")
    _configured = mode
    if mode == "off" and not _own_modes:
        scopes.sleep_unless_forbidding()
    else:
        loops.wake(True)


def configured() -> Mode | None:
    """The mode that configure() has set, if it has."""
    return _configured


def allow_process(allowance: Allowance | None) -> Allowance | None:
    """Let everything in the process through, as DJANGO_ALLOW_ASYNC_UNSAFE does. None: no longer.

    Returns the one before.
    """
    global _allowance
    before, _allowance = _allowance, allowance
    return before


def set_project_mode(mode: Mode | None, where: str, *, own_modes: bool = False) -> None:
    """Have a project's settings say the mode, as pyproject.toml does; None: they don't.

    where: what `current_mode` tells of it.
    own_modes: some of what is guarded has a mode of its own, which holds in mode "off" too.
    """
    global _found, _own_modes, _project
    _project = None if mode is None else (_valid(mode, where), where)
    _found, _own_modes = None, own_modes
    if own_modes or current_mode()[0] != "off":
        loops.wake(True)


# Where the mode is written -------------------------------------------------------------------


def _find_mode() -> tuple[Mode, str]:
    if value := os.environ.get(MODE_VARIABLE):
        return _valid(value, MODE_VARIABLE), MODE_VARIABLE
    if _project is not None:
        return _project
    settings, path = read_settings()
    if "mode" in settings:
        return _valid(settings["mode"], f"mode in [tool.asyncsafe] of {path}"), str(path)
    return "raise", "default"


def read_settings() -> tuple[dict[str, Any], str | None]:
    """`[tool.asyncsafe]` of the nearest pyproject.toml, from the working directory upwards."""
    try:
        directory = os.getcwd()
    except OSError:  # it is gone, and no file with it
        return {}, None
    while not os.path.isfile(path := os.path.join(directory, "pyproject.toml")):
        if directory == (directory := os.path.dirname(directory)):
            return {}, None
    import tomllib

    try:
        with open(path, "rb") as file:
            tool = tomllib.load(file).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error}") from error
    settings = tool.get("asyncsafe", {}) if isinstance(tool, dict) else None
    if not isinstance(settings, dict):
        raise ConfigurationError(f"tool.asyncsafe in {path} must be a table: [tool.asyncsafe]")
    if unknown := sorted(settings.keys() - set(SETTINGS)):
        raise ConfigurationError(
            f"[tool.asyncsafe] of {path} has no setting {', '.join(unknown)}; "
            f"it has: {', '.join(SETTINGS)}"
        )
    return settings, path


def _valid(mode: Any, where: str) -> Mode:
    for known in MODES:
        if mode == known:
            return known
    raise ConfigurationError(f"{where} must be one of {', '.join(MODES)}; it is {mode!r}")


_said = False


def _say_that_it_allows(value: str) -> None:
    global _said
    if _said or value.strip().lower() not in {"0", "false", "no", "off", "n", "f"}:
        return
    _said = True
    import warnings

    warnings.warn(
        f"{DJANGO_VARIABLE}={value} allows synchronous operations on the event loop: Django takes "
        f"any value that is not empty as yes. Unset it, or set it to nothing, to be guarded.",
        AsyncUnsafeWarning,
        stacklevel=2,
    )


if os.environ.get(MODE_VARIABLE) == "off":
    loops.wake(False)
