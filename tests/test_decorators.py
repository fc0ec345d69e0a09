"""async_unsafe: what it takes, what it returns, and when that is checked."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import pickle
import sys
import typing
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe import SynchronousOnlyOperation, allow, async_unsafe

from .running import on_loop

done: list[str] = []


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


# What can be decorated ------------------------------------------------------------------------


@async_unsafe
def function() -> str:
    """Do it."""
    done.append("function")
    return "function"


@async_unsafe("Orders are saved in a thread.")
def with_message() -> str:
    done.append("with_message")
    return "with_message"


class Repository:
    @async_unsafe
    def method(self) -> str:
        done.append("method")
        return "method"

    @async_unsafe
    @classmethod
    def decorated_classmethod(cls) -> str:
        done.append(cls.__name__)
        return "decorated_classmethod"

    @classmethod
    @async_unsafe
    def classmethod_of_decorated(cls) -> str:
        done.append(cls.__name__)
        return "classmethod_of_decorated"

    @async_unsafe
    @staticmethod
    def decorated_staticmethod() -> str:
        done.append("static")
        return "decorated_staticmethod"

    @staticmethod
    @async_unsafe
    def staticmethod_of_decorated() -> str:
        done.append("static")
        return "staticmethod_of_decorated"

    @async_unsafe
    @property
    def decorated_property(self) -> str:
        """What it is."""
        done.append("get")
        return "decorated_property"

    @property
    @async_unsafe
    def property_of_decorated(self) -> str:
        done.append("get")
        return "property_of_decorated"

    @async_unsafe
    @functools.cached_property
    def decorated_cached_property(self) -> str:
        done.append("get")
        return "decorated_cached_property"

    @functools.cached_property
    @async_unsafe
    def cached_property_of_decorated(self) -> str:
        done.append("get")
        return "cached_property_of_decorated"

    def bare(self) -> str:
        done.append("bare")
        return "bare"

    def __call__(self) -> str:
        done.append("called")
        return "called"


bound_method = async_unsafe(Repository().bare)
callable_object = async_unsafe(Repository())
partial = async_unsafe(functools.partial(Repository.bare, Repository()))
partial_of_decorated = functools.partial(Repository.method, Repository())
anonymous = async_unsafe(lambda: done.append("lambda") or "lambda")  # type: ignore[func-returns-value]
c_function = async_unsafe(done.append)

CALLS: dict[str, tuple[Callable[[], object], object]] = {
    "function": (function, "function"),
    "with message": (with_message, "with_message"),
    "method": (lambda: Repository().method(), "method"),
    "method by class": (lambda: Repository.method(Repository()), "method"),
    "@async_unsafe @classmethod": (
        lambda: Repository.decorated_classmethod(),
        "decorated_classmethod",
    ),
    "@classmethod @async_unsafe": (
        lambda: Repository().classmethod_of_decorated(),
        "classmethod_of_decorated",
    ),
    "@async_unsafe @staticmethod": (
        lambda: Repository.decorated_staticmethod(),
        "decorated_staticmethod",
    ),
    "@staticmethod @async_unsafe": (
        lambda: Repository().staticmethod_of_decorated(),
        "staticmethod_of_decorated",
    ),
    "@async_unsafe @property": (lambda: Repository().decorated_property, "decorated_property"),
    "@property @async_unsafe": (
        lambda: Repository().property_of_decorated,
        "property_of_decorated",
    ),
    "@async_unsafe @cached_property": (
        lambda: Repository().decorated_cached_property,
        "decorated_cached_property",
    ),
    "@cached_property @async_unsafe": (
        lambda: Repository().cached_property_of_decorated,
        "cached_property_of_decorated",
    ),
    "bound method": (bound_method, "bare"),
    "callable object": (callable_object, "called"),
    "partial": (partial, "bare"),
    "partial of a decorated method": (partial_of_decorated, "method"),
    "lambda": (anonymous, "lambda"),
    "C function": (lambda: c_function("appended"), None),
}


@pytest.mark.parametrize(("call", "result"), CALLS.values(), ids=list(CALLS))
def test_decorated_calls_are_refused_on_the_loop_alone(
    call: Callable[[], object], result: object
) -> None:
    assert call() == result
    assert len(done) == 1
    done.clear()
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(call)
    assert done == []


@pytest.mark.parametrize(("call", "result"), CALLS.values(), ids=list(CALLS))
def test_decorated_calls_are_made_on_the_loop_where_allowed(
    call: Callable[[], object], result: object
) -> None:
    def allowed() -> object:
        with allow():
            return call()

    assert on_loop(allowed) == result
    assert len(done) == 1


def test_a_property_is_guarded_when_it_is_read_written_and_deleted() -> None:
    class Order:
        def get_total(self) -> int:
            done.append("get")
            return 1

        def set_total(self, value: int) -> None:
            done.append(f"set {value}")

        def delete_total(self) -> None:
            done.append("delete")

        total = async_unsafe(property(get_total, set_total, delete_total, "In cents."))

    def delete(order: Order) -> None:
        del order.total

    accesses = (
        lambda: Order().total,
        lambda: setattr(Order(), "total", 2),
        lambda: delete(Order()),
    )
    for access in accesses:
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(access)
    assert done == []
    for access in accesses:
        access()
    assert done == ["get", "set 2", "delete"]
    assert Order.total.__doc__ == "In cents."


def test_a_property_without_setter_stays_without() -> None:
    with pytest.raises(AttributeError):
        Repository().decorated_property = "new"  # type: ignore[misc]
    assert Repository.decorated_property.__doc__ == "What it is."


@pytest.mark.parametrize(
    "name", ["decorated_cached_property", "cached_property_of_decorated"], ids=str
)
def test_what_a_cached_property_holds_already_is_read_freely(name: str) -> None:
    repository = Repository()
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(getattr, repository, name)
    assert name not in vars(repository)
    getattr(repository, name)
    assert on_loop(getattr, repository, name) == name
    assert done == ["get"]


@pytest.mark.parametrize(
    ("method", "args"),
    [
        (dict.get, ({"a": 1}, "a")),
        (dict.get, ({"a": 1}, "b")),
        (dict.get, ({"a": 1}, "b", None)),
        (dict.get, ({"a": 1}, "b", 2)),
        (dict.pop, ({"a": 1}, "a")),
        (dict.pop, ({"a": 1}, "b", 2)),
        (list.__len__, ([1, 2],)),
        (str.upper, ("a",)),
        (str.split, ("a b", None, 1)),
        (len, ((1, 2),)),
        (divmod, (7, 2)),
        (max, (1, 3, 2)),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_c_functions_take_what_they_took(method: Any, args: tuple[Any, ...]) -> None:
    guarded = async_unsafe(method)

    def allowed() -> object:
        with allow():
            return guarded(*map(_copy, args))

    expected = method(*map(_copy, args))
    assert guarded(*map(_copy, args)) == expected
    assert on_loop(allowed) == expected
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(guarded, *args)


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def test_a_default_that_is_left_out_is_left_out_for_c() -> None:
    pop = async_unsafe(dict.pop)
    with pytest.raises(KeyError):
        pop({}, "missing")

    def allowed() -> object:
        with allow():
            return pop({}, "missing")

    with pytest.raises(KeyError):
        on_loop(allowed)


def test_c_function_keywords_are_passed_on() -> None:
    assert async_unsafe(sorted)([1, 3, 2], reverse=True) == [3, 2, 1]
    assert async_unsafe(str.split)("a b c", maxsplit=1) == ["a", "b c"]


@pytest.mark.parametrize("thing", [3, None, b"message", ["list"]], ids=repr)
def test_what_cannot_be_called_cannot_be_decorated(thing: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(thing).__name__}"):
        async_unsafe(thing)


# What is asynchronous -------------------------------------------------------------------------


async def coroutine_function() -> None: ...


async def asynchronous_generator() -> Any:
    yield 1


class Asynchronous:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...


ASYNCHRONOUS = {
    "async def": coroutine_function,
    "asynchronous generator": asynchronous_generator,
    "asynccontextmanager": contextlib.asynccontextmanager(asynchronous_generator),
    "partial": functools.partial(coroutine_function),
    "partial of partial": functools.partial(functools.partial(asynchronous_generator)),
    "bound method": Asynchronous().method,
    "callable object": Asynchronous(),
    "classmethod": classmethod(coroutine_function),
    "staticmethod": staticmethod(coroutine_function),
    "property": property(coroutine_function),
    "cached_property": functools.cached_property(coroutine_function),
}


@pytest.mark.parametrize("target", ASYNCHRONOUS.values(), ids=list(ASYNCHRONOUS))
@pytest.mark.parametrize("decorator", [async_unsafe, async_unsafe("message")], ids=["bare", "with"])
def test_what_is_asynchronous_is_refused_at_decoration(decorator: Any, target: Any) -> None:
    with pytest.raises(TypeError, match=r"is asynchronous and made for the event loop") as caught:
        decorator(target)
    assert "Decorate the synchronous functions that it calls" in str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is 3.12's")
def test_a_function_that_is_marked_as_coroutine_function_is_refused() -> None:
    marked = inspect.markcoroutinefunction(lambda: None)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="is asynchronous"):
        async_unsafe(marked)


# What survives ---------------------------------------------------------------------------------


class Customer: ...


def documented(
    customer: Customer, /, amount: int = 1, *rest: str, note: str = "-", **more: list[Customer]
) -> Customer | None:
    """Bill a customer."""


documented.attribute = "kept"  # type: ignore[attr-defined]
documented_bare = documented
documented = async_unsafe(documented)


@pytest.mark.parametrize(
    "attribute",
    [
        "__name__",
        "__qualname__",
        "__module__",
        "__doc__",
        "__annotations__",
        "__defaults__",
        "__kwdefaults__",
        "attribute",
    ],
)
def test_attributes_survive(attribute: str) -> None:
    assert documented is not documented_bare
    assert getattr(documented, attribute) == getattr(documented_bare, attribute)


def test_the_signature_and_the_function_itself_are_there() -> None:
    assert inspect.signature(documented) == inspect.signature(documented_bare)
    assert documented.__wrapped__ is documented_bare  # type: ignore[attr-defined]
    unfollowed = inspect.signature(documented, follow_wrapped=False)
    assert [(p.name, p.kind, p.default) for p in unfollowed.parameters.values()] == [
        (p.name, p.kind, p.default) for p in inspect.signature(documented_bare).parameters.values()
    ]


def test_type_hints_are_resolved_where_the_function_was_written() -> None:
    assert typing.get_type_hints(documented) == {
        "customer": Customer,
        "amount": int,
        "rest": str,
        "note": str,
        "more": list[Customer],
        "return": Customer | None,
    }


def items() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "question",
    [
        inspect.isfunction,
        inspect.isgeneratorfunction,
        inspect.iscoroutinefunction,
        inspect.isasyncgenfunction,
        inspect.isroutine,
        inspect.isbuiltin,
    ],
    ids=lambda question: question.__name__,
)
@pytest.mark.parametrize(
    "target",
    [documented_bare, items, Repository.bare],
    ids=["function", "generator", "method"],
)
def test_inspect_answers_as_before(question: Callable[[Any], bool], target: Any) -> None:
    assert question(async_unsafe(target)) is question(target)


def test_a_decorated_method_is_bound_as_before() -> None:
    repository = Repository()
    assert inspect.ismethod(repository.method)
    assert repository.method.__self__ is repository
    assert isinstance(vars(Repository)["decorated_classmethod"], classmethod)
    assert isinstance(vars(Repository)["decorated_staticmethod"], staticmethod)
    assert isinstance(vars(Repository)["decorated_property"], property)
    assert isinstance(vars(Repository)["decorated_cached_property"], functools.cached_property)


def test_decorated_functions_are_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(function)) is function
    method = pickle.loads(pickle.dumps(Repository().method))
    assert method() == "method"
    assert pickle.loads(pickle.dumps(Repository.method)) is Repository.method


# Arguments ------------------------------------------------------------------------------------


def positional_only(a: int, b: int = 2, /, c: int = 3) -> Any:
    return a, b, c


def keyword_only(a: int, *, b: int, c: int = 3) -> Any:
    return a, b, c


def everything(a: int, /, b: int = 2, *args: int, c: int, d: int = 4, **kwargs: int) -> Any:
    return a, b, args, c, d, kwargs


def rest(*args: int, **kwargs: int) -> Any:
    return args, kwargs


def only_keywords(*, a: int = 1) -> Any:
    return a


ARGUMENTS: list[tuple[Callable[..., Any], tuple[int, ...], dict[str, int]]] = [
    (positional_only, (1,), {}),
    (positional_only, (1, 20), {"c": 30}),
    (positional_only, (), {}),
    (positional_only, (1,), {"b": 2}),
    (positional_only, (1, 2, 3, 4), {}),
    (keyword_only, (1,), {"b": 2}),
    (keyword_only, (), {"b": 2, "a": 1, "c": 4}),
    (keyword_only, (1,), {}),
    (keyword_only, (1, 2), {}),
    (everything, (1,), {"c": 3}),
    (everything, (1, 2, 3, 4), {"c": 5, "d": 6, "a": 7, "e": 8}),
    (everything, (1,), {"b": 2}),
    (rest, (), {}),
    (rest, (1, 2), {"a": 3, "args": 4, "kwargs": 5, "self": 6}),
    (only_keywords, (), {}),
    (only_keywords, (), {"a": 2}),
    (only_keywords, (1,), {}),
    (only_keywords, (), {"b": 1}),
]


@pytest.mark.parametrize(
    ("bare", "args", "kwargs"), ARGUMENTS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_arguments_arrive_as_they_would(
    bare: Callable[..., Any], args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    guarded = async_unsafe(bare)

    def allowed() -> Any:
        with allow():
            return guarded(*args, **kwargs)

    expected = _outcome(lambda: bare(*args, **kwargs))
    assert _outcome(lambda: guarded(*args, **kwargs)) == expected
    assert _outcome(lambda: on_loop(allowed)) == expected


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except TypeError:
        return TypeError


def test_defaults_are_the_very_objects() -> None:
    def remember(seen: list[int] = [], *, also: list[int] = []) -> tuple[list[int], list[int]]:  # noqa: B006
        return seen, also

    guarded = async_unsafe(remember)
    guarded()[0].append(1)
    assert guarded()[0] is remember()[0]
    assert guarded()[1] is remember()[1]
    assert remember()[0] == [1]


@pytest.mark.parametrize("form", ["{}", "{}=0", "*, {}", "*{}", "**{}", "{}, /"])
@pytest.mark.parametrize("generator", [False, True], ids=["function", "generator"])
@pytest.mark.parametrize(
    "name",
    [
        "args",
        "blocked",
        "call",
        "get_running_loop",
        "guard",
        "kwargs",
        "make",
        "self",
        "wrapper",
        "_advance",
        "_blocked",
        "_call",
        "_guard",
        "_MISSING",
    ],
)
def test_parameters_may_be_named_like_our_own_variables(
    name: str, generator: bool, form: str
) -> None:
    made: dict[str, Any] = {}
    statement = "yield" if generator else "return"
    exec(f"def bare({form.format(name)}):\n    {statement} {name}", made)
    guarded = async_unsafe(made["bare"])
    args, kwargs = ((), {name: 7}) if form in {"*, {}", "**{}"} else ((7,), {})

    def result(call: Callable[..., Any]) -> Any:
        value = call(*args, **kwargs)
        return next(value) if generator else value

    def allowed() -> Any:
        with allow():
            return result(guarded)

    expected = result(made["bare"])
    assert result(guarded) == expected
    assert on_loop(allowed) == expected
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(result, guarded)
    assert inspect.signature(guarded) == inspect.signature(made["bare"])


# Generators ------------------------------------------------------------------------------------


@async_unsafe
def rows(count: int = 3) -> Generator[int, str, str]:
    done.append("start")
    try:
        for number in range(count):
            sent = yield number
            if sent:
                done.append(sent)
    except SynchronousOnlyOperation:
        done.append("refused")
        raise
    except ValueError as error:
        done.append(f"thrown {error}")
        yield -1
    finally:
        done.append("end")
    return "returned"


def test_calling_a_generator_function_is_free() -> None:
    generator = on_loop(rows)
    assert not asyncsafe.violations
    assert list(generator) == [0, 1, 2]


def test_a_generator_that_is_refused_at_first_never_starts() -> None:
    generator = rows()
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(next, generator)
    assert done == []


def test_a_refused_step_is_thrown_into_the_generator_at_its_yield() -> None:
    generator = rows()
    assert next(generator) == 0
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(next, generator)
    assert done == ["start", "refused", "end"]
    with pytest.raises(StopIteration):
        next(generator)


def test_a_generator_may_go_on_after_a_refusal() -> None:
    @async_unsafe
    def stubborn() -> Iterator[str]:
        try:
            yield "first"
        except SynchronousOnlyOperation:
            yield "saved"

    generator = stubborn()
    next(generator)
    assert on_loop(next, generator) == "saved"


def test_each_step_is_a_call() -> None:
    asyncsafe.configure(mode="record")
    assert on_loop(lambda: list(rows())) == [0, 1, 2]
    (site,) = asyncsafe.violations
    assert site.calls == 4  # three items and the end
    assert site.violation.operation.endswith("rows")


def test_a_generator_advanced_in_a_thread_is_free() -> None:
    async def main() -> list[int]:
        return await asyncio.to_thread(list, rows())

    assert asyncio.run(main()) == [0, 1, 2]
    assert not asyncsafe.violations


@pytest.fixture(params=["off the loop", "allowed on the loop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    def allowed(call: Callable[[], Any]) -> Any:
        def inside() -> Any:
            with allow():
                return call()

        return on_loop(inside)

    return allowed if request.param == "allowed on the loop" else lambda call: call()


def test_send_reaches_the_generator(run: Callable[[Callable[[], Any]], Any]) -> None:
    generator = rows()
    assert run(lambda: (next(generator), generator.send("hello"))) == (0, 1)
    assert done == ["start", "hello"]


def test_throw_reaches_the_generator(run: Callable[[Callable[[], Any]], Any]) -> None:
    generator = rows()
    assert run(lambda: (next(generator), generator.throw(ValueError("x")))) == (0, -1)
    assert done == ["start", "thrown x"]


def test_close_reaches_the_generator(run: Callable[[Callable[[], Any]], Any]) -> None:
    generator = rows()
    run(lambda: (next(generator), generator.close()))
    assert done == ["start", "end"]


def test_the_returned_value_comes_back(run: Callable[[Callable[[], Any]], Any]) -> None:
    def outer() -> Generator[int, str, str]:
        return (yield from rows(1))

    def result() -> Any:
        generator = outer()
        next(generator)
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value

    assert run(result) == "returned"


def test_errors_of_the_generator_come_out(run: Callable[[Callable[[], Any]], Any]) -> None:
    @async_unsafe
    def failing() -> Iterator[int]:
        yield 1
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        run(lambda: list(failing()))


def test_a_generator_that_ignores_close_is_told_so() -> None:
    @async_unsafe
    def deaf() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    generator = deaf()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make",
    [
        lambda bare: functools.partial(bare, 2),
        lambda bare: type("Owner", (), {"method": lambda self: None, "rows": bare})(),
    ],
    ids=["partial", "bound method"],
)
def test_generator_functions_are_known_behind_partials_and_methods(make: Any) -> None:
    def bare(count: Any) -> Iterator[int]:
        yield 1

    target = make(bare)
    guarded = async_unsafe(target if isinstance(target, functools.partial) else target.rows)
    generator = on_loop(guarded)
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(next, generator)
    assert inspect.isgeneratorfunction(guarded)


# Context managers -------------------------------------------------------------------------------


def transaction() -> Iterator[str]:
    done.append("begin")
    try:
        yield "transaction"
    except BaseException as error:
        done.append(f"rollback {type(error).__name__}")
        raise
    done.append("commit")


CONTEXT_MANAGERS = {
    "@async_unsafe @contextmanager": async_unsafe(contextlib.contextmanager(transaction)),
    "@contextmanager @async_unsafe": contextlib.contextmanager(async_unsafe(transaction)),
    "both sides": async_unsafe(contextlib.contextmanager(async_unsafe(transaction))),
    "with message": async_unsafe("Not here.")(contextlib.contextmanager(transaction)),
}
each_context_manager = pytest.mark.parametrize(
    "manager", CONTEXT_MANAGERS.values(), ids=list(CONTEXT_MANAGERS)
)


@each_context_manager
def test_a_context_manager_works_off_the_loop(manager: Any) -> None:
    with manager() as value:
        assert value == "transaction"
    with pytest.raises(ValueError, match="mine"), manager():
        raise ValueError("mine")
    assert done == ["begin", "commit", "begin", "rollback ValueError"]
    assert inspect.signature(manager) == inspect.signature(transaction)
    assert manager.__name__ == "transaction"


@each_context_manager
def test_a_context_manager_is_checked_on_entry(manager: Any) -> None:
    context = on_loop(manager)  # which does nothing yet
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(context.__enter__)
    assert done == []


@each_context_manager
def test_a_context_manager_is_checked_on_exit(manager: Any) -> None:
    context = manager()
    context.__enter__()
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(context.__exit__, None, None, None)
    assert done == ["begin", "rollback SynchronousOnlyOperation"]


@each_context_manager
def test_a_context_manager_is_left_freely_with_an_error(
    manager: Any, heard: list[asyncsafe.Violation]
) -> None:
    context = manager()
    context.__enter__()
    error = ValueError("mine")
    assert not on_loop(context.__exit__, ValueError, error, None)
    assert done == ["begin", "rollback ValueError"]
    assert [(v.outcome, v.reason) for v in heard] == [
        ("allowed", "clean-up while an exception is on its way")
    ]


def test_a_decorated_context_manager_still_decorates() -> None:
    @CONTEXT_MANAGERS["@async_unsafe @contextmanager"]()
    def work() -> str:
        done.append("work")
        return "result"

    assert work() == work() == "result"
    assert done == ["begin", "work", "commit"] * 2
    done.clear()
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(work)
    assert done == []


# Classes ---------------------------------------------------------------------------------------


def store() -> type[Any]:
    class Store:
        limit = 3
        nested = Customer

        def __init__(self) -> None:
            done.append("init")

        def save(self) -> str:
            done.append("save")
            return "saved"

        @classmethod
        def create(cls) -> str:
            done.append("create")
            return cls.__name__

        @staticmethod
        def ping() -> str:
            done.append("ping")
            return "pong"

        def _private(self) -> str:
            return "private"

        @property
        def name(self) -> str:
            return "name"

        async def fetch(self) -> str:
            return "fetched"

    return Store


@pytest.mark.parametrize("name", ["save", "create", "ping"])
def test_public_methods_of_a_class_are_guarded(name: str) -> None:
    bare = store()
    cls = async_unsafe(bare)
    assert cls is bare
    instance = cls()
    assert getattr(instance, name)()
    done.clear()
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(getattr(instance, name))
    assert done == []


def test_what_isnt_a_public_method_is_left_alone() -> None:
    bare = store()
    before = dict(vars(bare))
    cls = async_unsafe(bare)
    for name in ("__init__", "_private", "name", "fetch", "limit", "nested"):
        assert vars(cls)[name] is before[name], name
    assert asyncio.run(cls().fetch()) == "fetched"


def test_a_class_takes_a_message() -> None:
    cls = async_unsafe("Use AsyncStore.")(store())
    with pytest.raises(SynchronousOnlyOperation, match=r"^Use AsyncStore\."):
        on_loop(cls().save)


@pytest.mark.parametrize("when", ["before", "after"])
def test_overrides_in_subclasses_are_guarded(when: str) -> None:
    Store = store()
    if when == "after":
        async_unsafe(Store)

    class Middle(Store):  # type: ignore[misc, valid-type]
        def additional(self) -> str:
            return "additional"

    class SubStore(Middle):
        def save(self) -> str:
            done.append("override")
            return "overridden"

        @staticmethod
        def ping() -> str:
            return "override"

    if when == "before":
        async_unsafe(Store)
    instance = SubStore()
    assert instance.save() == "overridden"
    done.clear()
    for method in (instance.save, instance.ping, instance.create):
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(method)
    assert done == []
    assert on_loop(instance.additional) == "additional"


def test_an_asynchronous_override_is_left_alone() -> None:
    class AsyncStore(async_unsafe(store())):  # type: ignore[misc]
        async def save(self) -> str:
            return "asynchronously"

    assert asyncio.run(AsyncStore().save()) == "asynchronously"


def test_an_override_that_calls_super_is_one_violation(heard: list[asyncsafe.Violation]) -> None:
    class SubStore(async_unsafe(store())):  # type: ignore[misc]
        def save(self) -> str:
            return f"{super().save()} twice"

    asyncsafe.configure(mode="record")
    assert on_loop(SubStore().save) == "saved twice"
    assert [violation.operation.rpartition(".<locals>.")[2] for violation in heard] == [
        "SubStore.save"
    ]


def test_init_subclass_of_the_class_itself_is_kept() -> None:
    @async_unsafe
    class Base:
        def __init_subclass__(cls, *, table: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.table = table  # type: ignore[attr-defined]

        def save(self) -> None: ...

    class Order(Base, table="orders"):
        def save(self) -> None: ...

    assert Order.table == "orders"  # type: ignore[attr-defined]
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(Order().save)
    with pytest.raises(TypeError):

        class Nameless(Base): ...


def test_init_subclass_of_a_base_is_called_with_the_subclass() -> None:
    seen: list[tuple[str, str]] = []

    class Base:
        def __init_subclass__(cls, table: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append((cls.__name__, table))

    @async_unsafe
    class Store(Base):
        def save(self) -> None: ...

    class Order(Store, table="orders"): ...

    assert seen == [("Store", ""), ("Order", "orders")]


def test_init_subclass_goes_on_to_the_next_base() -> None:
    """The hook once ended with the decorated class: a mixin beside it was never asked."""
    seen: list[str] = []

    class Registered:
        def __init_subclass__(cls, *, key: str) -> None:
            seen.append(key)

    class Order(async_unsafe(store()), Registered, key="order"): ...  # type: ignore[misc]

    assert seen == ["order"]


def test_a_copy_of_the_class_may_take_its_place() -> None:
    """dataclass(slots=True) makes the class anew."""

    @dataclasses.dataclass(slots=True)
    @async_unsafe
    class Order:
        number: int

        def save(self) -> int:
            return self.number

    class Special(Order):
        def save(self) -> int:
            return -self.number

    for cls, expected in ((Order, 3), (Special, -3)):
        assert cls(3).save() == expected
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(cls(3).save)


# Once more ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        function,
        vars(Repository)["decorated_staticmethod"].__func__,
        Repository.method,
        rows,
    ],
    ids=["function", "staticmethod's function", "method", "generator"],
)
def test_what_is_decorated_is_not_decorated_again(target: Any) -> None:
    assert async_unsafe(target) is target


TWICE: dict[str, Callable[[], object]] = {
    "function": async_unsafe(async_unsafe(lambda: 1)),
    "bound": async_unsafe(Repository().method),
    "partial": async_unsafe(partial_of_decorated),
    "staticmethod": async_unsafe(staticmethod(function)).__func__,
    "generator": lambda: list(async_unsafe(rows)(0)),
    "partial of generator": lambda: list(async_unsafe(functools.partial(rows, 0))()),
    "contextmanager": lambda: CONTEXT_MANAGERS["both sides"]().__enter__(),
    "class of decorated methods": lambda: async_unsafe(
        type("Twice", (), {"method": Repository.method})
    )().method(),
    "class": lambda: async_unsafe(async_unsafe(store()))().save(),
}


@pytest.mark.parametrize("call", TWICE.values(), ids=list(TWICE))
def test_decorated_twice_is_checked_once(
    call: Callable[[], object], heard: list[asyncsafe.Violation]
) -> None:
    asyncsafe.configure(mode="record")
    on_loop(call)
    assert len(heard) == 1
    asyncsafe.configure(mode="raise")
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(call)
    assert len(heard) == 2


def test_a_message_may_be_added_to_what_is_decorated() -> None:
    told = async_unsafe("Later.")(function)
    with pytest.raises(SynchronousOnlyOperation, match=r"^Later\."):
        on_loop(told)
    assert told.__wrapped__ is function.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(SynchronousOnlyOperation, match=r"test_decorators\.function\(\) was called"):
        on_loop(function)


def test_a_message_takes_the_place_of_the_first_line() -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(with_message)
    assert str(caught.value).splitlines()[0] == "Orders are saved in a thread."
    assert caught.value.violation.headline == "Orders are saved in a thread."
    assert caught.value.violation.operation == "tests.test_decorators.with_message"


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (function, "tests.test_decorators.function"),
        (lambda: Repository().method(), "tests.test_decorators.Repository.method"),
        (bound_method, "tests.test_decorators.Repository.bare"),
        (callable_object, "tests.test_decorators.Repository"),
        (partial, "tests.test_decorators.Repository.bare"),
        (lambda: async_unsafe(len)(()), "builtins.len"),
        (lambda: async_unsafe(str.upper)(""), "str.upper"),
    ],
)
def test_the_operation_is_named_after_what_was_decorated(
    call: Callable[[], object], operation: str
) -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(call)
    assert caught.value.violation.operation == operation


def test_a_refusal_names_the_line_that_made_the_call() -> None:
    def caller() -> None:
        function()

    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(caller)
    site = caught.value.violation.call_site
    assert Path(site.filename) == Path(__file__)
    assert site.lineno == caller.__code__.co_firstlineno + 1
