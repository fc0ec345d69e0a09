"""What once went wrong, each as its story: found by review, before the first release."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import gc
import json
import pickle
import sqlite3
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psycopg
import psycopg2
import pytest
import sqlalchemy
from asgiref.sync import sync_to_async
from fastapi import Depends, FastAPI
from sqlalchemy.pool import QueuePool, StaticPool

import asyncsafe
from asyncsafe import Alias, ConnectionHandler, database_sync_to_async, owners
from asyncsafe.asgi import ConnectionMiddleware
from asyncsafe.nesting import Inside

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
        from asyncsafe.reports import reading, recording

        class Holder:
            def __init__(self): self.connection, self.me = sqlite3.connect(":memory:"), self
            def __del__(self): self.connection.close()

        describe = recording.describe
        def collecting(site):
            gc.collect()
            return describe(site)
        recording.describe = collecting

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
        sites = reading.read_recordings({str(tmp_path)!r})["sites"]
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


# Connections ------------------------------------------------------------------------------------

#: Seconds after which something that should happen has not.
LONG = 20.0

HTTP: dict[str, Any] = {"type": "http", "method": "POST", "path": "/orders", "headers": []}


def request(
    app: Callable[[], Awaitable[object]], context: contextvars.Context | None = None
) -> asyncio.Task[None]:
    """One request to an application, which is called without arguments, below the middleware."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await app()

    async def serve() -> None:
        await ConnectionMiddleware(application)(dict(HTTP), None, None)  # type: ignore[arg-type]

    return asyncio.create_task(serve(), context=context)


async def concurrently(rounds: int, app: Callable[[int], Awaitable[object]]) -> None:
    """Some requests, eight at a time."""
    numbers = iter(range(rounds))

    async def client() -> None:
        for number in numbers:
            await request(functools.partial(app, number))

    await asyncio.gather(*(client() for _ in range(8)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of sqlite's, with one table."""
    path = tmp_path / "orders.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (n INTEGER)")
    return path


def rows(path: Path) -> list[int]:
    """What was committed."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM orders ORDER BY n")]


class Server:
    """A table of PostgreSQL's, and connections to it from a pool."""

    def __init__(self, dsn: str, driver: Any, pool_size: int) -> None:
        self.pool = QueuePool(
            lambda: driver.connect(dsn), pool_size=pool_size, max_overflow=0, timeout=5
        )
        self.connections = ConnectionHandler({"default": self.pool.connect})

    def insert(self, n: int) -> None:
        self.connections["default"].cursor().execute("INSERT INTO rg_orders VALUES (%s)", [n])

    def commit(self) -> None:
        self.connections["default"].commit()

    def backend(self) -> int:
        """The server's process for the caller's connection."""
        cursor = self.connections["default"].cursor()
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])

    def insert_and_commit(self, n: int) -> None:
        self.insert(n)
        self.commit()


@pytest.fixture
def serve(postgres: str) -> Iterator[Callable[..., Server]]:
    """Makes a Server, of this driver and with a pool of this size."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS rg_orders")
        connection.execute("CREATE TABLE rg_orders (n INTEGER)")
    made: list[Server] = []

    def make(driver: Any = psycopg2, pool_size: int = 10) -> Server:
        made.append(Server(postgres, driver, pool_size))
        return made[-1]

    yield make
    for server in made:
        server.pool.dispose()


def served(dsn: str) -> list[int]:
    """What was committed to PostgreSQL."""
    with psycopg.connect(dsn) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM rg_orders ORDER BY n").fetchall()]


def test_a_connection_that_is_being_closed_is_handed_to_nobody(path: Path) -> None:
    """A task that outlived its request went on with what the request's end was about to close."""
    closing, asked = threading.Event(), threading.Event()

    def close(connection: sqlite3.Connection) -> None:
        closing.set()
        assert asked.wait(LONG)
        connection.close()

    connections = ConnectionHandler(
        {"default": Alias(lambda: sqlite3.connect(path, check_same_thread=False), close=close)}
    )

    def insert(n: int) -> None:
        with connections["default"] as connection:
            connection.execute("INSERT INTO orders VALUES (?)", [n])

    def insert_meanwhile() -> None:
        try:
            insert(2)
        finally:
            asked.set()

    left: list[asyncio.Task[None]] = []

    async def outlive() -> None:
        assert await asyncio.to_thread(closing.wait, LONG)
        await asyncio.to_thread(insert_meanwhile)

    async def app() -> None:
        await asyncio.to_thread(insert, 1)
        left.append(asyncio.create_task(outlive()))

    async def main() -> None:
        await request(app)
        await left[0]

    asyncio.run(main())
    assert rows(path) == [1, 2]


def test_a_task_that_outlives_its_request_loses_no_row(
    serve: Callable[..., Server], postgres: str
) -> None:
    """Its calls took over connections whose release had begun in another thread."""
    server = serve(pool_size=3)
    left: list[asyncio.Task[None]] = []

    async def outlive(ended: asyncio.Event) -> None:
        await ended.wait()
        for n in range(200):
            await asyncio.to_thread(server.insert_and_commit, n)

    async def main() -> None:
        ended = asyncio.Event()

        async def app() -> None:
            left.append(asyncio.create_task(outlive(ended)))

        await request(app)
        ended.set()
        await left[0]

    asyncio.run(main())
    assert served(postgres) == list(range(200))


def by_sync_to_async(call: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    return sync_to_async(call, thread_sensitive=False)(*args)


by_any_thread = pytest.mark.parametrize(
    "run", [asyncio.to_thread, by_sync_to_async], ids=["to_thread", "sync_to_async"]
)


@by_any_thread
def test_a_commit_in_the_next_call_is_on_the_same_connection(
    run: Callable[..., Awaitable[Any]], serve: Callable[..., Server], postgres: str
) -> None:
    """Who awaits a call goes on before its thread is done with it. The commit took another
    connection then, and the row was rolled back."""
    server = serve(pool_size=10)

    async def app(n: int) -> None:
        await run(server.insert, n)
        await run(server.commit)

    asyncio.run(concurrently(200, app))
    assert served(postgres) == list(range(200))


@by_any_thread
def test_a_call_whose_context_is_kept_has_returned_all_the_same(
    run: Callable[..., Awaitable[Any]], path: Path
) -> None:
    """As a traceback keeps it, or a handle of the loop's. Its thread is busy with other work."""
    connections = ConnectionHandler(
        {"default": lambda: sqlite3.connect(path, check_same_thread=False)}
    )
    kept: list[contextvars.Context] = []
    threads: list[int] = []
    go_on = threading.Event()

    def insert() -> None:
        connections["default"].execute("INSERT INTO orders VALUES (1)")
        kept.append(contextvars.copy_context())
        threads.append(threading.get_ident())

    def occupy(begun: threading.Barrier) -> None:
        begun.wait(LONG)
        assert go_on.wait(LONG)

    def commit() -> None:
        connections["default"].commit()
        threads.append(threading.get_ident())

    async def app() -> None:
        await run(insert)
        begun = threading.Barrier(2)
        # Whichever thread takes the next work, the commit's is another than this.
        busy = asyncio.create_task(asyncio.to_thread(occupy, begun))
        await asyncio.to_thread(begun.wait, LONG)
        await run(commit)
        go_on.set()
        await busy

    async def main() -> None:
        await request(app)

    asyncio.run(main())
    assert rows(path) == [1]


def test_a_dependency_and_its_endpoint_are_on_one_connection(path: Path) -> None:
    """FastAPI runs a `def` dependency in any thread; an `async def` endpoint's calls are the
    request's. They had a connection each: another transaction, and twice the cap."""
    pool = QueuePool(
        functools.partial(sqlite3.connect, path, check_same_thread=False),
        pool_size=2,
        max_overflow=0,
        timeout=5,
    )
    connections = ConnectionHandler({"default": pool.connect})
    app = FastAPI()
    app.add_middleware(ConnectionMiddleware, connections)

    def transaction() -> Iterator[Any]:
        connection = connections["default"]
        try:
            yield connection.driver_connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

    def insert(n: int) -> Any:
        connections["default"].cursor().execute("INSERT INTO orders VALUES (?)", [n])
        return connections["default"].driver_connection

    two = asyncio.Barrier(2)

    @app.post("/{n}")
    async def endpoint(n: int, theirs: Any = Depends(transaction)) -> bool:  # noqa: B008
        # Both of the pool's connections are taken.
        async with asyncio.timeout(LONG):
            await two.wait()
        mine = await database_sync_to_async(insert)(n)
        if n >= 8:
            raise ValueError
        return mine is theirs

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post(f"/{n}") for n in range(10)))

    responses = asyncio.run(main())
    pool.dispose()
    assert [response.status_code for response in responses] == [200] * 8 + [500] * 2
    assert all(response.json() is True for response in responses[:8])
    assert rows(path) == list(range(8))


@pytest.mark.parametrize("where", ["on the loop", "in a thread"])
@pytest.mark.parametrize("operation", ["rollback", "close"])
def test_the_transaction_of_a_task_that_has_ended_can_be_ended(
    guarded: None, path: Path, operation: str, where: str
) -> None:
    """Nobody could: it was another's for good, and so was the connection."""
    connection = sqlite3.connect(path, check_same_thread=False)

    async def fail() -> None:
        with asyncsafe.allow("a shared connection"):
            connection.execute("INSERT INTO orders VALUES (1)")
        raise ZeroDivisionError

    async def end() -> None:
        if where == "in a thread":
            await database_sync_to_async(lambda: getattr(connection, operation)())()
        else:
            with asyncsafe.allow("a shared connection"):
                getattr(connection, operation)()

    async def main() -> None:
        failed = asyncio.create_task(fail())
        await asyncio.wait([failed])
        assert isinstance(failed.exception(), ZeroDivisionError)
        assert connection.in_transaction
        await asyncio.create_task(end())

    asyncio.run(main())
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as other, other:
        other.execute("INSERT INTO orders VALUES (2)")  # no lock is left
    assert rows(path) == [2]
    connection.close()


def test_a_connection_that_grows_old_under_a_cursor_stays(path: Path) -> None:
    """It was closed where it was asked for again: the cursor read from a closed connection."""
    with sqlite3.connect(path) as connection:
        connection.executemany("INSERT INTO orders VALUES (?)", [(n,) for n in range(100)])
    connections = ConnectionHandler({"default": Alias(lambda: sqlite3.connect(path), max_age=0)})

    @database_sync_to_async
    def read() -> list[int]:
        return [
            connections["default"].execute("SELECT ?", [n]).fetchone()[0]
            for (n,) in connections["default"].execute("SELECT n FROM orders ORDER BY n")
        ]

    assert asyncio.run(read()) == list(range(100))


def test_a_request_is_the_owner_in_every_context_of_its_task(path: Path) -> None:
    """In another context its task was taken for another owner, with a connection of its own."""
    connections = ConnectionHandler({"default": lambda: sqlite3.connect(path)})
    at_start_up = contextvars.copy_context()
    its_own = contextvars.copy_context()

    async def child() -> Any:
        return connections["default"]

    async def app() -> None:
        mine = connections["default"]
        assert at_start_up.run(lambda: connections["default"]) is mine
        assert len(connections.all()) == 1
        # A child is another owner, in its parent's own context too, and leaves nothing there.
        assert await asyncio.create_task(child(), context=its_own) is not mine
        assert connections["default"] is mine

    async def main() -> None:
        await request(app, its_own)

    asyncio.run(main())


@pytest.mark.parametrize("driver", [psycopg, psycopg2], ids=["psycopg", "psycopg2"])
def test_a_with_block_over_a_pool_commits_and_keeps_the_connection_open(
    serve: Callable[..., Server], postgres: str, driver: Any
) -> None:
    """psycopg's own `with` closes the connection: the pool got it back closed."""
    server = serve(driver, pool_size=1)
    backends = set()
    for n in range(3):
        with server.connections["default"]:
            server.insert(n)
            backends.add(server.backend())
        assert served(postgres) == list(range(n + 1))
    with pytest.raises(ZeroDivisionError), server.connections["default"]:
        server.insert(3)
        raise ZeroDivisionError
    backends.add(server.backend())
    assert served(postgres) == [0, 1, 2]
    server.connections.close_all()
    assert len(backends) == 1
    assert server.pool.checkedout() == 0


def test_the_health_check_takes_sqlalchemys_connections_for_what_they_are(path: Path) -> None:
    """They have no cursor(): each was thought dead, and replaced."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    made: list[Any] = []

    def connect() -> Any:
        made.append(engine.connect())
        return made[-1]

    connections = ConnectionHandler({"default": Alias(connect, health_check=True)})

    @database_sync_to_async
    def insert(n: int) -> None:
        connection = connections["default"]
        connection.execute(sqlalchemy.text("INSERT INTO orders VALUES (:n)"), {"n": n})
        connection.commit()

    async def main() -> None:
        for n in range(3):
            await insert(n)

    asyncio.run(main())
    engine.dispose()
    assert len(made) == 1
    assert rows(path) == [0, 1, 2]


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_connection_that_cannot_be_copied_says_so(
    path: Path, copier: Callable[[Any], Any]
) -> None:
    """It ended in a RecursionError."""
    connections = ConnectionHandler({"default": lambda: sqlite3.connect(path)})
    with pytest.raises(TypeError, match="can't be copied or pickled"):
        copier(connections["default"])
    assert connections["default"].execute("SELECT 1").fetchone() == (1,)
    connections.close_all()


def test_a_transaction_that_synchronous_code_began_is_no_tasks(guarded: None) -> None:
    """Django's TestCase opens one round all of a test, and its tasks' threads work in it."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("create table t (x)")
    connection.execute("insert into t values (0)")

    @asyncsafe.database_sync_to_async
    def insert(number: int) -> None:
        connection.execute("insert into t values (?)", [number])

    async def main() -> None:
        await asyncio.create_task(insert(1))
        await asyncio.create_task(insert(2))

    asyncio.run(main())
    assert connection.execute("select count(*) from t").fetchone() == (3,)
    connection.close()


def test_what_another_tool_wrapped_round_djangos_methods_stays(tmp_path: Path) -> None:
    """Sentry's integration and wrapt leave a __wrapped__, as Django's decorator does."""
    python(
        """if True:
        import functools, asyncsafe
        from django.conf import settings
        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(DATABASES={"default": sqlite})
        from django.db import connection
        from django.db.backends.base.base import BaseDatabaseWrapper
        seen = []
        method = BaseDatabaseWrapper.connect
        @functools.wraps(method)
        def connect(self):
            seen.append("connect")
            return method(self)
        BaseDatabaseWrapper.connect = connect
        asyncsafe.install()
        connection.ensure_connection()
        assert seen == ["connect"], seen
        asyncsafe.exempt(connection)  # the proxy: what it stands for
        async def main():
            with connection.cursor() as cursor:
                cursor.execute("select 1")
        import asyncio
        asyncio.run(main())
        """,
        tmp_path,
    )


def test_a_task_that_outlives_its_request_keeps_nothing_of_its_calls() -> None:
    """A queue's worker that the first request starts lives as long as the process."""
    connections = ConnectionHandler(
        {"default": lambda: sqlite3.connect(":memory:", check_same_thread=False)}
    )
    finish, tasks = asyncio.Event(), []
    sizes: list[int] = []

    def query() -> None:
        connections["default"].execute("select 1")

    async def worker() -> None:
        await finish.wait()
        for count in (50, 200):
            for _ in range(count):
                await asyncio.to_thread(query)
            gc.collect()
            sizes.append(sum(type(one) is owners.Owner for one in gc.get_objects()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(worker()))

    async def main() -> None:
        await ConnectionMiddleware(app, connections)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
        finish.set()
        await tasks[0]

    asyncio.run(main())
    assert sizes[1] <= sizes[0] + 20


def test_the_second_look_at_a_request_releases_nothing_that_is_in_use() -> None:
    """One that its loop abandons, or whose thread is busy, is looked at twice."""
    closed: list[Any] = []
    alias: Alias[Any] = Alias(
        lambda: sqlite3.connect(":memory:", check_same_thread=False), close=closed.append
    )
    connections = ConnectionHandler({"default": alias})
    request = owners.Request("request GET /", None)
    connected, leave = threading.Event(), threading.Event()

    def call() -> None:
        connections["default"]
        connected.set()
        leave.wait(10)

    request.begin()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
    request.leave()
    thread.start()
    connected.wait(10)
    for _ in range(2):
        request.end()
        for owner in request.idle():
            owner.release(everything=True)
        assert not closed
    leave.set()
    thread.join()


def test_a_handlers_connection_can_be_exempt(guarded: None) -> None:
    """What guards see is the driver's, and not what the handler gives."""
    connections = ConnectionHandler({"default": lambda: sqlite3.connect(":memory:")})

    async def main() -> None:
        asyncsafe.exempt(connections["default"])
        assert connections["default"].execute("select 1").fetchone() == (1,)

    async def connect() -> None:
        with asyncsafe.allow("connecting"):
            connections["default"]
        await main()

    asyncio.run(connect())


def test_garbage_that_is_closed_during_a_description_is_closed(guarded: None) -> None:
    """The collector may run anywhere, and what it closes must not be refused."""
    connection = sqlite3.connect(":memory:", isolation_level=None)

    def transaction() -> Iterator[None]:
        connection.execute("begin")
        try:
            yield
        except GeneratorExit:
            connection.execute("rollback")
            raise

    begun = transaction()
    next(begun)

    async def main() -> None:
        with Inside("description"):
            begun.close()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert not connection.in_transaction
    connection.close()


def test_a_finalizer_that_runs_during_a_description_does_its_work(guarded: None) -> None:
    """What it executes is lost if it is refused, as what it closes."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("create table released (name)")

    class Lock:
        def __del__(self) -> None:
            connection.execute("insert into released values ('lock')")

    async def main() -> None:
        lock = Lock()
        with Inside("description"):
            del lock

    asyncio.run(main())
    assert connection.execute("select name from released").fetchall() == [("lock",)]
    connection.close()


def test_what_one_module_has_replaced_is_everybody_elses_still() -> None:
    """Django's `get_running_loop` was replaced in each module that had asyncio's, asyncio among them."""
    import django.utils.asyncio

    original = asyncio.get_running_loop
    asyncsafe.install()
    assert django.utils.asyncio.get_running_loop is not original
    assert asyncio.get_running_loop is original
    assert asyncio.events.get_running_loop is original
    asyncsafe.uninstall()
    assert django.utils.asyncio.get_running_loop is original


def test_to_ask_whose_a_pool_is_opens_nothing(guarded: None) -> None:
    """StaticPool has its one connection as an attribute, which opens it: disposing of an
    asynchronous engine that had never connected did, and failed as connecting would have.
    """
    opened = []

    def creator() -> sqlite3.Connection:
        opened.append("once more")
        return sqlite3.connect(":memory:")

    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool, creator=creator)

    async def main() -> None:
        with contextlib.suppress(asyncsafe.SynchronousOnlyOperation):
            engine.pool.dispose()

    asyncio.run(main())
    assert not opened


def test_a_module_that_takes_no_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a guarded function by name: install() raised, and what came after it was not guarded."""
    pyodbc = pytest.importorskip("pyodbc", exc_type=ImportError)

    class Constants(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError("constants")

    module = Constants("constants")
    vars(module)["drivers"] = original = pyodbc.drivers
    monkeypatch.setitem(sys.modules, "constants", module)
    asyncsafe.install()
    assert pyodbc.drivers is not original
    assert module.drivers is original
    assert hasattr(sqlite3.Connection.execute, "__async_unsafe__")
    asyncsafe.uninstall()
    assert pyodbc.drivers is original
