"""`asyncsafe run --progress`, on a terminal that is emulated as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte
import pytest

from .test_cli import BLOCKING, CLEAN, command

ROWS, COLUMNS = 12, 100


class Terminal:
    """A program on a terminal, and what is on its screen."""

    def __init__(self, project: Path, *arguments: str, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self._fd, theirs = pty.openpty()
        self.resize(ROWS, COLUMNS)
        self.written = b""
        self.program = subprocess.Popen(
            command("run", *arguments),
            cwd=project,
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def read_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 40
        while not done():
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            if not select.select([self._fd], [], [], 0.1)[0]:
                continue
            try:
                some = os.read(self._fd, 65536)
            except OSError:  # Linux's way of telling that nobody has it open any more
                some = b""
            if not some:
                return
            self.written += some
            self._stream.feed(some)

    def read_to_end(self) -> None:
        self.read_until(lambda: False)
        self.program.wait(10)
        os.close(self._fd)

    @property
    def last_line(self) -> str:
        return str(self.screen.display[-1]).rstrip()

    def lines(self) -> list[str]:
        """All that was on the screen, what has scrolled off it first."""
        gone = [
            "".join(row[column].data for column in range(COLUMNS))
            for row in self.screen.history.top
        ]
        return [line.rstrip() for line in [*gone, *self.screen.display]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    return tmp_path


#: Prints by sys.stdout, by a file descriptor and from a child; goes on when a file appears.
PRINTING = """
from blocking import *
import os, subprocess, time

asyncio.run(main())
for number in range(30):
    print("line", number)
os.write(1, b"from a descriptor\\n")
subprocess.run([sys.executable, "-S", "-c", "print('from a child')"])
print("waiting", end="", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
print(" no more")
"""


def test_the_line_stands_below_what_the_program_prints(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    terminal = Terminal(project, "--progress", "script.py")

    told = "asyncsafe: 7 calls at 3 sites blocked the loop for "
    terminal.read_until(
        lambda: terminal.last_line.startswith(told) and "worst: " in terminal.last_line
    )
    terminal.read_until(lambda: any("waiting" in line for line in terminal.screen.display))
    assert "blocking.py:" in terminal.last_line
    (project / "go").touch()
    terminal.read_to_end()

    lines = terminal.lines()
    start = lines.index("line 0")
    assert lines[start : start + 33] == [
        *(f"line {number}" for number in range(30)),
        "from a descriptor",
        "from a child",
        "waiting no more",
    ]
    # The report comes at the end, as ever; of the line, nothing is left.
    assert any("7 synchronous calls on the event loop" in line for line in lines)
    assert not any(line.startswith(told) for line in lines)
    assert terminal.screen.margins is None
    assert terminal.program.returncode == 0


def test_what_the_program_prints_is_the_same_bytes(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    (project / "go").touch()
    with_line, without = (
        Terminal(project, *options, "script.py") for options in (["--progress"], [])
    )
    for terminal in (with_line, without):
        terminal.read_to_end()

    def printed(terminal: Terminal) -> list[str]:
        return [line for line in terminal.lines() if line][:33]

    assert printed(with_line) == printed(without)


def test_the_terminal_is_given_back_when_the_program_is_killed(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    terminal = Terminal(project, "--progress", "script.py")
    terminal.read_until(lambda: "7 calls" in terminal.last_line)

    terminal.program.send_signal(signal.SIGKILL)
    terminal.read_to_end()

    assert terminal.screen.margins is None
    assert terminal.last_line == ""


def test_ctrl_c_ends_the_program_and_not_the_line_before_it(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    terminal = Terminal(project, "--progress", "script.py")
    terminal.read_until(lambda: "7 calls" in terminal.last_line)

    os.killpg(terminal.program.pid, signal.SIGINT)
    terminal.read_to_end()

    assert any("7 synchronous calls" in line for line in terminal.lines())
    assert terminal.screen.margins is None


def test_the_line_follows_the_size_of_the_terminal(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    terminal = Terminal(project, "--progress", "script.py")
    terminal.read_until(lambda: "7 calls" in terminal.last_line)

    terminal.resize(8, 40)
    terminal.read_until(lambda: terminal.last_line.startswith("asyncsafe: 7 calls"))
    assert len(terminal.last_line) <= 39
    (project / "go").touch()
    terminal.read_to_end()
    assert terminal.screen.margins is None


def test_a_terminal_that_cannot_do_it_is_left_alone(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    (project / "go").touch()
    terminal = Terminal(project, "--progress", "script.py", TERM="dumb")
    terminal.read_to_end()
    assert b"\x1b" not in terminal.written
    assert terminal.program.returncode == 0


def test_a_terminal_without_a_size_is_left_alone(project: Path) -> None:
    """Of a container, or of a program that runs others: nobody has told how many lines there are."""
    (project / "script.py").write_text(CLEAN)
    ours, theirs = pty.openpty()
    subprocess.run(
        command("run", "--progress", "script.py"),
        cwd=project,
        env={**os.environ, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        check=True,
        timeout=60,
    )
    written = os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    assert b"nothing blocked the event loop" in written
    assert b"\x1b" not in written


def test_without_a_terminal_there_is_no_line(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    (project / "go").touch()
    options: Any = {"cwd": project, "capture_output": True, "check": True}
    done = subprocess.run(command("run", "--progress", "script.py"), **options)
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"7 synchronous calls" in done.stderr


def test_a_run_within_a_run_has_no_line_of_its_own(project: Path) -> None:
    (project / "script.py").write_text(PRINTING)
    (project / "go").touch()
    terminal = Terminal(project, "-m", "asyncsafe", "run", "--progress", "script.py")
    terminal.read_to_end()
    assert b"\x1b[1;" not in terminal.written


def test_names_of_the_programs_do_not_move_the_cursor() -> None:
    code = (
        "import os; from asyncsafe.progress import _LastLine;"
        "os.get_terminal_size = lambda fd: os.terminal_size((80, 24));"
        "_LastLine().show('a\\x1b[2Jb\\nc')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"a\\x1b[2Jb\\nc" in done.stdout
