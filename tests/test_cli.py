"""`asyncsafe run` and `asyncsafe info`, as a user starts them: in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import asyncsafe

SCHEMA = json.loads(
    (Path(asyncsafe.__file__).parent / "reports" / "report.schema.json").read_text()
)

BLOCKING = """
import asyncio, sqlite3, sys

def find(connection):
    return connection.execute("SELECT ?", ("a secret",)).fetchone()

async def main(times=3):
    with_connection = sqlite3.connect(":memory:")
    for _ in range(times):
        find(with_connection)
"""

CLEAN = "import asyncio\n\nasync def main():\n    await asyncio.sleep(0)\n\nasyncio.run(main())\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    (tmp_path / "script.py").write_text("from blocking import *\n\nasyncio.run(main())\n")
    (tmp_path / "clean.py").write_text(CLEAN)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "asyncsafe", *arguments]


def asyncsafe_run(
    project: Path, *arguments: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run", *arguments),
        cwd=project,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def report_of(project: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    asyncsafe_run(project, "--report", "report.json", *arguments, **options)
    return read_report(project)


def read_report(project: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((project / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    return report


def calls(report: dict[str, Any]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for site in report["sites"]:
        counted[site["operation"]] = counted.get(site["operation"], 0) + site["calls"]
    return counted


# What is told ---------------------------------------------------------------------------------


def test_it_records_unless_told_otherwise_and_tells_on_standard_error(project: Path) -> None:
    (project / "script.py").write_text("from blocking import *\nasyncio.run(main())\nprint('done')")

    done = asyncsafe_run(project, "script.py")

    assert done.returncode == 0
    assert done.stdout == "done\n"
    assert "7 synchronous calls on the event loop, at 3 call sites" in done.stderr
    assert "blocking.py:5 find()" in done.stderr
    assert "blocking.py:10 async main()" in done.stderr
    assert "await asyncsafe.database_sync_to_async(find)(...)" in done.stderr


def test_the_report_has_every_site_worst_first(project: Path) -> None:
    report = report_of(project, "script.py")

    assert calls(report) == {
        "sqlite3.connect": 1,
        "sqlite3.Connection.execute": 3,
        "sqlite3.Cursor.fetchone": 3,
    }
    blocked = [site["seconds"] for site in report["sites"]]
    assert blocked == sorted(blocked, reverse=True)
    assert all(0 < site["worst"] <= site["seconds"] for site in report["sites"])
    (execute,) = [s for s in report["sites"] if s["operation"] == "sqlite3.Connection.execute"]
    assert execute["call_site"]["file"] == str(project / "blocking.py")
    assert execute["coroutine"]["function"] == "main"
    assert execute["statement"] == "SELECT ?"
    assert execute["outcomes"] == {"raised": 0, "warned": 0, "recorded": 3, "allowed": 0}
    assert report["command"] == ["script.py"]
    assert report["mode"] == "record"
    assert report["exit_status"] == 0
    assert "a secret" not in (project / "report.json").read_text()


def test_a_program_without_violations_is_told_so(project: Path) -> None:
    done = asyncsafe_run(project, "clean.py")

    assert done.returncode == 0
    assert done.stderr == "\nasyncsafe: nothing blocked the event loop.\n"


def test_mode_raise_refuses(project: Path) -> None:
    done = asyncsafe_run(project, "--mode", "raise", "script.py")

    assert done.returncode == 1
    assert "sqlite3.connect() was called from a running event loop (asyncio)." in done.stderr
    assert "1 synchronous call on the event loop, at 1 call site; all were refused." in done.stderr


def test_the_environment_tells_the_mode_and_the_option_is_stronger(project: Path) -> None:
    env = {"ASYNCSAFE_MODE": "raise"}

    assert asyncsafe_run(project, "script.py", env=env).returncode == 1
    assert asyncsafe_run(project, "--mode=record", "script.py", env=env).returncode == 0


def test_what_allow_lets_through_is_in_the_report_with_its_reason(project: Path) -> None:
    (project / "script.py").write_text(
        "from blocking import *\n"
        "import asyncsafe\n"
        "@asyncsafe.allow('it is fast')\n"
        "async def allowed(): await main()\n"
        "asyncio.run(allowed())\n"
    )

    done = asyncsafe_run(project, "--fail", "--report", "report.json", "script.py")

    assert done.returncode == 0
    assert {site["reason"] for site in read_report(project)["sites"]} == {"it is fast"}


# The target is run as Python runs it ----------------------------------------------------------


MIRROR = """
import json, os, pickle, signal, sys, __main__

class Pickled:
    pass

assert type(pickle.loads(pickle.dumps(Pickled()))) is Pickled
json.dump(
    {
        "argv": sys.argv,
        "path": sys.path,
        "name": __name__,
        "file": __file__,
        "package": __package__,
        "spec": getattr(__spec__, "name", None),
        "main": __main__.__dict__ is globals(),
        "builtins": __builtins__ is sys.modules["builtins"],
        "doc": __doc__,
        "stdin": sys.stdin.read(),
        "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    },
    sys.stdout,
)
"""


def make_package(project: Path) -> None:
    package = project / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(MIRROR)
    (package / "module.py").write_text(MIRROR)
    (project / "mirror.py").write_text(MIRROR)


@pytest.mark.parametrize(
    "target",
    [["mirror.py"], ["-m", "mirror"], ["-m", "package"], ["-m", "package.module"], ["package"]],
)
def test_the_target_sees_what_python_would_show_it(project: Path, target: list[str]) -> None:
    make_package(project)
    arguments = [*target, "--mode", "its own", "-m", "x"]
    options: dict[str, Any] = {"cwd": project, "input": "in", "capture_output": True, "text": True}

    bare = subprocess.run([sys.executable, *arguments], check=True, **options)
    guarded = subprocess.run(command("run", "--fail", *arguments), check=True, **options)

    assert json.loads(guarded.stdout) == json.loads(bare.stdout)


def test_an_installed_command_runs_in_this_process(project: Path) -> None:
    done = asyncsafe_run(project, "uvicorn", "--version")

    assert done.returncode == 0
    assert done.stdout.startswith("Running uvicorn")


@pytest.mark.parametrize(
    ("ending", "status", "told"),
    [
        ("sys.exit(7)", 7, ""),
        ("sys.exit('the reason')", 1, "the reason"),
        ("sys.exit()", 0, ""),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, ""),
    ],
)
def test_the_target_keeps_its_exit_status(
    project: Path, ending: str, status: int, told: str
) -> None:
    (project / "script.py").write_text(f"from blocking import *\nasyncio.run(main())\n{ending}\n")

    done = asyncsafe_run(project, "--fail", "script.py")

    assert done.returncode == (status or 3)
    assert told in done.stderr
    assert "7 synchronous calls" in done.stderr


def test_an_uncaught_exception_is_told_without_our_frames(project: Path) -> None:
    (project / "script.py").write_text("def fail():\n    1 / 0\n\nfail()\n")

    bare = subprocess.run(
        [sys.executable, str(project / "script.py")], capture_output=True, text=True, check=False
    )
    done = asyncsafe_run(project, str(project / "script.py"))

    assert done.stderr.startswith(bare.stderr)


@pytest.mark.parametrize("code", ["open('/no/such/file')", "def broken(", "import no_such_module"])
def test_the_targets_own_errors_are_its_own(project: Path, code: str) -> None:
    (project / "script.py").write_text(code + "\n")

    bare = subprocess.run(
        [sys.executable, str(project / "script.py")], capture_output=True, text=True, check=False
    )
    done = asyncsafe_run(project, str(project / "script.py"))

    assert done.returncode == bare.returncode == 1
    assert done.stderr.startswith(bare.stderr)


def test_the_report_is_written_where_standard_error_is_closed(project: Path) -> None:
    (project / "script.py").write_text(
        "from blocking import *\nasyncio.run(main())\nsys.stderr.close()\n"
    )

    report = report_of(project, "script.py", "\udcff")

    assert calls(report)["sqlite3.connect"] == 1
    assert report["command"] == ["script.py", "\udcff"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may")
def test_a_target_that_gives_up_its_user_is_told_its_own_calls(project: Path) -> None:
    """It can't read any longer what it has written."""
    gives_up = (
        f"{BLOCKING}\nimport os\nasyncio.run(main())\nos.setuid(65534)\nasyncio.run(main())\n"
    )
    (project / "server.py").write_text(gives_up)
    done = asyncsafe_run(project, "server.py")
    assert "asyncsafe: 14 synchronous calls" in done.stderr


def test_fail_is_silent_about_a_clean_target(project: Path) -> None:
    assert asyncsafe_run(project, "--fail", "clean.py").returncode == 0


def test_fail_counts_threads_that_outlive_the_main_one(project: Path) -> None:
    (project / "script.py").write_text(
        "from blocking import *\n"
        "import threading\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    asyncio.run(main())\n"
        "threading.Thread(target=late).start()\n"
    )

    done = asyncsafe_run(project, "--fail", "script.py")

    assert done.returncode == 3
    assert "7 synchronous calls" in done.stderr


def test_the_targets_own_sigterm_handler_is_the_one_that_runs(project: Path) -> None:
    (project / "script.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )

    assert asyncsafe_run(project, "script.py").returncode == 5


# Children ---------------------------------------------------------------------------------------


CHILDREN = {
    "fork": "multiprocessing.get_context('fork').Process(target=run)",
    "spawn": "multiprocessing.get_context('spawn').Process(target=run)",
    "forkserver": "multiprocessing.get_context('forkserver').Process(target=run)",
}


@pytest.mark.parametrize("method", CHILDREN)
def test_children_of_multiprocessing_are_guarded_and_merged(project: Path, method: str) -> None:
    (project / "script.py").write_text(
        "from blocking import *\n"
        "import multiprocessing\n"
        "def run(): asyncio.run(main())\n"
        "if __name__ == '__main__':\n"
        "    run()\n"
        f"    child = {CHILDREN[method]}\n"
        "    child.start(); child.join(); assert child.exitcode == 0\n"
    )

    report = report_of(project, "script.py")

    assert calls(report)["sqlite3.Connection.execute"] == 6
    assert len(report["sites"]) == 3
    assert len(report["processes"]) == 2


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_is_lost_of_a_child_that_ends_without_being_asked(project: Path, end: str) -> None:
    (project / "child.py").write_text(
        f"from blocking import *\nimport os, signal\nasyncio.run(main(50))\n{end}\n"
    )
    (project / "script.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])\n"
    )

    assert calls(report_of(project, "script.py"))["sqlite3.Connection.execute"] == 50


def test_a_child_still_runs_the_sitecustomize_that_it_had(project: Path) -> None:
    site = project / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.customized = True\n")
    (project / "child.py").write_text("from script import *\nprint(sys.customized, sys.path)\n")
    (project / "script.py").write_text(
        "import subprocess, sys\n"
        "if __name__ == '__main__': subprocess.run([sys.executable, 'child.py'], check=True)\n"
    )

    done = asyncsafe_run(project, "script.py", env={"PYTHONPATH": str(site)})

    assert done.stdout.startswith("True ")
    assert "bootstrap" not in done.stdout


def test_a_child_without_asyncsafe_is_left_alone(project: Path) -> None:
    (project / "script.py").write_text(
        "import subprocess, sys\n"
        "print(subprocess.run([sys.executable, '-S', '-c', 'print(1)'], check=True, text=True,"
        " capture_output=True))\n"
    )

    done = asyncsafe_run(project, "script.py")

    assert "stdout='1\\n', stderr=''" in done.stdout


def test_a_run_below_a_run_reports_into_the_outer_one(project: Path) -> None:
    done = asyncsafe_run(project, "-m", "asyncsafe", "run", "script.py")

    assert done.stderr.count("synchronous calls") == 1
    assert "7 synchronous calls" in done.stderr


def test_a_run_below_a_run_keeps_its_own_options(project: Path) -> None:
    (project / "outer.py").write_text(
        "import subprocess, sys\n"
        "inner = [sys.executable, '-m', 'asyncsafe', 'run', '--fail', 'script.py']\n"
        "print(subprocess.run(inner).returncode)\n"
    )

    done = asyncsafe_run(project, "--report", "report.json", "outer.py")

    assert done.stdout == "3\n"
    assert calls(read_report(project))["sqlite3.Connection.execute"] == 3


def test_a_recording_that_is_gone_is_no_outer_run(project: Path) -> None:
    env = {"ASYNCSAFE_RECORDING": "/no/such/directory"}

    assert asyncsafe_run(project, "--fail", "script.py", env=env).returncode == 3


# Servers ----------------------------------------------------------------------------------------


ASGI = """
import sqlite3

connection = sqlite3.connect(":memory:", check_same_thread=False)

def query():
    return connection.execute("SELECT 1").fetchone()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    query()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(project: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A server under `asyncsafe run`, until it answers."""
    server = subprocess.Popen(
        command("run", "--report", "report.json", *arguments),
        cwd=project,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 40
        while True:
            try:
                fetch(port)
                break
            except OSError:
                assert server.poll() is None, server.communicate()[1]
                assert time.monotonic() < deadline, "the server doesn't answer"
                time.sleep(0.05)
        yield server
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def fetch(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        assert response.read() == b"served"


SERVERS = {
    "uvicorn": ["uvicorn", "app:app", "--port", "{port}"],
    "python -m uvicorn": ["-m", "uvicorn", "app:app", "--port", "{port}"],
    "uvicorn --workers": ["uvicorn", "app:app", "--port", "{port}", "--workers", "2"],
    "uvicorn --reload": ["uvicorn", "app:app", "--port", "{port}", "--reload"],
    "gunicorn": ["gunicorn", "app:app", "-b", "127.0.0.1:{port}", "-k", "asgi", "-w", "2"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_is_reported_when_it_is_stopped(project: Path, server: str) -> None:
    (project / "app.py").write_text(ASGI)
    port = free_port()
    arguments = [argument.format(port=port) for argument in SERVERS[server]]

    with serving(project, port, *arguments) as process:
        for _ in range(9):
            fetch(port)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=40)

    assert calls(read_report(project))["sqlite3.Connection.execute"] == 10
    assert "app.py:7 query()" in told
    assert "await asyncsafe.database_sync_to_async(query)(...)" in told


# The baseline ---------------------------------------------------------------------------------

KNOWN = """\
# asyncsafe baseline 1
blocking.py::find sqlite3.Connection.execute
blocking.py::find sqlite3.Cursor.fetchone
blocking.py::gone sqlite3.connect
"""


def entries(project: Path, name: str = "baseline.txt") -> list[str]:
    return [line for line in (project / name).read_text().splitlines() if line[0] != "#"]


def test_known_call_sites_pass_and_new_ones_are_refused(project: Path) -> None:
    (project / "baseline.txt").write_text(KNOWN)

    done = asyncsafe_run(project, "--baseline", "baseline.txt", "script.py")

    assert done.returncode == 1
    assert "SynchronousOnlyOperation: sqlite3.connect()" in done.stderr
    assert "1 new call site:\n  blocking.py::main sqlite3.connect\n" in done.stderr
    assert "not seen" not in done.stderr  # it ended too early to tell
    assert (project / "baseline.txt").read_text() == KNOWN

    (project / "baseline.txt").write_text(KNOWN + "blocking.py::main sqlite3.connect\n")

    done = asyncsafe_run(
        project, "--baseline=baseline.txt", "--fail", "--report=report.json", "script.py"
    )

    assert done.returncode == 0
    assert "Baseline baseline.txt: 7 calls at 3 of 4 known call sites passed." in done.stderr
    assert "1 known call site not seen in this run:\n  blocking.py::gone sqlite3" in done.stderr
    reasons = {site["reason"] for site in read_report(project)["sites"]}
    assert reasons == {"in the baseline baseline.txt"}


def test_fail_counts_what_is_new_alone(project: Path) -> None:
    (project / "baseline.txt").write_text(KNOWN)

    done = asyncsafe_run(project, "--mode=record", "--baseline=baseline.txt", "--fail", "script.py")

    assert done.returncode == 3


def test_the_baseline_is_updated_and_pruned(project: Path) -> None:
    (project / "baseline.txt").write_text(KNOWN)
    update = ("--baseline=baseline.txt", "--update-baseline")

    done = asyncsafe_run(project, *update, "script.py")

    assert done.returncode == 0  # it refuses nothing
    assert "1 new call site, added to it:\n  blocking.py::main sqlite3.connect" in done.stderr
    assert entries(project) == [
        "blocking.py::find sqlite3.Connection.execute",
        "blocking.py::find sqlite3.Cursor.fetchone",
        "blocking.py::gone sqlite3.connect",
        "blocking.py::main sqlite3.connect",
    ]

    (project / "fails.py").write_text("raise SystemExit(5)\n")
    done = asyncsafe_run(project, "--baseline=baseline.txt", "--prune-baseline", "fails.py")

    assert done.returncode == 5
    assert "Nothing was taken out: the program ended with 5." in done.stderr
    assert len(entries(project)) == 4

    done = asyncsafe_run(project, "--baseline=baseline.txt", "--prune-baseline", "script.py")

    assert "1 known call site not seen in this run, taken out of it:" in done.stderr
    assert len(entries(project)) == 3
    before = (project / "baseline.txt").stat()
    asyncsafe_run(project, *update, "--prune-baseline", "script.py")
    assert (project / "baseline.txt").stat() == before  # nothing to change: it isn't written


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_program_that_is_interrupted_takes_nothing_out_of_the_baseline(
    project: Path, name: str
) -> None:
    (project / "baseline.txt").write_text(KNOWN)
    (project / "interrupted.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(60)\n"
    )

    done = asyncsafe_run(project, "--baseline=baseline.txt", "--prune-baseline", "interrupted.py")

    assert "Nothing was taken out: the program was interrupted." in done.stderr
    assert (project / "baseline.txt").read_text() == KNOWN


@pytest.mark.parametrize(
    ("options", "env", "why"),
    [
        ([], {"DJANGO_ALLOW_ASYNC_UNSAFE": "1"}, "DJANGO_ALLOW_ASYNC_UNSAFE allowed everything"),
        (["--mode=off"], {}, "the mode is off"),
    ],
)
def test_what_the_baseline_wasnt_asked_about_stays_in_it(
    project: Path, options: list[str], env: dict[str, str], why: str
) -> None:
    (project / "baseline.txt").write_text(KNOWN)
    arguments = ("--baseline=baseline.txt", "--prune-baseline", *options, "script.py")

    done = asyncsafe_run(project, *arguments, env=env)

    assert f"Nothing was taken out: {why}." in done.stderr
    assert (project / "baseline.txt").read_text() == KNOWN


def test_the_first_baseline_is_written_beside_the_program(project: Path) -> None:
    done = asyncsafe_run(project, "--baseline=baseline.txt", "script.py")

    assert done.returncode == 2
    assert "there is no baseline" in done.stderr
    assert "--update-baseline" in done.stderr

    asyncsafe_run(project, "--baseline=baseline.txt", "--update-baseline", "script.py")

    assert len(entries(project)) == 3
    assert asyncsafe_run(project, "--baseline=baseline.txt", "script.py").returncode == 0


def test_the_baseline_of_pyproject_toml(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.asyncsafe]\nbaseline = "baseline.txt"\n')
    (project / "baseline.txt").write_text(KNOWN)

    done = asyncsafe_run(project, "script.py")

    assert done.returncode == 0  # a first run refuses nothing
    assert "1 new call site:" in done.stderr
    assert asyncsafe_run(project, "--fail", "script.py").returncode == 3
    asyncsafe_run(project, "--update-baseline", "script.py")
    assert asyncsafe_run(project, "--fail", "script.py").returncode == 0
    info = subprocess.run(command("info"), cwd=project, capture_output=True, text=True, check=True)
    assert f"baseline: {project / 'baseline.txt'}, 4 known call sites" in info.stdout


def test_updating_without_a_baseline_is_an_error(project: Path) -> None:
    done = asyncsafe_run(project, "--update-baseline", "script.py")

    assert done.returncode == 2
    assert "Name it with --baseline FILE" in done.stderr


def test_an_update_refuses_nothing_whatever_the_environment_says(project: Path) -> None:
    update = ("--baseline=baseline.txt", "--update-baseline")
    raising = {"ASYNCSAFE_MODE": "raise"}

    done = asyncsafe_run(project, *update, "script.py", env=raising)

    assert done.returncode == 0
    assert len(entries(project)) == 3
    (project / "baseline.txt").unlink()
    done = asyncsafe_run(project, *update, "--mode=raise", "script.py")
    assert done.returncode == 1


def test_an_empty_name_is_no_run_without_a_baseline(project: Path) -> None:
    done = asyncsafe_run(project, "--baseline", "", "script.py")

    assert done.returncode == 2
    assert "--baseline wants a file's name" in done.stderr


def test_a_baseline_that_cant_be_read_is_told(project: Path) -> None:
    (project / "baseline.txt").write_text("# asyncsafe baseline 1\n<<<<<<< HEAD\n")

    done = asyncsafe_run(project, "--baseline=baseline.txt", "--update-baseline", "script.py")

    assert done.returncode == 2
    assert "line 2: a merge conflict was left here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "command"])
def test_children_go_by_the_baseline_and_add_to_it(project: Path, method: str) -> None:
    """In another working directory, too."""
    (project / "pyproject.toml").write_text('[tool.asyncsafe]\nbaseline = "baseline.txt"\n')
    (project / "elsewhere").mkdir()
    start = (
        "subprocess.run([sys.executable, os.path.abspath('script.py')], cwd='elsewhere', check=True)"
        if method == "command"
        else f"p = multiprocessing.get_context('{method}').Process(target=run); p.start(); p.join()"
    )
    (project / "parent.py").write_text(
        "import asyncio, multiprocessing, os, subprocess, sys\n"
        "import blocking\n"
        "def run():\n    asyncio.run(blocking.main())\n"
        f"if __name__ == '__main__':\n    {start}\n"
    )

    asyncsafe_run(project, "--update-baseline", "parent.py")

    assert entries(project) == [
        "blocking.py::find sqlite3.Connection.execute",
        "blocking.py::find sqlite3.Cursor.fetchone",
        "blocking.py::main sqlite3.connect",
    ]
    done = asyncsafe_run(project, "--mode=raise", "parent.py")
    assert "Baseline baseline.txt: 7 calls at 3 of 3 known call sites passed." in done.stderr


# What can't be run --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a script, -m and a module, or an installed command"),
        (["nonsense"], "there is no file nonsense, and no installed command of that name"),
        (["-m", "nonsense"], "there is no module nonsense"),
        (["-m"], "-m: name a module"),
        (["--mode", "loud", "script.py"], "invalid choice: 'loud'"),
        (["--report", "no/where.json", "script.py"], "there is no such directory"),
        (["empty"], "there is no __main__.py in empty"),
        (["true"], "is not a Python program"),
        (["shell.sh"], "is not a Python program"),
        (["-m", ".relative"], "is not a module to run"),
    ],
)
def test_what_cannot_be_run_is_told_and_exits_with_2(
    project: Path, arguments: list[str], told: str
) -> None:
    (project / "empty").mkdir()
    (project / "shell.sh").write_text("#!/bin/sh\necho no\n")

    done = asyncsafe_run(project, *arguments)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "event loop" not in done.stderr


def test_a_bad_mode_in_the_environment_is_told(project: Path) -> None:
    done = asyncsafe_run(project, "script.py", env={"ASYNCSAFE_MODE": "loud"})

    assert done.returncode == 2
    assert "ASYNCSAFE_MODE must be one of raise, warn, record, off" in done.stderr


def test_info_tells_what_is_guarded_and_where_the_mode_comes_from(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.asyncsafe]\nmode = "warn"\n')

    done = subprocess.run(command("info"), cwd=tmp_path, capture_output=True, text=True, check=True)

    assert f"mode: warn ({tmp_path / 'pyproject.toml'})" in done.stdout
    assert "sqlite3      the standard library's" in done.stdout
    assert "psycopg2     2." in done.stdout


def test_the_example_ends_by_itself_and_shows_its_mistakes() -> None:
    root = Path(__file__).parent.parent

    done = asyncsafe_run(root, "--fail", "examples/orders")

    assert done.returncode == 3
    assert "300 requests." in done.stdout
    assert "await asyncsafe.database_sync_to_async(render_page)(...)" in done.stderr
    assert "app.py:45 async pay_order()" in done.stderr


# report -----------------------------------------------------------------------------------------


def asyncsafe_report(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("report", *arguments),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
    )


@pytest.fixture
def recorded(project: Path) -> Path:
    """A project with the report of a run."""
    report_of(project, "script.py")
    return project


def test_reports_of_several_runs_are_merged(recorded: Path) -> None:
    asyncsafe_run(recorded, "--report", "second.json", "script.py")

    done = asyncsafe_report(recorded, "report.json", "second.json")

    assert (done.returncode, done.stderr) == (0, "")
    assert "14 synchronous calls on the event loop, at 3 call sites" in done.stdout
    merged = asyncsafe_report(
        recorded, "report.json", "second.json", "--format", "json", "--output", "report.json"
    )
    assert merged.returncode == 0
    assert calls(read_report(recorded))["sqlite3.Connection.execute"] == 6
    assert read_report(recorded)["command"] == ["script.py"]


def test_the_recordings_of_a_run_that_was_killed_are_read(project: Path) -> None:
    """Nobody was left to write the report: the folder in TMPDIR has all of it."""
    (project / "tmp").mkdir()
    (project / "script.py").write_text(
        "from blocking import *\nimport os\nasyncio.run(main(50))\nos.kill(os.getpid(), 9)\n"
    )
    asyncsafe_run(project, "script.py", env={"TMPDIR": str(project / "tmp")})
    (directory,) = (project / "tmp").iterdir()

    done = asyncsafe_report(project, str(directory), "--format", "json")

    assert calls(json.loads(done.stdout))["sqlite3.Connection.execute"] == 50


FORMATS = {
    "report.txt": "asyncsafe: 7 synchronous calls",
    "report.json": '{\n  "format": 1,',
    "report.sarif": '{\n  "$schema": "https://docs.oasis-open.org/sarif/',
    "report.sarif.json": '{\n  "$schema": "https://docs.oasis-open.org/sarif/',
    "report.html": "<!doctype html>",
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_ending_tells_the_format(recorded: Path, name: str) -> None:
    asyncsafe_report(recorded, "report.json", "--output", f"merged-{name}")
    asyncsafe_run(recorded, "--report", name, "script.py")

    for path in (recorded / f"merged-{name}", recorded / name):
        assert path.read_text(encoding="utf-8").startswith(FORMATS[name])


def test_run_writes_json_whatever_else_the_ending_is(project: Path) -> None:
    asyncsafe_run(project, "--report", "report", "script.py")
    assert json.loads((project / "report").read_text())["format"] == 1


def test_annotations_are_relative_to_the_root(recorded: Path) -> None:
    here = asyncsafe_report(recorded, "report.json", "--format", "github").stdout
    above = asyncsafe_report(
        recorded, "report.json", "--format", "github", "--root", str(recorded.parent)
    ).stdout

    assert "::warning file=blocking.py,line=5," in here
    assert f"::warning file={recorded.name}/blocking.py,line=5," in above


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.json"], "No such file or directory"),
        (["script.py"], "script.py is no report of asyncsafe's"),
        (["report.json", "--output", "no/where.txt"], "there is no such directory"),
        (["report.json", "--output", "report.pdf"], "name the format too, by --format"),
        (["report.json", "--format", "pdf"], "invalid choice: 'pdf'"),
        ([], "the following arguments are required: FILE"),
    ],
)
def test_what_cannot_be_reported_is_told_and_exits_with_2(
    recorded: Path, arguments: list[str], told: str
) -> None:
    done = asyncsafe_report(recorded, *arguments)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT_JINJA2 = (
    "import sys; sys.modules['jinja2'] = None; sys.argv[0] = 'asyncsafe';"
    "from asyncsafe.cli import main; sys.exit(main())"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "report.json", "--format", "html"],
        ["run", "--report", "report.html", "script.py"],
    ],
)
def test_html_without_its_extra_names_it_before_anything_runs(
    recorded: Path, arguments: list[str]
) -> None:
    (recorded / "script.py").write_text("print('it runs')")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JINJA2, *arguments],
        cwd=recorded,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'asyncsafe[cli]'" in done.stderr


def test_a_report_that_cannot_be_written_whole_is_not_written(recorded: Path) -> None:
    before = (recorded / "report.json").read_bytes()
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    limit += "from asyncsafe.cli import main; sys.exit(main())"
    arguments = ["report", "report.json", "--output", "report.json"]

    done = subprocess.run(
        [sys.executable, "-c", limit, *arguments],
        cwd=recorded,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert (recorded / "report.json").read_bytes() == before
    assert [path.name for path in recorded.iterdir() if path.name.startswith(".")] == []


def test_what_was_recorded_is_kept_where_the_report_cannot_be_written(project: Path) -> None:
    (project / "out").mkdir()
    (project / "script.py").write_text(
        "from blocking import *\nimport shutil\nasyncio.run(main())\nshutil.rmtree('out')\n"
    )

    done = asyncsafe_run(project, "--report", "out/report.json", "script.py")

    assert "the report was not written" in done.stderr
    directory = done.stderr.partition("asyncsafe report ")[2].split()[0]
    again = asyncsafe_report(project, directory)
    assert "7 synchronous calls" in again.stdout


def test_a_report_may_go_into_a_pipe_that_nobody_reads_to_its_end(recorded: Path) -> None:
    shell = f"{sys.executable} -m asyncsafe report report.json --format json | head -n 1"
    done = subprocess.run(
        ["sh", "-c", shell], cwd=recorded, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_terminal_without_unicode_is_told_all_the_same(recorded: Path) -> None:
    done = subprocess.run(
        command("report", "report.json"),
        cwd=recorded,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "7 synchronous calls" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is no /dev/stdout here")
def test_a_report_may_be_written_into_a_pipe_by_its_name(recorded: Path) -> None:
    written = asyncsafe_report(recorded, "report.json", "--output=/dev/stdout", "--format=text")
    assert (written.returncode, written.stderr) == (0, "")
    assert "7 synchronous calls" in written.stdout

    run = asyncsafe_run(recorded, "--report=/dev/stdout", "script.py")
    assert json.loads(run.stdout)["format"] == 1
    assert "not written" not in run.stderr


def test_without_a_standard_output_the_other_way_is_told(recorded: Path) -> None:
    shell = f"{sys.executable} -m asyncsafe report report.json >&-"
    done = subprocess.run(
        ["sh", "-c", shell], cwd=recorded, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "standard output is closed: name a file by --output FILE" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode here")
@pytest.mark.parametrize("name", FORMATS)
def test_file_names_neednt_be_utf_8(project: Path, name: str) -> None:
    script = os.fsencode(project) + b"/caf\xe9.py"
    os.rename(project / "script.py", script)

    done = subprocess.run(
        [*command("run", "--report", name), script], cwd=project, capture_output=True, check=False
    )

    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert (project / name).read_text("utf-8").startswith(FORMATS[name])
