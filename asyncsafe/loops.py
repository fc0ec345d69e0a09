"""The question: which event loop would this call block?

A loop that runs on this thread is necessary, not sufficient: it must be in the call chain of the
current greenlet. Playwright's synchronous API parks a loop in another greenlet, and under gevent
a sibling may run one; neither is blocked by what this greenlet does.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from weakref import WeakSet

from .callables import ASYNC_CODE
from .imports import when_imported
from .locks import ForkSafeLock
from .stacks import call_chain, greenlets, lineage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType, ModuleType
    from typing import Any, Literal

    Library = Literal["asyncio", "trio", "curio", "twisted"]
    Running = tuple[Library, Any]
    Caller = tuple[int, object, object]

#: A function written in C that takes nothing and returns None: while no library with an event
#: loop is imported, and in mode "off", the guards ask this one.
nothing: Callable[[], object | None] = [].clear

#: What the guards ask, and with it what every compiled wrapper finds in its global namespace.
#: The name is for warnings from C code, which are attributed to the frame that called it: Python
#: shows a DeprecationWarning only in __main__, and patching.py asks again in the caller's name.
namespace: dict[str, Any] = {"__name__": "__main__", "get_running_loop": nothing}

#: The wrappers, each of which has a namespace of its own.
_wrappers: WeakSet[FunctionType] = WeakSet()
#: Those of them that watch connections: they ask in threads that work for a task, too.
_watching: WeakSet[FunctionType] = WeakSet()
_works_for: Callable[[], object | None] | None = None
_watching_getter: Callable[[], object | None] = nothing
_lock = ForkSafeLock()

#: asyncio's first: it alone shows its loop, and Twisted's reactor and trio's guest mode run on it.
_checks: dict[Library, Callable[[], Any]] = dict.fromkeys(
    ("asyncio", "trio", "curio", "twisted"), nothing
)
#: Those of them that are imported.
_bound: tuple[tuple[Library, Callable[[], Any]], ...] = ()
_awake = True

#: What asyncio's own loops call for each step of a task: further out than it, there is no more of
#: the task. It is private; without it, whoever looks for the end looks further.
asyncio_step: CodeType | None = None

#: Methods of an event loop that run it (mainLoop is Twisted's).
_RUNNERS = frozenset({"run_forever", "run_until_complete", "_run_once", "mainLoop"})
_ATTRIBUTE_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})


def running_loop() -> Library | None:
    """The library whose event loop the calling code would block, or None if there is none.

    In a coroutine, a callback of the loop and everything below them: "asyncio" (whichever loop
    implements it, uvloop for one), "trio", "curio" or "twisted". In a worker thread, a plain
    script, or a greenlet beside the one that runs the loop: None.
    """
    running = find_running()
    return running[0] if running else None


def find_running() -> Running | None:
    """As `running_loop`, with the loop itself where the library has one to show."""
    for library, check in _bound:
        loop = check()
        if loop and (library != "asyncio" or greenlets() is None or _in_call_chain(loop)):
            return library, loop
    return None


def enters_loop(frame: FrameType, running: Running) -> bool:
    """Whether this frame runs a loop: what lies further out is not in it."""
    loop = running[1]
    code = frame.f_code
    if code.co_flags & ASYNC_CODE:
        return False
    if code.co_name in _RUNNERS and frame.f_locals.get("self") is loop:
        return True
    return _is_compiled(loop) and _calls_a_runner(code, frame.f_lasti)


def wake(awake: bool) -> None:
    """Have the compiled wrappers ask (True), or find nothing at the least cost (False)."""
    global _awake
    with _lock:
        if awake is not _awake:
            _awake = awake
            _bind()


def keep_bound(wrapper: FunctionType, watches: bool = False) -> None:
    """Have this wrapper ask what the guards ask, for as long as it lives.

    watches: it also asks what `watch_workers` says, once that was called.
    """
    with _lock:
        (_watching if watches else _wrappers).add(wrapper)
        wrapper.__globals__["get_running_loop"] = (
            _watching_getter if watches else namespace["get_running_loop"]
        )


def watch_workers(works_for: Callable[[], object | None]) -> None:
    """Have the wrappers that watch connections ask this, too: whether this thread may work for a task.

    Until somebody lends a thread to a task, they needn't, and it costs nothing.
    """
    global _works_for
    if _works_for is None:
        with _lock:
            _works_for = works_for
            _bind()


def current_caller(running: Running | None) -> Caller:
    """Who is running: the thread's identifier, the greenlet (or None), the task (or None)."""
    from _thread import get_ident

    greenlet = greenlets()
    return get_ident(), greenlet and greenlet.getcurrent(), current_task(running)


def current_task(running: Running | None) -> Any:
    """The task that is being executed; None in a callback and where no loop runs."""
    if running is None:
        return None
    library, loop = running
    if library == "asyncio":
        return sys.modules["asyncio"].current_task(loop)
    if library == "trio":
        lowlevel = sys.modules["trio"].lowlevel
        return lowlevel.current_task() if lowlevel.in_trio_task() else None
    if library == "curio":
        # Curio tells its current task to coroutines alone: the task's outermost frame stands for it.
        outermost = None
        for frame in call_chain(sys._getframe(1)):
            if frame.f_code.co_flags & ASYNC_CODE:
                outermost = frame
        return outermost
    return None


def count_waiting(running: Running) -> int | None:
    """How many tasks and callbacks of the loop can run, and wait for what is running. None: it doesn't tell.

    To be asked on the loop's own thread. Connections with something to read, and timers that are
    due, count where the loop can be asked for them: one task or callback waits for each (of a
    listening socket one, whatever the number of clients).
    """
    library, loop = running
    try:
        return _WAITING[library](loop)
    except Exception:  # a loop of another make, or one that has changed, must not break the call
        return None


def _waiting_in_asyncio(loop: Any) -> int | None:
    # No public name tells what is ready. asyncio's own loops keep these names since Python 3.4, and
    # so do loops derived from them.
    if not hasattr(loop, "_ready"):
        return _waiting_in_uvloop(loop) if hasattr(loop, "_get_backend_id") else None
    ready = sum(not handle.cancelled() for handle in loop._ready)
    now = loop.time()
    timers = loop._scheduled
    to_see = [0]
    while to_see:  # a heap: what is below one that isn't due isn't due either
        position = to_see.pop()
        if position < len(timers) and timers[position].when() <= now:
            ready += not timers[position].cancelled()
            to_see += (2 * position + 1, 2 * position + 2)
    selector: Any = getattr(loop, "_selector", None)
    # Asking these two changes nothing, and never waits; gevent's would switch.
    if type(selector).__name__ in {"EpollSelector", "KqueueSelector"}:
        own = loop._ssock.fileno()  # by which threads wake the loop: what they ask for is in _ready
        ready += sum(key.fd != own for key, _ in selector.select(0))
    return ready


def _waiting_in_uvloop(loop: Any) -> int:
    # uvloop shows no queue. A task can run when it waits for nothing, or for what is done.
    asyncio = sys.modules["asyncio"]
    current = asyncio.current_task(loop)
    ready: int = _readable(loop._get_backend_id())
    for task in asyncio.all_tasks(loop):
        waits_for = task._fut_waiter
        ready += task is not current and (waits_for is None or waits_for.done())
    return ready


def _readable(epoll_descriptor: int) -> int:
    """How many connections have something for the loop; on Linux, elsewhere 0."""
    import select

    if not hasattr(select, "epoll"):
        return 0
    import os

    # An object of its own, which closes its descriptor when it is freed. Asking changes nothing:
    # libuv has its descriptors level-triggered.
    with select.epoll.fromfd(os.dup(epoll_descriptor)) as epoll:
        return len(epoll.poll(0))


def _waiting_in_trio(loop: Any) -> int:
    statistics = sys.modules["trio"].lowlevel.current_statistics()
    return int(statistics.tasks_runnable + statistics.run_sync_soon_queue_size)


def _waiting_in_curio(kernel: Any) -> None:
    """It shows its kernel to its own coroutines alone."""


def _waiting_in_twisted(reactor: Any) -> int:
    now = reactor.seconds()
    due: int = sum(call.getTime() <= now for call in reactor.getDelayedCalls())
    return due + len(reactor.threadCallQueue)


_WAITING: dict[Library, Callable[[Any], int | None]] = {
    "asyncio": _waiting_in_asyncio,
    "trio": _waiting_in_trio,
    "curio": _waiting_in_curio,
    "twisted": _waiting_in_twisted,
}


def _in_call_chain(loop: Any) -> bool:
    """Whether this greenlet, or one that is its parent, entered the loop that runs on this thread.

    A coroutine on the stack, or a method that runs the loop, says yes. asyncio's own loops always
    leave such a frame. A compiled loop (uvloop) leaves none below a callback, and none at all
    where a thread's target is its `run_forever`: then it is ours unless another greenlet has it.
    """
    compiled = _is_compiled(loop)
    if any(_runs_loop(frame, loop, compiled) for frame in call_chain(sys._getframe(1))):
        return True
    return compiled and not _runs_elsewhere(loop)


def _is_compiled(loop: Any) -> bool:
    # Cython's functions have a __code__ too, but no frame.
    run_forever = getattr(type(loop), "run_forever", None)
    return run_forever is not None and not isinstance(run_forever, FunctionType)


@functools.lru_cache(maxsize=1024)
def _calls_a_runner(code: CodeType, last_instruction: int) -> bool:
    """Whether this code, there, is calling a loop's method that runs it: `x.run_forever()`."""
    if _RUNNERS.isdisjoint(code.co_names):
        return False
    import dis

    line, end_line, column, end_column = tuple(code.co_positions())[last_instruction // 2]
    if column is None:  # python -X no_debug_ranges: the name is all that is known
        return True
    # What is called, `x.run_forever`, starts where the call starts and ends last of all such.
    called: str | None = None
    called_end: tuple[Any, Any] = (0, 0)
    for instruction in dis.get_instructions(code):
        at = instruction.positions
        if instruction.opname not in _ATTRIBUTE_LOADS or at is None:
            continue
        if (at.lineno, at.col_offset) == (line, column):
            end = at.end_lineno, at.end_col_offset
            if called_end < end < (end_line, end_column):
                called, called_end = instruction.argval, end
    return called in _RUNNERS


def _runs_loop(frame: FrameType, loop: Any, compiled: bool) -> bool:
    code = frame.f_code
    if code.co_flags & ASYNC_CODE:
        return True
    if code.co_name in _RUNNERS and frame.f_locals.get("self") is loop:
        return True
    return compiled and _calls_a_runner(code, frame.f_lasti)


def _runs_elsewhere(loop: Any) -> bool:
    """Whether a greenlet of this thread that is neither this one nor a parent holds the loop."""
    greenlet = greenlets()
    if greenlet is None:
        return False
    import gc

    chain = lineage(greenlet.getcurrent())
    for other in gc.get_objects():
        # By type(): isinstance() would ask for a __class__, which makes a lazy object evaluate.
        if not issubclass(type(other), greenlet.greenlet) or other in chain:
            continue
        if lineage(other)[-1] is not chain[-1]:  # another thread's
            continue
        frame = other.gr_frame
        while frame is not None:
            if _runs_loop(frame, loop, compiled=True):
                return True
            frame = frame.f_back
    return False


def _bind() -> None:
    global _bound, _watching_getter
    _bound = tuple((library, check) for library, check in _checks.items() if check is not nothing)
    getter = nothing
    if _awake:
        for _, check in _bound:
            getter = check if getter is nothing else _either(getter, check)
    namespace["get_running_loop"] = getter
    _watching_getter = getter
    if _works_for is not None and getter is not nothing:
        _watching_getter = _either(getter, _works_for)
    for wrapper in _wrappers:
        wrapper.__globals__["get_running_loop"] = getter
    for wrapper in _watching:
        wrapper.__globals__["get_running_loop"] = _watching_getter


def _either(first: Callable[[], Any], second: Callable[[], Any]) -> Callable[[], Any]:
    def get_running_loop() -> Any:
        return first() or second()

    return get_running_loop


def _add(library: Library, check: Callable[[], Any]) -> None:
    with _lock:
        _checks[library] = check
        _bind()


def _asyncio_imported(asyncio: ModuleType) -> None:
    global asyncio_step
    asyncio_step = getattr(getattr(asyncio.Handle, "_run", None), "__code__", None)
    _add("asyncio", asyncio._get_running_loop)


def _trio_imported(trio: ModuleType) -> None:
    # Trio sets it round every run and guest tick; a tenth of the price of trio.lowlevel.in_trio_run().
    thread_local = sys.modules["sniffio"].thread_local
    _add("trio", lambda: thread_local.name)


def _curio_imported(meta: ModuleType) -> None:
    curio_running = meta.curio_running
    _add("curio", lambda: curio_running() or None)


def _twisted_imported(main: ModuleType) -> None:
    # twisted.internet.main is what every reactor's install() imports; the reactor comes after it.
    from twisted.python import threadable

    is_reactor_thread: Callable[[], bool] = threadable.isInIOThread

    def running_reactor() -> object | None:
        reactor = sys.modules.get("twisted.internet.reactor")
        if reactor is not None and getattr(reactor, "running", False) and is_reactor_thread():
            return reactor
        return None

    _add("twisted", running_reactor)


when_imported("asyncio", _asyncio_imported)
when_imported("trio", _trio_imported)
when_imported("curio.meta", _curio_imported)
when_imported("twisted.internet.main", _twisted_imported)
