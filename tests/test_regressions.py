"""What once went wrong, each as its story: found by review, before the first release."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import sqlite3
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import asyncsafe

from . import running
from .running import on_loop


def python(code: str, cwd: Path) -> str:
    return str(running.python(textwrap.dedent(code), cwd).stdout)


def test_a_method_named_run_forever_is_not_the_loop(guarded: None) -> None:
    """Clean-up on an error's way out was refused below any method of that name."""
    connection = sqlite3.connect(":memory:")

    class Worker:
        async def run_forever(self) -> str:
            try:
                raise ValueError
            except ValueError:
                connection.rollback()
            return "let through"

    assert asyncio.run(Worker().run_forever()) == "let through"


def test_clean_up_below_an_await_method_is_let_through(guarded: None) -> None:
    connection = sqlite3.connect(":memory:")

    async def clean_up() -> None:
        connection.rollback()

    class Awaitable:
        def __await__(self) -> Any:
            yield from clean_up().__await__()

    async def handler() -> str:
        try:
            raise ValueError
        except ValueError:
            await Awaitable()
        return "let through"

    assert asyncio.run(handler()) == "let through"


def test_a_decorator_of_many_tasks_ends_each_scope_by_itself() -> None:
    """They shared one list of entries: leaving took time in the square of the tasks, and under
    threads the entry of another."""
    inside = []

    @asyncsafe.async_unsafe
    def query() -> None:
        inside.append(None)

    @asyncsafe.allow("each")
    async def allowed(turn: int) -> None:
        await asyncio.sleep(0)
        query()

    async def main() -> None:
        await asyncio.gather(*(allowed(turn) for turn in range(2000)))
        with pytest.raises(asyncsafe.SynchronousOnlyOperation):
            query()

    asyncio.run(main())
    assert len(inside) == 2000


def test_threads_that_share_a_scope_keep_their_own() -> None:
    scope = asyncsafe.forbid()
    asyncsafe.configure(mode="off")
    wrong = []

    @asyncsafe.async_unsafe
    def query() -> None:
        wrong.append(None)

    async def main() -> None:
        with scope, pytest.raises(asyncsafe.SynchronousOnlyOperation):
            query()

    def work() -> None:
        for _ in range(20):
            asyncio.run(main())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_library_that_another_thread_is_importing_is_guarded(tmp_path: Path) -> None:
    """Its import had begun before anybody watched for it, and nobody looked again."""
    (tmp_path / "slow.py").write_text(
        "import threading\nbegun.set()\ngo_on.wait(20)\nfinished = True\n"
    )
    told = python(
        f"""
        import builtins, sys, threading
        sys.path.insert(0, {str(tmp_path)!r})
        builtins.begun, builtins.go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=__import__, args=["slow"])
        thread.start()
        begun.wait(20)
        threading.Timer(0.1, go_on.set).start()
        from asyncsafe.imports import when_imported
        when_imported("slow", lambda module: print(module.finished))
        thread.join()
        """,
        tmp_path,
    )
    assert told.strip() == "True"


def test_exempt_runs_no_code_of_the_users() -> None:
    """It asked everything that is guarded for a `connection`."""

    class Repository:
        @property
        def connection(self) -> Any:
            raise AssertionError("asked")

        @asyncsafe.async_unsafe
        def find(self) -> str:
            return "found"

    exempted = sqlite3.connect(":memory:")
    asyncsafe.exempt(exempted)
    with pytest.raises(asyncsafe.SynchronousOnlyOperation):
        on_loop(Repository().find)


def test_a_guarded_c_method_is_pickled_by_name(guarded: None) -> None:
    assert pickle.loads(pickle.dumps(sqlite3.Cursor.execute)) is sqlite3.Cursor.execute


def test_a_child_forked_inside_a_guarded_call_is_guarded(tmp_path: Path) -> None:
    told = python(
        """
        import asyncio, os, asyncsafe

        @asyncsafe.async_unsafe
        def query(): return "missed"

        async def main():
            try: print(query(), flush=True)
            except asyncsafe.SynchronousOnlyOperation: print("refused", flush=True)

        @asyncsafe.async_unsafe
        def start():
            child = os.fork()
            if child: os.waitpid(child, 0)
            else:
                asyncio._set_running_loop(None)
                asyncio.run(main())
                os._exit(0)

        async def allowed():
            with asyncsafe.allow("it forks"): start()

        asyncio.run(allowed())
        """,
        tmp_path,
    )
    assert told.strip() == "refused"


def test_a_finalizer_inside_the_recorder_leaves_the_recording_whole(tmp_path: Path) -> None:
    """The garbage collector may run anywhere: here, while a call site is being written down."""
    told = python(
        f"""
        import asyncio, gc, json, sqlite3, asyncsafe
        from asyncsafe.reports import recording

        class Holder:
            def __init__(self): self.connection, self.me = sqlite3.connect(":memory:"), self
            def __del__(self): self.connection.close()

        describe = recording._description
        def collecting(site):
            gc.collect()
            return describe(site)
        recording._description = collecting

        recording.record_into({str(tmp_path)!r})
        asyncsafe.install()
        asyncsafe.configure(mode="record")
        connection = sqlite3.connect(":memory:")
        gc.disable()
        Holder()

        async def main():
            for _ in range(5):
                connection.execute("SELECT 1")

        asyncio.run(main())
        sites = recording.read_recordings({str(tmp_path)!r})["sites"]
        print(json.dumps({{site["operation"]: site["calls"] for site in sites}}))
        """,
        tmp_path,
    )
    assert json.loads(told) == {"sqlite3.Connection.execute": 5}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'tool = "x"', "must be a table"),
        (b"[tool.asyncsafe]\nmode = '\xff'", "is not valid TOML"),
    ],
)
def test_a_broken_pyproject_toml_is_a_configuration_error(
    tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    printed = python(
        f"""
        import os, asyncsafe
        os.chdir({str(tmp_path)!r})
        try: asyncsafe.install()
        except asyncsafe.ConfigurationError as error: print(error)
        """,
        tmp_path,
    )
    assert told in printed


def test_a_working_directory_that_is_gone_has_no_settings(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    printed = python(
        f"""
        import os, asyncsafe
        os.chdir({str(gone)!r})
        os.rmdir({str(gone)!r})
        asyncsafe.install()
        print("installed")
        """,
        tmp_path,
    )
    assert printed.strip() == "installed"


def test_nothing_is_left_to_collect() -> None:
    """A refusal keeps no frame alive but through its own traceback."""

    @asyncsafe.async_unsafe
    def query() -> None: ...

    on_refused = []

    async def main() -> None:
        try:
            query()
        except asyncsafe.SynchronousOnlyOperation as error:
            on_refused.append(pickle.loads(pickle.dumps(error)))

    asyncio.run(main())
    gc.collect()
    assert str(on_refused[0]).startswith("tests.test_regressions.")
