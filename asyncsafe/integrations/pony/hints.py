"""What of pony the user's line asked for, and what to write instead.

The outermost of pony's frames tells: an attribute or a collection that is loaded, a query, a method
of an entity or of a database. Only what objects hold in memory is read, never an attribute of an
entity, which would be loaded.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...violation import Told

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_THREAD = "await asyncsafe.database_sync_to_async"
#: For what belongs to a session, as everything does that pony gives out.
WHOLE_BLOCK = f"{_THREAD}(f)(...), where the function f has the whole db_session"


def tell(frames: list[FrameType]) -> Told | None:
    """What the outermost frame of pony's was asked for. None where nothing better is known.

    frames: from the guarded call outwards, up to the user's own.
    """
    for frame in reversed(frames):
        name = str(frame.f_globals.get("__name__"))
        # In an interactive session, pony wraps its functions to shorten their tracebacks: in
        # cut_traceback(), which functions call that it compiles.
        code = frame.f_code
        is_wrapper = code.co_name == "cut_traceback" or code.co_filename == "<string>"
        if not name.startswith("pony.") or is_wrapper:
            continue
        if read := _READERS.get(frame.f_code.co_qualname):
            return read(frame)
        if "<locals>" not in frame.f_code.co_qualname:  # a decorator's: what it wraps comes next
            return _by_name(frame)
    return None


def _by_name(frame: FrameType) -> Told | None:
    core = sys.modules["pony.orm.core"]
    name = frame.f_code.co_name
    if name == "__init__" and isinstance(frame.f_locals.get("self"), core.Database):
        return Told("Database() was bound", f"{_THREAD}(db.bind)(...)")
    if name.startswith("_"):
        return None
    owner: Any = frame.f_locals.get("cls", frame.f_locals.get("self"))
    if isinstance(owner, core.EntityMeta):
        return Told(f"{owner.__name__}.{name}() was called", WHOLE_BLOCK)
    if isinstance(owner, core.Entity):
        return Told(f"{type(owner).__name__.lower()}.{name}() was called", WHOLE_BLOCK)
    if isinstance(owner, core.Database):
        fix = WHOLE_BLOCK
        if name in ("bind", "generate_mapping", "create_tables", "check_tables", "disconnect"):
            fix = f"{_THREAD}(db.{name})(...)"
        return Told(f"Database.{name}() was called", fix)
    if isinstance(owner, core.SetInstance):
        return _collection(frame)
    if isinstance(owner, core.Query):
        return Told(f"{_query(owner)}.{name}() was called", WHOLE_BLOCK)
    if owner is None and frame.f_globals.get(name) is not None:
        return Told(f"{name}() was called", WHOLE_BLOCK)
    return None


def _query(query: Any) -> str:
    """`select(... in Order)`: what it selects, where that is an entity."""
    kind = query._translator.expr_type
    is_entity = isinstance(kind, sys.modules["pony.orm.core"].EntityMeta)
    return f"select(... in {kind.__name__})" if is_entity else "select(...)"


def _evaluated(how: str) -> Callable[[FrameType], Told]:
    def tell(frame: FrameType) -> Told:
        owner = frame.f_locals["self"]
        owner = getattr(owner, "_query_result", owner)
        return Told(f"{_query(getattr(owner, '_query', owner))} was {how}", WHOLE_BLOCK)

    return tell


def _attribute(frame: FrameType) -> Told:
    attribute, entity = frame.f_locals["self"], type(frame.f_locals["obj"]).__name__
    name = f"{entity}.{attribute.name}"
    # What isn't lazy is loaded with all others of an object that was but pointed to so far.
    fetched = name if attribute.reverse or attribute.lazy else entity
    return Told(f"{name} was loaded", f"select(...).prefetch({fetched}) beforehand")


def _collection(frame: FrameType) -> Told:
    owner = frame.f_locals["self"]
    collection = getattr(owner, "_wrapper", owner)
    name = f"{type(collection._obj_).__name__}.{collection._attr_.name}"
    return Told(f"{name} was loaded", f"select(...).prefetch({name}) beforehand")


def _by_key(frame: FrameType) -> Told:
    return Told(f"{frame.f_locals['cls'].__name__}[...] was loaded", WHOLE_BLOCK)


def _decorated(frame: FrameType) -> Told:
    name = getattr(frame.f_locals["func"], "__name__", "f")
    return Told(f"the db_session of {name}() was left", f"{_THREAD}({name})(...)")


def _coroutine(frame: FrameType) -> Told:
    return Told("the db_session of a coroutine or generator was left", WHOLE_BLOCK)


_SESSION = "DBSessionContextManager._wrap_"

_READERS: dict[str, Callable[[FrameType], Told | None]] = {
    "Attribute.__get__": _attribute,
    "Attribute.load": _attribute,
    "SetInstance.__iter__": _collection,
    "SetInstance.__len__": _collection,
    "SetInstance.__contains__": _collection,
    "SetInstance.__nonzero__": _collection,
    "SetIterator.next": _collection,
    "EntityMeta.__getitem__": _by_key,
    "Query.__iter__": _evaluated("iterated"),
    "Query.__len__": _evaluated("evaluated"),
    "Query.__getitem__": _evaluated("indexed"),
    "QueryResultIterator.next": _evaluated("iterated"),
    "QueryResult.__len__": _evaluated("evaluated"),
    "QueryResult.__getitem__": _evaluated("indexed"),
    "QueryResult.__contains__": _evaluated("evaluated by `in`"),
    f"{_SESSION}function.<locals>.new_func": _decorated,
    f"{_SESSION}coroutine_or_generator_function.<locals>.new_gen_func": _coroutine,
    f"{_SESSION}coroutine_or_generator_function.<locals>.new_gen_func.<locals>.wrapped_interact": (
        _coroutine
    ),
}
