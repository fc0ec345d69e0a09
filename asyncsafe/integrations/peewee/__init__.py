"""peewee: its databases, transactions, pools, and what it reads from a cursor.

What peewee does passes `Database.execute_sql`, `begin`, `commit` and `rollback`, and those are
refused where nothing has changed yet. Methods that change something first are guarded at their own
entry: `close()` forgets the connection whatever becomes of it, an `atomic` block takes itself off
the stack and rolls back what it can't commit, a pool takes an error for a broken connection.

A refused `__exit__` leaves its block open, as the driver's own does: the transaction is there, and
code off the loop can end it.

Methods of `playhouse.pwasyncio` come to the same base classes with a connection that is awaited:
its databases are never refused.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from ...scopes import exempt, is_exempt
from ...tables import Integration, Operation
from .hints import tell
from .local import use_local as use_local

if TYPE_CHECKING:
    from collections.abc import Callable

#: Where a cursor's rows are still the server's, or in the file, once its query was executed: the
#: modules of those cursors.
_READS_ROWS = frozenset({"sqlite3", "pysqlite3.dbapi2", "sqlcipher3.dbapi2", "apsw", "cysqlite"})


def _database(thing: Any) -> Any:
    """Of a database, a query, a transaction, a context, the rows of a model: the database, or None."""
    peewee = sys.modules["peewee"]
    if isinstance(thing, peewee.Database):
        return thing
    if hasattr(thing, "row_cache"):
        model = getattr(thing, "model", None)
        database: Any = None if model is None else model._meta.database
    else:
        database = getattr(thing, "db", None) or getattr(thing, "_database", None)
    return database.obj if isinstance(database, peewee.Proxy) else database


def _waits_here(thing: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Whether its database is a synchronous one: pwasyncio's have `aexecute`."""
    return not hasattr(_database(thing), "aexecute")


def _connection(thing: Any) -> Any:
    """The driver's connection, if one is open; a database that is exempt stands for its own."""
    database = _database(thing)
    if database is None:
        return getattr(getattr(thing, "cursor", None), "connection", None)
    if is_exempt(database):
        return database
    if hasattr(database, "aexecute") or database.is_closed():
        return None
    return database.connection()


def _sql(database: object, sql: object, *args: Any, **kwargs: Any) -> object:
    return sql


def _opens(database: Any, *args: Any, **kwargs: Any) -> bool:
    """What is open already, or not initialized, is an error of its own, or nothing to do."""
    return bool(database.is_closed() and not database.deferred)


def _is_open(database: Any, *args: Any, **kwargs: Any) -> bool:
    return not database.is_closed()


def _closes(database: Any) -> bool:
    """While a transaction is open, peewee has an error of its own."""
    return not database.is_closed() and not database.in_transaction()


def _in_transaction(database: Any) -> bool:
    """apsw's: outside of a transaction they send nothing."""
    return not database.is_closed() and not database.connection().getautocommit()


def _ends(transaction: Any, *exc_info: object) -> bool:
    """An inner `transaction()` is part of the outer one: it takes itself off the stack."""
    return bool(transaction.db.transaction_depth() == 1)


def _is_outermost(context: Any, *exc_info: object) -> bool:
    """How many blocks a database is in, it tells nowhere in public."""
    return len(context.db._state.ctx) == 1


def _attaches(database: Any, filename: object, name: object) -> bool:
    return not database.is_closed() and name not in database._attached


def _detaches(database: Any, name: object) -> bool:
    return not database.is_closed() and name in database._attached


def _execute_sql(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of a database that is exempt, the driver's connection is, too: rows without a model know that alone."""

    @functools.wraps(original)
    def execute_sql(self: Any, sql: Any, params: Any = None, **options: Any) -> Any:
        cursor = original(self, sql, params, **options)
        if is_exempt(self) and not is_exempt(self.connection()):
            exempt(self.connection())
        return cursor

    return execute_sql


# Pools: what they hold is nowhere in public. `_connections` are the idle ones, `_in_use` the others.


def _has_idle(pool: Any) -> bool:
    return bool(pool._connections)


def _has_stale(pool: Any, age: float = 600) -> bool:
    before = time.time() - age
    return any(used.checked_out < before for used in pool._in_use.values())


def _has_any(pool: Any) -> bool:
    return not pool.in_transaction() and bool(pool._connections or pool._in_use)


# Cursors ---------------------------------------------------------------------------------------


def _reads(wrapper: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether this cursor's rows have still to be read. Most drivers have them all already."""
    if wrapper.populated:
        return False
    cursor = wrapper.cursor
    if hasattr(cursor, "_wait"):  # SqliteQueueDatabase's
        return not cursor._event.is_set()
    return type(cursor).__module__ in _READS_ROWS or hasattr(cursor, "row_gen")


def _has_more(cursor: Any) -> bool:
    return not cursor.exhausted


# SqliteQueueDatabase: a thread writes, and whoever asks for the outcome waits for it.


def _is_queued(database: Any) -> bool:
    return hasattr(database, "_write_queue")


def _waits_for_writer(query: Any, database: Any = None, *args: Any, **kwargs: Any) -> bool:
    """A query that writes asks for its outcome, once it is queued. Others pass `execute_sql`."""
    database = _database(query) if database is None else database
    if not isinstance(query, sys.modules["peewee"]._WriteQuery) or not _is_queued(database):
        return False
    return _waits_here(database)


def _is_selected_or_full(database: Any, sql: str, *args: Any, **kwargs: Any) -> bool:
    """What is no SELECT is queued, and that waits only where there is no room."""
    return sql.lower().startswith("select") or database._write_queue.full()


def _is_pending(cursor: Any, timeout: object = None) -> bool:
    return not cursor._event.is_set()


def _is_running(database: Any) -> bool:
    return not database.is_stopped()


def _of_database(name: str, **options: Any) -> Operation:
    return Operation(name, called=f"peewee.Database.{name}", **options)


_BEGIN = _of_database("begin")
_INIT = _of_database("init", does_block=_is_open)

integration: Integration = Integration(
    "peewee",
    {
        "peewee": {
            "Database": [
                _of_database("connect", does_block=_opens),
                _of_database("close", does_block=_closes, cleans_up=True),
                _INIT,
                _of_database("execute_sql", statement=_sql, adapt=_execute_sql),
                _BEGIN,
                _of_database("commit", does_block=_is_open),
                _of_database("rollback", does_block=_is_open, cleans_up=True),
                _of_database("session_commit", does_block=_is_open),
                _of_database("session_rollback", does_block=_is_open, cleans_up=True),
                _of_database("__exit__", cleans_up=True),
            ],
            "SqliteDatabase": [
                _INIT,
                _BEGIN,
                _of_database("pragma"),
                _of_database("attach", does_block=_attaches),
                _of_database("detach", does_block=_detaches),
            ],
            "PostgresqlDatabase": [_INIT, _BEGIN],
            "MySQLDatabase": [
                _INIT,
                _BEGIN,
                # It takes an error of its ping for a connection that is broken.
                _of_database("is_connection_usable", does_block=_is_open),
            ],
            "ConnectionContext": [
                Operation(
                    "__exit__",
                    called="peewee.Database.connection_context.__exit__",
                    does_block=_is_outermost,
                    cleans_up=True,
                ),
            ],
            "_transaction": [
                Operation(
                    "__exit__",
                    called="peewee.Database.transaction.__exit__",
                    does_block=_ends,
                    cleans_up=True,
                ),
            ],
            "_savepoint": [
                Operation("__exit__", called="peewee.Database.savepoint.__exit__", cleans_up=True),
            ],
            "BaseQuery": [
                Operation("execute", called="peewee.Query.execute", does_block=_waits_for_writer),
            ],
            "CursorWrapper": [
                Operation("iterate", does_block=_reads),
                Operation("fill_cache", does_block=_reads),
            ],
        },
        "playhouse.pool": {
            "PooledDatabase": [
                _of_database("connect", does_block=_opens),
                _INIT,
                _of_database("manual_close", does_block=_closes, cleans_up=True),
                _of_database("close_idle", does_block=_has_idle, cleans_up=True),
                _of_database("close_stale", does_block=_has_stale, cleans_up=True),
                _of_database("close_all", does_block=_has_any, cleans_up=True),
            ],
        },
        "playhouse.postgres_ext": {
            "PostgresqlExtDatabase": [_of_database("execute_sql", statement=_sql)],
            "FetchManyCursor": [
                Operation("fetchone", called="peewee.ServerSide.fetchone", does_block=_has_more),
            ],
        },
        "playhouse.sqliteq": {
            "SqliteQueueDatabase": [
                _of_database("execute_sql", statement=_sql, does_block=_is_selected_or_full),
                _of_database("stop", does_block=_is_running, cleans_up=True),
                _of_database("pause", does_block=_is_running),
                _of_database("unpause", does_block=_is_running),
            ],
            "AsyncCursor": [
                Operation("_wait", called="peewee.SqliteQueueDatabase.wait", does_block=_is_pending)
            ],
        },
        "playhouse.cockroachdb": {"CockroachDatabase": [_BEGIN]},
        "playhouse.cysqlite_ext": {
            "CySqliteDatabase": [
                _BEGIN,
                _of_database("commit", does_block=_is_open),
                _of_database("rollback", does_block=_is_open, cleans_up=True),
                _of_database("blob_open"),
                _of_database("backup"),
                _of_database("backup_to_file"),
            ],
        },
        "playhouse.apsw_ext": {
            "APSWDatabase": [
                _of_database("commit", does_block=_in_transaction),
                _of_database("rollback", does_block=_in_transaction, cleans_up=True),
            ],
        },
    },
    does_block=_waits_here,
    connection=_connection,
    describe=tell,
    distributions=("peewee",),
    tested=("4.5.3",),
    exempt={
        "playhouse.pwasyncio": "its databases await aiosqlite, asyncpg and aiomysql",
        "what SqliteQueueDatabase only queues": (
            "`execute_sql()` of what is no SELECT returns at once; waiting for its outcome is refused"
        ),
    },
    not_guarded={
        "what is done on `db.connection()`": "the guard of its driver sees it",
        "load_extension() of an open SqliteDatabase": "the driver's call, which none guards",
    },
)
