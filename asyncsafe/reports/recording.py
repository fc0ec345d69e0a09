"""The file in which a process keeps what it records, and the reading of many of them.

A process may end without being asked (SIGKILL, os._exit, a fork of multiprocessing's), so nothing
waits for its end: a call site is a line of JSON, written when it first appears, and its numbers
stand at the beginning of the line in fixed width, overwritten in place as they change. Each bucket
of its durations is a line of its own, in which its times, and how many of its calls were made, stand
as they were when that bucket was last met: the greatest are the latest. The longest stalls are
lines, too.

A call that is made costs one write, when it has returned. Of a process that is killed in the middle
of a call, that call's count is lost, unless it is the first at its call site.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

from ..messages import fix
from ..recorder import CallSite, Stall, violations
from ..violation import Frame
from .json import FORMAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The directory in which `asyncsafe run` has its process and their children keep their files.
DIRECTORY_VARIABLE = "ASYNCSAFE_RECORDING"

#: How the names of these files end.
ENDING = ".recording.jsonl"

_COUNTS = b'{"raised":%12d,"warned":%12d,"recorded":%12d,"allowed":%12d,'
_WAITING = b'"waiting_calls":%12d,"waiting_total":%12d,"waiting_most":%12d,'
_DURATIONS = (
    b'{"count":%12d,"seconds":%20.9f,"worst":%20.9f,"warned":%12d,"recorded":%12d,"allowed":%12d,'
)
_BUCKET = b'"site":%6d,"bucket":%4d}\n'
_STALL = b'{"stall":%20.9f,"start":%20.6f,"waiting":%12b,"site":%6d}\n'
#: Where it begins in a call site's line that others waited.
_WAITING_AT = len(_COUNTS % (0, 0, 0, 0))


class Recording:
    """This process's file: `violations` tells it of every change."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def _open(self) -> None:
        self._path: str | None = None
        self._descriptor = -1
        #: At which offset the descriptor stands, by which it is known.
        self._mark = -1
        self._process = b""
        self._end = 0
        #: Each call site's number, and where its line begins.
        self._sites: dict[CallSite, tuple[int, int]] = {}
        self._durations: dict[tuple[int, int], int] = {}
        self._stalls: dict[Stall, int] = {}

    def _start_anew(self) -> None:
        """In a forked child: what was recorded until now is the parent's, and so is its file."""
        self._close()
        violations.clear()
        self._open()
        self._open_early()

    def begin(self) -> None:
        """Have the recorder tell of its changes, until `end`."""
        self._open_early()
        self._end_keeping = violations.keep(self)

    def end(self) -> None:
        """What is recorded from now on isn't this recording's. It may begin again."""
        self._end_keeping()
        self._close()

    # What the recorder calls ---------------------------------------------------------------------

    # A full disk, a directory that is gone, a file that the program closed: the program goes on.

    def counted(self, site: CallSite | None, made: bool) -> None:
        """Write down how a site's calls ended. None: the count of calls beyond the recorder's limit.

        made: `timed` will write it down, unless the site is new.
        """
        if made and site in self._sites:
            return
        try:
            if not self._end:
                self._process = _describe_process()
                self._append(self._header())
            if site is None:
                self._write(0, self._header())
            elif site in self._sites:
                self._write(self._sites[site][1], _counts(site))
            else:
                line = _counts(site) + _waiting(site) + json.dumps(describe(site)).encode()[1:]
                self._sites[site] = len(self._sites), self._append(line + b"\n")
        except (OSError, ValueError):
            return

    def timed(self, site: CallSite, bucket: int) -> None:
        """Write down how long a site's calls took, and how many there were."""
        try:
            number = self._sites[site][0]
            count = site.durations.count(bucket)
            outcomes = site.outcomes.get
            line = _DURATIONS % (
                count,
                site.seconds,
                site.worst,
                outcomes("warned", 0),
                outcomes("recorded", 0),
                outcomes("allowed", 0),
            )
            position = self._durations.get((number, bucket))
            if position is None:
                self._durations[number, bucket] = self._append(line + _BUCKET % (number, bucket))
            else:
                self._write(position, line)
        except (OSError, ValueError, KeyError):  # KeyError: its line couldn't be written
            return

    def waited(self, site: CallSite) -> None:
        """Write down how many waited for a site's calls."""
        try:
            self._write(self._sites[site][1] + _WAITING_AT, _waiting(site))
        except (OSError, ValueError, KeyError):
            return

    def stalled(self, stall: Stall, replaced: Stall | None) -> None:
        """Write down a stall, in the place of the one that it replaces."""
        try:
            waiting = b"null" if stall.waiting is None else b"%d" % stall.waiting
            number = self._sites[stall.site][0]
            line = _STALL % (stall.seconds, stall.start, waiting, number)
            position = self._stalls.pop(replaced, None) if replaced is not None else None
            if position is None:
                position = self._append(line)
            else:
                self._write(position, line)
            self._stalls[stall] = position
        except (OSError, ValueError, KeyError):
            return

    # ---------------------------------------------------------------------------------------------

    def move_to(self, directory: str) -> None:
        """Go on in another directory, with what was recorded until now."""
        self._directory = directory
        if self._path is not None:
            moved = os.path.join(directory, os.path.basename(self._path))
            os.replace(self._path, moved)
            self._path = moved

    def _open_early(self) -> None:
        """While it can be: a server's worker that root started becomes another user by and by."""
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            with contextlib.suppress(OSError):
                self._open_file()

    def _open_file(self) -> None:
        if self._path is None:
            path = os.path.join(self._directory, f"{os.getpid()}-{os.urandom(4).hex()}{ENDING}")
            self._descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            self._path = path
        else:  # closed by `end`, or by the program, as daemons close all of them
            self._descriptor = os.open(self._path, _FLAGS)
        # Nothing is written there. No other file stands at that offset, and to ask for it costs a
        # quarter of what os.fstat() does.
        self._mark = os.lseek(self._descriptor, _random_offset(), os.SEEK_SET)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                os.close(self._descriptor)

    def _is_ours(self) -> bool:
        """Whether the descriptor is still this file's: the program may have opened another with it."""
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_CUR) == self._mark
        except OSError:
            return False

    def _header(self) -> bytes:
        return b'{"dropped":%12d,' % violations.dropped + self._process

    def _append(self, text: bytes) -> int:
        """Write it at the end. Returns where it begins."""
        position = self._end
        self._write(position, text)
        self._end += len(text)
        return position

    def _write(self, position: int, text: bytes) -> None:
        if not self._is_ours():
            self._open_file()
        if _write_at(self._descriptor, text, position) != len(text):
            raise OSError("the disk is full")  # what was written is overwritten by the next line


def _describe_process() -> bytes:
    """The rest of the first line, which stays as long as it is: what follows it is not moved."""
    process = {
        "format": FORMAT,
        "pid": os.getpid(),
        # The program's own, which it may have put anything into, or deleted.
        "argv": [str(argument) for argument in getattr(sys, "argv", ())],
        "python": sys.version.split()[0],
    }
    return json.dumps(process).encode()[1:] + b"\n"


#: A descriptor and no file object, which would close it, whosever it is by then.
_FLAGS = os.O_WRONLY | getattr(os, "O_BINARY", 0)


def _random_offset() -> int:
    """One that every file system takes (the least takes 2 GiB), and that nobody is at by accident."""
    return (1 << 30) + int.from_bytes(os.urandom(4)) % (1 << 30)


def _seek_and_write(descriptor: int, text: bytes, position: int) -> int:
    """os.pwrite, where there is none. It leaves the offset as it was, too."""
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, position, os.SEEK_SET)
    try:
        return os.write(descriptor, text)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


#: Called for each call that is recorded.
_write_at: Callable[[int, bytes, int], int] = getattr(os, "pwrite", _seek_and_write)


_recording: Recording | None = None


def record_into(directory: str) -> None:
    """From now on, keep this process's violations in a file in `directory`."""
    global _recording
    if _recording is None:
        _recording = Recording(directory)
        _recording.begin()
    else:
        _recording.move_to(directory)


def _counts(site: CallSite) -> bytes:
    outcomes = site.outcomes.get
    return _COUNTS % (
        outcomes("raised", 0),
        outcomes("warned", 0),
        outcomes("recorded", 0),
        outcomes("allowed", 0),
    )


def _waiting(site: CallSite) -> bytes:
    return _WAITING % (site.waiting_calls, site.waiting_total, site.waiting_most)


def describe(site: CallSite) -> dict[str, Any]:
    """What is the same for all calls at a call site."""
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
        "phase",
        "reason",
        "begun_by",
    )
    description = {name: getattr(violation, name) for name in names}
    description["call_site"] = _place(violation.call_site)
    description["coroutine"] = violation.coroutine and _place(violation.coroutine)
    description["begun_at"] = violation.begun_at and _place(violation.begun_at)
    description["fix"] = fix(violation)
    description["stack"] = [_place(frame) for frame in violation.stack or violation.whole_stack]
    return description


def _place(frame: Frame) -> dict[str, Any]:
    return {
        "file": frame.filename,
        "line": frame.lineno,
        "function": frame.function,
        "async": frame.asynchronous,
    }
