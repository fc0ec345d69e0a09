"""ConnectionHandler, Alias, ManagedConnection, ConnectionProxy; database_sync_to_async."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import SyncToAsync

import asyncsafe
from asyncsafe import (
    Alias,
    ConfigurationError,
    ConnectionHandler,
    ConnectionSharingError,
    ManagedConnection,
    database_sync_to_async,
)
from asyncsafe import connections as module
from asyncsafe.connections import ConnectionProxy

from .running import on_loop, python


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one table."""
    path = tmp_path / "orders.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE orders (total INTEGER)")
    connection.close()
    return path


@pytest.fixture
def connections(path: Path) -> Iterator[ConnectionHandler]:
    handler = ConnectionHandler({"default": lambda: sqlite3.connect(path)})
    yield handler
    handler.close_all()


def wait_for_worker() -> None:
    """For what asgiref's thread has been given to do."""
    SyncToAsync.single_thread_executor.submit(int).result()


def is_closed(connection: Any) -> bool:
    """Whether the owner of this connection has let it go."""
    return "closed, " in repr(connection)


async def returns(value: Any) -> Any:
    return value


# The mapping ------------------------------------------------------------------------------------


def test_it_is_a_mapping_of_aliases(path: Path) -> None:
    connect = functools.partial(sqlite3.connect, path)
    connections = ConnectionHandler({"default": connect, "replica": Alias(connect)})
    assert list(connections) == ["default", "replica"]
    assert len(connections) == 2
    assert "replica" in connections
    assert "Replica" not in connections
    assert ["default"] not in [connections]
    assert repr(connections) == "<ConnectionHandler 'default', 'replica'>"
    assert connections["default"] is not connections["replica"]
    assert connections.all() == [connections["default"], connections["replica"]]
    connections.close_all()


@pytest.mark.parametrize("name", ["Default", "", None, 1], ids=repr)
@pytest.mark.parametrize("ask", ["get", "proxy"])
def test_an_unknown_alias_tells_the_known_ones(path: Path, ask: str, name: Any) -> None:
    connections = ConnectionHandler({"default": lambda: None, "replica": lambda: None})
    with pytest.raises(KeyError) as caught:
        connections[name] if ask == "get" else connections.proxy(name)
    assert str(caught.value) == (
        f"there is no connection {name!r}; there are: 'default', 'replica'"
    )
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("aliases", "told"),
    [
        ({}, "ConnectionHandler({"),
        (None, "ConnectionHandler({"),
        ("default", "ConnectionHandler({"),
        ([("default", sqlite3.connect)], "ConnectionHandler({"),
        ({1: sqlite3.connect}, "an alias is a string, not 1"),
        ({"default": "postgresql://"}, "a function that connects is wanted, not a str"),
        ({"default": None}, "a function that connects is wanted, not None"),
    ],
    ids=repr,
)
def test_what_describes_no_alias_is_refused(aliases: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConnectionHandler(aliases)
    assert told in str(caught.value)


def test_a_connection_instead_of_a_function_is_refused(path: Path) -> None:
    """sqlite3's can be called."""
    with pytest.raises(ConfigurationError, match="wanted, not a Connection: write lambda"):
        ConnectionHandler({"default": sqlite3.connect(path)})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_age": -1}, "max_age is a number of seconds, or None, not -1"),
        ({"max_age": "60"}, "max_age is a number of seconds, or None, not '60'"),
        ({"max_age": float("nan")}, "max_age is a number of seconds, or None, not nan"),
        ({"health_check": "SELECT 1"}, "health_check is True, False, or a function"),
        ({"health_check": None}, "health_check is True, False, or a function"),
        ({"close": True}, "close is a function that takes a connection, or None, not True"),
    ],
    ids=repr,
)
def test_wrong_options_are_refused(options: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Alias(sqlite3.connect, **options)
    assert told in str(caught.value)


def test_an_alias_belongs_to_one_name() -> None:
    alias = Alias(lambda: sqlite3.connect(":memory:"))
    ConnectionHandler({"default": alias})
    with pytest.raises(ConfigurationError, match="'replica' is 'default' already"):
        ConnectionHandler({"replica": alias})


def test_a_mapping_that_changes_later_changes_nothing(path: Path) -> None:
    aliases: dict[str, Any] = {"default": lambda: sqlite3.connect(path)}
    connections = ConnectionHandler(aliases)
    aliases.clear()
    assert list(connections) == ["default"]


# What connects ----------------------------------------------------------------------------------


def test_an_error_of_the_function_comes_through_and_it_is_tried_again(path: Path) -> None:
    tries: list[object] = []

    def connect() -> sqlite3.Connection:
        tries.append(None)
        if len(tries) == 1:
            raise sqlite3.OperationalError("unable to open database file")
        return sqlite3.connect(path)

    connections = ConnectionHandler({"default": connect})
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        connections["default"]
    assert connections.all() == []
    assert isinstance(connections["default"], sqlite3.Connection)
    connections.close_all()


class Promise:
    """As asyncpg's create_pool() and aiosqlite's connect() return them."""

    def __await__(self) -> Any:
        yield


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: None, "returned None; it must return a connection of a synchronous driver"),
        (lambda: returns(1), "returned a coroutine; it must"),
        (Promise, "returned a Promise; it must"),
    ],
    ids=["None", "coroutine", "awaitable"],
)
def test_what_is_no_connection_is_refused(make: Callable[[], Any], told: str) -> None:
    connections = ConnectionHandler({"default": make})
    with pytest.raises(ConfigurationError, match="the function that connects 'default'") as caught:
        connections["default"]
    assert told in str(caught.value)
    assert connections.all() == []


# Closing --------------------------------------------------------------------------------------


def test_close_all_closes_the_callers_alone(connections: ConnectionHandler) -> None:
    threads = connections["default"]

    async def child() -> None:
        mine = connections["default"]
        connections.close_all()
        assert is_closed(mine)
        assert connections["default"] is not mine

    async def main() -> None:
        mine = connections["default"]
        await asyncio.create_task(child())
        assert mine.execute("SELECT 1").fetchone() == (1,)

    asyncio.run(main())
    assert threads.execute("SELECT 1").fetchone() == (1,)


def test_close_all_tries_all_and_raises_the_first_error(path: Path) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        connection.close()
        raise LookupError(len(connections.all()))

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path)

    connections = ConnectionHandler(
        {"a": connect, "b": Alias(connect, close=fails), "c": Alias(connect, close=fails)}
    )
    all_ = [connections[alias] for alias in connections]
    with pytest.raises(LookupError) as caught:
        connections.close_all()
    assert caught.value.args == (1,)
    assert all(map(is_closed, all_))
    assert connections.all() == []


def test_closing_one_makes_room_for_another(connections: ConnectionHandler) -> None:
    first = connections["default"]
    first.close()
    first.close()
    assert is_closed(first)
    assert connections.all() == []
    second = connections["default"]
    assert second is not first
    first.close()
    assert second.execute("SELECT 1").fetchone() == (1,)


def test_what_was_not_committed_is_not_kept(connections: ConnectionHandler) -> None:
    async def main() -> None:
        connections["default"].execute("INSERT INTO orders VALUES (1)")

    asyncio.run(main())
    assert connections["default"].execute("SELECT count(*) FROM orders").fetchone() == (0,)


# Age and health -------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def aged(path: Path, **options: Any) -> ConnectionHandler:
    return ConnectionHandler({"default": Alias(lambda: sqlite3.connect(path), **options)})


def test_an_old_connection_is_replaced(path: Path, clock: Clock) -> None:
    connections = aged(path, max_age=60)
    first = connections["default"]
    clock.now += 59
    connections.close_old_connections()
    assert connections["default"] is first
    clock.now += 1
    connections.close_old_connections()
    second = connections["default"]
    assert second is not first
    assert is_closed(first)
    assert connections.all() == [second]
    clock.now += 59
    assert connections["default"] is second
    connections.close_all()


@pytest.mark.parametrize("renew", ["ask", "close_old_connections"])
def test_an_old_connection_stays_while_it_is_in_a_transaction(
    path: Path, clock: Clock, renew: str
) -> None:
    connections = aged(path, max_age=60, health_check=lambda connection: False)
    first = connections["default"]
    first.execute("INSERT INTO orders VALUES (1)")
    clock.now += 600
    if renew == "close_old_connections":
        connections.close_old_connections()
    assert connections["default"] is first
    first.commit()
    clock.now += 600
    if renew == "close_old_connections":
        connections.close_old_connections()
        assert connections.all() == []
    assert connections["default"] is not first
    assert connections["default"].execute("SELECT total FROM orders").fetchall() == [(1,)]
    connections.close_all()


def test_an_old_connection_that_is_in_use_stays(path: Path) -> None:
    """A cursor may be open on it."""
    connections = aged(path, max_age=0)
    cursor = connections["default"].execute("SELECT 1 UNION SELECT 2")
    assert cursor.fetchone() == (1,)
    assert connections["default"].execute("SELECT 3").fetchall() == [(3,)]
    assert cursor.fetchall() == [(2,)]
    connections.close_all()


def test_max_age_0_is_for_one_call(path: Path) -> None:
    connections = aged(path, max_age=0)

    async def main() -> None:
        ask = database_sync_to_async(lambda: connections["default"])
        assert is_closed(await ask())
        assert await ask() is not await ask()

    asyncio.run(main())


def test_where_a_driver_does_not_tell_of_transactions_nothing_is_replaced(path: Path) -> None:
    class Driver:
        """All that PEP 249 asks for."""

        def __init__(self) -> None:
            connection = sqlite3.connect(path)
            self.cursor, self.commit = connection.cursor, connection.commit
            self.rollback, self.close = connection.rollback, connection.close

    connections = ConnectionHandler({"default": Alias(Driver, max_age=0, health_check=True)})
    connections["default"].cursor().execute("INSERT INTO orders VALUES (1)")
    connections.close_old_connections()
    connections["default"].commit()
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT total FROM orders").fetchall() == [(1,)]
    connections.close_all()


def test_the_health_of_an_idle_connection_is_checked(path: Path, clock: Clock) -> None:
    asked: list[object] = []
    healthy = [True]

    def check(connection: sqlite3.Connection) -> bool:
        assert type(connection) is sqlite3.Connection
        asked.append(connection)
        return healthy[0]

    connections = aged(path, health_check=check)
    first = connections["default"]
    clock.now += module.CHECK_DELAY - 1
    assert connections["default"] is first
    assert asked == []
    clock.now += module.CHECK_DELAY
    assert connections["default"] is first
    assert len(asked) == 1
    assert connections["default"] is first
    assert len(asked) == 1  # just used
    clock.now += module.CHECK_DELAY
    healthy[0] = False
    assert connections["default"] is not first
    assert is_closed(first)
    connections.close_all()


def test_a_health_check_that_raises_is_a_no(path: Path) -> None:
    def check(connection: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    connections = aged(path, health_check=check)
    first = connections["default"]
    connections.close_old_connections()
    assert is_closed(first)


def test_close_old_connections_leaves_the_young_and_the_healthy(path: Path) -> None:
    connections = aged(path, max_age=600, health_check=True)
    first = connections["default"]
    connections.close_old_connections()
    assert connections["default"] is first
    assert not first.in_transaction
    connections.close_all()


def test_health_check_true_asks_the_server(postgres: str) -> None:
    import psycopg2

    connections = ConnectionHandler(
        {"default": Alias(lambda: psycopg2.connect(postgres), health_check=True)}
    )
    first = connections["default"]
    connections.close_old_connections()
    assert connections["default"] is first
    assert first.status == psycopg2.extensions.STATUS_READY
    terminate(postgres, first.info.backend_pid)
    connections.close_old_connections()
    assert is_closed(first)
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections.close_all()


def test_a_connection_that_the_driver_knows_to_be_closed_is_replaced(postgres: str) -> None:
    import psycopg2

    connections = ConnectionHandler(
        {"default": Alias(lambda: psycopg2.connect(postgres), max_age=600)}
    )
    first = connections["default"]
    first.driver_connection.close()
    connections.close_old_connections()
    assert is_closed(first)
    connections.close_all()


def test_a_shared_connection_is_not_replaced(path: Path) -> None:
    connections = aged(path, max_age=0)
    first = connections["default"]
    first.inc_thread_sharing()
    connections.close_old_connections()
    assert connections["default"] is first
    first.dec_thread_sharing()
    connections.close_old_connections()
    assert connections["default"] is not first
    connections.close_all()


# ManagedConnection ------------------------------------------------------------------------------


def test_it_looks_like_the_drivers(connections: ConnectionHandler) -> None:
    connection = connections["default"]
    assert isinstance(connection, sqlite3.Connection)
    assert type(connection) is ManagedConnection
    assert type(connection.driver_connection) is sqlite3.Connection
    assert {"execute", "driver_connection", "inc_thread_sharing"} <= set(dir(connection))
    assert hasattr(connection, "total_changes")
    assert not hasattr(connection, "fetch_orders")


def test_attributes_are_read_set_and_deleted(connections: ConnectionHandler) -> None:
    class Row(sqlite3.Row):
        pass

    connection = connections["default"]
    connection.row_factory = Row
    assert connection.driver_connection.row_factory is Row
    assert type(connection.execute("SELECT 1").fetchone()) is Row
    with pytest.raises(AttributeError):
        connection.no_such_attribute = 1
    with pytest.raises((AttributeError, TypeError)):
        del connection.total_changes


def test_it_can_be_called_where_the_drivers_can(connections: ConnectionHandler) -> None:
    assert connections["default"]("SELECT 1")
    with pytest.raises(TypeError, match="argument"):
        connections["default"]()


def test_with_commits_and_rolls_back(connections: ConnectionHandler) -> None:
    connection = connections["default"]
    with connection as entered:
        assert entered is connection
        entered.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(LookupError):
        with connection:
            connection.execute("INSERT INTO orders VALUES (2)")
            raise LookupError
    assert not connection.in_transaction
    assert connection.execute("SELECT total FROM orders").fetchall() == [(1,)]


def test_closing_it_within_its_with_is_no_error(connections: ConnectionHandler) -> None:
    with connections["default"] as connection:
        connection.close()


def test_functions_in_c_take_the_driver_connection(connections: ConnectionHandler) -> None:
    other = sqlite3.connect(":memory:")
    with pytest.raises(TypeError):
        other.backup(connections["default"])
    connections["default"].backup(other)
    other.backup(connections["default"].driver_connection)
    other.close()


def test_repr_names_the_owner(connections: ConnectionHandler) -> None:
    connection = connections["default"]
    told = f"'default' of thread 'MainThread': {connection.driver_connection!r}>"
    assert repr(connection) == f"<{told}"
    connection.close()
    assert repr(connection) == f"<closed, {told}"

    async def main() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("orders")
        return repr(connections["default"])

    assert "'default' of task 'orders'" in asyncio.run(main())


def test_a_closed_one_is_refused(connections: ConnectionHandler) -> None:
    connection = connections["default"]
    connection.close()
    for use in USES.values():
        with pytest.raises(ConnectionSharingError) as caught:
            use(connection)
        assert str(caught.value) == (
            "this connection 'default' of thread 'MainThread' was closed; "
            "ask for connections['default'] where it is used"
        )


def _set(connection: Any) -> None:
    connection.row_factory = None


def _delete(connection: Any) -> None:
    del connection.row_factory


def _enter(connection: Any) -> None:
    with connection:
        pass


USES: Mapping[str, Callable[[Any], object]] = {
    "method": lambda connection: connection.execute("SELECT 1"),
    "attribute": lambda connection: connection.in_transaction,
    "set": _set,
    "delete": _delete,
    "call": lambda connection: connection("SELECT 1"),
    "with": _enter,
    "driver_connection": lambda connection: connection.driver_connection,
    "inc_thread_sharing": lambda connection: connection.inc_thread_sharing(),
}
each_use = pytest.mark.parametrize(
    "use", [*USES.values(), lambda connection: connection.close()], ids=[*USES, "close"]
)


@each_use
def test_another_task_is_refused_and_both_are_named(
    connections: ConnectionHandler, use: Callable[[Any], object]
) -> None:
    async def child(connection: Any) -> None:
        with pytest.raises(ConnectionSharingError) as caught:
            use(connection)
        assert caught.value.violation is None
        assert str(caught.value) == (
            "the connection 'default' belongs to task 'parent' and was used by task 'child'. Ask "
            "for connections['default'] where it is used: each has its own. If they must share "
            "this one: connection.inc_thread_sharing()"
        )

    async def main() -> None:
        mine = connections["default"]
        await asyncio.create_task(child(mine), name="child")
        assert mine.execute("SELECT 1").fetchone() == (1,)

    async def named() -> None:
        await asyncio.create_task(main(), name="parent")

    asyncio.run(named())


@each_use
def test_another_thread_is_refused_and_both_are_named(
    connections: ConnectionHandler, use: Callable[[Any], object]
) -> None:
    connection = connections["default"]
    errors: list[Exception] = []

    def work() -> None:
        try:
            use(connection)
        except ConnectionSharingError as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="other")
    thread.start()
    thread.join()
    (error,) = errors
    assert "belongs to thread 'MainThread' and was used by thread 'other'" in str(error)
    assert not is_closed(connection)


def test_a_with_that_another_ends_is_refused(connections: ConnectionHandler) -> None:
    connection = connections["default"]
    with connection:
        connection.execute("INSERT INTO orders VALUES (1)")
        with pytest.raises(ConnectionSharingError):
            on_loop(connection.__exit__, None, None, None)
        assert connection.in_transaction


def test_a_task_is_refused_the_threads(connections: ConnectionHandler) -> None:
    connection = connections["default"]
    with pytest.raises(ConnectionSharingError, match="thread 'MainThread' and was used by task"):
        on_loop(lambda: connection.in_transaction)


def test_the_connection_of_a_task_that_ended_is_refused(connections: ConnectionHandler) -> None:
    connection = on_loop(connections.__getitem__, "default")
    with pytest.raises(ConnectionSharingError, match=r"of task 'Task-\d+' was closed; ask for"):
        connection.execute("SELECT 1")


def test_sharing_is_counted(connections: ConnectionHandler) -> None:
    connection = connections["default"]

    def total_changes() -> int:
        return int(connection.total_changes)

    assert connection.allow_thread_sharing is False
    connection.inc_thread_sharing()
    connection.inc_thread_sharing()
    assert connection.allow_thread_sharing is True
    assert on_loop(total_changes) == 0
    connection.dec_thread_sharing()
    assert on_loop(total_changes) == 0
    connection.dec_thread_sharing()
    assert connection.allow_thread_sharing is False
    with pytest.raises(ConnectionSharingError):
        on_loop(total_changes)
    with pytest.raises(RuntimeError, match="without an inc_thread_sharing"):
        connection.dec_thread_sharing()


@pytest.mark.usefixtures("guarded")
def test_what_was_shared_is_no_longer_when_it_is_closed(path: Path) -> None:
    """Nor is a connection of nobody's that takes its place."""
    connections = ConnectionHandler(
        {"default": Alias(lambda: kept, close=lambda connection: connection.rollback())}
    )
    kept = sqlite3.connect(path, check_same_thread=False)
    shared = connections["default"]
    shared.inc_thread_sharing()
    shared.inc_thread_sharing()
    shared.close()
    shared.dec_thread_sharing()

    async def execute(statement: str) -> None:
        with asyncsafe.allow("to see what is said of sharing"):
            kept.execute(statement)

    async def main() -> None:
        await asyncio.create_task(execute("BEGIN IMMEDIATE"))
        with pytest.raises(ConnectionSharingError):
            await asyncio.create_task(execute("SELECT 1"))

    asyncio.run(main())
    kept.close()


def test_it_can_be_weakly_referenced_and_is_freed_with_its_owner(
    connections: ConnectionHandler,
) -> None:
    import weakref

    reference = on_loop(lambda: weakref.ref(connections["default"]))
    assert reference() is None


# ConnectionProxy ------------------------------------------------------------------------------


def test_a_proxy_is_whichever_connection_the_caller_has(connections: ConnectionHandler) -> None:
    connection: Any = connections.proxy("default")
    assert type(connection) is ConnectionProxy
    assert connections.all() == []
    threads = connection.driver_connection

    async def child() -> Any:
        return connection.driver_connection

    async def main() -> list[Any]:
        return [connection.driver_connection, *await asyncio.gather(child(), child())]

    assert len({id(one) for one in (threads, *asyncio.run(main()))}) == 4
    assert connection.driver_connection is threads
    assert connection == connections["default"]
    assert hash(connection) == hash(connections["default"])
    assert repr(connection) == "<ConnectionProxy 'default'>"


def test_a_proxy_reads_sets_deletes_calls_and_enters(connections: ConnectionHandler) -> None:
    connection: Any = connections.proxy("default")
    connection.row_factory = sqlite3.Row
    assert connections["default"].row_factory is sqlite3.Row
    with pytest.raises((AttributeError, TypeError)):
        del connection.total_changes
    assert connection("SELECT 1")
    with connection as entered:
        assert entered is connections["default"]
        connection.execute("INSERT INTO orders VALUES (1)")
    assert not connection.in_transaction
    connection.close()
    assert connections.all() == []
    assert connection.execute("SELECT 2").fetchone()[0] == 2


# Pools and drivers ----------------------------------------------------------------------------

NAME = f"asyncsafe-{os.getpid()}"


def query(connection: Any, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def backends(dsn: str) -> int:
    """How many of this test's connections the server has."""
    import psycopg2

    connection = psycopg2.connect(dsn)
    try:
        count: int = query(
            connection, f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{NAME}'"
        )
    finally:
        connection.close()
    return count


def until(condition: Callable[[], bool]) -> None:
    """PostgreSQL shows a backend for a moment after its client has gone."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def terminate(dsn: str, pid: int) -> None:
    import psycopg2

    connection = psycopg2.connect(dsn)
    try:
        query(connection, f"SELECT pg_terminate_backend({pid}, 30000)")
    finally:
        connection.close()


def work_of(connections: ConnectionHandler) -> Callable[[], int]:
    """A function that uses a connection, and returns the server's process for it."""

    def work() -> int:
        pid: int = query(connections["default"], "SELECT pg_backend_pid()")
        connections["default"].commit()
        return pid

    return work


@pytest.mark.usefixtures("guarded")
def test_psycopg2_leaves_no_backend(postgres: str) -> None:
    import psycopg2

    connections = ConnectionHandler(
        {"default": lambda: psycopg2.connect(postgres, application_name=NAME)}
    )
    work = work_of(connections)

    async def child() -> int:
        first = await database_sync_to_async(work)()
        assert await database_sync_to_async(work)() == first
        return first

    async def fails() -> None:
        await child()
        raise LookupError

    async def main() -> None:
        pids = await asyncio.gather(*(child() for _ in range(5)))
        assert len(set(pids)) == 5
        assert await asyncio.gather(fails(), return_exceptions=True)
        await child()

    asyncio.run(main())
    wait_for_worker()
    until(lambda: backends(postgres) == 0)
    assert list(asyncsafe.violations) == []


def test_psycopgs_with_closes_and_the_next_use_connects(postgres: str) -> None:
    import psycopg

    connections = ConnectionHandler(
        {"default": lambda: psycopg.connect(postgres, application_name=NAME)}
    )
    with connections["default"] as connection:
        assert query(connection, "SELECT 1") == 1
    assert is_closed(connection)
    assert query(connections["default"], "SELECT 1") == 1
    connections.close_all()
    until(lambda: backends(postgres) == 0)


def psycopg_pool(dsn: str) -> tuple[Any, Callable[[], int], Callable[[], None]]:
    from psycopg_pool import ConnectionPool

    pool = ConnectionPool(dsn, kwargs={"application_name": NAME}, min_size=1, max_size=2, open=True)
    pool.wait()
    return pool.getconn, lambda: int(pool.get_stats()["pool_available"]), pool.close


def psycopg2_pool(dsn: str) -> tuple[Any, Callable[[], int], Callable[[], None]]:
    from psycopg2.pool import ThreadedConnectionPool

    pool = ThreadedConnectionPool(1, 2, dsn, application_name=NAME)
    return pool.getconn, lambda: len(pool._pool), pool.closeall


def sqlalchemy_pool(dsn: str) -> tuple[Any, Callable[[], int], Callable[[], None]]:
    import psycopg2
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(
        lambda: psycopg2.connect(dsn, application_name=NAME),  # type: ignore[arg-type,return-value]
        pool_size=1,
        max_overflow=0,
    )
    return pool.connect, pool.checkedin, pool.dispose


POOLS = [psycopg_pool, psycopg2_pool, sqlalchemy_pool]
each_pool = pytest.mark.parametrize("make_pool", POOLS, ids=lambda pool: pool.__name__)


@each_pool
@pytest.mark.parametrize("wrapped", [False, True], ids=["method", "partial"])
def test_connections_go_back_to_their_pool(
    postgres: str, make_pool: Callable[[str], Any], wrapped: bool
) -> None:
    connect, available, close = make_pool(postgres)
    connections = ConnectionHandler({"default": functools.partial(connect) if wrapped else connect})
    work = work_of(connections)

    async def main() -> int:
        return await database_sync_to_async(work)()

    async def on_the_loop() -> int:
        return work()

    pids = set()
    try:
        for run in (main, on_the_loop, main):
            pids.add(asyncio.run(run()))
            wait_for_worker()
        thread = threading.Thread(target=lambda: pids.add(work()))
        thread.start()
        thread.join()
        until(lambda: available() == 1)
        pids.add(work())
        connections.close_all()
        assert len(pids) == 1
        assert available() == 1
    finally:
        close()
    until(lambda: backends(postgres) == 0)


@each_pool
def test_an_open_transaction_does_not_go_back_with_its_connection(
    postgres: str, make_pool: Callable[[str], Any]
) -> None:
    connect, available, close = make_pool(postgres)
    connections = ConnectionHandler({"default": connect})
    setting = "asyncsafe.left_open"
    try:
        query(connections["default"], f"SELECT set_config('{setting}', 'yes', false)")
        connections.close_all()
        until(lambda: available() == 1)
        assert not query(connections["default"], f"SELECT current_setting('{setting}', true)")
        connections.close_all()
    finally:
        close()


def test_what_waits_for_a_pool_that_is_empty_sees_the_pools_error(postgres: str) -> None:
    import psycopg2
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(
        lambda: psycopg2.connect(postgres, application_name=NAME),  # type: ignore[arg-type,return-value]
        pool_size=1,
        max_overflow=0,
        timeout=0.01,
    )
    connections = ConnectionHandler({"default": pool.connect})
    work = work_of(connections)

    async def main() -> None:
        first = await database_sync_to_async(work)()
        with pytest.raises(PoolTimeoutError, match="QueuePool limit of size 1 overflow 0"):
            await asyncio.create_task(database_sync_to_async(work)())
        # The first still has its own, and gives it back.
        await database_sync_to_async(connections.close_all)()
        assert await asyncio.create_task(database_sync_to_async(work)()) == first

    asyncio.run(main())
    wait_for_worker()
    assert pool.checkedout() == 0
    pool.dispose()


@pytest.fixture
def pool_of_one(path: Path) -> Any:
    from sqlalchemy.pool import QueuePool

    return QueuePool(
        lambda: sqlite3.connect(path, check_same_thread=False),
        pool_size=1,
        max_overflow=0,
        timeout=0.5,
    )


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_an_awaited_task_had_is_there_for_who_awaited_it(
    pool_of_one: Any, in_thread: bool
) -> None:
    """The loop goes on with who waits before it calls the task's other callbacks."""
    connections = ConnectionHandler({"default": pool_of_one.connect})

    def query() -> Any:
        return connections["default"].execute("select 1").fetchone()

    async def child() -> None:
        await database_sync_to_async(query)() if in_thread else query()

    async def parent() -> Any:
        await asyncio.create_task(child())
        return await database_sync_to_async(query)() if in_thread else query()

    assert asyncio.run(parent()) == (1,)


def test_with_is_the_drivers_over_a_pool(path: Path, pool_of_one: Any) -> None:
    """From SQLAlchemy 2.1, `with` over the pool's own object gives the connection back at its end."""
    connections = ConnectionHandler({"default": pool_of_one.connect})
    with connections["default"] as connection:
        connection.execute("insert into orders values (1)")
    assert connections["default"] is connection
    assert connection.execute("select total from orders").fetchall() == [(1,)]
    assert not connection.in_transaction
    connections.close_all()
    assert pool_of_one.checkedout() == 0


def test_waiting_for_a_pool_does_not_end_in_more_connections_than_its_cap(postgres: str) -> None:
    import psycopg2
    from sqlalchemy.pool import QueuePool

    seen: list[int] = []
    pool = QueuePool(
        lambda: psycopg2.connect(postgres, application_name=NAME),  # type: ignore[arg-type,return-value]
        pool_size=3,
        max_overflow=0,
    )
    connections = ConnectionHandler({"default": pool.connect})

    @database_sync_to_async(thread_sensitive=False)
    def work() -> None:
        query(connections["default"], "SELECT 1")
        seen.append(backends(postgres))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(work())

    asyncio.run(main())
    assert len(seen) == 20
    assert max(seen) <= 3
    assert pool.checkedout() == 0
    pool.dispose()


# database_sync_to_async -------------------------------------------------------------------------


def insert(connections: ConnectionHandler, total: int) -> int:
    """Insert an order."""
    with connections["default"] as connection:
        connection.execute("INSERT INTO orders VALUES (?)", (total,))
    return threading.get_ident()


def test_it_is_called(connections: ConnectionHandler) -> None:
    async def main() -> None:
        thread = await database_sync_to_async(insert)(connections, total=3)
        assert thread != threading.get_ident()

    asyncio.run(main())
    assert connections["default"].execute("SELECT total FROM orders").fetchall() == [(3,)]


@pytest.mark.parametrize(
    "decorate",
    [
        database_sync_to_async,
        database_sync_to_async(),
        database_sync_to_async(thread_sensitive=True),
        database_sync_to_async(thread_sensitive=False),
    ],
    ids=["bare", "empty", "thread_sensitive", "apart"],
)
def test_it_decorates(connections: ConnectionHandler, decorate: Any) -> None:
    @decorate
    def total(name: str = "Ada", /, *more: int, last: int = 4) -> int:
        """Add up."""
        return len(name) + sum(more) + last

    class Orders:
        offset = 1

        @decorate
        def total(self, a: int) -> int:
            return self.offset + a

        @classmethod
        @decorate
        def of_class(cls, a: int) -> int:
            return cls.offset + a

        @staticmethod
        @decorate
        def of_none(a: int) -> int:
            return a

    assert inspect.iscoroutinefunction(total)
    assert total.__name__ == "total"
    assert total.__doc__ == "Add up."
    assert str(inspect.signature(total)).startswith("(name: 'str' = 'Ada', /, *more")

    async def main() -> list[int]:
        orders = Orders()
        return [
            await total("Bo", 1, 2, last=3),
            await orders.total(1),
            await Orders.total(orders, 2),
            await Orders.of_class(3),
            await orders.of_none(4),
        ]

    assert asyncio.run(main()) == [8, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "func",
    [functools.partial(int, "7"), [7].pop, "7".__len__, lambda: 7],
    ids=["partial", "builtin method", "slot", "lambda"],
)
def test_it_takes_any_callable(func: Callable[[], int]) -> None:
    async def main() -> int:
        return await database_sync_to_async(func)()

    assert asyncio.run(main()) in {7, 1}


@pytest.mark.parametrize(
    ("func", "options", "told"),
    [
        (returns, {}, "sync functions"),
        (functools.partial(returns, 1), {}, "sync functions"),
        (3, {}, "sync functions"),
        (len, {"thread_sensitive": True, "executor": ThreadPoolExecutor(1)}, "executor must not"),
        (len, {"executor": ThreadPoolExecutor(1)}, "executor must not"),
    ],
    ids=["coroutine function", "partial", "number", "executor", "executor alone"],
)
def test_what_is_wrong_is_refused_at_once(func: Any, options: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        database_sync_to_async(func, **options)


def test_the_connection_lasts_from_call_to_call(connections: ConnectionHandler) -> None:
    def begin() -> Any:
        connections["default"].execute("INSERT INTO orders VALUES (1)")
        return connections["default"]

    def end() -> Any:
        connections["default"].commit()
        return connections["default"]

    async def main() -> None:
        assert await database_sync_to_async(begin)() is await database_sync_to_async(end)()

    asyncio.run(main())
    assert connections["default"].execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_tasks_do_not_share_though_their_calls_share_a_thread(
    connections: ConnectionHandler,
) -> None:
    async def child(total: int) -> tuple[Any, int]:
        return (
            await database_sync_to_async(lambda: connections["default"])(),
            await database_sync_to_async(insert)(connections, total),
        )

    async def main() -> None:
        results = await asyncio.gather(*(child(total) for total in range(5)))
        assert len({id(connection) for connection, _ in results}) == 5
        assert len({thread for _, thread in results}) == 1

    asyncio.run(main())
    assert connections["default"].execute("SELECT sum(total) FROM orders").fetchone() == (10,)


def test_the_workers_connection_is_refused_to_other_threads(connections: ConnectionHandler) -> None:
    async def main() -> None:
        theirs = await database_sync_to_async(lambda: connections["default"])()
        with pytest.raises(ConnectionSharingError, match="belongs to task 'main' and was used by"):
            await asyncio.to_thread(lambda: theirs.in_transaction)

    async def named() -> None:
        await asyncio.create_task(main(), name="main")

    asyncio.run(named())


def test_apart_each_call_has_connections_of_its_own(connections: ConnectionHandler) -> None:
    @database_sync_to_async(thread_sensitive=False)
    def work() -> Any:
        connection = connections["default"]
        assert connections["default"] is connection
        connection.execute("INSERT INTO orders VALUES (1)")
        return connection

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("main")
        mine = connections["default"]
        first, second = await work(), await work()
        assert first is not second
        assert mine not in (first, second)
        assert is_closed(first)
        assert is_closed(second)
        assert "of a thread of task 'main'" in repr(first)
        assert not is_closed(mine)

    asyncio.run(main())
    # What they didn't commit is gone.
    assert connections["default"].execute("SELECT count(*) FROM orders").fetchone() == (0,)


def test_apart_it_runs_in_the_executor(connections: ConnectionHandler) -> None:
    closed: list[str] = []
    handler = ConnectionHandler(
        {
            "default": Alias(
                lambda: sqlite3.connect(":memory:"),
                close=lambda _: closed.append(threading.current_thread().name),
            )
        }
    )

    def work() -> str:
        assert handler["default"]
        return threading.current_thread().name

    async def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
            name = await database_sync_to_async(work, thread_sensitive=False, executor=executor)()
            assert name == "mine_0"

    asyncio.run(main())
    assert closed == ["mine_0"]


@pytest.mark.parametrize("sensitive", [True, False], ids=["thread_sensitive", "apart"])
def test_exceptions_come_through(connections: ConnectionHandler, sensitive: bool) -> None:
    seen: list[Any] = []

    @database_sync_to_async(thread_sensitive=sensitive)
    def work() -> None:
        seen.append(connections["default"])
        raise LookupError("no such order")

    async def main() -> None:
        with pytest.raises(LookupError, match="no such order"):
            await work()
        assert is_closed(seen[0]) is not sensitive

    asyncio.run(main())
    wait_for_worker()
    assert is_closed(seen[0])


@pytest.mark.parametrize("sensitive", [True, False], ids=["thread_sensitive", "apart"])
def test_a_cancelled_call_closes_its_connection_when_it_is_done(
    connections: ConnectionHandler, sensitive: bool
) -> None:
    began, goes_on = threading.Event(), threading.Event()
    seen: list[Any] = []

    @database_sync_to_async(thread_sensitive=sensitive)
    def work() -> None:
        seen.append(connections["default"])
        began.set()
        assert goes_on.wait(30)
        insert(connections, 1)
        seen.append(is_closed(seen[0]))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(work())
        with ThreadPoolExecutor(1) as own:  # the loop's threads may all be taken
            await loop.run_in_executor(own, began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not is_closed(seen[0])
        goes_on.set()
        await loop.shutdown_default_executor()

    asyncio.run(main())
    wait_for_worker()
    assert seen[1] is False
    assert is_closed(seen[0])
    assert connections["default"].execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_a_call_that_is_cancelled_before_it_begins_is_not_made(
    connections: ConnectionHandler,
) -> None:
    goes_on = threading.Event()
    made: list[object] = []

    async def main() -> None:
        first = asyncio.create_task(database_sync_to_async(goes_on.wait)(30))
        second = asyncio.create_task(database_sync_to_async(made.append)(None))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        goes_on.set()
        assert await first

    asyncio.run(main())
    wait_for_worker()
    assert made == []


def test_before_each_call_old_and_dead_connections_are_closed(path: Path) -> None:
    checked: list[object] = []
    healthy = [True]

    def check(connection: sqlite3.Connection) -> bool:
        checked.append(threading.get_ident())
        return healthy[0]

    connections = aged(path, health_check=check)

    def work() -> Any:
        return connections["default"]

    async def main() -> None:
        first = await database_sync_to_async(work)()
        assert await database_sync_to_async(work)() is first
        assert set(checked) != {threading.get_ident()}
        assert len(set(checked)) == 1
        healthy[0] = False
        second = await database_sync_to_async(work)()
        assert second is not first
        assert is_closed(first)

    asyncio.run(main())


def test_after_each_call_old_connections_are_closed(path: Path) -> None:
    connections = aged(path, max_age=0)

    async def main() -> None:
        first = await database_sync_to_async(lambda: connections["default"])()
        assert is_closed(first)

    asyncio.run(main())


def test_a_transaction_outlasts_a_call_whatever_its_age(path: Path) -> None:
    connections = aged(path, max_age=0)

    def begin() -> Any:
        connection = connections["default"]
        connection.execute("INSERT INTO orders VALUES (1)")
        return connection

    def end() -> Any:
        connection = connections["default"]
        connection.commit()
        return connection

    async def main() -> None:
        begun = await database_sync_to_async(begin)()
        assert not is_closed(begun)
        assert await database_sync_to_async(end)() is begun
        assert is_closed(begun)

    asyncio.run(main())
    assert connections["default"].execute("SELECT count(*) FROM orders").fetchone() == (1,)
    connections.close_all()


def test_the_context_goes_along_and_comes_back() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def work() -> str:
        before = variable.get()
        variable.set("by the call")
        return before

    async def main() -> None:
        variable.set("by the task")
        assert await database_sync_to_async(work)() == "by the task"
        assert variable.get() == "by the call"

    asyncio.run(main())


@pytest.mark.usefixtures("guarded")
def test_nothing_is_flagged_in_its_thread(
    connections: ConnectionHandler, heard: list[asyncsafe.Violation]
) -> None:
    async def main() -> None:
        for sensitive in (True, False):
            call = database_sync_to_async(insert, thread_sensitive=sensitive)
            await call(connections, 1)

    asyncio.run(main())
    wait_for_worker()
    assert heard == []


# Imports --------------------------------------------------------------------------------------


def test_the_names_are_imported_when_they_are_used(tmp_path: Path) -> None:
    python(
        """if True:
        import sys, asyncsafe
        assert "asgiref" not in sys.modules and "asyncio" not in sys.modules
        from asyncsafe import ConnectionHandler, Local, ManagedConnection, database_sync_to_async
        import asgiref.local
        assert Local is asgiref.local.Local
        """.replace("if True:\n", "", 1).replace("        ", ""),
        tmp_path,
    )
