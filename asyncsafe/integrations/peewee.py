"""peewee: the state of a Database, which it keeps for each thread.

`Database._state` (a `_ConnectionLocal`) holds the connection and the stack of transactions. No
public way leads to it: peewee's documentation names `_state` itself for FastAPI, and peewee's
own `playhouse.pwasyncio` replaces it as we do.
"""

from __future__ import annotations

import sys
from typing import Any

from ..exceptions import ConfigurationError
from ..thread_locals import SwappedLocal, swap


def use_local(database: Any) -> SwappedLocal:
    """Swap the state of a peewee.Database. See `asyncsafe.use_local`."""
    peewee = sys.modules["peewee"]
    if isinstance(database, peewee.Proxy):
        raise ConfigurationError(
            "this is a peewee Proxy: call use_local() with the database that it is initialized with"
        )
    if not isinstance(database, peewee.Database):
        raise ConfigurationError(
            f"use_local() takes peewee's Database, not a {type(database).__qualname__}"
        )
    if hasattr(database, "aexecute"):
        raise ConfigurationError(
            "playhouse.pwasyncio's databases keep their state for each task already"
        )
    if not database.is_closed():
        raise ConfigurationError(
            "this database is open in this thread: close() it, and call use_local() before it is "
            "connected"
        )
    if isinstance(database, peewee.SqliteDatabase) and database.database in {":memory:", ""}:
        raise ConfigurationError(
            "each connection to ':memory:' is a database of its own, and each task would have one. "
            "Use a file, or SqliteDatabase('file:name?mode=memory&cache=shared', uri=True)"
        )

    def release(state: Any) -> None:
        if state.closed:
            return
        if state.transactions:
            database.rollback()
            state.transactions.clear()  # close() refuses while there are any
        database.close()

    return swap(database, "_state", make=peewee._ConnectionState, release=release)
