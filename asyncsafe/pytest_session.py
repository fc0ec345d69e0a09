"""One guarded run of pytest: which test a violation belongs to, and whether it fails it."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType

import pytest

from . import baseline, policy
from .exceptions import AsyncsafeError, ConfigurationError, listeners
from .installation import LIBRARIES, install, integration, uninstall
from .messages import shorten
from .pytest_summary import MARKER, Summary, by_call_site, how_often
from .recorder import violations
from .reports.formats import check_file
from .reports.recording import Recording
from .stacks import is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .baseline import Baseline
    from .policy import Mode
    from .pytest_summary import Refusal
    from .violation import Violation

#: How many exceptions are held until their phase ends; further ones are taken for the like of these.
REFUSAL_LIMIT = 1000
#: How many call sites' messages a failure tells.
MESSAGE_LIMIT = 5

#: A test class's or module's functions that pytest, unittest and Django call round a test.
_ROUND_A_TEST = (
    *("setup_module", "teardown_module", "setup_function", "teardown_function"),
    *("setup_class", "teardown_class", "setup_method", "teardown_method"),
    *("setUpClass", "tearDownClass", "setUp", "tearDown", "asyncSetUp", "asyncTearDown"),
    "setUpTestData",
)

#: A run may be made inside a test of another (pytester): the last is the one under way.
_sessions: list[Session] = []

_besides = pytest.StashKey[tuple[BaseException | None, str]]()


class Session:
    """The guards, the mode and the recorder are this run's from `begin` to `end`.

    A violation belongs to the phase (set-up, call, teardown) of the test that is under way when
    it happens, in whichever thread or task. A refusal is swallowed if its exception came neither
    as far as the test function nor as far as a fixture.
    """

    def __init__(self, config: pytest.Config, mode: Mode) -> None:
        self._config = config
        self._mode: Mode = mode
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._stack = ExitStack()
        self._baseline: Baseline | None = None
        self._libraries: list[str] = []
        #: What was refused in the phase under way, or since the last one.
        self._refused: list[Refusal] = []
        #: What the fixture `asyncsafe_violations` shows, and what it has shown, by id.
        self._list: list[Violation] | None = None
        self._listed: set[int] = set()
        #: The test's own code, and that of every fixture.
        self._test: set[CodeType] = set()
        self._fixtures: set[CodeType] = set()
        #: What the file names of a doctest's examples begin with.
        self._examples: str | None = None
        self._in_unittest = False
        self._allowance: policy.Allowance | None = None
        self._marker_error: str | None = None

    def begin(self) -> None:
        """Guard, until `end`. Raises pytest.UsageError for a configuration that can't be used."""
        self._config.add_cleanup(self.end)
        try:
            self._begin()
        except (AsyncsafeError, OSError) as error:
            raise pytest.UsageError(f"asyncsafe: {error}") from error

    def _begin(self) -> None:
        file = self._config.getoption("asyncsafe_report")
        if file is not None:
            check_file("--asyncsafe-report", self._path(file))
        self._baseline = self._find_baseline()
        self._directory = self._find_directory()
        if self._baseline is not None:
            self._baseline.keep_in(self._directory)
        self._summary = Summary(
            self._config,
            self._mode,
            self._directory,
            report_path=file and self._path(file),
            baseline=self._baseline,
        )
        self._recording = Recording(self._directory)
        outer = _sessions[-1]._recording if _sessions else None
        if outer is not None:
            outer.end()
            self._stack.callback(outer.begin)
        _sessions.append(self)
        self._stack.callback(_sessions.remove, self)
        self._stack.callback(violations.set_aside())
        self._recording.begin()
        self._stack.callback(self._recording.end)
        self._stack.callback(baseline.use, baseline.use(self._baseline))
        self._stack.callback(policy.allow_process, policy.allow_process(None))
        self._stack.callback(_configure, policy.configured())
        policy.configure(mode=self._mode)
        before = {name for name in LIBRARIES if integration(name).installed}
        install()
        self._libraries = [name for name in LIBRARIES if integration(name).installed]
        ours = [name for name in self._libraries if name not in before]
        if ours:
            self._stack.callback(uninstall, *ours)
        listeners.append(self._hear)
        self._stack.callback(listeners.remove, self._hear)

    def end(self) -> None:
        """Leave the process as it was."""
        self._stack.close()

    def _find_baseline(self) -> Baseline | None:
        option = self._config.getoption("asyncsafe_baseline")
        changes = self._option("update") or self._option("prune")
        path = baseline.find_path() if option is None else self._path(option)
        if path is None:
            if changes:
                raise ConfigurationError("which baseline? Name it with --asyncsafe-baseline=FILE")
            return None
        if self._option("update") and self._worker is None:
            baseline.create(path)
        return baseline.read(path)

    def _path(self, name: str) -> str:
        return os.path.join(self._config.invocation_params.dir, name)

    def _option(self, what: str) -> bool:
        return bool(self._config.getoption(f"asyncsafe_{what}_baseline"))

    def _find_directory(self) -> str:
        """Where all processes of the run keep what they record: xdist's controller's, if it is here."""
        given = (self._worker or {}).get("asyncsafe_directory")
        if given is not None and os.path.isdir(given):
            return str(given)
        directory = tempfile.mkdtemp(prefix="asyncsafe-")
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    # Whose violation it is -------------------------------------------------------------------

    def _hear(self, error: Refusal) -> None:
        if len(self._refused) < REFUSAL_LIMIT:
            self._refused.append(error)

    @contextmanager
    def listing(self) -> Iterator[list[Violation]]:
        """A list to which violations are added as they happen."""
        found: list[Violation] = []

        def add(violation: Violation) -> None:
            if violation.outcome == "raised":
                self._listed.add(id(violation))
            if violation.outcome != "allowed":
                found.append(violation)

        self._list = found
        unsubscribe = violations.subscribe(add)
        try:
            yield found
        finally:
            unsubscribe()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        function = getattr(item, "function", None)
        self._test = set(_codes(function))
        # In every base class: each may call the one that it overrides.
        classes = getattr(getattr(item, "cls", None), "__mro__", ())
        for owner in (*classes, getattr(item, "module", None)):
            for name in (*_ROUND_A_TEST, getattr(function, "__name__", "")):
                self._test.update(_codes(getattr(owner, "__dict__", {}).get(name)))
        dtest = getattr(item, "dtest", None)
        self._examples = None if dtest is None else f"<doctest {dtest.name}["
        self._in_unittest = _is_unittest(getattr(item, "cls", None))
        self._allowance, self._marker_error = _read_marker(item)
        before = policy.allow_process(self._allowance)
        try:
            return (yield)
        finally:
            policy.allow_process(before)
            self._list = None

    def _take_back(self) -> None:
        """Whatever the test before has done: the guards and the mode are the run's."""
        gone = [name for name in self._libraries if not integration(name).installed]
        if gone:
            install(*gone)
        if policy.configured() != self._mode:
            policy.configure(mode=self._mode)
        if self._mode == "warn":  # once for each call site in each test, as pytest tells warnings
            for site in violations:
                site.warned = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        self._fixtures.update(_codes(fixturedef.func))
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        self._take_back()  # here, since a test may be run again within its protocol
        return (yield from self._phase(item))

    @pytest.hookimpl(tryfirst=True, specname="pytest_runtest_setup")
    def pytest_runtest_check_marker(self) -> None:
        if self._marker_error:
            pytest.fail(self._marker_error, pytrace=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item))

    def _phase(self, item: pytest.Item) -> Generator[None, object, object]:
        """A phase of a test: what was swallowed in it fails it, or is told beside its own failure."""
        self._keep_outside()
        try:
            result = yield
        except (KeyboardInterrupt, pytest.exit.Exception):
            self._refused.clear()  # it belongs to a test, which has no outcome
            raise
        except pytest.skip.Exception:
            # Skipped for want of a server, perhaps, whose connect() was refused.
            self._fail(item, None)
            raise
        except BaseException as error:
            swallowed = self._take_swallowed(error)
            if swallowed:
                item.stash[_besides] = None, _describe(swallowed)
            raise
        self._fail(item, None)
        return result

    def _fail(self, item: pytest.Item, error: BaseException | None) -> None:
        swallowed = self._take_swallowed(error)
        if swallowed:
            told = _describe(swallowed)
            failure = pytest.fail.Exception(told, pytrace=False)
            item.stash[_besides] = failure, told
            raise failure from None

    def _take_swallowed(self, error: BaseException | None) -> list[Refusal]:
        refused, self._refused = self._refused, []
        if not refused:
            return []
        told = {id(e) for e in _all_of(error)}
        own = self._test | self._fixtures
        nested = _with_nested(own)
        swallowed = [
            refusal
            for refusal in refused
            if id(refusal) not in told
            and not self._was_taken(refusal)
            and not self._came_to(own, nested, refusal)
        ]
        for refusal in refused:
            _hide_our_frames(refusal)
        self._listed.clear()
        return swallowed

    def _was_taken(self, refusal: Refusal) -> bool:
        """Whether the test has taken it out of its list."""
        violation = refusal.violation
        return id(violation) in self._listed and not any(v is violation for v in self._list or ())

    def _came_to(self, own: set[CodeType], nested: set[CodeType], refusal: Refusal) -> bool:
        """Whether the exception came as far as this code, or was caught in what is nested in it."""
        entry = refusal.__traceback__
        if entry is None:  # assertRaises() takes it off
            return self._in_unittest
        # Each frame that the exception comes to is put at the traceback's beginning: the first is
        # the one that caught it, if it has gone on from there.
        caught = entry.tb_frame
        if caught.f_lasti != entry.tb_lasti and caught.f_code in nested:
            return True
        while entry is not None:
            code = entry.tb_frame.f_code
            if code in own or (self._examples and code.co_filename.startswith(self._examples)):
                return True
            entry = entry.tb_next
        return False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._count_marker(item, passed=report.when == "call" and report.passed)
        failure, told = item.stash.get(_besides, (None, ""))
        if told:
            del item.stash[_besides]
            if call.excinfo is not None and call.excinfo.value is failure:
                return report
            if report.skipped and not hasattr(report, "wasxfail"):
                # unittest's way of skipping, which pytest puts in the place of our failure.
                report.outcome, report.longrepr = "failed", told
            else:
                report.sections.append(("asyncsafe", told))
        return report

    # What belongs to no test -----------------------------------------------------------------

    def _keep_outside(self) -> None:
        refused, self._refused = self._refused, []
        self._summary.add_outside(by_call_site(refused))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self,
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.failed:
            self._refused.clear()  # it is told with the report
        self._keep_outside()
        return report

    def pytest_deselected(self) -> None:
        self._summary.deselected = True

    # Markers ---------------------------------------------------------------------------------

    def _count_marker(self, item: pytest.Item, *, passed: bool) -> None:
        if self._allowance is None:
            return
        node, _ = next(item.iter_markers_with_node(MARKER))
        name = node.nodeid
        if (callspec := getattr(node, "callspec", None)) is not None:
            name = name.removesuffix(f"[{callspec.id}]")
        self._summary.add_marker(name, self._allowance.reason, passed, self._allowance.used)

    # The end ---------------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """xdist: a worker is about to be started."""
        node.workerinput["asyncsafe_directory"] = self._directory

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: a worker has ended. One that crashed has sent nothing."""
        sent = getattr(node, "workeroutput", {}).get("asyncsafe")
        if sent is not None:
            self._summary.merge(sent)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self._keep_outside()
        if self._worker is not None:
            self._config.workeroutput["asyncsafe"] = self._summary.for_controller()  # type: ignore[attr-defined]
        else:
            self._summary.end(session, exitstatus)

    def pytest_report_header(self) -> list[str]:
        told = f"asyncsafe: mode {self._mode}"
        if self._baseline is not None:
            told += f", baseline {shorten(self._baseline.path)}"
        lines = [told]
        if value := os.environ.get(policy.DJANGO_VARIABLE):
            lines.append(f"asyncsafe: {policy.DJANGO_VARIABLE}={value} allows everything")
        return lines

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self._summary.write(terminalreporter)


def _configure(mode: Mode | None) -> None:
    policy.configure(mode=mode)


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function, and of what it wraps."""
    while function is not None:
        function = getattr(function, "__func__", function)
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            yield code
        # How hypothesis has plugins find the function that it calls with its examples.
        if (
            inner := getattr(getattr(function, "hypothesis", None), "inner_test", None)
        ) is not None:
            yield from _codes(inner)
            # anyio has put its own in its place, for good, and tells it by no public name.
            yield from _codes(getattr(inner, "_anyio_original_func", None))
        if isinstance(function, functools.partial):
            function = function.func
        else:
            function = getattr(function, "__wrapped__", None)


def _with_nested(codes: set[CodeType]) -> set[CodeType]:
    """These, and the functions that are defined in them."""
    found = set(codes)
    waiting = list(codes)
    while waiting:
        for constant in waiting.pop().co_consts:
            if isinstance(constant, CodeType) and constant not in found:
                found.add(constant)
                waiting.append(constant)
    return found


def _is_unittest(cls: type | None) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and cls is not None and issubclass(cls, unittest.TestCase)


def _all_of(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from or while handling, and the members of groups."""
    waiting = [error]
    seen = set()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        waiting += [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions


def _read_marker(item: pytest.Item) -> tuple[policy.Allowance | None, str | None]:
    """What the closest marker allows, or what is wrong with it."""
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return None, None
    given = [*marker.args, *marker.kwargs.values()]
    reason = given[0] if len(given) == 1 and marker.kwargs.keys() <= {"reason"} else None
    if not isinstance(reason, str) or not reason.strip():
        return None, f'write @pytest.mark.{MARKER}("why this is fine"), with the reason as a string'
    return policy.Allowance(reason), None


def _describe(swallowed: list[Refusal]) -> str:
    messages = by_call_site(swallowed)
    parts = []
    for told, times in list(messages.values())[:MESSAGE_LIMIT]:
        parts.append(told)
        again = f", {how_often(times)}" if times > 1 else ""
        parts.append(
            f"  It was refused{again}, and the exception was swallowed on its way to the test."
        )
    if len(messages) > MESSAGE_LIMIT:
        parts.append(f"And {len(messages) - MESSAGE_LIMIT} more.")
    return "\n\n".join(parts)


def _hide_our_frames(refusal: Refusal) -> None:
    """Have the traceback end in the line that made the call."""
    last = None
    entry = refusal.__traceback__
    while entry is not None:
        if not is_ours(entry.tb_frame.f_code.co_filename):
            last = entry
        entry = entry.tb_next
    if last is not None:
        last.tb_next = None
