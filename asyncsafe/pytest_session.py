"""One guarded run of pytest: which test a violation belongs to, and what is told at the end."""

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
from .recorder import violations
from .reports import baseline as baseline_report
from .reports import text
from .reports.formats import check_file, write_file
from .reports.reading import read_recordings
from .reports.recording import Recording
from .stacks import is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .baseline import Baseline
    from .exceptions import ConnectionSharingError, SynchronousOnlyOperation
    from .policy import Mode
    from .violation import Violation

    Refusal = SynchronousOnlyOperation | ConnectionSharingError

MARKER = "allow_async_unsafe"

#: How many exceptions are held until their phase ends; further ones are taken for the like of these.
REFUSAL_LIMIT = 1000
#: How many call sites' messages a failure tells.
MESSAGE_LIMIT = 5
#: How many call sites the summary has, without -v.
SITE_LIMIT = 20
#: How many messages of calls that belong to no test are kept.
OUTSIDE_LIMIT = 100

#: Options of pytest with which it runs no test, and ends well.
_RUNS_NONE = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")

#: A test class's or module's functions that pytest and unittest call round a test.
_ROUND_A_TEST = (
    *("setup_module", "teardown_module", "setup_function", "teardown_function"),
    *("setup_class", "teardown_class", "setup_method", "teardown_method"),
    *("setUpClass", "tearDownClass", "setUp", "tearDown", "asyncSetUp", "asyncTearDown"),
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
        self._in_unittest = False
        self._allowance: policy.Allowance | None = None
        self._marker_error: str | None = None
        #: Of each allow marker, by what it stands on: the reason, whether a test below it passed,
        #: and whether any was let through by it.
        self._markers: dict[str, tuple[str, bool, bool]] = {}
        #: What belongs to no test: by call site the message, and how often.
        self._outside: dict[str, tuple[str, int]] = {}
        self._deselected = False
        self._told: list[str] = []

    def begin(self) -> None:
        """Guard, until `end`. Raises pytest.UsageError for a configuration that can't be used."""
        self._config.add_cleanup(self.end)
        try:
            self._begin()
        except (AsyncsafeError, OSError) as error:
            raise pytest.UsageError(f"asyncsafe: {error}") from error

    def _begin(self) -> None:
        file = self._config.getoption("asyncsafe_report")
        self._report_path: str | None = file and self._path(file)
        if file is not None:
            check_file("--asyncsafe-report", self._path(file))
        self._baseline = self._find_baseline()
        self._directory = self._find_directory()
        if self._baseline is not None:
            self._baseline.keep_in(self._directory)
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
        self._take_back()
        function = getattr(item, "function", None)
        self._test = set(_codes(function))
        for owner in (getattr(item, "cls", None), getattr(item, "module", None)):
            for name in _ROUND_A_TEST:
                self._test.update(_codes(getattr(owner, name, None)))
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
            if entry.tb_frame.f_code in own:
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
            if call.excinfo is None or call.excinfo.value is not failure:
                report.sections.append(("asyncsafe", told))
        return report

    # What belongs to no test -----------------------------------------------------------------

    def _keep_outside(self) -> None:
        refused, self._refused = self._refused, []
        self._add_outside(_messages(refused))

    def _add_outside(self, messages: dict[str, tuple[str, int]]) -> None:
        for site, (told, times) in messages.items():
            if site in self._outside or len(self._outside) < OUTSIDE_LIMIT:
                first, before = self._outside.get(site, (told, 0))
                self._outside[site] = first, before + times

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
        self._deselected = True

    # Markers ---------------------------------------------------------------------------------

    def _count_marker(self, item: pytest.Item, *, passed: bool) -> None:
        if self._allowance is None:
            return
        node, _ = next(item.iter_markers_with_node(MARKER))
        name = node.nodeid
        if (callspec := getattr(node, "callspec", None)) is not None:
            name = name.removesuffix(f"[{callspec.id}]")
        self._add_marker(name, self._allowance.reason, passed, self._allowance.used)

    def _add_marker(self, name: str, reason: str, passed: bool, used: bool) -> None:
        _, passed_before, used_before = self._markers.get(name, (reason, False, False))
        self._markers[name] = reason, passed or passed_before, used or used_before

    # The end ---------------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """xdist: a worker is about to be started."""
        node.workerinput["asyncsafe_directory"] = self._directory

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: a worker has ended. One that crashed has sent nothing."""
        sent = getattr(node, "workeroutput", {}).get("asyncsafe")
        if sent is None:
            return
        self._deselected = self._deselected or sent["deselected"]
        self._add_outside(sent["outside"])
        for name, marker in sent["markers"].items():
            self._add_marker(name, *marker)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self._keep_outside()
        if self._worker is not None:
            self._config.workeroutput["asyncsafe"] = {  # type: ignore[attr-defined]
                "deselected": self._deselected,
                "outside": self._outside,
                "markers": self._markers,
            }
            return
        report = read_recordings(self._directory)
        self._told += self._tell_sites(report)
        if self._report_path is not None:
            self._told.append(self._write_report(self._report_path, report, int(exitstatus)))
        if self._outside:
            self._told.append(self._tell_outside())
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if unused := self._tell_unused():
            self._told.append(unused)
        if self._baseline is not None:
            self._told.append(self._end_baseline(session, exitstatus, report))

    def _write_report(self, path: str, report: dict[str, Any], status: int) -> str:
        run = {
            "command": ["pytest", *self._config.invocation_params.args],
            "mode": self._mode,
            "exit_status": status,
        }
        try:
            write_file(path, {**run, **report}, str(self._config.rootpath))
        except (AsyncsafeError, OSError) as error:
            return f"The report was not written: {error}"
        return f"The report is in {path}"

    def _tell_sites(self, report: dict[str, Any]) -> list[str]:
        """The table, without what the baseline knows: that is a line of its own."""
        known = None if self._baseline is None else self._baseline.reason
        sites = [
            site
            for site in report["sites"]
            # What passed once may have been refused by forbid().
            if known is None
            or site["reason"] != known
            or site["outcomes"]["allowed"] < site["calls"]
        ]
        if not sites:
            return []
        if len(sites) <= SITE_LIMIT or self._config.get_verbosity() > 0:
            return [text.render({**report, "sites": sites})]
        return [
            f"{len(sites):,} call sites. Of the {SITE_LIMIT} worst (-v tells all):\n",
            text.render({**report, "sites": sites[:SITE_LIMIT]}),
        ]

    def _tell_outside(self) -> str:
        told = [
            f"{message}\n\n  {_times(times)}, while no test was under way."
            for message, times in self._outside.values()
        ]
        calls = sum(times for _, times in self._outside.values())
        headline = (
            f"{calls:,} refused {'call belongs' if calls == 1 else 'calls belong'} to no test:"
        )
        return "\n\n".join([headline, *told]) + "\n"

    def _tell_unused(self) -> str:
        unused = [
            f"  {name}: {reason}"
            for name, (reason, passed, used) in sorted(self._markers.items())
            if passed and not used
        ]
        if not unused:
            return ""
        return "\n".join([f"Markers that allowed nothing ({MARKER}):", *unused]) + "\n"

    def _end_baseline(
        self, session: pytest.Session, exitstatus: int, report: dict[str, Any]
    ) -> str:
        assert self._baseline is not None
        self._baseline.read_kept(self._directory)
        return baseline_report.finish(
            self._baseline,
            report,
            update=self._option("update"),
            prune=self._option("prune"),
            why_not=self._why_partial(session, exitstatus),
        )

    def _why_partial(self, session: pytest.Session, exitstatus: int) -> str | None:
        """Why call sites that this run didn't see may be there all the same, or None."""
        if session.shouldstop or session.shouldfail or exitstatus != pytest.ExitCode.OK:
            return "not every test has passed"
        if any(self._config.getoption(name, default=False) for name in _RUNS_NONE):
            return "no test was run"
        # In the settings, --ignore tells what the whole is.
        ignored = any(arg.startswith("--ignore") for arg in self._config.invocation_params.args)
        if self._deselected or ignored or self._config.getoption("lf", default=False):
            return "tests were deselected"
        if not self._asked_for_all():
            return "it was a run of some tests"
        return None

    def _asked_for_all(self) -> bool:
        """Whether the arguments name all of testpaths, or the root directory."""
        root = self._config.rootpath
        named = {(self._config.invocation_params.dir / arg).resolve() for arg in self._config.args}
        wanted = [root / path for path in self._config.getini("testpaths")] or [root]
        return all(not {p.resolve(), *p.resolve().parents}.isdisjoint(named) for p in wanted)

    def pytest_report_header(self) -> list[str]:
        told = f"asyncsafe: mode {self._mode}"
        if self._baseline is not None:
            told += f", baseline {shorten(self._baseline.path)}"
        lines = [told]
        if value := os.environ.get(policy.DJANGO_VARIABLE):
            lines.append(f"asyncsafe: {policy.DJANGO_VARIABLE}={value} allows everything")
        return lines

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._told:
            terminalreporter.section("asyncsafe")
            terminalreporter.write("\n".join(self._told))


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
    messages = _messages(swallowed)
    parts = []
    for told, times in list(messages.values())[:MESSAGE_LIMIT]:
        parts.append(told)
        again = f", {_times(times)}" if times > 1 else ""
        parts.append(
            f"  It was refused{again}, and the exception was swallowed on its way to the test."
        )
    if len(messages) > MESSAGE_LIMIT:
        parts.append(f"And {len(messages) - MESSAGE_LIMIT} more.")
    return "\n\n".join(parts)


def _messages(refusals: list[Refusal]) -> dict[str, tuple[str, int]]:
    """By call site: the message of the first refusal there, and how many there were."""
    sites: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        violation = refusal.violation
        assert violation is not None
        site = violation.operation, *violation.call_site, *(violation.coroutine or ())
        sites.setdefault(repr(site), []).append(refusal)
    return {site: (str(here[0]), len(here)) for site, here in sites.items()}


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


def _times(times: int) -> str:
    return "once" if times == 1 else f"{times:,} times"
