"""%load_ext asyncsafe, in real Jupyter kernels and in IPython's terminal."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

Notebook = Callable[..., list[str]]

#: A kernel takes seconds to start, and a busy machine minutes.
pytestmark = pytest.mark.timeout(300)

START = """\
%load_ext asyncsafe
import asyncio, sqlite3
import asyncsafe

db = sqlite3.connect("orders.db", check_same_thread=False)
db.execute("CREATE TABLE IF NOT EXISTS orders (id)")

def count():
    return db.execute("SELECT count(*) FROM orders").fetchone()[0]

async def job():
    await asyncio.sleep(0)
    return count()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels and IPython start, with IPython's own files: nobody's profile or history."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path


@pytest.fixture
def notebook(home: Path) -> Notebook:
    """Run cells in a kernel of their own. Returns what each printed and displayed; errors, too."""

    def run(*cells: str) -> list[str]:
        sources = [textwrap.dedent(cell).strip() for cell in cells]
        document = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
        nbclient.NotebookClient(
            document,
            kernel_name="python3",
            allow_errors=True,
            timeout=120,
            resources={"metadata": {"path": str(home)}},
        ).execute()
        return ["".join(map(shown, cell.outputs)).strip() for cell in document.cells]

    return run


def shown(output: Any) -> str:
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return str(output.text if output.output_type == "stream" else output.data["text/plain"])


@pytest.fixture
def kernel(home: Path) -> Iterator[BlockingKernelClient]:
    """A client's end of a kernel, for what a notebook's user interface does beside cells."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(home))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def execute(kernel: BlockingKernelClient, code: str, **options: Any) -> str:
    """Run a cell. Returns what it printed and displayed."""
    outputs: list[str] = []

    def output(message: dict[str, Any]) -> None:
        if message["msg_type"] in {"error", "execute_result", "stream"}:
            content = nbformat.from_dict(message["content"])
            outputs.append(
                shown(nbformat.from_dict({"output_type": message["msg_type"], **content}))
            )

    kernel.execute_interactive(textwrap.dedent(code), timeout=120, output_hook=output, **options)
    return "".join(outputs).strip()


def terminal(home: Path, *cells: str) -> list[str]:
    """Type cells, each a line, into IPython's terminal. Returns what it showed after each."""
    (home / "start.py").write_text(START.partition("\n")[2])
    typed = ["%load_ext asyncsafe", "from start import *", *cells, "exit"]
    result = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
        cwd=home,
        input="\n".join(typed),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert not result.stderr
    _, _, _, *shown, _ = re.split(r"In \[\d+\]: ", result.stdout)
    return [re.sub(r"^Out\[\d+\]: ", "", output.strip()) for output in shown]


# Cells ---------------------------------------------------------------------------------------------


def test_cells_may_use_the_database(notebook: Notebook) -> None:
    assert notebook(
        START + "print(count())",  # the very cell that loads it
        "count()",
        "await asyncio.sleep(0); count()",
        "print(count()); await asyncio.sleep(0); count()",
        "[count() for _ in range(2)]",
        "await job()",
        "async with asyncio.timeout(60):\n    print(await job())",
        "get_ipython().run_cell('print(count())')\ncount()",
    ) == ["0", "0", "0", "0\n0", "[0, 0]", "0", "0", "0\n0"]


def test_what_is_displayed_may_use_it(notebook: Notebook) -> None:
    """As QuerySet.__repr__ does, when the cell's own code has run."""
    results = notebook(
        START,
        """
        class Orders:
            def __repr__(self):
                return f"{count()} orders"

        class Table(Orders):
            def _repr_html_(self):
                return f"<b>{count()}</b>"
        """,
        "Orders()",
        "Table()",
        "await asyncio.sleep(0)\nOrders()",
    )
    assert results[2:] == ["0 orders"] * 3


def test_each_call_is_recorded_with_the_reason(notebook: Notebook) -> None:
    """And named by the cell, as IPython's own tracebacks do."""
    *_, seen, told = notebook(
        START,
        "for _ in range(3):\n    count()",
        "sites = list(asyncsafe.violations)\n"
        "print([(s.calls, s.outcomes, s.violation.reason) for s in sites if s.calls == 3])",
        "print(sites[-1].violation.message())",
    )
    assert seen == str([(3, {"allowed": 3}, "a notebook cell")] * 2)
    assert "at     Cell In[1]:9 in count()" in told


# What cells start ----------------------------------------------------------------------------------


def refused(output: str) -> bool:
    return "SynchronousOnlyOperation: sqlite3.Connection.execute() was called" in output


def test_tasks_are_refused(notebook: Notebook) -> None:
    results = notebook(
        START,
        "await asyncio.create_task(job())",
        "await asyncio.gather(job(), asyncio.sleep(0))",
        "async with asyncio.TaskGroup() as group:\n    task = group.create_task(job())",
        "task.result()",
        """
        import sys
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            eager = asyncio.eager_task_factory(loop, job())  # it begins in the cell's own call
        else:
            eager = asyncio.create_task(job())
        await eager
        """,
        "import nest_asyncio\nnest_asyncio.apply()\nasyncio.run(job())",
        "count()",
    )
    assert refused(results[1])
    assert refused(results[2])
    assert "ExceptionGroup" in results[3]
    assert refused(results[4])
    assert refused(results[5])
    assert refused(results[6])
    assert "under  Cell In[1]:13 in async job()      task 'Task-" in results[1]
    assert results[7] == "0"


def test_eager_tasks_are_refused_before_they_wait(notebook: Notebook) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks are new in 3.12")
    *_, result = notebook(
        START,
        """
        async def at_once():
            return count()

        await asyncio.eager_task_factory(asyncio.get_running_loop(), at_once())
        """,
    )
    assert refused(result)


def test_a_task_of_an_earlier_cell_is_refused_while_a_later_one_awaits(notebook: Notebook) -> None:
    _, _, waiting, result = notebook(
        START,
        """
        go, done = asyncio.Event(), asyncio.Event()

        async def background():
            await go.wait()
            try:
                return count()
            finally:
                done.set()

        task = asyncio.create_task(background())
        """,
        "print(count())\ngo.set()\nawait done.wait()\ncount()",
        "await task",
    )
    assert waiting == "0\n0"
    assert refused(result)


def test_callbacks_of_the_loop_are_refused(notebook: Notebook) -> None:
    *_, result = notebook(
        START,
        """
        called = asyncio.get_running_loop().create_future()

        def callback():
            try:
                called.set_result(count())
            except Exception as error:
                called.set_exception(error)

        asyncio.get_running_loop().call_soon(callback)
        await called
        """,
    )
    assert refused(result)


def test_threads_are_none_of_it(notebook: Notebook) -> None:
    assert notebook(
        START,
        "await asyncio.to_thread(count)",
        "await asyncsafe.database_sync_to_async(count)()",
        "async def main():\n    return await asyncsafe.database_sync_to_async(count)()\n\n"
        "await asyncio.create_task(main())",
    )[1:] == ["0", "0", "0"]


def test_a_cell_can_be_strict(notebook: Notebook) -> None:
    """To try what an application on a server would be told."""
    _, strict, after = notebook(
        START, "with asyncsafe.forbid():\n    await job()", "await asyncio.sleep(0)\ncount()"
    )
    assert refused(strict)
    assert after == "0"


# Cells that end otherwise --------------------------------------------------------------------------


ERRORS = {
    "1 / 0": "ZeroDivisionError",
    "await asyncio.sleep(0)\n1 / 0": "ZeroDivisionError",
    "count)": "SyntaxError",
    "db.execute('SELECT nothing')": "OperationalError",
    "import signal\nsignal.raise_signal(signal.SIGINT)": "KeyboardInterrupt",
    "import os\nos.kill(os.getpid(), signal.SIGINT)\nawait asyncio.sleep(60)": "CancelledError",
    "raise SystemExit(1)": "SystemExit",
    "%nothing": "UsageError",
}


def test_after_an_error_all_is_as_before(notebook: Notebook) -> None:
    after = (
        "count(), len(__import__('asyncsafe.ipython').ipython._cells.under_way)",
        "await asyncio.create_task(job())",
    )
    results = notebook(START, *itertools.chain.from_iterable((cell, *after) for cell in ERRORS))[1:]
    for error, failed, cell, task in zip(
        ERRORS.values(), results[::3], results[1::3], results[2::3], strict=True
    ):
        assert error in failed
        assert cell == "(0, 1)", "the cell that asks is the only one under way"
        assert refused(task)


# Cells and connections -----------------------------------------------------------------------------


def test_a_transaction_goes_on_in_the_next_cell(notebook: Notebook) -> None:
    """Each has a task of its own, but they are one user: nobody shares a connection."""
    results = notebook(
        START,
        "db.execute('INSERT INTO orders VALUES (1)'); None",
        "await asyncio.sleep(0)\ndb.execute('INSERT INTO orders VALUES (2)'); None",
        "count()",
        "await asyncio.sleep(0)\ndb.commit()",
        "db.in_transaction",
    )
    assert results == ["", "", "", "2", "", "False"]


def test_a_task_in_the_cells_transaction_is_told(notebook: Notebook) -> None:
    *_, told = notebook(
        START,
        "%asyncsafe record\ndb.execute('INSERT INTO orders VALUES (1)'); None",
        "await asyncio.create_task(job())",
        "%asyncsafe report",
    )
    assert "2 calls on a connection with another task's open transaction" in told
    assert "Cell In[2]:2 the cell itself" in told


CONNECTIONS = """
connections = asyncsafe.ConnectionHandler({"default": lambda: sqlite3.connect("orders.db")})

def mine():
    return connections["default"]

async def theirs():
    return connections["default"]

first = mine()
"""


def test_cells_have_one_connection(notebook: Notebook) -> None:
    results = notebook(
        START + CONNECTIONS,
        "mine() is first",
        "await asyncio.sleep(0); mine() is first",
        "%asyncsafe off\nawait asyncio.create_task(theirs()) is first",
        "mine() is first, first.execute('SELECT 1').fetchone()",
    )
    assert results[1:] == ["True", "True", "mode: off\nFalse", "(True, (1,))"]


# %asyncsafe ----------------------------------------------------------------------------------------


def test_the_magic_shows_and_sets_the_mode(notebook: Notebook) -> None:
    _, status, record, made, warned, warning, wrong = notebook(
        START,
        "%asyncsafe",
        "%asyncsafe record",
        "await asyncio.create_task(job())",
        "%asyncsafe warn",
        "await asyncio.create_task(job())",
        "%asyncsafe strict",
    )
    assert status.splitlines() == [
        "mode: raise (default)",
        "cells may use the database; the tasks and callbacks that they start go by the mode",
        "guarded: sqlite3",
        "recorded: 2 calls, 0 of them refused (%asyncsafe report)",
    ]
    assert (record, made) == ("mode: record", "0")
    assert warned == "mode: warn"
    assert "AsyncUnsafeWarning: sqlite3.Connection.execute() blocks" in warning
    assert wrong == "UsageError: %asyncsafe takes raise, warn, record, off or report, not 'strict'"


def test_the_report_keeps_cells_and_tasks_apart(notebook: Notebook) -> None:
    _, nothing, _, report = notebook(
        START, "%asyncsafe report", "await asyncio.create_task(job())", "%asyncsafe report"
    )
    assert nothing.startswith("asyncsafe: nothing blocked the event loop.\n\nCalls of the cells")
    assert "1 synchronous call on the event loop, at 1 call site; all were refused." in report
    assert "Cell In[1]:9 count()  Cell In[1]:13 async job()" in report
    assert "Calls of the cells themselves: 2, " in report


def test_the_environments_override_is_told(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It allows tasks, too; shell_plus --notebook sets it."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    loaded, status, task, _, guarded = notebook(
        START,
        "%asyncsafe",
        "await asyncio.create_task(job())",
        "import os\ndel os.environ['DJANGO_ALLOW_ASYNC_UNSAFE']",
        "await asyncio.create_task(job())",
    )
    note = (
        "DJANGO_ALLOW_ASYNC_UNSAFE=true allows tasks, too: "
        "del os.environ['DJANGO_ALLOW_ASYNC_UNSAFE'] has them guarded"
    )
    assert loaded == note
    assert status.endswith(note)
    assert task == "0"
    assert refused(guarded)


# Loading and unloading -----------------------------------------------------------------------------

STATE = """
import asyncsafe.policy, asyncsafe.messages, asyncsafe.violation, sqlite3

def state():
    shell = get_ipython()
    return (
        sqlite3.Connection.execute,
        asyncsafe.policy.current_mode(),
        asyncsafe.messages.cell_name,
        {name: list(calls) for name, calls in shell.events.callbacks.items()},
        shell.find_line_magic("asyncsafe"),
        set(asyncsafe.violation.shells),
        hasattr(shell.magics_manager.user_magics, "asyncsafe"),
    )

before = state()
"""


def test_unloading_puts_everything_back(notebook: Notebook) -> None:
    results = notebook(
        STATE,
        START + "changed = state()\n[a == b for a, b in zip(before, changed)]",
        "%asyncsafe warn",
        "%unload_ext asyncsafe\nstate() == before",
        "state() == before",
        "await asyncio.create_task(job())",
        "%load_ext asyncsafe\ncount()",
        "await asyncio.create_task(job())",
    )
    assert results[1] == "[False, True, False, False, False, False, False]"
    assert results[3:6] == ["True", "True", "0"]
    assert results[6] == "0"
    assert refused(results[7])


def test_unloading_leaves_what_was_there_before(notebook: Notebook) -> None:
    results = notebook(
        "import asyncsafe\nasyncsafe.install()\nasyncsafe.configure(mode='record')",
        START,
        "%asyncsafe raise",
        "%unload_ext asyncsafe\nasyncsafe.policy.current_mode()",
        "asyncsafe.configure(mode='raise')",
        "count()",
        "%load_ext asyncsafe\ncount()",
        "%unload_ext asyncsafe\ncount()",
    )
    assert results[3] == "('record', 'configure()')"
    assert refused(results[5]), "cells are guarded again, as they were"
    assert results[6] == "0"
    assert refused(results[7]), "from the next line on"


def test_reloading(notebook: Notebook) -> None:
    results = notebook(
        STATE, START, "%reload_ext asyncsafe\ncount()", "await job()", "await asyncio.create_task(job())",
        "%unload_ext asyncsafe", "state() == before",
    )  # fmt: skip
    assert results[2:4] == ["0", "0"]
    assert refused(results[4])
    assert results[6] == "True"


def test_a_profile_can_load_it(notebook: Notebook, home: Path) -> None:
    profile = home / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(
        "c.InteractiveShellApp.extensions = ['asyncsafe']"
    )
    _, direct, task = notebook(
        START.replace("%load_ext asyncsafe\n", ""), "count()", "await asyncio.create_task(job())"
    )
    assert direct == "0"
    assert refused(task)


# Beside cells --------------------------------------------------------------------------------------


def test_callbacks_of_widgets_may_use_the_database(kernel: BlockingKernelClient) -> None:
    """They are the notebook's code, which its user has asked for."""
    comm = make_button(kernel)
    click(kernel, comm)
    assert execute(kernel, "clicks") == "[0]"
    assert refused(execute(kernel, "await asyncio.create_task(job())"))


def test_so_may_they_while_a_cell_awaits(kernel: BlockingKernelClient) -> None:
    if int(version("ipykernel").partition(".")[0]) < 7:
        pytest.skip("this kernel calls them when the cell has ended")
    comm = make_button(kernel)
    kernel.execute("count(); await clicked.wait(); clicks.append(count())")
    click(kernel, comm)
    assert execute(kernel, "clicks") == "[0, 0]"
    assert refused(execute(kernel, "await asyncio.create_task(job())"))


def make_button(kernel: BlockingKernelClient) -> str:
    """What a widget has at both its ends: a comm, whose name this returns."""
    execute(kernel, START)
    return execute(
        kernel,
        """
        from comm import create_comm
        clicks, clicked = [], asyncio.Event()

        def on_click(message):
            clicks.append(count())
            clicked.set()

        button = create_comm(target_name="button")
        button.on_msg(on_click)
        print(button.comm_id)
        """,
    )


def click(kernel: BlockingKernelClient, comm: str) -> None:
    kernel.shell_channel.send(kernel.session.msg("comm_msg", {"comm_id": comm, "data": {}}))


def test_what_runs_unseen_may_use_it(kernel: BlockingKernelClient) -> None:
    """A user interface's list of variables is made by such cells."""
    execute(kernel, START)
    assert execute(kernel, "print(count())", silent=True) == "0"
    assert execute(kernel, "await asyncio.sleep(0); print(count())", silent=True) == "0"


def test_the_kernels_own_history_goes_on(kernel: BlockingKernelClient) -> None:
    execute(kernel, START)
    assert execute(kernel, "count()") == "0"
    reply = kernel.history(hist_access_type="tail", n=1, reply=True, timeout=120)
    assert reply["content"]["status"] == "ok"
    assert reply["content"]["history"][0][2] == "count()"


def test_subshells_have_cells_of_their_own(kernel: BlockingKernelClient) -> None:
    """Threads, each with a loop: a cell that ends in one takes nothing from a cell in the other."""
    info = kernel.kernel_info(reply=True, timeout=120)["content"]
    if "kernel subshells" not in info.get("supported_features", []):
        pytest.skip("this kernel has no subshells")
    execute(kernel, START)
    kernel.control_channel.send(kernel.session.msg("create_subshell_request"))
    created = kernel.get_control_msg(timeout=120)["content"]
    execute(
        kernel,
        """
        import threading
        begun, ended, done = threading.Event(), threading.Event(), threading.Event()
        seen = []
        """,
    )
    kernel.execute("print('begun')\nawait asyncio.to_thread(begun.wait)\nseen.append(count())")
    while kernel.get_iopub_msg(timeout=120)["content"].get("text", "").strip() != "begun":
        pass
    code = "begun.set()\nawait asyncio.to_thread(ended.wait)\nseen.append(count())\ndone.set()"
    message = kernel.session.msg("execute_request", {"code": code, "silent": True})
    message["header"]["subshell_id"] = created["subshell_id"]
    kernel.shell_channel.send(message)
    execute(kernel, "ended.set()\nassert done.wait(60)")  # when the main shell's cell has ended
    assert execute(kernel, "seen") == "[0, 0]"


# Django and SQLAlchemy -----------------------------------------------------------------------------

SETTINGS = """
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "django.db",
        "OPTIONS": {"init_command": "PRAGMA synchronous = OFF"},
    }
}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
USE_TZ = True
"""

DJANGO = """
import django, os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysettings")
django.setup()
from django.core.management import call_command
from django.contrib.auth.models import Group
"""

USE_DJANGO = (
    "call_command('migrate', verbosity=0)",
    "Group.objects.create(name='staff')",
    "Group.objects.all()",
    "await Group.objects.acount(), Group.objects.count()",
    """
    from django.db import transaction
    with transaction.atomic():
        Group.objects.create(name='admins')
    Group.objects.count()
    """,
    "import asyncio\nasync def job():\n    return Group.objects.count()\n\nawait job()",
    "await asyncio.create_task(job())",
    "from django.core.exceptions import SynchronousOnlyOperation as Refused\n"
    "try:\n    await asyncio.create_task(job())\nexcept Refused:\n    print('refused')",
)


def use_django(results: list[str]) -> None:
    _, created, listed, counted, in_transaction, in_cell, in_task, caught = results
    assert created == "<Group: staff>"
    assert listed == "<QuerySet [<Group: staff>]>"
    assert counted == "(1, 1)"
    assert in_transaction == "2"
    assert in_cell == "2"
    assert in_task.startswith("SynchronousOnlyOperation: ")
    assert "Group" in in_task
    assert caught == "refused"


@pytest.mark.parametrize("first", ["django", "asyncsafe"])
def test_a_django_notebook(notebook: Notebook, home: Path, first: str) -> None:
    (home / "mysettings.py").write_text(SETTINGS)
    load = "%load_ext asyncsafe\n"
    start = DJANGO + load if first == "django" else load + DJANGO
    use_django(notebook(start, *USE_DJANGO)[1:])


def test_a_kernel_that_starts_with_django(notebook: Notebook, home: Path) -> None:
    """As shell_plus starts one: settings and models come with the profile."""
    (home / "mysettings.py").write_text(SETTINGS)
    startup = home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-django.py").write_text(DJANGO)
    use_django(notebook("%load_ext asyncsafe", *USE_DJANGO)[1:])


def test_sqlalchemy(notebook: Notebook) -> None:
    _, _, added, listed, loaded, task = notebook(
        "%load_ext asyncsafe",
        """
        import asyncio
        from sqlalchemy import create_engine, select
        from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

        class Base(DeclarativeBase): ...

        class Order(Base):
            __tablename__ = "orders"
            id: Mapped[int] = mapped_column(primary_key=True)

        engine = create_engine("sqlite:///orders.db")
        Base.metadata.create_all(engine)
        session = Session(engine)
        """,
        "session.add(Order(id=1))\nsession.flush()",
        "await asyncio.sleep(0)\n[order.id for order in session.scalars(select(Order))]",
        "session.commit()\nsession.get(Order, 1).id",
        "async def job():\n    return session.scalars(select(Order)).all()\n\n"
        "await asyncio.create_task(job())",
    )
    assert (added, listed, loaded) == ("", "[1]", "1")
    assert task.startswith("SynchronousOnlyOperation: ")


# In a terminal -------------------------------------------------------------------------------------


def test_cells_of_the_terminal(home: Path) -> None:
    """Its loop runs for those that await alone."""
    results = terminal(
        home,
        "count()",
        "await asyncio.sleep(0); count()",
        "[count() for _ in range(2)]",
        "await job()",
        "await asyncio.create_task(job())",
        "asyncio.run(job())",
        "await asyncio.sleep(0); db.execute('INSERT INTO orders VALUES (1)').rowcount",
        "db.commit(); count()",
        "await asyncio.sleep(0); count()",
        "%unload_ext asyncsafe",
        "await asyncio.create_task(job())",
    )
    assert results[:4] == ["0", "0", "[0, 0]", "0"]
    assert refused(results[4])
    assert refused(results[5])
    assert results[6:9] == ["1", "1", "1"]
    assert results[10] == "1"


def test_a_task_of_an_earlier_cell_in_the_terminal(home: Path) -> None:
    results = terminal(
        home,
        "go = asyncio.Event(); task = None",
        "async def background(): await go.wait(); return count()",
        "",
        "await asyncio.sleep(0); task = asyncio.create_task(background())",
        "go.set(); await asyncio.sleep(0); count()",
        "await task",
    )
    assert "0" in results
    assert refused(results[-1])


def test_cells_of_the_terminal_have_one_connection(home: Path) -> None:
    (home / "more.py").write_text("from start import *\n" + CONNECTIONS)
    results = terminal(
        home,
        "from more import *",
        "mine() is mine()",
        "mine().execute('SELECT 1').fetchone()",
        "await asyncio.sleep(0); mine().execute('SELECT 1').fetchone()",
        "one = mine()",
        "await asyncio.sleep(0); mine() is one",
        "mine() is one",
        "%asyncsafe off",
        "await asyncio.create_task(theirs()) is one",
    )
    assert results[1:4] == ["True", "(1,)", "(1,)"]
    assert results[5:7] == ["True", "True"]
    assert results[8] == "False"


def test_trio_in_the_terminal(home: Path) -> None:
    results = terminal(
        home,
        "%autoawait trio",
        "import trio",
        "await trio.sleep(0); count()",
        "async def job(): count()",
        "",
        "async def main():  return await trio.lowlevel.checkpoint(), count()",
        "",
        "await main()",
    )
    assert results[2] == "0"
    assert results[-1] == "(None, 0)"


def test_ipython_without_the_extension_is_guarded(home: Path) -> None:
    """What loads it is the extension alone: a cell is a coroutine like any other."""
    results = terminal(
        home, "%unload_ext asyncsafe", "asyncsafe.install()", "await asyncio.sleep(0); count()"
    )
    assert refused(results[-1])


# docs/guides/notebooks.md --------------------------------------------------------------------------

_CELL = re.compile(
    r"^```ipython\n(.*?)^```$(?:\n\n<!-- not run: what it shows[^\n]*-->\n```\n(.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


def test_the_guide_shows_what_happens(notebook: Notebook) -> None:
    page = (Path(__file__).parent.parent / "docs" / "guides" / "notebooks.md").read_text()
    cells = _CELL.findall(page)
    results = notebook(*(cell for cell, _ in cells))
    for (cell, output), result in zip(cells, results, strict=True):
        told = re.sub(r"Task-\d+", "Task-5", result)
        assert told == output.strip(), cell
