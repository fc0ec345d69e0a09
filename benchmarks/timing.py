"""The one way in which things are timed here: statements that take turns, in several processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pyperf

#: Seconds (in some tables, bytes) for each round of each case: by name of the case, in every
#: process the same rounds.
Values = dict[str, list[float]]

#: Rounds before the first that counts.
WARM_UP = 10


@dataclass
class Case:
    """A statement to time, and the scope in which it is."""

    name: str
    statement: str
    names: dict[str, Any]
    scope: Callable[[], AbstractContextManager[object]] = nullcontext
    #: How many calls the statement makes.
    calls: int = 1
    #: How long it is timed in one round. Short, so that all cases of a round meet the same machine.
    duration: float = 0.002
    loops: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # It disables the garbage collector while it runs.
        self._timer = timeit.Timer(self.statement, timer=pyperf.perf_counter, globals=self.names)

    def seconds(self) -> float:
        """Seconds for one call, from as many as fit in the time there is."""
        if not self.loops:
            with self.scope():
                loops, taken = self._timer.autorange()
            self.loops = max(1, round(loops * self.duration / taken))
        with self.scope():
            # What the scope has just patched is in no cache yet, CPython's or the processor's.
            self._timer.timeit(self.loops // 4)
            return self._timer.timeit(self.loops) / self.loops / self.calls


def take_turns(cases: list[Case], rounds: int, warm_up: int = WARM_UP) -> Values:
    """Time each case once in every round; who begins changes from round to round."""
    values: Values = {case.name: [] for case in cases}
    for number in range(-warm_up, rounds):
        first = number % len(cases)
        for case in cases[first:] + cases[:first]:
            seconds = case.seconds()
            if number >= 0:
                values[case.name].append(seconds)
    return values


def in_processes(function: Callable[..., Values], *arguments: object, processes: int) -> Values:
    """The values of all processes, each of which calls the function with these arguments."""
    merged: Values = {}
    for _ in range(processes):
        ran = subprocess.run(
            [sys.executable, "-m", __spec__.name, function.__module__, function.__qualname__]
            + [json.dumps(argument) for argument in arguments],
            stdout=subprocess.PIPE,
            check=True,
        )
        for name, values in json.loads(ran.stdout).items():
            merged.setdefault(name, []).extend(values)
    return merged


def missing(*modules: str) -> bool:
    """Whether one of these modules can't be imported here."""
    try:
        return any(importlib.util.find_spec(module) is None for module in modules)
    except ModuleNotFoundError:  # the package that it is in
        return True


# Tables ------------------------------------------------------------------------------------------


@dataclass
class Ratio:
    """A column: each case's whole cost by its base's, or by that of another case; or what it adds
    to its base by what another case adds.
    """

    heading: str
    #: The other case, for what it adds.
    added_by: str | None = None
    #: The other case, for the whole; None: the base.
    of: str | None = None
    #: What is asked of some cases.
    at_most: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """The cases of one measurement, side by side."""

    title: str
    unit: str
    values: Values
    #: In the order in which they are printed, each with its base, the bare call. Those without
    #: values are not installed.
    cases: dict[str, str]
    ratios: list[Ratio] = field(default_factory=list)
    #: What some cases may add to their base, in the table's unit.
    added_at_most: dict[str, float] = field(default_factory=dict)
    #: What else is to be said of a case, and whether it is as it should be.
    remarks: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.met = True
        self._medians = {case: median(values) for case, values in self.values.items() if values}
        self._rows = [[case, *self._cells(case)] for case in self.cases]

    def __str__(self) -> str:
        rows = [["", self.unit, "added", *(r.heading for r in self.ratios), ""], *self._rows]
        full = [row for row in rows if len(row) == len(rows[0])]
        widths = [max(map(len, column)) for column in zip(*full, strict=True)]
        lines = [self.title]
        for row in rows:
            name = row[0].ljust(max(len(row[0]) for row in rows))
            cells = [cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
            lines.append(f"  {'   '.join([name, *cells])}".rstrip())
        return "\n".join(lines)

    def _cells(self, case: str) -> list[str]:
        if case not in self._medians:
            return ["not installed (pip install 'asyncsafe[benchmarks]')"]
        scale = _SCALES[self.unit]
        cells = [f"{self._medians[case] * scale:.2f}"]
        if case == self.cases[case]:
            cells += [""] * (1 + len(self.ratios))
        else:
            cells.append(self._judge(self._added(case) * scale, self.added_at_most.get(case)))
            cells += [self._judge(self._ratio(r, case), r.at_most.get(case)) for r in self.ratios]
        remark, met = self.remarks.get(case, ("", True))
        self.met = self.met and met
        return [*cells, remark]

    def _judge(self, value: float | None, limit: float | None) -> str:
        if value is None or limit is None:
            return "" if value is None else f"{value:.2f}"
        met = value <= limit
        self.met = self.met and met
        return f"{value:.3f} (at most {limit:g}: {'holds' if met else 'FAILS'})"

    def _ratio(self, ratio: Ratio, case: str) -> float | None:
        if ratio.added_by is None:
            of = ratio.of or self.cases[case]
            return None if of not in self._medians else self._by(case, of)
        if ratio.added_by not in self._medians:
            return None
        return self._added(case) / self._added(ratio.added_by)

    def _by(self, case: str, other: str) -> float:
        return 1 + self._difference(case, other) / self._medians[other]

    def _added(self, case: str) -> float:
        return self._difference(case, self.cases[case])

    def _difference(self, case: str, other: str) -> float:
        """The median of the differences within a round: what slows a round slows both."""
        pairs = zip(self.values[case], self.values[other], strict=True)
        return median(value - other for value, other in pairs)


#: Of the values, which are seconds, or bytes.
_SCALES = {"ns": 1e9, "µs": 1e6, "ms": 1e3, "MB": 1e-6}


if __name__ == "__main__":
    module, name, *arguments = sys.argv[1:]
    worker = getattr(importlib.import_module(module), name)
    json.dump(worker(*map(json.loads, arguments)), sys.stdout)
