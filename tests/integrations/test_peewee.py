"""use_local(database): each task, thread or request has its own connection and transactions."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peewee
import playhouse.pool
import playhouse.pwasyncio
import playhouse.sqliteq
import psycopg2
import pytest

import asyncsafe
from asyncsafe.asgi import ConnectionMiddleware

from ..running import python

NAME = "asyncsafe-peewee"

Database = Any


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sqlite database with a table of numbers."""
    path = tmp_path / "numbers.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table numbers (id integer primary key)")
    connection.close()
    return path


@pytest.fixture(params=["Sqlite", "PooledSqlite", "Postgresql", "PooledPostgresql"])
def database(request: pytest.FixtureRequest, file: Path) -> Iterator[Database]:
    """Each of peewee's databases, swapped, with a table of numbers. None is open at the end."""
    pooled = request.param.startswith("Pooled")
    kind = getattr(playhouse.pool if pooled else peewee, f"{request.param}Database")
    if "Sqlite" in request.param:
        database = kind(str(file), check_same_thread=not pooled)
    else:
        database = kind(request.getfixturevalue("postgres"), application_name=NAME)
    asyncsafe.use_local(database)
    with database.connection_context():
        database.execute_sql("drop table if exists numbers")
        database.execute_sql("create table numbers (id integer primary key)")
    yield database
    with database.connection_context():
        database.execute_sql("drop table numbers")
    if pooled:
        assert not database._in_use
        database.close_all()


def insert(database: Database, number: int) -> None:
    database.execute_sql(f"insert into numbers values ({number})")


def numbers(database: Database) -> list[int]:
    return [number for (number,) in database.execute_sql("select id from numbers order by id")]


def in_new_task(call: Callable[[], Any]) -> Any:
    async def task() -> Any:
        return call()

    return asyncio.run(task())


def is_closed(connection: Any) -> bool:
    """What the driver says of a connection of its own."""
    if isinstance(connection, sqlite3.Connection):
        try:
            connection.total_changes
        except sqlite3.ProgrammingError as error:
            return "closed" in str(error)  # and not that this is another thread
        return False
    return bool(connection.closed)


def is_released(database: Database, connection: Any) -> bool:
    """Closed; of a pool: given back to it."""
    if isinstance(database, playhouse.pool.PooledDatabase):
        in_use = [used.connection for used in database._in_use.values()]
        return connection not in in_use and connection in [c for *_, c in database._connections]
    return is_closed(connection)


class TestOwners:
    def test_each_task_has_a_connection_and_transactions(self, database: Database) -> None:
        async def task(number: int, barrier: asyncio.Barrier) -> Any:
            with database.atomic():
                insert(database, number)
                await barrier.wait()
                assert database.transaction_depth() == 1
                seen = numbers(database)
                connection = database.connection()
                await barrier.wait()
            return seen, connection

        async def main() -> Any:
            barrier = asyncio.Barrier(3)
            return await asyncio.gather(*(task(n, barrier) for n in range(3)))

        told = asyncio.run(main())
        assert [seen for seen, _ in told] == [[0], [1], [2]]
        assert len({id(connection) for _, connection in told}) == 3
        assert in_new_task(lambda: numbers(database)) == [0, 1, 2]

    @pytest.fixture
    def database(self, postgres: str) -> Iterator[Database]:
        """Where several can write at the same time."""
        database = playhouse.pool.PooledPostgresqlDatabase(postgres, application_name=NAME)
        asyncsafe.use_local(database)
        with database.connection_context():
            database.execute_sql("create table numbers (id integer primary key)")
        yield database
        with database.connection_context():
            database.execute_sql("drop table numbers")
        database.close_all()

    def test_a_child_task_does_not_work_in_its_parents_transaction(
        self, database: Database
    ) -> None:
        async def child() -> None:
            assert database.is_closed()
            assert not database.in_transaction()
            insert(database, 2)

        async def parent() -> None:
            with database.atomic() as transaction:
                insert(database, 1)
                await asyncio.create_task(child())
                assert database.in_transaction()
                transaction.rollback()

        asyncio.run(parent())
        assert in_new_task(lambda: numbers(database)) == [2]

    def test_a_worker_thread_goes_on_with_the_tasks_connection(self, database: Database) -> None:
        async def task() -> None:
            in_thread = asyncsafe.database_sync_to_async(database.connection)
            assert await in_thread() is database.connection()

        asyncio.run(task())

    def test_each_request_has_a_connection(self, database: Database) -> None:
        used: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert database.is_closed()
            used.append(await asyncsafe.database_sync_to_async(database.connection)())
            used.append(database.connection())

        served = ConnectionMiddleware(app, asyncsafe.use_local(database))

        async def main() -> None:
            own = database.connection()
            await served({"type": "http", "method": "GET", "path": "/"}, None, None)  # type: ignore[arg-type]
            assert used[0] is used[1] is not own
            assert database.connection() is own
            assert used[0] in [connection for *_, connection in database._connections]

        asyncio.run(main())


class TestEnds:
    """The connection is closed, or given back, when its owner ends."""

    def test_of_a_task(self, database: Database) -> None:
        assert is_released(database, in_new_task(database.connection))

    @pytest.mark.parametrize("end", ["returns", "raises", "is cancelled"])
    def test_a_transaction_that_is_open_is_rolled_back(self, end: str, database: Database) -> None:
        connections: list[Any] = []

        async def task() -> None:
            connections.append(database.connection())
            # As an async generator that nobody closes: it is never left.
            database.atomic().__enter__()
            insert(database, 1)
            database.savepoint().__enter__()
            insert(database, 2)
            if end == "raises":
                raise ValueError
            if end == "is cancelled":
                await asyncio.Event().wait()

        async def main() -> None:
            ended = asyncio.create_task(task())
            await asyncio.sleep(0)
            ended.cancel()
            await asyncio.wait([ended])

        asyncio.run(main())
        assert is_released(database, connections[0])
        assert in_new_task(lambda: (database.in_transaction(), numbers(database))) == (False, [])

    def test_one_that_was_begun_by_hand_is_rolled_back(self, database: Database) -> None:
        def leave_it_open() -> Any:
            database.begin()
            insert(database, 1)
            return database.connection()

        assert is_released(database, in_new_task(leave_it_open))
        assert in_new_task(lambda: numbers(database)) == []

    def test_of_a_thread(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        connections: list[Any] = []

        def work() -> None:
            database.atomic().__enter__()
            insert(database, 1)
            connections.append(database.connection())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert is_released(database, connections[0])
        assert in_new_task(lambda: numbers(database)) == []
        assert caplog.records == []

    def test_one_that_the_task_closed_itself(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        def use_and_close() -> Any:
            with database.connection_context():
                return database.connection()

        assert is_released(database, in_new_task(use_and_close))
        assert caplog.records == []

    def test_in_the_thread_that_connected(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Though the loop's thread was the first that asked whether the database is open."""

        async def task() -> Any:
            assert database.is_closed()
            return await asyncsafe.database_sync_to_async(database.connection)()

        async def main() -> None:
            connection = await asyncio.create_task(task())
            await asyncio.sleep(0)  # the loop calls what waits for the task's end
            # One thread, which does one thing after the other: after the task's end, this.
            released = await asyncsafe.database_sync_to_async(is_released)(database, connection)
            assert released

        asyncio.run(main())
        assert caplog.records == []

    def test_its_server_being_gone(self, postgres: str, caplog: pytest.LogCaptureFixture) -> None:
        """A pool's place is free again: with each that isn't, the pool gets smaller."""
        database = playhouse.pool.PooledPostgresqlDatabase(postgres, max_connections=1)
        asyncsafe.use_local(database)

        async def task() -> None:
            database.atomic().__enter__()
            killer = psycopg2.connect(postgres)
            killer.cursor().execute(
                "select pg_terminate_backend(%s, 10000)", [database.connection().info.backend_pid]
            )
            killer.close()

        asyncio.run(task())
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "a connection of task 'Task-" in caplog.text
        assert in_new_task(lambda: database.execute_sql("select 1").fetchone()) == (1,)
        assert not database._in_use
        database.close_all()


class TestPool:
    def test_no_more_connections_than_it_has(self, file: Path) -> None:
        database = playhouse.pool.PooledSqliteDatabase(str(file), max_connections=2)
        asyncsafe.use_local(database)

        async def task(barrier: asyncio.Barrier) -> None:
            database.connect()
            await barrier.wait()

        async def main() -> None:
            barrier = asyncio.Barrier(3)
            tasks = [asyncio.create_task(task(barrier)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(playhouse.pool.MaxConnectionsExceeded):
                database.connect()
            await barrier.wait()
            await asyncio.gather(*tasks)
            assert database.connect()

        asyncio.run(main())
        assert len(database._connections) == 2
        database.close_all()

    def test_the_next_task_gets_what_the_last_gave_back(self, postgres: str) -> None:
        database = playhouse.pool.PooledPostgresqlDatabase(postgres)
        asyncsafe.use_local(database)
        assert in_new_task(database.connection) is in_new_task(database.connection)
        database.close_all()


class TestSwapped:
    """What use_local returns."""

    def test_swapping_twice_changes_nothing(self, database: Database) -> None:
        first = asyncsafe.use_local(database)
        connection = database.connection()
        assert asyncsafe.use_local(database) is first  # though it is open
        assert database.connection() is connection
        first.close_all()

    def test_close_all_closes_the_callers(self, database: Database) -> None:
        swapped = asyncsafe.use_local(database)

        async def task() -> None:
            connection = database.connection()
            swapped.close_all()
            assert is_released(database, connection)
            assert database.is_closed()
            swapped.close_all()

        own = database.connection()
        asyncio.run(task())
        assert database.connection() is own
        swapped.close_all()
        assert is_released(database, own)

    def test_close_all_rolls_back(self, database: Database) -> None:
        swapped = asyncsafe.use_local(database)

        def leave_it_open() -> Any:
            database.atomic().__enter__()
            insert(database, 1)
            swapped.close_all()
            return database.in_transaction(), numbers(database)

        assert in_new_task(leave_it_open) == (False, [])

    def test_close_all_that_is_refused_leaves_everything_as_it_was(
        self, file: Path, guarded: None
    ) -> None:
        database = peewee.SqliteDatabase(str(file), check_same_thread=False)
        swapped = asyncsafe.use_local(database)

        async def task() -> None:
            with asyncsafe.allow("to be on the loop"):
                database.atomic().__enter__()
            own = database.connection()
            with pytest.raises(asyncsafe.SynchronousOnlyOperation):
                swapped.close_all()
            assert database.connection() is own
            assert database.in_transaction()
            await asyncsafe.database_sync_to_async(swapped.close_all)()
            assert is_closed(own)
            assert database.is_closed()

        asyncio.run(task())

    @pytest.mark.parametrize("fails", [OSError, KeyboardInterrupt])
    def test_close_all_that_fails_forgets_the_connection(
        self, fails: type[BaseException], file: Path
    ) -> None:
        class Failing(peewee.SqliteDatabase):
            def _close(self, conn: Any) -> None:
                super()._close(conn)
                raise fails

        database = Failing(file)
        swapped = asyncsafe.use_local(database)
        database.connect()
        with pytest.raises(fails):
            swapped.close_all()
        assert database.is_closed()

    def test_undo(self, file: Path) -> None:
        database = peewee.SqliteDatabase(str(file))
        original = database._state
        swapped = asyncsafe.use_local(database)
        swapped.undo()
        assert database._state is original
        database.connect()

        async def task() -> None:
            assert not database.is_closed()

        asyncio.run(task())
        database.close()
        assert asyncsafe.use_local(database) is not swapped

    def test_after_undo_each_owner_closes_its_own(self, file: Path) -> None:
        database = peewee.SqliteDatabase(str(file))
        swapped = asyncsafe.use_local(database)

        def undo_meanwhile() -> Any:
            mine = database.connection()
            swapped.undo()
            database.connect()
            return mine, database.connection()

        mine, threads = in_new_task(undo_meanwhile)
        assert is_closed(mine)
        assert not is_closed(threads)
        database.close()

    def test_guarded_calls_at_the_end_are_nobodys_violation(
        self,
        file: Path,
        guarded: None,
        heard: list[asyncsafe.Violation],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        database = peewee.SqliteDatabase(str(file))
        asyncsafe.use_local(database)

        def use() -> Any:
            with asyncsafe.allow("what is tested is its end"):
                database.atomic().__enter__()
                heard.clear()
                return database.connection()

        connection = in_new_task(use)
        assert is_closed(connection)
        assert heard == []
        assert caplog.records == []


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "uri"),
        [
            (":memory:", False),
            ("", False),
            ("file::memory:", True),
            ("file:numbers?mode=memory", True),
        ],
    )
    def test_a_database_in_memory(self, name: str, uri: bool) -> None:
        database = peewee.SqliteDatabase(name, uri=uri)
        with pytest.raises(asyncsafe.ConfigurationError, match="each task would have one: use a"):
            asyncsafe.use_local(database)

    @pytest.mark.parametrize(
        "name", ["file::memory:?cache=shared", "file:n?mode=memory&cache=shared"]
    )
    def test_a_database_in_memory_that_connections_share(self, name: str) -> None:
        database = peewee.SqliteDatabase(name, uri=True)
        asyncsafe.use_local(database)
        database.execute_sql("create table numbers (id integer primary key)")
        assert in_new_task(lambda: numbers(database)) == []
        database.close()

    def test_an_open_database(self, file: Path) -> None:
        database = peewee.SqliteDatabase(file)
        database.connect()
        with pytest.raises(
            asyncsafe.ConfigurationError, match=r"open in this thread: close\(\) it"
        ):
            asyncsafe.use_local(database)
        assert not database.is_closed()
        database.close()
        asyncsafe.use_local(database)

    def test_a_writer_thread_that_has_connected(self, file: Path) -> None:
        database = playhouse.sqliteq.SqliteQueueDatabase(file)
        database.execute_sql("insert into numbers values (1)").fetchall()
        with pytest.raises(
            asyncsafe.ConfigurationError, match=r"autostart=False.*start\(\) it after"
        ):
            asyncsafe.use_local(database)
        database.stop()
        asyncsafe.use_local(database)

    @pytest.mark.parametrize("kind", [peewee.Proxy, peewee.DatabaseProxy])
    @pytest.mark.parametrize("initialized", [False, True])
    def test_a_proxy(self, kind: type[Any], initialized: bool, file: Path) -> None:
        proxy = kind()
        if initialized:
            proxy.initialize(peewee.SqliteDatabase(file))
        with pytest.raises(asyncsafe.ConfigurationError, match="with the database that it is"):
            asyncsafe.use_local(proxy)

    def test_what_a_proxy_is_initialized_with(self, file: Path) -> None:
        proxy = peewee.DatabaseProxy()
        database = peewee.SqliteDatabase(file)
        proxy.initialize(database)
        asyncsafe.use_local(database)
        proxy.connect()
        assert in_new_task(proxy.is_closed)
        proxy.close()

    def test_pwasyncio(self, file: Path) -> None:
        database = playhouse.pwasyncio.AsyncSqliteDatabase(str(file))
        with pytest.raises(asyncsafe.ConfigurationError, match="for each task already"):
            asyncsafe.use_local(database)

    def test_what_is_no_database(self) -> None:
        class Number(peewee.Model):
            pass

        for thing in (peewee, peewee.IntegerField(), Number()):
            with pytest.raises(
                asyncsafe.ConfigurationError, match="takes peewee's Database, not a"
            ):
                asyncsafe.use_local(thing)


class TestKinds:
    """Databases that are made in other ways."""

    def test_deferred(self, file: Path) -> None:
        database = peewee.SqliteDatabase(None)
        asyncsafe.use_local(database)
        database.init(str(file))
        assert in_new_task(lambda: numbers(database)) == []

    def test_not_thread_safe(self, file: Path) -> None:
        database = peewee.SqliteDatabase(file, thread_safe=False)
        asyncsafe.use_local(database)
        database.connect()
        assert in_new_task(database.is_closed)
        database.close()

    def test_a_subclass_of_ones_own(self, file: Path) -> None:
        class Mine(peewee.SqliteDatabase):
            pass

        database = Mine(file)
        asyncsafe.use_local(database)
        assert is_closed(in_new_task(database.connection))

    def test_with_a_writer_thread(self, file: Path) -> None:
        database = playhouse.sqliteq.SqliteQueueDatabase(file, autostart=False)
        asyncsafe.use_local(database)
        database.start()

        async def task() -> list[int]:
            insertion = database.execute_sql("insert into numbers values (1)")
            await asyncio.to_thread(insertion.fetchall)
            return numbers(database)

        assert asyncio.run(task()) == [1]
        database.stop()


def test_what_we_know_of_peewee() -> None:
    """The private names that use_local depends on. Where one is gone, that isn't seen otherwise."""
    database = peewee.SqliteDatabase(None)
    assert type(database._state) is peewee._ConnectionLocal
    assert peewee._ConnectionLocal.__bases__ == (peewee._ConnectionState, threading.local)
    assert {"closed", "conn", "transactions"} <= vars(peewee._ConnectionState()).keys()
    assert callable(peewee._ConnectionState.set_connection)
    assert callable(peewee._ConnectionState.reset)
    assert callable(playhouse.pool.PooledDatabase._close)
    assert hasattr(playhouse.pwasyncio.AsyncDatabaseMixin, "aexecute")


def test_a_forked_child_leaves_the_parents_connection_alone(postgres: str, tmp_path: Path) -> None:
    python(
        textwrap.dedent(
            f"""
            import asyncio, os, sys
            import asyncsafe, peewee

            database = peewee.PostgresqlDatabase({postgres!r})
            asyncsafe.use_local(database)
            backend = "select pg_backend_pid()"
            (parents,) = database.execute_sql(backend).fetchone()
            database.begin()

            child = os.fork()
            if not child:
                assert database.is_closed()
                assert database.execute_sql(backend).fetchone() != (parents,)

                async def task():
                    assert database.is_closed()
                    assert database.execute_sql(backend).fetchone() != (parents,)

                asyncio.run(task())
                sys.exit()

            assert os.waitpid(child, 0)[1] == 0
            assert database.execute_sql(backend).fetchone() == (parents,)
            assert database.connection().info.transaction_status == 2  # still in its transaction
            """
        ),
        tmp_path,
    )
