"""What the standard library's sqlite3 and pysqlite3, a copy of it, have in common: their table.

C code calls none of these through another: `Connection.execute` doesn't pass `Cursor.execute`,
nor `with` `Connection.commit`, so that each is guarded by itself. `cursor()`, `interrupt()`,
`create_function()` and the like do no I/O.
"""

from __future__ import annotations

import gc

from ..tables import Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence
    from typing import Any


def _sql(self: object, sql: object, *parameters: object) -> object:
    return sql


def _is_open(connection: sqlite3.Connection) -> bool:
    connection.in_transaction  # noqa: B018  (raises ProgrammingError on a closed connection)
    return True


def connection_of(thing: Any) -> Any:
    """A cursor tells its connection; a blob doesn't, but the garbage collector knows it."""
    kind = type(thing)
    if hasattr(kind, "connection"):
        return thing.connection
    if hasattr(kind, "in_transaction"):
        return thing
    kept = gc.get_referents(thing)
    return next((one for one in kept if hasattr(type(one), "in_transaction")), None)


def _is_open_blob(blob: sqlite3.Blob, *exc_info: object) -> bool:
    blob.tell()  # raises ProgrammingError on a closed blob
    return True


def _commits(connection: sqlite3.Connection, value: object) -> bool:
    """`isolation_level = None` and `autocommit = True` commit the open transaction."""
    return (value is None or value is True) and connection.in_transaction


def operations(library: str) -> Mapping[str, Sequence[Operation]]:
    """Of its types `Connection`, `Cursor` and `Blob`, every call that steps, writes, locks or opens the file."""
    return {
        "Connection": [
            Operation("__init__", called=f"{library}.connect"),
            Operation("execute", statement=_sql),
            Operation("executemany", statement=_sql),
            Operation("executescript", statement=_sql),
            Operation("commit"),
            Operation("rollback", cleans_up=True),
            Operation("__exit__", cleans_up=True),
            Operation("close", does_block=_is_open, cleans_up=True),
            Operation("backup"),
            Operation("serialize"),
            Operation("blobopen"),
            Operation("isolation_level", setter=True, does_block=_commits),
            Operation("autocommit", setter=True, does_block=_commits),
        ],
        "Cursor": [
            Operation("execute", statement=_sql),
            Operation("executemany", statement=_sql),
            Operation("executescript", statement=_sql),
            Operation("fetchone"),
            Operation("fetchmany"),
            Operation("fetchall"),
            Operation("__next__"),
        ],
        "Blob": [
            Operation("read"),
            Operation("write"),
            Operation("__getitem__"),
            Operation("__setitem__"),
            Operation("__exit__", does_block=_is_open_blob, cleans_up=True),
            Operation("close", does_block=_is_open_blob, cleans_up=True),
        ],
    }


#: What reads as I/O and isn't refused, of either library.
EXEMPT = {
    "`cursor()`, `interrupt()`, registering functions": "they do no I/O",
    "`isolation_level =`, `autocommit =` that commit nothing": "they do no I/O",
}
NOT_GUARDED = {
    "`load_extension`, `deserialize`": "no I/O of the database's, or next to none",
    "what the garbage collector closes": "in C, where it must not raise",
}
