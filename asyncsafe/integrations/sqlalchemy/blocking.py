"""Whether a call of SQLAlchemy's does I/O, by what its objects know of themselves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...scopes import exempted, is_exempt

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        thing = getattr(cursor_result(thing), "connection", None)  # a Transaction's, or a result's
        yield thing
    if (engine := getattr(thing, "engine", None)) is not None:
        yield engine
        # engine.execution_options() makes another one, in front of it.
        yield getattr(engine, "_proxied", engine)


def _exempt_engines(pool: Any) -> Iterator[Any]:
    """Those that have this pool: it doesn't know its engine."""
    engine = sys.modules["sqlalchemy.engine.base"].Engine
    return (one for one in exempted() if isinstance(one, engine) and one.pool is pool)


def cursor_result(result: Any) -> Any:
    """Below what the ORM makes of its rows."""
    result = getattr(result, "result", result)
    return getattr(result, "raw", result)


def connection_of(thing: Any) -> Any:
    """The driver's connection; None before there is one. Or what `exempt()` was called with."""
    found = None
    for owner in _owners(thing):
        if is_exempt(owner):
            return owner
        if hasattr(owner, "exec_driver_sql") and is_open(owner):
            found = owner.connection.dbapi_connection
        elif hasattr(owner, "dbapi_connection"):
            found = owner.dbapi_connection
    return found


def is_open(connection: Any, *args: Any) -> bool:
    """Whether it has one of the driver's, which it blocks with."""
    return not (connection.dialect.is_async or connection.closed or connection.invalidated)


# What blocks -------------------------------------------------------------------------------------


def never(*args: Any, **kwargs: Any) -> bool:
    return False


def blocks(engine: Any, *args: Any, **kwargs: Any) -> bool:
    return not engine.dialect.is_async


def pool_blocks(pool: Any) -> bool:
    # A pool's dialect is nowhere in public. Without an engine it has one of its own.
    return not pool._dialect.is_async


def holds_connections(pool: Any) -> bool:
    """Whether there is something to close: what is checked out isn't closed by dispose()."""
    if isinstance(pool, sys.modules["sqlalchemy.pool"].NullPool):
        return False
    idle = pool.checkedin() if hasattr(pool, "checkedin") else 1
    return pool_blocks(pool) and idle > 0


def disposes(engine: Any, close: bool = True) -> bool:
    return close and holds_connections(engine.pool)


def gives_back(fairy: Any) -> bool:
    """SingletonThreadPool hands one out again and again, and counts."""
    return fairy.is_valid and fairy._counter == 1 and pool_blocks(fairy._pool)


def invalidates(fairy: Any, e: object = None, soft: bool = False) -> bool:
    return not soft and fairy.is_valid and pool_blocks(fairy._pool)


def executes(connection: Any, *args: Any, **kwargs: Any) -> bool:
    """A closed one has its own error; one that was invalidated connects again."""
    return not (connection.dialect.is_async or connection.closed)


def sets_isolation_level(connection: Any, **options: Any) -> bool:
    """psycopg2 and psycopg send it with the next BEGIN."""
    freely = connection.dialect.driver in ("psycopg2", "psycopg")
    return "isolation_level" in options and not freely and executes(connection)


def ends(transaction: Any) -> bool:
    return transaction.is_active and is_open(transaction.connection)


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


def reads_one(result: Any, hard_close: bool = False) -> bool:
    return _is_remote(result) and not _buffered(result)


def reads_many(result: Any, size: int | None = None) -> bool:
    return _is_remote(result) and (size is None or _buffered(result) < size)


def reads_all(result: Any, *args: Any, **kwargs: Any) -> bool:
    return _is_remote(cursor_result(result))


def drains(result: Any, hard: bool = False) -> bool:
    """A cursor of the server's is closed there, after the rows that are left (MySQL)."""
    return _is_remote(result) and result.context._is_server_side and not result.connection.closed


def _session_blocks(session: Any, **bind_arguments: Any) -> bool:
    bind = session.get_bind(**bind_arguments)
    return not (bind.dialect.is_async or is_exempt(bind, connection_of))


def session_executes(
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


def session_connects(
    session: Any, bind_arguments: dict[str, Any] | None = None, execution_options: object = None
) -> bool:
    return not _held_by(session) and _session_blocks(session, **(bind_arguments or {}))


def flushes(session: Any, objects: object = None) -> bool:
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


def saves(session: Any, mapper: Any, mappings: Any, *args: Any, **kwargs: Any) -> bool:
    """Without a connection it takes one, for no mapping too."""
    return (bool(mappings) or not _held_by(session)) and _session_blocks(session, mapper=mapper)


def saves_objects(session: Any, objects: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(objects) and _session_blocks(session)


def refreshes(session: Any, instance: Any, *args: Any, **kwargs: Any) -> bool:
    """What isn't the session's, or isn't in the database yet, is an error of its own."""
    state = sys.modules["sqlalchemy"].inspect(instance)
    if not state.persistent or instance not in session:
        return False
    return _session_blocks(session, mapper=state.mapper)


def commits(transaction: Any, _to_root: bool = False) -> bool:
    """It flushes first, commits what it began and gives back what it took."""
    held = _held_by(transaction.session) if _to_root else _held(transaction)
    return flushes(transaction.session) or _ends_any(held)


def rolls_back(transaction: Any, _capture_exception: bool = False, _to_root: bool = False) -> bool:
    """What a flush began is a part of the transaction round it; a savepoint isn't."""
    while transaction.parent is not None and (_to_root or not transaction.nested):
        transaction = transaction.parent
    return _has_open(_held(transaction))


def releases(transaction: Any, invalidate: bool = False) -> bool:
    held = _held(transaction)
    invalidates = invalidate and transaction.parent is None
    return _ends_any(held) or (invalidates and _has_open(held))


def session_releases(session: Any) -> bool:
    return _ends_any(_held_by(session))


def session_invalidates(session: Any) -> bool:
    """A connection that the session was given, too."""
    return _has_open(_held_by(session))


def _has_open(held: set[tuple[Any, Any, bool, bool]]) -> bool:
    return any(is_open(connection) for connection, *_ in held)


def _ends_any(held: set[tuple[Any, Any, bool, bool]]) -> bool:
    """Whether one of these is committed or rolled back, or given back: what isn't shared is."""
    return any(
        (commits or closes) and is_open(connection) for connection, _, commits, closes in held
    )
