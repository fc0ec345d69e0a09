"""The message: its text, line by line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncsafe import Frame, SynchronousOnlyOperation, Violation, allow, async_unsafe, check
from asyncsafe.messages import describe, headline, place

from .running import on_loop

# The design's example ------------------------------------------------------------------------------

REPOSITORY = """\
import sqlite3

connection = sqlite3.connect(":memory:", check_same_thread=False)










def find_orders(customer):
    cursor = connection.cursor()
    statement = "SELECT id, total\\n    FROM orders WHERE customer = ?"
    cursor.execute(statement, (customer,))
"""

VIEWS = (
    "import asyncio\nfrom app import repository\n"
    + "\n" * 38
    + """\
async def list_orders():
    repository.find_orders("me")

async def serve():
    await asyncio.create_task(list_orders(), name="Task-3")
"""
)

EXPECTED = """\
sqlite3.Cursor.execute() was called from a running event loop (asyncio).

    SELECT id, total FROM orders WHERE customer = ?

    at     app/repository.py:17 in find_orders()
    under  app/views.py:42 in async list_orders()      task 'Task-3'

  Run it in a thread:  await asyncsafe.database_sync_to_async(find_orders)(...)
  or allow it here:    with asyncsafe.allow("..."):"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that is called app, in the working directory."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "app"
    for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
        del sys.modules[name]


@pytest.mark.skipif(os.sep != "/", reason="the design writes paths with slashes")
def test_the_example_of_the_design(app: Path, guarded: None) -> None:
    import asyncio
    import importlib

    (app / "repository.py").write_text(REPOSITORY)
    (app / "views.py").write_text(VIEWS)
    views: Any = importlib.import_module("app.views")
    with pytest.raises(SynchronousOnlyOperation) as caught:
        asyncio.run(views.serve())
    assert str(caught.value) == EXPECTED
    views.repository.connection.close()


# Line by line --------------------------------------------------------------------------------------


def violation(**changes: Any) -> Violation:
    site = Frame("/app/orders.py", 3, "Orders.find", False)
    view = Frame("/app/views.py", 9, "view", True)
    facts: dict[str, Any] = {
        "operation": "sqlite3.Cursor.execute",
        "library": "sqlite3",
        "statement": "select 1",
        "headline": None,
        "hint": None,
        "loop": "asyncio",
        "loop_type": None,
        "task": "Task-1",
        "call_site": site,
        "coroutine": view,
        "stack": (site, view),
        "whole_stack": (),
        "importing": None,
        "outcome": "raised",
        "reason": None,
    }
    return Violation(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "first_line"),
    [
        ({}, "sqlite3.Cursor.execute() was called from a running event loop (asyncio)."),
        (
            {"loop_type": "uvloop.Loop"},
            "sqlite3.Cursor.execute() was called from a running event loop (asyncio, uvloop.Loop).",
        ),
        (
            {"loop": "trio"},
            "sqlite3.Cursor.execute() was called from a running event loop (trio).",
        ),
        (
            {"loop": "twisted"},
            "sqlite3.Cursor.execute() was called from a running event loop (Twisted).",
        ),
        (
            {"importing": "app.models"},
            "sqlite3.Cursor.execute() was called from a running event loop (asyncio), "
            "while importing app.models.",
        ),
        (
            {"outcome": "warned"},
            "sqlite3.Cursor.execute() blocks: it was called from a running event loop (asyncio).",
        ),
        ({"headline": "Not in a coroutine."}, "Not in a coroutine."),
    ],
)
def test_the_headline(changes: dict[str, Any], first_line: str) -> None:
    told = violation(**changes)
    assert headline(told) == first_line
    assert describe(told).splitlines()[0] == first_line
    assert told.message() == describe(told)


def lines(**changes: Any) -> list[str]:
    return violation(**changes).message().splitlines()


def test_without_a_statement_there_is_no_gap() -> None:
    for statement in (None, ""):
        assert lines(statement=statement)[1:3] == [
            "",
            "    at     /app/orders.py:3 in Orders.find()",
        ]


def test_a_coroutine_that_makes_the_call_itself_is_one_line() -> None:
    view = Frame("/app/views.py", 9, "make.<locals>.view", True)
    text = lines(call_site=view, coroutine=view, stack=(view,))
    assert "    at     /app/views.py:9 in async view()      task 'Task-1'" in text
    assert not [line for line in text if "under" in line]
    assert "database_sync_to_async(f)(...)" in text[-2]


def test_a_callback_is_told_as_one() -> None:
    site = Frame("/app/orders.py", 3, "Orders.find", False)
    text = lines(coroutine=None, task=None, stack=(site,))
    assert text[4:6] == [
        "    at     /app/orders.py:3 in Orders.find()",
        "    under  a callback of the event loop",
    ]
    assert text[-2].endswith("database_sync_to_async(Orders.find)(...)")


def test_without_a_frame_of_the_users_the_whole_stack_is_told() -> None:
    stack = (Frame("/lib/events.py", 80, "Handle._run"), Frame("/lib/base.py", 5, "run_forever"))
    text = lines(call_site=stack[0], coroutine=None, task=None, stack=(), whole_stack=stack)
    start = text.index("  No frame on the stack is your own code's. All of it, innermost first:")
    assert text[start + 1 : start + 3] == [
        "    /lib/events.py:80 in Handle._run()",
        "    /lib/base.py:5 in run_forever()",
    ]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "await asyncsafe.database_sync_to_async(Orders.find)(...)"),
        ({"hint": "await cursor.aexecute(...)"}, "database_sync_to_async(Orders.find)(...)"),
        ({"stack": (Frame("/app/v.py", 9, "v", True),), "hint": "use aexecute"}, "use aexecute"),
        ({"stack": (Frame("/app/v.py", 9, "v", True),)}, "(f)(...), these lines being moved"),
        (
            {
                "stack": (Frame("/app/v.py", 9, "v", True),),
                "library": None,
                "operation": "app.models.Order.save",
            },
            "await asyncsafe.database_sync_to_async(save)(...)",
        ),
        (
            {
                "stack": (
                    Frame("/app/v.py", 8, "v.<locals>.<listcomp>", False),
                    Frame("/app/v.py", 9, "v", True),
                )
            },
            "(f)(...), these lines being moved",
        ),
        (
            {
                "stack": (
                    Frame("/app/o.py", 7, "inner", False),
                    Frame("/app/o.py", 8, "make.<locals>.outer", False),
                    Frame("/app/v.py", 9, "v", True),
                    Frame("/app/v.py", 1, "run", False),
                )
            },
            "await asyncsafe.database_sync_to_async(outer)(...)",
        ),
        ({"importing": "app.models"}, "import app.models before the event loop starts"),
    ],
    ids=[
        "function",
        "function before hint",
        "hint",
        "lines of a coroutine",
        "decorated function",
        "comprehension",
        "the function that the coroutine calls",
        "import",
    ],
)
def test_the_advice_fits(changes: dict[str, Any], advice: str) -> None:
    text = lines(**changes)
    assert advice in text[-2]
    assert text[-1] == '  or allow it here:    with asyncsafe.allow("..."):'


def test_files_are_named_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    installed = str(tmp_path / "lib" / "site-packages" / "framework" / "base.py")
    above = str(tmp_path.parent / "other.py")
    for filename, told in {
        str(tmp_path / "app" / "orders.py"): os.path.join("app", "orders.py"),
        above: above,
        installed: os.path.join("framework", "base.py"),
        "<template>": "<template>",
    }.items():
        assert place(Frame(filename, 3, "find")) == f"{told}:3"


def test_a_working_directory_that_is_gone_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert place(Frame("/app/orders.py", 3, "find")) == "/app/orders.py:3"


# What the guards say ---------------------------------------------------------------------------------


@async_unsafe
def rows() -> Iterator[int]:
    yield 1


def test_a_generator_taken_in_a_coroutine_has_advice_of_its_own() -> None:
    import asyncio

    async def main() -> None:
        for _ in rows():
            pass

    with pytest.raises(SynchronousOnlyOperation) as caught:
        asyncio.run(main())
    assert "a function that takes the items" in str(caught.value)
    assert "database_sync_to_async(rows)" not in str(caught.value)


def test_a_custom_message_is_told_with_the_place() -> None:
    @async_unsafe("Send mail from a worker.")
    def send() -> None: ...

    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(send)
    text = str(caught.value).splitlines()
    assert text[0] == "Send mail from a worker."
    assert text[2].startswith("    at     ")


def test_a_query_can_be_checked_by_name() -> None:
    def find() -> None:
        with allow():
            check("orders.find")
        check("orders.find")

    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(find)
    assert str(caught.value).startswith("orders.find() was called from a running event loop")
    assert "database_sync_to_async(find)(...)" in str(caught.value)
