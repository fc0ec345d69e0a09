"""The pytest plugin: its options, its marker, its fixture.

Every run of pytest in an environment that has asyncsafe imports this module. It does nothing, and
imports nothing, until it is asked to by `--asyncsafe` or the setting `asyncsafe`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .policy import Mode
    from .pytest_session import Session
    from .violation import Violation

_SESSION = "asyncsafe_session"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("asyncsafe", "synchronous database calls on the event loop")
    group.addoption(
        "--asyncsafe",
        choices=("raise", "warn", "record", "off"),
        help="what becomes of a synchronous database call on the event loop "
        "(default: the setting asyncsafe; without it the plugin does nothing)",
    )
    group.addoption(
        "--asyncsafe-baseline",
        metavar="FILE",
        help="let the call sites through that FILE lists, so that only new ones are violations",
    )
    group.addoption(
        "--asyncsafe-report",
        metavar="FILE",
        help="write what was recorded into a file: .html, .sarif or .txt, else JSON",
    )
    for what, does in _ON_BASELINE.items():
        group.addoption(f"--asyncsafe-{what}", action="store_true", help=does)
    parser.addini("asyncsafe", "as --asyncsafe", default="")


_ON_BASELINE = {
    "update-baseline": "add the new call sites to it (also --update-baseline), and refuse nothing "
    "unless --asyncsafe says so",
    "prune-baseline": "take those out of it that this run didn't see (also --prune-baseline), if it "
    "was a whole one",
}


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> Generator[None]:
    """Take the options by the names that `asyncsafe run` has for them, unless they are somebody else's."""
    result = yield
    for what in _ON_BASELINE:
        if f"--{what}" in args and f"--{what}" in parser.parse_known_and_unknown_args(args)[1]:
            name = f"asyncsafe_{what.replace('-', '_')}"
            parser.addoption(f"--{what}", action="store_true", dest=name)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        'allow_async_unsafe("reason"): let synchronous database calls on the event loop through in this '
        "test, and its fixtures, whoever makes them",
    )
    mode = _mode(config)
    if mode is not None and mode != "off":
        from .pytest_session import Session

        session = Session(config, mode)
        session.begin()
        config.pluginmanager.register(session, _SESSION)


def _mode(config: pytest.Config) -> Mode | None:
    """The option's, else the setting's; None: nobody has asked."""
    option: Mode | None = config.getoption("asyncsafe")
    if option is not None:
        return option
    setting = config.getini("asyncsafe")
    if setting not in {"", "raise", "warn", "record", "off"}:
        raise pytest.UsageError(
            f"asyncsafe in the configuration must be one of raise, warn, record, off; it is {setting!r}"
        )
    update = config.getoption("asyncsafe_update_baseline")
    if setting != "off" and update:
        return "record"
    if (
        update
        or config.getoption("asyncsafe_baseline")
        or config.getoption("asyncsafe_prune_baseline")
    ):
        return setting or "raise"
    if config.getoption("asyncsafe_report"):
        return setting or "record"
    return setting or None


@pytest.fixture
def asyncsafe_violations(request: pytest.FixtureRequest) -> Iterator[list[Violation]]:
    """The violations of this test, from here on: a list that grows as they happen.

    What is left in it when the test has passed fails it, unless the exception came as far as the
    test itself. So take out (`clear()`, `remove()`, `pop()`) what the test has dealt with. Calls
    that somebody allowed aren't in it.
    """
    session: Session | None = request.config.pluginmanager.get_plugin(_SESSION)
    if session is None:
        if _mode(request.config) == "off":
            pytest.skip("asyncsafe is off")
        pytest.fail(
            "asyncsafe_violations needs the guards: run pytest with --asyncsafe=raise (or warn, or "
            "record), or put `asyncsafe = raise` into pytest's configuration",
            pytrace=False,
        )
    with session.listing() as found:
        yield found
