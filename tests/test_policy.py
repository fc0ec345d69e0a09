"""The answer: modes and where they come from, allow() and forbid(), and whom they hold for."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe import (
    AsyncUnsafeWarning,
    ConfigurationError,
    SynchronousOnlyOperation,
    allow,
    async_unsafe,
    configure,
    forbid,
    policy,
)

from .running import on_loop, python

made: list[str] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


@async_unsafe
def save() -> str:
    made.append("saved")
    return "saved"


def attempt() -> str:
    try:
        save()
    except SynchronousOnlyOperation:
        return "refused"
    return "made"


# Modes --------------------------------------------------------------------------------------------


def test_mode_raise_refuses_before_the_call(heard: list[asyncsafe.Violation]) -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(save)
    assert made == []
    assert heard == [caught.value.violation]
    assert (heard[0].outcome, heard[0].seconds, heard[0].reason) == ("raised", None, None)


def test_mode_record_makes_the_call_and_times_it(heard: list[asyncsafe.Violation]) -> None:
    @async_unsafe
    def work() -> int:
        return sum(range(10_000))

    configure(mode="record")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_loop(work) == sum(range(10_000))
    assert [violation.outcome for violation in heard] == ["recorded"]
    assert heard[0].seconds is not None
    assert heard[0].seconds > 0
    (site,) = asyncsafe.violations
    assert site.seconds >= site.worst > 0


def test_a_call_that_fails_is_recorded_and_fails(heard: list[asyncsafe.Violation]) -> None:
    @async_unsafe
    def fail() -> None:
        raise LookupError("mine")

    configure(mode="record")
    with pytest.raises(LookupError, match="mine"):
        on_loop(fail)
    assert heard[0].seconds is not None


def test_mode_warn_warns_once_for_each_call_site() -> None:
    def here() -> None:
        save()

    def there() -> None:
        save()

    def calls() -> None:
        for _ in range(3):
            here()
            there()

    configure(mode="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        on_loop(calls)
    assert len(made) == 6
    assert [(warning.category, warning.filename, warning.lineno) for warning in caught] == [
        (AsyncUnsafeWarning, __file__, here.__code__.co_firstlineno + 1),
        (AsyncUnsafeWarning, __file__, there.__code__.co_firstlineno + 1),
    ]
    assert "test_policy.save() blocks: it was called from a running" in str(caught[0].message)
    assert sorted(site.calls for site in asyncsafe.violations) == [3, 3]


def test_a_warning_made_an_error_comes_before_the_call() -> None:
    configure(mode="warn")

    def here() -> None:
        save()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(AsyncUnsafeWarning, match=r"save\(\) blocks"):
                on_loop(here)
    assert made == []


def test_mode_off_is_silent(heard: list[asyncsafe.Violation]) -> None:
    configure(mode="off")
    assert on_loop(attempt) == "made"
    assert heard == []
    configure(mode="raise")
    assert on_loop(attempt) == "refused"


@pytest.mark.parametrize("mode", ["raise", "warn", "record", "off"])
def test_no_mode_says_anything_off_the_loop(mode: Any, heard: list[asyncsafe.Violation]) -> None:
    configure(mode=mode)
    assert save() == "saved"
    assert heard == []


@pytest.mark.parametrize("mode", ["loud", "", "RAISE", "on", True, False, 0, ["raise"]], ids=repr)
def test_configure_lists_the_modes_that_there_are(mode: Any) -> None:
    configure(mode="record")
    with pytest.raises(ConfigurationError) as caught:
        configure(mode=mode)
    assert str(caught.value) == (
        f"configure(mode=...) must be one of raise, warn, record, off; it is {mode!r}"
    )
    assert isinstance(caught.value, ValueError)
    assert policy.current_mode() == ("record", "configure()")


def test_configure_with_none_takes_it_back() -> None:
    configure(mode="record")
    configure(mode=None)
    assert policy.current_mode()[1] != "configure()"
    assert on_loop(attempt) == "refused"
    configure(mode="off")
    configure()
    assert on_loop(attempt) == "refused"


# Where the mode is written -----------------------------------------------------------------------

PYPROJECT = '[tool.asyncsafe]\nmode = "record"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project that is the working directory, and of which nothing is known yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "_found", None)
    monkeypatch.setattr(policy, "_found_startup", None)
    return tmp_path


def test_the_default_is_raise(project: Path) -> None:
    assert policy.current_mode() == ("raise", "default")


def test_pyproject_of_a_directory_above(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "src" / "app").mkdir(parents=True)
    monkeypatch.chdir(project / "src" / "app")
    assert policy.current_mode() == ("record", str(project / "pyproject.toml"))
    assert on_loop(attempt) == "made"


def test_the_nearest_pyproject_is_the_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "inner").mkdir()
    (project / "inner" / "pyproject.toml").write_text('[project]\nname = "inner"\n')
    monkeypatch.chdir(project / "inner")
    assert policy.current_mode() == ("raise", "default")


def test_the_environment_is_stronger_than_pyproject(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pyproject.toml").write_text(PYPROJECT)
    monkeypatch.setenv("ASYNCSAFE_MODE", "warn")
    assert policy.current_mode() == ("warn", "ASYNCSAFE_MODE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[tool.asyncsafe]\nmode = "loud"',
            "must be one of raise, warn, record, off; it is 'loud'",
        ),
        ("[tool.asyncsafe]\nmode = true", "must be one of raise, warn, record, off; it is True"),
        ('[tool.asyncsafe]\nmod = "raise"', "has no setting mod; it has: mode, startup, baseline"),
        ("[tool]\nasyncsafe = 3", "must be a table: [tool.asyncsafe]"),
        ("[tool.asyncsafe", "is not valid TOML"),
    ],
)
def test_mistakes_in_pyproject_are_told(project: Path, text: str, message: str) -> None:
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        policy.current_mode()
    assert message in str(caught.value)
    assert str(project / "pyproject.toml") in str(caught.value)


def test_a_mistake_in_the_environment_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCSAFE_MODE", "loud")
    with pytest.raises(ConfigurationError) as caught:
        on_loop(attempt)
    assert str(caught.value) == (
        "ASYNCSAFE_MODE must be one of raise, warn, record, off; it is 'loud'"
    )
    assert made == []


# Precedence --------------------------------------------------------------------------------------

#: Strongest first, each with what shows that it was the one to decide.
RULES = {
    "forbid": "raised None",
    "allow": "allowed scope",
    "django": "allowed DJANGO_ALLOW_ASYNC_UNSAFE=1",
    "configure": "recorded None",
    "environment": "warned None",
    "pyproject": "recorded None",
    "default": "raised None",
}

PRECEDENCE = """
import asyncio, contextlib, sys, asyncsafe

rules = sys.argv[1:]

@asyncsafe.async_unsafe
def save(): ...

if "configure" in rules:
    asyncsafe.configure(mode="record")

async def main():
    with contextlib.ExitStack() as stack:
        if "forbid" in rules:
            stack.enter_context(asyncsafe.forbid())
        if "allow" in rules:
            stack.enter_context(asyncsafe.allow("scope"))
        stack.enter_context(contextlib.suppress(asyncsafe.SynchronousOnlyOperation))
        save()

asyncsafe.violations.subscribe(lambda violation: print(violation.outcome, violation.reason))
asyncio.run(main())
"""


@pytest.mark.parametrize("strongest", range(len(RULES)), ids=list(RULES))
def test_precedence(strongest: int, tmp_path: Path) -> None:
    rules = list(RULES)[strongest:]
    if "pyproject" in rules:
        (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    environment = {}
    if "environment" in rules:
        environment["ASYNCSAFE_MODE"] = "warn"
    if "django" in rules:
        environment["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    code = PRECEDENCE.replace("sys.argv[1:]", repr(rules))
    assert python(code, tmp_path, **environment).stdout.strip() == RULES[rules[0]]


OFF = """
import asyncio, asyncsafe

@asyncsafe.async_unsafe
def save():
    return "made"

def attempt():
    try:
        return save()
    except asyncsafe.SynchronousOnlyOperation:
        return "refused"

async def main():
    print(attempt())
    with asyncsafe.forbid():
        print(attempt())
        print(await asyncio.create_task(elsewhere()))
        print(attempt())
    print(attempt())

async def elsewhere():
    return attempt()

asyncio.run(main())
assert not [site for site in asyncsafe.violations if "raised" not in site.outcomes]
"""


@pytest.mark.parametrize("where", ["configure", "environment", "pyproject"])
def test_forbid_refuses_in_mode_off(where: str, tmp_path: Path) -> None:
    environment = {"ASYNCSAFE_MODE": "off"} if where == "environment" else {}
    code = OFF
    if where == "configure":
        code = OFF.replace(
            "async def main():\n", "asyncsafe.configure(mode='off')\nasync def main():\n"
        )
    if where == "pyproject":
        (tmp_path / "pyproject.toml").write_text('[tool.asyncsafe]\nmode = "off"\n')
    stdout = python(code, tmp_path, **environment).stdout
    assert stdout.split() == ["made", "refused", "made", "refused", "made"]


# DJANGO_ALLOW_ASYNC_UNSAFE -----------------------------------------------------------------------


def test_the_django_variable_is_read_when_it_matters(
    monkeypatch: pytest.MonkeyPatch, heard: list[asyncsafe.Violation]
) -> None:
    def change() -> list[str]:
        results = [attempt()]
        for value in ("true", "", "anything"):
            monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", value)
            results.append(attempt())
        monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE")
        return [*results, attempt()]

    assert on_loop(change) == ["refused", "made", "refused", "made", "refused"]
    assert [violation.reason for violation in heard] == [
        None,
        "DJANGO_ALLOW_ASYNC_UNSAFE=true",
        None,
        "DJANGO_ALLOW_ASYNC_UNSAFE=anything",
        None,
    ]


@pytest.mark.parametrize("value", ["0", "false", "False", "no", "OFF", " n "])
def test_a_value_that_looks_false_allows_and_says_so_once(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "_said", False)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [on_loop(attempt), on_loop(attempt)] == ["made", "made"]
    (warning,) = caught
    assert warning.category is AsyncUnsafeWarning
    assert f"DJANGO_ALLOW_ASYNC_UNSAFE={value} allows" in str(warning.message)


@pytest.mark.parametrize("value", ["1", "true", "yes", "00"])
def test_a_value_that_looks_true_says_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_said", False)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_loop(attempt) == "made"


# allow() and forbid(): the forms -----------------------------------------------------------------


async def with_block(scope: Any, call: Callable[[], Any]) -> Any:
    with scope:
        return call()


async def async_with_block(scope: Any, call: Callable[[], Any]) -> Any:
    async with scope:
        await asyncio.sleep(0)
        return call()


async def decorated_function(scope: Any, call: Callable[[], Any]) -> Any:
    @scope
    def decorated(call: Callable[[], Any]) -> Any:
        return call()

    return decorated(call)


async def decorated_coroutine_function(scope: Any, call: Callable[[], Any]) -> Any:
    @scope
    async def decorated(*, call: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return call()

    return await decorated(call=call)


async def decorated_partial(scope: Any, call: Callable[[], Any]) -> Any:
    async def bare(call: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return call()

    return await scope(functools.partial(bare, call))()


each_form = pytest.mark.parametrize(
    "form",
    [
        with_block,
        async_with_block,
        decorated_function,
        decorated_coroutine_function,
        decorated_partial,
    ],
    ids=lambda form: form.__name__,
)


@each_form
def test_allow_lets_calls_through(form: Any, heard: list[asyncsafe.Violation]) -> None:
    async def main() -> list[str]:
        return [attempt(), await form(allow("a lookup table"), attempt), attempt()]

    assert asyncio.run(main()) == ["refused", "made", "refused"]
    assert [(violation.outcome, violation.reason) for violation in heard] == [
        ("raised", None),
        ("allowed", "a lookup table"),
        ("raised", None),
    ]


@each_form
def test_forbid_refuses(form: Any) -> None:
    async def main() -> list[str]:
        return [attempt(), await form(forbid(), attempt), attempt()]

    configure(mode="record")
    assert asyncio.run(main()) == ["made", "refused", "made"]


@each_form
@pytest.mark.parametrize("scope", [allow, forbid])
@pytest.mark.parametrize("error", [ValueError, SystemError, asyncio.CancelledError, GeneratorExit])
def test_scopes_end_with_an_exception(form: Any, scope: Any, error: type[BaseException]) -> None:
    configure(mode="raise" if scope is allow else "record")

    def fail() -> None:
        raise error

    async def main() -> tuple[str, str]:
        before = attempt()
        with pytest.raises(error):
            await form(scope(), fail)
        return before, attempt()

    before, after = asyncio.run(main())
    assert before == after


@pytest.mark.parametrize("scope", [allow, forbid])
def test_scopes_end_when_their_task_is_cancelled(scope: Any) -> None:
    configure(mode="raise" if scope is allow else "record")
    results: list[str] = []

    async def work() -> None:
        try:
            async with scope():
                results.append(attempt())
                await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            results.append(attempt())

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert results == (["made", "refused"] if scope is allow else ["refused", "made"])


def test_decorated_functions_keep_their_name() -> None:
    @allow("why")
    def named(a: int) -> int:
        """What it does."""
        return a

    @forbid()
    async def coroutine() -> None:
        """What it awaits."""

    assert (named.__name__, named.__doc__, named(3)) == ("named", "What it does.", 3)
    assert (coroutine.__name__, coroutine.__doc__) == ("coroutine", "What it awaits.")
    assert inspect.iscoroutinefunction(coroutine)


def _generator() -> Iterator[int]:
    yield 1


async def _asynchronous_generator() -> Any:
    yield 1


@pytest.mark.parametrize("scope", [allow, forbid])
@pytest.mark.parametrize(
    "target", [_generator, _asynchronous_generator, functools.partial(_generator)]
)
def test_scopes_refuse_generator_functions(scope: Any, target: Any) -> None:
    with pytest.raises(TypeError, match=rf"write `with asyncsafe.{scope.__name__}"):
        scope()(target)


@pytest.mark.parametrize("target", [3, "reason", staticmethod(attempt), classmethod(attempt)])
def test_scopes_decorate_functions_alone(target: Any) -> None:
    with pytest.raises(TypeError, match=r"@allow\(\) decorates a function, not"):
        allow()(target)


@pytest.mark.parametrize("reason", [3, b"bytes", attempt])
def test_a_reason_is_a_string(reason: Any) -> None:
    with pytest.raises(TypeError, match="the reason as a string"):
        allow(reason)


@pytest.mark.parametrize("scope", [allow, forbid])
def test_a_scope_that_was_not_entered_cannot_be_left(scope: Any) -> None:
    with pytest.raises(RuntimeError, match="left without having been entered"):
        scope().__exit__(None, None, None)


# Nested -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ((allow, allow), ["made", "made", "made"]),
        ((forbid, allow), ["refused", "refused", "refused"]),
        ((allow, forbid), ["made", "refused", "made"]),
        ((forbid, forbid), ["refused", "refused", "refused"]),
    ],
)
def test_nested_scopes(scopes: tuple[Any, Any], expected: list[str]) -> None:
    def nested() -> list[str]:
        with scopes[0]():
            results = [attempt()]
            with scopes[1]():
                results.append(attempt())
            return [*results, attempt()]

    assert on_loop(nested) == expected


def test_the_innermost_reason_is_recorded(heard: list[asyncsafe.Violation]) -> None:
    def nested() -> None:
        with allow("outer"), allow("inner"):
            save()

    on_loop(nested)
    assert heard[0].reason == "inner"


@pytest.mark.parametrize("scope", [allow, forbid])
def test_scopes_are_reentrant_and_reusable(scope: Any) -> None:
    configure(mode="raise" if scope is allow else "record")
    inside, outside = ("made", "refused") if scope is allow else ("refused", "made")
    one = scope()

    def nested() -> list[str]:
        results = []
        for _ in range(2):
            with one:
                with one:
                    results.append(attempt())
                results.append(attempt())
            results.append(attempt())
        return results

    assert on_loop(nested) == [inside, inside, outside] * 2


def test_scopes_may_end_out_of_order() -> None:
    def crossed() -> list[str]:
        first, second = allow("first"), allow("second")
        first.__enter__()
        second.__enter__()
        first.__exit__()
        results = [attempt()]
        second.__exit__()
        return [*results, attempt()]

    assert on_loop(crossed) == ["made", "refused"]


@pytest.mark.parametrize("decorated", [False, True], ids=["with", "decorator"])
@pytest.mark.parametrize("last_first", [False, True])
def test_one_scope_for_many_tasks(decorated: bool, last_first: bool) -> None:
    tasks = 20
    scope = allow()

    async def main() -> list[list[str]]:
        entered = asyncio.Barrier(tasks)
        turns = [asyncio.Event() for _ in range(tasks + 1)]

        async def inside(number: int) -> str:
            await entered.wait()
            await turns[number].wait()
            return attempt()

        async def work(number: int) -> list[str]:
            if decorated:
                result = await scope(inside)(number)
            else:
                async with scope:
                    result = await inside(number)
            after = attempt()
            turns[number - 1 if last_first else number + 1].set()
            return [result, after]

        turns[tasks - 1 if last_first else 0].set()
        return await asyncio.gather(*map(work, range(tasks)))

    assert asyncio.run(main()) == [["made", "refused"]] * tasks


# Whom they hold for ------------------------------------------------------------------------------


async def _attempt() -> str:
    return attempt()


async def in_a_task() -> str:
    return await asyncio.create_task(_attempt())


async def in_gather() -> str:
    return (await asyncio.gather(_attempt(), _attempt()))[1]


async def in_a_task_group() -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_attempt())
    return task.result()


async def in_wait_for_of_a_task() -> str:
    return await asyncio.wait_for(asyncio.ensure_future(_attempt()), 60)


async def in_a_grandchild() -> str:
    return await asyncio.create_task(in_a_task())


async def in_an_eager_task() -> str:
    loop = asyncio.get_running_loop()
    return await asyncio.eager_task_factory(loop, _attempt())  # type: ignore[attr-defined]


def _in_callback(schedule: Callable[[asyncio.AbstractEventLoop, Callable[[], None]], Any]) -> Any:
    async def in_a_callback() -> str:
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        schedule(loop, lambda: result.set_result(attempt()))
        return await result

    return in_a_callback


async def in_a_done_callback() -> str:
    result = asyncio.get_running_loop().create_future()
    done = asyncio.get_running_loop().create_future()
    done.add_done_callback(lambda _: result.set_result(attempt()))
    done.set_result(None)
    return await result


async def in_a_thread() -> str:
    return await asyncio.to_thread(on_loop, attempt)


async def in_a_thread_with_this_context() -> str:
    context = contextvars.copy_context()
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(context.run(on_loop, attempt)))
    thread.start()
    thread.join()
    return results[0]


ELSEWHERE: dict[str, Any] = {
    "create_task": in_a_task,
    "gather": in_gather,
    "TaskGroup": in_a_task_group,
    "wait_for": in_wait_for_of_a_task,
    "a grandchild": in_a_grandchild,
    "call_soon": _in_callback(lambda loop, call: loop.call_soon(call)),
    "call_later": _in_callback(lambda loop, call: loop.call_later(0, call)),
    "call_soon_threadsafe": _in_callback(lambda loop, call: loop.call_soon_threadsafe(call)),
    "add_done_callback": in_a_done_callback,
    "to_thread": in_a_thread,
    "a thread with the context": in_a_thread_with_this_context,
}
if sys.version_info >= (3, 12):
    ELSEWHERE["eager task"] = in_an_eager_task


@pytest.mark.parametrize("elsewhere", ELSEWHERE.values(), ids=list(ELSEWHERE))
@pytest.mark.parametrize("scope", [allow, forbid])
def test_scopes_hold_for_the_entering_task_alone(scope: Any, elsewhere: Any) -> None:
    configure(mode="raise" if scope is allow else "record")
    inside, outside = ("made", "refused") if scope is allow else ("refused", "made")

    async def main() -> None:
        with scope():
            assert attempt() == inside
            assert await elsewhere() == outside
            assert attempt() == inside
        assert attempt() == outside

    asyncio.run(main())


@pytest.mark.parametrize("scope", [allow, forbid])
def test_scopes_do_not_hold_for_sibling_greenlets(scope: Any) -> None:
    greenlet = pytest.importorskip("greenlet")
    configure(mode="raise" if scope is allow else "record")
    inside, outside = ("made", "refused") if scope is allow else ("refused", "made")
    results: list[str] = []

    def enter() -> None:
        with scope():
            sibling.gr_context = contextvars.copy_context()
            results.append(attempt())
            sibling.switch()

    entering = greenlet.greenlet(enter)
    sibling = greenlet.greenlet(lambda: results.append(attempt()))

    async def spawn() -> None:
        # Both greenlets below this coroutine, neither below the other.
        entering.parent = sibling.parent = greenlet.getcurrent()
        entering.switch()
        results.append(attempt())

    asyncio.run(spawn())
    assert results == [inside, outside, outside]


@pytest.mark.parametrize("scope", [allow, forbid])
def test_scopes_hold_for_greenlets_below_the_coroutine(scope: Any) -> None:
    """As SQLAlchemy's run_sync spawns them: with the context of the coroutine."""
    greenlet = pytest.importorskip("greenlet")
    configure(mode="raise" if scope is allow else "record")
    inside, outside = ("made", "refused") if scope is allow else ("refused", "made")

    def in_greenlet() -> str:
        spawned = greenlet.greenlet(attempt)
        spawned.gr_context = greenlet.getcurrent().gr_context
        result: str = spawned.switch()
        return result

    def calls() -> list[str]:
        with scope():
            first = in_greenlet()
        return [first, in_greenlet()]

    assert on_loop(calls) == [inside, outside]


@pytest.mark.parametrize("scope", [allow, forbid])
def test_scopes_hold_for_the_entering_trio_task_alone(scope: Any) -> None:
    trio = pytest.importorskip("trio")
    configure(mode="raise" if scope is allow else "record")
    inside, outside = ("made", "refused") if scope is allow else ("refused", "made")
    children: list[str] = []

    async def child() -> None:
        children.append(attempt())

    async def main() -> list[str]:
        async with trio.open_nursery() as nursery, scope():
            nursery.start_soon(child)
            results = [attempt()]
            async with trio.open_nursery() as inner:
                inner.start_soon(child)
            results.append(attempt())
        return [*results, attempt()]

    assert trio.run(main) == [inside, inside, outside]
    assert children == [outside, outside]


def test_a_scope_entered_before_the_loop_is_not_its_tasks() -> None:
    with allow():
        assert on_loop(attempt) == "refused"


@pytest.mark.parametrize("in_thread", [False, True], ids=["this thread", "another thread"])
def test_a_scope_entered_outside_of_tasks_is_its_threads(in_thread: bool) -> None:
    """The callbacks of a loop that this thread runs lie below it; those of another's don't."""
    results: list[str] = []

    def run_callback() -> None:
        loop = asyncio.new_event_loop()
        loop.call_soon(lambda: results.append(attempt()))
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()

    with allow():
        if in_thread:
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(run_callback,))
            thread.start()
            thread.join()
        else:
            run_callback()
    assert results == ["refused" if in_thread else "made"]


def test_each_task_has_its_own_scopes() -> None:
    async def main() -> list[str]:
        entered, left = asyncio.Event(), asyncio.Event()

        async def entering() -> str:
            with allow():
                entered.set()
                await left.wait()
                return attempt()

        task = asyncio.create_task(entering())
        await entered.wait()
        mine = attempt()
        left.set()
        return [mine, await task]

    assert asyncio.run(main()) == ["refused", "made"]


# Entered here, left there ------------------------------------------------------------------------


def test_a_scope_left_in_another_context_has_ended() -> None:
    def calls() -> list[str]:
        scope, context = allow(), contextvars.copy_context()
        context.run(scope.__enter__)
        results = [context.run(attempt), attempt()]
        scope.__exit__()
        return [*results, context.run(attempt), attempt()]

    assert on_loop(calls) == ["made", "refused", "refused", "refused"]


def test_a_scope_left_in_a_copy_of_its_context_has_ended() -> None:
    def calls() -> list[str]:
        scope = allow()
        scope.__enter__()
        context = contextvars.copy_context()
        results = [attempt()]
        context.run(scope.__exit__)
        return [*results, attempt(), context.run(attempt)]

    assert on_loop(calls) == ["made", "refused", "refused"]


@pytest.mark.parametrize("scope", [allow, forbid])
def test_a_scope_entered_in_one_task_and_left_in_another_has_ended(scope: Any) -> None:
    """What pytest plugins do with an asynchronous fixture that yields."""
    configure(mode="raise" if scope is allow else "record")
    outside = "refused" if scope is allow else "made"

    async def fixture() -> Any:
        async with scope():
            yield

    async def main() -> list[str]:
        generator = fixture()
        await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
        results = [attempt()]
        with pytest.raises(StopAsyncIteration):
            await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
        return [*results, attempt(), await asyncio.create_task(_attempt())]

    assert asyncio.run(main()) == [outside] * 3


def test_an_allowance_in_a_contextmanager_holds_for_its_block() -> None:
    @contextmanager
    def importing() -> Iterator[None]:
        with allow("the import"):
            yield

    def calls() -> list[str]:
        with importing():
            results = [attempt()]
        return [*results, attempt()]

    assert on_loop(calls) == ["made", "refused"]
