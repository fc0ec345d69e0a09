# ruff: noqa: N802  (unittest's names)
"""What runs inside a suite's own process: python runner.py TESTS RESULTS [LIBRARY].

Nothing of downstream/ is imported here, and of asyncsafe only where LIBRARY is to be guarded.
"""

from __future__ import annotations

import asyncio  # in both runs: without it a guard has nothing to ask
import json
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: By library: what must be refused on the loop while it is guarded.
MUST_BE_REFUSED: dict[str, Callable[[Any], object]] = {
    "psycopg2": lambda psycopg2: psycopg2.connect("host=/nowhere"),
    "sqlite3": lambda sqlite3: sqlite3.connect(":memory:"),
}


def main(tests: str, results: str, library: str | None = None) -> None:
    if library:
        import asyncsafe

        asyncsafe.install(library)
    sys.path.insert(0, str(Path.cwd()))
    suite = unittest.defaultTestLoader.loadTestsFromName(tests)
    if library:
        assert_guarded(library)
    runner = unittest.TextTestRunner(verbosity=2, resultclass=Results)
    ended = runner.run(suite).ended
    if library:
        assert_guarded(library)
    else:
        assert "asyncsafe" not in sys.modules, "this run should have been without it"
    Path(results).write_text(json.dumps(ended, indent=1))


def assert_guarded(library: str) -> None:
    """Every guard is in its place, and refuses."""
    import asyncsafe
    from asyncsafe.installation import integration

    patches = [patch for patch, guard in integration(library)._patches if guard is not None]
    assert patches, f"{library} is not guarded"
    for patch in patches:
        current = vars(patch.owner)[patch.name]
        function = current.fset if isinstance(current, property) else current
        guard = getattr(function, "__async_unsafe__", None)
        assert guard, f"{patch.owner}.{patch.name} is not guarded"
        assert guard.enabled, f"the guard of {patch.owner}.{patch.name} lets everything through"

    async def call() -> None:
        MUST_BE_REFUSED[library](sys.modules[library])

    try:
        asyncio.run(call())
    except asyncsafe.SynchronousOnlyOperation:
        print(f"{library}: {len(patches)} guards in place, and refusing", file=sys.stderr)
    else:
        raise AssertionError(f"{library} is guarded, and did not refuse")


class Results(unittest.TextTestResult):
    """How each test ended, by its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ended: dict[str, str] = {}

    def note(self, test: Any, ended: str) -> None:
        """A test that ends twice (a failure, then an error in tearDown) has ended in both ways."""
        name = test.id()
        self.ended[name] = f"{self.ended[name]}; {ended}" if name in self.ended else ended

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
    main(*sys.argv[1:])
