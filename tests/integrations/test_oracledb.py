"""oracledb (thin), as far as it goes without an Oracle server.

A listener that never answers shows what is sent, and when; a connection that was never opened has
the methods of one that is. What an operation does once it is let through can't be seen here.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import selectors
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import uvloop

import asyncsafe
from asyncsafe.installation import integration
from asyncsafe.transactions import in_transaction

from ..running import in_thread, on_loop, refused

oracledb = pytest.importorskip("oracledb")
connect_by_name = oracledb.connect


class Listener:
    """A socket that takes connections, and closes each at once."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        port = self.socket.getsockname()[1]
        self.options: dict[str, Any] = {
            **{"user": "scott", "password": "tiger"},
            "dsn": f"127.0.0.1:{port}/orcl?retry_count=0&transport_connect_timeout=5",
        }

    def taken(self) -> int:
        """How many have connected by now."""
        count = 0
        with suppress(BlockingIOError):
            while True:
                self.socket.accept()[0].close()
                count += 1
        return count

    def serve(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Make a call in a thread while connections are taken: its error, and how many there were."""
        import threading

        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(error(call)))
        thread.start()
        count = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while thread.is_alive():
                selector.select(0.05)
                count += self.taken()
        return result[0], count + self.taken()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    asyncsafe.uninstall()
    listener.socket.close()


def unopened() -> Any:
    """A connection that was never opened: it takes itself for open, and has nothing to send with."""
    connection: Any = object.__new__(oracledb.Connection)
    importlib.import_module("oracledb.connection").BaseConnection.__init__(connection)
    connection._impl = importlib.import_module("oracledb.thin_impl").ThinConnImpl()
    return connection


@pytest.fixture
def connection() -> Any:
    return unopened()


def error(call: Callable[[], Any]) -> tuple[type, str]:
    try:
        call()
    except Exception as raised:
        return type(raised), str(raised)
    return type(None), ""


class TestConnect:
    @pytest.mark.parametrize("connect", [oracledb.connect, connect_by_name, oracledb.Connection])
    def test_refused_before_anything_is_sent(self, listener: Listener, connect: Any) -> None:
        asyncsafe.install("oracledb")
        violation = refused(partial(connect, **listener.options))
        assert violation.operation == "oracledb.connect"
        assert listener.taken() == 0
        assert "tiger" not in violation.message()

    def test_off_the_loop_as_before(self, listener: Listener) -> None:
        connect = partial(oracledb.connect, **listener.options)
        bare = listener.serve(connect)
        assert issubclass(bare[0][0], oracledb.Error)
        assert bare[1] > 0
        asyncsafe.install("oracledb")
        guarded = listener.serve(connect)
        assert (guarded[0][0], guarded[1]) == (bare[0][0], bare[1])
        assert not asyncsafe.violations

    def test_recorded(self, listener: Listener) -> None:
        asyncsafe.install("oracledb")
        asyncsafe.configure(mode="record")
        raised, count = listener.serve(
            lambda: on_loop(partial(oracledb.connect, **listener.options))
        )
        assert issubclass(raised[0], oracledb.Error)
        assert count > 0
        assert [s.violation.operation for s in asyncsafe.violations] == ["oracledb.connect"]

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def test_asynchronous_side(self, listener: Listener, heard: list[Any], run: Any) -> None:
        asyncsafe.install("oracledb")

        async def main() -> None:
            pool = oracledb.create_pool_async(min=0, max=1, **listener.options)
            with pytest.raises(oracledb.Error):
                await oracledb.connect_async(**listener.options)
            await pool.close(force=True)

        raised, count = listener.serve(lambda: run(main()))
        assert raised == (type(None), "")
        assert count > 0
        assert heard == []


class TestPool:
    @pytest.fixture
    def pool(self, listener: Listener) -> Any:
        """One that connects for nobody yet."""
        return oracledb.create_pool(min=0, max=1, **listener.options)

    def test_create_pool_is_not_flagged(self, listener: Listener, heard: list[Any]) -> None:
        """It connects in threads of its own."""
        asyncsafe.install("oracledb")
        pool = on_loop(partial(oracledb.create_pool, min=0, max=1, **listener.options))
        assert heard == []
        pool.close(force=True)

    def test_acquire(self, listener: Listener, pool: Any) -> None:
        asyncsafe.install("oracledb")
        assert refused(pool.acquire).operation == "oracledb.ConnectionPool.acquire"
        assert (pool.busy, pool.opened, listener.taken()) == (0, 0, 0)
        pool.close(force=True)

    def test_close(self, listener: Listener, pool: Any, heard: list[Any]) -> None:
        asyncsafe.install("oracledb")
        assert refused(pool.close).operation == "oracledb.ConnectionPool.close"
        assert pool.opened == 0

        def use() -> None:
            try:
                raise LookupError("the application's")
            finally:
                pool.close()

        heard.clear()
        with pytest.raises(LookupError, match="the application's"):
            on_loop(use)
        assert [v.outcome for v in heard] == ["allowed"]
        with pytest.raises(oracledb.InterfaceError):  # closed: the error is its own
            on_loop(pool.close)

    def test_dropped_on_the_loop(
        self, listener: Listener, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        asyncsafe.install("oracledb")
        things = [oracledb.create_pool(min=0, max=1, **listener.options)]
        on_loop(lambda: (things.clear(), gc.collect()))
        assert (unraisable, heard) == ([], [])


#: With what each is called; without, where nothing is needed to be refused.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "fetch_df_batches": ("select 1 from dual",),
    "fetch_df_all": ("select 1 from dual",),
    "begin_sessionless_transaction": (b"1",),
    "resume_sessionless_transaction": (b"1",),
}
#: Of the rest, some crash the interpreter where there is no connection.
LET_THROUGH = {"commit", "rollback", "ping"}
OPERATIONS = [
    pytest.param(module, class_name, operation, id=f"{class_name}.{operation.name}")
    for module, classes in integration("oracledb").operations.items()
    for class_name, operations in classes.items()
    for operation in operations
]


@pytest.mark.parametrize(("module", "class_name", "operation"), OPERATIONS)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed oracledb lacks is passed over, which must not happen unseen.

    Nor is any of them the asynchronous classes' too.
    """
    owner = getattr(importlib.import_module(module), class_name)
    assert operation.name in vars(owner)
    asyncsafe.install("oracledb")
    assert hasattr(vars(owner)[operation.name], "__async_unsafe__")
    asynchronous = getattr(importlib.import_module(module), f"Async{class_name}")
    assert not hasattr(getattr(asynchronous, operation.name, None), "__async_unsafe__")


def test_public_calls_are_guarded_or_known(guarded: None) -> None:
    """A method that a new version brings is looked at before it is passed over."""
    known = {
        # begin() and prepare() call tpc_begin() and tpc_prepare(); SODA needs Oracle's libraries.
        "connection.Connection": {"begin", "prepare", "cursor", "getSodaDatabase"},
        "cursor.Cursor": set(),
        "lob.LOB": set(),
        "aq.Queue": set(),
        "pool.ConnectionPool": {"reconfigure"},
    }
    for name, names in known.items():
        module, _, class_name = name.partition(".")
        owner = getattr(importlib.import_module(f"oracledb.{module}"), class_name)
        bare = {
            name
            for name, value in vars(owner).items()
            if callable(value)
            and not name.startswith("_")
            and not hasattr(value, "__async_unsafe__")
        }
        assert bare == names, owner


class TestOperations:
    @pytest.mark.parametrize(
        "name",
        [
            operation.name
            for operation in integration("oracledb").operations["oracledb.connection"]["Connection"]
            if operation.name != "__init__"
        ],
    )
    def test_of_a_connection(self, connection: Any, name: str) -> None:
        def call() -> Any:
            result = getattr(connection, name)(*ARGUMENTS.get(name, ()))
            return next(result) if name == "fetch_df_batches" else result

        bare = error(call) if name in LET_THROUGH else None
        asyncsafe.install("oracledb")
        assert refused(call).operation == f"oracledb.Connection.{name}"
        assert connection.thin  # open, as it takes itself to be
        if name in LET_THROUGH:
            assert error(call) == bare

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("execute", ("select 1 from dual",)),
            ("executemany", ("select 1 from dual", [])),
            ("callproc", ("nothing",)),
            ("callfunc", ("nothing", int)),
            ("parse", ("select 1 from dual",)),
            ("scroll", ()),
            ("fetchone", ()),
            ("fetchmany", ()),
            ("fetchall", ()),
            ("__next__", ()),
        ],
    )
    def test_of_a_cursor(self, connection: Any, name: str, arguments: tuple[Any, ...]) -> None:
        cursor = connection.cursor()
        asyncsafe.install("oracledb")
        violation = refused(lambda: getattr(cursor, name)(*arguments))
        assert violation.operation == f"oracledb.Cursor.{name}"
        assert bool(violation.statement) is bool(arguments)

    @pytest.mark.parametrize(
        "name", ["cursor", "cancel", "transaction_in_progress", "stmtcachesize"]
    )
    def test_no_io_is_not_flagged(self, connection: Any, name: str, heard: list[Any]) -> None:
        asyncsafe.install("oracledb")
        on_loop(lambda: callable(found := getattr(connection, name)) and error(found))
        on_loop(lambda: connection.cursor().close())
        assert heard == []

    def test_deferred_round_trip(self, connection: Any, heard: list[Any]) -> None:
        asyncsafe.install("oracledb")
        on_loop(
            error,
            partial(connection.begin_sessionless_transaction, b"1", defer_round_trip=True),
        )
        assert heard == []

    def test_errors_of_its_own(self, connection: Any) -> None:
        connection._impl = None  # as it is once closed
        asyncsafe.install("oracledb")
        for name in ("commit", "rollback", "close", "ping"):
            with pytest.raises(oracledb.InterfaceError, match="not connected"):
                on_loop(getattr(connection, name))

    def test_application_error_arrives(self, connection: Any, heard: list[Any]) -> None:
        asyncsafe.install("oracledb")

        def use() -> None:
            with connection:
                raise LookupError("the application's")

        with pytest.raises((LookupError, AttributeError)):  # closing it needs a socket
            on_loop(use)
        assert [(v.operation, v.outcome) for v in heard] == [
            ("oracledb.Connection.close", "allowed")
        ]

    def test_dropped_on_the_loop(
        self, connection: Any, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        asyncsafe.install("oracledb")
        things = [unopened()]
        things.append(things[0].cursor())
        on_loop(lambda: (things.clear(), gc.collect()))
        assert unraisable == []
        assert {v.outcome for v in heard} <= {"allowed"}

    def test_made_before_and_uninstalled_again(self, connection: Any) -> None:
        kinds = (oracledb.Connection, oracledb.Cursor, oracledb.LOB, oracledb.ConnectionPool)
        bare = {kind: dict(vars(kind)) for kind in kinds}
        for _ in range(3):
            asyncsafe.install("oracledb")
            kept = connection.commit
            refused(kept)
            asyncsafe.uninstall()
            assert {kind: dict(vars(kind)) for kind in kinds} == bare
            asyncsafe.violations.clear()
            on_loop(error, kept)
            assert not asyncsafe.violations

    def test_in_a_thread(self, connection: Any, heard: list[Any]) -> None:
        asyncsafe.install("oracledb")
        in_thread(partial(error, connection.commit))
        assert heard == []

    def test_exempt(self, connection: Any, heard: list[Any]) -> None:
        asyncsafe.install("oracledb")
        asyncsafe.exempt(connection)
        on_loop(error, connection.commit)
        assert heard == []

    def test_transactions_are_told(self, connection: Any) -> None:
        asyncsafe.install("oracledb")
        assert in_transaction(connection) is False
