"""What of SQLAlchemy the user's line asked for, and what to write instead.

The frame that the user's line called tells: an attribute's `__get__` is a lazy load, `Query.all` an
ORM query. Where the line calls what is guarded itself, there is no such frame, and the call's
arguments tell. Nothing here loads anything: the locals of frames, and what mapped classes and
statements say of themselves. No parameter of a statement is told, nor a primary key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...violation import Told

if TYPE_CHECKING:
    from types import FrameType

_PACKAGES = ("sqlalchemy", "sqlmodel")
#: How many of a statement's columns are told.
_COLUMNS = 3


def tell(frames: list[FrameType]) -> Told | None:
    """What the outermost frame of SQLAlchemy's was asked for. None where nothing better is known.

    frames: from the guarded call outwards, up to the user's own.
    """
    # Another library's frame: what the user's line called is that, and this fix isn't its.
    other = False
    outermost = True
    for frame in reversed(frames):
        package = (frame.f_globals.get("__name__") or "").partition(".")[0]
        if package in _PACKAGES:
            read = _READERS.get(frame.f_code.co_qualname)
            told = read(frame) if read else _by_name(frame) if outermost else None
            if told is not None:
                # What was loaded with its owner isn't loaded later, whoever reads it.
                return told if not other or read is _attribute else Told(told.subject, None)
            outermost = outermost and frame.f_code.co_name.startswith(("_", "<"))
        other = other or package not in (*_PACKAGES, *sys.stdlib_module_names)
    return None


def asked_for(kind: str, name: str, owner: Any, *args: Any, **kwargs: Any) -> Told | None:
    """What a call asks for that the user's line makes itself: `Session.execute(select(Order))`."""
    if name.startswith("_"):  # what a for statement calls of a result: there is no frame for it
        owner = getattr(owner, "result", owner)
        return Told(f"{_kind(owner)} was iterated", _fix(owner, "all"))
    return _called(owner, name, args)


def _by_name(frame: FrameType) -> Told | None:
    """A public method, by its name; or a public function, as `inspect()`."""
    name, values = frame.f_code.co_name, frame.f_locals
    if name.startswith(("_", "<")):
        return None
    owner = values.get("self")
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    if owner is None:
        told = _argument([values[n] for n in names])
        return Told(f"{name}({told}) was called", _with_endpoint(_FUNCTIONS.get(name)))
    if not hasattr(type(owner), name):
        return None
    return _called(owner, name, [values[n] for n in names[1:]])


def _called(owner: Any, name: str, arguments: Sequence[Any]) -> Told:
    told = _argument(arguments)
    rest = ", ..." if name in ("get", "get_one") else ""
    return Told(f"{_kind(owner)}.{name}({told}{rest}) was called", _fix(owner, name))


# Names -------------------------------------------------------------------------------------------


def _kind(owner: Any) -> str:
    """What to call this object: by its class, or the class of SQLAlchemy's that it inherits from."""
    name = next((n for n in _names(owner) if n in _KINDS), type(owner).__name__)
    if name == "Query":
        return f"Query({', '.join(_columns(owner.column_descriptions))})"
    return _KINDS.get(name) or name.removeprefix("_")


def _names(owner: Any) -> list[str]:
    return [kind.__name__ for kind in type(owner).__mro__]


#: Classes that users have subclasses of, or never see.
_KINDS = {
    "Query": "Query",
    "Session": "Session",
    "scoped_session": "Session",
    "Connection": "Connection",
    "Engine": "Engine",
    "ScalarResult": "ScalarResult",
    "MappingResult": "MappingResult",
    "Result": "Result",
    "_ConnectionFairy": "PoolProxiedConnection",
}


def _argument(values: Sequence[Any]) -> str:
    """The first argument, where it is a statement, a class or an object of one; else nothing or "..."."""
    if not values or values[0] is None or values[0] is True:
        return ""
    return _described(values[0]) or "..."


def _described(value: Any) -> str | None:
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "_sa_instance_state"):
        return type(value).__name__.lower()
    name = type(value).__name__
    if hasattr(value, "column_descriptions") and hasattr(value, "get_final_froms"):
        return f"select({', '.join(_columns(value.column_descriptions))})"
    if (described := getattr(value, "entity_description", None)) is not None:  # insert() and others
        return f"{name.lower()}({described['name']})"
    if name == "TextClause":
        return "text(...)"
    return _KINDS_TAKEN.get(_kind(value))


#: What functions of SQLAlchemy take, and are told of by their usual names.
_KINDS_TAKEN = {"Engine": "engine", "Connection": "connection", "Session": "session"}


def _columns(described: list[dict[str, Any]]) -> list[str]:
    told = [_column(each) for each in described[: _COLUMNS + 1]]
    return told if len(told) <= _COLUMNS else [*told[:_COLUMNS], "..."]


def _column(described: dict[str, Any]) -> str:
    entity, expression, name = described.get("entity"), described["expr"], described["name"]
    if entity is not None and expression is not entity:
        return f"{entity.__name__}.{name}" if hasattr(entity, "__name__") else str(name)
    table = getattr(expression, "table", None)
    return f"{table.name}.c.{name}" if table is not None else str(name)


# Fixes -------------------------------------------------------------------------------------------


def _fix(owner: Any, name: str) -> str | None:
    """The same method, awaited, where an asynchronous object has it."""
    kind = next((n for n in _names(owner) if n in _FIXES), None)
    if kind is None:
        return None
    if kind in ("Session", "scoped_session") and name in _ONLY_SYNCHRONOUS:
        kind = "run_sync"
    fix = _FIXES[kind]
    if kind == "Engine" and name in ("connect", "begin"):
        fix = "async with engine.{name}() as connection: ..., with create_async_engine(...)"
    return _with_endpoint(fix.format(name=name, dots="" if name in _WITHOUT_ARGUMENTS else "..."))


_FIXES = {
    "Query": "await session.execute(select(...)), with an AsyncSession",
    "Session": "await session.{name}({dots}), with an AsyncSession",
    "scoped_session": "await session.{name}({dots}), with an AsyncSession",
    "SessionTransaction": "await session.{name}(), with an AsyncSession",
    "run_sync": "await session.run_sync(lambda session: session.{name}(...)), with an AsyncSession",
    "Connection": "await connection.{name}({dots}), with an AsyncEngine's connection",
    "Engine": "await engine.{name}({dots}), with create_async_engine(...)",
    "MetaData": "await connection.run_sync(metadata.{name}), with an AsyncEngine's connection",
    "Inspector": (
        "await connection.run_sync(lambda connection: inspect(connection).{name}(...)), with an "
        "AsyncEngine's connection"
    ),
    "ScalarResult": "(await session.scalars(...)).{name}({dots}), with an AsyncSession",
    "Result": "(await session.execute(...)).{name}({dots}), with an AsyncSession",
}


def _with_endpoint(fix: str | None) -> str | None:
    """And what else helps in an endpoint of FastAPI's: `def` in place of `async def`."""
    if fix is None or "fastapi.routing" not in sys.modules:
        return fix
    endpoint = None
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_qualname != "run_endpoint_function":
        endpoint, frame = frame, frame.f_back  # type: ignore[assignment]
    if frame is None or endpoint is None:
        return fix
    return (
        f"{fix}; or make {endpoint.f_code.co_name}() a `def` endpoint, which FastAPI runs in a "
        "thread"
    )


#: Methods of Session that AsyncSession lacks.
_ONLY_SYNCHRONOUS = frozenset(
    {"bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings", "prepare"}
)
_WITHOUT_ARGUMENTS = frozenset(
    {"all", "close", "commit", "dispose", "fetchall", "fetchone", "first", "flush", "invalidate"}
    | {"one", "one_or_none", "prepare", "reset", "rollback", "scalar"}
)

_FUNCTIONS = {
    "inspect": (
        "await connection.run_sync(lambda connection: inspect(connection)...), with an "
        "AsyncEngine's connection"
    ),
}


# Attributes --------------------------------------------------------------------------------------


def _attribute(frame: FrameType) -> Told | None:
    """An attribute that is loaded when it is read: a relation, or an expired or deferred column."""
    attribute, instance = frame.f_locals["self"], frame.f_locals["instance"]
    if instance is None:
        return None
    model, key = type(instance).__name__, attribute.key
    state = sys.modules["sqlalchemy"].inspect(instance)
    subject = f"{model}.{key} was loaded"
    if key in state.mapper.relationships:
        return Told(
            subject,
            f"select({model}).options(selectinload({model}.{key})) beforehand, or, with an "
            f"AsyncSession, await session.refresh({model.lower()}, [{key!r}])",
        )
    if key in state.expired_attributes and state.session is not None:
        return Told(
            subject,
            f"await session.refresh({model.lower()}), with an AsyncSession, or a Session with "
            "expire_on_commit=False",
        )
    return Told(subject, f"select({model}).options(undefer({model}.{key})) beforehand")


def _left(frame: FrameType) -> Told:
    kind = _kind(frame.f_locals["self"])
    fix = "async with AsyncSession(engine) as session: ..." if kind == "Session" else None
    return Told(f"the `with` block of a {kind} was left", _with_endpoint(fix))


def _iterated(frame: FrameType) -> Told:
    owner = frame.f_locals["self"]
    return Told(f"{_kind(owner)} was iterated", _fix(owner, "all"))


_READERS: dict[str, Callable[[FrameType], Told | None]] = {
    "InstrumentedAttribute.__get__": _attribute,
    "InstrumentedAttribute.__set__": _attribute,
    "InstrumentedAttribute.__delete__": _attribute,
    "Query.__iter__": _iterated,
    # A for statement's, in 2.0; from 2.1 on it is compiled, where there is a compiler.
    "ResultInternal._iterator_getter.<locals>.iterrows": _iterated,
    "BaseResultInternal._iterator_getter.<locals>.iterrows": _iterated,
    "Session.__exit__": _left,
    "Connection.__exit__": _left,
    "TransactionalContext.__exit__": _left,
}
