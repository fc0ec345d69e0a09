"""psycopg 3 and psycopg_pool: every call of the synchronous side that waits for the server.

`Connection` and `AsyncConnection` share base classes; what is guarded is of `Connection` and its
like alone, or asks which of the two it is. All I/O of an open connection passes `Connection.wait`.
The methods that come there are guarded at their own entry, where nothing has changed yet; `wait`
itself refuses what has no entry to guard (`stream()`, `copy()` and `notifies()`, whose code runs
when they are advanced or entered; a fetch in a pipeline; a writer of COPY that is used by itself)
and what users, or methods that later versions add, bring there.

A client-side cursor has its whole result when `execute()` returns: fetching from it is no I/O
outside of a pipeline. `psycopg_pool`'s `getconn()` and `connection()` do none in this thread, but
wait for threads that do, or for another task to give a connection back: always refused, since
whether they wait depends on what others hold at the moment. A pool that is collected while it is
open joins its threads for up to five seconds: a finalizer, which is never refused.

Not guarded is what lies below: `psycopg.pq`, `psycopg.waiting`. Of `Connection.connect`, taken as
a bound method before it was guarded (`from psycopg import connect`), the call is refused, but only
the resolution of names is timed.
"""

from __future__ import annotations

import sys
from time import monotonic

from ..scopes import is_exempt
from ..stacks import is_ours
from ..tables import Integration, Operation
from ..violation import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

_IDLE, _ACTIVE, _INTRANS = 0, 1, 2  # psycopg.pq.TransactionStatus
_COPY_IN = 4  # psycopg.pq.ExecStatus.COPY_IN


def _connection(thing: Any) -> Any:
    """The connection that a connection, cursor, transaction, pipeline or copy is or belongs to.

    None for a class (`connect`), a DSN and a pool, whose `connection` is a method.
    """
    if isinstance(thing, type):
        return None
    found = getattr(thing, "connection", None)
    if found is None:
        found = getattr(thing, "_conn", None)  # a pipeline tells it nowhere in public
    return None if callable(found) else found


def _is_open(thing: Any = None, *args: Any, **kwargs: Any) -> bool:
    """On a closed connection, each call has an error of its own. There is none yet to `connect`."""
    connection = _connection(thing)
    return connection is None or not connection.closed


def _status(connection: Any) -> int:
    status: int = connection.info.transaction_status
    return status


def _in_pipeline(connection: Any) -> bool:
    return bool(connection.info.pipeline_status)


def _in_transaction(connection: Any) -> bool:
    """Outside of a transaction, commit sends nothing."""
    return _status(connection) != _IDLE


def _rolls_back(connection: Any) -> bool:
    """Nor does rollback, but in a pipeline it synchronizes."""
    return _status(connection) != _IDLE or _in_pipeline(connection)


def _sets(connection: Any, value: object) -> bool:
    """A transaction's characteristics go with its BEGIN. A pipeline is synchronized first."""
    return _in_pipeline(connection) and _status(connection) == _IDLE


def _pool(connection: Any) -> Any:
    """The pool that a connection is out of, which it tells nowhere in public."""
    return getattr(connection, "_pool", None)


def _leaves(connection: Any, *exc_info: object) -> bool:
    """`with connection:` ends the transaction, and closes what is no pool's."""
    return _pool(connection) is None or _rolls_back(connection)


def _closes(connection: Any) -> bool:
    pool = _pool(connection)
    if pool is not None and getattr(pool, "close_returns", False):
        return _returns(pool, connection)
    return True


def _is_synchronous(connection: Any) -> bool:
    """BaseConnection is the base class of both."""
    return isinstance(connection, sys.modules["psycopg"].Connection)


def _caller() -> FrameType | None:
    """The frame that makes the call that is asked about."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _cancels(connection: Any, *args: Any, **kwargs: Any) -> bool:
    """What psycopg's own code cancels, it cleans up."""
    caller = _caller()
    return _is_synchronous(connection) and (caller is None or _package(caller) != "psycopg")


def _is_first_met(connection: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether no guard has answered for what waits here, nor is it cleaned up after a refusal."""
    caller = _caller()
    if caller is None or _package(caller) != "psycopg":
        return True
    if caller.f_code.co_qualname in _answered:
        return False
    # stream() ends a query that was refused half-way: what it sends then must go through.
    error = sys.exc_info()[1]
    return (
        error is None or error.__traceback__ is None or error.__traceback__.tb_frame is not caller
    )


def _is_declared(cursor: Any) -> bool:
    """Whether the server still has the cursor, as far as ServerCursor.close() asks it."""
    if cursor.closed:
        return False
    status = _status(cursor.connection)
    return status == _INTRANS or (status == _IDLE and cursor.withhold)


def _writes(copy: Any, *args: Any) -> bool:
    """A writer of another kind writes to a file."""
    return isinstance(copy.writer, sys.modules["psycopg.copy"].LibpqWriter)


def _finishes(copy: Any, *exc_info: Any) -> bool:
    """COPY FROM ends with a message; COPY TO is cancelled if an error ends it half-way."""
    if copy.cursor.pgresult.status == _COPY_IN:
        return _writes(copy)
    return any(exc_info) and _status(copy.connection) == _ACTIVE


def _fetches_type(cls: object, conn: Any, *args: Any, **kwargs: Any) -> bool:
    return _is_synchronous(conn) and not conn.closed and not is_exempt(conn)


def _is_pool_open(pool: Any, *args: Any, **kwargs: Any) -> bool:
    return not pool.closed


def _waits_for_pool(pool: Any, wait: bool = False, timeout: float = 30.0) -> bool:
    return wait


def _holds_idle(pool: Any) -> bool:
    return not pool.closed and pool.get_stats()["pool_available"] > 0


def _returns(pool: Any, conn: Any) -> bool:
    """Whether putconn() rolls back or closes in this thread, as ConnectionPool._putconn decides it.

    None of what it goes by is public: with a `reset` function it leaves the work to its threads;
    what is older than the last drain() or about to expire is closed. Refused only when it came to
    that, the connection's place in the pool would be lost.
    """
    if _pool(conn) is not pool or conn.closed or is_exempt(conn):
        return False
    if pool.closed or isinstance(pool, sys.modules["psycopg_pool"].NullConnectionPool):
        return True
    if pool._reset is not None:
        return False
    if _status(conn) != _IDLE:
        return True
    drained_at = getattr(pool, "_drained_at", 0.0)  # psycopg_pool 3.3
    return bool(conn._created_at <= drained_at or conn._expire_at <= monotonic() + 1)


def _query(thing: Any, query: Any, *args: Any, **kwargs: Any) -> object:
    return query.as_string(thing) if hasattr(query, "as_string") else query


def _describe(frames: list[FrameType]) -> Told | None:
    """What the user called, where that is not what was guarded: `stream()`, `pool.connection()`."""
    for frame in reversed(frames):
        if (package := _package(frame)) in {"psycopg", "psycopg_pool"}:
            return Told(f"{package}.{frame.f_code.co_qualname}() was called", None)
    return None


def _of_pool(name: str, does_block: Callable[..., bool], cleans_up: bool = False) -> Operation:
    called = f"psycopg_pool.ConnectionPool.{name}"
    return Operation(name, called=called, does_block=does_block, cleans_up=cleans_up)


_CONNECT = Operation("connect", called="psycopg.connect")

integration: Integration = Integration(
    "psycopg",
    {
        "psycopg": {
            "": [_CONNECT],
            "Connection": [
                _CONNECT,
                Operation("execute", statement=_query),
                Operation("commit", does_block=_in_transaction),
                Operation("rollback", does_block=_rolls_back, cleans_up=True),
                Operation("__exit__", does_block=_leaves, cleans_up=True),
                Operation("close", does_block=_closes, cleans_up=True),
                Operation("cancel_safe", does_block=_cancels),
                Operation("set_autocommit", does_block=_sets),
                Operation("set_isolation_level", does_block=_sets),
                Operation("set_read_only", does_block=_sets),
                Operation("set_deferrable", does_block=_sets),
                Operation("tpc_begin"),
                Operation("tpc_prepare"),
                Operation("tpc_commit"),
                Operation("tpc_rollback", cleans_up=True),
                Operation("tpc_recover"),
                Operation("wait", does_block=_is_first_met),
            ],
            "BaseConnection": [
                Operation("cancel", called="psycopg.Connection.cancel", does_block=_cancels),
            ],
            "Cursor": [
                Operation("execute", statement=_query),
                Operation("executemany", statement=_query),
            ],
            "ServerCursor": [
                Operation("execute", statement=_query),
                Operation("fetchone"),
                Operation("fetchmany"),
                Operation("fetchall"),
                Operation("__next__"),
                Operation("scroll"),
                Operation("close", does_block=_is_declared, cleans_up=True),
            ],
            "Copy": [
                Operation("read"),
                Operation("read_row"),
                Operation("write", does_block=_writes),
                Operation("write_row", does_block=_writes),
                Operation("finish", does_block=_finishes, cleans_up=True),
                Operation("__exit__", does_block=_finishes, cleans_up=True),
            ],
            "Transaction": [
                Operation("__enter__"),
                Operation("__exit__", cleans_up=True),
            ],
            "Pipeline": [
                # Entering the first sends nothing, but leaving it does, and left by a refusal it
                # isn't taken off its connection.
                Operation("__enter__"),
                Operation("__exit__", cleans_up=True),
                Operation("sync"),
            ],
        },
        # What `connect` calls first, whoever took hold of it and when.
        "psycopg.connection": {"": [Operation("conninfo_attempts", called="psycopg.connect")]},
        "psycopg.crdb": {"": [_CONNECT]},
        "psycopg.types": {
            "TypeInfo": [
                Operation("fetch", called="psycopg.types.TypeInfo.fetch", does_block=_fetches_type),
            ],
        },
        "psycopg_pool": {
            "ConnectionPool": [
                _of_pool("getconn", _is_pool_open),
                _of_pool("putconn", _returns, cleans_up=True),
                _of_pool("wait", _is_pool_open),
                _of_pool("open", _waits_for_pool),
                _of_pool("check", _holds_idle),
                _of_pool("drain", _holds_idle),
                _of_pool("close", _is_pool_open, cleans_up=True),
                _of_pool("__exit__", _is_pool_open, cleans_up=True),
            ],
            "NullConnectionPool": [
                Operation(
                    "wait",
                    called="psycopg_pool.NullConnectionPool.wait",
                    does_block=_is_pool_open,
                ),
            ],
        },
    },
    does_block=_is_open,
    connection=_connection,
    describe=_describe,
    distributions=("psycopg",),
    tested=("3.3.9",),
    exempt={
        "fetches from client-side cursors": "they have the whole result",
        "`commit`, `rollback` outside of a transaction": "they send nothing",
        "`AsyncConnection` and its like": "they don't block",
        "psycopg_pool's threads": "they are none of the loop's",
    },
    not_guarded={
        "`psycopg.pq`, `psycopg.waiting`": "they lie below what is guarded",
        "what the garbage collector closes": "in C, where it must not raise",
    },
)

#: The functions that have answered, with a guard of their own, for what they wait for.
_answered = frozenset(
    f"{class_name}.{operation.name}"
    for class_name, operations in integration.operations["psycopg"].items()
    for operation in operations
)
