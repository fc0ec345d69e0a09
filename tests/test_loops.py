"""Which event loop would this call block? Asked of the real libraries, in every situation.

What patches the process (gevent, nest_asyncio, reactors, Playwright), and what depends on what is
imported, runs in an interpreter of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asgiref.sync
import greenlet
import pytest
import trio
import trio.testing
import uvicorn

import asyncsafe
from asyncsafe import loops

from . import running

LOOPS = {"asyncio": asyncio.new_event_loop}
if sys.platform != "win32":
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


@asyncsafe.async_unsafe
def orders():
    return ["order"]


def ask():
    """What running_loop() says; a guarded function and a check must act accordingly."""
    library = asyncsafe.running_loop()
    for call in (orders, asyncsafe.check):
        refused_by = None
        try:
            call()
        except asyncsafe.SynchronousOnlyOperation as refusal:
            refused_by = refusal.violation.loop
        assert refused_by == library
    return library


async def ask_in_coroutine():
    return ask()


ASK = "import asyncsafe\n\n" + "\n\n".join(map(inspect.getsource, (orders, ask, ask_in_coroutine)))


def python(script: str) -> list[str]:
    """Run a script in an interpreter of its own: the lines that it prints."""
    return running.python(script, Path.cwd()).stdout.splitlines()


def asking(script: str) -> list[str]:
    """Run a script that has `ask` and `ask_in_coroutine`."""
    return python(ASK + "\n\n" + script)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = LOOPS[request.param]()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(params=["without greenlet", "greenlet imported"])
def with_and_without_greenlet(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the program knows: greenlet decides whether call chains are looked at."""
    if request.param == "without greenlet":
        monkeypatch.delitem(sys.modules, "greenlet")


# asyncio and uvloop: flagged ------------------------------------------------------------------


def answer_of_callback(loop: Any, schedule: Callable[[Callable[..., None]], object]) -> Any:
    """What `ask` says in a callback, which nothing but the loop calls."""
    answer = loop.create_future()

    def callback(*args: object) -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    schedule(callback)
    return loop.run_until_complete(answer)


def in_a_coroutine(loop: Any) -> Any:
    return loop.run_until_complete(ask_in_coroutine())


def in_a_task(loop: Any) -> Any:
    async def main() -> Any:
        return await asyncio.create_task(ask_in_coroutine())

    return loop.run_until_complete(main())


def in_an_async_generator(loop: Any) -> Any:
    async def answers() -> Any:
        yield ask()

    async def main() -> Any:
        return [answer async for answer in answers()].pop()

    return loop.run_until_complete(main())


def in_an_async_generator_that_the_loop_finalizes(loop: Any) -> Any:
    async def main() -> Any:
        answer = loop.create_future()

        async def generator() -> Any:
            try:
                yield
            finally:  # a guarded call is not refused here, but the loop is there
                answer.set_result(asyncsafe.running_loop())

        async for _ in generator():
            break
        return await answer

    return loop.run_until_complete(main())


def in_a_sync_function_deep_below_a_coroutine(loop: Any) -> Any:
    def below(depth: int) -> Any:
        return below(depth - 1) if depth else ask()

    async def main() -> Any:
        return next(map(below, [300]))  # C code on the way

    return loop.run_until_complete(main())


def in_a_coroutine_that_a_thread_sends_back(loop: Any) -> Any:
    async def main() -> Any:
        return await asgiref.sync.sync_to_async(asgiref.sync.async_to_sync(ask_in_coroutine))()

    return loop.run_until_complete(main())


def in_call_soon(loop: Any) -> Any:
    return answer_of_callback(loop, loop.call_soon)


def in_call_later(loop: Any) -> Any:
    return answer_of_callback(loop, lambda callback: loop.call_later(0.001, callback))


def in_call_soon_threadsafe_from_a_thread(loop: Any) -> Any:
    def schedule(callback: Callable[..., None]) -> None:
        threading.Thread(target=loop.call_soon_threadsafe, args=[callback]).start()

    return answer_of_callback(loop, schedule)


def in_a_done_callback(loop: Any) -> Any:
    async def nothing() -> None:
        pass

    return answer_of_callback(
        loop, lambda callback: loop.create_task(nothing()).add_done_callback(callback)
    )


def in_a_protocol(loop: Any) -> Any:
    reader, writer = socket.socketpair()
    transports = []

    def schedule(callback: Callable[..., None]) -> None:
        class Protocol(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                callback()

        transport, _ = loop.run_until_complete(loop.create_connection(Protocol, sock=reader))
        transports.append(transport)
        writer.send(b"an order")

    with writer:
        answer = answer_of_callback(loop, schedule)
        transports[0].close()
        loop.run_until_complete(asyncio.sleep(0))
    return answer


def in_a_signal_handler_of_the_loop(loop: Any) -> Any:
    def schedule(callback: Callable[..., None]) -> None:
        loop.add_signal_handler(signal.SIGUSR1, callback)
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)

    try:
        return answer_of_callback(loop, schedule)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


ON_THE_LOOP = [
    in_a_coroutine,
    in_a_task,
    in_an_async_generator,
    in_an_async_generator_that_the_loop_finalizes,
    in_a_sync_function_deep_below_a_coroutine,
    in_a_coroutine_that_a_thread_sends_back,
    in_call_soon,
    in_call_later,
    in_call_soon_threadsafe_from_a_thread,
    in_a_done_callback,
    in_a_protocol,
    pytest.param(
        in_a_signal_handler_of_the_loop,
        marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
    ),
]


@pytest.mark.usefixtures("with_and_without_greenlet")
@pytest.mark.parametrize("situation", ON_THE_LOOP)
def test_what_the_loop_runs_is_flagged(situation: Callable[[Any], Any], loop: Any) -> None:
    assert situation(loop) == "asyncio"


@pytest.mark.parametrize("situation", ON_THE_LOOP)
def test_what_a_loop_runs_in_a_greenlet_is_flagged(
    situation: Callable[[Any], Any], loop: Any
) -> None:
    assert greenlet.greenlet(situation).switch(loop) == "asyncio"


@pytest.mark.usefixtures("with_and_without_greenlet")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_an_eager_task_is_flagged_in_its_first_step_and_later(loop: Any) -> None:
    async def twice() -> list[Any]:
        first = ask()
        await asyncio.sleep(0)
        return [first, ask()]

    async def main() -> list[Any]:
        return await asyncio.Task(twice(), loop=loop, eager_start=True)

    assert loop.run_until_complete(main()) == ["asyncio", "asyncio"]


@pytest.mark.parametrize("with_greenlet", [False, True], ids=["without greenlet", "with greenlet"])
def test_a_loop_nested_by_nest_asyncio_is_flagged_and_so_is_the_outer_one(
    with_greenlet: bool,
) -> None:
    answers = asking(f"""
import asyncio, nest_asyncio
{"import greenlet" if with_greenlet else ""}
nest_asyncio.apply()

async def outer():
    print(asyncio.run(ask_in_coroutine()))
    asyncio.get_running_loop().call_soon(lambda: print(ask()))
    await asyncio.sleep(0)
    print(ask())

asyncio.run(outer())
print(ask())
""")
    assert answers == ["asyncio", "asyncio", "asyncio", "None"]


@pytest.mark.usefixtures("with_and_without_greenlet")
def test_a_module_that_a_server_imports_in_its_loop_is_flagged_and_named(
    loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_settings.py").write_text("import asyncsafe\nasyncsafe.check('settings')\n")
    (tmp_path / "shop_asgi.py").write_text("import shop_settings\n\nasync def app(*args): ...\n")
    monkeypatch.syspath_prepend(tmp_path)

    async def serve() -> None:
        uvicorn.Config("shop_asgi:app").load()

    with pytest.raises(asyncsafe.SynchronousOnlyOperation, match="while importing shop_settings"):
        loop.run_until_complete(serve())
    assert "shop_settings" not in sys.modules


# asyncio and uvloop: other threads and after the loop -------------------------------------------


async def to_thread() -> Any:
    return await asyncio.to_thread(ask)


async def default_executor() -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, ask)


async def own_executor() -> Any:
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, ask)


async def sync_to_async() -> Any:
    return await asgiref.sync.sync_to_async(ask)()


async def sync_to_async_of_any_thread() -> Any:
    return await asgiref.sync.sync_to_async(ask, thread_sensitive=False)()


async def database_sync_to_async() -> Any:
    return await asyncsafe.database_sync_to_async(ask)()


async def greenlet_in_a_thread() -> Any:
    return await asyncio.to_thread(greenlet.greenlet(ask).switch)


@pytest.mark.usefixtures("with_and_without_greenlet")
@pytest.mark.parametrize(
    "thread",
    [
        to_thread,
        default_executor,
        own_executor,
        sync_to_async,
        sync_to_async_of_any_thread,
        database_sync_to_async,
    ],
)
def test_a_worker_thread_is_not_flagged(thread: Callable[[], Any], loop: Any) -> None:
    assert loop.run_until_complete(thread()) is None


@pytest.mark.usefixtures("with_and_without_greenlet")
def test_plain_code_is_not_flagged_before_and_after_a_loop(loop: Any) -> None:
    before = ask()
    loop.run_until_complete(ask_in_coroutine())

    assert (before, ask()) == (None, None)


@pytest.mark.usefixtures("with_and_without_greenlet")
def test_a_thread_whose_target_is_run_forever_is_flagged(loop: Any) -> None:
    answers = []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    answers.append(asyncio.run_coroutine_threadsafe(ask_in_coroutine(), loop).result())
    loop.call_soon_threadsafe(lambda: answers.append(ask()))
    loop.call_soon_threadsafe(loop.stop)
    main_thread = ask()
    thread.join()

    assert answers == ["asyncio", "asyncio"]
    assert main_thread is None


# greenlets ------------------------------------------------------------------------------------


def below_a_coroutine(loop: Any, function: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return function()

    return loop.run_until_complete(main())


def test_a_greenlet_below_a_coroutine_is_flagged(loop: Any) -> None:
    def grandchild() -> Any:
        return greenlet.greenlet(ask).switch()

    assert below_a_coroutine(loop, greenlet.greenlet(ask).switch) == "asyncio"
    assert below_a_coroutine(loop, lambda: greenlet.greenlet(grandchild).switch()) == "asyncio"


def test_a_greenlet_below_a_callback_is_flagged(loop: Any) -> None:
    def schedule(callback: Callable[..., None]) -> None:
        loop.call_soon(lambda: greenlet.greenlet(callback).switch())

    assert answer_of_callback(loop, schedule) == "asyncio"


def test_a_greenlet_of_sqlalchemy_is_flagged_before_and_after_it_awaits(loop: Any) -> None:
    from sqlalchemy.util import await_only, greenlet_spawn

    def run_sync() -> list[Any]:
        first = ask()
        await_only(asyncio.sleep(0))
        return [first, ask()]

    assert loop.run_until_complete(greenlet_spawn(run_sync)) == ["asyncio", "asyncio"]


class Parked:
    """A loop that has come to a stop in a greenlet of its own, as Playwright's does."""

    def __init__(self, loop: Any, where: str) -> None:
        self.loop = loop
        self.plain = greenlet.getcurrent()
        self.greenlet = greenlet.greenlet(getattr(self, f"run_{where}"))

    def run_in_a_coroutine(self) -> None:
        async def main() -> None:
            self.plain.switch()

        self.loop.run_until_complete(main())

    def run_in_a_callback(self) -> None:
        self.loop.call_soon(self.plain.switch)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def __enter__(self) -> None:
        self.greenlet.switch()
        assert asyncio._get_running_loop() is self.loop

    def __exit__(self, *exc_info: object) -> None:
        self.greenlet.switch()
        assert asyncio._get_running_loop() is None


parked = pytest.mark.parametrize("where", ["in_a_coroutine", "in_a_callback"])


@parked
def test_plain_code_beside_a_parked_loop_is_not_flagged(loop: Any, where: str) -> None:
    with Parked(loop, where):
        assert ask() is None
        assert greenlet.greenlet(ask).switch() is None


def test_a_loop_parked_by_a_method_named_as_the_loop_s_own_is_seen(loop: Any) -> None:
    class Server(Parked):
        def run_forever(self) -> None:
            self.loop.call_soon(self.plain.switch)
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    with Server(loop, "forever"):
        assert ask() is None


@parked
@pytest.mark.parametrize("new_loop", list(LOOPS.values()), ids=LOOPS)
def test_a_parked_loop_does_not_hide_the_loop_of_another_thread(
    loop: Any, where: str, new_loop: Callable[[], Any]
) -> None:
    other = new_loop()
    answers: list[Any] = []
    other.call_soon(lambda: answers.append(ask()))
    other.call_soon(other.stop)
    with Parked(loop, where):
        thread = threading.Thread(target=other.run_forever)
        thread.start()
        thread.join()
        assert ask() is None
    other.close()

    assert answers == ["asyncio"]


@parked
def test_code_that_names_the_loop_s_methods_but_calls_others_is_plain(
    loop: Any, where: str
) -> None:
    class Shop:
        def run_forever(self) -> Any:
            return self

        def ask(self) -> Any:
            return ask()

    target = loop.run_forever
    with Parked(loop, where):
        assert ask() is None
        assert Shop().run_forever().ask() is None
        assert target


@parked
def test_looking_for_the_greenlet_that_holds_the_loop_evaluates_no_lazy_object(
    loop: Any, where: str
) -> None:
    asked = []

    class Lazy:
        @property
        def __class__(self) -> type:
            asked.append("a query")
            return str

    lazy = Lazy()
    lazy.itself = lazy  # so that the garbage collector knows it
    with Parked(loop, where):
        assert ask() is None
    assert asked == []


def test_greenlets_that_wait_do_not_hide_the_loop(loop: Any) -> None:
    answers: list[Any] = []

    def callback() -> None:
        me = greenlet.getcurrent()
        waiting = greenlet.greenlet(lambda: me.switch())
        waiting.switch()
        answers.append(ask())
        waiting.switch()

    loop.call_soon(callback)
    loop.call_soon(loop.stop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    thread.join()

    assert answers == ["asyncio"]


@pytest.mark.parametrize("policy", ["", "import uvloop; uvloop.install()"], ids=LOOPS)
def test_plain_code_beside_playwright_is_not_flagged_what_its_loop_runs_is(policy: str) -> None:
    answers = asking(f"""
{policy}
import asyncio
from playwright.sync_api import sync_playwright

playwright = sync_playwright().start()
loop = asyncio._get_running_loop()
print(type(loop).__module__.partition(".")[0], ask())
loop.call_soon(lambda: print("callback", ask()))
print("coroutine", playwright._sync(ask_in_coroutine()))  # as its API's methods do
print("plain", asyncio._get_running_loop() is loop, ask())
playwright.stop()
print("stopped", ask())
""")
    assert answers == [
        f"{'uvloop' if policy else 'asyncio'} None",
        "callback asyncio",
        "coroutine asyncio",
        "plain True None",
        "stopped None",
    ]


# gevent ---------------------------------------------------------------------------------------

GEVENT = """
from gevent import monkey; monkey.patch_all()
import asyncio, gevent
from gevent.event import Event
"""


def test_plain_code_is_not_flagged_while_a_sibling_s_loop_is_idle() -> None:
    answers = asking(f"""{GEVENT}
idle = Event()

async def serve():
    global loop, stop
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.call_soon(idle.set)
    await stop.wait()
    print("loop", ask())

sibling = gevent.spawn(asyncio.run, serve())
idle.wait()
print("beside", asyncio._get_running_loop() is loop, asyncio.current_task(loop), ask())
print("spawned", gevent.spawn(ask).get())
loop.call_soon_threadsafe(stop.set)
sibling.get()
""")
    assert answers == ["beside True None None", "spawned None", "loop asyncio"]


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
def test_plain_code_is_not_flagged_while_a_sibling_s_task_is_in_mid_step(run: str) -> None:
    answers = asking(f"""{GEVENT}
{"import uvloop" if run == "uvloop.run" else ""}
in_step, go_on = Event(), Event()

async def serve():
    global loop
    loop = asyncio.get_running_loop()
    in_step.set()
    go_on.wait()
    print("loop", ask())

sibling = gevent.spawn({run}, serve())
in_step.wait()
print("beside", asyncio.current_task(loop) is not None, asyncio._get_running_loop() is loop, ask())
print("spawned", gevent.spawn(ask).get())
go_on.set()
sibling.get()
""")
    assert answers == ["beside True True None", "spawned None", "loop asyncio"]


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
def test_a_greenlet_of_gevent_for_which_a_coroutine_waits_is_flagged(run: str) -> None:
    answers = asking(f"""{GEVENT}
{"import uvloop" if run == "uvloop.run" else ""}
async def main():
    return gevent.spawn(ask).get()

print({run}(main()))
print(gevent.spawn(ask).get())
""")
    assert answers == ["asyncio", "None"]


# trio, curio, Twisted ---------------------------------------------------------------------------


def test_trio_is_flagged_without_asyncio_being_imported() -> None:
    answers = asking("""
import sys, trio

async def main():
    print("coroutine", ask())
    print("thread", await trio.to_thread.run_sync(ask))
    print("back", await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(ask)))
    called = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(lambda: (print("callback", ask()), called.set()))
    await called.wait()

print("before", ask())
trio.run(main)
print("after", ask())
print("asyncio" in sys.modules)
""")
    assert answers == [
        "before None",
        "coroutine trio",
        "thread None",
        "back trio",
        "callback trio",
        "after None",
        "False",
    ]


def test_a_guest_run_of_trio_is_flagged_and_its_host_between_the_ticks_is_not() -> None:
    answers = asking("""
import queue, trio

host, done = queue.Queue(), []

async def guest():
    await trio.sleep(0)
    print("guest", ask())

trio.lowlevel.start_guest_run(
    guest, run_sync_soon_threadsafe=host.put, done_callback=done.append
)
beside = {ask()}
while not done:
    host.get()()
    beside.add(ask())
done[0].unwrap()
print("host", beside)
""")
    assert answers == ["guest trio", "host {None}"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="curio 1.6 can't be imported from 3.12 on")
def test_curio_is_flagged() -> None:
    answers = asking("""
import curio

async def main():
    print("coroutine", ask())
    print("thread", await curio.run_in_thread(ask))
    task = await curio.spawn(ask_in_coroutine)
    print("task", await task.join())

curio.run(main)
print("after", ask())
""")
    assert answers == ["coroutine curio", "thread None", "task curio", "after None"]


TWISTED = """
from twisted.internet import defer, protocol, reactor, task, threads

class Client(protocol.ProcessProtocol):
    def outReceived(self, data):
        print("protocol", ask())
    def processEnded(self, reason):
        ended.callback(None)

async def main():
    global ended
    print("coroutine", ask())
    await task.deferLater(reactor, 0)
    print("later", ask())
    print("thread", await threads.deferToThread(ask))
    ended = defer.Deferred()
    reactor.spawnProcess(Client(), "/bin/echo", ["echo"])
    await ended
    reactor.stop()

print("before", ask())
reactor.callWhenRunning(lambda: print("starting", ask()))
reactor.callLater(0, lambda: print("callback", ask()))
reactor.callLater(0, lambda: defer.ensureDeferred(main()))
reactor.run()
print("after", ask())
"""


def twisted_answers(library: str) -> list[str]:
    return [
        "before None",
        "starting twisted",
        f"callback {library}",
        f"coroutine {library}",
        f"later {library}",
        "thread None",
        f"protocol {library}",
        "after None",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="runs /bin/echo")
@pytest.mark.parametrize("first", ["", "import greenlet, asyncio"], ids=["alone", "with greenlet"])
def test_twisted_is_flagged(first: str) -> None:
    assert asking(first + TWISTED) == twisted_answers("twisted")


@pytest.mark.skipif(sys.platform == "win32", reason="runs /bin/echo")
@pytest.mark.parametrize("first", ["", "import greenlet"], ids=["alone", "with greenlet"])
def test_twisted_on_asyncio_is_flagged_as_asyncio(first: str) -> None:
    install = "\nfrom twisted.internet import asyncioreactor; asyncioreactor.install()"
    assert asking(first + install + TWISTED) == twisted_answers("asyncio")


# What is imported, and when ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["asyncsafe", "asyncio", "trio"])), ids=" ".join
)
def test_the_order_of_imports_does_not_matter(order: tuple[str, ...]) -> None:
    answers = python(f"""
import {", ".join(order)}

async def main():
    return asyncsafe.running_loop()

print(asyncsafe.running_loop(), asyncio.run(main()), trio.run(main))
""")
    assert answers == ["None asyncio trio"]


@pytest.mark.parametrize(
    "order",
    list(itertools.permutations(["asyncsafe", "twisted.internet.reactor", "uvloop"])),
    ids=" ".join,
)
def test_the_order_of_imports_does_not_matter_to_a_reactor(order: tuple[str, ...]) -> None:
    answers = python(f"""
import {", ".join(order)}

async def main():
    return asyncsafe.running_loop()

reactor = twisted.internet.reactor
reactor.callWhenRunning(lambda: (print(asyncsafe.running_loop()), reactor.stop()))
reactor.run()
print(asyncsafe.running_loop(), uvloop.run(main()))
""")
    assert answers == ["twisted", "None asyncio"]


def test_asyncsafe_does_not_import_asyncio() -> None:
    answers = asking("""
import sys

@asyncsafe.async_unsafe
def items():
    yield 1

@asyncsafe.async_unsafe("not here")
class Shop:
    def open(self): ...

print(ask(), list(items()), Shop().open())
with asyncsafe.allow("asyncio is not there"), asyncsafe.forbid():
    print(ask())
print(sorted({"asyncio", "asgiref", "greenlet", "trio"} & sys.modules.keys()))
""")
    assert answers == ["None [1] None", "None", "[]"]


def test_a_function_decorated_before_asyncio_is_imported_is_refused_from_then_on() -> None:
    answers = asking("""
import sys

print("asyncio" in sys.modules, orders())
import asyncio
print(orders(), asyncio.run(ask_in_coroutine()))
""")
    assert answers == ["False ['order']", "['order'] asyncio"]


def test_libraries_imported_while_a_loop_runs_do_not_hide_it() -> None:
    answers = asking("""
import asyncio

async def main():
    import greenlet, trio, uvloop, twisted.internet.reactor
    print(ask())
    asyncio.get_running_loop().call_soon(lambda: print(ask()))
    await asyncio.sleep(0)

asyncio.run(main())
""")
    assert answers == ["asyncio", "asyncio"]


# Who waits ---------------------------------------------------------------------------------------


def running_now() -> loops.Running:
    running = loops.find_running()
    assert running is not None
    return running


def nothing_to_do() -> None: ...


async def wait_for(event: Any) -> None:
    await event.wait()


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_tasks_and_callbacks_that_can_run_are_counted(loop_factory: Any) -> None:
    """It reads private names of the loops: this fails where one of them goes away."""

    async def main() -> list[int | None]:
        event = asyncio.Event()
        tasks = [asyncio.create_task(wait_for(event)) for _ in range(5)]
        counted = [loops.count_waiting(running_now())]  # all have still to begin
        await asyncio.sleep(0)
        counted.append(loops.count_waiting(running_now()))  # all wait for the event
        event.set()
        counted.append(loops.count_waiting(running_now()))  # all can go on
        await asyncio.gather(*tasks)
        counted.append(loops.count_waiting(running_now()))
        return counted

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == [5, 0, 5, 0]


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_connections_with_something_to_read_are_counted(loop_factory: Any) -> None:
    async def main() -> list[int | None]:
        pairs = [socket.socketpair() for _ in range(4)]
        streams = []
        for ours, _ in pairs:
            ours.setblocking(False)
            streams.append(await asyncio.open_connection(sock=ours))
        readers = [asyncio.create_task(reader.read(1)) for reader, _ in streams]
        await asyncio.sleep(0.01)  # the loop has asked the system once for all of them
        counted = [loops.count_waiting(running_now())]
        for _, theirs in pairs[1:]:
            theirs.send(b"x")
        counted.append(loops.count_waiting(running_now()))
        # Asking has taken nothing away.
        counted.append(loops.count_waiting(running_now()))
        pairs[0][1].send(b"x")
        await asyncio.gather(*readers)
        for (_, writer), (_, theirs) in zip(streams, pairs, strict=True):
            writer.close()
            theirs.close()
        return counted

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == [0, 3, 3]


def test_timers_that_are_due_are_counted_and_cancelled_ones_are_not() -> None:
    async def main() -> list[int | None]:
        loop = asyncio.get_running_loop()
        now = loop.time()
        handles = [loop.call_at(now + part / 1e6, nothing_to_do) for part in range(20)]
        handles += [loop.call_at(now + 3600, nothing_to_do) for _ in range(50)]
        while loop.time() < now + 1e-4:
            pass
        counted = [loops.count_waiting(running_now())]
        for handle in handles[5:10] + handles[30:40]:
            handle.cancel()
        soon = loop.call_soon(nothing_to_do)
        loop.call_soon(nothing_to_do)
        soon.cancel()
        counted.append(loops.count_waiting(running_now()))
        return counted

    assert asyncio.run(main()) == [20, 16]


def test_what_threads_ask_for_counts_once() -> None:
    """They wake the loop by a socket of its own, which then has something to read."""

    async def main() -> int | None:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(nothing_to_do,))
        thread.start()
        thread.join()
        return loops.count_waiting(running_now())

    assert asyncio.run(main()) == 1


def test_trio_tells_its_runnable_tasks() -> None:
    async def main() -> list[int | None]:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait_for, event)
            counted = [loops.count_waiting(running_now())]
            await trio.testing.wait_all_tasks_blocked()
            counted.append(loops.count_waiting(running_now()))
            event.set()
            counted.append(loops.count_waiting(running_now()))
        return counted

    assert trio.run(main) == [3, 0, 3]


def test_twisted_tells_its_calls_that_are_due(tmp_path: Path) -> None:
    code = """
from twisted.internet import reactor
from asyncsafe import loops

def count():
    for _ in range(3):
        reactor.callLater(0, int)
    reactor.callLater(3600, int)
    reactor.callFromThread(int)
    print(loops.count_waiting(loops.find_running()))
    reactor.stop()

reactor.callWhenRunning(count)
reactor.run()
"""
    assert running.python(code, tmp_path).stdout == "4\n"


def test_a_loop_that_does_not_tell_breaks_nothing() -> None:
    assert loops.count_waiting(("asyncio", object())) is None
    assert loops.count_waiting(("asyncio", None)) is None
    assert loops.count_waiting(("curio", True)) is None
