"""pony: its sessions, and what the cache of a session sends to the database.

All queries pass `Database._exec_sql`, and before it the cache connects, begins and saves what was
changed. Both are refused where nothing has changed yet. What pony would take for a failed commit
(and roll back), translate into an error of its own, or forget half-way, is guarded at its own entry.

A `db_session` is the thread's, whichever task enters it: were it left open by a refusal, the next
one in this thread would be taken for a part of it, and commit nothing. So a session that may not
commit on the loop is over, as where its commit fails in the database.

Methods that look for the caller's variables, or its directory, count the frames up to it:
`Database.execute()`, `select()`, `bind()` and their like can't have a wrapper round them, and are
refused in what they call. `@db_session` on a coroutine function is pony's own affair: each of its
queries is refused as anybody's.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from ...exceptions import AsyncUnsafeWarning, SynchronousOnlyOperation
from ...scopes import exempt, is_exempt
from ...stacks import is_ours
from ...tables import Integration, Operation
from .hints import WHOLE_BLOCK, tell
from .local import use_local as use_local

if TYPE_CHECKING:
    from collections.abc import Callable


def _core() -> Any:
    return sys.modules["pony.orm.core"]


def _caches() -> list[Any]:
    """Those of the caller's session, one for each database. No public way leads to them."""
    return list(_core().local.db2cache.values())


def _connection(thing: Any) -> Any:
    """The driver's connection, if one is open; a database that is exempt stands for its own."""
    if isinstance(thing, _OfSession):
        thing = thing.cache
    elif isinstance(thing, _core().Entity):
        thing = thing._session_cache_
    database = getattr(thing, "database", thing)  # a cache's or a provider's
    if is_exempt(database):
        return database
    cache = _core().local.db2cache.get(database)
    return None if cache is None else cache.connection


def _sql(database: object, sql: object, *args: Any, **kwargs: Any) -> object:
    return sql


# Whether it does I/O ---------------------------------------------------------------------------


def _opens(provider: Any) -> bool:
    """A thread's pool holds one connection."""
    return getattr(provider.pool, "con", None) is None


def _prepares(cache: Any) -> bool:
    """Whether it connects, begins, or saves what was changed."""
    begins = cache.immediate and not cache.in_transaction
    return bool(cache.connection is None or begins or _saves(cache))


def _saves(cache: Any) -> bool:
    return bool(cache.modified and not cache.noflush_counter)


def _is_unsaved(entity: Any) -> bool:
    return entity._status_ in ("created", "modified", "marked_to_delete")


def _commits(cache: Any) -> bool:
    return bool(cache.modified or cache.in_transaction)


def _is_connected(cache: Any) -> bool:
    return cache.connection is not None


def _has_anything(cache: Any) -> bool:
    return _commits(cache) or _is_connected(cache)


def _of_database(asks: Callable[[Any], bool]) -> Callable[..., bool]:
    """Asked of a database: what its cache says, where the session has one."""

    def does_block(database: Any, *args: Any, **kwargs: Any) -> bool:
        cache = _core().local.db2cache.get(database)
        return cache is not None and asks(cache)

    return does_block


def _in_session(database: Any, *args: Any, **kwargs: Any) -> bool:
    """Outside of a session, pony has an error of its own; a prompt's lines need none."""
    local = _core().local
    is_prompt = sys.modules["pony"].MODE == "INTERACTIVE"
    return bool(local.db_context_counter) or database in local.db2cache or is_prompt


def _alone(*args: Any, **kwargs: Any) -> bool:
    """In a session, pony has an error of its own for what makes tables, or drops them."""
    return not _core().local.db_context_counter


def _begins(database: Any) -> bool:
    cache = _core().local.db2cache.get(database)
    return _in_session(database) and (cache is None or not cache.in_transaction)


def _disconnects(database: Any) -> bool:
    provider = database.provider
    return provider is not None and not _opens(provider) and not _core().local.db_context_counter


def _checks_tables(
    database: Any, filename: Any = None, check_tables: Any = True, create_tables: Any = False
) -> bool:
    """Without a provider, or done already, it has an error of its own."""
    is_ready = database.provider is not None and not database.schema and filename is None
    return bool(is_ready and (check_tables or create_tables))


def _is_bare() -> bool:
    """Whether `commit` or `rollback` asks which was taken hold of before it was guarded."""
    frame = sys._getframe()
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    if frame.f_globals.get("__name__") != "pony.orm.core" or frame.f_back is None:
        return False
    if is_ours(frame.f_back.f_code.co_filename):
        return False
    if frame.f_code.co_qualname == "commit":
        return any(map(_commits, _caches()))
    is_clean_up = sys.exc_info()[1] is not None
    return frame.f_code.co_qualname == "rollback" and not is_clean_up and _holds_any()


def _holds_any() -> bool:
    return any(map(_is_connected, _caches()))


def _never(*args: Any, **kwargs: Any) -> bool:
    return False


# Of the session --------------------------------------------------------------------------------


class _OfSession:
    """A call that has no connection among its arguments, and the cache of the session's that has it."""

    __slots__ = ("cache", "call")

    def __init__(self, cache: Any, call: Callable[..., Any]) -> None:
        self.cache = cache
        self.call = call

    def commit(self) -> Any:
        return self.call()

    def rollback(self) -> Any:
        return self.call()

    def leave(self, *exc_info: Any) -> Any:
        return self.call(*exc_info)


def _with_cache(function: Callable[[], Any]) -> Callable[[], Any]:
    """commit() and rollback(), of all that the session has done."""
    name = function.__name__

    @functools.wraps(function)
    def whole_session() -> Any:
        caches = _core()._get_caches()
        return getattr(_OfSession(caches[0], function), name)() if caches else function()

    return whole_session


def _commits_any(of_session: _OfSession) -> bool:
    return any(map(_commits, _caches()))


def _rolls_any_back(of_session: _OfSession) -> bool:
    return _holds_any()


def _leaves(of_session: _OfSession, *exc_info: Any) -> bool:
    """Whether it is the outermost one, which commits, and gives its connections back."""
    return _core().local.db_context_counter == 1 and any(map(_has_anything, _caches()))


def _leaving(leave: Callable[..., Any]) -> Callable[..., Any]:
    """DBSessionContextManager.__exit__()."""

    @functools.wraps(leave)
    def __exit__(  # noqa: N807
        self: Any, exc_type: Any = None, exc: Any = None, tb: Any = None
    ) -> Any:
        core = _core()
        caches = core._get_caches()
        if not caches:
            return leave(self, exc_type, exc, tb)
        try:
            return _OfSession(caches[0], functools.partial(leave, self)).leave(exc_type, exc, tb)
        except (SynchronousOnlyOperation, AsyncUnsafeWarning) as refusal:
            if core.local.db_context_counter == 1:  # it was refused, and nothing in it
                core.rollback()
                leave(self, type(refusal), refusal, refusal.__traceback__)
            raise

    return __exit__


def _preparing(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Of a database that is exempt, the driver's connection is, too: sqlite's rows are read from its cursors."""

    @functools.wraps(prepare)
    def prepare_connection_for_query_execution(self: Any) -> Any:
        connection = prepare(self)
        if is_exempt(self.database) and not is_exempt(connection):
            exempt(connection)
        return connection

    return prepare_connection_for_query_execution


_WHOLE_SESSION = [
    Operation("commit", adapt=_with_cache, does_block=_never),
    Operation("rollback", adapt=_with_cache, does_block=_never),
]

integration: Integration = Integration(
    "pony",
    {
        "pony.orm.core": {
            "": [
                *_WHOLE_SESSION,
                # What they call first, whoever took hold of them and when.
                Operation("_get_caches", called="pony.orm.commit", does_block=_is_bare),
            ],
            "DBSessionContextManager": [
                Operation("__exit__", adapt=_leaving, does_block=_never),
            ],
            "Database": [
                Operation(
                    "_exec_sql",
                    called="pony.Database.execute",
                    statement=_sql,
                    does_block=_in_session,
                ),
                Operation("get_connection", does_block=_begins),
                Operation("commit", does_block=_of_database(_commits)),
                Operation("rollback", does_block=_of_database(_is_connected), cleans_up=True),
                Operation("disconnect", does_block=_disconnects, cleans_up=True),
                Operation("generate_mapping", does_block=_checks_tables),
                Operation("create_tables", does_block=_alone),
                Operation("check_tables"),
                Operation("drop_table", does_block=_alone),
                Operation("drop_all_tables", does_block=_alone),
            ],
            "SessionCache": [
                Operation(
                    "prepare_connection_for_query_execution",
                    called="pony.Database.connect",
                    does_block=_prepares,
                    adapt=_preparing,
                ),
                Operation("flush", called="pony.Database.flush", does_block=_saves),
                Operation("commit", called="pony.Database.commit", does_block=_commits),
                Operation(
                    "rollback",
                    called="pony.Database.rollback",
                    does_block=_is_connected,
                    cleans_up=True,
                ),
                Operation(
                    "release",
                    called="pony.Database.release",
                    does_block=_is_connected,
                    cleans_up=True,
                ),
            ],
            "Entity": [Operation("flush", does_block=_is_unsaved)],
        },
        "pony.orm": {"": _WHOLE_SESSION},
        "pony.orm.dbapiprovider": {
            "DBAPIProvider": [
                Operation("connect", called="pony.Database.connect", does_block=_opens),
            ],
        },
        __name__: {
            "_OfSession": [
                Operation("commit", called="pony.orm.commit", does_block=_commits_any),
                Operation(
                    "rollback",
                    called="pony.orm.rollback",
                    does_block=_rolls_any_back,
                    cleans_up=True,
                ),
                Operation(
                    "leave",
                    called="pony.orm.db_session.__exit__",
                    does_block=_leaves,
                    cleans_up=True,
                    hint=WHOLE_BLOCK,
                ),
            ],
        },
    },
    connection=_connection,
    describe=tell,
    distributions=("pony",),
    tested=("0.7.20",),
    exempt={
        "entering db_session": "it sends nothing",
        "what a session has loaded already": "attributes, collections and results are in its cache",
    },
    not_guarded={
        "rows that sqlite has still to read": "they are its driver's, whose guard sees them",
        "what is done on `db.get_connection()`": "the guard of its driver sees it",
    },
)
