"""pyodbc: every call that the ODBC driver may answer from the server, or from a file.

What does I/O is the driver's affair: PostgreSQL's has all rows when `execute()` returns, SQL
Server's reads them when they are fetched, and nothing in ODBC tells which of the two it is. So
what does I/O in one of them is guarded: fetches, `nextset()`, `getinfo()`, `close()` of a cursor
that was used. Its types are static and immutable, and call nothing of each other by name.

Nor does pyodbc tell whether a transaction is open: without autocommit, `commit()` and
`rollback()` always count as I/O, and "one connection, two tasks" isn't seen.
"""

from __future__ import annotations

from ..tables import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _connection(thing: Any) -> Any:
    """A cursor that was closed has no connection any more."""
    return getattr(thing, "connection", None) or thing


def _is_open(thing: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Closed ones have errors of their own: reading a closed cursor's `connection` raises, too."""
    connection = thing.connection if hasattr(type(thing), "connection") else thing
    return not getattr(connection, "closed", False)


def _in_transaction(thing: Any, *exc_info: Any) -> bool:
    """With autocommit there is nothing to commit or roll back."""
    return not _connection(thing).autocommit


def _was_used(cursor: Any) -> bool:
    """Before the first statement, there is nothing to discard or to deallocate."""
    return cursor.description is not None or cursor.rowcount != -1


def _changes_autocommit(connection: Any, value: object) -> bool:
    return bool(value) != bool(connection.autocommit)


def _sql(self: object, sql: object, *parameters: object) -> object:
    return sql


_CATALOG = (
    *("tables", "tablePrivileges", "columns", "statistics", "rowIdColumns", "rowVerColumns"),
    *("primaryKeys", "foreignKeys", "getTypeInfo", "procedures", "procedureColumns"),
)

integration: Integration = Integration(
    "pyodbc",
    {
        "pyodbc": {
            "": [
                Operation("connect", called="pyodbc.connect"),
                Operation("drivers", called="pyodbc.drivers"),
                Operation("dataSources", called="pyodbc.dataSources"),
            ],
            "Connection": [
                Operation("execute", statement=_sql),
                Operation("commit", does_block=_in_transaction),
                Operation("rollback", does_block=_in_transaction, cleans_up=True),
                Operation("__exit__", does_block=_in_transaction, cleans_up=True),
                Operation("close", cleans_up=True),
                Operation("getinfo"),
                Operation("set_attr"),
                Operation("autocommit", setter=True, does_block=_changes_autocommit),
            ],
            "Cursor": [
                Operation("execute", statement=_sql),
                Operation("executemany", statement=_sql),
                Operation("fetchone", parameters="($self, /)"),
                Operation("fetchval", parameters="($self, /)"),
                Operation("fetchmany"),
                Operation("fetchall", parameters="($self, /)"),
                Operation("__next__"),
                Operation("skip"),
                Operation("nextset", parameters="($self, /)"),
                *map(Operation, _CATALOG),
                Operation("commit", does_block=_in_transaction),
                Operation("rollback", does_block=_in_transaction, cleans_up=True),
                Operation("__exit__", does_block=_in_transaction, cleans_up=True),
                Operation("cancel"),
                Operation("close", does_block=_was_used, cleans_up=True),
            ],
        },
    },
    does_block=_is_open,
    connection=_connection,
    # It runs what blocks in a pool; its `autocommit =` is an attribute, which it can't await.
    trusted=("aioodbc",),
    distributions=("pyodbc",),
    tested=("5.5.0",),
    exempt={
        "`cursor()`, `setinputsizes()`, reading attributes": "they do no I/O",
        "`commit`, `rollback`, `with` under autocommit": "they have nothing to send",
        "aioodbc": "it calls pyodbc in threads",
    },
    not_guarded={
        "one connection, two tasks": "pyodbc doesn't tell whether a transaction is open",
        "what the garbage collector closes": "in C, where it must not raise",
    },
)
