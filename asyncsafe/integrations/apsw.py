"""apsw: every call that steps, writes, locks or opens the file, of the sqlite that it brings.

Its types are C's, and call nothing of each other by name. `with connection:` runs a statement at
both ends, SAVEPOINT and RELEASE, and is refused at the first: left by a refusal, it would stay a
level too deep. What belongs to an asynchronous connection (`Connection.as_async()`) runs in that
connection's own thread, and is never refused.
"""

from __future__ import annotations

import gc
import sys

from ..tables import Integration, Operation, default_does_block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _connection(thing: Any) -> Any:
    """None where it is asynchronous, and would answer `in_transaction` with a coroutine."""
    connection = _owner(thing)
    if (
        isinstance(connection, sys.modules["apsw"].Connection)
        and connection
        and connection.is_async
    ):
        return None
    return connection


def _owner(thing: Any) -> Any:
    """A cursor tells its connection; others don't, but the garbage collector knows it."""
    apsw = sys.modules["apsw"]
    if isinstance(thing, apsw.Cursor) and thing:
        return thing.get_connection()
    if isinstance(thing, (apsw.Blob, apsw.Backup, *_of_sessions())):
        kept = gc.get_referents(thing)
        return next((one for one in kept if isinstance(one, apsw.Connection)), thing)
    return thing


def _of_sessions() -> list[Any]:
    """Not each build has sessions."""
    apsw = sys.modules["apsw"]
    return [getattr(apsw, n) for n in ("Session", "ChangesetBuilder") if hasattr(apsw, n)]


def _is_synchronous(thing: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether it is open, and runs in the thread that calls it: bool() tells that it is open."""
    return bool(thing) and _connection(thing) is not None


def _opens(thing: Any, *args: Any, **kwargs: Any) -> bool:
    return True


def _ends_a_write(cursor: Any, force: bool = False) -> bool:
    """Closed halfway, a statement that writes (INSERT ... RETURNING) is ended, and committed."""
    return _is_synchronous(cursor) and cursor.has_vdbe and not cursor.is_readonly


def _applies(changeset: object, db: Any, *args: Any, **kwargs: Any) -> bool:
    return _is_synchronous(db)


def _reads_schema(builder: Any, *args: Any, **kwargs: Any) -> bool:
    """Of the database that `schema()` named: in this thread, that of an asynchronous one, too."""
    return isinstance(_owner(builder), sys.modules["apsw"].Connection)


def _sql(self: object, statements: object, *args: object, **kwargs: object) -> object:
    return statements


integration: Integration = Integration(
    "apsw",
    {
        "apsw": {
            "Connection": default_does_block(
                _is_synchronous,
                Operation("__init__", called="apsw.Connection", does_block=_opens),
                Operation("execute", statement=_sql),
                Operation("executemany", statement=_sql),
                Operation("pragma"),
                Operation("__enter__"),
                Operation("__exit__", cleans_up=True),
                Operation("close", cleans_up=True),
                Operation("backup"),
                Operation("blob_open"),
                Operation("blobopen", called="apsw.Connection.blob_open"),
                Operation("serialize"),
                Operation("deserialize"),
                Operation("read"),
                Operation("table_exists"),
                Operation("column_metadata"),
                Operation("wal_checkpoint"),
                Operation("cache_flush"),
                Operation("cacheflush", called="apsw.Connection.cache_flush"),
            ),
            "Cursor": default_does_block(
                _is_synchronous,
                Operation("execute", statement=_sql),
                Operation("executemany", statement=_sql),
                Operation("fetchone"),
                Operation("fetchall"),
                Operation("__next__"),
                Operation("get", getter=True),
                Operation("close", does_block=_ends_a_write, cleans_up=True),
            ),
            "Blob": default_does_block(
                _is_synchronous,
                Operation("read"),
                Operation("readall"),
                Operation("read_into"),
                Operation("readinto"),
                Operation("write"),
                Operation("reopen"),
                Operation("__exit__", cleans_up=True),
                Operation("close", cleans_up=True),
            ),
            "Backup": default_does_block(
                _is_synchronous,
                Operation("step"),
                Operation("__exit__", cleans_up=True),
                Operation("finish", cleans_up=True),
                Operation("close", cleans_up=True),
            ),
            "Session": default_does_block(
                _is_synchronous,
                Operation("diff"),
                Operation("changeset"),
                Operation("patchset"),
                Operation("changeset_stream"),
                Operation("patchset_stream"),
            ),
            "Changeset": [Operation("apply", does_block=_applies)],
            "ChangesetBuilder": default_does_block(
                _reads_schema,
                Operation("add"),
                Operation("add_change"),
                Operation("add_insert"),
                Operation("add_delete"),
                Operation("add_update"),
            ),
        }
    },
    connection=_connection,
    distributions=("apsw", "apsw-sqlite3mc"),
    tested=("3.54.1.0",),
    exempt={
        "`cursor()`, `interrupt()`, registering functions and hooks": "they do no I/O",
        "`Connection.as_async()`": "it runs in a thread of its own",
    },
    not_guarded={
        "`load_extension`, virtual file systems (`VFSFile`)": "files that are not the database's",
        "what the garbage collector closes": "in C, where it must not raise",
    },
)
