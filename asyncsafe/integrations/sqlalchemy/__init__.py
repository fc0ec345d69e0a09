"""SQLAlchemy and SQLModel: what of Session, Engine, Connection, Result and Pool does I/O.

It is refused at the call, before SQLAlchemy has changed anything. A driver's guard would raise in
the midst of a flush, which rolls back; of a fetch, which closes the cursor; or of a connection's
return to its pool, which swallows what is raised and throws the connection away.

Asynchronous engines (`dialect.is_async`) wait without blocking.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from ... import loops
from ...scopes import exempt, exempted, is_exempt
from ...tables import Integration, Operation
from .hints import asked_for, tell
from .scoped_session import use_local as use_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Whose something is ------------------------------------------------------------------------------


def _held(transaction: Any) -> set[tuple[Any, Any, bool, bool]]:
    """What a session's transaction has: (connection, transaction, commits it, closes it), of each.

    From 2.1.7 on `SessionTransaction.connections` is public, but tells the connections alone.
    """
    return set(transaction._connections.values())


def _held_by(session: Any) -> set[tuple[Any, Any, bool, bool]]:
    """All that it has: that of its outermost transaction."""
    transaction = session.get_transaction()
    return set() if transaction is None else _held(transaction)


def _owners(thing: Any) -> Iterator[Any]:
    """What a thing belongs to, from within: itself, its session, its connection, its engine."""
    yield thing
    if hasattr(thing, "recreate"):  # a Pool
        yield from _exempt_engines(thing)
        return
    if hasattr(thing, "dbapi_connection"):  # a pool's proxy
        yield thing._pool
        yield from _exempt_engines(thing._pool)
        return
    if hasattr(thing, "session"):  # a SessionTransaction
        thing = thing.session
        yield thing
    if hasattr(thing, "get_bind"):  # a Session
        held = _held_by(thing)
        thing = next(iter(held))[0] if held else thing.bind
        yield thing
    elif not hasattr(thing, "engine"):
        thing = getattr(_cursor_result(thing), "connection", None)  # a Transaction's, or a result's
        yield thing
    if (engine := getattr(thing, "engine", None)) is not None:
        yield engine
        # engine.execution_options() makes another one, in front of it.
        yield getattr(engine, "_proxied", engine)


def _exempt_engines(pool: Any) -> Iterator[Any]:
    """Those that have this pool: it doesn't know its engine."""
    engine = sys.modules["sqlalchemy.engine.base"].Engine
    return (one for one in exempted() if isinstance(one, engine) and one.pool is pool)


def _cursor_result(result: Any) -> Any:
    """Below what the ORM makes of its rows."""
    result = getattr(result, "result", result)
    return getattr(result, "raw", result)


def _connection(thing: Any) -> Any:
    """The driver's connection; None before there is one. Or what `exempt()` was called with."""
    found = None
    for owner in _owners(thing):
        if is_exempt(owner):
            return owner
        if hasattr(owner, "exec_driver_sql") and _is_open(owner):
            found = owner.connection.dbapi_connection
        elif hasattr(owner, "dbapi_connection"):
            found = owner.dbapi_connection
    return found


def _is_open(connection: Any, *args: Any) -> bool:
    """Whether it has one of the driver's, which it blocks with."""
    return not (connection.dialect.is_async or connection.closed or connection.invalidated)


# What blocks -------------------------------------------------------------------------------------


def _never(*args: Any, **kwargs: Any) -> bool:
    return False


def _blocks(engine: Any, *args: Any, **kwargs: Any) -> bool:
    return not engine.dialect.is_async


def _pool_blocks(pool: Any) -> bool:
    # A pool's dialect is nowhere in public. Without an engine it has one of its own.
    return not pool._dialect.is_async


def _holds_connections(pool: Any) -> bool:
    """Whether there is something to close: what is checked out isn't closed by dispose()."""
    if isinstance(pool, sys.modules["sqlalchemy.pool"].NullPool):
        return False
    idle = pool.checkedin() if hasattr(pool, "checkedin") else 1
    return _pool_blocks(pool) and idle > 0


def _disposes(engine: Any, close: bool = True) -> bool:
    return close and _holds_connections(engine.pool)


def _gives_back(fairy: Any) -> bool:
    """SingletonThreadPool hands one out again and again, and counts."""
    return fairy.is_valid and fairy._counter == 1 and _pool_blocks(fairy._pool)


def _invalidates(fairy: Any, e: object = None, soft: bool = False) -> bool:
    return not soft and fairy.is_valid and _pool_blocks(fairy._pool)


def _executes(connection: Any, *args: Any, **kwargs: Any) -> bool:
    """A closed one has its own error; one that was invalidated connects again."""
    return not (connection.dialect.is_async or connection.closed)


def _sets_isolation_level(connection: Any, **options: Any) -> bool:
    """psycopg2 and psycopg send it with the next BEGIN."""
    freely = connection.dialect.driver in ("psycopg2", "psycopg")
    return "isolation_level" in options and not freely and _executes(connection)


def _ends(transaction: Any) -> bool:
    return transaction.is_active and _is_open(transaction.connection)


def _is_remote(result: Any) -> bool:
    """Whether the rows that are left are the server's, or in a file: not where the client has all."""
    if result is None or getattr(result, "cursor", None) is None:
        return False
    dialect = result.connection.dialect
    has_all = sys.modules["sqlalchemy.engine.cursor"].FullyBufferedCursorFetchStrategy
    if dialect.is_async or isinstance(result.cursor_strategy, has_all):
        return False
    if result.context._is_server_side or dialect.driver == "mysqlconnector":
        return True
    return dialect.name not in ("postgresql", "mysql", "mariadb")


def _buffered(result: Any) -> int:
    """How many rows have come in advance."""
    return len(getattr(result.cursor_strategy, "_rowbuffer", ()))


def _reads_one(result: Any, hard_close: bool = False) -> bool:
    return _is_remote(result) and not _buffered(result)


def _reads_many(result: Any, size: int | None = None) -> bool:
    return _is_remote(result) and (size is None or _buffered(result) < size)


def _reads_all(result: Any, *args: Any, **kwargs: Any) -> bool:
    return _is_remote(_cursor_result(result))


def _drains(result: Any, hard: bool = False) -> bool:
    """A cursor of the server's is closed there, after the rows that are left (MySQL)."""
    return _is_remote(result) and result.context._is_server_side and not result.connection.closed


def _session_blocks(session: Any, **bind_arguments: Any) -> bool:
    bind = session.get_bind(**bind_arguments)
    return not (bind.dialect.is_async or is_exempt(bind, _connection))


def _session_executes(
    session: Any,
    statement: Any,
    params: object = None,
    *,
    bind_arguments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> bool:
    if session.dispatch.do_orm_execute:
        return False  # it may have the answer in a cache; if not, the connection's guard is asked
    arguments = {"clause": statement, **(bind_arguments or {})}
    subject = statement._propagate_attrs.get("plugin_subject")
    if subject is not None:
        arguments.setdefault("mapper", subject.mapper)
    return _session_blocks(session, **arguments)


def _session_connects(
    session: Any, bind_arguments: dict[str, Any] | None = None, execution_options: object = None
) -> bool:
    return not _held_by(session) and _session_blocks(session, **(bind_arguments or {}))


def _flushes(session: Any, objects: object = None) -> bool:
    changed = next(_changed(session), None)
    if changed is None or session._flushing:
        return False
    return _session_blocks(session, mapper=sys.modules["sqlalchemy"].inspect(changed).mapper)


def _changed(session: Any) -> Iterator[Any]:
    """What a flush would write. `dirty` has what was set to the value that it had, too."""
    yield from session.new
    yield from session.deleted
    for instance in session.dirty:
        if session.is_modified(instance):
            yield instance


def _saves(session: Any, mapper: Any, mappings: Any, *args: Any, **kwargs: Any) -> bool:
    """Without a connection it takes one, for no mapping too."""
    return (bool(mappings) or not _held_by(session)) and _session_blocks(session, mapper=mapper)


def _saves_objects(session: Any, objects: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(objects) and _session_blocks(session)


def _refreshes(session: Any, instance: Any, *args: Any, **kwargs: Any) -> bool:
    """What isn't the session's, or isn't in the database yet, is an error of its own."""
    state = sys.modules["sqlalchemy"].inspect(instance)
    if not state.persistent or instance not in session:
        return False
    return _session_blocks(session, mapper=state.mapper)


def _commits(transaction: Any, _to_root: bool = False) -> bool:
    """It flushes first, commits what it began and gives back what it took."""
    held = _held_by(transaction.session) if _to_root else _held(transaction)
    return _flushes(transaction.session) or _ends_any(held)


def _rolls_back(transaction: Any, _capture_exception: bool = False, _to_root: bool = False) -> bool:
    """What a flush began is a part of the transaction round it; a savepoint isn't."""
    while transaction.parent is not None and (_to_root or not transaction.nested):
        transaction = transaction.parent
    return _has_open(_held(transaction))


def _releases(transaction: Any, invalidate: bool = False) -> bool:
    held = _held(transaction)
    invalidates = invalidate and transaction.parent is None
    return _ends_any(held) or (invalidates and _has_open(held))


def _session_releases(session: Any) -> bool:
    return _ends_any(_held_by(session))


def _session_invalidates(session: Any) -> bool:
    """A connection that the session was given, too."""
    return _has_open(_held_by(session))


def _has_open(held: set[tuple[Any, Any, bool, bool]]) -> bool:
    return any(_is_open(connection) for connection, *_ in held)


def _ends_any(held: set[tuple[Any, Any, bool, bool]]) -> bool:
    """Whether one of these is committed or rolled back, or given back: what isn't shared is."""
    return any(
        (commits or closes) and _is_open(connection) for connection, _, commits, closes in held
    )


# What is told ------------------------------------------------------------------------------------


def _sql(thing: Any, statement: Any, *args: Any, **kwargs: Any) -> object:
    """The statement as it would be sent, with placeholders."""
    if isinstance(statement, str):
        return statement
    bind = thing if hasattr(thing, "dialect") else thing.get_bind(clause=statement)
    options = {"render_postcompile": True}
    return str(statement.compile(dialect=bind.dialect, compile_kwargs=options))


def _sql_of_result(result: Any, *args: Any, **kwargs: Any) -> object:
    return _cursor_result(result).context.statement


# What stands in place of SQLAlchemy's own --------------------------------------------------------


def _connecting(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """raw_connection(), connect(): of an engine or pool that is exempt, the driver's connections are, too."""

    @functools.wraps(original)
    def connect(self: Any) -> Any:
        connection = original(self)
        if is_exempt(self, _connection):
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
        if loops.namespace["get_running_loop"]() is None or not _reads_all(self):
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


_FETCHITER = Operation("_fetchiter_impl", adapt=_fetchiter, does_block=_never)
_CONNECT = _of("Pool", "connect", does_block=_pool_blocks, adapt=_connecting)
# What close() raises is logged there, and the connections are taken for closed.
_DISPOSE = _of("Pool", "dispose", does_block=_holds_connections, cleans_up=True)

integration: Integration = Integration(
    "sqlalchemy",
    {
        "sqlalchemy.pool.base": {
            "Pool": [_CONNECT],
            "_ConnectionFairy": [
                _of("PoolProxiedConnection", "close", does_block=_gives_back, cleans_up=True),
                _of("PoolProxiedConnection", "invalidate", does_block=_invalidates, cleans_up=True),
            ],
            "": [Operation("_finalize_fairy", adapt=_finalize_fairy, does_block=_never)],
        },
        "sqlalchemy.pool.impl": {
            "QueuePool": [_DISPOSE],
            "SingletonThreadPool": [_CONNECT, _DISPOSE],
            "StaticPool": [_DISPOSE],
            "AssertionPool": [_DISPOSE],
        },
        "sqlalchemy.engine.base": {
            "Engine": [
                _of("Engine", "raw_connection", does_block=_blocks, adapt=_connecting),
                _of("Engine", "dispose", does_block=_disposes, cleans_up=True),
            ],
            "Connection": [
                _of("Connection", "execute", statement=_sql, does_block=_executes),
                _of("Connection", "scalar", statement=_sql, does_block=_executes),
                _of("Connection", "exec_driver_sql", statement=_sql, does_block=_executes),
                _of("Connection", "execution_options", does_block=_sets_isolation_level),
                _of("Connection", "get_isolation_level", does_block=_executes),
                _of("Connection", "begin_nested", does_block=_executes),
                _of("Connection", "begin_twophase", does_block=_executes),
                _of("Connection", "recover_twophase", does_block=_executes),
                _of("Connection", "rollback_prepared", does_block=_executes),
                _of("Connection", "commit_prepared", does_block=_executes),
                _of("Connection", "invalidate", does_block=_is_open, cleans_up=True),
                _of("Connection", "close", does_block=_is_open, cleans_up=True),
            ],
            "Transaction": [
                _of("Transaction", "commit", does_block=_ends),
                _of("Transaction", "rollback", does_block=_ends, cleans_up=True),
                _of("Transaction", "close", does_block=_ends, cleans_up=True),
            ],
            "TwoPhaseTransaction": [_of("TwoPhaseTransaction", "prepare", does_block=_ends)],
        },
        "sqlalchemy.engine.cursor": {
            "CursorResult": [
                _fetching("_fetchone_impl", "fetchone", _reads_one),
                _fetching("_fetchmany_impl", "fetchmany", _reads_many),
                _fetching("_fetchall_impl", "fetchall", _reads_all),
                _FETCHITER,
                _of(
                    "Result",
                    "_soft_close",
                    called="close",
                    statement=_sql_of_result,
                    does_block=_drains,
                    cleans_up=True,
                ),
            ],
        },
        # A generator of the ORM's makes its rows: after a refusal in there it would be at its end.
        "sqlalchemy.engine.result": {
            "IteratorResult": [
                _fetching("_fetchone_impl", "fetchone", _reads_all),
                _fetching("_fetchmany_impl", "fetchmany", _reads_all),
                _fetching("_fetchall_impl", "fetchall", _reads_all),
                _FETCHITER,
            ],
            "ChunkedIteratorResult": [_fetching("_fetchmany_impl", "fetchmany", _reads_all)],
        },
        __name__: {
            "_Rows": [_fetching("__next__", "__next__", lambda rows: _reads_all(rows.result))]
        },
        "sqlalchemy.orm.session": {
            "Session": [
                _of("Session", "execute", statement=_sql, does_block=_session_executes),
                _of("Session", "scalar", statement=_sql, does_block=_session_executes),
                _of("Session", "scalars", statement=_sql, does_block=_session_executes),
                _of("Session", "connection", does_block=_session_connects),
                _of("Session", "refresh", does_block=_refreshes),
                _of("Session", "flush", does_block=_flushes),
                _of("Session", "bulk_save_objects", does_block=_saves_objects),
                _of("Session", "bulk_insert_mappings", does_block=_saves),
                _of("Session", "bulk_update_mappings", does_block=_saves),
                _of("Session", "close", does_block=_session_releases, cleans_up=True),
                _of("Session", "reset", does_block=_session_releases, cleans_up=True),
                _of("Session", "invalidate", does_block=_session_invalidates, cleans_up=True),
            ],
            "SessionTransaction": [
                _of("SessionTransaction", "prepare", does_block=_commits),
                _of("SessionTransaction", "commit", does_block=_commits),
                _of("SessionTransaction", "rollback", does_block=_rolls_back, cleans_up=True),
                _of("SessionTransaction", "close", does_block=_releases, cleans_up=True),
            ],
        },
    },
    connection=_connection,
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
