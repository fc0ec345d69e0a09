"""What a guarded run of pytest tells at its end: its own part, and that of xdist's workers."""

from __future__ import annotations

import json

import pytest

from .exceptions import AsyncsafeError
from .reports import baseline as baseline_report
from .reports import text
from .reports.formats import write_file
from .reports.reading import read_recordings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .baseline import Baseline
    from .exceptions import ConnectionSharingError, SynchronousOnlyOperation
    from .policy import Mode

    Refusal = SynchronousOnlyOperation | ConnectionSharingError

MARKER = "allow_async_unsafe"

#: How many call sites the summary has, without -v.
SITE_LIMIT = 20
#: How many messages of calls that belong to no test are kept.
OUTSIDE_LIMIT = 100

#: Options of pytest with which it runs no test, and ends well.
_RUNS_NONE = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")


class Summary:
    """What is collected while tests run, and told when they have."""

    def __init__(
        self,
        config: pytest.Config,
        mode: Mode,
        directory: str,
        *,
        report_path: str | None,
        baseline: Baseline | None,
    ) -> None:
        self._config = config
        self._mode = mode
        #: Where all processes of the run keep what they record.
        self._directory = directory
        self._report_path = report_path
        self._baseline = baseline
        #: Of each allow marker, by what it stands on: the reason, whether a test below it passed,
        #: and whether any was let through by it.
        self._markers: dict[str, tuple[str, bool, bool]] = {}
        #: What belongs to no test: by call site the message, and how often.
        self._outside: dict[str, tuple[str, int]] = {}
        self.deselected: bool = False
        self._told: list[str] = []

    def add_outside(self, messages: dict[str, tuple[str, int]]) -> None:
        """Add what belongs to no test, as `by_call_site` returns it."""
        for site, (told, times) in messages.items():
            if site in self._outside or len(self._outside) < OUTSIDE_LIMIT:
                first, before = self._outside.get(site, (told, 0))
                self._outside[site] = first, before + times

    def add_marker(self, name: str, reason: str, passed: bool, used: bool) -> None:
        """Add what a test has made of the marker that stands on `name`."""
        _, passed_before, used_before = self._markers.get(name, (reason, False, False))
        self._markers[name] = reason, passed or passed_before, used or used_before

    # xdist -----------------------------------------------------------------------------------

    def for_controller(self) -> str:
        """What a worker sends.

        As JSON: xdist takes no string that is a member of an enumeration, as a reason may be, or
        that isn't UTF-8, as a file's name may be.
        """
        return json.dumps(
            {
                "deselected": self.deselected,
                "outside": self._outside,
                "markers": self._markers,
            }
        )

    def merge(self, sent: str) -> None:
        """Add what a worker has sent."""
        worker: dict[str, Any] = json.loads(sent)
        self.deselected = self.deselected or worker["deselected"]
        self.add_outside(worker["outside"])
        for name, marker in worker["markers"].items():
            self.add_marker(name, *marker)

    # The end ---------------------------------------------------------------------------------

    def end(self, session: pytest.Session, exitstatus: int) -> None:
        """Read what all processes have recorded; write the report and the baseline."""
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

    def write(self, terminal: pytest.TerminalReporter) -> None:
        """Tell it."""
        if self._told:
            terminal.section("asyncsafe")
            terminal.write("\n".join(self._told))

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
            f"{message}\n\n  {how_often(times)}, while no test was under way."
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
            update=bool(self._config.getoption("asyncsafe_update_baseline")),
            prune=bool(self._config.getoption("asyncsafe_prune_baseline")),
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
        if self.deselected or ignored or self._config.getoption("lf", default=False):
            return "tests were deselected"
        if not self._asked_for_all():
            return "it was a run of some tests"
        return None

    def _asked_for_all(self) -> bool:
        """Whether the arguments name all of testpaths, or the root directory."""
        if self._config.args_source is pytest.Config.ArgsSource.TESTPATHS:
            return True  # which may be patterns
        root = self._config.rootpath
        named = {(self._config.invocation_params.dir / arg).resolve() for arg in self._config.args}
        wanted = [root / path for path in self._config.getini("testpaths")] or [root]
        return all(not {p.resolve(), *p.resolve().parents}.isdisjoint(named) for p in wanted)


def by_call_site(refusals: list[Refusal]) -> dict[str, tuple[str, int]]:
    """By call site: the message of the first refusal there, and how many there were."""
    sites: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        violation = refusal.violation
        assert violation is not None
        site = violation.operation, *violation.call_site, *(violation.coroutine or ())
        sites.setdefault(repr(site), []).append(refusal)
    return {site: (str(here[0]), len(here)) for site, here in sites.items()}


def how_often(times: int) -> str:
    return "once" if times == 1 else f"{times:,} times"
