"""mysql-connector-python: every call that talks to the server, of both of its implementations.

`cursor()` pings. The getters of `autocommit`, `database`, `time_zone` and, once, `sql_mode` run a
query: all of them by `info_query()`, which is guarded for them. A default cursor reads its rows
when they are fetched, a buffered one in `execute()`.

Not guarded is the C extension used by hand (`_mysql_connector.MySQL`).

Connections tell nowhere in public which one a cursor has (`_connection`), or a pooled one
(`_cnx_pool`); nor do cursors what they have prepared (`_prepared`, `_stmt`), or whether they have
statements left to send (`_stmt_map_results`).
"""

from __future__ import annotations

import sys

from ...tables import Integration, Operation, default_does_block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _connection(thing: Any) -> Any:
    """The connection itself: cursors have a weak proxy of it, and pooled connections wrap it."""
    try:
        return getattr(thing, "_connection", thing).get_self()
    except (
        AttributeError,
        ReferenceError,
    ):  # a pool, a closed cursor, or a connection that is gone
        return thing


def _any_arguments(*args: Any, **kwargs: Any) -> bool:
    """Without arguments, nothing is connected to."""
    return bool(kwargs)


def _is_open(connection: Any, *args: Any, **kwargs: Any) -> bool:
    """One that was closed has errors of its own. The C one has no `connection_id` until it connects."""
    return getattr(connection, "connection_id", None) is not None


def _can_ping(connection: Any, reconnect: object = False, *args: Any, **kwargs: Any) -> bool:
    return bool(reconnect) or _is_open(connection)


def _reads_platform(connection: Any, **kwargs: Any) -> bool:
    """The name of the system, which is sent along, may come out of a subprocess (lsb_release)."""
    return isinstance(connection, sys.modules["mysql.connector.connection"].MySQLConnection)


def _has_unread_result(connection: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(connection.unread_result)


def _has_next_result(connection: Any) -> bool:
    return bool(connection.unread_result or connection.more_results)


def _has_operation(cursor: Any, operation: object, *args: Any, **kwargs: Any) -> bool:
    return bool(operation)


def _has_parameters(cursor: Any, operation: object, seq_params: object) -> bool:
    return bool(operation and seq_params)


def _prepares(cursor: Any, operation: object, seq_params: object) -> bool:
    return bool(seq_params)


def _query(thing: Any, query: object, *args: Any, **kwargs: Any) -> object:
    return query


# Cursors of the Python implementation


def _has_rows(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(cursor._connection.unread_result)


def _has_another_set(cursor: Any) -> bool:
    connection = cursor._connection
    prepared = getattr(cursor, "_prepared", None)
    return bool(connection.have_next_result or cursor._stmt_map_results or prepared)


def _drains(cursor: Any) -> bool:
    """Closing drops the rows that nobody has read only where the connection is told to."""
    return bool(cursor._connection.unread_result and cursor._connection.can_consume_results)


def _drains_or_deallocates(cursor: Any) -> bool:
    return bool(cursor._prepared) or _drains(cursor)


def _has_prepared(cursor: Any, free: object = True) -> bool:
    return bool(cursor._prepared)


# Cursors of the C implementation


def _c_has_rows(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    """At the end of a result its warnings are asked for, where the connection gets them."""
    connection = cursor._connection
    if connection.unread_result:
        return True
    return bool(connection.get_warnings and connection.warning_count)


def _c_has_another_set(cursor: Any) -> bool:
    return bool(cursor._stmt_map_results) or _has_next_result(cursor._connection)


def _c_frees(cursor: Any, free: object = True) -> bool:
    return bool(free and cursor._connection.unread_result)


def _c_has_prepared_rows(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(cursor._stmt.have_result_set)


def _c_has_prepared(cursor: Any, free: object = True) -> bool:
    return cursor._stmt is not None or _c_frees(cursor, free)


def _c_drains_or_deallocates(cursor: Any) -> bool:
    return cursor._stmt is not None or _drains(cursor)


# Pools


def _fills(
    pool: object,
    pool_size: object = 5,
    pool_name: object = None,
    pool_reset_session: object = True,
    **kwargs: Any,
) -> bool:
    return bool(kwargs)


def _makes_connection(pool: object, cnx: object = None) -> bool:
    return not cnx


def _resets(pooled: Any) -> bool:
    return bool(pooled._cnx_pool.reset_session)


def _of_both(name: str, **options: Any) -> Operation:
    return Operation(name, called=f"mysql.connector.MySQLConnection.{name}", **options)


_COMMANDS = default_does_block(
    _is_open,
    Operation("commit"),
    Operation("rollback", cleans_up=True),
    Operation("close", cleans_up=True),
    Operation("disconnect", cleans_up=True),
    Operation("cursor"),
    Operation("is_connected"),
    Operation("ping", does_block=_can_ping),
    Operation("reset_session"),
    Operation("database", setter=True),
    Operation("info_query", statement=_query),
    Operation("get_row", does_block=_has_unread_result),
    Operation("get_rows", does_block=_has_unread_result),
    Operation("consume_results", does_block=_has_unread_result),
    Operation("cmd_init_db"),
    Operation("cmd_query", statement=_query),
    Operation("cmd_refresh"),
    Operation("cmd_quit", cleans_up=True),
    Operation("cmd_shutdown"),
    Operation("cmd_statistics"),
    Operation("cmd_process_kill"),
    Operation("cmd_change_user"),
    Operation("cmd_reset_connection"),
    Operation("cmd_stmt_prepare", statement=_query),
    Operation("cmd_stmt_execute"),
    Operation("cmd_stmt_reset"),
    Operation("cmd_stmt_close", cleans_up=True),
)
_CONNECT = Operation("connect", called="mysql.connector.connect", does_block=_any_arguments)

integration: Integration = Integration(
    "mysql.connector",
    {
        "mysql.connector.abstracts": {
            # Of both implementations: named as the one that users know.
            "MySQLConnectionAbstract": [
                _of_both("config", does_block=_reads_platform),
                _of_both("connect"),
                _of_both("reconnect"),
                _of_both("start_transaction"),
                _of_both("set_charset_collation"),
                _of_both("autocommit", setter=True),
                _of_both("time_zone", setter=True),
                _of_both("sql_mode", setter=True),
            ],
        },
        "mysql.connector.connection": {
            "MySQLConnection": [
                Operation("__init__", called="mysql.connector.connect", does_block=_any_arguments),
                *_COMMANDS,
                # Its iterator does what is left to do: results are read one by one.
                Operation("cmd_query_iter", statement=_query),
                Operation("cmd_debug"),
                Operation("cmd_ping", does_block=_is_open),
                Operation("cmd_stmt_fetch"),
                Operation("cmd_stmt_send_long_data"),
            ],
        },
        "mysql.connector.connection_cext": {
            "CMySQLConnection": [
                Operation("__init__", called="mysql.connector.connect", does_block=_any_arguments),
                *_COMMANDS,
                Operation("autocommit", setter=True),
                Operation("set_character_set_name"),
                Operation("next_result", does_block=_has_next_result),
                Operation("free_result", does_block=_has_unread_result),
            ],
        },
        "mysql.connector.cursor": {
            "MySQLCursor": [
                Operation("execute", statement=_query, does_block=_has_operation),
                Operation("executemany", statement=_query, does_block=_has_parameters),
                # It would turn a refusal further down into an InterfaceError.
                Operation("callproc", statement=_query),
                Operation("fetchone", does_block=_has_rows),
                Operation("fetchmany", does_block=_has_rows),
                Operation("fetchall", does_block=_has_rows),
                Operation("nextset", does_block=_has_another_set),
                Operation("close", does_block=_drains, cleans_up=True),
            ],
            "MySQLCursorRaw": [
                Operation("fetchone", does_block=_has_rows),
                Operation("fetchall", does_block=_has_rows),
            ],
            "MySQLCursorPrepared": [
                Operation("execute", statement=_query),
                Operation("executemany", statement=_query, does_block=_prepares),
                Operation("fetchone", does_block=_has_rows),
                Operation("fetchmany", does_block=_has_rows),
                Operation("fetchall", does_block=_has_rows),
                Operation("reset", does_block=_has_prepared, cleans_up=True),
                Operation("close", does_block=_drains_or_deallocates, cleans_up=True),
            ],
        },
        "mysql.connector.cursor_cext": {
            "CMySQLCursor": [
                Operation("execute", statement=_query, does_block=_has_operation),
                Operation("executemany", statement=_query, does_block=_has_parameters),
                Operation("callproc", statement=_query),
                Operation("fetchone", does_block=_c_has_rows),
                Operation("fetchmany", does_block=_c_has_rows),
                Operation("fetchall", does_block=_c_has_rows),
                Operation("nextset", does_block=_c_has_another_set),
                Operation("reset", does_block=_c_frees, cleans_up=True),
                Operation("close", does_block=_drains, cleans_up=True),
            ],
            # It forgets its rows before it frees what the connection has still to read.
            "CMySQLCursorBuffered": [Operation("reset", does_block=_c_frees, cleans_up=True)],
            "CMySQLCursorPrepared": [
                Operation("execute", statement=_query, does_block=_has_operation),
                Operation("executemany", statement=_query, does_block=_prepares),
                Operation("fetchone", does_block=_c_has_prepared_rows),
                Operation("fetchmany", does_block=_c_has_prepared_rows),
                Operation("fetchall", does_block=_c_has_prepared_rows),
                Operation("reset", does_block=_c_has_prepared, cleans_up=True),
                Operation("close", does_block=_c_drains_or_deallocates, cleans_up=True),
            ],
        },
        "mysql.connector.pooling": {
            "": [_CONNECT],
            # A refusal further down would cost a pool its connection: refuse at its entry.
            "MySQLConnectionPool": [
                Operation(
                    "__init__", called="mysql.connector.MySQLConnectionPool", does_block=_fills
                ),
                Operation("add_connection", does_block=_makes_connection),
                Operation("get_connection"),
                # A pool has no public way to close its connections: this is what people call.
                Operation("_remove_connections", cleans_up=True),
            ],
            "PooledMySQLConnection": [Operation("close", does_block=_resets, cleans_up=True)],
        },
        # The same function by the names that users import.
        "mysql.connector": {
            "": [
                _CONNECT,
                Operation("Connect", called="mysql.connector.connect", does_block=_any_arguments),
            ],
        },
    },
    connection=_connection,
    distributions=("mysql-connector-python",),
    tested=("26.10.0",),
    exempt={
        "fetches from buffered cursors": "they have the whole result",
        "`mysql.connector.aio`": "it doesn't block",
    },
    not_guarded={
        "`_mysql_connector.MySQL`, used by hand": "it lies below what is guarded",
    },
)
