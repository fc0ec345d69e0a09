"""Start-up and shutdown of ASGI servers: what is below a `lifespan`, what isn't, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import fastapi
import jsonschema
import pytest
import starlette.testclient
import trio
import uvloop
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import asyncsafe
from asyncsafe import (
    SynchronousOnlyOperation,
    allow,
    async_unsafe,
    configure,
    forbid,
    loops,
    policy,
)

from .test_cli import SCHEMA, command

made: list[str] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


@async_unsafe
def query(name: str) -> str:
    made.append(name)
    return name


def phases(heard: list[asyncsafe.Violation]) -> dict[str, str | None]:
    """The phase of each violation, by the function that made the call. In each it is the same."""
    found: dict[str, str | None] = {}
    for violation in heard:
        name = violation.call_site.function.rpartition(".")[2]
        assert found.setdefault(name, violation.phase) == violation.phase
    return found


# Applications: what each framework makes of a lifespan -------------------------------------------


def create() -> None:
    query("create")


def dispose() -> None:
    query("dispose")


async def poll() -> None:
    """A task that start-up leaves behind: it runs while requests are served."""
    while True:
        query("poll")
        await asyncio.sleep(0.001)


async def show(request: Any = None) -> PlainTextResponse:
    query("show")
    await asyncio.sleep(0.005)
    return PlainTextResponse("shown")


@asynccontextmanager
async def lifespan(app: Any) -> Any:
    create()
    task = asyncio.create_task(poll())
    yield
    task.cancel()
    dispose()


def starlette_lifespan() -> Any:
    return Starlette(routes=[Route("/", show)], lifespan=lifespan)


def fastapi_lifespan() -> Any:
    app = fastapi.FastAPI(lifespan=lifespan)
    app.get("/")(show)
    return app


def fastapi_lifespan_of_a_router() -> Any:
    app = fastapi.FastAPI()
    app.include_router(fastapi.APIRouter(lifespan=lifespan))
    app.get("/")(show)
    return app


def fastapi_on_event() -> Any:
    """Synchronous handlers, which FastAPI calls on the loop."""
    app = fastapi.FastAPI()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        app.on_event("startup")(create)
        app.on_event("shutdown")(dispose)

        @app.on_event("startup")
        async def start() -> None:
            app.state.task = asyncio.create_task(poll())

        @app.on_event("shutdown")
        def stop() -> None:
            app.state.task.cancel()

    app.get("/")(show)
    return app


def fastapi_on_startup() -> Any:
    task: list[Any] = []

    async def start() -> None:
        task.append(asyncio.create_task(poll()))

    app = fastapi.FastAPI(
        on_startup=[create, start], on_shutdown=[lambda: task[0].cancel(), dispose]
    )
    app.get("/")(show)
    return app


def raw() -> Any:
    """As the specification shows it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    create()
                    task = asyncio.create_task(poll())
                    await send({"type": "lifespan.startup.complete"})
                elif message["type"] == "lifespan.shutdown":
                    task.cancel()
                    dispose()
                    await send({"type": "lifespan.shutdown.complete"})
                    return
        else:
            await (await show())(scope, receive, send)

    return app


def raw_with_other_names() -> Any:
    """The scope is the server's word; an application may have another for it."""
    inner = raw()

    async def app(s: Any, r: Any, answer: Any) -> None:
        await inner(s, r, answer)

    return app


def in_middleware() -> Any:
    inner = fastapi_lifespan()

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            assert message["type"] != "lifespan.startup.failed"
            await send(message)

        await inner(scope, receive, wrapped)

    return middleware


APPLICATIONS: list[Callable[[], Any]] = [
    starlette_lifespan,
    fastapi_lifespan,
    fastapi_lifespan_of_a_router,
    fastapi_on_event,
    fastapi_on_startup,
    raw,
    raw_with_other_names,
    in_middleware,
]


def served(app: Any, **options: Any) -> None:
    """By Starlette's TestClient: start-up, a request, shutdown."""
    with starlette.testclient.TestClient(app, **options) as client:
        assert client.get("/").text == "shown"


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_start_up_and_shutdown_are_told(
    application: Callable[[], Any], use_uvloop: bool, heard: list[asyncsafe.Violation]
) -> None:
    configure(mode="record")
    served(application(), backend_options={"use_uvloop": use_uvloop})
    assert phases(heard) == {"create": "startup", "poll": None, "show": None, "dispose": "shutdown"}


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda a: a.__name__)
def test_mode_raise_lets_them_through_and_nothing_else(
    application: Callable[[], Any], heard: list[asyncsafe.Violation]
) -> None:
    with starlette.testclient.TestClient(application()) as client:
        with pytest.raises(SynchronousOnlyOperation):
            client.get("/")
    assert made == ["create", "dispose"]
    assert {(v.phase, v.outcome) for v in heard} == {
        ("startup", "recorded"),
        (None, "raised"),
        ("shutdown", "recorded"),
    }


def test_under_trio(heard: list[asyncsafe.Violation]) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        async with trio.open_nursery() as nursery:
            create()
            nursery.start_soon(work)
            yield
            nursery.cancel_scope.cancel()
        dispose()

    async def work() -> None:
        query("work")

    async def show(request: Any) -> PlainTextResponse:
        query("show")
        await trio.sleep(0.005)
        return PlainTextResponse("shown")

    configure(mode="record")
    served(Starlette(routes=[Route("/", show)], lifespan=lifespan), backend="trio")
    assert phases(heard) == {"create": "startup", "work": None, "show": None, "dispose": "shutdown"}


# What isn't start-up -----------------------------------------------------------------------------


def test_callbacks_that_start_up_leaves_behind_are_none_of_it(
    heard: list[asyncsafe.Violation],
) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        asyncio.get_running_loop().call_soon(query, "callback")
        yield

    configure(mode="record")
    served(Starlette(routes=[Route("/", show)], lifespan=lifespan))
    assert sorted((v.phase, v.coroutine is None) for v in heard if v.phase) == []
    assert made == ["callback", "show"]


def test_an_application_that_goes_on_in_its_lifespan_task_is_serving(
    heard: list[asyncsafe.Violation],
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await (await show())(scope, receive, send)
            return
        message = await receive()
        create()
        await send({"type": "lifespan.startup.complete"})
        shutdown = asyncio.ensure_future(receive())
        while not shutdown.done():
            query("meanwhile")
            await asyncio.sleep(0.001)
        message = shutdown.result()
        dispose()
        await send({"type": message["type"] + ".complete"})

    configure(mode="record")
    served(app)
    assert phases(heard) == {"create": "startup", "app": None, "show": None, "dispose": "shutdown"}


def test_a_request_that_start_up_tries_out_is_start_up(heard: list[asyncsafe.Violation]) -> None:
    async def nothing(*args: Any) -> Any:
        return {"type": "http.request"}

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await app(scope, nothing, nothing)
        yield

    configure(mode="record")
    with starlette.testclient.TestClient(Starlette(routes=[Route("/", show)], lifespan=lifespan)):
        pass
    assert phases(heard) == {"show": "startup"}


def test_a_request_that_starts_another_application_is_a_request(
    heard: list[asyncsafe.Violation],
) -> None:
    """Others wait for it, whatever it does."""
    other = starlette_lifespan()

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None: ...

    async def start(request: Any) -> PlainTextResponse:
        await other({"type": "lifespan", "state": {}}, receive, send)
        return PlainTextResponse("shown")

    configure(mode="record")
    served(Starlette(routes=[Route("/", start)]))
    assert set(phases(heard).values()) == {None}
    assert {"create", "dispose"} <= set(phases(heard))


def test_an_application_that_ends_while_another_starts_is_start_up(
    heard: list[asyncsafe.Violation],
) -> None:
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(messages)}

    async def send(message: Any) -> None: ...

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        await raw()({"type": "lifespan"}, receive, send)
        yield

    configure(mode="record")
    with starlette.testclient.TestClient(Starlette(lifespan=lifespan)):
        pass
    assert phases(heard) == {"create": "startup", "dispose": "startup"}


def test_asyncio_has_what_ends_the_search_early() -> None:
    assert loops.asyncio_step is asyncio.Handle._run.__code__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "scope",
    [{"type": "repository"}, {"type": ["lifespan"]}, {}, None, "lifespan", {"lifespan": "type"}],
    ids=repr,
)
def test_other_things_that_are_called_scope(scope: Any, heard: list[asyncsafe.Violation]) -> None:
    async def load(scope: Any) -> None:
        query("load")

    async def server(scope: Any, inner: Any) -> None:
        await load(inner)

    configure(mode="record")
    asyncio.run(load(scope))
    asyncio.run(server({"type": "lifespan"}, scope))
    assert [violation.phase for violation in heard] == [None, "startup"]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_start_up_runs_has_tasks_of_its_own(
    new_loop: Any, heard: list[asyncsafe.Violation]
) -> None:
    """As nest_asyncio and asgiref's async_to_sync do: that loop's tasks aren't the server's."""

    async def task() -> None:
        query("task")

    def run_nested() -> None:
        outer = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        loop = new_loop()
        try:
            loop.run_until_complete(task())
        finally:
            loop.close()
            asyncio._set_running_loop(outer)

    async def server(scope: Any) -> None:
        run_nested()
        create()

    configure(mode="record")
    asyncio.run(server({"type": "lifespan"}))
    assert phases(heard) == {"task": None, "create": "startup"}


def test_below_a_greenlet_it_is_start_up(heard: list[asyncsafe.Violation]) -> None:
    """SQLAlchemy's run_sync(metadata.create_all) on a synchronous driver."""
    import greenlet

    def step(coroutine: Any) -> None:
        """A coroutine that a greenlet takes a step of, without a task."""
        with pytest.raises(StopIteration):
            coroutine.send(None)

    async def work() -> None:
        query("work")

    async def server(scope: Any) -> None:
        greenlet.greenlet(create).switch()
        greenlet.greenlet(step).switch(work())

    configure(mode="record")
    asyncio.run(server({"type": "lifespan"}))
    assert phases(heard) == {"create": "startup", "work": "startup"}


def test_in_a_thread_nothing_is_blocked(heard: list[asyncsafe.Violation]) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        await asyncio.to_thread(create)
        yield
        await asyncio.to_thread(dispose)

    with starlette.testclient.TestClient(Starlette(lifespan=lifespan)):
        pass
    assert (made, heard) == (["create", "dispose"], [])


# What becomes of it -------------------------------------------------------------------------------


async def starting(call: Callable[[], Any]) -> Any:
    async def server(scope: Any) -> Any:
        return call()

    return await server({"type": "lifespan"})


def outcome(mode: Any, startup: Any, scope: Any = None) -> str:
    """What becomes of a call during start-up."""
    outcomes: list[str] = []
    unsubscribe = asyncsafe.violations.subscribe(lambda v: outcomes.append(v.outcome))
    configure(mode=mode, startup=startup)

    def call() -> None:
        with scope or contextlib.nullcontext():
            create()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asyncio.run(starting(call))
    except SynchronousOnlyOperation:
        assert made == []
    else:
        assert made == ["create"]
    finally:
        unsubscribe()
    return outcomes[0] if outcomes else "nothing"


@pytest.mark.parametrize(
    ("mode", "startup", "expected"),
    [
        ("raise", None, "recorded"),
        ("raise", "record", "recorded"),
        ("raise", "off", "nothing"),
        ("raise", "raise", "raised"),
        ("warn", "record", "recorded"),
        ("warn", "off", "nothing"),
        ("warn", "raise", "warned"),
        ("record", "record", "recorded"),
        ("record", "off", "nothing"),
        ("record", "raise", "recorded"),
        ("off", "record", "nothing"),
        ("off", "off", "nothing"),
        ("off", "raise", "nothing"),
    ],
)
def test_the_setting_lets_through_and_never_refuses_what_the_mode_allows(
    mode: str, startup: str | None, expected: str
) -> None:
    assert outcome(mode, startup) == expected


@pytest.mark.parametrize("startup", ["record", "raise", "off"])
def test_forbid_and_allow_are_stronger(startup: str) -> None:
    assert outcome("raise", startup, forbid()) == "raised"
    assert outcome("raise", startup, allow("tables")) == "allowed"


@pytest.mark.parametrize("startup", ["record", "raise", "off"])
def test_the_django_variable_is_stronger(startup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    assert outcome("raise", startup) == "allowed"


def test_off_is_for_start_up_alone() -> None:
    assert outcome("raise", "off") == "nothing"
    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(show())


def test_a_function_that_requests_call_too_is_told_apart() -> None:
    """Called from one line under one coroutine, at start-up and later: two call sites."""

    async def refresh() -> None:
        query("refresh")

    async def server(scope: Any) -> None:
        await refresh()

    configure(mode="record")
    for kind in ("http", "lifespan", "http", "lifespan", "lifespan"):
        asyncio.run(server({"type": kind}))
    assert {site.violation.phase: site.calls for site in asyncsafe.violations} == {
        None: 2,
        "startup": 3,
    }


def test_the_message_tells_it(heard: list[asyncsafe.Violation]) -> None:
    asyncio.run(starting(create))
    assert (
        heard[0]
        .message()
        .startswith(
            "tests.test_lifespan.query() blocks: it was called from a running event loop (asyncio), "
            "during start-up.\n"
        )
    )
    configure(startup="raise")
    with pytest.raises(SynchronousOnlyOperation, match=r"\(asyncio\), during start-up\.\n"):
        asyncio.run(starting(create))
    assert heard[1].phase == "startup"


def test_the_message_tells_shutdown(heard: list[asyncsafe.Violation]) -> None:
    configure(startup="raise")
    with pytest.raises(SynchronousOnlyOperation, match=r", during start-up\."):
        served(starlette_lifespan())
    configure(startup=None)
    with pytest.raises(SynchronousOnlyOperation, match=r", during shutdown\."):
        with starlette.testclient.TestClient(starlette_lifespan()):
            configure(startup="raise")


# Where the setting is written ---------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "_found", None)
    monkeypatch.setattr(policy, "_found_startup", None)
    return tmp_path


def test_where_it_is_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy.current_startup() == ("record", "default")
    monkeypatch.setattr(policy, "_found_startup", None)
    pyproject = project / "pyproject.toml"
    pyproject.write_text('[tool.asyncsafe]\nmode = "raise"\nstartup = "off"\n')
    assert policy.current_startup() == ("off", str(pyproject))
    assert policy.current_mode() == ("raise", str(pyproject))
    monkeypatch.setattr(policy, "_found_startup", None)
    monkeypatch.setenv("ASYNCSAFE_STARTUP", "raise")
    assert policy.current_startup() == ("raise", "ASYNCSAFE_STARTUP")
    configure(startup="record")
    assert policy.current_startup() == ("record", "configure()")


def test_configure_changes_what_is_named() -> None:
    configure(mode="record")
    configure(startup="raise")
    assert (policy.current_mode()[0], policy.current_startup()[0]) == ("record", "raise")
    configure(mode=None)
    assert (policy.current_mode()[1], policy.current_startup()[0]) != ("configure()", "raise")
    assert policy.current_startup()[0] == "raise"
    configure()
    assert policy.current_startup()[1] != "configure()"


@pytest.mark.parametrize("value", ["warn", "", "RECORD", True, 0], ids=repr)
def test_mistakes_are_told(value: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"must be one of record, raise, off; it is {value!r}"
    configure(mode="record", startup="off")
    with pytest.raises(asyncsafe.ConfigurationError) as caught:
        configure(mode="raise", startup=value)
    assert str(caught.value) == f"configure(startup=...) {message}"
    assert (policy.current_mode()[0], policy.current_startup()[0]) == ("record", "off")
    configure()
    (project / "pyproject.toml").write_text(f"[tool.asyncsafe]\nstartup = {json.dumps(value)}\n")
    with pytest.raises(asyncsafe.ConfigurationError) as caught:
        asyncsafe.install()
    assert str(caught.value).startswith("startup in [tool.asyncsafe] of ")
    assert str(caught.value).endswith(message)
    if value and isinstance(value, str):
        monkeypatch.setenv("ASYNCSAFE_STARTUP", value)
        with pytest.raises(asyncsafe.ConfigurationError, match="ASYNCSAFE_STARTUP must be one of"):
            asyncsafe.install()


# Real servers -------------------------------------------------------------------------------------

SERVED = """
import asyncio, sqlite3
from contextlib import asynccontextmanager
from pathlib import Path
from fastapi import FastAPI

connection = sqlite3.connect("served.db", check_same_thread=False)

def create():
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id)")
    Path("started").touch()

def dispose():
    connection.close()

async def poll():
    while True:
        connection.execute("SELECT 1")
        await sleep(0.01)

def sleep(seconds):
    import sniffio
    if sniffio.current_async_library() == "trio":
        import trio
        return trio.sleep(seconds)
    return asyncio.sleep(seconds)

@asynccontextmanager
async def lifespan(app):
    import anyio
    try:
        async with anyio.create_task_group() as tasks:
            create()
            tasks.start_soon(poll)
            yield
            tasks.cancel_scope.cancel()
    finally:  # under trio hypercorn is interrupted, and its tasks are cancelled
        dispose()

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def show():
    connection.execute("SELECT id FROM orders")
    await sleep(0.03)
    return "shown"
"""

SERVERS = {
    "uvicorn": ["uvicorn", "app:app", "--port", "{port}", "--loop", "asyncio"],
    "uvicorn-uvloop": ["uvicorn", "app:app", "--port", "{port}", "--loop", "uvloop"],
    "hypercorn": ["hypercorn", "app:app", "-b", "127.0.0.1:{port}", "-w", "0"],
    "hypercorn-uvloop": ["hypercorn", "app:app", "-b", "127.0.0.1:{port}", "-w", "0", "-k", "uvloop"],
    "hypercorn-trio": ["hypercorn", "app:app", "-b", "127.0.0.1:{port}", "-w", "0", "-k", "trio"],
    "daphne": ["daphne", "app:app", "-p", "{port}"],
}  # fmt: skip


@contextmanager
def serving(project: Path, server: str) -> Iterator[subprocess.Popen[str]]:
    """A server under `asyncsafe run`, which has answered a request."""
    (project / "app.py").write_text(SERVED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [argument.format(port=port) for argument in SERVERS[server]]
    with subprocess.Popen(
        command("run", "--fail", "--report", "report.json", *arguments),
        cwd=project,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(
                        f"http://127.0.0.1:{port}/", timeout=10
                    ) as response:
                        assert response.read() == b'"shown"'
                    break
                except OSError:
                    assert process.poll() is None, process.communicate()[1]
                    assert time.monotonic() < deadline, "the server doesn't answer"
                    time.sleep(0.05)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("server", SERVERS)
def test_on_a_server(server: str, tmp_path: Path) -> None:
    has_lifespan = server != "daphne"
    if not has_lifespan:
        # Nobody creates the tables then.
        connection = sqlite3.connect(tmp_path / "served.db")
        connection.execute("CREATE TABLE orders (id)")
        connection.close()
    with serving(tmp_path, server) as process:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    found = {(site["call_site"]["function"], site["phase"]) for site in report["sites"]}
    assert (tmp_path / "started").exists() is has_lifespan
    if not has_lifespan:
        assert found == {("show", None)}
        return
    assert found == {
        ("create", "startup"),
        ("poll", None),
        ("show", None),
        ("dispose", "shutdown"),
    }
    assert "2 synchronous calls during start-up and shutdown, at 2 call sites, took " in told
    mending = told.partition("To mend them")[2]
    assert "async show()" in mending
    assert "lifespan()" not in mending


@pytest.mark.parametrize(
    ("startup", "mode", "status"),
    [
        ("record", "record", 0),
        ("record", "raise", 0),
        ("off", "record", 0),
        ("raise", "record", 3),
        ("raise", "raise", 1),
    ],
)
def test_fail_counts_start_up_where_it_is_no_exception(
    startup: str, mode: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(
        "import asyncio, sqlite3\n"
        "async def serve(scope):\n"
        "    sqlite3.connect(':memory:')\n"
        "asyncio.run(serve({'type': 'lifespan'}))\n"
    )
    (tmp_path / "pyproject.toml").write_text(f'[tool.asyncsafe]\nstartup = "{startup}"\n')
    done = subprocess.run(
        command("run", "--fail", "--mode", mode, "program.py"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    if startup == "off":
        assert "nothing blocked the event loop" in done.stderr
    else:
        assert "1 synchronous call during start-up, at 1 call site" in done.stderr
    assert ("To mend it" in done.stderr) is (status == 1)


def test_info_tells_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.asyncsafe]\nstartup = "raise"\n')
    done = subprocess.run(command("info"), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"startup: raise ({tmp_path / 'pyproject.toml'})" in done.stdout
