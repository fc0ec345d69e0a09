"""The baseline: which call sites are known, and what is said of a file that can't be used."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncsafe
from asyncsafe import baseline
from asyncsafe.violation import Frame

from .running import on_loop, refused

HERE = "test_baseline.py"
TITLE = "# asyncsafe baseline 1\n"


@pytest.fixture(autouse=True)
def no_baseline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(baseline.VARIABLE, raising=False)
    before = baseline.use(None)
    yield
    baseline.use(before)


@pytest.fixture
def file() -> Iterator[Path]:
    """A baseline beside this file: it knows `open_known`."""
    path = Path(__file__).parent / f"baseline-{os.getpid()}.txt"
    path.write_text(TITLE + f"{HERE}::open_known sqlite3.connect\n")
    yield path
    path.unlink()


def open_known() -> None:
    sqlite3.connect(":memory:").close()


def open_new() -> None:
    sqlite3.connect(":memory:").close()


def outcomes() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for site in asyncsafe.violations:
        counts = found.setdefault(site.violation.operation, {})
        for outcome, calls in site.outcomes.items():
            counts[outcome] = counts.get(outcome, 0) + calls
    return found


# What is known ---------------------------------------------------------------------------------


def test_what_is_known_passes_and_is_counted(guarded: None, file: Path) -> None:
    file.write_text(file.read_text() + f"{HERE}::open_known sqlite3.Connection.close\n")
    known = baseline.read(str(file))
    baseline.use(known)

    on_loop(open_known)
    on_loop(open_known)
    refused(open_new)

    assert outcomes()["sqlite3.connect"] == {"allowed": 2, "raised": 1}
    (site,) = [s for s in asyncsafe.violations if s.outcomes == {"allowed": 2}][:1]
    assert site.seconds > 0
    assert site.violation.reason is not None
    assert site.violation.reason.startswith("in the baseline ")
    assert site.violation.reason.endswith(file.name)
    assert known.new == [f"{HERE}::open_new sqlite3.connect"]
    assert known.unseen == []


def test_it_is_known_by_operation(guarded: None, file: Path) -> None:
    baseline.use(baseline.read(str(file)))

    assert refused(open_known).operation == "sqlite3.Connection.close"


def test_lines_may_move(guarded: None, tmp_path: Path) -> None:
    module = tmp_path / "shop.py"
    (tmp_path / "b.txt").write_text(TITLE + "shop.py::Shop.open sqlite3.connect\n")
    baseline.use(baseline.read(str(tmp_path / "b.txt")))
    source = (
        "import sqlite3\nclass Shop:\n    def open(self):\n        sqlite3.connect(':memory:')\n"
    )
    for text in (source, "# moved\n\n\n" + source):
        module.write_text(text)
        namespace: dict[str, type] = {}
        exec(compile(text, str(module), "exec"), namespace)
        on_loop(namespace["Shop"]().open)
    assert outcomes() == {"sqlite3.connect": {"allowed": 2}}


def test_only_what_is_new_is_warned_of(guarded: None, file: Path) -> None:
    baseline.use(baseline.read(str(file)))
    asyncsafe.configure(mode="warn")

    with pytest.warns(asyncsafe.AsyncUnsafeWarning) as warned:
        on_loop(open_known)

    assert ["sqlite3.Connection.close()" in str(w.message) for w in warned] == [True]


def test_forbid_is_stronger_and_allow_goes_before(guarded: None, file: Path) -> None:
    known = baseline.read(str(file))
    baseline.use(known)

    def strict() -> None:
        with asyncsafe.forbid():
            open_known()

    def lenient() -> None:
        with asyncsafe.allow("a reason"):
            open_known()

    refused(strict)
    on_loop(lenient)
    assert {s.violation.reason for s in asyncsafe.violations} == {None, "a reason"}
    assert known.unseen == [f"{HERE}::open_known sqlite3.connect"]
    assert known.new == []


def test_what_is_never_refused_needs_no_line(guarded: None, file: Path) -> None:
    def clean_up() -> None:
        connection = sqlite3.connect(":memory:")
        try:
            raise LookupError
        except LookupError:
            connection.close()

    name = f"{HERE}::{clean_up.__qualname__} sqlite3.connect"
    for mode in ("raise", "record"):
        file.write_text(TITLE + f"{name}\n")
        known = baseline.read(str(file))
        baseline.use(known)
        asyncsafe.configure(mode=mode)  # type: ignore[arg-type]
        on_loop(clean_up)
        assert known.new == []
        assert known.unseen == []


def test_start_up_needs_no_line(guarded: None, file: Path) -> None:
    """It is let through by `startup`, and is nothing that --update-baseline has to write down."""

    async def app(scope: dict[str, str]) -> None:
        open_new()

    known = baseline.read(str(file))
    baseline.use(known)
    asyncio.run(app({"type": "lifespan"}))
    assert outcomes() == {
        "sqlite3.connect": {"recorded": 1},
        "sqlite3.Connection.close": {"recorded": 1},
    }
    assert known.new == []

    asyncsafe.configure(startup="raise")
    with pytest.raises(asyncsafe.SynchronousOnlyOperation):
        asyncio.run(app({"type": "lifespan"}))
    assert len(known.new) == 1


def test_anothers_transaction_is_known_by_a_line_of_its_own(guarded: None, file: Path) -> None:
    """A line that lets a call block doesn't let it end another task's transaction."""
    import asyncio

    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE TABLE t (n)")
    done = asyncio.Event()

    async def begin() -> None:
        with asyncsafe.allow("a test"):
            connection.execute("INSERT INTO t VALUES (1)")
        await done.wait()

    async def commit() -> None:
        connection.commit()

    async def main() -> None:
        nonlocal done
        done = asyncio.Event()
        first = asyncio.create_task(begin())
        await asyncio.sleep(0)
        try:
            await asyncio.create_task(commit())
        finally:
            done.set()
            await first

    name = f"{HERE}::{commit.__qualname__} sqlite3.Connection.commit"
    sharing = f"{name} in another task's transaction"
    file.write_text(TITLE + f"{name}\n")
    baseline.use(known := baseline.read(str(file)))
    with pytest.raises(asyncsafe.ConnectionSharingError):
        asyncio.run(main())
    assert known.new == [sharing]

    connection.rollback()
    file.write_text(TITLE + f"{name}\n{sharing}\n")
    baseline.use(baseline.read(str(file)))
    asyncio.run(main())
    connection.close()


def test_paths_are_the_same_everywhere(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "link").symlink_to(project)
    (project / "b.txt").write_text(TITLE)

    def entry(filename: str, at: Path = project) -> str:
        site = Frame(filename, 3, "Shop.find.<locals>.inner")
        return baseline.read(str(at / "b.txt")).entry(site, "check  of\nours")

    rest = "::Shop.find.<locals>.inner check of ours"
    assert entry(str(project / "app" / "shop.py")) == f"app/shop.py{rest}"
    assert entry(str(tmp_path / "other" / "shop.py")) == f"../other/shop.py{rest}"
    assert entry(str(project / "shop.py"), tmp_path / "link") == f"shop.py{rest}"
    packages = os.path.join(os.sep, "venv", "lib", "site-packages", "pool", "base.py")
    assert entry(packages) == f"pool/base.py{rest}"
    assert entry("<string>") == f"<string>{rest}"


# The file --------------------------------------------------------------------------------------


def entries_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_it_is_written_sorted_whatever_the_order(file: Path) -> None:
    new = [f"{name}.py::f{n} sqlite3.connect" for name in "bac" for n in range(3)]
    texts = set()
    for _ in range(5):
        random.shuffle(new)
        file.write_text(TITLE)
        baseline.read(str(file)).write(add=new)
        texts.add(file.read_text())
    (text,) = texts
    assert entries_of(file) == sorted(new)
    assert text.startswith(TITLE)
    baseline.read(str(file)).write()
    assert file.read_text() == text


def test_comments_stay_with_their_lines(file: Path) -> None:
    file.write_text(
        TITLE
        + "# the report, JIRA-1\nb.py::f sqlite3.connect\n\n# goes\nc.py::f sqlite3.connect\n"
        + "# the end\n"
    )

    baseline.read(str(file)).write(
        add=["a.py::f sqlite3.connect"], take_out=["c.py::f sqlite3.connect"]
    )

    assert file.read_text().splitlines()[3:] == [
        "a.py::f sqlite3.connect",
        "# the report, JIRA-1",
        "b.py::f sqlite3.connect",
        "# the end",
    ]


def test_lines_twice_or_in_any_order_are_read(file: Path) -> None:
    """As git leaves them with `merge=union`; and with another system's line ends."""
    file.write_bytes(
        b"\xef\xbb\xbf" + TITLE.encode() + b"b.py::f op\r\na.py::f op\r\n\r\nb.py::f op\r\n"
    )
    assert baseline.read(str(file)).unseen == ["a.py::f op", "b.py::f op"]


def test_two_branches_are_merged_by_git(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    path = tmp_path / "asyncsafe-baseline.txt"
    git("init", "-q", "-b", "main")
    (tmp_path / ".gitattributes").write_text("*baseline.txt merge=union\n")
    path.write_text(TITLE + "a.py::f op\nz.py::f op\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("checkout", "-qb", "other")
    baseline.read(str(path)).write(add=["m.py::other op"])
    git("commit", "-qam", "other")
    git("checkout", "-q", "main")
    baseline.read(str(path)).write(add=["m.py::mine op"])
    git("commit", "-qam", "mine")
    git("merge", "-q", "other")

    merged = baseline.read(str(path))
    assert merged.unseen == ["a.py::f op", "m.py::mine op", "m.py::other op", "z.py::f op"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TITLE + "<<<<<<< HEAD\na.py::f op\n=======\n", "line 2: a merge conflict was left here"),
        ("<<<<<<< HEAD\n" + TITLE, "line 1: a merge conflict was left here"),
        (
            "# asyncsafe baseline 2\n",
            "has format 2, and this version of asyncsafe reads 1: upgrade",
        ),
        ("", "is no baseline of asyncsafe's: its first line would be `# asyncsafe baseline 1`"),
        ("app.py::f op\n", "is no baseline of asyncsafe's"),
        ("# asyncsafe baseline one\n", "is no baseline of asyncsafe's"),
        ('{"sites": []}', "is no baseline of asyncsafe's"),
        (
            TITLE + "\napp.py:17 sqlite3.connect\n",
            "line 3: 'app.py:17 sqlite3.connect' is no call site",
        ),
        (TITLE + "app.py::f\n", "line 2: 'app.py::f' is no call site; write `path::function op"),
    ],
)
def test_a_file_that_cant_be_used_says_what_to_do(file: Path, text: str, told: str) -> None:
    file.write_text(text)

    with pytest.raises(asyncsafe.ConfigurationError) as caught:
        baseline.read(str(file))

    assert told in str(caught.value)
    assert str(file) in str(caught.value)


def test_binary_and_unreadable_files(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"\xff\xfe#\x00 \x00")
    with pytest.raises(asyncsafe.ConfigurationError, match="is no baseline of asyncsafe's"):
        baseline.read(str(file))
    with pytest.raises(asyncsafe.ConfigurationError, match=r"can't be read: .*directory"):
        baseline.read(str(tmp_path))
    with pytest.raises(asyncsafe.ConfigurationError, match=r"there is no baseline .*--update-base"):
        baseline.read(str(tmp_path / "none.txt"))


def test_a_write_that_fails_leaves_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_text()

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        baseline.read(str(file)).write(add=["a.py::f op"])

    assert file.read_text() == before
    assert list(file.parent.glob(f"{file.name}.*")) == []


def test_file_names_neednt_be_utf_8(file: Path) -> None:
    entry = os.fsdecode(b"caf\xe9.py") + "::f op"
    baseline.read(str(file)).write(add=[entry])
    assert entry in baseline.read(str(file)).unseen


@pytest.mark.parametrize(
    "name",
    [
        "#1.py",
        " a.py",
        "\x85a.py",
        "a\nb.py",
        "a\rb.py",
        "a\x0cb.py",
        "a\u2028b.py",
        "<<<<<<< a.py",
        "::a.py",
        "a:: b/c.py",
    ],
)
def test_any_file_name_is_a_line_that_is_read_again(file: Path, name: str) -> None:
    frame = Frame(str(file.parent / name), 1, "f")
    entry = baseline.read(str(file)).entry(frame, "op")

    baseline.read(str(file)).write(add=[entry])

    assert entry in baseline.read(str(file)).unseen


@pytest.mark.skipif(sys.platform == "win32", reason="files have no such mode here")
def test_who_may_write_it_may_so_afterwards(file: Path) -> None:
    file.chmod(0o664)
    baseline.read(str(file)).write(add=["a.py::f op"])
    assert file.stat().st_mode & 0o777 == 0o664


def test_what_others_have_written_meanwhile_stays(file: Path) -> None:
    """Another run, a pull, an editor: a server's run takes hours."""
    file.write_text(TITLE + "gone.py::f op\n")
    known = baseline.read(str(file))
    file.write_text(TITLE + "# theirs\nb.py::f op\ngone.py::f op\n")

    known.write(add=["a.py::f op"], take_out=["gone.py::f op"])

    assert file.read_text().splitlines()[3:] == ["a.py::f op", "# theirs", "b.py::f op"]


WRITER = """
import sys
from asyncsafe import baseline

known = baseline.read(sys.argv[1])
for number in range(20):
    known.write(add=[f"a.py::f{sys.argv[2]}_{number} op"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="directories can't be locked")
def test_writers_at_the_same_time_lose_nothing(file: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(number)])
        for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(baseline.read(str(file))) == 1 + 4 * 20
    assert list(file.parent.glob(f"{file.name}.*")) == []


def test_a_directory_that_cant_be_locked_is_written_to(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: object) -> None:
        raise PermissionError("it may be written, not read")

    monkeypatch.setattr(os, "open", denied)
    baseline.read(str(file)).write(add=["a.py::f op"])
    assert "a.py::f op" in baseline.read(str(file)).unseen


def test_what_a_killed_writer_left_is_no_hindrance(file: Path) -> None:
    file.with_name(f"{file.name}.{os.getpid()}").write_text("half a li")
    baseline.read(str(file)).write(add=["a.py::f op"])
    assert "a.py::f op" in baseline.read(str(file)).unseen
    assert list(file.parent.glob(f"{file.name}.*")) == []


# Where it is named -----------------------------------------------------------------------------

PROGRAM = """
import asyncio, sqlite3, asyncsafe
asyncsafe.install()

def known():
    sqlite3.connect(":memory:")

def new():
    sqlite3.connect(":memory:")

async def call(function):
    try:
        function()
    except asyncsafe.SynchronousOnlyOperation:
        print("refused")
    else:
        print("made")

asyncio.run(call(known))
asyncio.run(call(new))
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(PROGRAM)
    (tmp_path / "b.txt").write_text(TITLE + "service.py::known sqlite3.connect\n")
    return tmp_path


def start(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(directory / "service.py")],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_goes_by_pyproject_toml(service: Path) -> None:
    (service / "pyproject.toml").write_text('[tool.asyncsafe]\nbaseline = "b.txt"\n')
    assert start(service).stdout.split() == ["made", "refused"]


def test_a_program_goes_by_the_environment(service: Path) -> None:
    (service / "pyproject.toml").write_text('[tool.asyncsafe]\nbaseline = "none.txt"\n')
    done = start(service, ASYNCSAFE_BASELINE=str(service / "b.txt"))
    assert done.stdout.split() == ["made", "refused"]


def test_install_tells_of_a_baseline_that_cant_be_read(service: Path) -> None:
    done = start(service, ASYNCSAFE_BASELINE="none.txt")
    assert done.returncode == 1
    assert "ConfigurationError: there is no baseline" in done.stderr


@pytest.mark.parametrize("value", ["1", '["b.txt"]', '""'])
def test_a_setting_that_is_no_name_is_told(service: Path, value: str) -> None:
    (service / "pyproject.toml").write_text(f"[tool.asyncsafe]\nbaseline = {value}\n")
    done = start(service)
    assert "must be a file name" in done.stderr
