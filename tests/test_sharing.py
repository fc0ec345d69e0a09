"""One connection, two tasks: the use of a connection with another task's open transaction."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import pickle
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import jsonschema
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy
from sqlalchemy.pool import QueuePool, StaticPool

import asyncsafe
from asyncsafe import (
    ConnectionHandler,
    ConnectionSharingError,
    Violation,
    allow,
    configure,
    database_sync_to_async,
    exempt,
    forbid,
    violations,
)
from asyncsafe.asgi import ASGIHandler, ConnectionMiddleware

from .running import python

pytestmark = pytest.mark.usefixtures("guarded")

Connect = Callable[..., Any]
ALLOWED = "these tests are about sharing, not about blocking"


# Connections, and tasks that use them ------------------------------------------------------------


@pytest.fixture
def sqlite() -> Iterator[Connect]:
    """Connects to a database in memory, with a table t."""
    opened: list[Any] = []

    def connect(**options: Any) -> Any:
        connection = sqlite3.connect(":memory:", check_same_thread=False, **options)
        connection.execute("CREATE TABLE t (x INTEGER)")
        connection.commit()
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def psycopg(postgres: str) -> Iterator[Connect]:
    """Connects to PostgreSQL, with a temporary table t."""
    opened: list[Any] = []

    def connect() -> Any:
        connection = psycopg2.connect(postgres)
        connection.cursor().execute("CREATE TEMPORARY TABLE t (x INTEGER)")
        connection.commit()
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture(params=["sqlite", "psycopg"])
def connection(request: pytest.FixtureRequest) -> Any:
    """A connection of each driver's."""
    return request.getfixturevalue(request.param)()


def insert(connection: Any) -> None:
    connection.cursor().execute("INSERT INTO t VALUES (1)")


def select(connection: Any) -> None:
    connection.cursor().execute("SELECT x FROM t")


def rows(connection: Any) -> int:
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM t")
    return int(cursor.fetchone()[0])


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


async def in_task(call: Callable[..., Any], *args: Any, name: str | None = None) -> Any:
    """Call a synchronous function, which may block, in a task of its own."""

    async def work() -> Any:
        with allow(ALLOWED):
            return call(*args)

    return await asyncio.create_task(work(), name=name)


@asynccontextmanager
async def another(begin: Callable[..., Any], *args: Any) -> AsyncIterator[None]:
    """While another task, which called `begin`, is waiting for something."""
    begun, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        with allow(ALLOWED):
            begin(*args)
        begun.set()
        await leave.wait()

    task = asyncio.create_task(hold(), name="the other")
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield
    finally:
        leave.set()
        await task


def refused(call: Callable[..., Any], *args: Any) -> Violation:
    """Call it: it must be refused, because the transaction is another's."""
    with pytest.raises(ConnectionSharingError) as caught:
        call(*args)
    assert caught.value.violation is not None
    return caught.value.violation


def shared() -> list[Violation]:
    """What was recorded of sharing."""
    return [site.violation for site in violations if site.violation.begun_by]


def leave_block(connection: Any) -> None:
    with connection:
        pass


def break_block(connection: Any) -> None:
    with connection:
        raise LookupError


USES = {
    "execute": insert,
    "read": select,
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "close": lambda connection: connection.close(),
    "with": leave_block,
    "with, and an error": break_block,
}


# What is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_another_task_does_is_refused_and_changes_nothing(
    connection: Any, use: Callable[[Any], None]
) -> None:
    async def main() -> None:
        async with another(insert, connection):
            await in_task(refused, use, connection)

    run(main())
    connection.commit()  # the other's, as it would have
    assert rows(connection) == 1


def test_a_child_task_is_another(connection: Any) -> None:
    async def main() -> None:
        with allow(ALLOWED):
            insert(connection)
            await in_task(refused, insert, connection)
            insert(connection)
            connection.commit()

    run(main())


def test_the_transaction_of_a_task_that_has_ended_is_still_its_own(connection: Any) -> None:
    async def main() -> None:
        await in_task(insert, connection)
        await in_task(refused, connection.commit)

    run(main())


def test_everybody_is_refused_but_who_began_it(connection: Any) -> None:
    async def main() -> None:
        async def begin_and_end() -> None:
            with allow(ALLOWED):
                insert(connection)
                for _ in range(3):
                    await in_task(refused, insert, connection)
                insert(connection)
                connection.commit()
                await in_task(insert, connection)
                refused(insert, connection)

        await asyncio.create_task(begin_and_end())

    run(main())


def test_a_begin_under_autocommit(sqlite: Connect, psycopg: Connect) -> None:
    plain, served = sqlite(isolation_level=None), psycopg()
    served.autocommit = True

    async def main(connection: Any) -> None:
        async with another(lambda: connection.cursor().execute("BEGIN")):
            await in_task(refused, insert, connection)

    for connection in plain, served:
        run(main(connection))
        connection.cursor().execute("COMMIT")


def test_a_commit_that_sends_nothing_does_not_end_a_begin_under_autocommit(
    psycopg: Connect,
) -> None:
    connection = psycopg()
    connection.autocommit = True

    async def main() -> None:
        async with another(lambda: connection.cursor().execute("BEGIN")):
            await in_task(connection.commit)
            await in_task(refused, insert, connection)

    run(main())


def test_fetching_from_a_named_cursor_of_anothers(psycopg: Connect) -> None:
    connection = psycopg()
    named, plain = connection.cursor("named"), connection.cursor()

    def begin() -> None:
        plain.execute("SELECT 1")
        named.execute("SELECT generate_series(1, 9)")

    async def main() -> None:
        async with another(begin):
            violation = await in_task(refused, named.fetchone)
            assert violation.operation == "psycopg2.cursor.fetchone"
            assert await in_task(plain.fetchone) == (1,)  # it was fetched by execute()

    run(main())


def test_reading_begins_a_transaction_where_the_driver_says_so(
    sqlite: Connect, psycopg: Connect
) -> None:
    async def main(connection: Any, *use: Any) -> None:
        async with another(select, connection):
            await in_task(*use, connection)

    run(main(psycopg(), refused, select))
    run(main(sqlite(), select))


def test_a_failed_statement_leaves_the_transaction_open(psycopg: Connect) -> None:
    connection = psycopg()

    def fail() -> None:
        with pytest.raises(psycopg2.ProgrammingError):
            connection.cursor().execute("SELECT nothing")

    async def main() -> None:
        async with another(fail):
            await in_task(refused, connection.rollback)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit is Python 3.12's")
def test_sqlite_that_is_always_in_a_transaction(sqlite: Connect) -> None:
    async def main() -> None:
        with allow(ALLOWED):
            connection = sqlite(autocommit=False)
            insert(connection)
            connection.commit()
        await in_task(insert, connection)
        refused(insert, connection)
        refused(connection.commit)
        await in_task(refused, insert, connection)

    configure(mode="raise")
    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit is Python 3.12's")
@pytest.mark.parametrize("end", ["commit", "rollback", "with"])
def test_sqlite_that_is_always_in_a_transaction_and_tasks_that_end_theirs(
    sqlite: Connect, end: str
) -> None:
    def work(connection: Any) -> None:
        insert(connection)
        USES[end](connection)

    async def main() -> None:
        with allow(ALLOWED):
            connection = sqlite(autocommit=False)
        for _ in range(3):
            await in_task(work, connection)

    run(main())
    assert not shared()


# Threads that work for a task ----------------------------------------------------------------------


SENSITIVE = pytest.mark.parametrize("sensitive", [True, False], ids=["one thread", "any thread"])


@SENSITIVE
def test_a_thread_uses_it_while_a_task_is_in_a_transaction(
    connection: Any, sensitive: bool
) -> None:
    in_thread = database_sync_to_async(insert, thread_sensitive=sensitive)

    async def main() -> None:
        async with another(insert, connection):
            with pytest.raises(ConnectionSharingError) as caught:
                await in_thread(connection)
        violation = caught.value.violation
        assert violation is not None
        assert violation.begun_by == "task 'the other'"
        assert violation.coroutine is None
        assert violation.loop_type is None

    run(main())


@SENSITIVE
def test_a_task_uses_it_while_a_thread_is_in_a_transaction(
    connection: Any, sensitive: bool
) -> None:
    in_thread = database_sync_to_async(insert, thread_sensitive=sensitive)

    async def main() -> None:
        await asyncio.create_task(in_thread(connection))
        await in_task(refused, insert, connection)

    run(main())


def test_threads_of_two_tasks(connection: Any) -> None:
    in_thread = database_sync_to_async(insert)

    async def main() -> None:
        await asyncio.create_task(in_thread(connection))
        with pytest.raises(ConnectionSharingError):
            await asyncio.create_task(in_thread(connection))

    run(main())


def test_two_tasks_at_the_same_time(sqlite: Connect) -> None:
    connection = sqlite()
    begun, seen = threading.Event(), threading.Event()

    @database_sync_to_async(thread_sensitive=False)
    def begin() -> None:
        insert(connection)
        begun.set()
        assert seen.wait(10)
        connection.commit()

    @database_sync_to_async(thread_sensitive=False)
    def use() -> None:
        assert begun.wait(10)
        refused(insert, connection)
        seen.set()

    async def main() -> None:
        await asyncio.gather(begin(), use())

    run(main())


def test_a_task_and_the_thread_that_works_for_it_are_one(connection: Any) -> None:
    in_thread = database_sync_to_async(insert)

    async def main() -> None:
        with allow(ALLOWED):
            insert(connection)
            await in_thread(connection)
            insert(connection)
            connection.commit()

    run(main())
    assert not shared()


def test_a_task_and_the_threads_that_work_for_it_are_one(connection: Any) -> None:
    in_thread = database_sync_to_async(insert, thread_sensitive=False)

    async def main() -> None:
        await in_thread(connection)
        await in_thread(connection)
        with allow(ALLOWED):
            connection.commit()

    run(main())
    assert not shared()


def test_threads_that_nobody_lent_are_not_watched(connection: Any) -> None:
    async def main() -> None:
        async with another(insert, connection):
            await asyncio.to_thread(insert, connection)

    run(main())
    assert not shared()


# Requests ------------------------------------------------------------------------------------------


async def request(app: Any, path: str) -> int:
    """Send a GET request to an ASGI application. Returns the response's status."""
    status = 0
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not messages:
            await gone.wait()
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "server": ("testserver", 80),
        "client": ("testclient", 1234),
    }
    await app(scope, receive, send)
    gone.set()
    return status


async def respond(send: Callable[..., Any]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def middleware(view: Callable[[str], Coroutine[Any, Any, None]]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await view(scope["path"])
        await respond(send)

    return ConnectionMiddleware(app, ConnectionHandler({"default": object}))


def test_the_worker_threads_of_two_requests(connection: Any) -> None:
    begun, leave = asyncio.Event(), asyncio.Event()

    async def view(path: str) -> None:
        if path == "/begin":
            await asyncio.to_thread(insert, connection)
            begun.set()
            await leave.wait()
        else:
            violation = await asyncio.to_thread(refused, insert, connection)
            assert violation.begun_by == "a worker thread of request GET /begin"

    async def main() -> None:
        app = middleware(view)
        first = asyncio.create_task(request(app, "/begin"))
        await begun.wait()
        assert await request(app, "/use") == 200
        leave.set()
        await first

    run(main())


def test_the_worker_threads_of_one_request(connection: Any) -> None:
    async def view(path: str) -> None:
        await asyncio.to_thread(insert, connection)
        await asyncio.to_thread(insert, connection)
        await asyncio.to_thread(connection.commit)
        with allow(ALLOWED):
            insert(connection)
        await database_sync_to_async(insert)(connection)
        await asyncio.to_thread(connection.commit)

    assert run(request(middleware(view), "/")) == 200
    assert not shared()


def test_a_task_outside_and_inside_of_the_middleware_is_one(connection: Any) -> None:
    async def view(path: str) -> None:
        with allow(ALLOWED):
            insert(connection)

    async def main() -> None:
        with allow(ALLOWED):
            insert(connection)
        await request(middleware(view), "/")
        with allow(ALLOWED):
            connection.commit()

    run(main())
    assert not shared()


def test_a_child_task_of_a_request_and_its_worker_threads(connection: Any) -> None:
    """Starlette's BaseHTTPMiddleware runs what is below it in a child task."""

    async def child() -> None:
        with allow(ALLOWED):
            insert(connection)
        await asyncio.to_thread(insert, connection)
        await asyncio.to_thread(connection.commit)

    async def view(path: str) -> None:
        await asyncio.create_task(child())

    assert run(request(middleware(view), "/")) == 200
    assert not shared()


def test_two_requests_of_a_synchronous_application(connection: Any) -> None:
    told: list[str | None] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/begin":
            insert(connection)
        else:
            told.append(refused(connection.commit).begun_by)
        start_response("200 OK", [])
        return [b""]

    async def main() -> None:
        handler = ASGIHandler(app)
        assert await request(handler, "/begin") == 200
        assert await request(handler, "/use") == 200

    run(main())
    assert len(told) == 1
    assert "/begin" in str(told[0])


def test_a_synchronous_application_that_commits(connection: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        insert(connection)
        insert(connection)
        connection.commit()
        start_response("200 OK", [])
        return [b""]

    async def main() -> None:
        handler = ASGIHandler(app)
        for _ in range(3):
            assert await request(handler, "/") == 200

    run(main())
    assert not violations


# What is not refused -------------------------------------------------------------------------------


ENDS = {
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "with": leave_block,
    "COMMIT": lambda connection: connection.cursor().execute("COMMIT"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_tasks_that_end_their_transactions(connection: Any, end: Callable[[Any], Any]) -> None:
    def work() -> None:
        insert(connection)
        end(connection)

    async def main() -> None:
        for _ in range(3):
            await in_task(work)
        await asyncio.gather(*(in_task(work) for _ in range(3)))

    run(main())
    assert not shared()


def test_one_task_in_many_functions(connection: Any) -> None:
    async def deeper() -> None:
        insert(connection)
        await asyncio.sleep(0)
        connection.cursor().execute("SELECT 1")

    async def main() -> None:
        with allow(ALLOWED):
            insert(connection)
            await deeper()
            connection.commit()

    run(main())
    assert not shared()


def test_autocommit(sqlite: Connect, psycopg: Connect) -> None:
    served = psycopg()
    served.autocommit = True

    async def main(connection: Any) -> None:
        async with another(insert, connection):
            await in_task(insert, connection)

    run(main(sqlite(isolation_level=None)))
    run(main(served))
    assert not shared()


def test_each_task_with_its_own(sqlite: Connect) -> None:
    async def main() -> None:
        async with another(insert, one):
            await in_task(insert, two)

    one, two = sqlite(), sqlite()
    run(main())
    assert not shared()


def test_code_without_a_loop(connection: Any) -> None:
    insert(connection)
    thread = threading.Thread(target=insert, args=[connection])
    thread.start()
    thread.join()
    connection.commit()
    assert not violations


def test_callbacks_are_nobody(connection: Any) -> None:
    """Nothing tells for which task a callback of the loop works."""

    async def main() -> None:
        done = asyncio.Event()

        def callback() -> None:
            with allow(ALLOWED):
                insert(connection)
            done.set()

        async with another(insert, connection):
            asyncio.get_running_loop().call_soon(callback)
            await done.wait()

    run(main())
    assert not shared()


def test_the_task_of_a_closed_loop_shares_with_nobody(connection: Any) -> None:
    run(in_task(insert, connection))
    run(in_task(insert, connection))  # as a second asyncio.run() of a script
    assert not shared()

    async def main() -> None:  # from now on it is the second's
        async with another(insert, connection):
            await in_task(refused, connection.commit)

    run(main())


def test_a_connection_in_the_place_of_one_that_was_freed(tmp_path: Path) -> None:
    """sqlite3's, which can't be referred to weakly. In a process in which memory is taken again."""
    python(
        """
import asyncio, gc, sqlite3, asyncsafe

asyncsafe.install()

async def begin():
    with asyncsafe.allow():
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (1)")
        return connection

async def main():
    freed = [await asyncio.create_task(begin()) for _ in range(100)]
    places = {id(connection) for connection in freed}
    freed.clear()
    await asyncio.sleep(0)  # until then, the loop holds the task and what it returned
    gc.collect()  # a connection is part of a cycle
    opened = []
    while not places & set(map(id, opened)):
        assert len(opened) < 5000
        opened += [await asyncio.create_task(begin()) for _ in range(100)]
    assert not [site for site in asyncsafe.violations if site.violation.begun_by]

asyncio.run(main())
""",
        tmp_path,
    )


def test_an_exempt_connection(connection: Any) -> None:
    exempt(connection)

    async def main() -> None:
        async with another(insert, connection):
            await in_task(insert, connection)
            await in_task(connection.commit)

    run(main())
    assert not violations


def test_a_managed_connection_that_may_be_shared(sqlite: Connect) -> None:
    connections = ConnectionHandler({"default": sqlite})

    async def main() -> None:
        with allow(ALLOWED):
            connection = connections["default"]
            connection.inc_thread_sharing()
            async with another(insert, connection):
                await in_task(insert, connection)
                insert(connection)
            connection.dec_thread_sharing()
            # The transaction goes on, and is no longer anybody's who asks.
            refused(connection.driver_connection.commit)

    run(main())


def test_permission_is_one_connections(sqlite: Connect) -> None:
    connections = ConnectionHandler({"default": sqlite})
    unmanaged = sqlite()

    async def main() -> None:
        with allow(ALLOWED):
            connections["default"].inc_thread_sharing()
        async with another(insert, unmanaged):
            await in_task(refused, insert, unmanaged)

    run(main())


def test_psycopg2_that_waits_without_blocking(postgres: str) -> None:
    async def wait(connection: Any) -> None:
        while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            watch, forget = (
                (loop.add_reader, loop.remove_reader)
                if state == psycopg2.extensions.POLL_READ
                else (loop.add_writer, loop.remove_writer)
            )
            watch(connection.fileno(), done.set)
            await done.wait()
            forget(connection.fileno())

    async def execute(connection: Any, statement: str) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        await wait(connection)

    async def main() -> None:
        connection = psycopg2.connect(postgres, async_=1)
        await wait(connection)
        await asyncio.create_task(execute(connection, "BEGIN"))
        await asyncio.create_task(execute(connection, "SELECT 1"))
        await asyncio.create_task(execute(connection, "COMMIT"))
        connection.close()

    run(main())
    assert not violations


def test_a_pool_that_hands_one_connection_to_many_tasks(postgres: str) -> None:
    pool = QueuePool(lambda: psycopg2.connect(postgres), pool_size=1, max_overflow=0)
    engine = sqlalchemy.create_engine("postgresql+psycopg2://", pool=pool)
    backends = set()

    def work() -> None:
        with engine.connect() as connection:
            backends.add(connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar())
            # No commit: the pool rolls back.

    async def main() -> None:
        for _ in range(3):
            await in_task(work)
        await asyncio.gather(*(in_task(work) for _ in range(3)))
        await asyncio.create_task(database_sync_to_async(work)())

    run(main())
    engine.dispose()
    assert len(backends) == 1
    assert not shared()


def test_a_mock_is_not_asked_for_its_transaction(heard: list[Violation]) -> None:
    """Whatever one is asked is true, and told to the test that counts its calls."""
    configure(mode="record")
    driver = Mock()
    pool = StaticPool(lambda: driver)

    async def use() -> None:
        connection = pool.connect()
        connection.cursor().execute("select 1")
        await asyncio.sleep(0)
        connection.close()

    async def main() -> None:
        await asyncio.gather(use(), use())

    asyncio.run(main())
    assert driver.mock_calls == [call.cursor(), call.cursor().execute("select 1")] * 2 + (
        [call.rollback()] * 2
    )
    assert {violation.begun_by for violation in heard} == {None}


def test_without_guards(connection: Any) -> None:
    asyncsafe.uninstall()

    async def main() -> None:
        async with another(insert, connection):
            await in_task(insert, connection)

    run(main())
    assert not violations


# Modes ---------------------------------------------------------------------------------------------


async def share(connection: Any) -> None:
    """Insert a row in another task's transaction, twice from one line."""
    async with another(insert, connection):
        await in_task(lambda: [*map(insert, [connection] * 2)])


def test_the_variable_that_allows_blocking_does_not_allow_it(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with pytest.raises(ConnectionSharingError):
        run(share(connection))


def test_record(connection: Any, heard: list[Violation]) -> None:
    configure(mode="record")
    run(share(connection))
    connection.commit()
    assert rows(connection) == 3
    (site,) = (site for site in violations if site.violation.begun_by)
    assert (site.calls, site.outcomes, site.seconds) == (2, {"recorded": 2}, 0)
    assert len([one for one in heard if one.begun_by]) == 2


def test_that_it_blocks_is_told_beside_it(connection: Any) -> None:
    configure(mode="record")
    run(share(connection))
    blocking = [site for site in violations if not site.violation.begun_by]
    assert sum(site.calls for site in blocking) == 3
    assert {outcome for site in blocking for outcome in site.outcomes} == {"allowed"}


def test_warn(connection: Any) -> None:
    configure(mode="warn")
    with pytest.warns(asyncsafe.AsyncUnsafeWarning, match="open transaction of task") as caught:
        run(share(connection))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    connection.commit()
    assert rows(connection) == 3


def test_off(connection: Any) -> None:
    configure(mode="off")
    run(share(connection))
    run(asyncio.wait_for(database_sync_to_async(insert)(connection), 10))
    assert not violations


def test_off_while_another_task_forbids(sqlite: Connect) -> None:
    """Then the guards are awake."""
    configure(mode="off")
    connection = sqlite()

    strict = forbid()

    async def main() -> None:
        async with another(strict.__enter__):
            await share(connection)
            strict.__exit__()

    run(main())
    assert not shared()


def test_a_mode_is_asked_in_threads_too(connection: Any) -> None:
    async def main() -> None:
        async with another(insert, connection):
            configure(mode="record")
            await database_sync_to_async(insert)(connection)
            configure(mode="off")
            await database_sync_to_async(insert)(connection)

    run(main())
    (site,) = (site for site in violations if site.violation.begun_by)
    assert site.calls == 1


def test_forbid_is_stronger_than_the_mode(connection: Any) -> None:
    configure(mode="record")

    def use() -> None:
        with forbid():
            refused(insert, connection)

    async def main() -> None:
        async with another(insert, connection):
            await in_task(use)

    run(main())


# Finalizers ----------------------------------------------------------------------------------------


class Row:
    """Something that weak references can be made to."""


class Closing:
    """Closes its connection when it is freed."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.rollback()


def test_a_finalizer_is_let_through(connection: Any) -> None:
    kept = [Closing(connection)]

    async def main() -> None:
        async with another(insert, connection):
            await in_task(kept.clear)

    run(main())
    assert [violation.outcome for violation in shared()] == ["recorded"]
    assert rows(connection) == 0


def test_a_weakref_finalizer_is_let_through(connection: Any) -> None:
    kept = [Row()]
    weakref.finalize(kept[0], connection.rollback)

    async def main() -> None:
        async with another(insert, connection):
            await in_task(kept.clear)

    run(main())
    assert [violation.outcome for violation in shared()] == ["recorded"]


def test_an_async_generator_that_nobody_finished_may_end_its_transaction(connection: Any) -> None:
    """The loop closes it in a task of its own."""

    async def transaction() -> AsyncGenerator[None, None]:
        try:
            with allow(ALLOWED):
                insert(connection)
            yield
        finally:
            with allow(ALLOWED):
                connection.rollback()

    async def main() -> None:
        generator = transaction()
        await anext(generator)
        del generator
        for _ in range(3):
            await asyncio.sleep(0)

    run(main())
    assert rows(connection) == 0


# What is told --------------------------------------------------------------------------------------


@pytest.fixture
def told(sqlite: Connect) -> tuple[ConnectionSharingError, int, int]:
    """The error, the line that began the transaction, and the line that was refused."""
    connection = sqlite()
    line = insert.__code__.co_firstlineno + 1

    async def use() -> None:
        with allow(ALLOWED):
            connection.execute("INSERT INTO t  VALUES (?)", ["a secret"])

    async def main() -> None:
        async with another(insert, connection):
            await asyncio.create_task(use(), name="mine")

    with pytest.raises(ConnectionSharingError) as caught:
        run(main())
    return caught.value, line, use.__code__.co_firstlineno + 2


def test_the_message(
    told: tuple[ConnectionSharingError, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    error, begun, used = told
    monkeypatch.chdir(Path(__file__).parent)
    assert str(error) == (
        "sqlite3.Connection.execute() was called on a connection that has an open transaction of "
        "task 'the other'.\n"
        "\n"
        "    INSERT INTO t VALUES (?)\n"
        "\n"
        f"    at     test_sharing.py:{used} in async use()      task 'mine'\n"
        f"    begun  test_sharing.py:{begun} in insert()      task 'the other'\n"
        "\n"
        '  Give each its own:   asyncsafe.ConnectionHandler({"default": ...})["default"], in each '
        "task\n"
        "  or let them share:   asyncsafe.exempt(connection)"
    )


def test_the_violation(told: tuple[ConnectionSharingError, int, int]) -> None:
    error, begun, used = told
    violation = error.violation
    assert violation is not None
    assert violation.begun_by == "task 'the other'"
    assert violation.begun_at == asyncsafe.Frame(__file__, begun, "insert", False)
    assert violation.call_site.lineno == used
    assert (violation.task, violation.outcome, violation.library) == ("mine", "raised", "sqlite3")
    assert error.__class__.__mro__[1] is RuntimeError


def test_a_refusal_is_pickled(told: tuple[ConnectionSharingError, int, int]) -> None:
    copied = pickle.loads(pickle.dumps(told[0]))
    assert str(copied) == str(told[0])
    assert copied.violation.begun_at == told[0].violation.begun_at  # type: ignore[union-attr]


def test_blocking_violations_tell_of_no_transaction(connection: Any) -> None:
    configure(mode="record")
    run(in_task(insert, connection))
    assert [(v.violation.begun_by, v.violation.begun_at) for v in violations] == [(None, None)]


def test_each_place_that_began_one_is_told(connection: Any, heard: list[Violation]) -> None:
    configure(mode="record")

    def begin_here() -> None:
        connection.cursor().execute("INSERT INTO t VALUES (1)")

    async def main() -> None:
        for begin in functools.partial(insert, connection), begin_here:
            async with another(begin):
                await in_task(select, connection)
            connection.rollback()

    with allow(ALLOWED):
        run(main())
    assert {str(v.begun_at and v.begun_at.function.rpartition(".")[2]) for v in shared()} >= {
        "insert",
        "begin_here",
    }


def test_the_log(connection: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asyncsafe"), pytest.raises(ConnectionSharingError):
        run(share(connection))
    (entry,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "open transaction of task 'the other'" in entry.getMessage()


# The report ----------------------------------------------------------------------------------------

PROGRAM = """\
import asyncio, sqlite3

connection = sqlite3.connect(":memory:", check_same_thread=False)
connection.execute("CREATE TABLE t (x)")

def insert():
    connection.execute("INSERT INTO t VALUES (1)")

async def first():
    insert()

async def second():
    connection.execute("SELECT x FROM t")

async def main():
    await asyncio.create_task(first())
    await asyncio.create_task(second())

async def main_in_threads():
    import asyncsafe

    for _ in range(2):
        await asyncio.create_task(asyncsafe.database_sync_to_async(insert)())

asyncio.run({main}())
"""


def asyncsafe_run(folder: Path, main: str, *options: str) -> tuple[Any, Any]:
    """Run the program. Returns the process, and its report."""
    (folder / "program.py").write_text(PROGRAM.format(main=main))
    command = [sys.executable, "-m", "asyncsafe", "run", "--report", "report.json", *options]
    done = subprocess.run(
        [*command, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, json.loads((folder / "report.json").read_text())


def test_the_table(tmp_path: Path) -> None:
    done, _ = asyncsafe_run(tmp_path, "main")
    assert done.returncode == 0, done.stderr
    text = done.stderr.splitlines()
    assert text[1:6] == [
        "asyncsafe: 1 call on a connection with another task's open transaction, at 1 call site.",
        "",
        "calls  operation                   call site                     transaction begun at",
        "    1  sqlite3.Connection.execute  program.py:13 async second()  program.py:7 insert()",
        "",
    ]
    assert text[6].startswith("asyncsafe: 2 synchronous calls on the event loop, at 2 call sites, ")
    assert [line for line in text if "ConnectionHandler" in line] == [
        "  program.py:13 async second()  "
        'asyncsafe.ConnectionHandler({"default": ...})["default"], in each task'
    ]


def test_the_table_where_nothing_blocked(tmp_path: Path) -> None:
    done, _ = asyncsafe_run(tmp_path, "main_in_threads", "--fail")
    assert done.stderr == (
        "\n"
        "asyncsafe: 1 call on a connection with another task's open transaction, at 1 call site.\n"
        "\n"
        "calls  operation                   call site              transaction begun at\n"
        "    1  sqlite3.Connection.execute  program.py:7 insert()  the same line\n"
        "\n"
        "To mend it:\n"
        "  program.py:7 insert()  "
        'asyncsafe.ConnectionHandler({"default": ...})["default"], in each task\n'
    )
    assert done.returncode == 3


def test_the_table_of_what_was_refused(tmp_path: Path) -> None:
    done, report = asyncsafe_run(tmp_path, "main_in_threads", "--mode", "raise")
    assert "open transaction, at 1 call site; all were refused." in done.stderr
    assert [site["outcomes"]["raised"] for site in report["sites"]] == [1]
    assert done.returncode == 1


def test_the_json_report(tmp_path: Path) -> None:
    _, report = asyncsafe_run(tmp_path, "main")
    schema = Path(asyncsafe.__file__).parent / "reports" / "report.schema.json"
    jsonschema.validate(report, json.loads(schema.read_text()))
    (site,) = (site for site in report["sites"] if site["begun_by"])
    assert site["begun_by"] == "task 'Task-2'"
    assert site["begun_at"] == {
        "file": str(tmp_path / "program.py"),
        "line": 7,
        "function": "insert",
        "async": False,
    }
    assert site["outcomes"] == {"raised": 0, "warned": 0, "recorded": 1, "allowed": 0}
    assert [site["begun_at"] for site in report["sites"]].count(None) == 2


# What it costs -------------------------------------------------------------------------------------


def test_nothing_is_added_off_the_loop_until_a_thread_is_lent(tmp_path: Path) -> None:
    python(
        """
import asyncio, sqlite3, asyncsafe

asyncsafe.install()
asked = sqlite3.Connection.execute.__globals__
decorated = asyncsafe.async_unsafe(print)

async def main():
    pass

asyncio.run(main())
assert asked["get_running_loop"] is asyncio._get_running_loop
asyncsafe.configure(mode="off")
assert asked["get_running_loop"]() is None and not hasattr(asked["get_running_loop"], "__code__")
asyncsafe.configure(mode="raise")

asyncsafe.database_sync_to_async(print)
assert asked["get_running_loop"] is not asyncio._get_running_loop
assert decorated.__globals__["get_running_loop"] is asyncio._get_running_loop
""",
        tmp_path,
    )


@pytest.mark.parametrize("in_mode", ["record", "raise"])
def test_no_garbage_keeps_the_stack(sqlite: Connect, in_mode: Any) -> None:
    configure(mode=in_mode)
    connection = sqlite()

    def use() -> weakref.ref[Row]:
        row = Row()
        try:
            insert(connection)
        except ConnectionSharingError:
            pass
        return weakref.ref(row)

    async def main() -> list[Any]:
        async with another(insert, connection):
            return [await in_task(use) for _ in range(3)]

    gc.disable()
    try:
        assert [row() for row in run(main())] == [None] * 3
    finally:
        gc.enable()
