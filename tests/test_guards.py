"""check(), and what lies behind the branch: nesting, clean-up, finalizers, guards that can't tell."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe import SynchronousOnlyOperation, allow, async_unsafe, check, configure, forbid
from asyncsafe.guards import Guard
from asyncsafe.wrappers import guard_of, wrap

from .running import on_loop, python, refused

made: list[str] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


@async_unsafe
def save(what: str = "saved") -> str:
    made.append(what)
    return what


def attempt() -> str:
    try:
        save()
    except SynchronousOnlyOperation:
        return "refused"
    return "made"


# check() ------------------------------------------------------------------------------------------


def find() -> str:
    check("orders.find")
    return "found"


def test_check_goes_on_where_no_loop_runs() -> None:
    assert find() == "found"


def test_check_refuses_to_go_on_in_a_loop() -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(find)
    violation = caught.value.violation
    assert violation.operation == "orders.find"
    assert violation.call_site.function == "find"
    assert "orders.find() was called from a running event loop" in str(caught.value)


def test_check_names_the_calling_function_by_default() -> None:
    class Repository:
        def find(self) -> None:
            check()

    Repository().find()
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(Repository().find)
    assert caught.value.violation.operation.endswith("<locals>.Repository.find")


def test_check_in_mode_record_goes_on() -> None:
    configure(mode="record")
    assert on_loop(find) == "found"
    (site,) = asyncsafe.violations
    assert site.violation.operation == "orders.find"


def test_check_takes_a_name_alone() -> None:
    with pytest.raises(TypeError, match="the operation's name, not int"):
        on_loop(check, 3)


# From which moment ------------------------------------------------------------------------------

BEFORE_ASYNCIO = """
import sys, asyncsafe

@asyncsafe.async_unsafe
def save():
    return "saved"

def find():
    asyncsafe.check("find")
    return "found"

assert save() == "saved" and find() == "found"
assert "asyncio" not in sys.modules

import asyncio

async def main():
    for call in (save, find):
        try:
            call()
        except asyncsafe.SynchronousOnlyOperation as error:
            print(error.violation.operation)

assert save() == "saved" and find() == "found"
asyncio.run(main())
assert save() == "saved" and find() == "found"
"""


def test_decorated_before_asyncio_is_imported(tmp_path: Path) -> None:
    assert python(BEFORE_ASYNCIO, tmp_path).stdout.split() == ["save", "find"]


# One violation a call ----------------------------------------------------------------------------


@async_unsafe
def outer() -> str:
    return save("inner")


@async_unsafe
def failing_outer() -> None:
    save("inner")
    raise LookupError


def operations(heard: list[asyncsafe.Violation]) -> list[str]:
    return [violation.operation.rpartition(".")[2] for violation in heard]


@pytest.mark.parametrize("mode", ["record", "warn"])
@pytest.mark.filterwarnings("ignore::asyncsafe.AsyncUnsafeWarning")
def test_a_guarded_call_inside_a_guarded_call_is_part_of_it(
    mode: Any, heard: list[asyncsafe.Violation]
) -> None:
    configure(mode=mode)
    assert on_loop(outer) == "inner"
    assert operations(heard) == ["outer"]


def test_a_guarded_call_inside_an_allowed_one_is_part_of_it(
    heard: list[asyncsafe.Violation],
) -> None:
    def allowed() -> None:
        with allow("because"):
            outer()

    on_loop(allowed)
    assert [(v.operation.rpartition(".")[2], v.reason) for v in heard] == [("outer", "because")]


def test_of_nested_calls_the_outer_one_is_refused(heard: list[asyncsafe.Violation]) -> None:
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(outer)
    assert operations(heard) == ["outer"]
    assert made == []


def test_the_next_call_is_a_violation_of_its_own(heard: list[asyncsafe.Violation]) -> None:
    configure(mode="record")

    def calls() -> None:
        with pytest.raises(LookupError):
            failing_outer()
        save()
        outer()

    on_loop(calls)
    assert operations(heard) == ["failing_outer", "save", "outer"]


def test_forbid_inside_a_call_that_is_made_refuses(heard: list[asyncsafe.Violation]) -> None:
    @async_unsafe
    def strict() -> str:
        with forbid():
            return attempt()

    configure(mode="record")
    assert on_loop(strict) == "refused"
    assert [violation.outcome for violation in heard] == ["raised", "recorded"]


def test_tasks_and_callbacks_started_inside_an_allowed_call_are_not_part_of_it() -> None:
    results: list[str] = []

    async def later() -> None:
        results.append(attempt())

    @async_unsafe
    def start() -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: results.append(attempt()))
        return loop.create_task(later())

    async def main() -> None:
        with allow():
            task = start()
            assert attempt() == "made"
            await task

    asyncio.run(main())
    assert results == ["refused", "refused"]


def test_a_thread_beside_a_call_that_is_made_is_not_part_of_it() -> None:
    results: list[str] = []

    @async_unsafe
    def start() -> None:
        thread = threading.Thread(target=lambda: results.append(on_loop(attempt)))
        thread.start()
        thread.join()

    def allowed() -> None:
        with allow():
            start()

    on_loop(allowed)
    assert results == ["refused"]


def test_a_greenlet_beside_a_call_that_is_made_is_not_part_of_it(
    heard: list[asyncsafe.Violation],
) -> None:
    greenlet = pytest.importorskip("greenlet")
    configure(mode="record")

    @async_unsafe
    def switches() -> None:
        other.switch()

    other = greenlet.greenlet(lambda: save("in a greenlet"))

    on_loop(switches)
    assert operations(heard) == ["save", "switches"]


def test_what_hears_of_a_violation_makes_none(heard: list[asyncsafe.Violation]) -> None:
    """A log handler that writes to the database used to be recorded itself."""

    class DatabaseHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            save("log")

    logger = logging.getLogger("asyncsafe")
    handler = DatabaseHandler()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        configure(mode="record")
        on_loop(outer)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert made == ["log", "inner"]
    assert operations(heard) == ["outer"]
    assert len(asyncsafe.violations) == 1


# Clean-up ----------------------------------------------------------------------------------------


@pytest.fixture
def connection(guarded: None) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table orders (id)")
    connection.execute("insert into orders values (1)")
    yield connection
    connection.close()


CLEAN_UP: dict[str, Callable[[sqlite3.Connection], object]] = {
    "rollback": lambda connection: connection.rollback(),
    "close": lambda connection: connection.close(),
    "__exit__": lambda connection: connection.__exit__(None, None, None),
}
each_clean_up = pytest.mark.parametrize("clean_up", CLEAN_UP.values(), ids=list(CLEAN_UP))


def in_finally(clean_up: Callable[[], object]) -> None:
    try:
        raise ValueError("mine")
    finally:
        clean_up()


def in_except(clean_up: Callable[[], object]) -> None:
    try:
        raise ValueError("mine")
    except ValueError:
        clean_up()
        raise


def in_a_function_of_the_handler(clean_up: Callable[[], object]) -> None:
    try:
        raise ValueError("mine")
    except ValueError:
        deeper(clean_up)
        raise


def deeper(clean_up: Callable[[], object]) -> None:
    try:
        raise KeyError
    except KeyError:
        pass
    clean_up()


class _Manager:
    def __init__(self, clean_up: Callable[[], object]) -> None:
        self.clean_up = clean_up

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None:
        self.clean_up()


def in_a_context_manager(clean_up: Callable[[], object]) -> None:
    with _Manager(clean_up):
        raise ValueError("mine")


@each_clean_up
@pytest.mark.parametrize(
    "way", [in_finally, in_except, in_a_function_of_the_handler, in_a_context_manager]
)
def test_clean_up_on_an_exceptions_way_is_let_through(
    way: Callable[[Callable[[], object]], None],
    clean_up: Callable[[sqlite3.Connection], object],
    connection: sqlite3.Connection,
    heard: list[asyncsafe.Violation],
) -> None:
    with pytest.raises(ValueError, match="mine"):
        on_loop(way, lambda: clean_up(connection))
    assert [(v.outcome, v.reason) for v in heard] == [
        ("allowed", "clean-up while an exception is on its way")
    ]


@each_clean_up
def test_clean_up_is_refused_where_nothing_is_on_its_way(
    clean_up: Callable[[sqlite3.Connection], object], connection: sqlite3.Connection
) -> None:
    def after_an_exception() -> None:
        try:
            raise ValueError
        except ValueError:
            pass
        clean_up(connection)

    for call in (lambda: clean_up(connection), after_an_exception):
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(call)
    assert connection.in_transaction


@each_clean_up
@pytest.mark.parametrize("deep", [False, True], ids=["coroutine", "callback"])
def test_an_exception_outside_the_loop_is_not_on_its_way(
    deep: bool,
    clean_up: Callable[[sqlite3.Connection], object],
    connection: sqlite3.Connection,
    heard: list[asyncsafe.Violation],
) -> None:
    async def coroutine() -> None:
        clean_up(connection)

    async def callback() -> None:
        loop = asyncio.get_running_loop()
        outcome = loop.create_future()

        def call() -> None:
            try:
                clean_up(connection)
            except SynchronousOnlyOperation as error:
                outcome.set_exception(error)

        loop.call_soon(call)
        await outcome

    try:
        raise ValueError
    except ValueError:
        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(callback() if deep else coroutine())
    assert [violation.outcome for violation in heard] == ["raised"]
    assert connection.in_transaction


def test_an_exception_outside_uvloop_is_not_on_its_way(connection: sqlite3.Connection) -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    loop.call_soon(connection.rollback)
    loop.call_soon(loop.stop)
    try:
        raise ValueError
    except ValueError:
        loop.run_forever()
    loop.close()
    assert [isinstance(error, SynchronousOnlyOperation) for error in errors] == [True]
    assert connection.in_transaction


def test_clean_up_after_cancellation_is_let_through(connection: sqlite3.Connection) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            connection.rollback()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not connection.in_transaction


def test_with_a_connection_rolls_back_on_the_way_of_an_error(
    connection: sqlite3.Connection, heard: list[asyncsafe.Violation]
) -> None:
    def work() -> None:
        with connection:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        on_loop(work)
    assert not connection.in_transaction
    assert [(v.operation, v.outcome) for v in heard] == [("sqlite3.Connection.__exit__", "allowed")]


def test_a_refusal_inside_with_is_one_error_and_rolls_back(
    connection: sqlite3.Connection, heard: list[asyncsafe.Violation]
) -> None:
    def work() -> None:
        with connection:
            connection.execute("delete from orders")

    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(work)
    assert caught.value.violation.operation == "sqlite3.Connection.execute"
    assert caught.value.__context__ is None
    assert not connection.in_transaction
    assert [violation.outcome for violation in heard] == ["raised", "allowed"]


def test_what_is_no_clean_up_is_refused_on_an_exceptions_way(
    connection: sqlite3.Connection,
) -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(in_except, lambda: connection.execute("select 1"))
    assert isinstance(caught.value.__context__, ValueError)


def test_forbid_lets_clean_up_through_too(connection: sqlite3.Connection) -> None:
    def strictly() -> None:
        with forbid():
            in_finally(connection.rollback)

    with pytest.raises(ValueError, match="mine"):
        on_loop(strictly)
    assert not connection.in_transaction


# Finalizers --------------------------------------------------------------------------------------


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was raised where nobody could catch it. Collection is ours alone meanwhile."""
    errors: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: errors.append(unraisable.exc_value)
    )
    gc.collect()
    gc.disable()
    yield errors
    gc.enable()


class Finalized:
    def __init__(self) -> None:
        self.cycle: object = None

    def __del__(self) -> None:
        release("finalized")


def release(what: str) -> None:
    save(what)


def drop_the_last_reference() -> None:
    Finalized()


def collect_a_cycle() -> None:
    finalized = Finalized()
    finalized.cycle = finalized
    del finalized
    gc.collect()


def weakref_finalize() -> None:
    class Thing: ...

    thing = Thing()
    weakref.finalize(thing, save, "finalized")
    del thing


def weakref_finalize_in_a_cycle() -> None:
    class Thing: ...

    thing = Thing()
    thing.cycle = thing  # type: ignore[attr-defined]
    weakref.finalize(thing, release, "finalized")
    del thing
    gc.collect()


def drop_a_generator() -> None:
    def generator() -> Iterator[int]:
        try:
            yield 1
        finally:
            release("finalized")

    next(generator())


def collect_a_generator() -> None:
    holder: list[object] = []

    def generator(holder: list[object]) -> Iterator[int]:
        try:
            yield 1
        finally:
            release("finalized")

    holder.append(generator(holder))
    next(holder[0])  # type: ignore[call-overload]
    del holder
    gc.collect()


def drop_a_guarded_generator() -> None:
    @async_unsafe
    def generator() -> Iterator[int]:
        try:
            yield 1
        finally:
            release("finalized")

    with allow():
        dropped = generator()
        next(dropped)
    del dropped


def drop_a_coroutine() -> None:
    class Suspended:
        def __await__(self) -> Iterator[None]:
            yield

    async def coroutine() -> None:
        try:
            await Suspended()
        finally:
            release("finalized")

    suspended = coroutine()
    suspended.send(None)
    del suspended


FINALIZERS = [
    drop_the_last_reference,
    collect_a_cycle,
    weakref_finalize,
    weakref_finalize_in_a_cycle,
    drop_a_generator,
    collect_a_generator,
    drop_a_guarded_generator,
    drop_a_coroutine,
]


@pytest.mark.parametrize(
    ("finalize", "strict"),
    # The first step of a guarded generator needs an allowance.
    [
        (f, s)
        for f in FINALIZERS
        for s in (False, True)
        if not (s and f is drop_a_guarded_generator)
    ],
)
def test_nothing_is_raised_out_of_a_finalizer(
    finalize: Callable[[], None], strict: bool, lost: list[Any], heard: list[asyncsafe.Violation]
) -> None:
    def strictly() -> None:
        with forbid():
            finalize()

    on_loop(strictly if strict else finalize)
    assert lost == []
    assert made == ["finalized"]
    assert heard[-1].outcome == "allowed"
    assert heard[-1].reason in {"in a finalizer", "a generator is being closed"}


def test_a_finalizer_that_runs_a_loop_of_its_own_is_no_excuse(lost: list[Any]) -> None:
    results: list[str] = []

    class RunsALoop:
        def __del__(self) -> None:
            results.append(on_loop(attempt))

    RunsALoop()
    assert results == ["refused"]
    assert lost == []


def test_closing_a_generator_is_let_through(heard: list[asyncsafe.Violation]) -> None:
    def generator() -> Iterator[int]:
        try:
            yield 1
        finally:
            save()

    def close() -> None:
        suspended = generator()
        next(suspended)
        suspended.close()  # type: ignore[attr-defined]

    on_loop(close)
    assert [violation.reason for violation in heard] == ["a generator is being closed"]


# Guards ------------------------------------------------------------------------------------------


def test_a_call_that_cannot_block_passes(heard: list[asyncsafe.Violation]) -> None:
    guard = Guard("read", does_block=lambda size: size > 10)
    read = wrap(lambda size: size, guard)
    assert on_loop(read, 5) == 5
    assert heard == []
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(read, 50)


def test_a_question_that_fails_leaves_the_error_to_the_call(
    heard: list[asyncsafe.Violation],
) -> None:
    def does_block(connection: object) -> bool:
        raise AttributeError("closed")

    def commit(connection: object) -> None:
        raise RuntimeError("the connection is closed")

    with pytest.raises(RuntimeError, match="the connection is closed"):
        on_loop(wrap(commit, Guard("commit", does_block=does_block)), object())
    assert heard == []


def test_a_disabled_guard_makes_the_call() -> None:
    guard = Guard("save")
    wrapped = wrap(lambda: "made", guard)
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(wrapped)
    guard.enabled = False
    assert on_loop(wrapped) == "made"
    assert len(asyncsafe.violations) == 1


def test_trusted_packages_make_the_call() -> None:
    wrapped = wrap(lambda: "made", Guard("save", trusted=("aiothing",)))
    namespace: dict[str, Any] = {"__name__": "aiothing.core", "save": wrapped}
    exec("def call(): return save()", namespace)
    assert on_loop(namespace["call"]) == "made"
    namespace["__name__"] = "aiothings"
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(namespace["call"])


def test_the_guard_of_a_wrapper_is_known() -> None:
    guard = Guard("save")
    wrapped = wrap(lambda: None, guard)
    assert guard_of(wrapped) is guard
    assert guard_of(save.__wrapped__) is None  # type: ignore[attr-defined]
    assert guard_of(len) is None


def test_an_exempt_object_passes() -> None:
    class Connection:
        @async_unsafe
        def commit(self) -> str:
            return "made"

    safe, unsafe = Connection(), Connection()
    asyncsafe.exempt(safe)
    assert on_loop(safe.commit) == "made"
    with pytest.raises(SynchronousOnlyOperation):
        on_loop(unsafe.commit)
    del safe
    gc.collect()
    for _ in range(50):  # one of them may be where it was
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(Connection().commit)


def test_another_detector_of_blocking_calls_does_not_mind_ours() -> None:
    """blockbuster refuses os.getcwd() and os.path.abspath() on the loop, with which we told the line."""
    blockbuster = pytest.importorskip("blockbuster")
    asyncsafe.install()

    with blockbuster.blockbuster_ctx():
        violation = refused(lambda: sqlite3.connect(":memory:"))
        text = on_loop(violation.message)

    assert violation.call_site.filename == __file__
    assert "sqlite3.connect() was called" in text
