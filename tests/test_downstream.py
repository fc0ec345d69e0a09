"""downstream/: what its own suites would tell if a guard changed something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from downstream.suites import RunError, Suite, both, run

TESTS = """
import asyncio, sqlite3, unittest
import pytest

def test_passes():
    sqlite3.connect(":memory:").close()

def test_fails():
    raise LookupError

def test_skips():
    pytest.skip("no reason")

@pytest.mark.xfail
def test_fails_as_expected():
    raise LookupError

@pytest.mark.xfail
def test_passes_unexpectedly():
    pass

@pytest.fixture
def broken():
    yield
    raise LookupError

def test_fails_afterwards(broken):
    pass

@pytest.mark.parametrize("times", [1, 2])
def test_blocks(times):
    async def main():
        for _ in range(times):
            sqlite3.connect(":memory:").close()
    asyncio.run(main())

class Case(unittest.TestCase):
    def test_subtests(self):
        for number in range(3):
            with self.subTest(number=number):
                assert number != 1
"""

ENDED = {
    "test_passes": "passed",
    "test_fails": "failed: LookupError",
    "test_skips": "skipped: Skipped: no reason",
    "test_fails_as_expected": "failed as expected",
    "test_passes_unexpectedly": "passed unexpectedly",
    "test_fails_afterwards": "passed; failed: LookupError",
    "test_blocks[1]": "passed",
    "test_blocks[2]": "passed",
}

BLOCKS = {f"test_suite.py::test_blocks[{times}]": "it says so" for times in (1, 2)}


def suite(directory: Path, code: str = TESTS, **more: Any) -> Suite:
    (directory / "test_suite.py").write_text(code)
    given: dict[str, Any] = {"pytest": True, "directory": directory, **more}
    # The Python of this run has plugins, ours among them; a suite's own hasn't.
    given["environment"] = lambda: {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return Suite("suite", "A suite", ["test_suite.py"], ["sqlite3"], **given)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_pytest_suite_tells_how_each_test_ended(tmp_path: Path, guarded: bool) -> None:
    ended = run(suite(tmp_path), tmp_path, guarded=guarded)
    blocks = "failed: SynchronousOnlyOperation" if guarded else "passed"
    subtests = ended.pop("test_suite.py::Case::test_subtests")
    assert "failed: AssertionError" in subtests
    expected = {f"test_suite.py::{name}": how for name, how in ENDED.items()}
    assert ended == {**expected, **dict.fromkeys(BLOCKS, blocks)}


def test_what_differs_is_told_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert both(suite(tmp_path), tmp_path)
    told = capsys.readouterr().out
    assert "2 differ that should not" in told
    assert "test_suite.py::test_blocks[2]\n      bare     passed\n" in told


def test_what_the_recipe_names_may_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not both(suite(tmp_path, differ=BLOCKS), tmp_path)
    told = capsys.readouterr().out
    assert "it says so" in told
    assert "the same, test by test, but for the 2 that the recipe names" in told


@pytest.mark.parametrize("table", ["differ", "unsteady"])
def test_a_name_in_vain_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    named = {**BLOCKS, "test_suite.py::test_gone": "it was there"}
    assert both(suite(tmp_path, **{table: named}), tmp_path)
    assert "0 differ that should not, 1 named in vain" in capsys.readouterr().out


def test_an_unsteady_test_may_end_alike(tmp_path: Path) -> None:
    unsteady = {"test_suite.py::test_passes": "by itself"}
    assert not both(suite(tmp_path, differ=BLOCKS, unsteady=unsteady), tmp_path)


HANGS = """
import threading

def test_hangs():
    threading.Event().wait()
"""


def test_a_suite_that_hangs_is_ended_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where that is on a slow machine, nobody knows."""
    with pytest.raises(RunError, match="bare: it hung, and was ended after 10 seconds"):
        run(suite(tmp_path, HANGS, timeout=10), tmp_path, guarded=False)
    assert "most recent call first" in capsys.readouterr().out


UNGUARDS = """
import sqlite3, asyncsafe

def test_unguards():
    asyncsafe.uninstall()
"""


def test_a_suite_that_takes_the_guards_away_has_shown_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="guarded: the run itself failed"):
        run(suite(tmp_path, UNGUARDS), tmp_path, guarded=True)
    assert "sqlite3 is not guarded" in capsys.readouterr().out


def test_what_cannot_be_collected_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_passes(): pass")
    one = suite(tmp_path, "import nothing_of_this_name")
    one.tests.append("test_other.py")
    ended = run(one, tmp_path, guarded=False)
    assert ended == {
        "test_suite.py": "failed: not collected",
        "test_other.py::test_passes": "passed",
    }
