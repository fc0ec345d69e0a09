"""What is under way on this thread: a guarded call, or something that is nobody's violation."""

from __future__ import annotations

import os
import threading

from .stacks import greenlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Activity = Literal["call", "connecting", "description", "unguarded"]


class Inside:
    """While a guarded call is made, or what is unguarded is done: by thread and greenlet.

    A guarded call within a guarded call is part of the outer one; while that had no connection yet
    ("connecting"), the inner one's is watched. Within what is unguarded (our
    telling, and with it subscribers and log handlers; a call of an exempt object) it is nobody's.
    Within the description of a call, which must do no I/O, it is an error.
    Not a context variable: tasks that are started inside would inherit that.
    """

    __slots__ = ("active", "greenlet", "outer")

    def __init__(self, what: Activity) -> None:
        self.active: dict[int, Activity] = _activities()
        self.greenlet: int = _greenlet_id()
        self.outer: Activity | None = self.active.get(self.greenlet)
        self.active[self.greenlet] = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        if self.outer is None:
            self.active.pop(self.greenlet, None)  # gone in a child that was forked inside
        else:
            self.active[self.greenlet] = self.outer


def under_way() -> Activity | None:
    """What this greenlet of this thread is doing, if it is either."""
    return _activities().get(_greenlet_id())


_thread = threading.local()

if hasattr(os, "register_at_fork"):
    # What the parent was doing, a forked child isn't.
    os.register_at_fork(after_in_child=lambda: _activities().clear())


def _activities() -> dict[int, Activity]:
    try:
        active: dict[int, Activity] = _thread.active
    except AttributeError:
        active = _thread.active = {}
    return active


def _greenlet_id() -> int:
    greenlet = greenlets()
    return 0 if greenlet is None else id(greenlet.getcurrent())
