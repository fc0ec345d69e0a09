"""asyncsafe run | report | info: guard a program that nobody has changed, and tell what it does."""

from __future__ import annotations

import argparse
import atexit
import functools
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from . import __version__, baseline, policy
from .exceptions import AsyncsafeError, ConfigurationError
from .following import follow
from .installation import LIBRARIES, integration, offered
from .progress import Progress
from .reports import baseline as baseline_report
from .reports import text
from .reports.formats import FORMATS, check_file, format_of, require, write, write_file
from .reports.reading import read_recordings, read_reports, report_of_this_process
from .reports.recording import DIRECTORY_VARIABLE
from .running import NotATarget, Target, find_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

#: With --fail: the exit status of a target that ended well, but not without violations.
VIOLATIONS = 3

#: Our options that take a value.
_WITH_VALUE = {"--baseline", "--mode", "--report"}

#: Those by which a program is asked to end, where it has no handler of its own.
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_BOOTSTRAP = str(Path(__file__).parent / "bootstrap")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status, where the target doesn't set its own."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, *rest = arguments or ["--help"]
    parser = _parser()
    if command != "run":
        options = parser.parse_args(arguments or ["--help"])
        try:
            return _report(options) if options.command == "report" else _info()
        except (AsyncsafeError, OSError) as error:
            parser.exit(2, f"asyncsafe: error: {error}\n")
    own, target = _split(rest)
    options = parser.parse_args(["run", *own])
    if not target:
        parser.error("run: name a script, -m and a module, or an installed command")
    try:
        run = _prepare(options, target)
    except (AsyncsafeError, NotATarget, OSError) as error:
        parser.exit(2, f"asyncsafe: error: {error}\n")
    return run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asyncsafe", description="Keep synchronous database connections off the event loop."
    )
    parser.add_argument("--version", action="version", version=f"asyncsafe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | report | info")
    run = commands.add_parser(
        "run",
        help="run a program, guarded, and report what blocks its event loop",
        usage="asyncsafe run [--mode MODE] [--report FILE] [--fail] [--progress] "
        "[--baseline FILE] [--update-baseline] [--prune-baseline] TARGET [ARGUMENTS ...]",
        description="TARGET is a script, `-m MODULE`, or an installed command. It runs in this "
        "process, and keeps its own exit status; the report goes to standard error.",
    )
    run.add_argument(
        "--mode",
        choices=policy.MODES,
        help=f"what becomes of a violation (default: {policy.MODE_VARIABLE}, else raise with "
        "--baseline, else record)",
    )
    run.add_argument(
        "--report",
        metavar="FILE",
        help="write the report into a file, too: .sarif, .html or .txt, else JSON",
    )
    run.add_argument(
        "--fail",
        action="store_true",
        help=f"exit with {VIOLATIONS} after violations, if the target itself ended well",
    )
    run.add_argument(
        "--progress",
        action="store_true",
        help="tell on the last line of the terminal what was found so far",
    )
    run.add_argument(
        "--baseline",
        metavar="FILE",
        help="let the call sites through that FILE lists, so that only new ones are violations "
        f"(default: {baseline.VARIABLE}, else baseline in pyproject.toml)",
    )
    run.add_argument(
        "--update-baseline",
        action="store_true",
        help="add the new call sites to it, and refuse nothing unless --mode says so",
    )
    run.add_argument(
        "--prune-baseline",
        action="store_true",
        help="take those out of it that this run didn't see, if the target ended well",
    )
    report = commands.add_parser(
        "report",
        help="merge reports, and write them for people and tools",
        description="FILE is a report that `asyncsafe run --report FILE.json` has written, or a "
        "recording of one of its processes; a directory is that of recordings.",
    )
    report.add_argument("files", nargs="+", metavar="FILE")
    report.add_argument(
        "--format",
        choices=FORMATS,
        help="default: what the output's name ends in, else text",
    )
    report.add_argument("--output", metavar="FILE", help="default: standard output")
    report.add_argument(
        "--root",
        metavar="DIR",
        default=".",
        help="the folder that SARIF's and GitHub's paths are relative to (default: this one)",
    )
    commands.add_parser("info", help="tell what can be guarded here, and the mode")
    return parser


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, which end where the target begins, and the target with its own."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        if arguments[position] == "-m":
            break
        if arguments[position] == "--":
            return arguments[:position], arguments[position + 1 :]
        position += 2 if arguments[position] in _WITH_VALUE else 1
    return arguments[:position], arguments[position:]


# run --------------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace, arguments: list[str]) -> Callable[[], int]:
    """Everything up to the target's own first line. What goes wrong until then is ours to tell."""
    target = find_target(arguments)
    if options.report:
        check_file("--report", options.report)
    _prepare_baseline(options)
    default = "raise" if options.baseline else "record"
    # An update refuses nothing, whatever the environment says.
    unnamed = "record" if options.update_baseline else os.environ.get(policy.MODE_VARIABLE)
    mode = options.mode or unnamed or default
    os.environ[policy.MODE_VARIABLE] = mode
    policy.current_mode()
    policy.current_startup()
    session = _Session(target, mode, options)
    session.begin()
    return session.run


def _prepare_baseline(options: argparse.Namespace) -> None:
    """Have this process and its children go by the baseline, if there is one."""
    if options.baseline == "":  # a shell's variable that isn't set: no reason to refuse nothing
        raise ConfigurationError("--baseline wants a file's name")
    path = os.path.abspath(options.baseline) if options.baseline else baseline.find_path()
    if path is None:
        if options.update_baseline or options.prune_baseline:
            raise ConfigurationError("which baseline? Name it with --baseline FILE")
        return
    if options.update_baseline:
        baseline.create(path)
    os.environ[baseline.VARIABLE] = path
    baseline.active()


class _Session:
    """One run of a target: its recordings, its exit status, the report at the end."""

    def __init__(self, target: Target, mode: str, options: argparse.Namespace) -> None:
        self._target = target
        self._mode = mode
        self._fail: bool = options.fail
        self._update: bool = options.update_baseline
        self._prune: bool = options.prune_baseline
        # The target may change the working directory.
        self._report_path: str | None = options.report and os.path.abspath(options.report)
        self._root = os.getcwd()
        self._status: int | None = 0
        self._pid = os.getpid()
        # Below another `asyncsafe run`, which merges what is recorded here: `flask run --reload`
        # starts its own command line again.
        self._outer = _outer_directory()
        self._directory = tempfile.mkdtemp(prefix="asyncsafe-", dir=self._outer)
        self._tells = self._outer is None or bool(
            self._fail or self._report_path or self._update or self._prune
        )
        self._shows_progress: bool = options.progress and self._outer is None
        self._progress: Progress | None = None
        self._ended = False

    def begin(self) -> None:
        os.environ[DIRECTORY_VARIABLE] = self._directory
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if _BOOTSTRAP not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join([_BOOTSTRAP, *filter(None, paths)])
        follow()
        try:
            self._target.load()
        except (NotATarget, OSError):
            self._remove()
            raise
        # The first to be registered is the last to be called: the target's own come before it.
        atexit.register(self._at_exit)
        for number in _ENDING_SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                # Nothing of Python's runs when the default action ends the process (`kill`, and
                # uvicorn, which sends itself the signal again after its graceful end).
                signal.signal(number, self._on_signal)
                if hasattr(os, "register_at_fork"):
                    leave = functools.partial(self._leave_signal, number)
                    os.register_at_fork(after_in_child=leave)
        if self._shows_progress:
            self._progress = Progress(self._directory)

    def run(self) -> int:
        """Run the target. Returns what to exit with, as far as it is known when it has returned."""
        try:
            self._target.run()
        except SystemExit as error:
            self._status = _status(error.code)
            if self._status:
                raise
        except KeyboardInterrupt:
            self._status = None
            raise
        except BaseException:
            self._status = 1
            raise
        return VIOLATIONS if self._fail and _violations(self._read()) else 0

    def _at_exit(self) -> None:
        report = self._end()
        if report and self._fail and self._status == 0 and _violations(report):
            # Violations in threads that outlived the target's main one: the interpreter has
            # settled its exit status by now.
            if "logging" in sys.modules:
                sys.modules["logging"].shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(AttributeError, OSError, ValueError):  # closed, or None
                    stream.flush()
            os._exit(VIOLATIONS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._status = None
        self._end()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _leave_signal(self, number: int) -> None:
        """In a forked child, there is nothing to tell at the end."""
        if signal.getsignal(number) == self._on_signal:
            signal.signal(number, signal.SIG_DFL)

    def _end(self) -> dict[str, Any] | None:
        """Tell the report, once, in the process that began it."""
        if self._ended or os.getpid() != self._pid:
            return None
        self._ended = True
        if self._progress is not None:
            self._progress.end()
        report = self._read()
        written = True
        try:
            if self._report_path:
                write_file(self._report_path, report, self._root)
        except (AsyncsafeError, OSError) as error:
            self._tell(
                f"asyncsafe: the report was not written: {error}\n"
                f"           What was recorded is kept: asyncsafe report {self._directory}\n"
            )
            written = False
        if self._tells:
            self._tell("\n" + text.render(report) + self._end_baseline(report))
        if written:
            self._remove()
        return report

    def _end_baseline(self, report: dict[str, Any]) -> str:
        """Bring the baseline up to date, if that was asked for. Returns what to tell of it."""
        known = baseline.active()
        if known is None:
            return ""
        known.read_kept(self._directory)
        why_not = f"the program ended with {self._status}" if self._status else None
        if self._mode == "off":
            why_not = "the mode is off"
        if self._status is None and self._prune:  # a server's usual end: what it didn't do is told
            why_not = "the program was interrupted"
        return "\n" + baseline_report.finish(
            known, report, update=self._update, prune=self._prune, why_not=why_not
        )

    def _tell(self, what: str) -> None:
        with suppress(AttributeError, OSError, ValueError):  # standard error is closed, or None
            sys.stderr.write(what)
            sys.stderr.flush()

    def _remove(self) -> None:
        """Below another run, what was recorded is left to it: it looks into our folder too."""
        if self._outer is None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        # A program that has given up its user's rights can't read there any longer.
        readable = os.access(self._directory, os.R_OK | os.X_OK)
        return {
            "command": [self._target.name, *self._target.arguments],
            "mode": self._mode,
            "exit_status": self._status,
            **(read_recordings(self._directory) if readable else report_of_this_process()),
        }


def _outer_directory() -> str | None:
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return directory if directory and os.path.isdir(directory) else None


def _violations(report: dict[str, Any]) -> bool:
    """Whether anything was recorded that nobody allowed.

    Calls that were let through during start-up count where the setting makes no exception for them.
    """
    let_through = ["allowed"] if policy.current_startup()[0] == "raise" else ["allowed", "recorded"]
    return any(
        site["calls"]
        > sum(site["outcomes"][name] for name in (let_through if site["phase"] else ["allowed"]))
        for site in report["sites"]
    )


def _status(code: object) -> int:
    """The exit status that sys.exit(code) makes."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


# report -----------------------------------------------------------------------------------------


def _report(options: argparse.Namespace) -> int:
    name = options.format or (format_of(options.output) if options.output else "text")
    if name is None:
        raise ConfigurationError(
            f"--output {options.output}: name the format too, by --format {{{','.join(FORMATS)}}}"
        )
    require(name)
    if options.output:
        check_file("--output", options.output)
    content = FORMATS[name](read_reports(options.files), os.path.abspath(options.root))
    if options.output:
        write(Path(options.output), content)
        return 0
    if sys.stdout is None:
        raise OSError("standard output is closed: name a file by --output FILE")
    try:
        # A reader that isn't a person wants UTF-8, whatever the terminal's encoding is.
        encoding = "utf-8" if name != "text" else None
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(content)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`: Python would tell of it once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# info -------------------------------------------------------------------------------------------


def _info() -> int:
    print(f"asyncsafe {__version__} on {sys.implementation.name} {sys.version.split()[0]}")
    for setting, current in {
        "mode": policy.current_mode,
        "startup": policy.current_startup,
    }.items():
        try:
            print(f"{setting}: {{}} ({{}})".format(*current()))
        except AsyncsafeError as error:
            print(f"{setting}: {error}")
    try:
        if (known := baseline.active()) is not None:
            print(f"baseline: {known.path}, {len(known)} known call sites")
    except AsyncsafeError as error:
        print(f"baseline: {error}")
    if value := os.environ.get(policy.DJANGO_VARIABLE):
        print(f"{policy.DJANGO_VARIABLE}={value} allows everything, whatever the mode")
    print("guarded by install():")
    for name in LIBRARIES:
        print(f"  {name:12} {_version(integration(name).distributions)}")
    for other in offered():
        print(f"  {other.name:12} by {other.value} of {other.distribution}")
    return 0


def _version(distributions: tuple[str, ...]) -> str:
    if not distributions:
        return "the standard library's"
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"
