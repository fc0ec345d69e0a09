"""Reading and merging: reports of several runs, recordings of several processes, broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from asyncsafe.durations import RELATIVE_ERROR
from asyncsafe.reports import json as json_report
from asyncsafe.reports.reading import UnreadableReport, read_reports

from .making import SCHEMA, allowed, report, sharing, site, write


def merge(tmp_path: Path, *reports: dict[str, Any]) -> dict[str, Any]:
    paths = [write(tmp_path / f"{number}.json", each) for number, each in enumerate(reports)]
    merged = json.loads(json_report.render(read_reports(paths)))
    jsonschema.validate(merged, SCHEMA)
    return dict(merged)


def test_the_same_sites_are_one_and_the_worst_comes_first(tmp_path: Path) -> None:
    merged = merge(
        tmp_path,
        report(site(1, [0.001, 0.002]), site(2, [0.1])),
        report(site(3, [0.05]), site(1, [0.2] * 98, waiting={"calls": 98, "total": 98, "most": 9})),
    )

    first, *others = merged["sites"]
    assert first["statement"] == "SELECT total FROM orders_1"
    assert first["calls"] == first["outcomes"]["recorded"] == 100
    assert first["seconds"] == pytest.approx(0.003 + 98 * 0.2)
    assert first["worst"] == 0.2
    assert first["p50"] == first["p99"] == pytest.approx(0.2, rel=RELATIVE_ERROR)
    assert sum(count for _, count in first["durations"]) == 100
    assert first["waiting"] == {"calls": 100, "total": 104, "most": 9}
    assert [each["seconds"] for each in others] == [0.1, 0.05]
    assert len(merged["processes"]) == 2


def test_a_report_read_and_written_again_says_the_same(tmp_path: Path) -> None:
    once = merge(tmp_path, report(site(1, [0.001, 0.5]), allowed(2, "fast"), sharing(3)))
    assert merge(tmp_path, once) == once


def test_stalls_keep_their_sites_and_their_order(tmp_path: Path) -> None:
    one = report(site(1, [0.001]), site(2, [0.002]))
    other = report(
        site(3, [0.5]), stalls=[{"start": 5.0, "seconds": 0.5, "waiting": None, "site": 0}]
    )

    merged = merge(tmp_path, one, other)

    starts = [stall["start"] for stall in merged["stalls"]]
    assert starts == sorted(starts)
    told = [
        (stall["seconds"], merged["sites"][stall["site"]]["statement"][-1])
        for stall in merged["stalls"]
    ]
    assert told == [(0.5, "3"), (0.001, "1"), (0.002, "2")]


def test_the_longest_stalls_are_kept(tmp_path: Path) -> None:
    stalls = [
        {"start": float(number), "seconds": number / 1000, "waiting": None, "site": 0}
        for number in range(800)
    ]
    merged = merge(tmp_path, *[report(site(n), stalls=stalls) for n in (1, 2)])
    assert len(merged["stalls"]) == 1000
    assert min(stall["seconds"] for stall in merged["stalls"]) == 0.3


def test_what_runs_agree_on_is_kept(tmp_path: Path) -> None:
    merged = merge(tmp_path, report(), report(command=["other.py"], exit_status=1))
    assert (merged["command"], merged["mode"], merged["exit_status"]) == (None, "record", None)


def test_a_report_of_the_first_version_is_read(tmp_path: Path) -> None:
    old = report(site(1, [0.25]))
    del old["stalls"]
    for name in ("p50", "p95", "p99", "durations", "waiting"):
        del old["sites"][0][name]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))

    (read,) = read_reports([path])["sites"]

    assert (read["seconds"], read["p50"], read["durations"]) == (0.25, None, [])


def test_what_a_later_version_adds_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report({**site(1)})).replace('"subject"', '"added": 1, "subject"'))
    assert read_reports([path])["sites"][0]["added"] == 1


BROKEN = {
    "newer": (json.dumps({**report(), "format": 2}), "has format 2.*a newer asyncsafe wrote it"),
    "cut off": (json.dumps(report(site(1)))[:-90], "is broken or cut off .*--report FILE"),
    "another file": ("import sqlite3\n", "is no report of asyncsafe's"),
    "another JSON": ('{"version": "2.1.0", "runs": []}', "is no report of asyncsafe's"),
    "empty": ("", "is no report of asyncsafe's"),
    "a list": ("[]", "is no report of asyncsafe's"),
    "no format": (json.dumps({**report(), "format": "x"}), "is broken .format 'x'."),
    "lacks a name": (
        json.dumps(report(site(1))).replace('"calls"', '"cells"'),
        "KeyError: 'calls'",
    ),
    "a wrong type": (
        json.dumps(report(site(1))).replace('"line": 42', '"line": "42"'),
        "line is '42'.: record and write it again",
    ),
    "no such site": (
        json.dumps(report(site(1))).replace('"site": 0', '"site": 9'),
        "IndexError",
    ),
    "a site from the end": (
        json.dumps(report(site(1))).replace('"site": 0', '"site": -1'),
        "IndexError",
    ),
    "endless": (
        json.dumps(report(site(1))).replace('"seconds": 0.006', '"seconds": 1e999'),
        "seconds is inf",
    ),
    "larger than numbers are": (
        json.dumps(report(site(1))).replace('"seconds": 0.006', '"seconds": 1' + 400 * "0"),
        "OverflowError",
    ),
    "half a call": (
        json.dumps(report(site(1, durations=[0.5]))).replace(", 1]]", ", 0.5]]"),
        "count is 0.5",
    ),
    "nobody waits": (
        json.dumps(report(site(1))).replace('"waiting": {"calls"', '"waiting": {"cells"'),
        "KeyError: 'calls'",
    ),
    "a stall without time": (
        json.dumps(report(site(1))).replace('"start": 1790000000.5', '"start": null'),
        "start is None",
    ),
    "a command of lists": (
        json.dumps({**report(site(1)), "command": [[]]}),
        r"command is \[\[\]\]",
    ),
    "deep": ('{"format": 1, "sites": ' + "[" * 200_000, "RecursionError"),
    "a broken recording": ('{"dropped":           0,"format": 1}\n{"calls"\n', "is broken"),
    "a newer recording": ('{"dropped":           0,"format": 2}\n', "has format 2"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_read_says_what_to_do(what: str, tmp_path: Path) -> None:
    content, told = BROKEN[what]
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(UnreadableReport, match=rf"(?s)report\.json .*{told}"):
        read_reports([path])


def test_a_directory_without_recordings_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableReport, match="has no recordings"):
        read_reports([tmp_path])
