"""WSGI applications over ASGI: ASGIHandler beside a2wsgi and asgiref's WsgiToAsgi."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any
from wsgiref.util import setup_testing_defaults

from asgiref.wsgi import WsgiToAsgi

from asyncsafe.asgi import ASGIHandler

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

BARE = "the application alone, without ASGI"
OURS = "asyncsafe.asgi.ASGIHandler"
A2WSGI = "a2wsgi.WSGIMiddleware"
ASGIREF = "asgiref.wsgi.WsgiToAsgi"

#: Of the bridges that have more than one.
_THREADS = 40
#: Bytes that an ASGI server hands over at once, and that the application yields.
_CHUNK = 1 << 16
#: 100 MB of them.
_CHUNKS = 1600
#: Requests in one call of a statement.
_REQUESTS = 40
#: Bytes a second that a slow client takes.
_SLOW = 100e6


def measure(quick: bool) -> Iterator[Table]:
    """Requests; the first byte of a stream; 100 MB up and down, and the memory that they take."""
    rounds, processes = (20, 2) if quick else (60, 4)
    for kind, what in {"small": "a small response", "read": "a row of a sqlite file"}.items():
        for at_once in (1, 20):
            yield _table(
                f"WSGI over ASGI, {what}, {at_once} at a time: for each request",
                "µs",
                in_processes(time_requests, kind, at_once, rounds, processes=processes),
            )
    yield _table(
        "WSGI over ASGI, a stream: its first byte",
        "µs",
        in_processes(time_first_byte, rounds * 5, processes=processes),
    )
    transfers = 3 if quick else 10
    for way in ("up", "down"):
        yield _table(
            f"WSGI over ASGI, 100 MB {way}",
            "ms",
            in_processes(time_transfer, way, transfers, processes=1),
            remarks={ASGIREF: ("on the loop, writes to the disk too", True)} if way == "up" else {},
        )
    if Path("/proc/self/clear_refs").exists():
        for way, what in {"up": "up", "down": "down to a slow client"}.items():
            values: Values = {}
            for case in _bridges(_download):
                values |= in_processes(peak_memory, case, way, processes=transfers)
            # The whole process, which is not the same twice. And ASGIHandler has 1 MB of a body in
            # memory, by default, where WsgiToAsgi has 64 KB.
            yield _table(f"WSGI over ASGI, 100 MB {what}: peak of memory", "MB", values, 1.05)
    if not missing("uvicorn"):
        yield _table(
            "WSGI over ASGI, a small response from uvicorn, 20 at a time: for each request",
            "µs",
            in_processes(time_uvicorn, rounds, processes=1),
        )


def _table(
    title: str,
    unit: str,
    values: Values,
    at_most: float = 1.0,
    remarks: dict[str, tuple[str, bool]] | None = None,
) -> Table:
    cases = [case for case in (BARE, A2WSGI, ASGIREF, OURS) if case != BARE or BARE in values]
    return Table(
        title,
        unit,
        values,
        dict.fromkeys(cases, cases[0]),
        [
            Ratio("of a2wsgi's", of=A2WSGI, at_most={OURS: at_most}),
            Ratio("of asgiref's", of=ASGIREF, at_most={OURS: at_most}),
        ],
        remarks=remarks or {},
    )


def _bridges(wsgi_app: Any) -> dict[str, Any]:
    """This application for ASGI servers, in as many ways as are installed."""
    bridges: dict[str, Any] = {
        OURS: ASGIHandler(wsgi_app, threads=_THREADS),
        ASGIREF: WsgiToAsgi(wsgi_app),
    }
    if not missing("a2wsgi"):
        from a2wsgi import WSGIMiddleware

        bridges[A2WSGI] = WSGIMiddleware(wsgi_app, workers=_THREADS)
    return bridges


def _chunk() -> bytes:
    """Each has its own memory."""
    return b"%*d" % (_CHUNK, 0)


# Applications ----------------------------------------------------------------------------------


def _small(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, World!"]


def _upload(environ: Any, start_response: Any) -> Iterable[bytes]:
    total = 0
    while data := environ["wsgi.input"].read(_CHUNK):
        total += len(data)
    assert total == _CHUNK * _CHUNKS
    return _small(environ, start_response)


def _download(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for _ in range(_CHUNKS):
        yield _chunk()


class _Reads:
    """Reads one row, in a connection of the thread's."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._of_thread = threading.local()
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT)")
            connection.executemany("INSERT INTO orders (customer) VALUES (?)", [("Ada",)] * 1000)
        connection.close()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = sqlite3.connect(self._file)
        (customer,) = self._of_thread.connection.execute(
            "SELECT customer FROM orders WHERE id = 500"
        ).fetchone()
        body = customer.encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


class _Stream:
    """Goes on when its first piece has come."""

    def __init__(self) -> None:
        self.arrived = threading.Event()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"first"
        self.arrived.wait(1)
        yield b"second"


# What stands in for the server -----------------------------------------------------------------

_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/orders/1",
    "raw_path": b"/orders/1",
    "root_path": "",
    "query_string": b"page=1",
    "headers": [
        (b"host", b"shop.example"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101"),
        (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        (b"accept-language", b"en-GB,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"cookie", b"session=0123456789abcdef"),
        (b"content-type", b"application/octet-stream"),
    ],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
}


class _Request:
    """One request, of so many chunks, from a client that stays."""

    def __init__(self, chunks: int = 0, bytes_a_second: float | None = None) -> None:
        self.first_byte = 0.0
        self.received = 0
        self.arrived: threading.Event | None = None
        self._left = chunks
        self._length = chunks * _CHUNK
        self._bytes_a_second = bytes_a_second

    async def send_to(self, app: Any) -> None:
        headers = [*_SCOPE["headers"], (b"content-length", b"%d" % self._length)]  # type: ignore[misc]
        await app({**_SCOPE, "headers": headers}, self._receive, self._send)

    async def _receive(self) -> Any:
        if self._left < 0:
            await asyncio.Event().wait()
        self._left -= 1
        body = _chunk() if self._left >= 0 else b""
        if self._left == 0:
            self._left = -1
        return {"type": "http.request", "body": body, "more_body": self._left > 0}

    async def _send(self, message: Any) -> None:
        body = message.get("body")
        if not body:
            return
        if not self.received:
            self.first_byte = perf_counter()
            if self.arrived is not None:
                self.arrived.set()
        self.received += len(body)
        if self._bytes_a_second is not None:
            await asyncio.sleep(len(body) / self._bytes_a_second)


def _call_directly(wsgi_app: Any, body: Any = None) -> None:
    """As the bridges' threads do."""
    environ: dict[str, Any] = {"wsgi.input": body}
    setup_testing_defaults(environ)
    for _ in wsgi_app(environ, _started):
        pass


def _started(status: str, headers: Any) -> None:
    pass


class _Chunks:
    """A request's body, where there is no server."""

    def __init__(self) -> None:
        self._left = _CHUNKS

    def read(self, size: int) -> bytes:
        self._left -= 1
        return _chunk() if self._left >= 0 else b""


# Measurements ----------------------------------------------------------------------------------


def time_requests(kind: str, at_once: int, rounds: int) -> Values:
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        wsgi_app = _small if kind == "small" else _Reads(Path(directory) / "orders.db")

        async def client(app: Any) -> None:
            for _ in range(_REQUESTS // at_once):
                # Servers have each in a task of its own.
                await asyncio.create_task(_Request().send_to(app))

        async def serve(app: Any) -> None:
            await asyncio.gather(*(client(app) for _ in range(at_once)))

        def call_directly() -> None:
            for _ in range(_REQUESTS):
                _call_directly(wsgi_app)

        cases = [
            Case(name, "run(serve(app))", {"run": runner.run, "serve": serve, "app": app})
            for name, app in _bridges(wsgi_app).items()
        ]
        cases.append(Case(BARE, "call()", {"call": call_directly}))
        for case in cases:
            case.calls, case.duration = _REQUESTS, 0.02
        return take_turns(cases, rounds)


class _FirstByte(Case):
    """Not how long it takes, but how long until the first byte comes."""

    def seconds(self) -> float:
        request = _Request()
        request.arrived = self.names["stream"].arrived
        request.arrived.clear()
        start = perf_counter()
        self.names["run"](request.send_to(self.names["app"]))
        return request.first_byte - start


def time_first_byte(rounds: int) -> Values:
    stream = _Stream()
    with asyncio.Runner() as runner:
        names = {"run": runner.run, "stream": stream}
        cases: list[Case] = [
            _FirstByte(name, "", {**names, "app": app}) for name, app in _bridges(stream).items()
        ]
        return take_turns(cases, rounds)


def time_transfer(way: str, rounds: int) -> Values:
    with asyncio.Runner() as runner:
        cases = [
            Case(name, "transfer()", {"transfer": _Transfer(way, app, runner)})
            for name, app in _bridges(_upload if way == "up" else _download).items()
        ]
        cases.append(Case(BARE, "transfer()", {"transfer": lambda: _transfer_directly(way)}))
        return take_turns(cases, rounds, warm_up=1)


class _Transfer:
    """100 MB through a bridge."""

    def __init__(self, way: str, app: Any, runner: asyncio.Runner) -> None:
        self.way, self.app, self.runner = way, app, runner

    def __call__(self, bytes_a_second: float | None = None) -> None:
        request = _Request(_CHUNKS if self.way == "up" else 0, bytes_a_second)
        self.runner.run(request.send_to(self.app))
        assert request.received == (13 if self.way == "up" else _CHUNK * _CHUNKS)


def _transfer_directly(way: str) -> None:
    if way == "up":
        _call_directly(_upload, _Chunks())
    else:
        _call_directly(_download)


def peak_memory(case: str, way: str) -> Values:
    """In a process of its own: bytes that it had at most, while that went through."""
    bridges = _bridges(_upload if way == "up" else _download)
    with asyncio.Runner() as runner:
        runner.run(_Request().send_to(_bridges(_small)[case]))
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak there was
        _Transfer(way, bridges[case], runner)(_SLOW)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return {case: [int(line.split()[1]) * 1024.0]}
    raise RuntimeError("no VmHWM in /proc/self/status")


def time_uvicorn(rounds: int) -> Values:
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        cases = []
        for name in _bridges(_small):
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listening.getsockname()[1]
            server = subprocess.Popen(
                [sys.executable, "-m", __name__, name, str(listening.fileno())],
                pass_fds=[listening.fileno()],
            )
            stack.callback(server.wait)
            stack.callback(server.terminate)
            names = {"run": runner.run, "load": _load, "port": port}
            cases.append(Case(name, "run(load(port))", names, calls=_REQUESTS, duration=0.05))
        return take_turns(cases, rounds, warm_up=3)


async def _load(port: int) -> None:
    await asyncio.gather(*(_client(port) for _ in range(20)))


async def _client(port: int) -> None:
    """Each request has its connection: WsgiToAsgi fails where one is kept (asgiref 3.13)."""
    for _ in range(_REQUESTS // 20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        writer.close()


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(_bridges(_small)[sys.argv[1]], fd=int(sys.argv[2]), log_level="warning")
