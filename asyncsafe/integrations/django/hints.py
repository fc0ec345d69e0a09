"""What of Django the user's line asked for, and what to write instead.

The frame that the user's line called tells: a descriptor's `__get__` is a relation that is loaded, a
queryset's `__iter__` an evaluation. Where Django has the same method with an a-prefix, that is the
fix; it is looked up, never assumed. Nothing here reads what would ask the database: the locals of
frames, and what classes say of themselves.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from opcode import opname
from typing import TYPE_CHECKING, Any

from ...violation import Told

if TYPE_CHECKING:
    from types import FrameType

_THREAD = "await asyncsafe.database_sync_to_async"


def tell(frames: list[FrameType]) -> Told | None:
    """What the outermost frame of Django's was asked for. None where nothing better is known.

    frames: from the guarded call outwards, up to the user's own.
    """
    # Another library's frame: what the user's line called is that, and Django's fix isn't its.
    other = False
    outermost = True
    for i in range(len(frames) - 1, -1, -1):
        frame = frames[i]
        package = (frame.f_globals.get("__name__") or "").partition(".")[0]
        told = None
        if package == "rest_framework" and not other:
            told = _of_serializer(frame, frames[:i])
        elif package == "django":
            if read := _READERS.get(frame.f_code.co_qualname):
                told = read(frame)
            elif by := _RENDERERS.get(frame.f_code.co_qualname):
                told = _rendered(*by(frame), frames[:i])
            elif outermost and not _is_wrapper(frame):
                told = _by_name(frame)
                # What Django calls in turn is told where it is in the tables alone.
                outermost = False
        if told is not None:
            return Told(told.subject, None) if other else told
        other = other or package not in ("django", *sys.stdlib_module_names)
    return None


# What isn't in the tables -----------------------------------------------------------------------


def _is_wrapper(frame: FrameType) -> bool:
    """A decorator's inner function: what it decorates comes next."""
    return "self" not in frame.f_locals and "<locals>" in frame.f_code.co_qualname


def _by_name(frame: FrameType) -> Told | None:
    name = frame.f_code.co_name
    if name.startswith(("_", "<")):
        return None
    owner = frame.f_locals.get("self")
    if owner is None:
        return _function(frame, name)
    found = inspect.getattr_static(type(owner), name, None)
    if found is None:
        return None
    described, called = _described(owner)
    if isinstance(found, property):
        return Told(f"{described}.{name} was read", None)
    return Told(f"{described}.{name}() was called", _with_prefix(type(owner), called, name))


def _function(frame: FrameType, name: str) -> Told | None:
    if frame.f_globals.get(name) is None:  # a class's or another function's
        return None
    twin = frame.f_globals.get(f"a{name}")
    fix = f"await a{name}{_parentheses(twin)}" if _is_asynchronous(twin) else None
    return Told(f"{frame.f_globals['__name__']}.{name}() was called", fix)


def _with_prefix(kind: type, called: str, name: str) -> str | None:
    """`await order.asave(...)` in place of `order.save(...)`, where there is such a method."""
    twin = getattr(kind, f"a{name}", None)
    if not _is_asynchronous(twin):
        return None
    if _blocks_all_the_same(kind):
        return f"{_THREAD}({called}.{name})(...)"
    return f"await {called}.a{name}{_parentheses(twin)}"


def _blocks_all_the_same(kind: type) -> bool:
    """Sessions in files: their asynchronous methods read and write on the loop."""
    load = getattr(kind, "aload", None)
    return getattr(load, "__module__", None) == "django.contrib.sessions.backends.file"


def _is_asynchronous(function: Any) -> bool:
    return inspect.iscoroutinefunction(function)


def _parentheses(function: Any) -> str:
    """`()` for a function that takes nothing, or itself alone."""
    code = inspect.unwrap(function).__code__
    rest = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    arguments = code.co_argcount + code.co_kwonlyargcount - (code.co_varnames[:1] == ("self",))
    return "(...)" if arguments or code.co_flags & rest else "()"


# Names ------------------------------------------------------------------------------------------


def _described(owner: Any) -> tuple[str, str]:
    """What to call this object in the subject, and how the user's line is likely to name it."""
    from django.contrib.sessions.backends.base import SessionBase
    from django.core.cache.backends.base import BaseCache
    from django.db.models import Manager, Model, QuerySet

    if isinstance(owner, Model):
        return (name := type(owner).__name__.lower()), name
    if isinstance(owner, QuerySet):
        return _of_model(owner), "queryset"
    if isinstance(owner, Manager):
        return (name := _manager(owner)), name
    if isinstance(owner, SessionBase):
        return "request.session", "request.session"
    if isinstance(owner, BaseCache):
        return "cache", "cache"
    return (name := type(owner).__name__), name


def _of_model(queryset: Any) -> str:
    """`QuerySet[Order]`."""
    model = queryset.model
    kind = type(queryset).__name__
    return f"{kind}[{model.__name__}]" if model is not None else kind


def _manager(manager: Any) -> str:
    instance = getattr(manager, "instance", None)
    if instance is not None:  # a related manager
        return f"{type(instance).__name__.lower()}.{_accessor(manager, instance)}"
    return f"{manager.model.__name__}.{manager.name or 'objects'}"


def _accessor(manager: Any, instance: Any) -> str:
    """The attribute of the instance that this related manager is."""
    field = getattr(manager, "field", None)
    if field is not None:
        return str(field.remote_field.get_accessor_name())
    through = getattr(manager, "through", None)
    if through is not None and getattr(manager, "reverse", False):
        for relation in instance._meta.related_objects:
            if relation.many_to_many and relation.through is through:
                return str(relation.get_accessor_name())
    return str(manager.prefetch_cache_name)


def _objects(model: Any) -> str:
    return f"{model.__name__}.{model._default_manager.name}"


# The tables -------------------------------------------------------------------------------------


def _manager_method(frame: FrameType) -> Told:
    """A method that managers have from their queryset; none of these is marked asynchronous."""
    manager, name = frame.f_locals["self"], frame.f_locals["name"]
    called = _manager(manager)
    kind = getattr(type(manager), "_queryset_class", type(manager))
    return Told(f"{called}.{name}() was called", _with_prefix(kind, called, name))


def _relation(frame: FrameType) -> Told | None:
    """A related object that is loaded when it is read."""
    descriptor, instance = frame.f_locals["self"], frame.f_locals["instance"]
    model = type(instance)
    if (related := getattr(descriptor, "related", None)) is not None:
        # The other side of a OneToOneField.
        name, other = related.get_accessor_name(), related.related_model
        lookup = f"{related.field.name}={model.__name__.lower()}"
    else:
        field = descriptor.field
        name, other = field.name, field.remote_field.model
        target = field.target_field
        key = "pk" if target.primary_key else target.name
        lookup = f"{key}={model.__name__.lower()}.{field.attname}"
    return Told(
        f"{model.__name__}.{name} was loaded",
        f'{_objects(model)}.select_related("{name}") beforehand, or '
        f"await {_objects(other)}.aget({lookup})",
    )


def _generic_relation(frame: FrameType) -> Told:
    key, instance = frame.f_locals["self"], frame.f_locals["instance"]
    model, name = type(instance), getattr(key, "field", key).name
    return Told(
        f"{model.__name__}.{name} was loaded",
        f'{_objects(model)}.prefetch_related("{name}") beforehand',
    )


def _deferred(frame: FrameType) -> Told:
    descriptor, instance = frame.f_locals["self"], frame.f_locals["instance"]
    model, name = type(instance).__name__, descriptor.field.attname
    return Told(
        f"the deferred field {model}.{name} was loaded",
        f'await {model.lower()}.arefresh_from_db(fields=["{name}"]), or don\'t defer it',
    )


def _evaluated(how: str, fix: str) -> Callable[[FrameType], Told]:
    def tell(frame: FrameType) -> Told:
        return Told(f"{_of_model(frame.f_locals['self'])} was {how}", fix)

    return tell


def _iterated(frame: FrameType) -> Told:
    """By a for statement, by `in`, or by a function such as list()."""
    caller, how, fix = frame.f_back, "iterated", "async for row in queryset: ..."
    doing = opname[caller.f_code.co_code[caller.f_lasti]] if caller is not None else ""
    if doing == "CONTAINS_OP":
        how, fix = "evaluated by `in`", "await queryset.acontains(...)"
    elif doing.startswith("CALL"):
        fix = "[row async for row in queryset]"
    return Told(f"{_of_model(frame.f_locals['self'])} was {how}", fix)


def _indexed(frame: FrameType) -> Told:
    queryset, key = frame.f_locals["self"], frame.f_locals["k"]
    if isinstance(key, slice):
        parts = ["" if part is None else str(part) for part in (key.start, key.stop, key.step)]
        text = ":".join(parts if key.step is not None else parts[:2])
        of = f"[{':'.join(parts[:2])}]" if key.start is not None or key.stop is not None else ""
        rest = f"[::{key.step}]" if key.step is not None else ""
        fix = f"[row async for row in queryset{of}]{rest}"
    else:
        text = str(key)
        fix = "await queryset.afirst()"
        if key != 0:
            fix = f"[row async for row in queryset[{key}:{key + 1}]][0]"
    return Told(f"{_of_model(queryset)} was evaluated by [{text}]", fix)


def _raw(frame: FrameType) -> Told:
    return Told(f"{_of_model(frame.f_locals['self'])} was evaluated", f"{_THREAD}(list)(queryset)")


def _atomic(frame: FrameType) -> Told:
    return Told(
        "transaction.atomic() was "
        + ("entered" if frame.f_code.co_name == "__enter__" else "left"),
        f"{_THREAD}(f)(...), where the function f has the whole atomic block: a transaction can't "
        "span await",
    )


def _lazy(frame: FrameType) -> Told | None:
    """`request.user`. Of other lazy objects, what they load is told."""
    # Not even its truth may be asked: that would load it.
    setup = object.__getattribute__(frame.f_locals["self"], "__dict__").get("_setupfunc")
    if getattr(setup, "__module__", None) == "django.contrib.auth.middleware":
        return Told("request.user was loaded", "user = await request.auser()")
    return None


#: What a session's operators are asynchronously, and what they do.
_SESSION = {
    "__getitem__": ("aget", "read"),
    "__setitem__": ("aset", "set"),
    "__delitem__": ("apop", "deleted"),
    "__contains__": ("ahas_key", "looked up"),
}


def _session(frame: FrameType) -> Told:
    kind, key = type(frame.f_locals["self"]), frame.f_locals["key"]
    method, done = _SESSION[frame.f_code.co_name]
    text = repr(key) if isinstance(key, str) else "..."
    rest = ", value" if method == "aset" else ""
    fix = f"await request.session.{method}({text}{rest})"
    if _blocks_all_the_same(kind):
        fix = f"{_THREAD}(request.session.{method[1:]})({text}{rest})"
    return Told(f"request.session[{text}] was {done}", fix)


def _lazily_read(frame: FrameType) -> Told | None:
    """A cached_property of Django's, as a Paginator's count."""
    instance, name = frame.f_locals["instance"], frame.f_locals["self"].name
    if not type(instance).__module__.startswith("django."):
        return None
    return Told(f"{type(instance).__name__}.{name} was read", None)


# Who renders ------------------------------------------------------------------------------------


def _template(frame: FrameType) -> tuple[str, str]:
    template = frame.f_locals["self"]
    name = getattr(getattr(template, "template", template), "name", None)
    return f"the template {name!r}" if name else "a template", f"{_THREAD}(template.render)(...)"


def _named_template(frame: FrameType) -> tuple[str, str]:
    owner = frame.f_locals.get("self")
    name = frame.f_locals["template_name"] if owner is None else owner.template_name
    who = f"the template {name!r}" if isinstance(name, str) else "a template"
    called = frame.f_code.co_name if owner is None else "response.render"
    return who, f"{_THREAD}({called})({'...' if owner is None else ''})"


def _of_serializer(frame: FrameType, inner: list[FrameType]) -> Told | None:
    """What Django REST framework's serializers do."""
    name, serializer = frame.f_code.co_name, frame.f_locals.get("self")
    if serializer is None or name.startswith("_") or not hasattr(type(serializer), name):
        return None
    who = type(serializer).__name__
    if name == "data":
        return _rendered(f"{who}.data", f"{_THREAD}(lambda: serializer.data)()", inner)
    return Told(f"{who}.{name}() was called", None)


def _rendered(who: str, fix: str, inner: list[FrameType]) -> Told:
    """A template or serializer, and the relation or queryset that it came upon."""
    for frame in reversed(inner):
        read = _READERS.get(frame.f_code.co_qualname)
        told = read(frame) if read and frame.f_globals["__name__"].startswith("django.") else None
        if told is not None:
            subject = told.subject
            if read in (_relation, _generic_relation) and told.fix:
                fix = f"{told.fix.partition(' beforehand')[0]} beforehand, or {fix}"
            elif "QuerySet." in frame.f_code.co_qualname:
                # A template asks for the length before it iterates.
                subject = f"{_of_model(frame.f_locals['self'])} was evaluated"
            return Told(f"{subject} by {who}", fix)
    was = "was read" if who.endswith(".data") else "was rendered"
    return Told(f"{who} {was}", fix)


_RENDERERS: dict[str, Callable[[FrameType], tuple[str, str]]] = {
    "Template.render": _template,
    "render": _named_template,
    "render_to_string": _named_template,
    "SimpleTemplateResponse.render": _named_template,
}

_READERS: dict[str, Callable[[FrameType], Told | None]] = {
    "BaseManager._get_queryset_methods.<locals>.create_method.<locals>.manager_method": (
        _manager_method
    ),
    "ForwardManyToOneDescriptor.__get__": _relation,
    "ReverseOneToOneDescriptor.__get__": _relation,
    "GenericForeignKey.__get__": _generic_relation,
    "GenericForeignKeyDescriptor.__get__": _generic_relation,
    "DeferredAttribute.__get__": _deferred,
    "QuerySet.__iter__": _iterated,
    "QuerySet._iterator": _evaluated("iterated", "async for row in queryset.aiterator(): ..."),
    "QuerySet.__bool__": _evaluated("evaluated by bool()", "if await queryset.aexists(): ..."),
    "QuerySet.__len__": _evaluated("evaluated by len()", "await queryset.acount()"),
    "QuerySet.__repr__": _evaluated(
        "evaluated by repr()", "print([row async for row in queryset[:20]])"
    ),
    "QuerySet.__getitem__": _indexed,
    "RawQuerySet.__iter__": _raw,
    "RawQuerySet.__len__": _raw,
    "RawQuerySet.__bool__": _raw,
    "RawQuerySet.__getitem__": _raw,
    "Atomic.__enter__": _atomic,
    "Atomic.__exit__": _atomic,
    "cached_property.__get__": _lazily_read,
    "new_method_proxy.<locals>.inner": _lazy,
    "LazyObject.__getattribute__": _lazy,
    "SimpleLazyObject._setup": _lazy,
    "SessionBase.__getitem__": _session,
    "SessionBase.__setitem__": _session,
    "SessionBase.__delitem__": _session,
    "SessionBase.__contains__": _session,
}
