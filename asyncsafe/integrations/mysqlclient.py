"""mysqlclient: every call of MySQLdb that talks to the server.

MySQLdb.connections.Connection is a Python class on top of the C type `_mysql.connection`, whose
methods do the I/O. These are guarded, and above them what changes something before it calls them.
A Cursor has its whole result when `execute()` returns; an SSCursor reads row by row.

What is read by hand from `_mysql.connection.use_result()` is not guarded: the C result doesn't
tell whether its rows are on the client.
"""

from __future__ import annotations

from ..tables import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _is_open(connection: Any) -> bool:
    return bool(connection.open)


def _more_results(connection: Any) -> bool:
    return bool(connection.more_results())


def _has_columns(connection: Any) -> bool:
    """After a statement without a result there is nothing to read."""
    return bool(connection.field_count())


def _changes_autocommit(connection: Any, on: object) -> bool:
    return bool(on) != bool(connection.get_autocommit())


def _has_unread_rows(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    """An SSCursor's `_result`, which is nowhere in public. It stays when all rows were read."""
    return cursor._result is not None


def _has_more_to_read(cursor: Any) -> bool:
    return cursor._result is not None or bool(cursor.connection.more_results())


def _has_arguments(cursor: Any, query: object, args: object) -> bool:
    return bool(args)


def _connection(thing: Any) -> Any:
    """A cursor that was closed has no connection any more."""
    return getattr(thing, "connection", None) or thing


def _query(thing: Any, query: object, *args: Any, **kwargs: Any) -> object:
    return query


def _of(class_name: str, *operations: Operation) -> list[Operation]:
    """Named as users know them: after MySQLdb, and its class in place of the C type."""
    for operation in operations:
        operation.called = operation.called or f"MySQLdb.{class_name}.{operation.name}"
    return list(operations)


integration: Integration = Integration(
    "mysqlclient",
    {
        "MySQLdb._mysql": {
            "": [Operation("connect", called="MySQLdb._mysql.connect")],
            "connection": _of(
                "Connection",
                Operation("__init__", called="MySQLdb.connect"),
                Operation("autocommit"),
                Operation("commit", parameters="($self, /)"),
                Operation("rollback", does_block=_is_open, cleans_up=True, parameters="($self, /)"),
                Operation("close", does_block=_is_open, cleans_up=True),
                Operation("query", statement=_query, parameters="($self, query, /)"),
                Operation("send_query", statement=_query),
                Operation("read_query_result"),
                Operation("store_result", does_block=_has_columns, parameters="($self, /)"),
                Operation("discard_result", does_block=_has_columns, parameters="($self, /)"),
                Operation("next_result", does_block=_more_results, parameters="($self, /)"),
                Operation("set_server_option"),
                Operation("change_user"),
                Operation("set_character_set"),
                Operation("dump_debug_info"),
                Operation("kill"),
                Operation("ping"),
                Operation("select_db"),
                Operation("shutdown"),
                Operation("stat"),
            ),
        },
        "MySQLdb.connections": {
            "Connection": _of(
                "Connection",
                Operation("__init__", called="MySQLdb.connect"),
                Operation("autocommit", does_block=_changes_autocommit),
                Operation("begin"),
                Operation("set_character_set"),
                Operation("set_sql_mode"),
                Operation("show_warnings"),
            ),
        },
        "MySQLdb.cursors": {
            "BaseCursor": _of(
                "Cursor",
                Operation("execute", statement=_query),
                Operation("executemany", statement=_query, does_block=_has_arguments),
                Operation("callproc", statement=_query),
                Operation("nextset", does_block=_has_more_to_read),
                Operation("close", does_block=_has_more_to_read, cleans_up=True),
            ),
            "CursorUseResultMixIn": _of(
                "SSCursor",
                Operation("fetchone", does_block=_has_unread_rows),
                Operation("fetchmany", does_block=_has_unread_rows),
                Operation("fetchall", does_block=_has_unread_rows),
            ),
        },
    },
    connection=_connection,
    distributions=("mysqlclient",),
    tested=("2.3.2",),
    exempt={
        "fetches from buffered cursors": "they have the whole result",
        "`autocommit()` that changes nothing": "it sends nothing",
    },
    not_guarded={
        "rows of `_mysql.connection.use_result()`": (
            "the C result doesn't tell whether they are on the client"
        ),
        "one connection, two tasks": "mysqlclient doesn't tell whether a transaction is open",
        "what the garbage collector closes": "in C, where it must not raise",
    },
)
