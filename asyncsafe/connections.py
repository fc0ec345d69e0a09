"""Connections that belong to who uses them: ConnectionHandler, and functions that run in a thread.

An owner is a task; outside of tasks a thread; below ConnectionMiddleware a request. It has a
connection of its own for each alias, made when it first asks, closed when it ends. A child task is
another owner. (Django's handler, in an asgiref Local, isolates siblings; a child goes on with its
parent's connection. See docs of `django.db.connections` and asgiref's Local.)
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from asgiref.local import Local
from asgiref.sync import SyncToAsync

from . import owners, sharing
from .exceptions import ConfigurationError, ConnectionSharingError
from .transactions import in_transaction

if TYPE_CHECKING:
    from asyncio import Future
    from concurrent.futures import ThreadPoolExecutor
    from types import TracebackType

__all__ = [
    "Alias",
    "ConnectionHandler",
    "ConnectionProxy",
    "Local",
    "ManagedConnection",
    "database_sync_to_async",
]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")

#: Seconds for which a connection that was just used is taken for alive (pgbouncer's
#: server_check_delay).
CHECK_DELAY = 30.0


class Alias(Generic[C]):
    """How connections of one alias are made, checked and closed.

    connect: called without arguments, for each owner's connection: `lambda: sqlite3.connect(path)`,
        `functools.partial(psycopg2.connect, dsn)`, SQLAlchemy's `QueuePool(...).connect`,
        `psycopg_pool.ConnectionPool(...).getconn`.
    close: called with the connection, when it is to go. By default its own `close()`; for a pool's
        `getconn`, the pool's `putconn`.
    max_age: seconds after which a connection isn't used again (Django's CONN_MAX_AGE). None: as
        long as its owner lives.
    health_check: called with a connection: whether it can be used again. True: `SELECT 1`.

    Age and health are looked at before and after each `database_sync_to_async` call, by
    `close_old_connections()`, and when a connection is asked for that nobody asked for in
    CHECK_DELAY seconds; never in a transaction, nor where the driver doesn't tell of transactions.
    """

    def __init__(
        self,
        connect: Callable[[], C],
        *,
        close: Callable[[C], object] | None = None,
        max_age: float | None = None,
        health_check: Callable[[C], bool] | bool = False,
    ) -> None:
        if not callable(connect) or _is_connection(connect):
            raise ConfigurationError(
                f"a function that connects is wanted, not {_a(connect)}: write "
                "lambda: sqlite3.connect(path), say"
            )
        if close is not None and not callable(close):
            raise ConfigurationError(
                f"close is a function that takes a connection, or None, not {close!r}"
            )
        if not isinstance(health_check, bool) and not callable(health_check):
            raise ConfigurationError(
                "health_check is True, False, or a function that takes a connection and tells "
                f"whether it can be used, not {health_check!r}"
            )
        if max_age is not None and not (isinstance(max_age, (int, float)) and max_age >= 0):
            raise ConfigurationError(f"max_age is a number of seconds, or None, not {max_age!r}")
        self.connect: Callable[[], C] = connect
        self.close: Callable[[C], object] = close or _way_back(connect)
        self.max_age: float | None = max_age
        self.health_check: Callable[[C], bool] | None = (
            _answers if health_check is True else health_check or None
        )
        #: The alias, and whether connections are looked at before they are used again.
        self.name: str = ""
        self.checks: bool = max_age is not None or self.health_check is not None

    def open(self, owner: owners.Owner) -> ManagedConnection:
        """A new connection for this owner."""
        owners.end_finished()
        connection = self.connect()
        if connection is None or isinstance(connection, Awaitable):
            if isinstance(connection, Coroutine):
                connection.close()
            raise ConfigurationError(
                f"the function that connects {self.name!r} returned {_a(connection)}; it must "
                "return a connection of a synchronous driver"
            )
        managed = ManagedConnection(_State(self, connection, owner))
        owner.keep(self, managed)
        return managed

    def release(self, kept: ManagedConnection) -> None:
        """Close it, or give it back to its pool."""
        state = _state(kept)
        if not state.closed:
            state.closed = True
            if state.shared:
                sharing.permit(_driver_connection(state.connection), -state.shared)
            self.close(state.connection)

    def is_usable(self, state: _State) -> bool:
        """Whether this connection can be used again. Called outside of transactions."""
        now = monotonic()
        if self.max_age is not None and now - state.opened >= self.max_age:
            return False
        closed = getattr(state.connection, "closed", False)
        if isinstance(closed, int) and closed:
            return False
        if self.health_check is None:
            return True
        try:
            return bool(self.health_check(state.connection))
        except Exception:
            return False


class ConnectionHandler:
    """Connections by alias, one for each owner: a mapping, as `django.db.connections` is.

    aliases: {alias: function that connects, or Alias(function, ...)}.

    `connections["default"]` is the connection of the task that asks; outside of tasks, of the
    thread; below `ConnectionMiddleware`, of the request. It is made on first use, never inherited
    by a child task, closed when its owner ends, and refuses to be used by others.

    Raises ConfigurationError for what doesn't describe an alias.
    """

    def __init__(self, aliases: Mapping[str, Callable[[], Any] | Alias[Any]]) -> None:
        if not isinstance(aliases, Mapping) or not aliases:
            raise ConfigurationError(
                'write ConnectionHandler({"default": lambda: sqlite3.connect(path)}), with one '
                "function, or Alias, for each alias"
            )
        self._aliases: dict[str, Alias[Any]] = {}
        for name, given in aliases.items():
            if not isinstance(name, str):
                raise ConfigurationError(f"an alias is a string, not {name!r}")
            alias = given if isinstance(given, Alias) else Alias(given)
            if alias.name:
                raise ConfigurationError(
                    f"the Alias for {name!r} is {alias.name!r} already: each has its own"
                )
            alias.name = name
            self._aliases[name] = alias

    def __getitem__(self, alias: str) -> Any:
        """The caller's own connection. Raises KeyError, naming the known aliases, for another."""
        try:
            known = self._aliases[alias]
        except KeyError:
            raise self._unknown(alias) from None
        owner = owners.current()
        managed = owner.kept.get(known)
        if managed is None:
            return known.open(owner)
        return self._checked(known, managed, owner) if known.checks else managed

    def __iter__(self) -> Iterator[str]:
        return iter(self._aliases)

    def __len__(self) -> int:
        return len(self._aliases)

    def __contains__(self, alias: object) -> bool:
        return alias in self._aliases

    def __repr__(self) -> str:
        return f"<ConnectionHandler {', '.join(map(repr, self._aliases))}>"

    def all(self) -> list[Any]:
        """The caller's connections that are open."""
        kept = owners.current().kept
        return [kept[alias] for alias in self._aliases.values() if alias in kept]

    def close_all(self) -> None:
        """Close the caller's connections, or give them back. Others' are not touched.

        The first error is raised when all were tried.
        """
        errors: list[Exception] = []
        for connection in self.all():
            try:
                connection.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def close_old_connections(self) -> None:
        """Close those of the caller's that are older than `max_age`, or fail the health check.

        Those in a transaction stay. A next use connects anew. Django's `close_old_connections()`.
        """
        owner = owners.current()
        for alias in self._aliases.values():
            managed = owner.kept.get(alias)
            if managed is not None:
                _renew(alias, managed, owner)

    def proxy(self, alias: str) -> ConnectionProxy:
        """An object whose attributes are those of whichever connection the caller has: for
        `connection = connections.proxy("default")`, as `django.db.connection` is.
        """
        if alias not in self._aliases:
            raise self._unknown(alias)
        return ConnectionProxy(self, alias)

    def _checked(self, alias: Alias[Any], managed: Any, owner: owners.Owner) -> Any:
        state = _state(managed)
        now = monotonic()
        idle, state.asked = now - state.asked, now
        # Not while it is in use: a cursor may be open on it.
        if idle >= CHECK_DELAY and _renew(alias, managed, owner):
            return alias.open(owner)
        return managed

    def _unknown(self, alias: object) -> KeyError:
        known = ", ".join(map(repr, self._aliases))
        return _UnknownAliasError(f"there is no connection {alias!r}; there are: {known}")


class _UnknownAliasError(KeyError):
    """A KeyError that tells its text as it is."""

    def __str__(self) -> str:
        return str(self.args[0])


class _State:
    """What is known of a connection that a handler made."""

    __slots__ = ("alias", "asked", "closed", "connection", "opened", "owner", "shared")

    def __init__(self, alias: Alias[Any], connection: Any, owner: owners.Owner) -> None:
        self.alias: Alias[Any] = alias
        self.connection: Any = connection
        self.owner: owners.Owner = owner
        self.closed: bool = False
        self.shared: int = 0
        self.opened: float = monotonic()
        self.asked: float = self.opened


def _state(managed: ManagedConnection) -> _State:
    state: _State = object.__getattribute__(managed, "_asyncsafe")
    return state


class ManagedConnection:
    """The connection of one owner: its attributes are the driver's connection's.

    Whoever else uses it gets ConnectionSharingError. `driver_connection` is the connection itself,
    for functions written in C that want exactly that (`sqlite3.Connection.backup`, psycopg2's
    `register_type`).
    """

    __slots__ = ("__weakref__", "_asyncsafe")

    _asyncsafe: _State

    def __init__(self, state: _State) -> None:
        object.__setattr__(self, "_asyncsafe", state)

    @property
    def driver_connection(self) -> Any:
        """The driver's own connection. Raises ConnectionSharingError for another than the owner."""
        self.validate_thread_sharing()
        return _driver_connection(self._asyncsafe.connection)

    def validate_thread_sharing(self) -> None:
        """Raise ConnectionSharingError, naming both, if the caller isn't the owner.

        Django's DatabaseWrapper.validate_thread_sharing(), extended to tasks.
        """
        state = self._asyncsafe
        if state.closed:
            raise ConnectionSharingError(
                f"this connection {state.alias.name!r} of {state.owner.name} was closed; ask for "
                f"connections[{state.alias.name!r}] where it is used"
            )
        if state.shared:
            return
        user = owners.current()
        if user is not state.owner:
            if state.owner.process != user.process:
                raise ConnectionSharingError(
                    f"the connection {state.alias.name!r} belongs to the process {state.owner.process}, "
                    f"which this one was forked from. Ask for connections[{state.alias.name!r}] in "
                    "this one: it has its own"
                )
            raise ConnectionSharingError(
                f"the connection {state.alias.name!r} belongs to {state.owner.name} and was used "
                f"by {user.name}. Ask for connections[{state.alias.name!r}] where it is used: each "
                "has its own. If they must share this one: connection.inc_thread_sharing()"
            )

    def inc_thread_sharing(self) -> None:
        """Let others use it, until `dec_thread_sharing()`. As Django's: calls are counted."""
        self.validate_thread_sharing()
        self._asyncsafe.shared += 1
        sharing.permit(_driver_connection(self._asyncsafe.connection), 1)

    def dec_thread_sharing(self) -> None:
        """Take one `inc_thread_sharing()` back. Raises RuntimeError if there was none."""
        if self._asyncsafe.shared <= 0:
            raise RuntimeError("dec_thread_sharing() without an inc_thread_sharing() before it")
        self._asyncsafe.shared -= 1
        if not self._asyncsafe.closed:
            sharing.permit(_driver_connection(self._asyncsafe.connection), -1)

    @property
    def allow_thread_sharing(self) -> bool:
        """Whether others may use it now."""
        return self._asyncsafe.shared > 0

    def close(self) -> None:
        """Close it, or give it back to its pool. The owner gets another where it asks again.

        Closing what is closed does nothing.
        """
        state = self._asyncsafe
        if state.closed:
            return
        self.validate_thread_sharing()
        if state.owner.kept.get(state.alias) is self:
            state.owner.drop(state.alias)
        state.alias.release(self)

    def __getattr__(self, name: str) -> Any:
        if name == "_asyncsafe":  # in copy.copy(), which fills a new object
            raise AttributeError(name)
        self.validate_thread_sharing()
        return getattr(self._asyncsafe.connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.validate_thread_sharing()
        setattr(self._asyncsafe.connection, name, value)

    def __delattr__(self, name: str) -> None:
        self.validate_thread_sharing()
        delattr(self._asyncsafe.connection, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # isinstance(connections["default"], sqlite3.Connection) is what programs ask.
        return type(self._asyncsafe.connection)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a connection can't be copied or pickled: ask for connections[alias] where it is used"
        )

    def __dir__(self) -> list[str]:
        return sorted({*dir(ManagedConnection), *dir(self._asyncsafe.connection)})

    def __repr__(self) -> str:
        state = self._asyncsafe
        closed = "closed, " if state.closed else ""
        return f"<{closed}{state.alias.name!r} of {state.owner.name}: {state.connection!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.validate_thread_sharing()
        return self._asyncsafe.connection(*args, **kwargs)

    def __enter__(self) -> Any:
        self.validate_thread_sharing()
        connection = _driver_connection(self._asyncsafe.connection)
        entered = connection.__enter__()
        return self if entered is connection else entered

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        state = self._asyncsafe
        if state.closed:
            return None
        self.validate_thread_sharing()
        connection = _driver_connection(state.connection)
        if connection is not state.connection and _with_closes(connection):
            # The connection is its pool's: end the transaction, and no more.
            if exc_type is None:
                connection.commit()
            else:
                connection.rollback()
            return None
        suppress = connection.__exit__(exc_type, exc, traceback)
        if getattr(connection, "closed", False) is True:  # psycopg's `with` closes
            self.close()
        return suppress


class ConnectionProxy:
    """One alias of a handler: the attributes of whichever connection the caller has.

    As `django.db.connection`, which is `ConnectionProxy(connections, "default")`.
    """

    __slots__ = ("__weakref__", "_alias", "_connections")

    _alias: str
    _connections: ConnectionHandler

    def __init__(self, connections: ConnectionHandler, alias: str) -> None:
        object.__setattr__(self, "_connections", connections)
        object.__setattr__(self, "_alias", alias)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connections[self._alias], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connections[self._alias], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._connections[self._alias], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._connections[self._alias](*args, **kwargs)

    def __enter__(self) -> Any:
        return self._connections[self._alias].__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        return self._connections[self._alias].__exit__(exc_type, exc, traceback)

    def __eq__(self, other: object) -> bool:
        return bool(self._connections[self._alias] == other)

    def __hash__(self) -> int:
        return hash(self._connections[self._alias])

    def __repr__(self) -> str:
        return f"<ConnectionProxy {self._alias!r}>"


# Ways back, and checks -----------------------------------------------------------------------


def _way_back(connect: Callable[[], Any]) -> Callable[[Any], object]:
    """A pool's `putconn` for its `getconn` (psycopg_pool, psycopg2.pool); else `close()`."""
    called = connect.func if isinstance(connect, functools.partial) else connect
    if getattr(called, "__name__", None) == "getconn":
        putconn = getattr(getattr(called, "__self__", None), "putconn", None)
        if callable(putconn):
            return putconn  # type: ignore[no-any-return]
    return _close


def _close(connection: Any) -> None:
    connection.close()


def _answers(connection: Any) -> bool:
    """Whether the server answers. Leaves no transaction open."""
    if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy's Connection
        connection.exec_driver_sql("SELECT 1").close()
    else:
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT 1")
            cursor.fetchone()
        finally:
            cursor.close()
    if in_transaction(connection):
        connection.rollback()
    return True


def _with_closes(connection: Any) -> bool:
    """Whether leaving a `with` block closes it: psycopg's (3), unlike psycopg2's and sqlite3's."""
    return type(connection).__module__.partition(".")[0] == "psycopg"


def _is_connection(thing: Any) -> bool:
    """Whether it is one already: sqlite3's can be called."""
    return hasattr(thing, "cursor") and hasattr(thing, "commit") and not isinstance(thing, type)


def _a(thing: object) -> str:
    """Its type, as errors tell it."""
    kind = type(thing).__qualname__
    article = "an" if kind[0] in "AEIOUaeiou" else "a"
    return "None" if thing is None else f"{article} {kind}"


def _driver_connection(connection: Any) -> Any:
    """Below SQLAlchemy's pools: what the guards see."""
    return getattr(connection, "driver_connection", connection)


def _renew(alias: Alias[Any], managed: Any, owner: owners.Owner) -> bool:
    """Close this connection if it can't be used again. Returns whether it did."""
    state = _state(managed)
    # A driver that doesn't tell of transactions (None) may have one open.
    if state.shared or in_transaction(state.connection) is not False or alias.is_usable(state):
        return False
    owner.drop(alias)
    owners.release(alias, managed, owner)
    return True


def _check_all(owner: owners.Owner) -> None:
    for keeper, managed in tuple(owner.kept.items()):
        if isinstance(keeper, Alias) and owner.made_in.get(keeper) == threading.get_ident():
            _renew(keeper, managed, owner)


# Functions in threads --------------------------------------------------------------------------


@overload
def database_sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def database_sync_to_async(
    *, thread_sensitive: bool = True, executor: ThreadPoolExecutor | None = None
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]: ...
def database_sync_to_async(
    func: Callable[..., Any] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
) -> Any:
    """Turn a synchronous function that uses a database into a coroutine function, run in a thread.

    asgiref's SyncToAsync (and Channels' function of this name), which knows for whom it runs; a
    call, `await database_sync_to_async(func)(*args)`, or a decorator.

    thread_sensitive: True: run in the one thread that such functions share (below
        ConnectionMiddleware: one for each request), with the awaiting task's own connections,
        which last from call to call; before and after each call, those past their `max_age` or
        failing the health check are closed. False: in any thread; the call has connections of its
        own, closed, or given back to their pool, when it returns, in that thread.
    executor: with thread_sensitive=False, the pool to run in.

    A call that has begun is finished when the task is cancelled, in its thread; the task's
    connections are closed after it. Raises TypeError for a coroutine function, and for an executor
    together with thread_sensitive.
    """
    if func is None:
        return functools.partial(
            database_sync_to_async, thread_sensitive=thread_sensitive, executor=executor
        )
    # Refuses what is not a synchronous function here, not where it is first called.
    SyncToAsync(func, thread_sensitive=thread_sensitive, executor=executor)
    owners.watch_workers()
    run = _run_for if thread_sensitive else _run_apart

    @functools.wraps(func)
    async def call(*args: Any, **kwargs: Any) -> Any:
        owner = owners.current()
        if not owner.kept:
            owners.end_finished()
        bound = functools.partial(run, owner, func)
        if thread_sensitive:
            owner.leave = functools.partial(_leave, contextvars.copy_context())
        in_thread = SyncToAsync(bound, thread_sensitive=thread_sensitive, executor=executor)
        return await in_thread(*args, **kwargs)

    return call


def _run_for(owner: owners.Owner, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with owners.acting_for(owner):
        _check_all(owner)
        try:
            return func(*args, **kwargs)
        finally:
            if owner.ended:
                owner.release()
            else:
                _check_all(owner)


def _run_apart(owner: owners.Owner, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    own = owners.Owner(f"a thread of {owner.name}", owner.task(), owner.works_for)
    own.below = owner.below
    with owners.acting_for(own):
        try:
            return func(*args, **kwargs)
        finally:
            own.release(everything=True)


def _leave(context: contextvars.Context, owner: owners.Owner) -> bool:
    """Release what is an ended task's in the thread that its thread-sensitive calls ran in.

    Returns whether that could be done.
    """
    try:
        start_in_thread(context, functools.partial(owner.release, everything=True))
    except RuntimeError:
        return False  # no loop runs any more, or the thread was async_to_sync's and went on
    return True


def start_in_thread(context: contextvars.Context, func: Callable[[], object]) -> Future[Any]:
    """Have `func` run where thread-sensitive calls of this context do. Returns what is done then.

    The loop may be about to end, with whatever tasks and coroutines are only scheduled; so that
    SyncToAsync is advanced by hand to where it has handed `func` over to the thread, and waits.
    Raises RuntimeError where there is no such thread any more.
    """
    waiting = SyncToAsync(func)()
    try:
        done: Future[Any] = context.run(waiting.send, None)
    finally:
        context.run(waiting.close)
    return done
