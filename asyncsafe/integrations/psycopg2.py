"""psycopg2: every call that talks to the server.

A client-side cursor has its whole result when `execute()` returns: fetching from it is no I/O,
and is not guarded; a named (server-side) cursor's fetches are. The C `with` blocks call commit,
rollback and close by their names, through the guards.

Exempt are connections opened with `async_=1` (aiopg's), and all of them under a wait callback
(`extensions.set_wait_callback`: psycogreen), which are made to wait without blocking.
"""

from __future__ import annotations

import functools
import sys

from ..scopes import is_exempt
from ..tables import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_STATUS_BEGIN = 2  # psycopg2.extensions.STATUS_BEGIN
_IDLE = 0  # psycopg2.extensions.TRANSACTION_STATUS_IDLE
_INERROR, _UNKNOWN = 3, 4  # psycopg2.extensions.TRANSACTION_STATUS_INERROR, ..._UNKNOWN


def _waits_here(target: Any, *args: Any, **kwargs: Any) -> bool:
    """Not asynchronous, under a wait callback or exempt. target: a connection, or what belongs to one."""
    if sys.modules["psycopg2._psycopg"].get_wait_callback() is not None or is_exempt(target):
        return False
    return not getattr(getattr(target, "connection", target), "async_", 0)


def _opens_synchronously(
    connection: Any, dsn: object = None, async_: object = 0, also: object = 0, **kwargs: Any
) -> bool:
    """`connection(dsn, async, async_)`, each by place or by name."""
    return not (async_ or also or kwargs.get("async") or kwargs.get("async_"))


def _opens_replication_synchronously(
    connection: Any, dsn: object = None, async_: object = 0, kind: object = None, **kwargs: Any
) -> bool:
    return _opens_synchronously(connection, dsn, async_, **kwargs)


def _opens_replication(original: Any) -> Callable[..., Any]:
    """ReplicationConnection's constructor calls that of `connection` through the type's slot.

    Patched, the slot begins again at the constructor of the object's own class, and comes here a
    second time: on to `connection`, or it would never end.
    """
    opening: set[int] = set()

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if id(self) in opening:
            sys.modules["psycopg2._psycopg"].connection.__init__(self, *args[:2])
            return
        opening.add(id(self))
        try:
            original(self, *args, **kwargs)
        finally:
            opening.discard(id(self))

    return functools.update_wrapper(__init__, original)


def _is_open(thing: Any) -> bool:
    return not thing.closed


def _in_transaction(connection: Any, *args: Any) -> bool:
    """Outside of a transaction, commit and rollback send nothing."""
    return not connection.closed and connection.status == _STATUS_BEGIN


def _sets_session(
    connection: Any,
    isolation_level: object = None,
    readonly: object = None,
    deferrable: object = None,
    autocommit: object = None,
) -> bool:
    """Under autocommit no BEGIN takes a transaction's characteristics to the server: SET does."""
    if connection.autocommit if autocommit is None else autocommit:
        return not (isolation_level is readonly is deferrable is None)
    if not connection.autocommit:
        return False
    now = connection.isolation_level, connection.readonly, connection.deferrable
    return any(value is not None for value in now)


def _sets_autocommit(connection: Any, value: object) -> bool:
    return _sets_session(connection, autocommit=bool(value))


def _sets_characteristic(connection: Any, value: object) -> bool:
    return bool(connection.autocommit)


def _sets_isolation_level(connection: Any, level: object) -> bool:
    """It rolls back first, and 0 means autocommit."""
    return _in_transaction(connection) or _sets_autocommit(connection, level == 0)


def _changes_encoding(connection: Any, encoding: str) -> bool:
    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name)).upper()

    return plain(encoding) != plain(connection.encoding)


def _is_named(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    return cursor.name is not None


def _is_open_and_named(cursor: Any) -> bool:
    """After an error there is nothing left to close."""
    connection = cursor.connection
    if cursor.name is None or cursor.closed or connection.closed:
        return False
    return connection.info.transaction_status not in {_INERROR, _UNKNOWN}


def _of_connection(lobject: object, connection: Any, *args: Any, **kwargs: Any) -> bool:
    return _waits_here(connection)


def _asks_server(password: str, user: str, scope: Any = None, algorithm: str | None = None) -> bool:
    return scope is not None and algorithm is None and _waits_here(scope)


def _resets_or_closes(pool: Any, conn: Any = None, key: object = None, close: bool = False) -> bool:
    """Whether putconn() rolls back or closes, as AbstractConnectionPool._putconn decides it.

    What a pool holds is nowhere in public: `_pool` is its list of idle connections, `_used` its
    dictionary of those in use.
    """
    if conn.closed or not _waits_here(conn):
        return False
    return bool(close or len(pool._pool) >= pool.minconn or conn.info.transaction_status != _IDLE)


def _closes_any(pool: Any) -> bool:
    connections = [*pool._pool, *pool._used.values()]
    return not pool.closed and any(_is_open(c) and _waits_here(c) for c in connections)


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
    Operation("closeall", does_block=_closes_any, cleans_up=True),
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
                Operation("set_isolation_level", does_block=_sets_isolation_level),
                Operation("set_session", does_block=_sets_session),
                Operation("autocommit", setter=True, does_block=_sets_autocommit),
                Operation("isolation_level", setter=True, does_block=_sets_characteristic),
                Operation("readonly", setter=True, does_block=_sets_characteristic),
                Operation("deferrable", setter=True, does_block=_sets_characteristic),
            ],
            "cursor": [
                Operation("execute", statement=_query, parameters="($self, query, vars=None)"),
                Operation("executemany", statement=_query),
                Operation("callproc", statement=_query),
                Operation("copy_from", statement=_copy("FROM STDIN")),
                Operation("copy_to", statement=_copy("TO STDOUT")),
                Operation("copy_expert", statement=_copy_expert),
                Operation("fetchone", does_block=_is_named, parameters="($self, /)"),
                Operation("fetchmany", does_block=_is_named, parameters="($self, size=None)"),
                Operation("fetchall", does_block=_is_named, parameters="($self, /)"),
                Operation("__next__", does_block=_is_named),
                Operation("scroll", does_block=_is_named),
                Operation("close", does_block=_is_open_and_named, cleans_up=True),
            ],
            "lobject": [
                Operation(
                    "__init__", called="psycopg2.connection.lobject", does_block=_of_connection
                ),
                Operation("read"),
                Operation("write"),
                Operation("seek"),
                Operation("tell"),
                Operation("truncate"),
                Operation("export"),
                Operation("unlink"),
                Operation("close", does_block=_is_open, cleans_up=True),
            ],
            "ReplicationConnection": [
                Operation(
                    "__init__",
                    called="psycopg2.connect",
                    does_block=_opens_replication_synchronously,
                    adapt=_opens_replication,
                ),
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
    connection=lambda thing: getattr(thing, "connection", thing),
    distributions=("psycopg2", "psycopg2-binary"),
    tested=("2.9.13",),
    exempt={
        "fetches from client-side cursors": "they have the whole result",
        "`commit`, `rollback` outside of a transaction": "they send nothing",
        "connections with `async_=1`, aiopg": "they don't block",
        "everything under a wait callback (psycogreen)": "it waits without blocking",
    },
    not_guarded={
        "what the garbage collector closes": "in C, where it must not raise",
    },
)
