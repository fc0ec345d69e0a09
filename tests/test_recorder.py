"""The recorder: what is kept, how much of it, who hears of it, and what never stands in it."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe import (
    SynchronousOnlyOperation,
    async_unsafe,
    configure,
    forbid,
    recorder,
    violations,
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


@pytest.fixture
def subscribe() -> Iterator[Callable[[Callable[[Any], object]], Callable[[], None]]]:
    """violations.subscribe, taken back at the end."""
    ends: list[Callable[[], None]] = []

    def subscribe(callback: Callable[[Any], object], **options: Any) -> Callable[[], None]:
        ends.append(violations.subscribe(callback, **options))
        return ends[-1]

    yield subscribe
    for end in ends:
        end()


# By call site ------------------------------------------------------------------------------------


def test_calls_are_kept_by_call_site() -> None:
    def here() -> None:
        attempt()

    def calls() -> None:
        for _ in range(3):
            save()
        save()
        here()

    configure(mode="record")
    assert not violations
    on_loop(calls)
    assert violations
    assert len(violations) == 3
    assert [site.calls for site in violations] == [3, 1, 1]
    assert [site.violation.call_site.function.rpartition(".")[2] for site in violations] == [
        "calls",
        "calls",
        "attempt",
    ]


def test_a_call_site_counts_how_its_calls_ended() -> None:
    def calls() -> None:
        for mode in ("record", "raise", "raise", "allow"):
            configure(mode="raise" if mode == "allow" else mode)  # type: ignore[arg-type]
            if mode == "allow":
                with asyncsafe.allow():
                    attempt()
            else:
                attempt()

    on_loop(calls)
    (site,) = violations
    assert site.calls == 4
    assert site.outcomes == {"recorded": 1, "raised": 2, "allowed": 1}
    assert site.violation.outcome == "recorded"
    assert site.seconds >= site.worst > 0


def test_the_same_line_under_two_coroutines_is_two_call_sites() -> None:
    import asyncio

    async def first() -> None:
        attempt()

    async def second() -> None:
        attempt()

    async def main() -> None:
        await first()
        await second()

    asyncio.run(main())
    assert [site.violation.coroutine.function.rpartition(".")[2] for site in violations] == [  # type: ignore[union-attr]
        "first",
        "second",
    ]


def test_clear_forgets_and_begins_anew(subscribe: Any) -> None:
    told: list[asyncsafe.Violation] = []
    subscribe(told.append)

    def calls() -> None:
        for _ in range(2):
            attempt()
            violations.clear()
        attempt()

    on_loop(calls)
    assert [site.calls for site in violations] == [1]
    assert len(told) == 3


def test_iteration_is_safe_while_recording() -> None:
    configure(mode="record")

    def calls() -> list[int]:
        save()
        counts = []
        for site in violations:
            save()
            counts.append(site.calls)
        return counts

    assert on_loop(calls) == [1]


def test_representations_say_where() -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        on_loop(save)
    (site,) = violations
    violation = caught.value.violation
    place = f"{violation.call_site.filename}:{violation.call_site.lineno}"
    assert repr(violation) == f"<Violation tests.test_recorder.save at {place}, raised>"
    assert repr(site) == f"<CallSite {violation!r}, 1 calls, 0.000000 s>"


# Bounded -----------------------------------------------------------------------------------------


def test_many_calls_of_one_site_are_one_site() -> None:
    configure(mode="record")

    def calls() -> None:
        for _ in range(1000):
            save()

    on_loop(calls)
    (site,) = violations
    assert site.calls == 1000
    assert site.outcomes == {"recorded": 1000}


def call_sites(count: int) -> list[Callable[[], object]]:
    """As many functions, each in a file of its own, that call save()."""
    functions = []
    for number in range(count):
        namespace: dict[str, Any] = {"save": save}
        exec(compile("def call(): save()", f"/app/generated{number}.py", "exec"), namespace)
        functions.append(namespace["call"])
    return functions


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(recorder, "SITE_LIMIT", 20)
    return 20


def call_each(functions: list[Callable[[], object]]) -> None:
    for function in functions:
        function()


def test_sites_beyond_the_limit_are_counted_together(
    limit: int, heard: list[asyncsafe.Violation]
) -> None:
    configure(mode="record")
    functions = call_sites(limit + 5)
    on_loop(call_each, functions)
    on_loop(call_each, functions)
    assert len(violations) == len(list(violations)) == limit
    assert {site.calls for site in violations} == {2}
    assert violations.dropped == 10
    assert len(heard) == 2 * (limit + 5)
    violations.clear()
    assert violations.dropped == 0


def test_calls_beyond_the_limit_are_still_refused(limit: int) -> None:
    for function in call_sites(limit + 5):
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(function)
    assert len(violations) == limit
    assert made == []


def test_code_that_is_made_anew_each_time_is_not_kept_for_ever(limit: int) -> None:
    """A template engine compiles the same line again and again."""
    configure(mode="record")
    made_code = []
    for _ in range(200):
        namespace: dict[str, Any] = {"save": save}
        exec(compile("def call(): save()", "/app/template.html", "exec"), namespace)
        made_code.append(weakref.ref(namespace["call"].__code__))
        on_loop(namespace["call"])
    del namespace
    gc.collect()
    (site,) = violations
    assert site.calls == 200
    assert sum(reference() is not None for reference in made_code) <= 2 * limit


def test_threads_lose_no_count() -> None:
    configure(mode="record")

    def calls() -> None:
        for _ in range(200):
            save()

    threads = [threading.Thread(target=on_loop, args=(calls,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (site,) = violations
    assert site.calls == site.outcomes["recorded"] == 1600


# Subscribers -------------------------------------------------------------------------------------


def test_subscribers_hear_of_each_violation(subscribe: Any) -> None:
    first: list[asyncsafe.Violation] = []
    second: list[asyncsafe.Violation] = []
    end = subscribe(first.append)
    subscribe(second.append)

    def calls() -> None:
        for _ in range(3):
            attempt()
        end()
        end()  # which is all right
        attempt()

    on_loop(calls)
    assert len(first) == 3
    assert len(second) == 4
    assert len(set(map(id, second))) == 4


def test_a_swallowed_refusal_is_heard_of(subscribe: Any) -> None:
    told: list[asyncsafe.Violation] = []
    subscribe(told.append)
    assert on_loop(attempt) == "refused"
    assert [violation.outcome for violation in told] == ["raised"]


def test_a_made_call_is_told_when_it_has_returned(subscribe: Any) -> None:
    told: list[tuple[list[str], bool]] = []
    subscribe(lambda violation: told.append((list(made), violation.seconds is not None)))
    configure(mode="record")
    on_loop(save)
    assert told == [(["saved"], True)]


def test_a_subscriber_that_raises_breaks_nothing(
    subscribe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[asyncsafe.Violation] = []

    def broken(violation: asyncsafe.Violation) -> None:
        raise LookupError("the subscriber's own")

    subscribe(broken)
    subscribe(told.append)
    assert on_loop(attempt) == "refused"
    configure(mode="record")
    assert on_loop(attempt) == "made"
    assert len(told) == 2
    errors = [record for record in caplog.records if record.exc_info]
    assert [(error.name, error.getMessage()) for error in errors] == [
        ("asyncsafe", "a subscriber to asyncsafe.violations raised")
    ] * 2


@pytest.mark.parametrize("way", ["raise", "record", "forbid"])
def test_a_subscriber_may_make_guarded_calls(way: str, subscribe: Any) -> None:
    """Under forbid() it used to hear of its own call, and of that one's, until the stack ended."""
    told: list[str] = []

    def store(violation: asyncsafe.Violation) -> None:
        told.append(violation.operation)
        save()

    @async_unsafe
    def work() -> None: ...

    def call() -> None:
        if way == "forbid":
            with forbid():
                work()
        else:
            work()

    subscribe(store)
    configure(mode="record" if way == "record" else "raise")
    if way == "record":
        on_loop(call)
    else:
        with pytest.raises(SynchronousOnlyOperation):
            on_loop(call)
    assert len(told) == 1
    assert told[0].endswith("work")
    assert made == ["saved"]
    assert len(violations) == 1


def test_only_functions_can_subscribe() -> None:
    with pytest.raises(TypeError, match=r"subscribe\(\) takes a function, not str"):
        violations.subscribe("callback")  # type: ignore[arg-type]


# Subscribers that aren't told of all ---------------------------------------------------------------


class Clock:
    """The recorder's clock, as the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorder, "monotonic", clock)
    return clock


def here() -> None:
    with suppress(SynchronousOnlyOperation):
        save()


def there() -> None:
    with suppress(SynchronousOnlyOperation):
        save()


def test_a_subscriber_can_be_told_at_most_once_in_a_time(subscribe: Any, clock: Clock) -> None:
    told: list[asyncsafe.Violation] = []
    all_of_them: list[asyncsafe.Violation] = []
    subscribe(told.append, every=60)
    subscribe(all_of_them.append)

    def skipped() -> list[tuple[str, int]]:
        seen = [(violation.call_site.function, violation.skipped) for violation in told]
        told.clear()
        return seen

    on_loop(here)
    assert skipped() == [("here", 0)], "the first at once"
    for _ in range(3):
        on_loop(here)
    clock.now += 59.9
    on_loop(here)
    assert skipped() == []
    on_loop(there)
    assert skipped() == [("there", 0)], "each call site by itself"
    clock.now += 0.1
    on_loop(here)
    on_loop(here)
    assert skipped() == [("here", 4)], "the time begins with what was told last"
    clock.now += 600
    on_loop(here)
    on_loop(there)
    assert skipped() == [("here", 1), ("there", 0)]
    assert [violation.skipped for violation in all_of_them] == [0] * 10
    assert [site.calls for site in violations] == [8, 2], "all are counted"


def test_a_subscriber_can_be_told_once_of_each_call_site(subscribe: Any, clock: Clock) -> None:
    told: list[asyncsafe.Violation] = []
    subscribe(told.append, every=float("inf"))
    configure(mode="record")
    for _ in range(3):
        on_loop(here)
        on_loop(there)
        clock.now += 1e9
    assert [violation.call_site.function for violation in told] == ["here", "there"]
    assert told[0].seconds is not None
    violations.clear()
    on_loop(here)
    assert len(told) == 3, "clear() begins anew"


def test_who_subscribes_later_is_told_of_the_next(subscribe: Any, clock: Clock) -> None:
    on_loop(here)
    told: list[asyncsafe.Violation] = []
    subscribe(told.append, every=60)
    on_loop(here)
    assert [violation.skipped for violation in told] == [0]


def test_who_has_ended_its_subscription_during_the_call_isnt_told(subscribe: Any) -> None:
    told: list[asyncsafe.Violation] = []
    end = subscribe(told.append)

    @async_unsafe
    def work() -> None:
        end()

    configure(mode="record")
    on_loop(work)
    assert told == []


def test_a_subscriber_that_skips_costs_no_memory(
    subscribe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows the recorder's call sites, and those beyond the limit as one."""
    monkeypatch.setattr(recorder, "SITE_LIMIT", 10)
    told: list[asyncsafe.Violation] = []
    subscribe(told.append, every=float("inf"))
    configure(mode="record")
    for number in range(30):
        check = f"import asyncsafe\ndef call():\n    asyncsafe.check('call {number}')"
        namespace: dict[str, Any] = {}
        exec(check, namespace)
        on_loop(namespace["call"])
    assert len(told) == 11
    assert violations.dropped == 20


@pytest.mark.parametrize("every", [0, -1, float("nan"), "60", True])
def test_every_is_a_number_of_seconds(every: Any) -> None:
    with pytest.raises(
        ValueError, match=r"every is a number of seconds above 0, math\.inf or None"
    ):
        violations.subscribe(print, every=every)


# What never stands in it -------------------------------------------------------------------------

SECRET = "hunter2-secret"


@async_unsafe
def log_in(name: str, password: str, *rest: str, **more: str) -> None: ...


@pytest.mark.parametrize("mode", ["raise", "record"])
def test_parameters_are_shown_nowhere(
    mode: Any,
    guarded: None,
    heard: list[asyncsafe.Violation],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(mode=mode)
    caplog.set_level(logging.DEBUG, "asyncsafe")
    connection = sqlite3.connect(":memory:")
    cursor = connection.cursor()
    calls: list[Callable[[], object]] = [
        lambda: log_in("me", SECRET, SECRET, key=SECRET),
        lambda: log_in(name="me", password=SECRET),
        lambda: connection.execute("select ?", (SECRET,)),
        lambda: cursor.execute("select :secret", {"secret": SECRET}),
        lambda: cursor.executemany("insert into missing values (?)", [(SECRET,)]),
    ]
    errors: list[BaseException] = []
    for call in calls:
        try:
            on_loop(call)
        except (SynchronousOnlyOperation, sqlite3.OperationalError) as error:
            errors.append(error)
    assert len(heard) == len(calls)
    assert any(violation.statement == "select ?" for violation in heard)
    shown = [
        *(repr(violation) for violation in heard),
        *(violation.message() for violation in heard),
        *(repr(pickle.dumps(violation)) for violation in heard),
        *(repr(site) for site in violations),
        *(repr(pickle.dumps(site)) for site in violations),
        *(repr(error) + str(error) + repr(error.args) for error in errors),
        caplog.text,
        *(repr(vars(record)) for record in caplog.records),
    ]
    assert [text for text in shown if SECRET in text] == []


def test_violations_and_call_sites_are_pickled_and_copied() -> None:
    on_loop(attempt)
    (site,) = violations
    for same in (pickle.loads(pickle.dumps(site)), copy.copy(site), copy.deepcopy(site)):
        assert repr(same) == repr(site)
        assert same.violation.message() == site.violation.message()
        assert same.outcomes == {"raised": 1}


# The logger --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "level"),
    [("raise", logging.WARNING), ("warn", logging.WARNING), ("record", logging.INFO)],
)
@pytest.mark.filterwarnings("ignore::asyncsafe.AsyncUnsafeWarning")
def test_each_call_site_is_logged_once(
    mode: Any, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    configure(mode=mode)
    caplog.set_level(logging.DEBUG, "asyncsafe")

    def calls() -> None:
        for _ in range(3):
            attempt()
        attempt()

    on_loop(calls)
    sites = list(violations)
    assert len(sites) == 1  # attempt() is where save() is called
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asyncsafe", level)
    assert record.getMessage() == sites[0].violation.message()
    assert record.violation is sites[0].violation  # type: ignore[attr-defined]


QUIET = """
import asyncio, asyncsafe

@asyncsafe.async_unsafe
def save(): ...

async def main():
    try:
        save()
    except asyncsafe.SynchronousOnlyOperation:
        print("refused")
    with asyncsafe.allow():
        save()

asyncio.run(main())
"""

LOUD = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s")
"""


def test_nothing_is_written_to_standard_error_by_itself(tmp_path: Path) -> None:
    result = python(QUIET, tmp_path)
    assert (result.stdout, result.stderr) == ("refused\n", "")


def test_a_program_that_logs_sees_it(tmp_path: Path) -> None:
    assert python(LOUD + QUIET, tmp_path).stderr.splitlines() == [
        "asyncsafe WARNING",
        "asyncsafe INFO",
    ]


# How long, and who waited ------------------------------------------------------------------------


@async_unsafe
def take(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_call_site_has_the_distribution_of_its_times() -> None:
    configure(mode="record")

    def calls() -> None:
        for seconds in [0.0001] * 18 + [0.005, 0.02]:
            take(seconds)

    on_loop(calls)
    (site,) = violations
    assert len(site.durations) == 20
    assert site.p50 is not None
    assert site.p95 is not None
    assert 0.0001 * 0.97 < site.p50 < 0.005 * 0.97 < site.p95 < 0.02
    assert site.p99 == pytest.approx(site.worst, rel=0.022)
    assert site.p99 <= site.worst


def test_refused_calls_have_no_times() -> None:
    on_loop(attempt)
    (site,) = violations
    assert (len(site.durations), site.p50, site.p99) == (0, None, None)
    assert violations.stalls == []


def test_who_waited_for_a_long_call_is_counted() -> None:
    configure(mode="record")

    async def other() -> None: ...

    async def main() -> None:
        take(0.00001)
        tasks = [asyncio.create_task(other()) for _ in range(3)]
        await_none = [take(0.002) for _ in range(2)]
        await asyncio.gather(*tasks)
        assert await_none

    before = time.time()
    asyncio.run(main())
    short, long = violations
    assert (short.waiting_calls, short.waiting_total, short.waiting_most) == (0, 0, 0)
    assert (long.waiting_calls, long.waiting_total, long.waiting_most) == (2, 6, 3)
    stalls = violations.stalls
    assert [stall.site for stall in stalls] == [short, long, long]
    assert [stall.waiting for stall in stalls] == [None, 3, 3]
    assert [stall.seconds >= 0.002 for stall in stalls] == [False, True, True]
    assert before <= stalls[0].start <= stalls[1].start <= stalls[2].start <= time.time()
    assert "3 waiting" in repr(stalls[1])


def test_the_longest_stalls_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "STALL_LIMIT", 5)
    configure(mode="record")

    def calls() -> None:
        for milliseconds in (1, 9, 0, 7, 3, 0, 8, 2, 6, 0):
            take(milliseconds / 1000)

    on_loop(calls)
    assert len(violations.stalls) == 5
    assert min(stall.seconds for stall in violations.stalls) >= 0.003
    violations.clear()
    assert violations.stalls == []


RECORDING = """
import asyncio, gc, sys
import asyncsafe
from asyncsafe.reports.recording import record_into

asyncsafe.configure(mode="record")
record_into(".")

@asyncsafe.async_unsafe
def find(): ...

namespace = {"find": find}
for number in range(100):
    exec(compile(f"def call_{number}(): find()", f"/app/{number}.py", "exec"), namespace)
functions = [namespace[f"call_{number}"] for number in range(100)]

async def main(times):
    for _ in range(times):
        for function in functions:
            function()

def objects():
    gc.collect()
    return sys.getallocatedblocks()

asyncio.run(main(100))
count = objects()
asyncio.run(main(200))
print(objects() - count)
"""


def test_what_is_recorded_does_not_grow_with_the_calls(tmp_path: Path) -> None:
    """20,000 further calls at 100 sites: of buckets that were not met before there are some."""
    assert int(python(RECORDING, tmp_path).stdout) < 10_000
