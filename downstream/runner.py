# ruff: noqa: N802  (unittest's names)
"""What runs inside a suite's own process: python runner.py JSON (see `main`).

Nothing of downstream/ is imported here, and of asyncsafe only where the run is guarded.
"""

from __future__ import annotations

import asyncio  # in both runs: without it a guard has nothing to ask
import faulthandler
import json
import os
import runpy
import sys
import unittest
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

#: By library: its module, and what must be refused on the loop while it is guarded.
MUST_BE_REFUSED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "apsw": ("apsw", lambda apsw: apsw.Connection(":memory:").execute("select 1")),
    "django": ("django", lambda django: django.db.connection.cursor()),
    "mysql.connector": ("mysql.connector", lambda connector: connector.connect(port=1)),
    "mysqlclient": ("MySQLdb", lambda mysqldb: mysqldb.connect(host="127.0.0.1", port=1)),
    "peewee": ("peewee", lambda peewee: peewee.SqliteDatabase(":memory:").connect()),
    "pg8000": ("pg8000", lambda pg8000: pg8000.connect("nobody", port=1)),
    "pony": ("pony.orm", lambda pony: pony.Database("sqlite", ":memory:")),
    "psycopg": ("psycopg", lambda psycopg: psycopg.connect("host=/nowhere")),
    "psycopg2": ("psycopg2", lambda psycopg2: psycopg2.connect("host=/nowhere")),
    "pymysql": ("pymysql", lambda pymysql: pymysql.connect(host="127.0.0.1", port=1)),
    "pyodbc": ("pyodbc", lambda pyodbc: pyodbc.connect("Driver=nothing")),
    "sqlalchemy": ("sqlalchemy", lambda sa: sa.create_engine("sqlite://").connect()),
    "sqlite3": ("sqlite3", lambda sqlite3: sqlite3.connect(":memory:")),
}

#: The process's, also while pytest captures what tests write.
stderr = os.fdopen(os.dup(2), "w")
#: The libraries that must be refusing when the tests begin, and when they have ended.
guarded: list[str] = []
#: How each test ended, by its name.
ended: dict[str, str] = {}


def main(
    results: str,
    tests: list[str],
    libraries: list[str],
    without: list[str],
    asyncsafe: str | None,
    *,
    pytest: bool,
) -> None:
    """Run the tests, and write how each ended.

    tests: pytest's arguments; or what unittest's loader takes; or the project's own script that
        runs them by unittest, and its arguments.
    libraries: those that the tests use. All that asyncsafe supports are guarded.
    without: modules that can't be imported.
    asyncsafe: the folder to import it from, in a run that is guarded.
    """
    faulthandler.enable(stderr)  # SIGABRT asks where a run hangs
    for module in without:
        sys.modules[module] = None  # type: ignore[assignment]
    if asyncsafe:
        install(asyncsafe)
        guarded.extend(libraries)
    sys.path.insert(0, str(Path.cwd()))
    if pytest:
        run_pytest(tests)
    else:
        run_unittest(tests)
    assert ended, "no test was run"
    if not asyncsafe:
        assert "asyncsafe" not in sys.modules, "this run should have been without it"
    Path(results).write_text(json.dumps(ended, indent=1))


def install(folder: str) -> None:
    """From this folder, whose other packages must not be found in place of the suite's."""
    sys.path.insert(0, folder)
    import asyncsafe

    sys.path.remove(folder)
    asyncsafe.install()


def assert_guarded() -> None:
    for library in guarded:
        assert_library_guarded(library)


def assert_library_guarded(library: str) -> None:
    """Every guard is in its place, and refuses."""
    import asyncsafe
    from asyncsafe.installation import integration

    name, call = MUST_BE_REFUSED[library]
    module = import_module(name)
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
            with asyncsafe.forbid():  # whatever the mode
                call(module)
        except asyncsafe.SynchronousOnlyOperation as refusal:
            return refusal.violation.library
        return None

    by = asyncio.run(refused_by())
    assert by == library, f"what {library}'s guard must refuse was refused by: {by}"
    print(f"{library}: {len(patches)} guards in place, and refusing", file=sys.stderr)


def note(name: str, how: str) -> None:
    """A test that ends twice (a failure, then an error in tearDown) has ended in both ways."""
    ended[name] = f"{ended[name]}; {how}" if name in ended else how


def run_pytest(arguments: list[str]) -> None:
    import pytest

    class Plugin:
        """Notes how each test ended, and what could not be collected."""

        def pytest_collection_finish(self) -> None:
            assert_guarded()

        def pytest_sessionfinish(self) -> None:
            assert_guarded()

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                note(report.nodeid, "failed: not collected")
            elif report.skipped:
                note(report.nodeid, f"skipped: {report.longrepr[2]}")

        @pytest.hookimpl(wrapper=True, tryfirst=True)  # round what makes a failure an expected one
        def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
            report = yield
            if (how := _phase(report, call)) and (how != "passed" or item.nodeid not in ended):
                note(item.nodeid, how)
            return report

    # A timeout of a suite's own would forget ours.
    options = ["-v", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    status = pytest.main(
        [*options, "--continue-on-collection-errors", *arguments], plugins=[Plugin()]
    )
    assert status in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, f"pytest: {status!r}"


def _phase(report: Any, call: Any) -> str | None:
    """How this part of a test (its setup, the test, its teardown) ended; None: nothing to tell."""
    if hasattr(report, "wasxfail"):
        return "failed as expected" if report.skipped else "passed unexpectedly"
    if report.failed:
        return f"failed: {call.excinfo.typename if call.excinfo else report.longrepr}"
    if report.skipped:
        return f"skipped: {report.longrepr[2]}"
    return "passed" if report.when == "call" else None


def run_unittest(tests: list[str]) -> None:
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


class Results(unittest.TextTestResult):
    """Notes how each test ended."""

    def startTestRun(self) -> None:
        super().startTestRun()
        assert_guarded()

    def stopTestRun(self) -> None:
        assert_guarded()
        super().stopTestRun()

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        note(test.id(), "passed")

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        note(test.id(), f"failed: {err[0].__name__}")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        note(test.id(), f"failed: {err[0].__name__}")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        note(test.id(), f"skipped: {reason}")

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        note(test.id(), "failed as expected")

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        note(test.id(), "passed unexpectedly")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            note(subtest.id(), f"failed: {err[0].__name__}")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
