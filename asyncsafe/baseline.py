"""The baseline: a file of the call sites that are known, which pass. What is new is not known."""

from __future__ import annotations

import os
import sys

from . import policy
from .exceptions import ConfigurationError
from .messages import within_packages
from .nesting import Inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .violation import Call, Frame

#: The file's name, for this process and its children.
VARIABLE = "ASYNCSAFE_BASELINE"

#: Raised when a reader of the earlier form would be misled.
FORMAT = 1

_TITLE = "# asyncsafe baseline "
_HEADER = (
    f"{_TITLE}{FORMAT}",
    "# Known calls that block the event loop, one a line: path::function operation. They pass; new",
    "# ones don't. `--update-baseline` adds lines, `--prune-baseline` takes out what a run didn't see.",
)
_FORM = "path::function operation"
_SHARING = " in another task's transaction"

#: What version control writes where it could not merge.
_CONFLICT = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")

#: What lines begin with that are no call sites, or have no path.
_BEGIN_OTHERS = ("#", "::", *_CONFLICT)

#: The files in which processes keep the call sites that they met.
_ENDING = ".met.txt"

#: How many calls are told apart by what is cheap to compare.
_CALL_LIMIT = 20_000


class Baseline:
    """The call sites of a file: known by path, function and operation, in whatever line.

    Paths are relative to the file's own directory, with forward slashes; those of installed
    packages are relative to site-packages.
    """

    def __init__(self, path: str, known: dict[str, list[str]], last: list[str]) -> None:
        #: Absolute.
        self.path: str = path
        #: Why what it knows is let through.
        self.reason: str = f"in the baseline {os.path.basename(path)}"
        #: Every call site that was met.
        self.met: set[str] = set()
        #: Each entry, with the comment lines that stand above it, and those below the last.
        self._known = known
        self._last = last
        self._directory: str | None = None
        self._paths: dict[str, str] = {}
        #: From what is cheap to compare to the entry. Each value keeps alive what its key names by id.
        self._calls: dict[tuple[Any, ...], tuple[str, bool, Any]] = {}

    def __repr__(self) -> str:
        return f"<Baseline {self.path}, {len(self._known)} call sites>"

    def __len__(self) -> int:
        return len(self._known)

    def allows(self, call: Call) -> str | None:
        """The reason to let a call through: its call site is known. None: it isn't."""
        found = self._calls.get(call.key) or self._find(call)
        return self.reason if found[1] else None

    def add(self, call: Call) -> None:
        """Note that the call site of a call is new."""
        self._meet((self._calls.get(call.key) or self._find(call))[0])

    def _find(self, call: Call) -> tuple[str, bool, Any]:
        entry = self.entry(call.call_site(), call.operation, sharing=call.begun is not None)
        known = entry in self._known
        if known:
            self._meet(entry)
        if len(self._calls) >= _CALL_LIMIT:
            self._calls.clear()
        found = self._calls[call.key] = entry, known, call.kept()
        return found

    def _meet(self, entry: str) -> None:
        if entry not in self.met:
            self.met.add(entry)
            self._write_down(entry)

    def entry(self, site: Frame, operation: str, *, sharing: bool = False) -> str:
        """The line that stands for a call site.

        sharing: the operation is called on a connection with another task's open transaction.
        """
        path = self._paths.get(site.filename)
        if path is None:
            path = self._paths[site.filename] = _relative(site.filename, os.path.dirname(self.path))
        operation = " ".join(operation.split())
        return f"{path}::{site.function} {operation}{_SHARING if sharing else ''}"

    @property
    def new(self) -> list[str]:
        """What was met and isn't known."""
        return sorted(self.met - self._known.keys())

    @property
    def unseen(self) -> list[str]:
        """What is known and wasn't met."""
        return sorted(self._known.keys() - self.met)

    # What several processes have seen --------------------------------------------------------

    def keep_in(self, directory: str) -> None:
        """Write down in `directory` what this process and those that it forks meet."""
        self._directory = directory
        for entry in sorted(self.met):
            self._write_down(entry)

    def read_kept(self, directory: str) -> None:
        """Add what others have written down there, and in folders below it."""
        for folder, _, names in os.walk(directory):
            for name in names:
                if name.endswith(_ENDING):
                    with open(os.path.join(folder, name), encoding="utf-8", **_LENIENT) as file:
                        # What follows the last line break was cut off with its process.
                        self.met.update(file.read().split("\n")[:-1])

    def _write_down(self, entry: str) -> None:
        if self._directory is None:
            return
        path = os.path.join(self._directory, f"{os.getpid()}{_ENDING}")
        try:
            with open(path, "a", encoding="utf-8", newline="\n", **_LENIENT) as file:
                file.write(f"{entry}\n")
        except OSError:
            return  # a full disk, a directory that is gone: the program goes on

    # The file --------------------------------------------------------------------------------

    def write(self, *, add: Iterable[str] = (), take_out: Iterable[str] = ()) -> None:
        """Write the file anew, in one step: sorted, with its comments.

        What was written into it since it was read stays. Raises OSError, and ConfigurationError
        as `read` does.
        """
        path = os.path.realpath(self.path)  # a link stays one
        lock = _lock(os.path.dirname(path))
        try:
            now = read(self.path) if os.path.exists(self.path) else self
            known = {**dict.fromkeys(add, ()), **now._known}
            for entry in take_out:
                known.pop(entry, None)
            lines = [*_HEADER]
            for entry in sorted(known):
                lines += [*known[entry], entry]
            _replace(path, "\n".join([*lines, *now._last]) + "\n")
        finally:
            if lock is not None:
                os.close(lock)


#: File names needn't be UTF-8.
_LENIENT: Any = {"errors": "surrogateescape"}


def _lock(directory: str) -> int | None:
    """Wait until no other process writes there, where the system can: none loses what another adds.

    Closing the descriptor lets the next one in. The directory is locked since the file is replaced,
    and a lock file would outlive who is killed.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # one that may be written, not read; or writing tells what is wrong
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system that has no locks
        pass
    return descriptor


def _replace(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        # One may have been left by a process that was killed: in a container, all have that number.
        with open(temporary, "w", encoding="utf-8", newline="\n", **_LENIENT) as file:
            file.write(text)
        if os.path.exists(path):
            os.chmod(temporary, os.stat(path).st_mode)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def read(path: str) -> Baseline:
    """Read a baseline file.

    Raises ConfigurationError, which says what to do, where it is missing, can't be read, has
    been left with a merge conflict in it, or is another version's or no baseline.
    """
    path = os.path.abspath(path)
    try:
        with open(path, encoding="utf-8-sig", **_LENIENT) as file:
            lines = file.read().split("\n")
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no baseline {path}; `asyncsafe run --baseline FILE --update-baseline` or "
            "`pytest --asyncsafe-baseline=FILE --update-baseline` writes it"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"the baseline {path} can't be read: {error}") from error
    _check_whole(path, lines)
    known: dict[str, list[str]] = {}
    comments: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("#"):
            if text not in _HEADER:
                comments.append(text)
        elif text:
            _check_entry(path, number, text)
            known.setdefault(text, []).extend(comments)
            comments = []
    return Baseline(path, known, comments)


def create(path: str) -> None:
    """Write a baseline that knows nothing, where there is no file yet. Raises OSError."""
    if not os.path.exists(path):
        Baseline(os.path.abspath(path), {}, []).write()


def _check_whole(path: str, lines: list[str]) -> None:
    for number, line in enumerate(lines, 1):
        if line.startswith(_CONFLICT):
            raise ConfigurationError(
                f"{path}, line {number}: a merge conflict was left here. Keep the lines of both "
                "sides, delete the lines of the conflict's marks, and the file is merged; "
                "`*baseline.txt merge=union` in .gitattributes has git do that"
            )
    title = lines[0].strip() if lines else ""
    version = title.removeprefix(_TITLE) if title.startswith(_TITLE) else ""
    if not (version.isascii() and version.isdigit()):
        raise ConfigurationError(
            f"{path} is no baseline of asyncsafe's: its first line would be `{_HEADER[0]}`. Name "
            "another file, or delete this one and write it with --update-baseline"
        )
    if int(version) != FORMAT:
        raise ConfigurationError(
            f"{path} has format {version}, and this version of asyncsafe reads {FORMAT}: upgrade "
            "asyncsafe, or delete the file and write it with --update-baseline"
        )


def _check_entry(path: str, number: int, line: str) -> None:
    place, _, rest = line.partition("::")
    function, _, operation = rest.partition(" ")
    if not (place and function and operation.strip()):
        raise ConfigurationError(
            f"{path}, line {number}: {line!r} is no call site; write `{_FORM}`, or delete the line"
        )


def _relative(filename: str, directory: str) -> str:
    if filename.startswith("<"):
        return filename
    path = within_packages(filename)
    if path is None:
        try:
            path = os.path.relpath(filename, directory)
            if path.startswith(os.pardir):  # one of the two was reached by a link
                real = os.path.relpath(os.path.realpath(filename), os.path.realpath(directory))
                path = path if real.startswith(os.pardir) else real
        except ValueError:  # another drive
            path = filename
    path = path.replace(os.sep, "/").replace("\n", "\\n").replace("\r", "\\r")
    path = path.replace(":: ", "::\\ ")  # else a function without a name
    # "./" where the line would be taken for a comment, or for a mark of a conflict, or begins with a space.
    return f"./{path}" if path.startswith(_BEGIN_OTHERS) or path[:1].isspace() else path


# The process's own ------------------------------------------------------------------------------

_active: Baseline | None = None
_looked = False


def active() -> Baseline | None:
    """This process's baseline: the environment's, else pyproject.toml's; None where there is none.

    Raises ConfigurationError as `read` does.
    """
    global _active, _looked
    if not _looked:
        with Inside("unguarded"):  # the first time, on the loop: reading may call what is guarded
            path = find_path()
            _active = None if path is None else read(path)
        _looked = True
    return _active


def find_path() -> str | None:
    """The file that the environment or pyproject.toml names, which may not be there yet."""
    if value := os.environ.get(VARIABLE):
        return os.path.abspath(value)
    settings, path = policy.read_settings()
    if path is None or "baseline" not in settings:
        return None
    name = settings["baseline"]
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f'baseline in [tool.asyncsafe] of {path} must be a file name: baseline = "..."'
        )
    return os.path.join(os.path.dirname(path), name)


def use(baseline: Baseline | None) -> Baseline | None:
    """Have this process go by `baseline`; None: by none. Returns the one before."""
    global _active, _looked
    before = _active if _looked else None
    _active, _looked = baseline, True
    return before
