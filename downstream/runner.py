# ruff: noqa: N802  (unittest's names)
"""What runs inside a suite's own process: python runner.py JSON (see `main`).

Nothing of downstream/ is imported here, and of asyncsafe only where the run is guarded.
"""

from __future__ import annotations

import asyncio  # in both runs: without it a guard has nothing to ask
import json
import runpy
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: By library: what must be refused on the loop while it is guarded.
MUST_BE_REFUSED: dict[str, Callable[[Any], object]] = {
    "django": lambda django: django.db.connection.cursor(),
    "psycopg2": lambda psycopg2: psycopg2.connect("host=/nowhere"),
    "sqlite3": lambda sqlite3: sqlite3.connect(":memory:"),
}

#: The libraries that must be refusing when the tests begin, and when they have ended.
guarded: list[str] = []
#: How each test ended, by its name.
ended: dict[str, str] = {}


def main(
    results: str, tests: list[str], libraries: list[str], without: list[str], *, guard: bool
) -> None:
    """Run the tests, and write how each ended.

    tests: what unittest's loader takes; or the project's own script that runs them by unittest, and
        its arguments.
    libraries: those that the tests use. All that asyncsafe supports are guarded.
    without: modules that can't be imported.
    """
    for module in without:
        sys.modules[module] = None  # type: ignore[assignment]
    if guard:
        import asyncsafe

        asyncsafe.install()
        guarded.extend(libraries)
    sys.path.insert(0, str(Path.cwd()))
    unittest.TextTestRunner.resultclass = Results
    if tests[0].endswith(".py"):
        sys.argv = tests
        try:
            runpy.run_path(tests[0], run_name="__main__")
        except SystemExit as exit_:
            # A failed test is a result; nothing run at all is told by what has not ended.
            print(f"{tests[0]} has ended with {exit_.code!r}", file=sys.stderr)
    else:
        suite = unittest.defaultTestLoader.loadTestsFromName(tests[0])
        unittest.TextTestRunner(verbosity=2).run(suite)
    assert ended, "no test was run"
    if not guard:
        assert "asyncsafe" not in sys.modules, "this run should have been without it"
    Path(results).write_text(json.dumps(ended, indent=1))


def assert_guarded(library: str) -> None:
    """Every guard is in its place, and refuses."""
    import asyncsafe
    from asyncsafe.installation import integration

    # By attribute: the last of its patches.
    patches = {(patch.owner, patch.name): patch for patch, _ in integration(library)._patches}
    assert patches, f"{library} is not guarded"
    for (owner, name), patch in patches.items():
        assert vars(owner)[name] is patch.replacement, f"{owner}.{name} is not guarded"
    for patch, guard in integration(library)._patches:
        assert guard is None or guard.enabled, (
            f"the guard of {patch.owner}.{patch.name} lets everything through"
        )

    async def refused_by() -> str | None:
        try:
            MUST_BE_REFUSED[library](sys.modules[library])
        except asyncsafe.SynchronousOnlyOperation as refusal:
            return refusal.violation.library
        return None

    by = asyncio.run(refused_by())
    assert by == library, f"what {library}'s guard must refuse was refused by: {by}"
    print(f"{library}: {len(patches)} guards in place, and refusing", file=sys.stderr)


class Results(unittest.TextTestResult):
    """Notes how each test ended."""

    def startTestRun(self) -> None:
        super().startTestRun()
        for library in guarded:
            assert_guarded(library)

    def stopTestRun(self) -> None:
        for library in guarded:
            assert_guarded(library)
        super().stopTestRun()

    def note(self, test: Any, how: str) -> None:
        """A test that ends twice (a failure, then an error in tearDown) has ended in both ways."""
        name = test.id()
        ended[name] = f"{ended[name]}; {how}" if name in ended else how

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        self.note(test, "passed")

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self.note(test, f"failed: {err[0].__name__}")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self.note(test, f"failed: {err[0].__name__}")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self.note(test, f"skipped: {reason}")

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.note(test, "failed as expected")

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self.note(test, "passed unexpectedly")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(subtest, f"failed: {err[0].__name__}")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
