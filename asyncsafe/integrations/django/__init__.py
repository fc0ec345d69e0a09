"""Django: its own guards answer to asyncsafe, and what they leave open is guarded.

Every `async_unsafe` in Django and in third-party backends asks `get_running_loop` in
`django.utils.asyncio`: ours stands there. The methods that Django decorates itself are guarded in
place of its decorator, which costs less than it does.

The driver's own guards see what goes past Django: raw connections, and the rows that a `for` takes
from a cursor.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from ... import loops
from ...guards import Guard, admit
from ...recorder import violations
from ...tables import Integration, Operation
from .hints import tell
from .settings import mode_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _without_decorator(method: Any) -> Callable[..., Any]:
    """What Django's async_unsafe was put round: ours stands in its place."""
    # By its code: what somebody else has wrapped round a method stays.
    code = getattr(method, "__code__", None)
    if code is None or code.co_qualname != "async_unsafe.<locals>.decorator.<locals>.inner":
        return method  # type: ignore[no-any-return]
    undecorated: Callable[..., Any] = method.__wrapped__
    return undecorated


def _sql(cursor: Any, sql: Any, *args: Any, **kwargs: Any) -> object:
    return sql.as_string(cursor.cursor) if hasattr(sql, "as_string") else sql


def _connection(thing: Any) -> Any:
    """The driver's connection, of a DatabaseWrapper or a cursor's; None before it connects."""
    return getattr(getattr(thing, "db", thing), "connection", None)


def _is_connected(wrapper: Any, *args: Any, **kwargs: Any) -> bool:
    return wrapper.connection is not None


def _is_not_connected(wrapper: Any) -> bool:
    return wrapper.connection is None


def _begins_or_ends(wrapper: Any, autocommit: bool, *args: Any, **kwargs: Any) -> bool:
    """Whether set_autocommit() touches a transaction.

    An atomic block turns it on again at its end, whatever has become of the commit or the rollback.
    Where that was made, what is left are the functions of on_commit(), whose calls are their own.
    Where it was refused, the transaction is open, and SQLite and MySQL would commit it.
    """
    if not autocommit:
        return True
    on_its_way = sys.exc_info()[1]
    if on_its_way is None:
        return not wrapper.run_commit_hooks_on_set_autocommit_on
    violation = getattr(on_its_way, "violation", None)
    return violation is not None and violation.operation in _ENDS


_ENDS = ("django.db.connection.commit", "django.db.connection.rollback")


def _fetchone(self: Any) -> Any:
    with self.db.wrap_database_errors:
        return self.cursor.fetchone()


def _fetchmany(self: Any, *args: Any, **kwargs: Any) -> Any:
    with self.db.wrap_database_errors:
        return self.cursor.fetchmany(*args, **kwargs)


def _fetchall(self: Any) -> Any:
    with self.db.wrap_database_errors:
        return self.cursor.fetchall()


def _close(self: Any) -> None:
    self.cursor.close()


def _is_server_side(wrapper: Any) -> bool:
    return getattr(wrapper.cursor, "name", None) is not None


def _is_remote(fetching: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether rows are still the server's: not where the client has had all of them."""
    return fetching.db.vendor not in ("postgresql", "mysql") or _is_server_side(fetching)


class _Rows:
    """A cursor's rows, where its alias has a mode of its own."""

    __slots__ = ("_rows", "cursor", "db")

    def __init__(self, rows: Any, wrapper: Any) -> None:
        self._rows = rows
        self.cursor = wrapper.cursor
        self.db = wrapper.db

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._rows)

    def close(self) -> None:
        """As a generator's, which Django's is."""
        self._rows.close()


def _with_mode(iterate: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """CursorWrapper.__iter__(). Else the driver's guard sees each row, and that once is enough."""

    @functools.wraps(iterate)
    def __iter__(self: Any) -> Iterator[Any]:  # noqa: N807
        rows = iterate(self)
        return rows if mode_of(self) is None else _Rows(rows, self)

    return __iter__


def _never(*args: Any, **kwargs: Any) -> bool:
    return False


def _get_running_loop() -> object:
    """In django.utils.asyncio: what a function that Django's async_unsafe decorates asks.

    Raises SynchronousOnlyOperation where the call is refused, and RuntimeError, as asyncio does
    where no loop runs, where it is to be made.
    """
    if loops.namespace["get_running_loop"]() is not None:
        asking = sys._getframe(1).f_locals
        if "func" not in asking:  # called by its name in this module, and not by async_unsafe
            return sys.modules["asyncio"].get_running_loop()
        function = asking["func"]
        name = f"{function.__module__}.{function.__qualname__}"
        guard = Guard(name, library="django", describe=tell, mode=mode_of)
        pending = admit(guard, asking["args"], asking["kwargs"])
        if pending is not None:
            # The call is Django's to make: how long it takes, the driver's guard can tell.
            violations.end(pending, 0.0)
    raise RuntimeError("no running event loop that this call would block")


def _of_django(name: str, **options: Any) -> Operation:
    return Operation(
        name, called=f"django.db.connection.{name}", adapt=_without_decorator, **options
    )


def _fetching(name: str) -> Operation:
    return Operation(name, called=f"django.db.cursor.{name}", does_block=_is_remote)


_EXECUTE = [
    Operation("execute", called="django.db.cursor.execute", statement=_sql),
    Operation("executemany", called="django.db.cursor.executemany", statement=_sql),
]
_CURSOR = [
    *_EXECUTE,
    Operation("callproc", called="django.db.cursor.callproc", statement=_sql),
    _fetching("fetchone"),
    _fetching("fetchmany"),
    _fetching("fetchall"),
    Operation("close", called="django.db.cursor.close", does_block=_is_server_side, cleans_up=True),
    Operation("__iter__", called="django.db.cursor.__iter__", adapt=_with_mode, does_block=_never),
]

#: Of Django, by the tests in tests/integrations/.
TESTED = ("5.2.19", "6.1.3")

integration: Integration = Integration(
    "django",
    {
        "django.db.backends.base.base": {
            "BaseDatabaseWrapper": [
                _of_django("connect"),
                _of_django("ensure_connection", does_block=_is_not_connected),
                _of_django("cursor"),
                _of_django("commit", does_block=_is_connected),
                _of_django("rollback", does_block=_is_connected, cleans_up=True),
                _of_django("close", does_block=_is_connected, cleans_up=True),
                _of_django("savepoint"),
                _of_django("savepoint_rollback", cleans_up=True),
                # It also releases a savepoint that was rolled back to.
                _of_django("savepoint_commit", cleans_up=True),
                # Django has no guard of its own there, but in ensure_connection().
                _of_django("set_autocommit", does_block=_begins_or_ends),
            ],
        },
        "django.db.backends.postgresql.base": {
            "DatabaseWrapper": [
                _of_django("get_new_connection"),
                _of_django("create_cursor"),
                _of_django("chunked_cursor"),
                _of_django("is_usable", does_block=_is_connected),
                _of_django("close_pool", cleans_up=True),
            ],
        },
        "django.db.backends.mysql.base": {
            "DatabaseWrapper": [
                _of_django("get_new_connection"),
                _of_django("create_cursor"),
                _of_django("is_usable", does_block=_is_connected),
            ],
        },
        "django.db.backends.oracle.base": {
            "DatabaseWrapper": [
                _of_django("get_new_connection"),
                _of_django("create_cursor"),
                _of_django("is_usable", does_block=_is_connected),
                _of_django("close_pool", cleans_up=True),
            ],
        },
        "django.db.backends.sqlite3.base": {
            "DatabaseWrapper": [
                _of_django("get_new_connection"),
                _of_django("close", does_block=_is_connected, cleans_up=True),
            ],
        },
        "django.db.backends.utils": {"CursorWrapper": _CURSOR, "CursorDebugWrapper": _EXECUTE},
        __name__: {"_Rows": [_fetching("__next__")]},
    },
    replaced={
        "django.utils.asyncio": {"": {"get_running_loop": _get_running_loop}},
        # It has them by __getattr__() alone. The rows of an iterator that was begun in synchronous
        # code are fetched by them, too.
        "django.db.backends.utils": {
            "CursorWrapper": {
                "fetchone": _fetchone,
                "fetchmany": _fetchmany,
                "fetchall": _fetchall,
                "close": _close,
            }
        },
    },
    connection=_connection,
    describe=tell,
    mode=mode_of,
    distributions=("Django",),
    tested=TESTED,
    exempt={
        "`close()` and `rollback()` without a connection": "they do nothing",
        "rows that the client has": "on PostgreSQL and MySQL a fetch from them is no I/O",
        "an alias with the mode `off`": 'as `ASYNCSAFE["aliases"]` says',
        "`asave()`, `aget()`, `async for`": "Django runs them in a thread",
    },
    not_guarded={
        "caches, files, mail, file sessions": "on demand: their backends may be in memory",
        "other storages and caches than Django's own": "they are their packages', whose drivers may "
        "be guarded",
    },
)
