"""What a process knows of its violations: by call site, bounded; and who hears of each."""

from __future__ import annotations

import functools
import os
from threading import RLock

from .nesting import Inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .violation import Call, Outcome, Violation

#: How many call sites are told apart; calls at further ones are counted in `Recorder.dropped`.
SITE_LIMIT = 10_000


class CallSite:
    """All calls of one operation at one line, under one coroutine: what the recorder keeps."""

    __slots__ = ("calls", "outcomes", "seconds", "violation", "warned", "worst")

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
        #: Whether mode "warn" has warned of it.
        self.warned: bool = False

    def __repr__(self) -> str:
        return f"<CallSite {self.violation!r}, {self.calls} calls, {self.seconds:.6f} s>"


class Recorder:
    """The violations of this process, by call site. Iterate over it; it is in order of appearance.

    It is bounded: it grows with the number of call sites, not of calls, and tells no more than
    SITE_LIMIT of them apart.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        #: Whether the lock's holder is at work: a finalizer or a signal handler may come back in.
        self._at_work: bool = False
        self._subscribers: list[Callable[[Violation], object]] = []
        self._keepers: list[Callable[[CallSite | None], object]] = []
        self._sites: dict[tuple[Any, ...], CallSite] = {}
        #: From what is cheap to compare to the call site. Each value keeps alive what its key
        #: names by id.
        self._known: dict[tuple[Any, ...], tuple[CallSite, Any]] = {}
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
            self._beyond = None

    def subscribe(self, callback: Callable[[Violation], object]) -> Callable[[], None]:
        """Call `callback` with each violation: a refused one before it is raised, another when its call has returned.

        Returns a function that ends the subscription. What `callback` raises is logged and goes
        no further; calls that it makes to guarded operations are not recorded.
        """
        if not callable(callback):
            raise TypeError(f"subscribe() takes a function, not {type(callback).__name__}")
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return unsubscribe

    def keep(self, keeper: Callable[[CallSite | None], object]) -> Callable[[], None]:
        """Call `keeper` with a call site whenever its numbers change, with None when `dropped` does.

        Returns a function that ends it.
        """
        self._keepers.append(keeper)
        return functools.partial(self._keepers.remove, keeper)

    def set_aside(self) -> Callable[[], None]:
        """Begin anew, with nothing recorded. Returns a function that brings back what was."""
        with self._lock:
            before = self._sites, self._known, self._beyond
            self._sites, self._known, self._beyond = {}, {}, None

        def bring_back() -> None:
            with self._lock:
                self._sites, self._known, self._beyond = before

        return bring_back

    # What guards.py calls --------------------------------------------------------------------

    def refuse(self, call: Call) -> Violation:
        """Count a call that is refused."""
        counted = self._count(call, "raised", None)
        violation = (counted and counted[1]) or call.violation("raised", None)
        if counted:
            self._tell_subscribers(violation)
        return violation

    def begin(self, call: Call, outcome: Outcome, reason: str | None) -> Pending | None:
        """Count a call that is to be made. None: it came out of the counting of another."""
        counted = self._count(call, outcome, reason)
        if counted is None:
            return None
        site, violation = counted
        if violation is None and self._subscribers:
            violation = call.violation(outcome, reason)
        return Pending(site, violation)

    def end(self, pending: Pending, seconds: float) -> None:
        """The call that began has returned, after `seconds`."""
        site = pending.site
        with self._lock:
            if self._at_work:
                return
            self._at_work = True
            try:
                site.seconds += seconds
                site.worst = max(site.worst, seconds)
                self._tell_keepers(site)
            finally:
                self._at_work = False
        if pending.violation is not None:
            pending.violation.seconds = seconds
            self._tell_subscribers(pending.violation)

    def _count(
        self, call: Call, outcome: Outcome, reason: str | None
    ) -> tuple[CallSite, Violation | None] | None:
        """The call site, and the violation if it is the first one there. None: as `begin`."""
        with self._lock:
            if self._at_work:
                return None
            self._at_work = True
            try:
                site = self._find_site(call, outcome, reason)
                site.calls += 1
                first = site.calls == 1
                site.outcomes[outcome] = site.outcomes.get(outcome, 0) + 1
                self._tell_keepers(site)
            finally:
                self._at_work = False
        if not first:
            return site, None
        with Inside("unguarded"):
            _log(site.violation)
        return site, site.violation

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
        )
        site = self._sites.get(name)
        if site is None:
            if len(self._sites) >= SITE_LIMIT:
                self._beyond = self._beyond or CallSite(violation)
                return self._beyond
            site = self._sites[name] = CallSite(violation)
        if len(self._known) >= 2 * SITE_LIMIT:
            self._known.clear()
        self._known[call.key] = site, call.kept
        return site

    def _tell_keepers(self, site: CallSite) -> None:
        for keeper in self._keepers:
            keeper(None if site is self._beyond else site)

    def _tell_subscribers(self, violation: Violation) -> None:
        if not self._subscribers:
            return
        with Inside("unguarded"):
            for callback in tuple(self._subscribers):
                try:
                    callback(violation)
                except Exception:
                    _logger().exception("a subscriber to asyncsafe.violations raised")


class Pending:
    """A call between `Recorder.begin` and `Recorder.end`."""

    __slots__ = ("site", "violation")

    def __init__(self, site: CallSite, violation: Violation | None) -> None:
        self.site: CallSite = site
        self.violation: Violation | None = violation


violations: Recorder = Recorder()


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
