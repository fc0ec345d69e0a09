"""The answer: refuse the call, warn, record it, or let it pass."""

from __future__ import annotations

import os

from . import loops, scopes
from .exceptions import AsyncUnsafeWarning, ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeVar

    from .lifespan import Phase

    Mode = Literal["raise", "warn", "record", "off"]
    Startup = Literal["record", "raise", "off"]
    Setting = TypeVar("Setting", bound=str)

MODES: tuple[Mode, ...] = ("raise", "warn", "record", "off")
STARTUPS: tuple[Startup, ...] = ("record", "raise", "off")
#: What `[tool.asyncsafe]` in pyproject.toml may hold.
SETTINGS = ("mode", "startup", "baseline")

#: What Django's documentation names for its own guards (async-safety); we obey it as Django does.
DJANGO_VARIABLE = "DJANGO_ALLOW_ASYNC_UNSAFE"
MODE_VARIABLE = "ASYNCSAFE_MODE"
STARTUP_VARIABLE = "ASYNCSAFE_STARTUP"

#: In configure(): as it is.
_UNCHANGED: Any = object()

_configured: Mode | None = None
_configured_startup: Startup | None = None
_found: tuple[Mode, str] | None = None
_found_startup: tuple[Startup, str] | None = None
#: What a project's own settings say (Django's), and whether they say more for some connections.
_project: tuple[Mode, str] | None = None
_project_startup: tuple[Startup, str] | None = None
_own_modes = False


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


def answer(
    running: loops.Running, own_mode: Mode | None = None, phase: Phase | None = None
) -> Answer:
    """What becomes of a call that would block `running`, by the strongest rule that speaks.

    own_mode: the mode that holds for what is called, in place of the process's.
    phase: of the ASGI server that makes the call, where it serves nobody: nobody waits then.
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
    if phase is not None and mode != "off":
        startup = current_startup()[0]
        if startup != "raise":
            return _ANSWERS[startup]
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
        _found = _find("mode", MODES, MODE_VARIABLE, _project, default="raise")
    return _found


def current_startup() -> tuple[Startup, str]:
    """What becomes of calls during start-up, and where it comes from. As `current_mode`."""
    global _found_startup
    if _configured_startup is not None:
        return _configured_startup, "configure()"
    if _found_startup is None:
        _found_startup = _find(
            "startup", STARTUPS, STARTUP_VARIABLE, _project_startup, default="record"
        )
    return _found_startup


def configure(*, mode: Mode | None = _UNCHANGED, startup: Startup | None = _UNCHANGED) -> None:
    """Set what holds in this process, over the environment, a project's settings and pyproject.toml.

    mode: "raise" (refuse: SynchronousOnlyOperation, before anything reaches the database),
        "warn" (AsyncUnsafeWarning once for each call site, and the call is made), "record" (the
        call is made and timed, nothing is said) or "off".
    startup: what becomes of calls under an ASGI server's `lifespan`, before its first request and
        after its last: "record" (let through and recorded, in every mode but "off"), "off" (let
        through) or "raise" (no exception is made for them: they go by the mode).

    None takes an earlier configure() of it back; what isn't named stays as it is. configure()
    takes all back.

    Raises ConfigurationError for another value; then nothing is changed.
    """
    global _configured, _configured_startup
    if mode is _UNCHANGED and startup is _UNCHANGED:
        mode = startup = None
    if mode is not _UNCHANGED and mode is not None:
        mode = _valid(mode, MODES, "configure(mode=...)")
    if startup is not _UNCHANGED:
        if startup is not None:
            startup = _valid(startup, STARTUPS, "configure(startup=...)")
        _configured_startup = startup
    if mode is _UNCHANGED:
        return
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


def set_project_mode(
    mode: Mode | None,
    where: str,
    *,
    own_modes: bool = False,
    startup: tuple[Startup, str] | None = None,
) -> None:
    """Have a project's settings say the mode, as pyproject.toml does; None: they don't.

    where: what `current_mode` tells of it.
    own_modes: some of what is guarded has a mode of its own, which holds in mode "off" too.
    startup: what they say of calls during start-up, and where.
    """
    global _found, _found_startup, _own_modes, _project, _project_startup
    _project = None if mode is None else (_valid(mode, MODES, where), where)
    _project_startup = startup and (_valid(startup[0], STARTUPS, startup[1]), startup[1])
    _found = _found_startup = None
    _own_modes = own_modes
    if own_modes or current_mode()[0] != "off":
        loops.wake(True)


# Where settings are written ------------------------------------------------------------------


def _find(
    setting: str,
    values: tuple[Setting, ...],
    variable: str,
    project: tuple[Setting, str] | None,
    default: Setting,
) -> tuple[Setting, str]:
    if value := os.environ.get(variable):
        return _valid(value, values, variable), variable
    if project is not None:
        return project
    settings, path = read_settings()
    if setting in settings:
        where = f"{setting} in [tool.asyncsafe] of {path}"
        return _valid(settings[setting], values, where), str(path)
    return default, "default"


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
            f"[tool.asyncsafe] of {path} has no setting {', '.join(unknown)}; it has: "
            f"{', '.join(SETTINGS)}"
        )
    return settings, path


def _valid(value: Any, values: tuple[str, ...], where: str) -> Any:
    for known in values:
        if value == known:
            return known
    raise ConfigurationError(f"{where} must be one of {', '.join(values)}; it is {value!r}")


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
