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

from ...installation import Integration, Operation
from ...scopes import exempt, is_exempt
from .hints import asked_for, tell
from .scoped_session import use_local as use_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Whose something is ------------------------------------------------------------------------------


def _held(transaction: Any) -> list[tuple[Any, Any, bool, bool]]:
    """What a session's transaction has: (connection, transaction, commits it, closes it), of each.

    From 2.1.7 on `SessionTransaction.connections` is public, but tells the connections alone.
    """
    if transaction is None:
        return []
    while transaction.parent is not None:
        transaction = transaction.parent
    return list(set(transaction._connections.values()))


def _owners(thing: Any) -> Iterator[Any]:
    """What a thing belongs to, from within: itself, its session, its connection, its engine."""
    yield thing
    if hasattr(thing, "session"):  # a SessionTransaction
        thing = thing.session
        yield thing
    if hasattr(thing, "get_bind"):  # a Session
        held = _held(thing.get_transaction())
        thing = held[0][0] if held else thing.bind
        yield thing
    elif not hasattr(thing, "engine") and not hasattr(thing, "dbapi_connection"):
        thing = getattr(thing, "connection", None)  # a Transaction's, or a CursorResult's
        yield thing
    if (engine := getattr(thing, "engine", None)) is not None:
        yield engine
        # engine.execution_options() makes another one, in front of it.
        yield getattr(engine, "_proxied", engine)


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


def _reads(result: Any, how_many: int | None) -> bool:
    """Whether fetching so many rows (None: all that are left) asks the driver, and this the server."""
    if result.cursor is None or result.connection.dialect.is_async:
        return False
    buffered = getattr(result.cursor_strategy, "_rowbuffer", None)
    if buffered is not None:
        if type(result.cursor_strategy).__name__ == "FullyBufferedCursorFetchStrategy":
            return False
        if how_many is not None and len(buffered) >= how_many:
            return False
    return _is_remote(result)


def _is_remote(result: Any) -> bool:
    """Whether rows are still the server's: not where the client has had all of them."""
    dialect = result.connection.dialect
    if result.context._is_server_side or dialect.driver == "mysqlconnector":
        return True
    return dialect.name not in ("postgresql", "mysql", "mariadb")


def _reads_one(result: Any, hard_close: bool = False) -> bool:
    return _reads(result, 1)


def _reads_many(result: Any, size: int | None = None) -> bool:
    return _reads(result, size)


def _reads_all(result: Any) -> bool:
    return _reads(result, None)


def _drains(result: Any, hard: bool = False) -> bool:
    """A cursor of the server's is closed there, after the rows that are left (MySQL)."""
    if result._soft_closed or result.connection.closed or result.connection.dialect.is_async:
        return False
    return bool(result.context._is_server_side)


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
    return not _held(session.get_transaction()) and _session_blocks(
        session, **(bind_arguments or {})
    )


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
    return bool(mappings) and _session_blocks(session, mapper=mapper)


def _saves_objects(session: Any, objects: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(objects) and _session_blocks(session)


def _refreshes(session: Any, instance: Any, *args: Any, **kwargs: Any) -> bool:
    return _session_blocks(session, mapper=sys.modules["sqlalchemy"].inspect(instance).mapper)


def _commits(transaction: Any, _to_root: bool = False) -> bool:
    """It flushes first, commits what it began and gives back what it took."""
    return _flushes(transaction.session) or any(
        (commits or closes) and _is_open(connection)
        for connection, _, commits, closes in _held(transaction)
    )


def _rolls_back(transaction: Any, *args: Any, **kwargs: Any) -> bool:
    return any(_is_open(held[0]) for held in _held(transaction))


def _releases(transaction: Any, invalidate: bool = False) -> bool:
    return any(
        (invalidate or closes or (commits and begun.is_active)) and _is_open(connection)
        for connection, begun, commits, closes in _held(transaction)
    )


def _session_releases(session: Any) -> bool:
    return _releases(session.get_transaction())


# What is told ------------------------------------------------------------------------------------


def _sql(thing: Any, statement: Any, *args: Any, **kwargs: Any) -> object:
    """The statement as it would be sent, with placeholders."""
    if isinstance(statement, str):
        return statement
    bind = thing if hasattr(thing, "dialect") else thing.get_bind(clause=statement)
    options = {"render_postcompile": True}
    return str(statement.compile(dialect=bind.dialect, compile_kwargs=options))


def _sql_of_result(result: Any, *args: Any, **kwargs: Any) -> object:
    return result.context.statement


# What stands in place of SQLAlchemy's own --------------------------------------------------------


def _raw_connection(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Engine.raw_connection(): of an engine that is exempt, the driver's connections are, too."""

    @functools.wraps(original)
    def raw_connection(self: Any) -> Any:
        connection = original(self)
        if is_exempt(self, _connection):
            exempt(connection)
        return connection

    return raw_connection


def _fetchiter(original: object) -> Callable[[Any], Iterator[Any]]:
    """CursorResult._fetchiter_impl(), each row of which is a call that is guarded.

    And after a refusal it goes on, as the generator that it was doesn't.
    """

    def _fetchiter_impl(self: Any) -> Iterator[Any]:
        return iter(self._fetchone_impl, None)

    return functools.update_wrapper(_fetchiter_impl, original)  # type: ignore[arg-type]


def _finalize_fairy(original: Callable[..., None]) -> Callable[..., None]:
    """What the garbage collector gives back to the pool is given back: see `pymysql.__del__`.

    In 2.1 weakref.finalize calls it, which is known for a finalizer; in 2.0 a callback of a weak
    reference does, which isn't. Without a connection it is a finalizer's call in both.
    """

    def __del__(*args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(*args, **kwargs)

    @functools.wraps(original)
    def _finalize_fairy(
        dbapi_connection: Any, connection_record: Any, pool: Any, *args: Any, **kwargs: Any
    ) -> None:
        call = __del__ if dbapi_connection is None else original
        call(dbapi_connection, connection_record, pool, *args, **kwargs)

    return _finalize_fairy


# The tables --------------------------------------------------------------------------------------


def _of(kind: str, name: str, **options: Any) -> Operation:
    """An operation of which its own call's arguments tell more: `Session.execute(select(Order))`."""
    called = f"sqlalchemy.{kind}.{options.pop('called', name)}"
    return Operation(
        name, called=called, describe=functools.partial(asked_for, kind, name), **options
    )


_POOL = [
    _of("Pool", "connect", does_block=_pool_blocks),
    # What close() raises is logged there, and the connections are taken for closed.
    _of("Pool", "dispose", does_block=_holds_connections, cleans_up=True),
]

integration: Integration = Integration(
    "sqlalchemy",
    {
        "sqlalchemy.pool.base": {
            "Pool": _POOL,
            "_ConnectionFairy": [
                _of("PoolProxiedConnection", "close", does_block=_gives_back, cleans_up=True),
                _of("PoolProxiedConnection", "invalidate", does_block=_invalidates, cleans_up=True),
            ],
            "": [Operation("_finalize_fairy", adapt=_finalize_fairy, does_block=_never)],
        },
        "sqlalchemy.pool.impl": {
            "QueuePool": _POOL,
            "SingletonThreadPool": _POOL,
            "StaticPool": _POOL,
            "AssertionPool": _POOL,
        },
        "sqlalchemy.engine.base": {
            "Engine": [
                _of("Engine", "raw_connection", does_block=_blocks, adapt=_raw_connection),
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
                _of(
                    "CursorResult",
                    "_fetchone_impl",
                    called="fetchone",
                    statement=_sql_of_result,
                    does_block=_reads_one,
                ),
                _of(
                    "CursorResult",
                    "_fetchmany_impl",
                    called="fetchmany",
                    statement=_sql_of_result,
                    does_block=_reads_many,
                ),
                _of(
                    "CursorResult",
                    "_fetchall_impl",
                    called="fetchall",
                    statement=_sql_of_result,
                    does_block=_reads_all,
                ),
                Operation("_fetchiter_impl", adapt=_fetchiter, does_block=_never),
                _of(
                    "CursorResult",
                    "_soft_close",
                    called="close",
                    statement=_sql_of_result,
                    does_block=_drains,
                    cleans_up=True,
                ),
            ],
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
                _of("Session", "invalidate", does_block=_session_releases, cleans_up=True),
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
    distributions=("SQLAlchemy",),
    tested=("2.0.58", "2.1.9"),
)
