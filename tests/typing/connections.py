"""Connections and functions in threads keep their types. Checked, never run: see test_typing.py.

Lines that end in `# error` must be errors, and no others may.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_type

from asyncsafe import Alias, ConnectionHandler, database_sync_to_async

# database_sync_to_async --------------------------------------------------------------------------


def find(a: int, /, b: str = "", *, c: bytes = b"") -> list[float]:
    return [1.0]


@database_sync_to_async
def bare(a: int, *rest: str) -> str:
    return str(a)


@database_sync_to_async(thread_sensitive=False, executor=ThreadPoolExecutor(1))
def apart(a: int, **more: bytes) -> str:
    return str(a)


class Repository:
    @database_sync_to_async
    def method(self, a: int) -> str:
        return str(a)

    @classmethod
    @database_sync_to_async
    def of_class(cls, a: int) -> int:
        return a

    @staticmethod
    @database_sync_to_async()
    def of_none(a: int) -> int:
        return a


def takes(function: Callable[[int, str], Coroutine[Any, Any, list[float]]]) -> None: ...


takes(database_sync_to_async(find))
takes(database_sync_to_async(bare))  # error


async def calls() -> None:
    assert_type(await database_sync_to_async(find)(1, b="", c=b""), list[float])
    assert_type(await database_sync_to_async(find, thread_sensitive=False)(1), list[float])
    assert_type(await bare(1, "a", "b"), str)
    assert_type(await apart(1, c=b""), str)
    assert_type(await Repository().method(1), str)
    assert_type(await Repository.of_class(1), int)
    assert_type(await Repository.of_none(1), int)

    await database_sync_to_async(find)()  # error
    await database_sync_to_async(find)("1")  # error
    await database_sync_to_async(find)(a=1)  # error
    await database_sync_to_async(find)(1, unknown=1)  # error
    await database_sync_to_async(find, executor=1)(1)  # error
    await bare(1, 2)  # error
    await apart("1")  # error
    await apart(1, c="")  # error
    await Repository().method("1")  # error
    (await bare(1)) + 1  # error


# ConnectionHandler and Alias ---------------------------------------------------------------------


def connect() -> sqlite3.Connection:
    return sqlite3.connect("orders.db")


def put_back(connection: sqlite3.Connection) -> None: ...


def put_back_another(connection: int) -> None: ...


def is_healthy(connection: sqlite3.Connection) -> bool:
    return True


assert_type(Alias(connect), Alias[sqlite3.Connection])
assert_type(
    Alias(connect, close=put_back, max_age=60, health_check=is_healthy).connect(),
    sqlite3.Connection,
)
connections = ConnectionHandler({"default": connect, "replica": Alias(connect, health_check=True)})
connections["default"].execute("SELECT 1")
connections.proxy("default").execute("SELECT 1")
names: list[str] = list(connections)

Alias(connect, close=put_back_another)  # error
Alias(connect, max_age="60")  # error
Alias("orders.db")  # error
ConnectionHandler({"default": "orders.db"})  # error
ConnectionHandler({1: connect})  # error
connections[1]  # error
