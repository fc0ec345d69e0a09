"""SQLAlchemy and SQLModel: what of Session, Engine, Connection, Result and Pool does I/O.

It is refused at the call, before SQLAlchemy has changed anything. A driver's guard would raise in
the midst of a flush, which rolls back; of a fetch, which closes the cursor; or of a connection's
return to its pool, which swallows what is raised and throws the connection away.

Asynchronous engines (`dialect.is_async`) wait without blocking.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ... import loops
from ...scopes import exempt, is_exempt
from ...tables import Integration, Operation
from . import blocking
from .hints import asked_for, tell
from .scoped_session import use_local as use_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# What is told ------------------------------------------------------------------------------------


def _sql(thing: Any, statement: Any, *args: Any, **kwargs: Any) -> object:
    """The statement as it would be sent, with placeholders."""
    if isinstance(statement, str):
        return statement
    bind = thing if hasattr(thing, "dialect") else thing.get_bind(clause=statement)
    options = {"render_postcompile": True}
    return str(statement.compile(dialect=bind.dialect, compile_kwargs=options))


def _sql_of_result(result: Any, *args: Any, **kwargs: Any) -> object:
    return blocking.cursor_result(result).context.statement


# What stands in place of SQLAlchemy's own --------------------------------------------------------


def _connecting(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """raw_connection(), connect(): of an engine or pool that is exempt, the driver's connections are, too."""

    @functools.wraps(original)
    def connect(self: Any) -> Any:
        connection = original(self)
        if is_exempt(self, blocking.connection_of):
            exempt(connection)
        return connection

    return connect


class _Rows:
    """The rows of a result, in a coroutine. After a refusal it goes on, as a generator doesn't."""

    __slots__ = ("_rows", "result")

    def __init__(self, rows: Iterator[Any], result: Any) -> None:
        self._rows = rows
        self.result = result

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._rows)


def _fetchiter(original: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """_fetchiter_impl(): a call that is guarded for each row, where that reads on a loop.

    Where the client has all rows, it has them to the end: an asynchronous engine's cost no guard.
    """

    @functools.wraps(original)
    def _fetchiter_impl(self: Any) -> Iterator[Any]:
        rows = original(self)
        if loops.namespace["get_running_loop"]() is None or not blocking.reads_all(self):
            return rows
        return _Rows(rows, self)

    return _fetchiter_impl


def _finalize_fairy(original: Callable[..., None]) -> Callable[..., None]:
    """What the garbage collector gives back to the pool is given back: see `pymysql.__del__`.

    In 2.1 weakref.finalize calls it, which is known for a finalizer; in 2.0 the callback of a weak
    reference does, which it passes.
    """
    if "ref" not in original.__code__.co_varnames:
        return original

    def __del__(*args: Any) -> None:  # noqa: N807
        original(*args)

    @functools.wraps(original)
    def _finalize_fairy(
        dbapi_connection: Any,
        connection_record: Any,
        pool: Any,
        ref: Any,
        echo: Any,
        transaction_was_reset: bool = False,
        fairy: Any = None,
    ) -> None:
        call = original if ref is None else __del__
        call(dbapi_connection, connection_record, pool, ref, echo, transaction_was_reset, fairy)

    return _finalize_fairy


# The tables --------------------------------------------------------------------------------------


def _of(kind: str, name: str, **options: Any) -> Operation:
    """An operation of which its own call's arguments tell more: `Session.execute(select(Order))`."""
    called = f"sqlalchemy.{kind}.{options.pop('called', name)}"
    return Operation(
        name, called=called, describe=functools.partial(asked_for, kind, name), **options
    )


def _fetching(name: str, called: str, does_block: Callable[..., bool]) -> Operation:
    return _of("Result", name, called=called, statement=_sql_of_result, does_block=does_block)


_FETCHITER = Operation("_fetchiter_impl", adapt=_fetchiter, does_block=blocking.never)
_CONNECT = _of("Pool", "connect", does_block=blocking.pool_blocks, adapt=_connecting)
# What close() raises is logged there, and the connections are taken for closed.
_DISPOSE = _of("Pool", "dispose", does_block=blocking.holds_connections, cleans_up=True)

integration: Integration = Integration(
    "sqlalchemy",
    {
        "sqlalchemy.pool.base": {
            "Pool": [_CONNECT],
            "_ConnectionFairy": [
                _of(
                    "PoolProxiedConnection", "close", does_block=blocking.gives_back, cleans_up=True
                ),
                _of(
                    "PoolProxiedConnection",
                    "invalidate",
                    does_block=blocking.invalidates,
                    cleans_up=True,
                ),
            ],
            "": [Operation("_finalize_fairy", adapt=_finalize_fairy, does_block=blocking.never)],
        },
        "sqlalchemy.pool.impl": {
            "QueuePool": [_DISPOSE],
            "SingletonThreadPool": [_CONNECT, _DISPOSE],
            "StaticPool": [_DISPOSE],
            "AssertionPool": [_DISPOSE],
        },
        "sqlalchemy.engine.base": {
            "Engine": [
                _of("Engine", "raw_connection", does_block=blocking.blocks, adapt=_connecting),
                _of("Engine", "dispose", does_block=blocking.disposes, cleans_up=True),
            ],
            "Connection": [
                _of("Connection", "execute", statement=_sql, does_block=blocking.executes),
                _of("Connection", "scalar", statement=_sql, does_block=blocking.executes),
                _of("Connection", "exec_driver_sql", statement=_sql, does_block=blocking.executes),
                _of("Connection", "execution_options", does_block=blocking.sets_isolation_level),
                _of("Connection", "get_isolation_level", does_block=blocking.executes),
                _of("Connection", "begin_nested", does_block=blocking.executes),
                _of("Connection", "begin_twophase", does_block=blocking.executes),
                _of("Connection", "recover_twophase", does_block=blocking.executes),
                _of("Connection", "rollback_prepared", does_block=blocking.executes),
                _of("Connection", "commit_prepared", does_block=blocking.executes),
                _of("Connection", "invalidate", does_block=blocking.is_open, cleans_up=True),
                _of("Connection", "close", does_block=blocking.is_open, cleans_up=True),
            ],
            "Transaction": [
                _of("Transaction", "commit", does_block=blocking.ends),
                _of("Transaction", "rollback", does_block=blocking.ends, cleans_up=True),
                _of("Transaction", "close", does_block=blocking.ends, cleans_up=True),
            ],
            "TwoPhaseTransaction": [
                _of("TwoPhaseTransaction", "prepare", does_block=blocking.ends)
            ],
        },
        "sqlalchemy.engine.cursor": {
            "CursorResult": [
                _fetching("_fetchone_impl", "fetchone", blocking.reads_one),
                _fetching("_fetchmany_impl", "fetchmany", blocking.reads_many),
                _fetching("_fetchall_impl", "fetchall", blocking.reads_all),
                _FETCHITER,
                _of(
                    "Result",
                    "_soft_close",
                    called="close",
                    statement=_sql_of_result,
                    does_block=blocking.drains,
                    cleans_up=True,
                ),
            ],
        },
        # A generator of the ORM's makes its rows: after a refusal in there it would be at its end.
        "sqlalchemy.engine.result": {
            "IteratorResult": [
                _fetching("_fetchone_impl", "fetchone", blocking.reads_all),
                _fetching("_fetchmany_impl", "fetchmany", blocking.reads_all),
                _fetching("_fetchall_impl", "fetchall", blocking.reads_all),
                _FETCHITER,
            ],
            "ChunkedIteratorResult": [
                _fetching("_fetchmany_impl", "fetchmany", blocking.reads_all)
            ],
        },
        __name__: {
            "_Rows": [
                _fetching("__next__", "__next__", lambda rows: blocking.reads_all(rows.result))
            ]
        },
        "sqlalchemy.orm.session": {
            "Session": [
                _of("Session", "execute", statement=_sql, does_block=blocking.session_executes),
                _of("Session", "scalar", statement=_sql, does_block=blocking.session_executes),
                _of("Session", "scalars", statement=_sql, does_block=blocking.session_executes),
                _of("Session", "connection", does_block=blocking.session_connects),
                _of("Session", "refresh", does_block=blocking.refreshes),
                _of("Session", "flush", does_block=blocking.flushes),
                _of("Session", "bulk_save_objects", does_block=blocking.saves_objects),
                _of("Session", "bulk_insert_mappings", does_block=blocking.saves),
                _of("Session", "bulk_update_mappings", does_block=blocking.saves),
                _of("Session", "close", does_block=blocking.session_releases, cleans_up=True),
                _of("Session", "reset", does_block=blocking.session_releases, cleans_up=True),
                _of(
                    "Session", "invalidate", does_block=blocking.session_invalidates, cleans_up=True
                ),
            ],
            "SessionTransaction": [
                _of("SessionTransaction", "prepare", does_block=blocking.commits),
                _of("SessionTransaction", "commit", does_block=blocking.commits),
                _of(
                    "SessionTransaction", "rollback", does_block=blocking.rolls_back, cleans_up=True
                ),
                _of("SessionTransaction", "close", does_block=blocking.releases, cleans_up=True),
            ],
        },
    },
    connection=blocking.connection_of,
    describe=tell,
    counts_frames=True,
    distributions=("SQLAlchemy",),
    tested=("2.0.58", "2.1.9"),
    exempt={
        "asynchronous engines (aiosqlite, asyncpg, psycopg, aiomysql, asyncmy)": (
            "`dialect.is_async`: they wait without blocking"
        ),
        "Session.commit(), rollback() and close() without a connection or anything to write": (
            "nothing is sent"
        ),
        "rows that the client has already": "nothing is sent",
        "what the garbage collector gives back to its pool": (
            "a refusal there is lost, and the connection with it; it is recorded"
        ),
    },
    not_guarded={
        "cursors of Engine.raw_connection()": "they are the driver's: its own guard sees them",
        "a session with listeners of do_orm_execute, until it connects": (
            "a listener may have the result in a cache"
        ),
        "Connection.execution_options(isolation_level=...) with psycopg2 and psycopg": (
            "they send it with the next BEGIN"
        ),
    },
)
