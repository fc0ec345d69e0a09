"""ConnectionMiddleware: connections that end with their request, in the thread that made them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

import asyncsafe
from asyncsafe import asgi, database_sync_to_async
from asyncsafe.asgi import ConnectionMiddleware

from .running import python

HTTP: dict[str, Any] = {"type": "http", "method": "GET", "path": "/orders", "headers": []}
WEBSOCKET: dict[str, Any] = {"type": "websocket", "path": "/chat", "headers": []}
LIFESPAN: dict[str, Any] = {"type": "lifespan"}

#: Seconds after which something that should happen has not.
LONG = 20.0


class Watched(sqlite3.Connection):
    """A connection that knows in which thread it was opened, and in which it was closed."""

    opened_in: int
    closed_in: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.opened_in = threading.get_ident()

    def close(self) -> None:
        super().close()  # refused in another thread
        self.closed_in = threading.get_ident()


class Database:
    """Connections to one file, and what became of them."""

    def __init__(self, path: Path, check_same_thread: bool = True) -> None:
        self.path = path
        self.check_same_thread = check_same_thread
        self.made: list[Watched] = []
        self.connections = asyncsafe.ConnectionHandler({"default": self.connect})

    def connect(self) -> Watched:
        connection = sqlite3.connect(
            self.path, factory=Watched, check_same_thread=self.check_same_thread
        )
        self.made.append(connection)
        return connection

    def use(self) -> Watched:
        """The caller's connection, used."""
        connection = self.connections["default"]
        connection.execute("SELECT 1")
        return connection.driver_connection  # type: ignore[no-any-return]

    @property
    def open(self) -> int:
        return sum(connection.closed_in is None for connection in self.made)

    def was_closed_where_opened(self) -> bool:
        return bool(self.made) and all(c.closed_in == c.opened_in for c in self.made)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "db.sqlite3")


@pytest.fixture
def shared_database(tmp_path: Path) -> Database:
    """As `database`; one thread may go on with what another made."""
    return Database(tmp_path / "db.sqlite3", check_same_thread=False)


def request_threads() -> int:
    """Threads lent to requests, or idle."""
    return sum(thread.name.startswith("asyncsafe-request") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_idle_threads() -> Iterator[None]:
    asgi.close_idle_threads()
    end = time.monotonic() + LONG
    while request_threads() and time.monotonic() < end:
        time.sleep(0.001)
    yield
    asgi.close_idle_threads()
    assert SyncToAsync.thread_sensitive_context.get(None) is None


def request(app: Any, *handlers: Any, scope: dict[str, Any] = HTTP) -> Awaitable[None]:
    """One request to an application, which is called without arguments, below the middleware."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await app()

    return ConnectionMiddleware(application, *handlers)(dict(scope), _receive, _send)


async def _receive() -> dict[str, Any]:
    raise AssertionError("nobody asked for a message")


async def _send(message: Any) -> None:
    raise AssertionError("nobody answers")


async def until(true: Callable[[], bool]) -> None:
    """Let the loop and the threads go on until this is true."""
    async with asyncio.timeout(LONG):
        while not true():
            await asyncio.sleep(0.001)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


Way = Callable[[Callable[[], Any]], Awaitable[Any]]


async def on_the_loop(call: Callable[[], Any]) -> Any:
    return call()


def sensitive(call: Callable[[], Any]) -> Awaitable[Any]:
    return sync_to_async(call)()


def for_databases(call: Callable[[], Any]) -> Awaitable[Any]:
    return database_sync_to_async(call)()


def apart(call: Callable[[], Any]) -> Awaitable[Any]:
    return database_sync_to_async(call, thread_sensitive=False)()


async def in_executor(call: Callable[[], Any]) -> Any:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, context.run, call)


EXACT = [on_the_loop, sensitive, for_databases, apart]
WORKERS: list[Way] = [asyncio.to_thread, in_executor, anyio.to_thread.run_sync]


class TestOneRequest:
    @pytest.mark.parametrize("scope", [HTTP, WEBSOCKET, LIFESPAN], ids=lambda s: s["type"])
    @pytest.mark.parametrize("way", EXACT)
    def test_closes_its_connection_where_it_was_opened(
        self, database: Database, way: Way, scope: dict[str, Any]
    ) -> None:
        async def app() -> None:
            await way(database.use)

        asyncio.run(main(request(app, database.connections, scope=scope), database))
        assert len(database.made) == 1
        assert database.was_closed_where_opened()

    @pytest.mark.parametrize("way", EXACT)
    def test_closes_it_after_an_exception(self, database: Database, way: Way) -> None:
        async def app() -> None:
            await way(database.use)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(main(request(app, database.connections), database))
        assert database.was_closed_where_opened()

    @pytest.mark.parametrize("way", EXACT)
    def test_closes_it_after_a_cancellation(self, database: Database, way: Way) -> None:
        async def run() -> None:
            used = asyncio.Event()

            async def app() -> None:
                await way(database.use)
                used.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(request(app, database.connections))
            await used.wait()
            await cancelled(task)
            assert database.open == 0

        asyncio.run(run())
        assert database.was_closed_where_opened()

    def test_rolls_back_what_was_not_committed(self, database: Database) -> None:
        with sqlite3.connect(database.path) as connection:
            connection.execute("CREATE TABLE t (x)")

        async def app() -> None:
            await sensitive(lambda: database.connections["default"].execute(INSERT))

        asyncio.run(main(request(app, database.connections), database))
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)

    def test_has_one_connection_in_its_task_and_its_thread(self, shared_database: Database) -> None:
        async def app() -> None:
            used = [await way(shared_database.use) for way in (on_the_loop, sensitive)]
            used.append(await for_databases(shared_database.use))
            assert len(set(used)) == 1

        asyncio.run(main(request(app, shared_database.connections), shared_database))
        assert len(shared_database.made) == 1

    def test_is_nobodys_violation_when_it_ends(
        self, database: Database, guarded: None, heard: list[asyncsafe.Violation]
    ) -> None:
        async def app() -> None:
            with asyncsafe.allow("for the test"):
                database.use()
            heard.clear()

        asyncio.run(main(request(app, database.connections), database))
        assert heard == []
        assert database.open == 0

    def test_needs_no_handlers_to_end(self, database: Database) -> None:
        async def app() -> None:
            await sensitive(database.use)

        asyncio.run(main(request(app), database))
        assert database.was_closed_where_opened()

    def test_that_uses_no_connection_starts_no_thread(self, database: Database) -> None:
        async def app() -> None:
            pass

        asyncio.run(main(request(app, database.connections), database))
        assert request_threads() == 0

    def test_leaves_its_task_the_connection_it_had_before(self, database: Database) -> None:
        async def run() -> None:
            mine = database.use()

            async def app() -> None:
                assert database.use() is not mine

            await request(app, database.connections)
            assert database.use() is mine
            assert database.open == 1

        asyncio.run(run())

    def test_whose_coroutine_is_thrown_away_closes_its_connection(
        self, shared_database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app() -> None:
            await sensitive(shared_database.use)
            waiting.set()
            await asyncio.Event().wait()

        waiting = asyncio.Event()
        loop = asyncio.new_event_loop()
        task = loop.create_task(request(app, shared_database.connections))  # type: ignore[arg-type]
        loop.run_until_complete(waiting.wait())
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        del task
        gc.collect()
        assert shared_database.open == 0
        assert not caplog.records

    def test_that_the_end_of_the_loop_cancels_closes_its_connection(
        self, database: Database
    ) -> None:
        async def app() -> None:
            await sensitive(database.use)
            await asyncio.Event().wait()

        async def run() -> None:
            tasks.append(asyncio.ensure_future(request(app, database.connections)))
            await until(lambda: bool(database.made))

        tasks: list[Any] = []
        asyncio.run(run())
        assert database.was_closed_where_opened()


INSERT = "INSERT INTO t VALUES (1)"


async def main(served: Awaitable[None], database: Database) -> None:
    """Have a request served; nothing is open when the middleware returns."""
    try:
        await served
    finally:
        assert database.open == 0


class TestCancellation:
    def test_before_it_begins(self, database: Database) -> None:
        async def app() -> None:
            database.use()

        async def run() -> None:
            await cancelled(asyncio.ensure_future(request(app, database.connections)))

        asyncio.run(run())
        assert database.made == []

    @pytest.mark.parametrize("way", [sensitive, for_databases])
    @pytest.mark.parametrize("first", [None, on_the_loop], ids=["opened there", "opened before"])
    def test_during_a_call_ends_the_connection_after_the_call(
        self, shared_database: Database, way: Way, first: Way | None
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()
        seen: list[Any] = []

        def slow() -> None:
            begun.set()
            go_on.wait(LONG)
            seen.append(shared_database.use().execute("SELECT 1").fetchone())

        async def app() -> None:
            if first is not None:
                await first(shared_database.use)
            await way(slow)

        async def run() -> None:
            task = asyncio.ensure_future(request(app, shared_database.connections))
            await asyncio.to_thread(begun.wait, LONG)
            task.cancel()
            await until(lambda: first is not None or task.done())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not any(c.closed_in for c in shared_database.made), "closed while it is used"
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: bool(seen) and shared_database.open == 0)

        asyncio.run(run())
        assert seen == [(1,)]
        assert shared_database.was_closed_where_opened()
        assert len(shared_database.made) == 1

    def test_of_a_call_does_not_hold_up_the_next_request(self, database: Database) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            begun.set()
            go_on.wait(LONG)

        async def run() -> None:
            task = asyncio.ensure_future(request(lambda: sensitive(slow)))
            await asyncio.to_thread(begun.wait, LONG)
            await cancelled(task)
            async with asyncio.timeout(LONG):
                await request(lambda: sensitive(database.use), database.connections)
            assert not go_on.is_set()
            go_on.set()

        asyncio.run(run())
        assert database.was_closed_where_opened()

    def test_a_second_time_while_it_releases(self, tmp_path: Path) -> None:
        closing, go_on = threading.Event(), threading.Event()

        def close(connection: sqlite3.Connection) -> None:
            closing.set()
            go_on.wait(LONG)
            connection.close()

        made: list[Watched] = []

        def connect() -> Watched:
            made.append(sqlite3.connect(tmp_path / "db", factory=Watched))
            return made[-1]

        connections = asyncsafe.ConnectionHandler(
            {"default": asyncsafe.Alias(connect, close=close)}
        )

        async def app() -> None:
            await sensitive(lambda: connections["default"].execute("SELECT 1"))
            await asyncio.Event().wait()

        async def run() -> None:
            task = asyncio.ensure_future(request(app, connections))
            await until(lambda: bool(made))
            task.cancel()
            await asyncio.to_thread(closing.wait, LONG)
            await cancelled(task)
            go_on.set()
            await until(lambda: made[0].closed_in is not None)

        asyncio.run(run())
        assert made[0].closed_in == made[0].opened_in

    def test_by_level_as_anyio_does(self, database: Database) -> None:
        async def app() -> None:
            await sensitive(database.use)
            scope.cancel()
            await asyncio.Event().wait()

        async def run() -> None:
            nonlocal scope
            with anyio.CancelScope() as scope:
                await request(app, database.connections)
            await until(lambda: database.open == 0)

        scope: Any = None
        asyncio.run(run())
        assert database.was_closed_where_opened()


class TestSeveralRequests:
    def test_of_one_task_in_turn_have_connections_of_their_own(self, database: Database) -> None:
        async def run() -> None:
            for _ in range(3):
                await request(lambda: sensitive(database.use), database.connections)
                assert database.open == 0

        asyncio.run(run())
        assert len(database.made) == 3

    @pytest.mark.parametrize("way", EXACT)
    def test_at_the_same_time_have_connections_of_their_own(
        self, database: Database, way: Way
    ) -> None:
        async def run() -> None:
            together = asyncio.Barrier(5)

            async def app() -> None:
                first = await way(database.use)
                await together.wait()
                if way is not apart:
                    assert await way(database.use) is first
                await together.wait()

            await asyncio.gather(*(request(app, database.connections) for _ in range(5)))

        asyncio.run(run())
        assert len(database.made) == (10 if way is apart else 5) - (5 if way is apart else 0)
        assert database.was_closed_where_opened()

    def test_have_threads_of_their_own(self) -> None:
        together = threading.Barrier(2)

        def in_thread() -> int:
            together.wait(LONG)  # breaks if both are in one thread
            return threading.get_ident()

        async def app() -> None:
            threads.append({await sensitive(in_thread) for _ in range(3)})

        async def run() -> None:
            await asyncio.gather(request(app), request(app))

        threads: list[set[int]] = []
        asyncio.run(run())
        assert [len(one) for one in threads] == [1, 1]
        assert threads[0] != threads[1]

    def test_that_a_server_starts_in_the_context_of_another(self, database: Database) -> None:
        """As uvicorn does with pipelined ones."""
        together = threading.Barrier(2)

        def in_thread() -> int:
            database.use()
            together.wait(LONG)
            return threading.get_ident()

        async def run() -> None:
            async def second() -> None:
                threads.append(await sensitive(in_thread))

            async def first() -> None:
                await sensitive(database.use)
                tasks.append(asyncio.ensure_future(request(second, database.connections)))
                threads.append(await sensitive(in_thread))

            await request(first, database.connections)
            await tasks[0]

        tasks: list[Any] = []
        threads: list[int] = []
        asyncio.run(run())
        assert len(set(threads)) == 2
        assert len(database.made) == 2
        assert database.was_closed_where_opened()


class TestNesting:
    def test_a_thread_sensitive_context_inside(self, database: Database) -> None:
        async def app() -> None:
            first = await sensitive(database.use)
            async with ThreadSensitiveContext():
                assert await sensitive(database.use) is first
            assert await sensitive(database.use) is first

        asyncio.run(main(request(app, database.connections), database))
        assert database.was_closed_where_opened()

    def test_below_a_thread_sensitive_context(self, database: Database) -> None:
        async def app() -> None:
            threads.append(await sensitive(threading.get_ident))
            await sensitive(database.use)

        async def run() -> None:
            async with ThreadSensitiveContext():
                threads.append(await sensitive(threading.get_ident))
                await request(app, database.connections)
                assert database.open == 0

        threads: list[int] = []
        asyncio.run(run())
        assert len(set(threads)) == 1
        assert database.was_closed_where_opened()

    def test_a_middleware_below_a_middleware(self, database: Database) -> None:
        async def inner() -> None:
            used.append(await sensitive(database.use))
            threads.append(await sensitive(threading.get_ident))

        async def outer() -> None:
            used.append(await sensitive(database.use))
            threads.append(await sensitive(threading.get_ident))
            await request(inner, database.connections)
            assert database.open == 1
            assert await sensitive(database.use) is used[0]

        used: list[Watched] = []
        threads: list[int] = []
        asyncio.run(main(request(outer, database.connections), database))
        assert len(set(threads)) == 1
        assert used[0] is not used[1]
        assert database.was_closed_where_opened()

    def test_below_async_to_sync_calls_come_to_its_thread(self, database: Database) -> None:
        foreign = ThreadLocalConnections(database)

        async def app() -> None:
            threads.append(await sensitive(threading.get_ident))
            await sensitive(database.use)
            await sensitive(foreign.use)

        threads: list[int] = []
        handlers = (database.connections, foreign)
        async_to_sync(main)(request(app, *handlers), database)
        assert threads == [threading.get_ident()]
        assert len(database.made) == 2
        assert database.was_closed_where_opened()


class TestChildTasks:
    def test_have_connections_of_their_own(self, database: Database) -> None:
        async def app() -> None:
            mine = await sensitive(database.use)
            theirs = await asyncio.gather(sensitive(database.use), for_databases(database.use))
            assert len({mine, *theirs}) == 3
            assert {c.opened_in for c in theirs} == {mine.opened_in}
            await until(lambda: database.open == 1)

        asyncio.run(main(request(app, database.connections), database))
        assert database.was_closed_where_opened()

    @pytest.mark.parametrize("way", [sensitive, for_databases, apart, asyncio.to_thread])
    def test_that_outlive_the_request_go_on(self, shared_database: Database, way: Way) -> None:
        async def run() -> None:
            ended = asyncio.Event()

            async def outliving() -> None:
                await way(shared_database.use)
                begun.set()
                await ended.wait()
                assert (await way(shared_database.use)).closed_in is None or way is apart

            async def app() -> None:
                tasks.append(asyncio.ensure_future(outliving()))
                await begun.wait()

            begun = asyncio.Event()
            await request(app, shared_database.connections)
            ended.set()
            await tasks[0]
            await until(lambda: shared_database.open == 0)

        tasks: list[Any] = []
        asyncio.run(run())

    def test_that_outlive_the_request_keep_their_thread(self, database: Database) -> None:
        """Of a connection that one thread alone may use, as sqlite3's."""

        async def run() -> None:
            begun, ended = asyncio.Event(), asyncio.Event()

            async def outliving() -> None:
                mine = await sensitive(database.use)
                begun.set()
                await ended.wait()
                assert await sensitive(database.use) is mine

            async def app() -> None:
                tasks.append(asyncio.ensure_future(outliving()))
                await begun.wait()

            async def another() -> None:
                await sensitive(int)
                ended.set()
                await tasks[0]

            await request(app, database.connections)
            await request(another)
            await until(lambda: database.open == 0)

        tasks: list[Any] = []
        asyncio.run(run())
        assert database.was_closed_where_opened()

    def test_in_a_call_do_not_hold_up_the_requests_end(self, database: Database) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            begun.set()
            go_on.wait(LONG)
            database.use()

        async def app() -> None:
            tasks.append(asyncio.ensure_future(sensitive(slow)))
            await asyncio.to_thread(begun.wait, LONG)

        async def run() -> None:
            async with asyncio.timeout(LONG):
                await request(app, database.connections)
            assert not go_on.is_set()
            go_on.set()
            await tasks[0]
            await until(lambda: database.open == 0)

        tasks: list[Any] = []
        asyncio.run(run())
        assert database.was_closed_where_opened()


class TestWorkerThreads:
    @pytest.mark.parametrize("way", WORKERS)
    def test_one_after_the_other_share_a_connection(
        self, shared_database: Database, way: Way
    ) -> None:
        contexts = []

        def use() -> Watched:
            # Whoever awaits the call goes on before the worker has let go of its context.
            contexts.append(contextvars.copy_context())
            return shared_database.use()

        async def app() -> None:
            for _ in range(20):
                await way(use)

        asyncio.run(main(request(app, shared_database.connections), shared_database))
        assert len(shared_database.made) == 1

    @pytest.mark.parametrize("way", WORKERS)
    def test_at_the_same_time_share_none(self, shared_database: Database, way: Way) -> None:
        together = threading.Barrier(3)

        def use() -> Watched:
            connection = shared_database.use()
            together.wait(LONG)
            assert shared_database.use() is connection
            return connection

        async def app() -> None:
            for _ in range(2):
                assert len(set(await asyncio.gather(*(way(use) for _ in range(3))))) == 3

        asyncio.run(main(request(app, shared_database.connections), shared_database))
        assert len(shared_database.made) == 3

    def test_and_the_requests_thread_share_none(self, shared_database: Database) -> None:
        together = threading.Barrier(2)

        def use() -> Watched:
            connection = shared_database.use()
            together.wait(LONG)
            assert shared_database.use() is connection
            return connection

        async def app() -> None:
            for _ in range(3):
                await sensitive(shared_database.use)
                used = await asyncio.gather(sensitive(use), asyncio.to_thread(use))
                assert len(set(used)) == 2

        asyncio.run(main(request(app, shared_database.connections), shared_database))

    def test_that_go_on_when_their_request_has_ended_keep_their_connection(
        self, shared_database: Database
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()
        seen: list[Any] = []

        def slow() -> None:
            connection = shared_database.use()
            begun.set()
            go_on.wait(LONG)
            seen.append(connection.closed_in)
            seen.append(shared_database.use() is connection)

        async def run() -> None:
            call = functools.partial(asyncio.to_thread, slow)
            task = asyncio.ensure_future(request(call, shared_database.connections))
            await asyncio.to_thread(begun.wait, LONG)
            await cancelled(task)
            go_on.set()
            await until(lambda: len(seen) == 2 and shared_database.open == 0)

        asyncio.run(run())
        assert seen == [None, True]

    def test_that_connect_when_their_request_has_ended_close_it(
        self, shared_database: Database
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            begun.set()
            go_on.wait(LONG)
            shared_database.use()

        async def run() -> None:
            call = functools.partial(asyncio.to_thread, slow)
            task = asyncio.ensure_future(request(call, shared_database.connections))
            await asyncio.to_thread(begun.wait, LONG)
            await cancelled(task)
            go_on.set()
            await until(lambda: bool(shared_database.made) and shared_database.open == 0)

        asyncio.run(run())

    def test_whose_call_raised_keep_nothing_open(self, shared_database: Database) -> None:
        def use() -> None:
            shared_database.use()
            raise ZeroDivisionError

        async def run() -> None:
            with pytest.raises(ZeroDivisionError) as raised:
                await request(lambda: asyncio.to_thread(use), shared_database.connections)
            # Its traceback holds the context of the call.
            assert raised.value.__traceback__ is not None
            assert shared_database.open == 0

        asyncio.run(run())
        assert shared_database.open == 0


class ThreadLocalConnections:
    """Somebody else's: as django.db.connections, it knows the calling thread's alone."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.local = threading.local()

    def use(self) -> None:
        if not hasattr(self.local, "connection"):
            self.local.connection = self.database.connect()

    def close_all(self) -> None:
        if hasattr(self.local, "connection"):
            self.local.connection.close()
            del self.local.connection


class TestOtherHandlers:
    @pytest.mark.parametrize("scope", [HTTP, WEBSOCKET, LIFESPAN], ids=lambda s: s["type"])
    def test_close_in_the_requests_thread(self, database: Database, scope: dict[str, Any]) -> None:
        foreign = ThreadLocalConnections(database)

        async def app() -> None:
            await sensitive(foreign.use)

        async def run() -> None:
            for _ in range(2):
                await main(request(app, foreign, scope=scope), database)

        asyncio.run(run())
        assert len(database.made) == 2
        assert database.was_closed_where_opened()

    def test_close_after_a_cancelled_call(self, database: Database) -> None:
        foreign = ThreadLocalConnections(database)
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            begun.set()
            go_on.wait(LONG)
            foreign.use()

        async def run() -> None:
            task = asyncio.ensure_future(request(lambda: sensitive(slow), foreign))
            await asyncio.to_thread(begun.wait, LONG)
            task.cancel()
            go_on.set()
            await asyncio.wait([task])

        asyncio.run(run())
        assert database.was_closed_where_opened()

    def test_are_left_alone_where_no_thread_was_used(self) -> None:
        class Foreign:
            def close_all(self) -> None:
                raise AssertionError("there is nothing to close")

        async def app() -> None:
            pass

        asyncio.run(request(app, Foreign()))  # type: ignore[arg-type]
        assert request_threads() == 0

    def test_that_fail_are_logged_and_the_rest_is_closed(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing:
            def close_all(self) -> None:
                raise ZeroDivisionError

        foreign = ThreadLocalConnections(database)

        async def app() -> None:
            await sensitive(foreign.use)

        asyncio.run(main(request(app, Failing(), foreign), database))
        [record] = caplog.records
        assert (record.name, record.levelno) == ("asyncsafe", logging.WARNING)
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError

    def test_a_connection_that_fails_to_close_is_logged(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        def close(connection: sqlite3.Connection) -> None:
            connection.close()
            raise ZeroDivisionError

        connections = asyncsafe.ConnectionHandler(
            {"default": asyncsafe.Alias(lambda: sqlite3.connect(tmp_path / "db"), close=close)}
        )

        async def app() -> None:
            await sensitive(lambda: connections["default"].execute("SELECT 1"))

        asyncio.run(request(app, connections))  # type: ignore[arg-type]
        assert "request GET /orders" in caplog.text


class TestWrongArguments:
    async def application(self, scope: Any, receive: Any, send: Any) -> None: ...

    def test_an_application_that_is_none(self) -> None:
        with pytest.raises(asyncsafe.ConfigurationError, match="callable; this is a NoneType"):
            ConnectionMiddleware(None)  # type: ignore[arg-type]

    @pytest.mark.parametrize("handler", [None, [], sqlite3, {"default": 1}, ThreadLocalConnections])
    def test_a_handler_that_is_none(self, handler: Any) -> None:
        with pytest.raises(asyncsafe.ConfigurationError, match="a handler is a ConnectionHandler"):
            ConnectionMiddleware(self.application, handler)

    def test_a_pool_whose_close_all_is_about_everybodys(self, tmp_path: Path) -> None:
        from playhouse.pool import PooledSqliteDatabase

        with pytest.raises(asyncsafe.ConfigurationError, match="use_local"):
            ConnectionMiddleware(self.application, PooledSqliteDatabase(tmp_path / "db"))

    def test_a_scoped_session(self) -> None:
        from sqlalchemy.orm import scoped_session, sessionmaker

        with pytest.raises(asyncsafe.ConfigurationError, match="use_local"):
            ConnectionMiddleware(self.application, scoped_session(sessionmaker()))


class TestThreads:
    def test_serve_one_request_after_the_other(self) -> None:
        async def run() -> set[int]:
            threads: set[int] = set()

            async def app() -> None:
                threads.add(await sensitive(threading.get_ident))

            for _ in range(50):
                await request(app)
            return threads

        assert len(asyncio.run(run())) == 1

    def test_that_are_idle_are_bounded(self) -> None:
        many = asgi.IDLE_THREADS + 10
        together = threading.Barrier(many)

        async def run() -> None:
            app = functools.partial(sensitive, lambda: together.wait(LONG))
            await asyncio.gather(*(request(app) for _ in range(many)))
            await until(lambda: request_threads() <= asgi.IDLE_THREADS)
            assert request_threads() > 0

        asyncio.run(run())

    def test_end_at_the_servers_shutdown(self) -> None:
        async def run() -> None:
            stop = asyncio.Event()
            lifespan = asyncio.ensure_future(request(stop.wait, scope=LIFESPAN))
            await asyncio.gather(*(request(lambda: sensitive(int)) for _ in range(5)))
            assert request_threads() > 0
            stop.set()
            await lifespan
            await until(lambda: request_threads() == 0)

        asyncio.run(run())

    def test_end_though_the_lifespan_raises(self) -> None:
        async def fails() -> None:
            raise ZeroDivisionError

        async def run() -> None:
            await request(lambda: sensitive(int))
            with pytest.raises(ZeroDivisionError):
                await request(fails, scope=LIFESPAN)
            await until(lambda: request_threads() == 0)

        asyncio.run(run())

    def test_are_not_taken_along_by_a_fork(self, tmp_path: Path) -> None:
        result = python(FORKS, tmp_path)
        assert result.stdout.split() == ["child", "parent"]

    def test_do_not_keep_a_program_from_ending(self, tmp_path: Path) -> None:
        result = python(ENDS, tmp_path)
        assert result.stdout.split() == ["closed"]
        assert not result.stderr


FORKS = """
import asyncio, os, sys
from asgiref.sync import sync_to_async
from asyncsafe.asgi import ConnectionMiddleware

async def application(scope, receive, send):
    await sync_to_async(int)()

app = ConnectionMiddleware(application)

def serve():
    asyncio.run(app({"type": "http", "method": "GET", "path": "/"}, None, None))

serve()
child = os.fork()
serve()
if child:
    assert os.waitpid(child, 0)[1] == 0
print("parent" if child else "child", flush=True)
"""

ENDS = """
import asyncio, sqlite3
from asgiref.sync import sync_to_async
import asyncsafe

class Watched(sqlite3.Connection):
    def close(self):
        super().close()
        print("closed")

connections = asyncsafe.ConnectionHandler(
    {"default": lambda: sqlite3.connect(":memory:", factory=Watched)})

async def application(scope, receive, send):
    await sync_to_async(lambda: connections["default"].execute("SELECT 1"))()
    used.set()
    await asyncio.Event().wait()

app = asyncsafe.asgi.ConnectionMiddleware(application, connections)

async def main():
    global used, task
    used = asyncio.Event()
    task = asyncio.create_task(app({"type": "http", "method": "GET", "path": "/"}, None, None))
    await used.wait()

asyncio.run(main())
"""


def test_what_asgiref_lets_us_use() -> None:
    """The middleware lends a thread by these two: they aren't documented."""

    async def run() -> None:
        async with ThreadSensitiveContext() as context:
            assert SyncToAsync.thread_sensitive_context.get() is context
            executor = ThreadPoolExecutor(1, thread_name_prefix="lent")
            SyncToAsync.context_to_thread_executor[context] = executor
            assert (await sensitive(threading.current_thread)).name.startswith("lent")
            assert SyncToAsync.context_to_thread_executor.pop(context) is executor
            executor.shutdown()
            assert not (await sensitive(threading.current_thread)).name.startswith("lent")

    asyncio.run(run())


# Frameworks ----------------------------------------------------------------------------------


async def get(app: Any, *paths: str) -> list[httpx.Response]:
    """Ask all of these at the same time."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await asyncio.gather(*(client.get(path) for path in paths))


class TestStarlette:
    def app(self, database: Database) -> Any:
        from starlette.applications import Starlette
        from starlette.background import BackgroundTask
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.responses import PlainTextResponse, StreamingResponse
        from starlette.routing import Route

        async def endpoint(request: Any) -> Any:
            await for_databases(database.use)
            return PlainTextResponse("ok")

        def synchronous(request: Any) -> Any:
            database.use()
            return PlainTextResponse("ok")

        async def background(request: Any) -> Any:
            return PlainTextResponse("ok", background=BackgroundTask(database.use))

        async def stream(request: Any) -> Any:
            async def pieces() -> AsyncIterator[str]:
                for _ in range(3):
                    await for_databases(database.use)
                    yield "piece "

            return StreamingResponse(pieces())

        async def fails(request: Any) -> Any:
            await for_databases(database.use)
            raise ZeroDivisionError

        class Base(BaseHTTPMiddleware):
            async def dispatch(self, request: Any, call_next: Any) -> Any:
                await for_databases(database.use)
                return await call_next(request)

        return Starlette(
            routes=[
                Route(f"/{function.__name__}", function)
                for function in (endpoint, synchronous, background, stream, fails)
            ],
            middleware=[Middleware(ConnectionMiddleware, database.connections), Middleware(Base)],
        )

    @pytest.mark.parametrize("path", ["endpoint", "synchronous", "background", "stream"])
    def test_leaves_nothing_open(self, shared_database: Database, path: str) -> None:
        async def run() -> None:
            responses = await get(self.app(shared_database), *[f"/{path}"] * 10)
            assert {response.status_code for response in responses} == {200}
            # Below BaseHTTPMiddleware an endpoint is a task, whose end isn't waited for.
            await until(lambda: shared_database.open == 0)

        asyncio.run(run())
        assert shared_database.made

    def test_leaves_nothing_open_when_it_fails(self, shared_database: Database) -> None:
        async def run() -> None:
            with pytest.raises(ZeroDivisionError):
                await get(self.app(shared_database), "/fails")
            await until(lambda: shared_database.open == 0)

        asyncio.run(run())
        assert shared_database.made


class TestFastAPI:
    def test_synchronous_endpoints_and_dependencies_with_peewee(self, tmp_path: Path) -> None:
        import fastapi
        import peewee

        opened: list[Any] = []
        closed: list[Any] = []

        class Watching(peewee.SqliteDatabase):
            def _connect(self) -> Any:
                opened.append(super()._connect())
                return opened[-1]

            def _close(self, connection: Any) -> None:
                super()._close(connection)
                closed.append(connection)

        database = Watching(tmp_path / "db.sqlite3", timeout=LONG, check_same_thread=False)

        class Order(peewee.Model):
            number = peewee.IntegerField()

            class Meta:
                pass

        Order.bind(database)
        Order.create_table()
        database.close()
        local = asyncsafe.use_local(database)
        application = fastapi.FastAPI()

        def transaction() -> Iterator[None]:
            with database.atomic():
                yield

        @application.post("/orders/{number}", dependencies=[fastapi.Depends(transaction)])
        def create(number: int) -> int:
            Order.create(number=number)
            if number % 3 == 0:
                raise fastapi.HTTPException(409)
            return Order.select().where(Order.number == number).count()

        app = ConnectionMiddleware(application, local)

        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                posts = (client.post(f"/orders/{number}") for number in range(12))
                return await asyncio.gather(*posts)

        responses = asyncio.run(run())
        accepted = [n for n, response in enumerate(responses) if response.status_code == 200]
        assert accepted == [n for n in range(12) if n % 3]
        assert opened
        assert sorted(map(id, opened)) == sorted(map(id, closed))
        local.undo()
        assert sorted(order.number for order in Order.select()) == accepted
        database.close()
