"""Connections and the context that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, ParamSpec, TypeVar, overload

from asgiref.local import Local
from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Local", "database_sync_to_async"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def database_sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
) -> Callable[P, Coroutine[None, None, R]]: ...
@overload
def database_sync_to_async(
    *, thread_sensitive: bool = True, executor: ThreadPoolExecutor | None = None
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[None, None, R]]]: ...
def database_sync_to_async(
    func: Callable[..., object] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
) -> object:
    """Turn a synchronous function that uses a database into a coroutine function, run in a thread.

    asgiref's SyncToAsync; a call (`await database_sync_to_async(func)(*args)`) or a decorator.

    thread_sensitive: run in the one thread that all such functions share, so that connections
        which belong to a thread (sqlite3's) can be used from call to call.
    executor: with thread_sensitive=False, the pool to run in.

    Raises TypeError for a coroutine function.
    """
    if func is None:
        return sync_to_async(thread_sensitive=thread_sensitive, executor=executor)
    return sync_to_async(func, thread_sensitive=thread_sensitive, executor=executor)
