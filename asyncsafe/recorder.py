"""What a process knows of its violations: by call site, bounded; and who hears of each."""

from __future__ import annotations

import functools
import os
import time
from heapq import heappush, heapreplace
from threading import RLock
from time import monotonic

from . import loops
from .durations import Durations
from .nesting import Inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    from .violation import Call, Outcome, Violation

    Listeners = list[tuple["_Subscription", int]]

    class Keeper(Protocol):
        """Who writes down what is recorded. It is told while the recorder's lock is held."""

        def counted(self, site: CallSite | None, made: bool) -> object:
            """A call was counted; None: at a call site beyond SITE_LIMIT.

            made: it is made now, and `timed` follows, or this with False where it took no time.
            """

        def timed(self, site: CallSite, bucket: int) -> object:
            """A call has returned: its duration is in this bucket of the site's durations."""

        def waited(self, site: CallSite) -> object:
            """Others have waited for a call at this site, or might have."""

        def stalled(self, stall: Stall, replaced: Stall | None) -> object:
            """The loop stood still for longer than another time, which this one replaces."""


#: How many call sites are told apart; calls at further ones are counted in `Recorder.dropped`.
SITE_LIMIT = 10_000
#: How many stalls are kept, the longest.
STALL_LIMIT = 1000
#: From how many seconds on it is counted who waited: that takes some microseconds itself.
LONG = 0.001


class CallSite:
    """All calls of one operation at one line, under one coroutine: what the recorder keeps."""

    __slots__ = (
        "calls",
        "durations",
        "outcomes",
        "seconds",
        "violation",
        "waiting_calls",
        "waiting_most",
        "waiting_total",
        "warned",
        "worst",
    )

    def __init__(self, violation: Violation) -> None:
        #: The first violation here: its statement, stack and task stand for all.
        self.violation: Violation = violation
        #: How many calls, refused ones among them.
        self.calls: int = 0
        #: How many of them ended how: {"raised": 2, "allowed": 1}.
        self.outcomes: dict[Outcome, int] = {}
        #: Seconds for which the calls made here blocked the loop, in total and at worst.
        self.seconds: float = 0.0
        self.worst: float = 0.0
        #: The distribution of these times.
        self.durations: Durations = Durations()
        #: How many tasks and callbacks of the loop could have run, and waited, when a call
        #: returned: of how many calls that is known (of those that took a millisecond or more,
        #: where the loop tells), and for these in total and at most.
        self.waiting_calls: int = 0
        self.waiting_total: int = 0
        self.waiting_most: int = 0
        #: Whether mode "warn" has warned of it.
        self.warned: bool = False

    def __repr__(self) -> str:
        return f"<CallSite {self.violation!r}, {self.calls} calls, {self.seconds:.6f} s>"

    @property
    def p50(self) -> float | None:
        """The median of the times, within 2.2 % (durations.RELATIVE_ERROR); None: no call was made."""
        return self._quantile(0.50)

    @property
    def p95(self) -> float | None:
        """The time that 95 % of the calls did not exceed, as `p50`."""
        return self._quantile(0.95)

    @property
    def p99(self) -> float | None:
        """The time that 99 % of the calls did not exceed, as `p50`."""
        return self._quantile(0.99)

    def _quantile(self, part: float) -> float | None:
        seconds = self.durations.quantile(part)
        return None if seconds is None else min(seconds, self.worst)


class Stall:
    """One time that the loop stood still, for a call that was made on it."""

    __slots__ = ("seconds", "site", "start", "waiting")

    def __init__(self, site: CallSite, start: float, seconds: float, waiting: int | None) -> None:
        #: Where the call was made.
        self.site: CallSite = site
        #: When it began, as time.time() tells it, and how many seconds it took.
        self.start: float = start
        self.seconds: float = seconds
        #: How many tasks and callbacks could have run, and waited, when it returned. None where it
        #: took less than a millisecond, or the loop doesn't tell.
        self.waiting: int | None = waiting

    def __repr__(self) -> str:
        return f"<Stall {self.seconds:.6f} s, {self.waiting} waiting, {self.site!r}>"


class _Subscription:
    """Who is told of violations, and how often of those at one call site."""

    __slots__ = ("_told", "callback", "every")

    def __init__(self, callback: Callable[[Violation], object], every: float | None) -> None:
        self.callback = callback
        self.every = every
        #: When it was told of each call site, and how often it wasn't since then.
        self._told: dict[CallSite, tuple[float, int]] = {}

    def skipped(self, site: CallSite) -> int | None:
        """If it is to be told of a violation here: of how many it wasn't before. None: it isn't."""
        if self.every is None:
            return 0
        now = monotonic()
        told, skipped = self._told.get(site, (now - self.every, 0))
        if now - told < self.every:
            self._told[site] = told, skipped + 1
            return None
        self._told[site] = now, 0
        return skipped

    def clear(self) -> None:
        self._told.clear()


class Recorder:
    """The violations of this process, by call site. Iterate over it; it is in order of appearance.

    It is bounded: it grows with the number of call sites, not of calls, and tells no more than
    SITE_LIMIT of them apart.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        #: Whether the lock's holder is at work: a finalizer or a signal handler may come back in.
        self._at_work: bool = False
        self._subscriptions: list[_Subscription] = []
        self._keepers: list[Keeper] = []
        self._sites: dict[tuple[Any, ...], CallSite] = {}
        #: From what is cheap to compare to the call site. Each value keeps alive what its key
        #: names by id.
        self._known: dict[tuple[Any, ...], tuple[CallSite, Any]] = {}
        #: The longest stalls: a heap, the shortest of them first. The number tells equal ones apart.
        self._stalls: list[tuple[float, int, Stall]] = []
        self._stall_number = 0
        #: Stands for all call sites beyond SITE_LIMIT.
        self._beyond: CallSite | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        # Another thread may have held it when the process was forked.
        self._lock = RLock()
        self._at_work = False

    @property
    def dropped(self) -> int:
        """How many calls were at call sites beyond SITE_LIMIT, which are not told apart."""
        return self._beyond.calls if self._beyond else 0

    @property
    def stalls(self) -> list[Stall]:
        """The STALL_LIMIT longest times that the loop stood still, by when they began."""
        with self._lock:
            stalls = [stall for _, _, stall in self._stalls]
        return sorted(stalls, key=lambda stall: stall.start)

    def __iter__(self) -> Iterator[CallSite]:
        with self._lock:
            return iter(tuple(self._sites.values()))

    def __len__(self) -> int:
        return len(self._sites)

    def __bool__(self) -> bool:
        return bool(self._sites)

    def clear(self) -> None:
        """Forget what was recorded. Subscribers stay."""
        with self._lock:
            self._sites.clear()
            self._known.clear()
            self._stalls.clear()
            self._beyond = None
            for subscription in self._subscriptions:
                subscription.clear()

    def subscribe(
        self, callback: Callable[[Violation], object], *, every: float | None = None
    ) -> Callable[[], None]:
        """Call `callback` with each violation: a refused one before it is raised, another when its call has returned.

        every: seconds: the first violation at each call site, then at most one there in this
            time, whose `skipped` tells of how many `callback` wasn't. math.inf: the first alone.
            None: all of them. (Beyond SITE_LIMIT call sites, the others count as one.)

        Returns a function that ends the subscription. What `callback` raises is logged and goes
        no further; calls that it makes to guarded operations are not recorded. `clear()` begins
        anew for `every`, too.

        Raises TypeError for what can't be called, ValueError for an `every` that isn't above 0.
        """
        if not callable(callback):
            raise TypeError(f"subscribe() takes a function, not {type(callback).__name__}")
        if every is not None and (
            isinstance(every, bool) or not isinstance(every, (int, float)) or not every > 0
        ):
            raise ValueError(
                f"every is a number of seconds above 0, math.inf or None, not {every!r}"
            )
        subscription = _Subscription(callback, every)
        with self._lock:
            self._subscriptions.append(subscription)

        def unsubscribe() -> None:
            with self._lock:
                if subscription in self._subscriptions:
                    self._subscriptions.remove(subscription)

        return unsubscribe

    def keep(self, keeper: Keeper) -> Callable[[], None]:
        """Have `keeper` told of every change of the numbers. Returns a function that ends it."""
        self._keepers.append(keeper)
        return functools.partial(self._keepers.remove, keeper)

    def set_aside(self) -> Callable[[], None]:
        """Begin anew, with nothing recorded. Returns a function that brings back what was."""
        with self._lock:
            before = self._sites, self._known, self._beyond, self._stalls
            self._sites, self._known, self._beyond, self._stalls = {}, {}, None, []

        def bring_back() -> None:
            with self._lock:
                self._sites, self._known, self._beyond, self._stalls = before

        return bring_back

    # What guards.py calls --------------------------------------------------------------------

    def refuse(self, call: Call) -> Violation:
        """Count a call that is refused."""
        counted = self._count(call, "raised", None)
        violation = (counted and counted[1]) or call.violation("raised", None)
        if counted:
            self._tell(violation, counted[2])
        return violation

    def begin(self, call: Call, outcome: Outcome, reason: str | None) -> Pending | None:
        """Count a call that is to be made. None: it came out of the counting of another."""
        counted = self._count(call, outcome, reason)
        if counted is None:
            return None
        site, violation, listeners = counted
        if violation is None and listeners:
            violation = call.violation(outcome, reason)
        return Pending(site, violation, listeners, call.running)

    def end(self, pending: Pending, seconds: float) -> None:
        """The call that began has returned, after `seconds`; 0.0: it took no time of its own."""
        site = pending.site
        waiting = loops.count_waiting(pending.running) if seconds >= LONG else None
        with self._lock:
            if self._at_work:
                return
            self._at_work = True
            try:
                if seconds:
                    self._add_time(site, seconds, waiting)
                elif site is not self._beyond:
                    for keeper in self._keepers:
                        keeper.counted(site, False)
            finally:
                self._at_work = False
        if pending.violation is not None:
            pending.violation.seconds = seconds
            self._tell(pending.violation, pending.listeners)

    def _add_time(self, site: CallSite, seconds: float, waiting: int | None) -> None:
        site.seconds += seconds
        site.worst = max(site.worst, seconds)
        bucket = site.durations.add(seconds)
        if site is self._beyond:
            return
        for keeper in self._keepers:
            keeper.timed(site, bucket)
        if waiting is not None:
            site.waiting_calls += 1
            site.waiting_total += waiting
            site.waiting_most = max(site.waiting_most, waiting)
            for keeper in self._keepers:
                keeper.waited(site)
        if len(self._stalls) < STALL_LIMIT or seconds > self._stalls[0][0]:
            self._add_stall(Stall(site, time.time() - seconds, seconds, waiting))

    def _add_stall(self, stall: Stall) -> None:
        self._stall_number += 1
        entry = stall.seconds, self._stall_number, stall
        replaced = None
        if len(self._stalls) < STALL_LIMIT:
            heappush(self._stalls, entry)
        else:
            replaced = heapreplace(self._stalls, entry)[2]
        for keeper in self._keepers:
            keeper.stalled(stall, replaced)

    def _count(
        self, call: Call, outcome: Outcome, reason: str | None
    ) -> tuple[CallSite, Violation | None, Listeners] | None:
        """The call site, the violation if it is the first one there, and who is to hear of it.

        None: as `begin`.
        """
        with self._lock:
            if self._at_work:
                return None
            self._at_work = True
            try:
                site = self._find_site(call, outcome, reason)
                site.calls += 1
                first = site.calls == 1
                site.outcomes[outcome] = site.outcomes.get(outcome, 0) + 1
                listeners = self._listeners(site)
                for keeper in self._keepers:
                    # The first warning may be an error, as the program has it: nothing follows then.
                    made = outcome != "raised" and (outcome != "warned" or site.warned)
                    keeper.counted(None if site is self._beyond else site, made)
            finally:
                self._at_work = False
        if not first:
            return site, None, listeners
        with Inside("unguarded"):
            _log(site.violation)
        return site, site.violation, listeners

    def _find_site(self, call: Call, outcome: Outcome, reason: str | None) -> CallSite:
        known = self._known.get(call.key)
        if known is not None:
            return known[0]
        violation = call.violation(outcome, reason)
        name = (
            violation.operation,
            violation.call_site,
            violation.coroutine,
            violation.begun_at,
            violation.subject,
            violation.phase,
        )
        site = self._sites.get(name)
        if site is None:
            if len(self._sites) >= SITE_LIMIT:
                self._beyond = self._beyond or CallSite(violation)
                return self._beyond
            site = self._sites[name] = CallSite(violation)
        if len(self._known) >= 2 * SITE_LIMIT:
            self._known.clear()
        self._known[call.key] = site, call.kept()
        return site

    def _listeners(self, site: CallSite) -> Listeners:
        """The subscribers that are to hear of a violation here, and of how many they didn't before."""
        found = []
        for subscription in self._subscriptions:
            skipped = subscription.skipped(site)
            if skipped is not None:
                found.append((subscription, skipped))
        return found

    def _tell(self, violation: Violation, listeners: Listeners) -> None:
        if not listeners:
            return
        with Inside("unguarded"):
            for subscription, skipped in listeners:
                if subscription not in self._subscriptions:  # it has ended since
                    continue
                try:
                    subscription.callback(_with_skipped(violation, skipped))
                except Exception:
                    _logger().exception("a subscriber to asyncsafe.violations raised")


class Pending:
    """A call between `Recorder.begin` and `Recorder.end`."""

    __slots__ = ("listeners", "running", "site", "violation")

    def __init__(
        self,
        site: CallSite,
        violation: Violation | None,
        listeners: Listeners,
        running: loops.Running,
    ) -> None:
        self.site: CallSite = site
        self.violation: Violation | None = violation
        self.listeners: Listeners = listeners
        self.running: loops.Running = running


violations: Recorder = Recorder()


def _with_skipped(violation: Violation, skipped: int) -> Violation:
    """The violation as one subscriber is told of it: others have skipped more, or less."""
    if not skipped:
        return violation
    import copy

    violation = copy.copy(violation)
    violation.skipped = skipped
    return violation


def _logger() -> Any:
    import logging

    return logging.getLogger("asyncsafe")


def _log(violation: Violation) -> None:
    """Each call site once, to the "asyncsafe" logger."""
    import logging

    logger = _logger()
    if not logger.handlers:
        # What is refused is raised and what is warned is warned: without a handler of the
        # program's, the log has nothing to add to standard error.
        logger.addHandler(logging.NullHandler())
    loud = violation.outcome in {"raised", "warned"}
    level = logging.WARNING if loud else logging.INFO
    if logger.isEnabledFor(level):
        logger.log(level, "%s", violation.message(), extra={"violation": violation})
