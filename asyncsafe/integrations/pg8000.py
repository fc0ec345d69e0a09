"""pg8000: the DB-API connection, the native one and the legacy one that `pg8000.connect` opens.

All three are subclasses of `CoreConnection`, whose methods write to the socket and read from it.
Each is guarded by the name that users call, and below it by what all of them call: a refusal is
made before the first byte is written. A result has arrived in whole when `execute()` returns:
fetching from it, `cursor()`, `autocommit =` and `close()` of a cursor do no I/O.
"""

from __future__ import annotations

from .. import transactions
from ..tables import Integration, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _connection(thing: Any) -> Any:
    """The connection that a connection, cursor or prepared statement is or belongs to.

    A cursor's public `connection` warns whoever reads it: `_c` is behind it.
    """
    for name in ("_c", "con"):
        if hasattr(thing, name):
            return getattr(thing, name)
    return thing


def _is_open(thing: Any, *args: Any, **kwargs: Any) -> bool:
    """Closed ones have an error of their own. Whether one is, nothing public tells."""
    connection = _connection(thing)
    return connection is not None and connection._usock is not None


def _in_transaction(connection: Any) -> bool:
    """Outside of a transaction, rollback sends nothing; commit does."""
    return _is_open(connection) and bool(connection._in_transaction)


def _has_transaction(connection: Any) -> bool:
    """What the server's last ReadyForQuery said: open, or failed. Nothing public tells."""
    return _is_open(connection) and connection._transaction_status in (b"T", b"E")


transactions.tell_by_library["pg8000"] = _has_transaction


def _begins(connection: Any, xid: object) -> bool:
    """Without autocommit the next statement begins it."""
    return _is_open(connection) and bool(connection.autocommit)


def _sql(self: object, sql: object, *args: object, **kwargs: object) -> object:
    return sql


def _procedure(cursor: object, procname: object, *args: object, **kwargs: object) -> object:
    return f"CALL {procname}"


def _prepared(statement: Any, *args: object, **kwargs: object) -> object:
    """A native statement has its SQL in `statement`, a legacy one in `operation`."""
    return getattr(statement, "operation", None) or statement.statement


def _of_core(name: str, **options: Any) -> Operation:
    return Operation(name, called=f"pg8000.Connection.{name}", does_block=_is_open, **options)


_TRANSACTIONS = [
    Operation("commit", does_block=_is_open),
    Operation("rollback", does_block=_in_transaction, cleans_up=True),
    Operation("tpc_begin", does_block=_begins),
    Operation("tpc_prepare", does_block=_is_open),
    Operation("tpc_commit", does_block=_is_open),
    Operation("tpc_rollback", does_block=_is_open, cleans_up=True),
    Operation("tpc_recover", does_block=_is_open),
]
_RUNS = [
    Operation("run", does_block=_is_open, statement=_sql),
    Operation("prepare", does_block=_is_open, statement=_sql),
]
_CURSOR = [
    Operation("execute", does_block=_is_open, statement=_sql),
    Operation("executemany", does_block=_is_open, statement=_sql),
]
_PREPARED = [
    Operation("run", does_block=_is_open, statement=_prepared),
    Operation("close", does_block=_is_open, statement=_prepared, cleans_up=True),
]

integration: Integration = Integration(
    "pg8000",
    {
        "pg8000.core": {
            "CoreConnection": [
                Operation("__init__", called="pg8000.connect"),
                _of_core("close", cleans_up=True),
                _of_core("__exit__", cleans_up=True),
                _of_core("execute_simple", statement=_sql),
                _of_core("execute_unnamed", statement=_sql),
                _of_core("execute_named"),
                _of_core("prepare_statement", statement=_sql),
                _of_core("close_prepared_statement", cleans_up=True),
            ],
        },
        "pg8000.dbapi": {
            "Connection": _TRANSACTIONS,
            "Cursor": [*_CURSOR, Operation("callproc", does_block=_is_open, statement=_procedure)],
        },
        "pg8000.native": {"Connection": _RUNS, "PreparedStatement": _PREPARED},
        "pg8000.legacy": {
            "Connection": [*_TRANSACTIONS, *_RUNS],
            "Cursor": _CURSOR,
            "PreparedStatement": _PREPARED,
        },
    },
    connection=_connection,
    distributions=("pg8000",),
    tested=("1.31.6",),
    exempt={
        "fetches": "a result is complete when `execute()` or `run()` returns",
        "`rollback` outside of a transaction": "it sends nothing",
    },
)
