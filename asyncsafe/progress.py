"""The live line of `asyncsafe run --progress`: what was recorded so far, at the bottom of a terminal.

A process of its own reads the recordings and draws it: the program has no thread more than without
it, and its children are counted too. The terminal is told to scroll all lines but the last, so
that what the program prints, however it does, never meets the line.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .messages import function, place
from .reports.reading import UnreadableReport, read_recordings
from .reports.recording import DIRECTORY_VARIABLE
from .reports.wording import count, printable, seconds
from .violation import Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds between two readings; longer where these themselves take long.
PAUSE = 0.5
#: Of its time, reading takes at most one part in so many.
_SHARE = 10

_SAVE, _RESTORE = "\x1b7", "\x1b8"  # where the cursor is
_DOWN, _UP = "\x1bD", "\x1b[A"  # down scrolls where the cursor stands on the last line
_SCROLL_ALL = "\x1b[r"


class Progress:
    """The line, from now until `end()`. There is none where standard error is not a terminal."""

    def __init__(self, directory: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not _is_terminal():
            return
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        environment.pop(DIRECTORY_VARIABLE, None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, directory],
            env=environment,
            # When the program is gone, however that was, this ends, and the line with it.
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            # Ctrl-C is for the program.
            start_new_session=True,
        )

    def end(self) -> None:
        """Give the line back to the program."""
        if self._process is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._process.communicate(b"end", timeout=10)


def _is_terminal() -> bool:
    try:
        terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # One whose size nobody has set has no lines: none of them is the last.
        terminal = terminal and os.get_terminal_size(sys.stderr.fileno()).lines > 1
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        return False
    return terminal and sys.platform != "win32"


def summarize(report: dict[str, Any]) -> str:
    """The line."""
    sites = report["sites"]
    if not sites:
        return "asyncsafe: nothing has blocked the event loop yet"
    calls = sum(site["calls"] for site in sites)
    blocked = sum(site["seconds"] for site in sites)
    at = sites[0]["call_site"]
    frame = Frame(at["file"], at["line"], at["function"], at["async"])
    return (
        f"asyncsafe: {count(calls, 'call')} at {count(len(sites), 'site')} blocked the loop for "
        f"{seconds(blocked)}; worst: {seconds(sites[0]['seconds'])} at "
        f"{place(frame)} {function(frame)}"
    )


class _LastLine:
    """The last line of the terminal, which nothing else is written to."""

    def __init__(self) -> None:
        self._size = os.get_terminal_size(1)
        self._scroll_others()

    def _scroll_others(self) -> None:
        region = f"\x1b[1;{max(1, self._size.lines - 1)}r"
        # Should the cursor stand on the last line, what is above moves up with it.
        self._write(f"{_DOWN}{_UP}{_SAVE}{region}{_RESTORE}")

    def show(self, text: str) -> None:
        size = os.get_terminal_size(1)
        if size != self._size:
            self.clear()
            self._size = size
            self._scroll_others()
        # Nothing that the program's names hold may move the cursor.
        told = printable(text)[: size.columns - 1]
        self._write(f"{_SAVE}\x1b[{size.lines};1H\x1b[2K\x1b[2m{told}\x1b[0m{_RESTORE}")

    def clear(self) -> None:
        self._write(f"{_SAVE}\x1b[{self._size.lines};1H\x1b[2K{_SCROLL_ALL}{_RESTORE}")

    def _write(self, text: str) -> None:
        # At once, so that nothing of the program's comes in between.
        os.write(1, text.encode("utf-8", "replace"))


def main(directory: str) -> None:
    """Draw the line until somebody writes to standard input, or nobody can any more."""
    line = _LastLine()
    pause = 0.0
    while not select.select([0], [], [], pause)[0]:
        begin = time.perf_counter()
        try:
            line.show(summarize(read_recordings(directory)))
        except (UnreadableReport, KeyError, OSError, ValueError):
            pass  # read in the middle of a change
        pause = max(PAUSE, (time.perf_counter() - begin) * (_SHARE - 1))
    line.clear()


if __name__ == "__main__":
    main(sys.argv[1])
