"""Whose a connection is: a task's; outside of tasks a thread's; below ConnectionMiddleware a request's.

What is kept for an owner is found by asking who runs now, not by inheritance: a child task, which
gets a copy of its parent's context, is an owner of its own. It ends with its owner, in the thread
that made it where there is a way into that thread.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from _thread import start_new_thread
from contextvars import ContextVar
from functools import partial
from weakref import WeakKeyDictionary, finalize, ref

from . import loops
from .imports import when_imported
from .locks import ForkSafeLock
from .nesting import Inside
from .stacks import greenlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import ModuleType
    from typing import Any, Protocol

    class Keeper(Protocol):
        """Something that keeps one thing for each owner."""

        def release(self, kept: Any) -> None:
            """The owner has ended, or the thing is to go: close it."""


class Owner:
    """One to whom connections belong.

    name: as errors tell it: "task 'Task-3'", "thread 'MainThread'", "request GET /orders".
    task: the task that it stands for, or None.
    lasting: tasks stand for it, one after the other, and it outlives them: a notebook's cells.
    """

    __slots__ = (
        "__weakref__",
        "below",
        "ended",
        "greenlet",
        "kept",
        "lasting",
        "leave",
        "made_in",
        "name",
        "process",
        "task",
        "works_for",
    )

    def __init__(
        self,
        name: str,
        task: Any = None,
        works_for: Request | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        self.name: str = name
        self.lasting: bool = lasting
        self.task: Callable[[], Any] = _no_task if task is None else ref(task)
        #: The request whose worker threads it stands for, or None.
        self.works_for: Request | None = works_for
        #: The request below which its task began, or None.
        self.below: Request | None = None
        #: The greenlet in which its task was seen to run, by weak reference.
        self.greenlet: Callable[[], Any] = _no_task
        #: What each keeper keeps for it.
        self.kept: dict[Keeper, Any] = {}
        #: The threads in which that was made.
        self.made_in: dict[Keeper, int] = {}
        #: Called when its task has ended, where connections may be in a worker thread: it releases
        #: there what was made there, and tells whether that could be done.
        self.leave: Callable[[Owner], bool] | None = None
        self.ended: bool = False
        self.process: int = os.getpid()

    def __repr__(self) -> str:
        return f"<Owner {self.name}>"

    def keep(self, keeper: Keeper, thing: Any) -> None:
        """Keep this for the keeper, as made by this thread."""
        self.kept[keeper] = thing
        self.made_in[keeper] = threading.get_ident()
        _keeping[id(self)] = self

    def drop(self, keeper: Keeper) -> Any:
        """Keep it no longer. Returns it, or None."""
        self.made_in.pop(keeper, None)
        thing = self.kept.pop(keeper, None)
        if not self.kept:
            _keeping.pop(id(self), None)
        return thing

    def release(self, everything: bool = False) -> bool:
        """Close what this thread made; with `everything`, the rest too. Returns whether any is left.

        Nothing is raised: what goes wrong is told to the "asyncsafe" logger.
        """
        if self.kept:
            with Inside("unguarded"):
                self.let_go(everything)
        if self.ended and not self.kept:
            self.leave = None  # it holds a context, which holds this owner
        return bool(self.kept)

    def let_go(self, everything: bool) -> None:
        """As `release`, where nothing is guarded: it touches no `threading.local`."""
        if self.process != os.getpid():
            self.disown()
        here = threading.get_ident()
        for keeper, thread in tuple(self.made_in.items()):
            # Two threads may be at it: each releases what it has popped.
            if (everything or thread == here) and self.made_in.pop(keeper, None) is not None:
                try:
                    with acting_for(self, lent=False):
                        release(keeper, self.kept[keeper], self, elsewhere=thread != here)
                finally:
                    self.drop(keeper)

    def busy(self) -> bool:
        """Whether another thread works for it at this moment."""
        here = threading.get_ident()
        return any(o is self and t != here for t, o in tuple(_acting.items()))

    def disown(self) -> None:
        """In a forked child: what it keeps is the parent process's. Never close it, nor free it."""
        _of_parent.append(dict(self.kept))
        self.kept.clear()
        self.made_in.clear()
        _keeping.pop(id(self), None)

    def end(self) -> None:
        """Release everything: at once what this thread made, the rest where there is a way."""
        self.ended = True
        if self.release() and not (self.leave is not None and self.leave(self)):
            self.release(everything=True)

    def task_done(self, task: Any) -> None:
        """A callback for its task's end."""
        self.end()

    def task_lost(self) -> None:
        """A callback for its task's being freed: it may never have ended."""
        if not self.ended:
            self.end_in_new_thread()

    def end_in_new_thread(self) -> None:
        """For the garbage collector, which may have stopped this thread within the very pool that a
        connection goes back to: it would wait for its own lock.
        """
        if self.kept:
            try:
                start_new_thread(self.end, ())
            except RuntimeError:
                self.disown()  # the interpreter is about to end


class Request:
    """What ConnectionMiddleware serves: one request or connection, from its begin to its end.

    It has an owner for its task, and others for the worker threads that run for it (`to_thread`,
    FastAPI's `def` endpoints): one thread after the other goes on with the same connection; two
    at the same time have one each.
    """

    def __init__(self, name: str, task: Any) -> None:
        self.owner: Owner = Owner(name, task)
        self.owners: list[Owner] = [self.owner]
        self.ended: bool = False
        #: Which worker thread goes on with which owner: the request's own first.
        self._visits: list[tuple[Callable[[], _Visit | None], Owner]] = [(_no_task, self.owner)]
        self._before: Owner | None = None
        self._some_worker: Owner | None = None
        #: Visits that last longer than the request: their owners are released when they end.
        self._late: dict[ref[_Visit], Owner] = {}
        self._lock = threading.Lock()
        self._tokens: tuple[Token[Any], Token[Any], Token[Any]] | None = None

    def begin(self) -> None:
        """From here on, in this task and what it calls, this request is the owner."""
        if (task := self.owner.task()) is not None:
            # Also for code that the task runs in another context.
            self._before = _tasks.get(task)
            _tasks[task] = self.owner
        # Worker threads get a copy of the context.
        self._tokens = _request.set(self), _of_context.set(self.owner), _watched.set(True)

    def leave(self) -> None:
        """Back to who was the owner before."""
        assert self._tokens is not None
        task = self.owner.task()
        if task is not None and self._before is not None:
            _tasks[task] = self._before
        elif task is not None:
            _tasks.pop(task, None)
        _request.reset(self._tokens[0])
        _of_context.reset(self._tokens[1])
        _watched.reset(self._tokens[2])
        self._tokens = None  # they know the request before, of a pipeline

    def end(self) -> None:
        """It has ended: what worker threads go on with is released when they are done with it."""
        with self._lock:
            self.ended = True
            for owner in self.owners:
                owner.ended = True
                owner.leave = None  # a cycle: its context knows the owner

    def idle(self) -> list[Owner]:
        """Its owners, but for those whose worker threads are still at work."""
        with self._lock:
            for visited_by, owner in self._visits:
                if isinstance(visited_by, ref) and _at_work(visited_by()):
                    self._late[visited_by] = owner
            self._visits.clear()
            busy = list(self._late.values())
            return [owner for owner in self.owners if owner not in busy]

    def for_worker(self) -> Owner:
        """The owner for the worker thread that asks."""
        visit = _visit.get()
        if (
            visit is not None
            and visit.request is self
            and visit.thread == threading.get_ident()
            and not visit.over
        ):
            return visit.owner
        with self._lock:
            if visit is not None and visit.thread != threading.get_ident():
                visit.over = True  # asgiref has brought it back from a call that has returned
            number, owner = self._free_owner()
            visit = _Visit(self, owner)
            seen = ref(visit, partial(self._visited, owner))
            if self.ended:
                self._late[seen] = owner  # nobody may go on with it
            else:
                self._visits[number : number + 1] = [(seen, owner)]
        _visit.set(visit)
        return owner

    def some_worker(self) -> Owner:
        """Who stands for a worker thread, of which only the request is known, and not the task."""
        if self._some_worker is None:
            self._some_worker = Owner(f"a worker thread of {self.owner.name}", works_for=self)
        return self._some_worker

    def _free_owner(self) -> tuple[int, Owner]:
        """One that no thread is at work for, and its place; after the request's end, a new one."""
        if not self.ended:
            for number, (visited_by, owner) in enumerate(self._visits):
                visit = visited_by()
                if _at_work(visit) or owner.busy():
                    continue
                if visit is not None:
                    visit.over = True
                return number, owner
        owner = Owner(f"a worker thread of {self.owner.name}", works_for=self)
        owner.ended = self.ended
        if not self.ended:
            self.owners.append(owner)
        return len(self._visits), owner

    def _visited(self, owner: Owner, seen: ref[_Visit]) -> None:
        """A callback for a visit's being freed."""
        self._late.pop(seen, None)
        if self.ended:
            owner.end_in_new_thread()


class _Visit:
    """One call in a worker thread, for a request.

    `to_thread` and its like run each call in a copy of the context that ends soon after the call.
    The copy holds the only reference to the visit, so that its end is seen. But whoever awaits the
    call may go on before, and a traceback keeps the copy: `is_over` asks the thread.
    """

    __slots__ = ("__weakref__", "call", "mark", "over", "owner", "request", "thread")

    def __init__(self, request: Request, owner: Owner) -> None:
        self.request: Request = request
        self.owner: Owner = owner
        self.thread: int = threading.get_ident()
        #: What tells this visit from the thread's next one.
        self.mark: object = object()
        _latest[self.thread] = self.mark
        #: Whether somebody else has taken the owner over.
        self.over: bool = False
        #: What the thread was given to do. The frame itself would keep its variables.
        frame = _call(sys._getframe(1))
        self.call: tuple[int, Any] = id(frame), frame.f_code

    def is_over(self) -> bool:
        """Whether the thread has returned from the call."""
        if self.over or _latest.get(self.thread) is not self.mark:
            return True
        frame = sys._current_frames().get(self.thread)
        while frame is not None:
            if (id(frame), frame.f_code) == self.call:
                return False
            frame = frame.f_back
        return True


def _at_work(visit: _Visit | None) -> bool:
    # A thread does one thing at a time.
    return visit is not None and visit.thread != threading.get_ident() and not visit.is_over()


#: The last visit of each thread. A frame's id, by itself, may be another call's by now.
_latest: dict[int, object] = {}

#: Modules whose functions call in worker threads what they were given.
_POOLS = frozenset(
    {
        "anyio._backends._asyncio",
        "asgiref.current_thread_executor",
        "concurrent.futures.thread",
        "threading",
    }
)


def _call(frame: Any) -> Any:
    """The outermost frame of what a worker thread was given to do."""
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__") not in _POOLS:
        frame = frame.f_back
    return frame


class acting_for:  # noqa: N801  (used like a function)
    """While this thread works for an owner that is not it: what it makes is the owner's.

    lent: guards watch what is called meanwhile.
    """

    __slots__ = ("_outer", "_thread", "_token", "lent", "owner")

    def __init__(self, owner: Owner, *, lent: bool = True) -> None:
        self.owner: Owner = owner
        self.lent: bool = lent

    def __enter__(self) -> None:
        self._token: Token[bool | None] | None = _watched.set(True) if self.lent else None
        self._thread: int = threading.get_ident()
        self._outer: Owner | None = _acting.get(self._thread)
        _acting[self._thread] = self.owner

    def __exit__(self, *exc_info: object) -> None:
        if self._outer is not None:
            _acting[self._thread] = self._outer
        else:
            _acting.pop(self._thread, None)  # gone in a child that was forked inside
        if self._token is not None:
            _watched.reset(self._token)


def current() -> Owner:
    """Whoever runs now."""
    loop = _get_running_loop()
    if loop is None:
        return _of_other_loop() if _others else _of_thread()
    task = _current_task(loop)
    if task is None:
        return _of_thread()
    owner = _of_context.get()
    module = greenlets()
    if owner is not None and owner.task() is task:
        if module is None or owner.greenlet() is module.getcurrent():
            return owner
    elif module is None:
        return _of_task(task)
    # The loop that runs on this thread may not concern this greenlet: gevent, Playwright.
    if loops.find_running() is None:
        return _of_thread()
    owner = owner if owner is not None and owner.task() is task else _of_task(task)
    owner.greenlet = ref(module.getcurrent())
    return owner


def _of_other_loop() -> Owner:
    """In trio and the like, where asyncio is imported or not."""
    running = loops.find_running()
    task = None if running is None else loops.current_task(running)
    if task is None or (running and running[0] == "curio"):  # which doesn't tell its tasks' ends
        return _of_thread()
    owner = _of_context.get()
    return owner if owner is not None and owner.task() is task else _of_task(task)


class _TrioInstrument:
    """Told by trio what ends: its tasks may be freed much later."""

    def task_exited(self, task: Any) -> None:
        owner = _tasks.get(task)
        if owner is not None:
            owner.end()


_trio_instrument = _TrioInstrument()


def _follow_trio() -> None:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        trio.lowlevel.add_instrument(_trio_instrument)  # once for each run


def at_work() -> Owner | None:
    """As `current`, where it is known exactly: in a task, or in a thread that works for one.

    None in callbacks, and in threads that nobody lent to a task or a request through us.
    """
    if _get_running_loop() is None and (not _others or loops.find_running() is None):
        acting = _acting.get(threading.get_ident())
        if acting is not None:
            # A thread that has ended closes its connections: nobody's call.
            return None if acting.ended and acting.task is _no_task else acting
        request = _request.get()
        return None if request is None else request.some_worker()
    owner = current()
    return owner if owner.lasting or owner.task() is not None else None


def stand_for(owner: Owner, task: Any) -> None:
    """From here on, what this task makes is the owner's, who is there for longer."""
    _tasks[task] = owner


def watch_workers() -> None:
    """From now on, threads are lent to tasks: have guards watch connections there, too."""
    loops.watch_workers(_watched.get)


def end_finished() -> None:
    """End the tasks of this loop that are done, and whose callbacks the loop has yet to call.

    Who awaits a task goes on before that: without this, it could wait for a pool's connection that
    the task still has.
    """
    loop = _get_running_loop()
    if loop is None:
        return
    for owner in tuple(_keeping.values()):
        task = owner.task()
        if not owner.ended and hasattr(task, "get_loop") and task.done():
            if task.get_loop() is loop:
                owner.end()


def are_apart(one: Owner, other: Owner) -> bool:
    """Whether these are certainly two: of a request's worker threads, who knows for which task."""
    if one is other:
        return False
    for worker, owner in ((one, other), (other, one)):
        if worker.works_for is not None:
            return (
                worker.works_for not in (owner.works_for, owner.below)
                and owner not in worker.works_for.owners
            )
    return True


class _Thread(threading.local):
    own: _OfThread | None = None


_thread = _Thread()
#: Whom threads work for, by the thread's identifier. No `threading.local`: in a thread that ends,
#: that would come to life again, and never be freed.
_acting: dict[int, Owner] = {}
#: The owners that keep something.
_keeping: dict[int, Owner] = {}
#: Whether what runs in this context may be a thread that works for a task.
_watched: ContextVar[bool | None] = ContextVar("asyncsafe.watched", default=None)
_of_context: ContextVar[Owner | None] = ContextVar("asyncsafe.owner", default=None)
_request: ContextVar[Request | None] = ContextVar("asyncsafe.request", default=None)
_visit: ContextVar[_Visit | None] = ContextVar("asyncsafe.visit", default=None)
_tasks: WeakKeyDictionary[Any, Owner] = WeakKeyDictionary()
_lock = ForkSafeLock()

_get_running_loop: Callable[[], Any] = loops.nothing
_current_task: Callable[[Any], Any]
#: Whether libraries are imported that have an event loop and aren't asyncio.
_others = False


def _of_thread() -> Owner:
    acting = _acting.get(threading.get_ident())
    if acting is not None:
        return acting
    request = _request.get()
    if request is not None and _get_running_loop() is None:
        return request.for_worker()
    if _thread.own is None:
        _thread.own = _OfThread()
    return _thread.own.owner


class _OfThread:
    """In a thread's own storage, which goes when the thread ends."""

    def __init__(self) -> None:
        self.owner = Owner(f"thread {threading.current_thread().name!r}")

    def __del__(self) -> None:
        if not _at_exit and self.owner.kept:
            self.owner.ended = True
            self.owner.let_go(everything=True)


def _of_task(task: Any) -> Owner:
    with _lock:
        owner = _tasks.get(task)
        if owner is None:
            owner = _tasks[task] = Owner(f"task {_name(task)!r}", task)
            owner.below = _request.get()
            if hasattr(task, "add_done_callback"):
                task.add_done_callback(owner.task_done)
                finalize(task, owner.task_lost).atexit = False
            else:
                finalize(task, owner.end).atexit = False
                _follow_trio()
    _of_context.set(owner)
    return owner


def _name(task: Any) -> str:
    return str(task.get_name() if hasattr(task, "get_name") else getattr(task, "name", task))


def _no_task() -> None:
    """Stand in for a reference to a task where there is none."""


def release(keeper: Keeper, thing: Any, owner: Owner, elsewhere: bool = False) -> None:
    """Have its keeper close this. What goes wrong is logged."""
    try:
        keeper.release(thing)
    except Exception:
        import logging

        # sqlite3 closes in the thread that made the connection alone, or where it is freed. There
        # is no way into a thread of somebody else's pool.
        logging.getLogger("asyncsafe").log(
            logging.DEBUG if elsewhere else logging.WARNING,
            "a connection of %s could not be closed, and was dropped",
            owner.name,
            exc_info=True,
        )


def _asyncio_imported(asyncio: ModuleType) -> None:
    global _current_task, _get_running_loop
    _current_task = asyncio.current_task
    _get_running_loop = asyncio._get_running_loop


def _other_imported(module: ModuleType) -> None:
    global _others
    _others = True


when_imported("asyncio", _asyncio_imported)
for _library in ("trio", "curio.meta", "twisted.internet.main"):
    when_imported(_library, _other_imported)


# Ends of the process -------------------------------------------------------------------------

_at_exit = False
#: Connections of the process that this one was forked from: closing one, or freeing it, would
#: tell the server that the parent is gone.
_of_parent: list[Any] = []


@atexit.register
def _exiting() -> None:
    global _at_exit
    _at_exit = True


def _forked() -> None:
    """What goes on in the child is another owner, to whom the parent's connections are refused."""
    global _tasks
    request = _request.get()
    owners = {*_tasks.values(), *_acting.values(), _of_context.get()}
    if _thread.own is not None:
        owners.add(_thread.own.owner)
    if request is not None:
        owners.update(request.owners)
    for owner in owners:
        if owner is not None:
            owner.disown()
    _of_parent.extend((_tasks, _thread.own))
    _tasks = WeakKeyDictionary()
    _thread.own = None
    acting = _acting.get(threading.get_ident())
    _acting.clear()
    if acting is not None:
        _acting[threading.get_ident()] = Owner(acting.name, acting.task(), acting.works_for)
    _of_context.set(None)
    _visit.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
