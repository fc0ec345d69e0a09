"""The file in which a process keeps what it records, and the reading of many of them.

A process may end without being asked (SIGKILL, os._exit, a fork of multiprocessing's), so nothing
waits for its end: a call site is a line of JSON, written when it first appears, and its numbers
stand at the beginning of the line in fixed width, overwritten in place as they change.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ..messages import fix
from ..recorder import CallSite, violations
from ..violation import Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import FileIO
    from typing import Any

#: The directory in which `asyncsafe run` has its process and their children keep their files.
DIRECTORY_VARIABLE = "ASYNCSAFE_RECORDING"

_ENDING = ".recording.jsonl"
_NUMBERS = (
    '{"calls":%12d,"raised":%12d,"warned":%12d,"recorded":%12d,"allowed":%12d,'
    '"seconds":%20.9f,"worst":%20.9f,'
)


class Recording:
    """This process's file: `violations` tells it of every change."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def _open(self) -> None:
        self._path: str | None = None
        self._file: FileIO | None = None
        self._lines: dict[CallSite, int] = {}
        self._end = 0

    def _start_anew(self) -> None:
        """In a forked child: what was recorded until now is the parent's, and so is its file."""
        if self._file is not None:
            self._file.close()
        violations.clear()
        self._open()

    def begin(self) -> None:
        """Have the recorder tell of its changes, until `end`."""
        self._end_keeping = violations.keep(self.keep)

    def end(self) -> None:
        """What is recorded from now on isn't this recording's. It may begin again."""
        self._end_keeping()

    def keep(self, site: CallSite | None) -> None:
        """Write down a call site's numbers. None: the count of calls beyond the recorder's limit."""
        try:
            self._keep(site)
        except (OSError, ValueError):
            # A full disk, a directory that is gone, a file that the program closed: it goes on.
            return

    def _keep(self, site: CallSite | None) -> None:
        if self._file is None:
            name = f"{os.getpid()}-{os.urandom(4).hex()}{_ENDING}"
            self._path = os.path.join(self._directory, name)
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115  (open to the end)
            self._append(self._header())
        if site is None:
            self._write(0, self._header())
        elif site in self._lines:
            self._write(self._lines[site], _numbers(site))
        else:
            line = _numbers(site) + _description(site)[1:] + b"\n"
            self._lines[site] = self._end
            self._append(line)

    def move_to(self, directory: str) -> None:
        """Go on in another directory, with what was recorded until now."""
        self._directory = directory
        if self._path is not None:
            moved = os.path.join(directory, os.path.basename(self._path))
            os.replace(self._path, moved)
            self._path = moved

    def _header(self) -> bytes:
        process = {"pid": os.getpid(), "argv": sys.argv, "python": sys.version.split()[0]}
        dropped = f'{{"dropped":{violations.dropped:12d},'
        return dropped.encode() + json.dumps(process).encode()[1:] + b"\n"

    def _append(self, text: bytes) -> None:
        self._write(self._end, text)
        self._end += len(text)

    def _write(self, position: int, text: bytes) -> None:
        assert self._file is not None
        self._file.seek(position)
        self._file.write(text)


_recording: Recording | None = None


def record_into(directory: str) -> None:
    """From now on, keep this process's violations in a file in `directory`."""
    global _recording
    if _recording is None:
        _recording = Recording(directory)
        _recording.begin()
    else:
        _recording.move_to(directory)


def _numbers(site: CallSite) -> bytes:
    outcomes = site.outcomes
    counts = [outcomes.get(name, 0) for name in ("raised", "warned", "recorded", "allowed")]
    return (_NUMBERS % (site.calls, *counts, site.seconds, site.worst)).encode()


def _description(site: CallSite) -> bytes:
    violation = site.violation
    names = (
        "operation",
        "subject",
        "library",
        "statement",
        "loop",
        "loop_type",
        "task",
        "importing",
        "reason",
        "begun_by",
    )
    description = {name: getattr(violation, name) for name in names}
    description["call_site"] = _place(violation.call_site)
    description["coroutine"] = violation.coroutine and _place(violation.coroutine)
    description["begun_at"] = violation.begun_at and _place(violation.begun_at)
    description["fix"] = fix(violation)
    description["stack"] = [_place(frame) for frame in violation.stack or violation.whole_stack]
    return json.dumps(description).encode()


def _place(frame: Frame) -> dict[str, Any]:
    return {
        "file": frame.filename,
        "line": frame.lineno,
        "function": frame.function,
        "async": frame.asynchronous,
    }


def read_recordings(directory: str) -> dict[str, Any]:
    """What all processes recorded: {"processes": [...], "dropped": n, "sites": [...]}, worst first.

    Folders below it count too: they are those of runs within the run. Calls at one place, of one
    operation, under one coroutine are one site, whichever process made them.
    """
    processes = []
    dropped = 0
    sites: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(directory).rglob(f"*{_ENDING}")):
        with path.open("rb") as file:
            lines = file.read().split(b"\n")
        # What follows the last line break was cut off with its process.
        header, *entries = [json.loads(line) for line in lines[:-1]] or [None]
        if header is None:
            continue
        dropped += header.pop("dropped")
        processes.append(header)
        for entry in entries:
            _merge(sites, entry)
    worst_first = sorted(sites.values(), key=lambda site: (-site["seconds"], -site["calls"]))
    return {"processes": processes, "dropped": dropped, "sites": worst_first}


def _merge(sites: dict[str, dict[str, Any]], entry: dict[str, Any]) -> None:
    outcomes = {name: entry.pop(name) for name in ("raised", "warned", "recorded", "allowed")}
    told = ("operation", "subject", "call_site", "coroutine", "begun_at")
    key = json.dumps([entry[name] for name in told])
    site = sites.get(key)
    if site is None:
        sites[key] = {**entry, "outcomes": outcomes}
        return
    site["calls"] += entry["calls"]
    site["seconds"] += entry["seconds"]
    site["worst"] = max(site["worst"], entry["worst"])
    for name, count in outcomes.items():
        site["outcomes"][name] += count
