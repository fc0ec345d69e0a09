"""psycopg2: every call that talks to the server.

A client-side cursor has its whole result when `execute()` returns: fetching from it is no I/O,
and is not guarded; a named (server-side) cursor's fetches are. The C `with` blocks call commit,
rollback and close by their names, through the guards.

Exempt are connections opened with `async_=1` (aiopg's), and all of them under a wait callback
(`extensions.set_wait_callback`: psycogreen), which are made to wait without blocking.
"""

from __future__ import annotations

import sys

from ..installation import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STATUS_BEGIN = 2  # psycopg2.extensions.STATUS_BEGIN
_IDLE = 0  # psycopg2.extensions.TRANSACTION_STATUS_IDLE


def _waits_here(target: Any, *args: Any, **kwargs: Any) -> bool:
    """Neither asynchronous nor under a wait callback. target: a connection, or what belongs to one."""
    if sys.modules["psycopg2._psycopg"].get_wait_callback() is not None:
        return False
    return not getattr(getattr(target, "connection", target), "async_", 0)


def _opens_synchronously(
    connection: Any, dsn: object = None, async_: object = 0, **kwargs: Any
) -> bool:
    return not (async_ or kwargs.get("async"))


def _is_open(connection: Any) -> bool:
    return not connection.closed


def _in_transaction(connection: Any, *args: Any) -> bool:
    """Outside of a transaction, commit and rollback send nothing."""
    return not connection.closed and connection.status == _STATUS_BEGIN


def _changes_encoding(connection: Any, encoding: str) -> bool:
    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name)).upper()

    return plain(encoding) != plain(connection.encoding)


def _is_named(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    return cursor.name is not None


def _is_open_and_named(cursor: Any) -> bool:
    return cursor.name is not None and not cursor.closed and not cursor.connection.closed


def _asks_server(password: str, user: str, scope: Any = None, algorithm: str | None = None) -> bool:
    return scope is not None and algorithm is None and _waits_here(scope)


def _resets_or_closes(pool: Any, conn: Any = None, key: object = None, close: bool = False) -> bool:
    """Whether putconn() rolls back or closes, as AbstractConnectionPool._putconn decides it.

    The pool tells how full it is nowhere in public: `_pool` is its list of idle connections.
    """
    if conn.closed or not _waits_here(conn):
        return False
    return bool(close or len(pool._pool) >= pool.minconn or conn.info.transaction_status != _IDLE)


def _query(cursor: Any, query: Any, *args: Any, **kwargs: Any) -> object:
    return query.as_string(cursor) if hasattr(query, "as_string") else query


def _copy(direction: str) -> Any:
    def statement(cursor: object, file: object, table: object, *args: Any, **kwargs: Any) -> str:
        return f"COPY {table} {direction}"

    return statement


def _copy_expert(cursor: Any, sql: Any, *args: Any, **kwargs: Any) -> object:
    return _query(cursor, sql)


_POOL = [
    # A refusal inside would lose the connection's place in the pool: refuse at its entry.
    Operation("putconn", does_block=_resets_or_closes, cleans_up=True),
    # closeall() swallows what close() raises, and takes the connections for closed.
    Operation("closeall", cleans_up=True),
]
_ENCRYPT_PASSWORD = Operation(
    "encrypt_password", called="psycopg2.extensions.encrypt_password", does_block=_asks_server
)

integration: Integration = Integration(
    "psycopg2",
    {
        "psycopg2._psycopg": {
            "connection": [
                Operation("__init__", called="psycopg2.connect", does_block=_opens_synchronously),
                Operation("commit", does_block=_in_transaction),
                Operation("rollback", does_block=_in_transaction, cleans_up=True),
                Operation("close", does_block=_is_open, cleans_up=True),
                Operation("reset"),
                Operation("cancel"),
                Operation("poll"),
                Operation("tpc_begin"),
                Operation("tpc_prepare"),
                Operation("tpc_commit"),
                Operation("tpc_rollback", cleans_up=True),
                Operation("tpc_recover"),
                Operation("set_client_encoding", does_block=_changes_encoding),
                Operation("set_isolation_level", does_block=_in_transaction),
            ],
            "cursor": [
                Operation("execute", statement=_query),
                Operation("executemany", statement=_query),
                Operation("callproc", statement=_query),
                Operation("copy_from", statement=_copy("FROM STDIN")),
                Operation("copy_to", statement=_copy("TO STDOUT")),
                Operation("copy_expert", statement=_copy_expert),
                Operation("fetchone", does_block=_is_named),
                Operation("fetchmany", does_block=_is_named),
                Operation("fetchall", does_block=_is_named),
                Operation("__next__", does_block=_is_named),
                Operation("scroll", does_block=_is_named),
                Operation("close", does_block=_is_open_and_named, cleans_up=True),
            ],
            "lobject": [
                Operation("__init__", called="psycopg2.connection.lobject"),
                Operation("read"),
                Operation("write"),
                Operation("seek"),
                Operation("tell"),
                Operation("truncate"),
                Operation("export"),
                Operation("unlink"),
                Operation("close", cleans_up=True),
            ],
            "ReplicationCursor": [
                Operation("start_replication_expert", statement=_query),
                Operation("consume_stream"),
                Operation("send_feedback"),
            ],
            "": [_ENCRYPT_PASSWORD],
        },
        # The same function by the name that users import.
        "psycopg2.extensions": {"": [_ENCRYPT_PASSWORD]},
        "psycopg2.pool": {
            "SimpleConnectionPool": _POOL,
            "ThreadedConnectionPool": _POOL,
        },
    },
    does_block=_waits_here,
    trusted=("aiopg",),
    distributions=("psycopg2", "psycopg2-binary"),
)
