"""What of peewee the user's line asked for, and what to write instead.

The outermost of peewee's frames tells: a method of a model, of a query or of a database, or a
foreign key that is loaded. Only what objects hold in memory is read, never what asks the database.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...violation import Told

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_THREAD = "await asyncsafe.database_sync_to_async"
_WHOLE_BLOCK = (
    f"{_THREAD}(f)(...), where the function f has the whole block: a transaction can't span await. "
    "playhouse.pwasyncio's can: async with db.atomic()"
)


def tell(frames: list[FrameType]) -> Told | None:
    """What the outermost frame of peewee's was asked for. None where nothing better is known.

    frames: from the guarded call outwards, up to the user's own.
    """
    for frame in reversed(frames):
        if not _is_peewees(frame):
            continue
        if read := _READERS.get(frame.f_code.co_qualname):
            return read(frame)
        if isinstance(frame.f_locals.get("self"), sys.modules["peewee"].BaseQuery):
            if read := _QUERY_READERS.get(frame.f_code.co_name):
                return read(frame)
        if not frame.f_code.co_qualname.endswith("<locals>.inner"):  # a decorator's: what it wraps
            return _by_name(frame)
    return None


def _is_peewees(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package in ("peewee", "playhouse")


def _by_name(frame: FrameType) -> Told | None:
    peewee = sys.modules["peewee"]
    name = frame.f_code.co_name
    if name.startswith(("_", "<")):
        return None
    owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
    if isinstance(owner, type) and issubclass(owner, peewee.Model):
        return _called(owner.__name__, owner.__name__, name)
    if isinstance(owner, peewee.Model):
        return _called(lower := type(owner).__name__.lower(), lower, name)
    if isinstance(owner, peewee.BaseQuery):
        return _called(_query(owner), "query", name)
    if isinstance(owner, peewee.Database):
        return _called(type(owner).__name__, "db", name)
    if owner is None and frame.f_globals.get(name) is not None:
        return _called(None, None, name)  # prefetch()
    return None


def _called(described: str | None, named: str | None, name: str) -> Told:
    """`order.save() was called`, and `await ...(order.save)(...)`."""
    subject = f"{described}.{name}" if described else name
    function = f"{named}.{name}" if named else name
    return Told(f"{subject}() was called", f"{_THREAD}({function})(...)")


def _query(query: Any) -> str:
    """`Order.select()`."""
    model = getattr(query, "model", None)
    kinds = sys.modules["peewee"]
    for kind, method in (
        (kinds.Insert, "insert"),
        (kinds.Update, "update"),
        (kinds.Delete, "delete"),
        (kinds.RawQuery, "raw"),
        (kinds.SelectQuery, "select"),
    ):
        if isinstance(query, kind):
            owner = model or getattr(query, "table", None) or "Table"
            return f"{getattr(owner, '__name__', owner)}.{method}()"
    return type(query).__name__


def _evaluated(how: str, fix: str) -> Callable[[FrameType], Told]:
    def tell(frame: FrameType) -> Told:
        query = frame.f_locals["self"]
        return Told(f"{_query(query)} was {how}", _prefetched(query) or fix)

    return tell


def _prefetched(query: Any) -> str | None:
    """For `customer.orders`, the rows that point to one other: all of them at once."""
    peewee = sys.modules["peewee"]
    where: Any = getattr(query, "_where", None)  # what a query has to meet is nowhere in public
    field: Any = where.lhs if isinstance(where, peewee.Expression) else None
    if not isinstance(query, peewee.ModelSelect) or not isinstance(field, peewee.ForeignKeyField):
        return None
    if where.op != peewee.OP.EQ or field.model is not query.model:
        return None
    return f"prefetch({field.rel_model.__name__}.select(), {_query(query)}) beforehand"


def _fetched(frame: FrameType) -> Told | None:
    """Rows of a query that was executed somewhere else."""
    wrapper = frame.f_locals.get("cursor_wrapper") or frame.f_locals["self"]
    wrapper = getattr(wrapper, "cursor_wrapper", wrapper)
    model = getattr(wrapper, "model", None)
    rows = f"the rows of {model.__name__}.select()" if model else "the rows of a query"
    return Told(f"{rows} were read", f"{_THREAD}(list)(query)")


def _foreign_key(frame: FrameType) -> Told:
    field = frame.f_locals["self"].field
    model, other = field.model.__name__, field.rel_model.__name__
    if field.model is field.rel_model:
        join, alias = "Parent", f", where Parent = {other}.alias()"
    else:
        join, alias = other, ""
    return Told(
        f"{model}.{field.name} was loaded",
        f"{model}.select({model}, {join}).join({join}, on={model}.{field.name}) beforehand{alias}",
    )


def _transaction(what: str, how: str) -> Callable[[FrameType], Told]:
    def tell(frame: FrameType) -> Told:
        return Told(f"{what} was {how}", _WHOLE_BLOCK)

    return tell


_READERS: dict[str, Callable[[FrameType], Told | None]] = {
    "ForeignKeyAccessor.__get__": _foreign_key,
    "ForeignKeyAccessor.get_rel_instance": _foreign_key,
    "ResultIterator.next": _fetched,
    "CursorWrapper.iterator": _fetched,
    "CursorWrapper.__len__": _fetched,
    "CursorWrapper.__getitem__": _fetched,
    "_atomic.__enter__": _transaction("db.atomic()", "entered"),
    "_atomic.__exit__": _transaction("db.atomic()", "left"),
    "_transaction.__enter__": _transaction("db.transaction()", "entered"),
    "_transaction.__exit__": _transaction("db.transaction()", "left"),
    "_transaction.commit": _transaction("db.transaction()", "committed"),
    "_transaction.rollback": _transaction("db.transaction()", "rolled back"),
    "_savepoint.__enter__": _transaction("db.savepoint()", "entered"),
    "_savepoint.__exit__": _transaction("db.savepoint()", "left"),
    "_savepoint.commit": _transaction("db.savepoint()", "committed"),
    "_savepoint.rollback": _transaction("db.savepoint()", "rolled back"),
    "Database.__enter__": _transaction("`with db`", "entered"),
    "Database.__exit__": _transaction("`with db`", "left"),
    "ConnectionContext.__enter__": _transaction("db.connection_context()", "entered"),
    "ConnectionContext.__exit__": _transaction("db.connection_context()", "left"),
}

#: Of queries, whichever of their classes has it.
_QUERY_READERS: dict[str, Callable[[FrameType], Told | None]] = {
    "__iter__": _evaluated("iterated", f"{_THREAD}(list)(query)"),
    "__len__": _evaluated("evaluated by len()", f"{_THREAD}(len)(query)"),
    "__getitem__": _evaluated("indexed", f"{_THREAD}(list)(query)"),
    "execute": _evaluated("executed", f"{_THREAD}(query.execute)()"),
    "_execute": _evaluated("executed", f"{_THREAD}(query.execute)()"),
}
