"""Run a suite with the guard and without, and compare the results test by test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent

#: The name of each test, and how it ended.
Results = dict[str, str]


#: They would decide what the guard does.
_NOT_TO_BE_INHERITED = ("ASYNCSAFE_MODE", "DJANGO_ALLOW_ASYNC_UNSAFE")


class NotRun(Exception):  # noqa: N818  (no error of anybody's)
    """A recipe lacks a library or a server. The message says which."""


class RunError(Exception):
    """A suite's process told no results."""


@dataclass
class Suite:
    """A suite of somebody else's, ready to be run."""

    name: str
    #: What is run, for the reader.
    title: str
    #: pytest's arguments; or what unittest's loader takes, a module or a function in it that makes
    #: a suite; or a script of the project's that runs its tests by unittest, and its arguments.
    tests: list[str]
    #: The libraries whose guards must be in place.
    libraries: list[str]
    pytest: bool = False
    #: What runs it.
    python: Path = Path(sys.executable)
    #: Modules that this suite is to be run without.
    without: list[str] = field(default_factory=list)
    #: Called before each run: where it is to run, and the environment that it needs.
    directory: Path | None = None
    environment: Callable[[], Mapping[str, str]] = field(default=dict)
    #: Tests that must differ, and why: they call a synchronous library on the loop on purpose.
    differ: Mapping[str, str] = field(default_factory=dict)
    #: Tests that end in this way or that by themselves, and why. They may differ.
    unsteady: Mapping[str, str] = field(default_factory=dict)
    #: Seconds. What takes longer hangs.
    timeout: float = 900


def run(suite: Suite, directory: Path, *, guarded: bool) -> Results:
    """Run it in a process of its own. Its output goes to a file in the directory."""
    how = "guarded" if guarded else "bare"
    results = directory / f"{suite.name}-{how}.json"
    output = directory / f"{suite.name}-{how}.txt"
    results.unlink(missing_ok=True)
    path = f"{suite.python.parent}{os.pathsep}{os.environ['PATH']}"
    ours = {name: value for name, value in os.environ.items() if name not in _NOT_TO_BE_INHERITED}
    environment = {**ours, **suite.environment(), "PATH": path, "PYTHONHASHSEED": "0"}
    asked = {
        "results": str(results),
        "tests": suite.tests,
        "libraries": suite.libraries,
        "without": suite.without,
        "pytest": suite.pytest,
        "asyncsafe": str(HERE.parent) if guarded else None,
    }
    with output.open("w") as file:
        process = subprocess.Popen(
            [suite.python, "-P", HERE / "runner.py", json.dumps(asked)],
            cwd=suite.directory or directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        ended = _wait(process, suite.timeout)
    if process.returncode:
        print(
            output.read_text(errors="replace")[-10000:]
        )  # where it hangs stands first in a long stack
        raise RunError(f"{suite.title}, {how}: {ended} (status {process.returncode})")
    return json.loads(results.read_text())  # type: ignore[no-any-return]


def _wait(process: subprocess.Popen[bytes], timeout: float) -> str:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it writes where it hangs
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"it hung, and was ended after {timeout:.0f} seconds"
    return "the run itself failed"


def both(suite: Suite, directory: Path) -> bool:
    """Run it without the guard and with it. Prints, and returns, whether anything is wrong."""
    print(f"{suite.title}, on Python {sys.version.split()[0]}", flush=True)
    results = []
    for guarded in (False, True):
        began = time.monotonic()
        try:
            results.append(run(suite, directory, guarded=guarded))
        except RunError as failure:
            print(f"  {failure}", flush=True)
            return True
        took = time.monotonic() - began
        totals = Counter(ended.partition(":")[0] for ended in results[-1].values())
        counts = ", ".join(f"{count} {ended}" for ended, count in totals.most_common())
        how = "guarded" if guarded else "bare"
        print(f"  {how:8} {len(results[-1])} tests in {took:.0f} s: {counts}", flush=True)
    return compare(suite, *results)


def _same(ended: str | None) -> str | None:
    """Of several reasons to skip a test, SQLAlchemy's suite tells any."""
    return "skipped" if ended and ended.startswith("skipped: ") else ended


def compare(suite: Suite, bare: Results, guarded: Results) -> bool:
    """Print every difference. Returns whether there is any that the recipe doesn't name.

    One that it names and that isn't there is wrong as well: the tables tell what is so.
    """
    names = [*bare, *(name for name in guarded if name not in bare)]
    differ = [name for name in names if _same(bare.get(name)) != _same(guarded.get(name))]
    named = {**suite.differ, **suite.unsteady}
    unexpected = [name for name in differ if name not in named]
    expected = [name for name in differ if name in named]
    same = [name for name in suite.differ if name not in differ]
    gone = [name for name in suite.unsteady if name not in names]
    for name in unexpected:
        print(f"  {name}")
        print(f"      bare     {bare.get(name, 'not run')}")
        print(f"      guarded  {guarded.get(name, 'not run')}")
    for reason in dict.fromkeys(named[name] for name in expected):
        print(f"  differ: {reason}")
        print(*(f"      {name}" for name in expected if named[name] == reason), sep="\n")
    for name in [*same, *gone]:
        print(f"  {name}\n      named by the recipe ({named[name]}), but not different or not run")
    if unexpected or same or gone:
        print(f"  {len(unexpected)} differ that should not, {len(same) + len(gone)} named in vain")
    elif expected:
        print(f"  the same, test by test, but for the {len(expected)} that the recipe names")
    else:
        print("  the same, test by test")
    sys.stdout.flush()
    return bool(unexpected or same or gone)
