"""Whose a connection is, and that it ends with its owner, in the thread that made it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync

import asyncsafe
from asyncsafe import Alias, ConnectionHandler, database_sync_to_async

from .running import python


class Database:
    """sqlite3 in memory. It knows the threads in which its connections were made and closed."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.closed: list[int] = []
        self.just_closed = threading.Condition()

    def connect(self) -> Any:
        self.made.append(threading.get_ident())
        connection = sqlite3.connect(":memory:", factory=Connection)
        connection.database = self
        return connection

    def wait_for_closed(self, count: int) -> None:
        """For what is closed in another thread."""
        with self.just_closed:
            assert self.just_closed.wait_for(lambda: len(self.closed) >= count, 30)


class Connection(sqlite3.Connection):
    database: Database

    def close(self) -> None:
        super().close()
        with self.database.just_closed:
            self.database.closed.append(threading.get_ident())
            self.database.just_closed.notify_all()


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def connections(database: Database) -> Iterator[ConnectionHandler]:
    handler = ConnectionHandler({"default": database.connect})
    yield handler
    handler.close_all()


def wait_for_worker() -> int:
    """Wait for what asgiref's thread has been given to do. Returns the thread's identifier."""
    return SyncToAsync.single_thread_executor.submit(threading.get_ident).result()


# One for each ---------------------------------------------------------------------------------


def test_nothing_is_opened_before_it_is_asked_for(
    database: Database, connections: ConnectionHandler
) -> None:
    assert connections.all() == []
    assert database.made == []
    assert connections["default"] is connections["default"]
    assert len(database.made) == 1


def test_a_task_keeps_its_connection(connections: ConnectionHandler) -> None:
    def far_below() -> Any:
        return connections["default"]

    async def main() -> None:
        mine = connections["default"]
        await asyncio.sleep(0)
        assert far_below() is mine
        assert connections.all() == [mine]

    asyncio.run(main())


async def _gather(task: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    return list(await asyncio.gather(task(), task(), task()))


async def _task_group(task: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(task()) for _ in range(3)]
    return [task.result() for task in tasks]


async def _wait_for(task: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    # In 3.11 it starts a task; since then it doesn't.
    return [await asyncio.wait_for(asyncio.create_task(task()), 30) for _ in range(3)]


async def _same_context(task: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    return [await loop.create_task(task(), context=context) for _ in range(3)]


STARTERS = [_gather, _task_group, _wait_for, _same_context]


@pytest.mark.parametrize("start", STARTERS, ids=lambda start: start.__name__[1:])
@pytest.mark.parametrize("parent_first", [True, False], ids=["parent first", "children first"])
def test_a_child_task_has_its_own(
    connections: ConnectionHandler, start: Callable[..., Any], parent_first: bool
) -> None:
    barrier: list[Any] = []  # keeps them alive, so that no id is used twice

    async def child() -> Any:
        mine = connections["default"]
        barrier.append(mine)
        await asyncio.sleep(0)
        assert connections["default"] is mine
        return mine

    async def main() -> None:
        before = connections["default"] if parent_first else None
        children = await start(child)
        mine = connections["default"]
        assert before is None or before is mine
        assert len({id(one) for one in (mine, *children)}) == 4

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
@pytest.mark.parametrize("blocks", [True, False], ids=["goes on later", "ends at once"])
def test_an_eager_task_has_its_own(
    database: Database, connections: ConnectionHandler, blocks: bool
) -> None:
    async def child() -> Any:
        mine = connections["default"]
        if blocks:
            await asyncio.sleep(0)
        assert connections["default"] is mine
        return mine

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        mine = connections["default"]
        theirs = [asyncio.create_task(child()) for _ in range(2)]
        assert connections["default"] is mine
        assert len({id(mine), *map(id, await asyncio.gather(*theirs))}) == 3
        await asyncio.sleep(0)
        assert len(database.closed) == 2

    asyncio.run(main())


def test_what_was_opened_before_the_loop_is_the_threads(
    database: Database, connections: ConnectionHandler
) -> None:
    threads = connections["default"]

    async def main() -> None:
        assert connections["default"] is not threads

    asyncio.run(main())
    assert connections["default"] is threads
    assert len(database.closed) == 1


def test_a_callback_uses_the_threads(connections: ConnectionHandler) -> None:
    seen: list[Any] = []

    async def main() -> None:
        mine = connections["default"]
        done = asyncio.Event()

        def callback() -> None:
            seen.append(connections["default"])
            done.set()

        asyncio.get_running_loop().call_soon(callback)
        await done.wait()
        assert seen[0] is not mine

    asyncio.run(main())
    assert connections["default"] is seen[0]


def test_an_async_generator_uses_that_of_whoever_advances_it(
    connections: ConnectionHandler,
) -> None:
    async def generate() -> Any:
        while True:
            yield connections["default"]

    async def main() -> None:
        generator = generate()
        mine = await anext(generator)
        assert mine is connections["default"]
        theirs = await asyncio.create_task(anext(generator))
        assert theirs is not mine
        await generator.aclose()

    asyncio.run(main())


def test_threads_have_their_own(connections: ConnectionHandler) -> None:
    together = threading.Barrier(2)
    seen: list[Any] = []

    def work() -> None:
        seen.append(connections["default"])
        together.wait(30)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in (*seen, connections["default"])}) == 3


def test_to_thread_uses_the_worker_threads(connections: ConnectionHandler) -> None:
    async def main() -> None:
        mine = connections["default"]
        first, second = [
            await asyncio.to_thread(lambda: (threading.get_ident(), connections["default"]))
            for _ in range(2)
        ]
        assert first[1] is not mine
        assert (first[0] == second[0]) is (first[1] is second[1])

    asyncio.run(main())


def test_a_greenlet_below_a_task_uses_the_tasks(connections: ConnectionHandler) -> None:
    """SQLAlchemy runs synchronous code in one: `await session.run_sync(...)`."""
    from sqlalchemy.util import greenlet_spawn

    async def child() -> Any:
        return await greenlet_spawn(connections.__getitem__, "default")

    async def main() -> None:
        below = await greenlet_spawn(connections.__getitem__, "default")
        assert connections["default"] is below
        assert await greenlet_spawn(connections.__getitem__, "default") is below
        assert await asyncio.create_task(child()) is not below

    asyncio.run(main())


def test_a_greenlet_beside_the_loop_uses_the_threads(connections: ConnectionHandler) -> None:
    """As Playwright's synchronous API and gevent have it: the loop is parked in a greenlet."""
    import greenlet

    main = greenlet.getcurrent()
    threads = connections["default"]

    async def parks() -> None:
        mine = connections["default"]
        assert mine is not threads
        main.switch()
        assert connections["default"] is mine

    loop = greenlet.greenlet(lambda: asyncio.run(parks()))
    loop.switch()
    assert connections["default"] is threads
    loop.switch()
    assert loop.dead


def test_uvloop(database: Database, connections: ConnectionHandler) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def child() -> Any:
        return connections["default"]

    async def main() -> None:
        mine = connections["default"]
        assert len({id(one) for one in (mine, *await _gather(child))}) == 4
        await asyncio.sleep(0)
        assert len(database.closed) == 3

    uvloop.run(main())
    assert database.closed == [threading.get_ident()] * 4


@pytest.mark.parametrize("fails", [False, True], ids=["well", "with an exception"])
def test_trio(database: Database, connections: ConnectionHandler, fails: bool) -> None:
    trio = pytest.importorskip("trio")
    seen: list[Any] = []

    async def child() -> None:
        mine = connections["default"]
        seen.append(mine)
        await trio.lowlevel.checkpoint()
        assert connections["default"] is mine
        if fails:
            raise LookupError

    async def main() -> None:
        seen.append(connections["default"])
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(child)
        except* LookupError:
            assert fails
        assert connections["default"] is seen[0]
        assert len(database.closed) == len(seen) - 1

    trio.run(main)
    assert database.closed == database.made == [threading.get_ident()] * len(database.made)
    assert len({id(one) for one in seen}) == len(seen)


def test_under_curio_the_thread_is_the_owner(tmp_path: Path) -> None:
    """Curio tells nobody of its tasks' ends."""
    try:
        import curio  # noqa: F401
    except (ImportError, AttributeError):
        pytest.skip("this Python has no curio")
    python(
        """if True:
        import curio, sqlite3, asyncsafe
        connections = asyncsafe.ConnectionHandler({"default": lambda: sqlite3.connect(":memory:")})
        async def child():
            return connections["default"]
        async def main():
            assert await (await curio.spawn(child)).join() is connections["default"]
        curio.run(main)
        connections["default"].execute("select 1")
        """,
        tmp_path,
    )


# Their end ------------------------------------------------------------------------------------


async def _ends_well(connections: ConnectionHandler) -> None:
    connections["default"]
    await asyncio.sleep(0)


async def _raises(connections: ConnectionHandler) -> None:
    await _ends_well(connections)
    raise LookupError


async def _exits(connections: ConnectionHandler) -> None:
    await _ends_well(connections)
    raise SystemExit(3)


async def _is_cancelled(connections: ConnectionHandler) -> None:
    await _ends_well(connections)
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


ENDINGS = [_ends_well, _raises, _exits, _is_cancelled]
each_ending = pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__[1:])


@each_ending
def test_a_main_tasks_connection_is_closed(
    database: Database, connections: ConnectionHandler, end: Callable[..., Any]
) -> None:
    try:
        asyncio.run(end(connections))
    except (LookupError, SystemExit, asyncio.CancelledError):
        pass
    assert database.closed == database.made == [threading.get_ident()]


@pytest.mark.parametrize(
    "end", [_ends_well, _raises, _is_cancelled], ids=lambda end: end.__name__[1:]
)
def test_a_child_tasks_connection_is_closed_when_it_ends(
    database: Database, connections: ConnectionHandler, end: Callable[..., Any]
) -> None:
    async def main() -> None:
        connections["default"]
        child = asyncio.create_task(end(connections))
        await asyncio.wait([child])
        child.cancelled() or child.exception()
        await asyncio.sleep(0)
        assert database.closed == [threading.get_ident()]
        assert len(database.made) == 2

    asyncio.run(main())
    assert len(database.closed) == 2


def test_tasks_that_the_end_of_the_loop_cancels_close_theirs(
    database: Database, connections: ConnectionHandler
) -> None:
    async def waits() -> None:
        connections["default"]
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        tasks.extend(asyncio.create_task(waits()) for _ in range(3))
        await asyncio.sleep(0)

    tasks: list[Any] = []
    asyncio.run(main())
    assert database.closed == database.made == [threading.get_ident()] * 3


def test_run_until_complete_closes_too(database: Database, connections: ConnectionHandler) -> None:
    loop = asyncio.new_event_loop()
    try:
        for count in (1, 2):
            loop.run_until_complete(_ends_well(connections))
            assert len(database.closed) == count
    finally:
        loop.close()


def test_a_task_that_never_began_opens_nothing(
    database: Database, connections: ConnectionHandler
) -> None:
    async def main() -> None:
        child = asyncio.create_task(_ends_well(connections))
        child.cancel()
        await asyncio.wait([child])

    asyncio.run(main())
    assert database.made == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("closed", [True, False], ids=["loop closed", "loop runs"])
def test_the_connection_of_a_task_that_is_freed_while_it_waits_goes_back(
    closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Back to a pool with a lock, within which the garbage collector may have freed the task."""
    lock, went_back = threading.Lock(), threading.Event()

    def put_back(connection: sqlite3.Connection) -> None:
        with lock:
            went_back.set()

    connections = ConnectionHandler(
        {"default": Alias(lambda: sqlite3.connect(":memory:"), close=put_back)}
    )

    async def waits() -> None:
        connections["default"]
        await asyncio.Future()  # which nobody else knows of

    def free() -> None:
        with lock:
            gc.collect()
        assert went_back.wait(30)

    async def starts() -> None:
        asyncio.create_task(waits())  # noqa: RUF006  (to be freed)
        await asyncio.sleep(0)
        if not closed:
            free()

    loop = asyncio.new_event_loop()
    gc.disable()
    try:
        loop.run_until_complete(starts())
        loop.close()
        del loop
        if closed:
            free()
    finally:
        gc.enable()
    assert "Task was destroyed" in caplog.text


def test_the_connection_of_a_task_that_ended_as_its_loop_did_goes_back() -> None:
    """Its callbacks were not called any more."""
    went_back = threading.Event()
    connections = ConnectionHandler(
        {
            "default": Alias(
                lambda: sqlite3.connect(":memory:"), close=lambda connection: went_back.set()
            )
        }
    )

    async def child() -> None:
        connections["default"]
        loop.stop()

    loop = asyncio.new_event_loop()
    task = loop.create_task(child())
    loop.run_forever()
    loop.close()
    assert task.done()
    assert not went_back.is_set()
    del task
    gc.collect()
    assert went_back.wait(30)


def test_a_threads_connection_is_closed_when_it_ends(
    database: Database, connections: ConnectionHandler
) -> None:
    seen: list[int] = []

    def work() -> None:
        connections["default"]
        seen.append(threading.get_ident())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    database.wait_for_closed(1)
    assert database.closed == database.made == seen


@pytest.mark.parametrize("install", ["", "asyncsafe.install()"], ids=["as it is", "guarded"])
def test_threads_that_end_leave_nothing(tmp_path: Path, install: str) -> None:
    """In a process of its own: the thread-local that trio is asked by would be left."""
    python(
        f"""
import asyncio, gc, sqlite3, sys, threading, asyncsafe
{install}
connections = asyncsafe.ConnectionHandler({{"default": lambda: sqlite3.connect(":memory:")}})

def work():
    connections["default"].execute("SELECT 1")

def objects_after(count):
    for _ in range(count):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    gc.collect()
    return len(gc.get_objects())

asyncio.run(asyncsafe.database_sync_to_async(work)())
objects_after(10)
before = objects_after(1)
assert objects_after(100) - before < 100
""",
        tmp_path,
    )


@pytest.mark.parametrize("where", ["on the loop", "in a thread"])
def test_tasks_that_end_leave_nothing_that_the_collector_must_find(
    connections: ConnectionHandler, where: str
) -> None:
    class Thing:
        pass

    variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")

    async def child() -> weakref.ref[Thing]:
        thing = Thing()
        variable.set(thing)
        if where == "in a thread":
            await database_sync_to_async(query)(connections)
        else:
            connections["default"]
        return weakref.ref(thing)

    async def main() -> None:
        things = await _gather(child)
        async with asyncio.timeout(10):
            while any(thing() for thing in things):
                await asyncio.sleep(0)

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_an_error_on_closing_is_logged_and_the_others_are_closed(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        raise LookupError("the pool has gone")

    connections = ConnectionHandler(
        {"broken": Alias(database.connect, close=fails), "default": database.connect}
    )

    async def main() -> None:
        connections["broken"]
        connections["default"]

    asyncio.run(main(), debug=True)
    assert len(database.closed) == 1
    (record,) = [record for record in caplog.records if record.name == "asyncsafe"]
    assert record.levelno == logging.WARNING
    assert "could not be closed" in record.message
    assert record.exc_info
    assert "the pool has gone" in str(record.exc_info[1])


@pytest.mark.usefixtures("guarded")
def test_the_end_is_nobodys_violation(database: Database, heard: list[asyncsafe.Violation]) -> None:
    def close(connection: Connection) -> None:
        connection.execute("ROLLBACK")
        connection.close()

    connections = ConnectionHandler({"default": Alias(database.connect, close=close)})

    async def main() -> None:
        with asyncsafe.allow("to see the end alone"):
            connections["default"].execute("BEGIN")
        heard.clear()

    asyncio.run(main())
    assert len(database.closed) == 1
    assert heard == []


# In the thread that made it -----------------------------------------------------------------


def query(connections: ConnectionHandler) -> Any:
    assert connections["default"].execute("SELECT 1").fetchone() == (1,)
    return connections["default"]


@each_ending
def test_what_a_worker_made_is_closed_there(
    database: Database, connections: ConnectionHandler, end: Callable[..., Any]
) -> None:
    async def main() -> None:
        await database_sync_to_async(query)(connections)
        assert database.closed == []
        await end(connections)

    try:
        asyncio.run(main())
    except (LookupError, SystemExit, asyncio.CancelledError):
        pass
    worker = wait_for_worker()
    assert database.made == database.closed == [worker]
    assert worker != threading.get_ident()


def test_each_is_closed_in_the_thread_that_made_it(database: Database) -> None:
    connections = ConnectionHandler({"default": database.connect, "other": database.connect})

    async def main() -> None:
        await database_sync_to_async(query)(connections)
        connections["other"]

    asyncio.run(main())
    worker = wait_for_worker()
    assert database.made == [worker, threading.get_ident()]
    assert sorted(database.closed) == sorted(database.made)


def test_below_async_to_sync_it_is_the_calling_thread(
    database: Database, connections: ConnectionHandler
) -> None:
    async def main() -> None:
        await database_sync_to_async(query)(connections)
        await database_sync_to_async(query)(connections)

    async_to_sync(main)()
    assert database.made == database.closed == [threading.get_ident()]


def test_below_a_thread_sensitive_context_it_is_that_ones_thread(
    database: Database, connections: ConnectionHandler
) -> None:
    async def child() -> None:
        async with ThreadSensitiveContext():
            await database_sync_to_async(query)(connections)
            task = asyncio.create_task(database_sync_to_async(query)(connections))
            await task
            await asyncio.sleep(0)
        assert database.closed == database.made[1:]

    async def main() -> None:
        await child()

    asyncio.run(main())
    assert len(set(database.made)) == 1
    assert threading.get_ident() not in database.made


def test_a_coroutine_that_a_worker_runs_is_another_owner(
    database: Database, connections: ConnectionHandler
) -> None:
    """database_sync_to_async, in it async_to_sync, in it database_sync_to_async."""
    seen: list[Any] = []

    async def inner() -> None:
        seen.append(await database_sync_to_async(query)(connections))

    def outer() -> None:
        mine = query(connections)
        async_to_sync(inner)()
        assert connections["default"] is mine
        seen.append(mine)

    asyncio.run(database_sync_to_async(outer)())
    wait_for_worker()
    assert seen[0] is not seen[1]
    assert len(set(database.made)) == 1
    for connection in seen:
        with pytest.raises(asyncsafe.ConnectionSharingError, match="was closed"):
            connection.execute("SELECT 1")


def test_a_loop_in_a_worker_is_another_owner(
    database: Database, connections: ConnectionHandler
) -> None:
    async def inner() -> Any:
        return connections["default"]

    def outer() -> None:
        mine = query(connections)
        assert asyncio.run(inner()) is not mine
        assert connections["default"] is mine

    asyncio.run(database_sync_to_async(outer)())
    worker = wait_for_worker()
    assert database.closed == database.made == [worker] * 2


def test_a_cancelled_call_is_finished_first(
    database: Database, connections: ConnectionHandler
) -> None:
    began, goes_on = threading.Event(), threading.Event()
    told: list[object] = []

    def work() -> None:
        connection = query(connections)
        began.set()
        assert goes_on.wait(30)
        told.append(connection.execute("SELECT 2").fetchone())
        told.append(list(database.closed))

    async def main() -> None:
        task = asyncio.create_task(database_sync_to_async(work)())
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        goes_on.set()

    asyncio.run(main())
    worker = wait_for_worker()
    assert told == [(2,), []]
    assert database.made == database.closed == [worker]


def test_a_connection_that_is_opened_after_the_end_of_its_task_is_closed(
    database: Database, connections: ConnectionHandler
) -> None:
    began, goes_on = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert goes_on.wait(30)
        query(connections)

    async def main() -> None:
        task = asyncio.create_task(database_sync_to_async(work)())
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    try:
        asyncio.run(main())
    finally:
        goes_on.set()
    worker = wait_for_worker()
    assert database.made == database.closed == [worker]


# Fork -----------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

FORK = """
import asyncio, os, sys, psycopg2, asyncsafe
from asyncsafe import database_sync_to_async
connections = asyncsafe.ConnectionHandler({"default": lambda: psycopg2.connect(os.environ["DSN"])})

def backend():
    cursor = connections["default"].cursor()
    cursor.execute("SELECT pg_backend_pid()")
    return cursor.fetchone()[0]

def fork():
    handle, mine = connections["default"], backend()
    child = os.fork()
    if not child:
        code = 3
        try:
            assert connections.all() == []
            assert backend() != mine
            for use in (lambda: handle.cursor(), handle.close, lambda: handle.driver_connection):
                try:
                    use()
                except asyncsafe.ConnectionSharingError as error:
                    assert f"belongs to the process {os.getppid()}" in str(error), str(error)
                else:
                    raise AssertionError(f"{use} was not refused")
            connections.close_all()
            code = 0
        finally:
            end(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connections["default"] is handle
    assert backend() == mine
"""


@forks
@pytest.mark.parametrize(
    ("run", "end"),
    [
        ("fork()", "os._exit"),
        ("fork()", "sys.exit"),
        ("async def main(): fork()\nasyncio.run(main())", "os._exit"),
        ("asyncio.run(database_sync_to_async(fork)())", "os._exit"),
        ("asyncio.run(database_sync_to_async(fork, thread_sensitive=False)())", "os._exit"),
    ],
    ids=["thread", "thread that exits", "task", "worker", "worker apart"],
)
def test_a_forked_child_neither_uses_nor_closes_its_parents(
    postgres: str, tmp_path: Path, run: str, end: str
) -> None:
    python(f"{FORK}\nend = {end}\n{run}", tmp_path, "-W", "ignore", DSN=postgres)


@forks
def test_threads_that_a_fork_ends_leave_their_connections_to_the_parent(
    postgres: str, tmp_path: Path
) -> None:
    python(
        FORK
        + """
import threading
opened, goes_on, told = threading.Event(), threading.Event(), []
def work():
    mine = backend()
    opened.set()
    goes_on.wait(30)
    told.append(backend() == mine)
thread = threading.Thread(target=work)
thread.start()
opened.wait(30)
child = os.fork()
if not child:
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
goes_on.set()
thread.join()
assert told == [True]
""",
        tmp_path,
        "-W",
        "ignore",
        DSN=postgres,
    )
