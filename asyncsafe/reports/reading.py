"""Reading what was recorded: processes' files and JSON reports, merged into one report."""

from __future__ import annotations

import json
import sys
from math import isfinite
from pathlib import Path

from .. import __version__
from ..durations import Durations, middle
from ..exceptions import AsyncsafeError
from ..recorder import STALL_LIMIT, violations
from .json import FORMAT
from .recording import ENDING, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..recorder import CallSite
    from ..violation import Outcome

_OUTCOMES: tuple[Outcome, ...] = ("raised", "warned", "recorded", "allowed")
#: Those of a call that is made.
_MADE = _OUTCOMES[1:]
_OF_A_RUN = ("command", "mode", "exit_status")
_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

#: What is the same for all calls at one site, whichever process made them.
_TOLD = ("operation", "subject", "call_site", "coroutine", "begun_at", "phase")


class UnreadableReport(AsyncsafeError):  # noqa: N818  (it names what the file is)
    """A file isn't a report or a recording that can be read; the message says what to do."""


def read_reports(paths: Iterable[str | Path]) -> dict[str, Any]:
    """The report of all these files and directories together.

    A file is a report that `--report FILE` wrote as JSON, or a process's recording; a directory is
    that of recordings. What runs don't agree on (their command, mode, exit status) is None.
    Raises UnreadableReport, and OSError.
    """
    merging = _Merging()
    for path in map(Path, paths):
        files = sorted(path.rglob(f"*{ENDING}")) if path.is_dir() else [path]
        if not files:
            raise UnreadableReport(f"{path} has no recordings (*{ENDING}) in it")
        for file in files:
            _read_file(merging, file)
    return {**_agreed(merging.runs), **merging.merged()}


def _agreed(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What all runs have in common, else None."""
    first = runs[0] if runs else dict.fromkeys(_OF_A_RUN)
    return {
        name: value if all(run[name] == value for run in runs) else None
        for name, value in first.items()
    }


def read_recordings(directory: str) -> dict[str, Any]:
    """What all processes recorded into this directory, and those below it: runs within the run."""
    merging = _Merging()
    for path in sorted(Path(directory).rglob(f"*{ENDING}")):
        merging.add_recording(path.read_bytes())
    return merging.merged()


def report_of_this_process() -> dict[str, Any]:
    """What this process has recorded until now: no file is needed."""
    merging = _Merging()
    merging.add_sites(violations, violations.dropped)
    return merging.merged()


def _read_file(merging: _Merging, path: Path) -> None:
    content = path.read_bytes()
    try:
        if _is_recording(content):
            merging.add_recording(content)
        else:
            merging.add_report(_parse(content))
    except UnreadableReport as error:
        raise UnreadableReport(f"{path} {error}") from None
    except _BROKEN as error:
        told = f"{path} is broken ({type(error).__name__}: {error}): record and write it again"
        raise UnreadableReport(told) from error


#: What reading a file raises that isn't as we write them.
_BROKEN = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(OverflowError, RecursionError),
)


class _Merging:
    """Calls at one place, of one operation, under one coroutine are one site, whoever made them."""

    def __init__(self) -> None:
        #: What each report tells of the run that it is of.
        self.runs: list[dict[str, Any]] = []
        self._processes: list[dict[str, Any]] = []
        self._dropped = 0
        self._sites: dict[str, dict[str, Any]] = {}
        #: Each with its site itself.
        self._stalls: list[dict[str, Any]] = []

    def add_recording(self, content: bytes) -> None:
        # What follows the last line break was cut off with its process.
        header, *entries = [json.loads(line) for line in content.split(b"\n")[:-1]] or [None]
        if header is None:
            return
        _check_format(header.pop("format"))
        self._dropped += header.pop("dropped")
        self._processes.append(header)
        sites: list[dict[str, Any]] = []
        durations: list[tuple[int, int, int]] = []
        stalls = []
        for entry in entries:
            if "bucket" in entry:
                site = sites[entry["site"]]
                # Written as they were when the bucket was last met.
                site["seconds"] = max(site["seconds"], entry["seconds"])
                site["worst"] = max(site["worst"], entry["worst"])
                for name in _MADE:
                    site["outcomes"][name] = max(site["outcomes"][name], entry[name])
                durations.append((entry["site"], entry["bucket"], entry["count"]))
            elif "stall" in entry:
                stalls.append({**entry, "seconds": entry.pop("stall")})
            else:
                outcomes = {name: entry.pop(name) for name in _OUTCOMES}
                waiting = {
                    name: entry.pop(f"waiting_{name}") for name in ("calls", "total", "most")
                }
                times = {"seconds": 0.0, "worst": 0.0, "durations": []}
                sites.append({**entry, "outcomes": outcomes, **times, "waiting": waiting})
        for number, bucket, count in durations:
            sites[number]["durations"].append((middle(bucket), count))
        for site in sites:
            site["calls"] = sum(site["outcomes"].values())
        self._add(sites, stalls)

    def add_report(self, report: dict[str, Any]) -> None:
        _check_command(report["command"])
        self.runs.append({name: report[name] for name in _OF_A_RUN})
        self._dropped += report["dropped"]
        self._processes += report["processes"]
        # Reports of asyncsafe 0.1 have neither distributions nor stalls.
        nobody = {"calls": 0, "total": 0, "most": 0}
        earlier: dict[str, Any] = {"phase": None, "durations": [], "waiting": nobody}
        sites = [{**earlier, **site} for site in report["sites"]]
        self._add(sites, report.get("stalls", []))

    def add_sites(self, sites: Iterable[CallSite], dropped: int) -> None:
        self._dropped += dropped
        self._add([_entry(site) for site in sites], [])

    def _add(self, sites: list[dict[str, Any]], stalls: list[dict[str, Any]]) -> None:
        merged = [self._merge(site) for site in sites]
        for stall in stalls:
            _check_types(stall, _STALL_TYPES)
            if not 0 <= stall["site"] < len(sites):
                raise IndexError(f"there is no site {stall['site']}")
        self._stalls += [{**stall, "site": merged[stall["site"]]} for stall in stalls]

    def _merge(self, entry: dict[str, Any]) -> dict[str, Any]:
        _check_site(entry)
        key = json.dumps([entry[name] for name in _TOLD])
        durations = Durations((seconds, count) for seconds, count in entry["durations"])
        site = self._sites.get(key)
        if site is None:
            site = self._sites[key] = {**entry, "durations": durations}
            return site
        for seconds, count in durations:
            site["durations"].add(seconds, count)
        site["calls"] += entry["calls"]
        site["seconds"] += entry["seconds"]
        site["worst"] = max(site["worst"], entry["worst"])
        site["outcomes"] = {
            name: count + entry["outcomes"][name] for name, count in site["outcomes"].items()
        }
        before, waiting = site["waiting"], entry["waiting"]
        site["waiting"] = {
            "calls": before["calls"] + waiting["calls"],
            "total": before["total"] + waiting["total"],
            "most": max(before["most"], waiting["most"]),
        }
        return site

    def merged(self) -> dict[str, Any]:
        """{"processes": [...], "dropped": n, "sites": [...], worst first, "stalls": [...]}."""
        sites = sorted(self._sites.values(), key=lambda site: (-site["seconds"], -site["calls"]))
        number = {id(site): position for position, site in enumerate(sites)}
        longest = sorted(self._stalls, key=lambda stall: -stall["seconds"])[:STALL_LIMIT]
        stalls = [
            {
                "start": stall["start"],
                "seconds": stall["seconds"],
                "waiting": stall["waiting"],
                "site": number[id(stall["site"])],
            }
            for stall in sorted(longest, key=lambda stall: stall["start"])
        ]
        return {
            "processes": self._processes,
            "dropped": self._dropped,
            "sites": [_complete(site) for site in sites],
            "stalls": stalls,
        }


def _entry(site: CallSite) -> dict[str, Any]:
    waiting = {"calls": site.waiting_calls, "total": site.waiting_total, "most": site.waiting_most}
    return {
        **describe(site),
        "calls": site.calls,
        "outcomes": {name: site.outcomes.get(name, 0) for name in _OUTCOMES},
        "seconds": site.seconds,
        "worst": site.worst,
        "durations": list(site.durations),
        "waiting": waiting,
    }


def _complete(site: dict[str, Any]) -> dict[str, Any]:
    """With the quantiles of its durations, None where there are none; these in a list."""
    durations: Durations = site["durations"]
    quantiles: dict[str, float | None] = {}
    for name, part in _QUANTILES.items():
        seconds = durations.quantile(part)
        quantiles[name] = None if seconds is None else round(min(seconds, site["worst"]), 9)
    pairs = [[round(seconds, 9), count] for seconds, count in durations]
    return {**site, **quantiles, "durations": pairs}


# What a file is ------------------------------------------------------------------------------


def _is_recording(content: bytes) -> bool:
    return content.startswith(b'{"dropped":')


def _parse(content: bytes) -> dict[str, Any]:
    """The document, if it is a report of ours that we can read."""
    try:
        document = json.loads(content)
    except ValueError as error:
        if not content.lstrip().startswith(b"{"):
            raise UnreadableReport(_NOT_OURS) from error
        raise UnreadableReport(
            f"is broken or cut off ({error}): run `asyncsafe run --report FILE` again"
        ) from error
    if not isinstance(document, dict) or "format" not in document or "sites" not in document:
        raise UnreadableReport(_NOT_OURS)
    _check_format(document["format"])
    return document


_NOT_OURS = (
    "is no report of asyncsafe's: name files that `asyncsafe run --report FILE.json` has written, "
    "or recordings of its processes"
)


def _check_format(found: object) -> None:
    if not isinstance(found, int) or found < 1:
        raise UnreadableReport(f"is broken (format {found!r}): record and write it again")
    if found > FORMAT:
        raise UnreadableReport(
            f"has format {found}, and asyncsafe {__version__} reads {FORMAT}: "
            "a newer asyncsafe wrote it, and reads it (pip install --upgrade asyncsafe)"
        )


#: What the writers rely on.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "operation": str,
    "subject": (str, type(None)),
    "library": (str, type(None)),
    "statement": (str, type(None)),
    "task": (str, type(None)),
    "phase": (str, type(None)),
    "reason": (str, type(None)),
    "begun_by": (str, type(None)),
    "fix": str,
    "call_site": dict,
    "coroutine": (dict, type(None)),
    "begun_at": (dict, type(None)),
    "stack": list,
    "calls": int,
    "outcomes": dict,
    "seconds": (int, float),
    "worst": (int, float),
    "durations": list,
    "waiting": dict,
}
_PLACE_TYPES = {"file": str, "line": int, "function": str, "async": bool}
_WAITING_TYPES: dict[str, Any] = {"calls": int, "total": int, "most": int}
_STALL_TYPES: dict[str, Any] = {
    "start": (int, float),
    "seconds": (int, float),
    "waiting": (int, type(None)),
    "site": int,
}


def _check_site(site: dict[str, Any]) -> None:
    _check_types(site, _TYPES)
    places = [site["call_site"], site["coroutine"], site["begun_at"], *site["stack"]]
    for place in places:
        if place is not None:
            _check_types(place, _PLACE_TYPES)
    for name in _OUTCOMES:
        _check_types(site["outcomes"], {name: int})
    _check_types(site["waiting"], _WAITING_TYPES)
    for seconds, count in site["durations"]:
        _check_types({"durations": seconds, "count": count}, {"durations": float, "count": int})
        if seconds < 0 or not 0 < count <= sys.maxsize:
            raise ValueError(f"durations has {count} of {seconds}")


def _check_command(command: object) -> None:
    if not (command is None or (isinstance(command, list) and all(map(_is_string, command)))):
        raise TypeError(f"command is {command!r}")


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _check_types(entry: dict[str, Any], types: dict[str, Any]) -> None:
    for name, kind in types.items():
        if not isinstance(entry[name], kind):
            raise TypeError(f"{name} is {entry[name]!r}")
        if isinstance(entry[name], (int, float)) and not isfinite(entry[name]):
            raise ValueError(f"{name} is {entry[name]!r}")
