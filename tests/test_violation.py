"""What is known of one call: the place, the coroutine, the task, the loop, the statement."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import pickle
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe import Frame, SynchronousOnlyOperation, Violation, async_unsafe, check
from asyncsafe.guards import Guard
from asyncsafe.violation import STACK_LIMIT, STATEMENT_LIMIT
from asyncsafe.wrappers import wrap

from .running import on_loop, python


@async_unsafe
def save() -> None: ...


def refusal(run: Callable[[], object]) -> Violation:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        run()
    return caught.value.violation


def line_of(function: Any, offset: int) -> int:
    return int(function.__code__.co_firstlineno) + offset


# The place ---------------------------------------------------------------------------------------


def test_the_call_site_the_coroutine_and_the_stack() -> None:
    def inner() -> None:
        save()

    def middle() -> None:
        inner()

    async def coroutine() -> None:
        middle()

    async def main() -> None:
        await coroutine()

    violation = refusal(lambda: asyncio.run(main()))
    prefix = "test_the_call_site_the_coroutine_and_the_stack.<locals>."
    frames = [
        Frame(__file__, line_of(inner, 1), prefix + "inner", False),
        Frame(__file__, line_of(middle, 1), prefix + "middle", False),
        Frame(__file__, line_of(coroutine, 1), prefix + "coroutine", True),
        Frame(__file__, line_of(main, 1), prefix + "main", True),
    ]
    assert violation.call_site == frames[0]
    assert violation.coroutine == frames[2]
    assert list(violation.stack[:4]) == frames
    assert violation.whole_stack == ()
    assert violation.importing is None


def test_frames_of_the_standard_library_are_passed_over() -> None:
    def caller() -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(save)

    violation = refusal(lambda: on_loop(caller))
    assert violation.call_site.function.endswith("caller")
    assert {frame.filename for frame in violation.stack[:2]} == {
        __file__,
        str(Path(__file__).with_name("running.py")),
    }


def test_a_coroutine_of_the_standard_library_is_passed_over() -> None:
    class Manager:
        def __enter__(self) -> None: ...

        def __exit__(self, *exc_info: object) -> None:
            save()

    async def mine() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(Manager())

    violation = refusal(lambda: asyncio.run(mine()))
    assert violation.coroutine is not None
    assert violation.coroutine.function.endswith("mine")


def test_installed_packages_are_passed_over(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "framework.py"
    package.parent.mkdir()
    namespace: dict[str, Any] = {"save": save}
    exec(compile("def call():\n    save()", str(package), "exec"), namespace)

    def mine() -> None:
        namespace["call"]()

    violation = refusal(lambda: on_loop(mine))
    assert violation.call_site == Frame(__file__, line_of(mine, 1), mine.__qualname__, False)


def test_file_names_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"save": save}
    exec(compile("def call():\n    save()", "app.py", "exec"), namespace)
    exec(compile("def call2():\n    save()", "<template>", "exec"), namespace)
    assert refusal(lambda: on_loop(namespace["call"])).call_site.filename == str(
        tmp_path / "app.py"
    )
    assert refusal(lambda: on_loop(namespace["call2"])).call_site.filename == "<template>"


def test_the_stack_is_bounded() -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            save()

    violation = refusal(lambda: on_loop(deep, STACK_LIMIT * 3))
    assert len(violation.stack) == STACK_LIMIT
    assert violation.coroutine is not None
    assert violation.coroutine.function.endswith("main")


def test_a_greenlet_leads_back_to_its_coroutine() -> None:
    greenlet = pytest.importorskip("greenlet")

    def inside() -> None:
        save()

    async def main() -> None:
        greenlet.greenlet(inside).switch()

    violation = refusal(lambda: asyncio.run(main()))
    assert violation.call_site.function.endswith("inside")
    assert violation.coroutine is not None
    assert violation.coroutine.function.endswith("main")


# Where there is no coroutine, or no code of the user's ---------------------------------------------


def test_a_callback_has_neither_coroutine_nor_task() -> None:
    def callback() -> None:
        save()

    async def main() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)

    told: list[Violation] = []
    end = asyncsafe.violations.subscribe(told.append)
    try:
        _run(main())
    finally:
        end()
    (violation,) = told
    assert (violation.coroutine, violation.task) == (None, None)
    assert violation.call_site == Frame(__file__, line_of(callback, 1), callback.__qualname__)


def _quiet_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    return loop


def _run(coroutine: Coroutine[Any, Any, Any]) -> None:
    with asyncio.Runner(loop_factory=_quiet_loop) as runner:
        runner.run(coroutine)


def test_without_a_frame_of_the_users_the_whole_stack_is_kept() -> None:
    # A library starts the loop in a thread and hands it a guarded function.
    loop = _quiet_loop()
    told: list[Violation] = []
    end = asyncsafe.violations.subscribe(told.append)
    loop.call_soon(save)
    loop.call_soon(loop.stop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    thread.join()
    loop.close()
    end()
    (violation,) = told
    assert violation.stack == ()
    assert violation.whole_stack[0] == violation.call_site
    assert Path(violation.call_site.filename).name == "events.py"
    text = violation.message()
    assert "No frame on the stack is your own code's. All of it, innermost first:" in text
    assert all(f"in {frame.function}()" in text for frame in violation.whole_stack)


def test_a_program_that_is_installed_is_told_by_its_own_lines() -> None:
    # All of `jupyterhub` is in site-packages, and what calls the driver there is SQLAlchemy.
    asyncsafe.install("psycopg2")  # which makes it a library
    asyncsafe.uninstall("psycopg2")

    def installed(path: str, code: str, **names: Any) -> dict[str, Any]:
        filename = os.path.join(os.sep, "lib", "site-packages", *path.split("/"))
        exec(compile(code, filename, "exec"), names)
        return names

    driver = installed("psycopg2/extras.py", "def execute():\n    save()", save=save)
    orm = installed("hub/orm.py", "def find():\n    execute()", execute=driver["execute"])
    app = installed("hub/app.py", "async def view():\n    find()", find=orm["find"])
    loop = _quiet_loop()
    task = loop.create_task(app["view"]())
    task.add_done_callback(lambda task: loop.stop())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    thread.join()
    loop.close()

    violation = refusal(task.result)
    # As the place, and in the stack.
    assert violation.message().count("hub/orm.py:2 in find()") == 2
    assert [frame.function for frame in violation.stack] == ["find", "view"]
    assert "await asyncsafe.database_sync_to_async(find)(...)" in violation.message()
    assert "under  hub/app.py:2 in async view()" in violation.message()


def test_the_code_that_started_the_loop_did_not_make_the_call() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(save)
        await asyncio.sleep(0)

    told: list[Violation] = []
    end = asyncsafe.violations.subscribe(told.append)
    _run(main())
    end()
    (violation,) = told
    assert violation.call_site.filename != __file__
    assert violation.stack == ()
    assert violation.whole_stack[0] == violation.call_site


def test_a_compiled_loop_that_makes_the_call_itself_is_where_it_was_started() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    told: list[Violation] = []
    end = asyncsafe.violations.subscribe(told.append)
    loop.call_soon(save)
    loop.call_soon(loop.stop)

    def start() -> None:
        loop.run_forever()

    start()
    loop.close()
    end()
    (violation,) = told
    assert violation.call_site == Frame(__file__, line_of(start, 1), start.__qualname__)
    assert violation.coroutine is None


def test_the_module_that_is_being_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orders_package").mkdir()
    (tmp_path / "orders_package" / "__init__.py").write_text("from . import models\n")
    (tmp_path / "orders_package" / "models.py").write_text(
        "import tests.test_violation\n\ntests.test_violation.save()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def load() -> None:
        importlib.import_module("orders_package")

    try:
        violation = refusal(lambda: on_loop(load))
    finally:
        sys.modules.pop("orders_package", None)
        sys.modules.pop("orders_package.models", None)
    assert violation.importing == "orders_package.models"
    models = str(tmp_path / "orders_package" / "models.py")
    assert violation.call_site == Frame(models, 3, "<module>", False)
    text = violation.message()
    assert text.splitlines()[0] == (
        "tests.test_violation.save() was called from a running event loop (asyncio), "
        "while importing orders_package.models."
    )
    place = os.path.join("orders_package", "models.py")
    assert f"at     {place}:3 in the module's own code" in text
    assert "import orders_package.models before the event loop starts" in text


# The loop and the task -----------------------------------------------------------------------------


def test_the_task_is_named() -> None:
    async def main() -> None:
        await asyncio.create_task(work(), name="the orders")

    async def work() -> None:
        save()

    violation = refusal(lambda: asyncio.run(main()))
    assert (violation.loop, violation.loop_type, violation.task) == ("asyncio", None, "the orders")


def test_uvloop_is_named() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        save()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    violation = refusal(run)
    assert (violation.loop, violation.loop_type) == ("asyncio", "uvloop.Loop")
    assert "from a running event loop (asyncio, uvloop.Loop)." in violation.message()


def test_trio_is_named() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        save()

    violation = refusal(lambda: trio.run(main))
    assert (violation.loop, violation.loop_type) == ("trio", None)
    assert violation.task is not None
    assert violation.task.endswith("main")
    assert "from a running event loop (trio)." in violation.message()


# The statement -------------------------------------------------------------------------------------


class Query:
    """What a driver takes besides text."""


def unreadable() -> object:
    raise ValueError("not rendered yet")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: "select 1", "select 1"),
        (
            lambda: "  select *\n    from orders\n\twhere id = ?  ",
            "select * from orders where id = ?",
        ),
        (lambda: b"select '\xc3\xa9'", "select 'é'"),
        (lambda: b"\xff", "�"),
        (lambda: "x" * STATEMENT_LIMIT, "x" * STATEMENT_LIMIT),
        (lambda: "x" * (STATEMENT_LIMIT + 1), "x" * (STATEMENT_LIMIT - 1) + "…"),
        (lambda: "", ""),
        (lambda: None, None),
        (lambda: 3, None),
        (lambda: Query(), None),
        (unreadable, None),
    ],
)
def test_the_statement_is_shortened(read: Callable[[], object], expected: str | None) -> None:
    execute = wrap(lambda: None, Guard("execute", statement=read))
    violation = refusal(lambda: on_loop(execute))
    assert violation.statement == expected
    assert ("\n\n    " + expected + "\n" in violation.message()) if expected else True


# The record itself ---------------------------------------------------------------------------------


def test_a_violation_is_pickled_whole() -> None:
    violation = refusal(lambda: on_loop(save))
    same = pickle.loads(pickle.dumps(violation))
    assert type(same) is Violation
    for name in Violation.__slots__:
        assert getattr(same, name) == getattr(violation, name), name
    assert type(same.call_site) is Frame
    assert same.message() == violation.message()


def test_the_error_is_pickled_with_its_violation() -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(save)
    same = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(same, SynchronousOnlyOperation)
    assert str(same) == str(caught.value) == caught.value.violation.message()
    assert same.violation.call_site == caught.value.violation.call_site


def test_check_is_a_call_of_the_function_that_it_stands_in() -> None:
    async def main() -> None:
        check()

    violation = refusal(lambda: asyncio.run(main()))
    assert violation.operation == main.__qualname__
    assert violation.call_site == violation.coroutine
    assert "database_sync_to_async(main)" not in violation.message()
    assert "moved to a function" in violation.message()


UNREAD = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import asyncio, linecache, pathlib
import asyncsafe, app
opened.clear()
before = set(linecache.cache)
pathlib.Path("app.py").unlink()
asyncsafe.configure(mode="record")
asyncio.run(app.main())
(site,) = asyncsafe.violations
text = site.violation.message()
assert "app.py:7 in query()" in text, text
assert set(linecache.cache) == before, set(linecache.cache) - before
assert not [name for name in opened if name.endswith("app.py")], opened
"""

APP = """\
import asyncsafe

@asyncsafe.async_unsafe
def save(): ...

def query():
    save()

async def main():
    query()
"""


def test_no_source_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    python(UNREAD, tmp_path, PYTHONDONTWRITEBYTECODE="1")
