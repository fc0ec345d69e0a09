"""oracledb: every call of the synchronous classes that makes a round trip, or waits for a pool.

`Connection`, `Cursor`, `LOB`, `Queue` and `ConnectionPool` hold the methods that do I/O
themselves; what they have in common with the asynchronous classes does none, and is not touched.
Closing a cursor sends nothing: the server is told with the next call. Rows arrive in batches, and
nothing public tells whether the next one has: fetches are always refused.

A pool connects in threads of its own: `create_pool()` returns at once, `acquire()` waits for them.
`__del__` of connections, cursors, LOBs and pools closes them, and is never refused.
"""

from __future__ import annotations

from .. import transactions
from ..tables import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _connection(thing: Any) -> Any:
    return getattr(thing, "connection", thing)


def _is_open(thing: Any, *args: Any, **kwargs: Any) -> bool:
    """Closed ones have an error of their own, which reading an attribute of theirs raises."""
    _connection(thing).thin  # noqa: B018
    return True


def _is_open_cursor(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    cursor.arraysize  # noqa: B018
    return _is_open(cursor)


def _makes_round_trip(
    connection: Any,
    transaction_id: object = None,
    timeout: object = 60,
    defer_round_trip: bool = False,
) -> bool:
    return not defer_round_trip and _is_open(connection)


def _has_transaction(connection: Any) -> bool:
    return bool(connection.transaction_in_progress)


transactions.tell_by_library["oracledb"] = _has_transaction


def _sql(thing: object, statement: object, *args: object, **kwargs: object) -> object:
    return statement


def _procedure(cursor: object, name: object, *args: object, **kwargs: object) -> object:
    return f"CALL {name}"


def _all(
    does_block: Callable[..., bool] | None, *names: str, cleans_up: bool = False
) -> list[Operation]:
    return [Operation(name, does_block=does_block, cleans_up=cleans_up) for name in names]


integration: Integration = Integration(
    "oracledb",
    {
        "oracledb.connection": {
            "Connection": [
                Operation("__init__", called="oracledb.connect"),
                *_all(_is_open, "commit", "ping", "changepassword", "createlob", "gettype"),
                *_all(_is_open, "rollback", "close", cleans_up=True),
                *_all(_is_open, "subscribe", "unsubscribe", "startup", "shutdown"),
                *_all(_is_open, "direct_path_load"),
                Operation("fetch_df_all", does_block=_is_open, statement=_sql),
                Operation("fetch_df_batches", does_block=_is_open, statement=_sql),
                *_all(_is_open, "tpc_begin", "tpc_prepare", "tpc_commit", "tpc_end"),
                *_all(_is_open, "tpc_forget", "tpc_recover"),
                *_all(_is_open, "tpc_rollback", cleans_up=True),
                *_all(_makes_round_trip, "begin_sessionless_transaction"),
                *_all(_makes_round_trip, "resume_sessionless_transaction"),
                *_all(_is_open, "suspend_sessionless_transaction"),
            ],
        },
        "oracledb.cursor": {
            "Cursor": [
                Operation("execute", does_block=_is_open_cursor, statement=_sql),
                Operation("executemany", does_block=_is_open_cursor, statement=_sql),
                Operation("parse", does_block=_is_open_cursor, statement=_sql),
                Operation("callproc", does_block=_is_open_cursor, statement=_procedure),
                Operation("callfunc", does_block=_is_open_cursor, statement=_procedure),
                *_all(_is_open_cursor, "fetchone", "fetchmany", "fetchall", "__next__", "scroll"),
            ],
        },
        "oracledb.lob": {
            "LOB": [
                *_all(None, "read", "write", "size", "trim", "open", "isopen"),
                *_all(None, "fileexists", "getchunksize"),
                *_all(None, "close", cleans_up=True),
            ],
        },
        "oracledb.aq": {
            "Queue": [
                *_all(_is_open, "deqone", "deqmany", "enqone", "enqmany"),
                *_all(_is_open, "deqOne", "deqMany", "enqOne", "enqMany"),
            ],
        },
        "oracledb.pool": {
            "ConnectionPool": [
                *_all(_is_open, "acquire"),
                # A refusal further down would lose the connection's place in the pool.
                *_all(_is_open, "release", "drop", "close", cleans_up=True),
            ],
        },
    },
    connection=_connection,
    distributions=("oracledb",),
    tested=("26.1.0",),
    exempt={
        "`create_pool()`": "it connects in threads of its own",
        "`cursor()`, `cancel()`, closing a cursor": "they wait for nothing",
        "`AsyncConnection` and its like": "they don't block",
    },
    not_guarded={
        "SODA, and what else Thick mode alone has": "it needs Oracle's client libraries",
        "`ConnectionPool.reconfigure()`": "its threads do the work",
    },
)
