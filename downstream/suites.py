"""Run a suite with the guard and without, and compare the results test by test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: The name of each test, and how it ended.
Results = dict[str, str]


@dataclass
class Suite:
    """A unittest suite of somebody else's, ready to be run."""

    name: str
    #: What is run, for the reader.
    title: str
    #: What unittest's loader takes, a module or a function in it that makes a suite; or a script of
    #: the project's that runs its tests, and the script's arguments.
    tests: list[str]
    #: The libraries whose guards must be in place.
    libraries: list[str]
    #: Modules that this suite is to be run without.
    without: list[str] = field(default_factory=list)
    #: Called before each run: where it is to run, and the environment that it needs.
    directory: Path | None = None
    environment: Callable[[], Mapping[str, str]] = field(default=dict)


def run(suite: Suite, directory: Path, *, guarded: bool) -> Results:
    """Run it in a process of its own. Its output goes to a file in the directory."""
    how = "guarded" if guarded else "bare"
    results = directory / f"{suite.name}-{how}.json"
    output = directory / f"{suite.name}-{how}.txt"
    results.unlink(missing_ok=True)
    environment = {**os.environ, **suite.environment(), "PYTHONHASHSEED": "0"}
    for variable in ("ASYNCSAFE_MODE", "DJANGO_ALLOW_ASYNC_UNSAFE"):
        environment.pop(variable, None)
    runner = Path(__file__).with_name("runner.py")
    asked = {
        "results": str(results),
        "tests": suite.tests,
        "libraries": suite.libraries,
        "without": suite.without,
        "guard": guarded,
    }
    with output.open("w") as file:
        ran = subprocess.run(
            [sys.executable, "-P", runner, json.dumps(asked)],
            cwd=suite.directory or directory,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ran.returncode:
        print(output.read_text()[-3000:])
        sys.exit(f"{suite.title}, {how}: the run itself failed (status {ran.returncode})")
    ended: Results = json.loads(results.read_text())
    return ended


def compare(suite: Suite, bare: Results, guarded: Results) -> bool:
    """Print both runs' totals and every difference. Returns whether there is any."""
    print(f"{suite.title}, on Python {sys.version.split()[0]}")
    for how, results in ("bare", bare), ("guarded", guarded):
        totals = Counter(ended.partition(":")[0] for ended in results.values())
        counts = ", ".join(f"{count} {ended}" for ended, count in totals.most_common())
        print(f"  {how:8} {len(results)} tests: {counts}")
    names = [*bare, *(name for name in guarded if name not in bare)]
    differences = [name for name in names if bare.get(name) != guarded.get(name)]
    for name in differences:
        print(f"  {name}")
        print(f"      bare     {bare.get(name, 'not run')}")
        print(f"      guarded  {guarded.get(name, 'not run')}")
    print(f"  {len(differences)} differ" if differences else "  the same, test by test", flush=True)
    return bool(differences)
