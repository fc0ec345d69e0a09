"""Many threads and tasks at once, while guards come and go: nothing crashes, slips or leaks."""

from __future__ import annotations

import _sqlite3
import asyncio
import gc
import itertools
import os
import sqlite3
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import psycopg2
import psycopg2._psycopg
import psycopg2.extensions
import pytest

import asyncsafe
from asyncsafe import installation, patching, tables
from asyncsafe.stacks import WRAPPER_FILE

Refused = asyncsafe.SynchronousOnlyOperation

THREADS = TASKS = 200
ROUNDS = 8
#: How many calls off the loop, and on it, each phase must see before the next begins.
CALLS = {"thread": 100, "task": 15}


class Phase:
    """A time in which guards are "in", "out", or "changing"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.missing = Counter(CALLS)
        self.enough = threading.Event()
        self.lock = threading.Lock()

    def saw(self, who: str) -> None:
        with self.lock:
            self.missing[who] -= 1
            if max(self.missing.values()) <= 0:
                self.enough.set()


class Toggler(threading.Thread):
    """Installs and uninstalls. A call that began and ended in one `now` fell into it as a whole."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library
        self.now = Phase("out")
        self.done = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(ROUNDS):
                self.change_to("in", asyncsafe.install)
                self.change_to("out", asyncsafe.uninstall)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def change_to(self, name: str, change: Callable[[str], None]) -> None:
        self.now = Phase("changing")
        change(self.library)
        self.now = Phase(name)
        while not self.done.is_set() and not self.now.enough.wait(1):
            pass


class Soak:
    """What threads and tasks do with a library's calls, and what they must see."""

    def __init__(self, toggler: Toggler) -> None:
        self.toggler = toggler
        self.wrong: list[str] = []
        self.seen: Counter[tuple[str, str]] = Counter()

    def off_loop(self, call: Callable[[], Any]) -> None:
        while not self.toggler.done.is_set():
            self.one("thread", call)

    async def on_loop(self, call: Callable[[], Any]) -> None:
        while not self.toggler.done.is_set():
            self.one("task", call)
            await asyncio.sleep(0)

    def one(self, who: str, call: Callable[[], Any]) -> None:
        phase = self.toggler.now
        refused = False
        try:
            call()
        except Refused:
            refused = True
        except BaseException as error:
            self.wrong.append(f"{who}: {error!r}")
        if refused and who == "thread":
            self.wrong.append("a thread was refused")
        if phase is not self.toggler.now or phase.name == "changing":
            return
        if who == "task" and refused is not (phase.name == "in"):
            self.wrong.append(f"a task was {'' if refused else 'not '}refused while {phase.name}")
        self.seen[who, phase.name] += 1
        phase.saw(who)

    def run(self, off: list[Callable[[], Any]], on: list[Callable[[], Any]]) -> None:
        """All of them at once, until the toggler is done."""
        threads = [threading.Thread(target=self.off_loop, args=(call,)) for call in off]

        async def tasks() -> None:
            await asyncio.gather(*map(self.on_loop, on))

        for thread in [self.toggler, *threads]:
            thread.start()
        try:
            asyncio.run(tasks())
        finally:
            self.toggler.done.set()
            for thread in [self.toggler, *threads]:
                thread.join()
        assert self.toggler.error is None
        assert self.wrong == []
        for (who, calls), name in itertools.product(CALLS.items(), ("in", "out")):
            assert self.seen[who, name] >= calls * ROUNDS / 2, self.seen


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Iterator[Soak]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # else the loop waits for 200 threads, 5 ms each
    yield Soak(Toggler(request.param))
    sys.setswitchinterval(interval)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def wrappers() -> int:
    """How many of the compiled wrappers exist."""
    gc.collect()
    return sum(
        type(one) is FunctionType and one.__code__.co_filename == WRAPPER_FILE
        for one in gc.get_objects()
    )


def originals() -> list[Any]:
    """What is guarded, while nothing is."""
    return [
        guarded.original
        for (owner, name), guarded in tables._guarded.items()
        if vars(owner).get(name) is guarded.original
    ]


def types() -> Any:
    return [
        ({name: id(v) for name, v in vars(cls).items()}, cls.__flags__ & ~patching._VALID_VERSION)
        for cls in (
            _sqlite3.Connection,
            _sqlite3.Cursor,
            _sqlite3.Blob,
            psycopg2._psycopg.connection,
            psycopg2._psycopg.cursor,
            psycopg2._psycopg.lobject,
        )
    ]


class Inserts:
    """A connection of its own, and a call that inserts one row; it counts those that were made."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.connection.execute("create table t (n)")
        self.cursor = self.connection.cursor()
        self.made = 0

    def __call__(self) -> None:
        self.cursor.execute("insert into t values (1)")
        self.made += 1

    def rows(self) -> int:
        count: int = self.connection.execute("select count(*) from t").fetchone()[0]
        return count


@pytest.mark.parametrize("soak", ["sqlite3"], indirect=True)
def test_sqlite3(soak: Soak, tmp_path: Path) -> None:
    asyncsafe.install()
    asyncsafe.uninstall()
    before = types()
    path = tmp_path / "letters.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table letters (id integer)")
        connection.execute("insert into letters values (7)")

    def open_and_close() -> None:
        with closing(sqlite3.connect(path)) as connection:
            assert list(connection.execute("select id from letters")) == [(7,)]

    files = open_files()
    on = [Inserts() for _ in range(TASKS)]
    off = [Inserts() for _ in range(THREADS - 10)]
    soak.run(off=[*off, *[open_and_close] * 10], on=[*on])
    # What was refused inserted nothing.
    for one in [*on, *off]:
        assert one.rows() == one.made
        one.connection.close()
    gc.collect()
    assert open_files() <= files
    assert types() == before
    assert (patching._patched, patching._unlocked) == ({}, {})


@pytest.mark.parametrize("soak", ["psycopg2"], indirect=True)
def test_psycopg2(soak: Soak, postgres: str) -> None:
    asyncsafe.install()
    asyncsafe.uninstall()
    before = types()
    dsn = psycopg2.extensions.make_dsn(postgres, application_name="asyncsafe-soak")
    files = open_files()
    with closing(psycopg2.connect(postgres)) as watch:
        watch.autocommit = True
        connections = [psycopg2.connect(dsn) for _ in range(12)]
        for connection in connections:
            connection.autocommit = True

        def ask(connection: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("select 7")
                assert cursor.fetchone() == (7,)

        def open_and_close() -> None:
            with closing(psycopg2.connect(dsn)) as connection:
                ask(connection)

        calls = [partial(ask, connection) for connection in connections]
        soak.run(off=[*calls[:6], open_and_close, open_and_close], on=calls[6:] * 10)
        for connection in connections:
            connection.close()
        cursor = watch.cursor()
        query = "select count(*) from pg_stat_activity where application_name = 'asyncsafe-soak'"
        for _ in range(5000):
            cursor.execute(query)
            if (left := cursor.fetchone()[0]) == 0:
                break
        assert left == 0
    connections.clear()
    calls.clear()
    gc.collect()
    assert open_files() <= files
    assert types() == before


def test_rounds_leave_nothing_behind() -> None:
    """After a warm-up, wrappers, objects, memory and references are as many as before."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    cursor = connection.execute("create table t (n)")

    async def coroutine() -> bool:
        try:
            cursor.execute("insert into t values (1)")
        except Refused:
            return True
        return False

    async def both(rounds: int) -> None:
        for _ in range(rounds):
            asyncsafe.install()
            assert await coroutine()
            asyncsafe.uninstall()
            assert not await coroutine()

    def measure() -> tuple[int, int, list[int], int, int, int]:
        gc.collect()
        return (
            wrappers(),
            len(gc.get_objects()),
            [sys.getrefcount(original) for original in originals()],
            len(tables._guarded),
            len(tables._originals),
            sum(len(integration._patches) for integration in installation._integrations.values()),
        )

    asyncio.run(both(20))
    tracemalloc.start()
    try:
        asyncio.run(both(20))
        before = measure()
        memory = tracemalloc.get_traced_memory()[0]
        asyncio.run(both(100))
        after = measure()
        grown = tracemalloc.get_traced_memory()[0] - memory
    finally:
        tracemalloc.stop()
        connection.close()
    assert before[0] > 60
    assert (after[0], after[2:]) == (before[0], before[2:])
    # Less than one object, and less memory than one takes, a round. (Dictionaries of types and of
    # modules are made anew, some larger: the more, the more libraries other tests have imported.)
    assert after[1] - before[1] < 50
    assert grown < 10_000
