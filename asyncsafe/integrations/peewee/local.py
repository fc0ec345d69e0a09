"""The state of a Database, which peewee keeps for each thread.

`Database._state` (a `_ConnectionLocal`) holds the connection and the stack of transactions. No
public way leads to it: peewee's documentation names `_state` itself for FastAPI, and peewee's
own `playhouse.pwasyncio` replaces it as we do.
"""

from __future__ import annotations

import sys
from typing import Any

from ...exceptions import ConfigurationError, SynchronousOnlyOperation
from ...thread_locals import OwnerLocal, SwappedLocal, swap
from ...transactions import in_transaction


def use_local(database: Any) -> SwappedLocal:
    """Swap the state of a peewee.Database. See `asyncsafe.use_local`."""
    peewee = sys.modules.get("peewee")
    if peewee is not None and isinstance(database, peewee.Proxy):
        raise ConfigurationError(
            "this is a peewee Proxy: call use_local() with the database that it is initialized with"
        )
    if peewee is None or not isinstance(database, peewee.Database):
        raise ConfigurationError(
            f"use_local() takes peewee's Database, not a {type(database).__qualname__}"
        )
    if hasattr(database, "aexecute"):
        raise ConfigurationError(
            "playhouse.pwasyncio's databases keep their state for each task already"
        )
    if isinstance(database._state, OwnerLocal):
        return swap(database, "_state")
    if not database.is_closed():
        raise ConfigurationError(
            "this database is open in this thread: close() it, and call use_local() before it is "
            "connected"
        )
    if hasattr(database, "is_stopped") and not database.is_stopped():
        raise ConfigurationError(
            "the writer thread of this SqliteQueueDatabase is running, and is connected: pass it "
            "autostart=False, and start() it after use_local()"
        )
    if isinstance(database, peewee.SqliteDatabase) and _is_memory(database.database):
        raise ConfigurationError(
            "each connection to ':memory:' is a database of its own, and each task would have one: "
            "use a file"
        )

    class State(peewee._ConnectionState):  # type: ignore[misc, name-defined]
        def set_connection(self, conn: Any) -> None:
            super().set_connection(conn)
            swapped.opened()

    def release(state: Any) -> None:
        if state.closed:
            return
        # Not by the database's own methods, which work on the caller's state, and after undo() on
        # another one.
        try:
            if state.transactions or in_transaction(state.conn):
                state.conn.cursor().execute("ROLLBACK")  # a pool's next user would be in it
        except SynchronousOnlyOperation:
            raise  # it is open as before
        except BaseException:
            database._close(state.conn)
            raise
        database._close(state.conn)

    swapped = swap(database, "_state", make=State, release=release)
    return swapped


def _is_memory(name: object) -> bool:
    """Whether sqlite3 makes a new database for each connection to this one."""
    return name in ("", ":memory:") or (
        isinstance(name, str)
        and name.startswith("file:")
        and ("mode=memory" in name or ":memory:" in name)
        and "cache=shared" not in name
    )
