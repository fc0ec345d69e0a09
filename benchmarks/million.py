"""A million recorded calls at a hundred sites: what each adds, and what memory the last ones take."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyperf

import asyncsafe
from asyncsafe.reports.recording import record_into

from .timing import Table, Values, in_processes

CALL, RECORDED, KEPT = "a function, unguarded", "recorded", "recorded, and kept in a file"
EARLY, LATE = "after a tenth of the calls", "after all of them"
EARLY_KEPT, LATE_KEPT = f"{EARLY}, kept in a file", f"{LATE}, kept in a file"

SITES = 100


def measure(quick: bool) -> Iterator[Table]:
    calls = 100_000 if quick else 1_000_000
    recorded = in_processes(time_calls, calls, False, processes=1)
    kept = in_processes(time_calls, calls, True, processes=1)
    # Both have timed the bare call; the differences are from within a round.
    yield Table(
        f"Recording {calls:,} calls at {SITES} sites, each",
        "µs",
        {CALL: recorded[CALL], RECORDED: recorded[RECORDED]},
        {CALL: CALL, RECORDED: CALL},
        added_at_most={RECORDED: 10},
    )
    yield Table(
        "The same, as `asyncsafe run` does it",
        "µs",
        {CALL: kept[CALL], KEPT: kept[RECORDED]},
        {CALL: CALL, KEPT: CALL},
        added_at_most={KEPT: 10},
    )
    yield Table(
        "Memory of the process meanwhile",
        "MB",
        {
            EARLY: recorded[EARLY],
            LATE: recorded[LATE],
            EARLY_KEPT: kept[EARLY],
            LATE_KEPT: kept[LATE],
        },
        {EARLY: EARLY, LATE: EARLY, EARLY_KEPT: EARLY_KEPT, LATE_KEPT: EARLY_KEPT},
        added_at_most={LATE: 2, LATE_KEPT: 2},
    )


def time_calls(calls: int, keep: bool) -> Values:
    asyncsafe.configure(mode="record")
    if keep:
        with tempfile.TemporaryDirectory() as directory:
            record_into(directory)
            return asyncio.run(_time_calls(calls))
    return asyncio.run(_time_calls(calls))


async def _time_calls(calls: int) -> Values:
    def find() -> None:
        pass

    plain, recorded = _sites(find), _sites(asyncsafe.async_unsafe(find))
    chunks = calls // SITES
    # Room for all that is measured, before memory is.
    values: Values = {CALL: [0.0] * chunks, RECORDED: [0.0] * chunks, EARLY: [], LATE: []}
    for chunk in range(chunks):
        for name, functions in ((CALL, plain), (RECORDED, recorded)):
            begin = pyperf.perf_counter()
            for function in functions:
                function()
            values[name][chunk] = (pyperf.perf_counter() - begin) / SITES
        if chunk == chunks // 10:
            values[EARLY].append(_resident())
    values[LATE].append(_resident())
    assert sum(site.calls for site in asyncsafe.violations) == calls
    assert len(asyncsafe.violations) == SITES
    return values


def _sites(find: Callable[[], None]) -> list[Callable[[], None]]:
    """Functions of different files that call it."""
    namespaces = [{"find": find} for _ in range(SITES)]
    for number, namespace in enumerate(namespaces):
        exec(compile("def call(): find()", f"/app/site_{number}.py", "exec"), namespace)
    return [namespace["call"] for namespace in namespaces]


def _resident() -> float:
    """Bytes of this process that are in memory."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) * 1024
