"""PyMySQL: every call that writes to its socket, or reads from it.

A Cursor has its whole result when `execute()` returns: fetching from it is no I/O, and is not
guarded; an SSCursor reads row by row, and what nobody has read when it is closed.

aiomysql and asyncmy have classes of their own, and use PyMySQL's constants and packets alone.
"""

from __future__ import annotations

import sys

from ..tables import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _opens(connection: Any, *, defer_connect: object = False, **kwargs: Any) -> bool:
    return not defer_connect


def _is_open(connection: Any) -> bool:
    return bool(connection.open)


def _can_ping(connection: Any, reconnect: object = False) -> bool:
    """With nothing to reconnect, a ping of a closed connection is an error."""
    return bool(connection.open or reconnect)


def _changes_autocommit(connection: Any, value: object) -> bool:
    return bool(value != connection.get_autocommit())


# What a result has left is nowhere in public. `_result` is the cursor's last, and the connection's
# while that one is current: as Cursor._nextset() and SSCursor.close() find it out.


def _has_more_results(cursor: Any) -> bool:
    result, connection = cursor._result, cursor.connection
    return bool(connection.open and result and result is connection._result and result.has_next)


def _has_unread_rows(cursor: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(cursor.connection.open and cursor._result.unbuffered_active)


def _has_more_to_drain(cursor: Any) -> bool:
    return _has_more_results(cursor) or (
        cursor._result is cursor.connection._result and _has_unread_rows(cursor)
    )


def _has_arguments(cursor: Any, query: object, args: object) -> bool:
    return bool(args)


def _connection(thing: Any) -> Any:
    """A cursor that was closed has no connection any more."""
    return getattr(thing, "connection", None) or thing


def _query(thing: Any, query: object, *args: Any, **kwargs: Any) -> object:
    return query


def __del__(cursor: Any) -> None:  # noqa: N807
    """SSCursor.__del__, which is `close` by another name.

    A finalizer is known by the name of its code: none is ever refused. This one's is `close`.
    """
    sys.modules["pymysql.cursors"].SSCursor.close(cursor)


integration: Integration = Integration(
    "pymysql",
    {
        "pymysql.connections": {
            "Connection": [
                Operation("__init__", called="pymysql.connect", does_block=_opens),
                Operation("connect"),
                Operation("close", does_block=_is_open, cleans_up=True),
                Operation("autocommit", does_block=_changes_autocommit),
                Operation("begin"),
                Operation("commit"),
                Operation("rollback", does_block=_is_open, cleans_up=True),
                Operation("show_warnings"),
                Operation("select_db"),
                Operation("query", statement=_query),
                Operation("next_result"),
                Operation("kill"),
                Operation("ping", does_block=_can_ping),
                Operation("set_charset"),
                Operation("set_character_set"),
            ],
        },
        "pymysql.cursors": {
            "Cursor": [
                Operation("execute", statement=_query),
                Operation("executemany", statement=_query, does_block=_has_arguments),
                Operation("callproc", statement=_query),
                Operation("nextset", does_block=_has_more_results),
                Operation("close", does_block=_has_more_results, cleans_up=True),
            ],
            "SSCursor": [
                Operation("read_next", does_block=_has_unread_rows),
                Operation("fetchone", does_block=_has_unread_rows),
                Operation("fetchmany", does_block=_has_unread_rows),
                Operation("fetchall", does_block=_has_unread_rows),
                Operation("scroll", does_block=_has_unread_rows),
                Operation("nextset", does_block=_has_more_results),
                Operation("close", does_block=_has_more_to_drain, cleans_up=True),
            ],
        },
    },
    replaced={"pymysql.cursors": {"SSCursor": {"__del__": __del__}}},
    connection=_connection,
    distributions=("PyMySQL",),
    tested=("1.2.4",),
    exempt={
        "fetches from buffered cursors": "they have the whole result",
        "`autocommit()` that changes nothing": "it sends nothing",
        "aiomysql, asyncmy": "they have classes of their own, which don't block",
    },
)
