"""The recording of a process: what it says whenever the process ends, and whatever goes wrong with its file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from asyncsafe.reports import json as json_report
from asyncsafe.reports.reading import read_recordings, read_reports

from .making import SCHEMA

PROGRAM = """
import asyncio, os, sys, time
import asyncsafe
from asyncsafe import violations
from asyncsafe.reports.recording import record_into

asyncsafe.configure(mode="record")
record_into(sys.argv[1])

@asyncsafe.async_unsafe
def take(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass

async def other():
    pass

async def work():
    tasks = [asyncio.create_task(other()) for _ in range(4)]
    for _ in range(20):
        take(0.0001)
    take(0.005)
    for task in tasks:
        await task

def told():
    return [
        {
            "calls": site.calls,
            "seconds": round(site.seconds, 9),
            "worst": round(site.worst, 9),
            "p50": round(site.p50, 9),
            "p99": round(site.p99, 9),
            "waiting": [site.waiting_calls, site.waiting_total, site.waiting_most],
            "stalls": sum(stall.site is site for stall in violations.stalls),
        }
        for site in violations
    ]
"""


def record(directory: Path, end: str) -> tuple[dict[str, Any], str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + end, str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    report = read_recordings(str(directory))
    run = {"command": None, "mode": None, "exit_status": None}
    written = json.loads(json_report.render({**run, **report}))
    jsonschema.validate(written, SCHEMA)
    return report, done.stdout + done.stderr, done.returncode


KILLED = """
asyncio.run(work())
import json
print(json.dumps(told()), flush=True)
os.kill(os.getpid(), 9)
"""


def test_nothing_is_lost_of_a_process_that_is_killed(tmp_path: Path) -> None:
    report, told, status = record(tmp_path, KILLED)

    assert status == -signal.SIGKILL
    in_memory = json.loads(told)
    sites = sorted(report["sites"], key=lambda site: -site["calls"])
    in_file = [
        {
            **{name: site[name] for name in ("calls", "seconds", "worst", "p50", "p99")},
            "waiting": list(site["waiting"].values()),
            "stalls": sum(report["sites"][stall["site"]] is site for stall in report["stalls"]),
        }
        for site in sites
    ]
    assert in_file == sorted(in_memory, key=lambda site: -site["calls"])
    assert [site["calls"] for site in in_file] == [20, 1]
    assert in_file[1]["waiting"] == [1, 4, 4]


OUTCOMES = """
import contextlib, json, sqlite3, warnings

asyncsafe.install()

def attempt():
    try:
        take(0.0001)
    except (asyncsafe.SynchronousOnlyOperation, asyncsafe.AsyncUnsafeWarning):
        pass

async def calls():
    for step in {steps}:
        asyncsafe.configure(mode={"allow": "record", "error": "warn"}.get(step, step))
        allowed = asyncsafe.allow() if step == "allow" else contextlib.nullcontext()
        with warnings.catch_warnings(), allowed:
            warnings.simplefilter("error" if step == "error" else "ignore")
            attempt()
    asyncsafe.configure(mode="record")

async def begin(connection):
    connection.execute("insert into orders values (1)")

async def share(connection):
    for _ in range(3):
        connection.execute("select number from orders")

async def main():
    await calls()
    connection = sqlite3.connect(":memory:")
    connection.execute("create table orders (number)")
    begun = asyncio.create_task(begin(connection))
    await begun
    await asyncio.create_task(share(connection))
    names = "raised", "warned", "recorded", "allowed"
    told = [[site.calls, *(site.outcomes.get(name, 0) for name in names)] for site in violations]
    print(json.dumps(told), flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("steps", "outcomes"),
    [
        ("record raise raise record record allow", [6, 2, 0, 3, 1]),
        ("record record allow raise", [4, 1, 0, 2, 1]),
        ("record error error", [3, 0, 2, 1, 0]),  # a warning that is raised: no call is made
        ("record error warn warn", [4, 0, 3, 1, 0]),
    ],
)
def test_every_outcome_is_there_of_a_process_that_is_killed(
    steps: str, outcomes: list[int], tmp_path: Path
) -> None:
    """Those of calls that are not made, or that take no time of their own, too."""
    report, told, _ = record(tmp_path, OUTCOMES.replace("{steps}", str(steps.split())))

    in_file = [[site["calls"], *site["outcomes"].values()] for site in report["sites"]]
    assert sorted(in_file) == sorted(json.loads(told))
    assert outcomes in in_file
    (shared,) = (site for site in report["sites"] if site["begun_by"] is not None)
    assert (shared["calls"], shared["durations"]) == (3, [])


IN_FLIGHT = """
@asyncsafe.async_unsafe
def work(end):
    if end:
        os.kill(os.getpid(), 9)

async def main():
    for end in {ends}:
        work(end)

asyncio.run(main())
"""


@pytest.mark.parametrize(("ends", "count"), [([1], 1), ([0, 0, 0, 1], 3)])
def test_the_call_in_which_a_process_is_killed(ends: list[int], count: int, tmp_path: Path) -> None:
    """The first at its call site is written before it is made; another when it has returned."""
    report, _, status = record(tmp_path, IN_FLIGHT.replace("{ends}", str(ends)))

    assert status == -signal.SIGKILL
    (site,) = report["sites"]
    assert (site["calls"], site["outcomes"]["recorded"]) == (count, count)


def test_a_recording_is_read_while_it_is_written(tmp_path: Path) -> None:
    """A process that is killed in the middle of its last line loses that line."""
    record(tmp_path, KILLED)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    lines = whole.split(b"\n")

    for cut in range(len(whole) - len(lines[-2]), len(whole)):
        path.write_bytes(whole[:cut])
        assert sum(site["calls"] for site in read_reports([path])["sites"]) == 21


def test_the_file_stays_as_large_as_there_are_sites_and_buckets(tmp_path: Path) -> None:
    record(tmp_path, "asyncio.run(work())\n" * 3)
    (path,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sum("fix" in line for line in lines) == 2
    assert sum("bucket" in line for line in lines) == sum(
        len(site["durations"]) for site in read_reports([path])["sites"]
    )


REPLACED = """
from asyncsafe import recorder
recorder.STALL_LIMIT = 5

async def longer_and_longer():
    for number in range(12):
        take(number / 1000)

asyncio.run(longer_and_longer())
print([round(stall.seconds, 9) for stall in violations.stalls])
"""


def test_a_longer_stall_takes_the_place_of_the_shortest(tmp_path: Path) -> None:
    report, told, status = record(tmp_path, REPLACED)

    assert status == 0
    assert [stall["seconds"] for stall in report["stalls"]] == json.loads(told)
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().count(b'{"stall":') == 5


FULL = """
import errno
from asyncsafe.reports import recording

room = {room}
write_at = recording._write_at

def with_little_room(file, text, position):
    part = text[: max(0, room - position)]
    if not part:
        raise OSError(errno.ENOSPC, "No space left on device")
    return write_at(file, part, position)

recording._write_at = with_little_room
asyncio.run(work())
room = 1_000_000
asyncio.run(work())
print("went on")
"""


@pytest.mark.parametrize("room", [0, 50, 150, 400, 900, 1300, 2500])
def test_a_full_disk_stops_nothing_and_leaves_a_file_that_can_be_read(
    room: int, tmp_path: Path
) -> None:
    """A write may succeed in part: what it left is overwritten by what comes next."""
    report, told, status = record(tmp_path, FULL.replace("{room}", str(room)))

    assert (told, status) == ("went on\n", 0)
    # All is there of the sites that were first met when there was room again.
    assert sum(site["calls"] for site in report["sites"]) >= 21
    assert len(report["stalls"]) <= 42


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
def test_a_forked_child_has_a_file_of_its_own(tmp_path: Path) -> None:
    end = "asyncio.run(work())\nif os.fork() == 0:\n    asyncio.run(work())\n    os._exit(0)\nos.wait()\n"
    report, told, _ = record(tmp_path, end)

    assert told == ""
    assert len(report["processes"]) == 2
    assert sum(site["calls"] for site in report["sites"]) == 42
    assert len(report["stalls"]) == 42


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may")
def test_a_process_that_gives_up_its_user_has_opened_its_file(tmp_path: Path) -> None:
    """Servers that root starts do, in each worker, before its first request."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    end = """
asyncio.run(work())
if os.fork() == 0:
    os.setuid(65534)
    asyncio.run(work())
    os._exit(0)
os.wait()
"""
    report, told, _ = record(private, end)

    assert told == ""
    assert sum(site["calls"] for site in report["sites"]) == 42
    assert len(report["processes"]) == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="they can't be counted here")
def test_one_that_ends_and_begins_again_keeps_no_descriptors(tmp_path: Path) -> None:
    end = """
from asyncsafe.reports.recording import Recording
asyncio.run(work())
one = Recording(sys.argv[1])
before = len(os.listdir("/proc/self/fd"))
for _ in range(5):
    one.begin()
    asyncio.run(work())
    one.end()
    assert len(os.listdir("/proc/self/fd")) <= before
"""
    report, told, _ = record(tmp_path, end)

    assert told == ""
    # Each of the two has the numbers of all.
    assert sum(site["calls"] for site in report["sites"]) == 2 * 6 * 21


CLOSED = """
asyncio.run(work())
os.closerange(3, 100)
theirs = [open(f"{sys.argv[1]}/{number}.txt", "w+b", buffering=0) for number in range(6)]
for file in theirs:
    file.write(b"theirs" * 200)
asyncio.run(work())
if hasattr(os, "fork"):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
for file in theirs:
    file.seek(0)
    assert file.read() == b"theirs" * 200
"""


def test_a_program_that_closes_every_descriptor_has_its_own_files_left_alone(
    tmp_path: Path,
) -> None:
    """Daemons do; what they open next has the number that was the recording's."""
    report, told, status = record(tmp_path, CLOSED)

    assert (told, status) == ("", 0)
    assert sum(site["calls"] for site in report["sites"]) == 42


@pytest.mark.parametrize(
    "change", ["del sys.argv", "import pathlib; sys.argv = [pathlib.Path('x'), b'y', None]"]
)
def test_a_program_may_do_with_its_arguments_what_it_wants(change: str, tmp_path: Path) -> None:
    report, told, status = record(tmp_path, f"{change}\nasyncio.run(work())")

    assert (told, status) == ("", 0)
    assert sum(site["calls"] for site in report["sites"]) == 21


def test_the_first_line_stays_as_long_as_it_is(tmp_path: Path) -> None:
    """It is written again with each call beyond the limit, whatever sys.argv is by then."""
    end = """
from asyncsafe import recorder
recorder.SITE_LIMIT = 1
asyncio.run(work())
sys.argv = ["x" * 500]
asyncio.run(work())
"""
    report, told, status = record(tmp_path, end)

    assert (told, status) == ("", 0)
    assert (sum(site["calls"] for site in report["sites"]), report["dropped"]) == (40, 2)
