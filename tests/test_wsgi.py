"""ASGIHandler: a WSGI application on an ASGI server (PEP 3333, ASGI 3)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import itertools
import os
import socket
import tempfile
import threading
import weakref
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    MutableMapping,
)
from contextlib import asynccontextmanager
from typing import Any
from wsgiref import validate

import flask
import pytest
import uvicorn

import asyncsafe
from asyncsafe.asgi import ASGIHandler
from asyncsafe.exceptions import ConfigurationError

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], None]]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]
Message = MutableMapping[str, Any]

validator: Callable[[Any], Application] = validate.validator
PLAIN = [("Content-Type", "text/plain")]


class Wire:
    """What an ASGI server is to one request, driven by hand."""

    def __init__(self, *body: bytes, whole: bool = True) -> None:
        last = len(body) - 1
        self._requests: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": not whole or number < last}
            for number, piece in enumerate(body)
        ]
        self.sent: list[Message] = []
        self.received = 0
        self.gone = asyncio.Event()
        self.begun = asyncio.Event()
        #: Cleared, the client takes nothing more.
        self.taking = asyncio.Event()
        self.taking.set()

    async def receive(self) -> Message:
        self.received += 1
        if self._requests:
            return self._requests.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.taking.wait()
        self.sent.append(message)
        self.begun.set()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = self.sent[0]["headers"]
        return headers

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body")


def http(**parts: Any) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": None,
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.org")],
        "client": ("10.0.0.1", 50000),
        "server": ("10.0.0.2", 8000),
        **parts,
    }


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 20))


def ask(app: Application | ASGIHandler, *body: bytes, **parts: Any) -> Wire:
    """One request, served to its end. A WSGI application is wrapped in wsgiref's validator."""
    handler = app if isinstance(app, ASGIHandler) else ASGIHandler(validator(app))

    async def main() -> Wire:
        wire = Wire(*(body or (b"",)))
        await handler(http(**parts), wire.receive, wire.send)
        return wire

    wire: Wire = run(main())
    return wire


def failing(app: Application, *body: bytes, **parts: Any) -> tuple[Wire, BaseException]:
    """One request of an application that fails. Returns what was sent, and what was raised."""
    wire = Wire(*(body or (b"",)))

    async def main() -> None:
        await ASGIHandler(app)(http(**parts), wire.receive, wire.send)

    with pytest.raises(BaseException) as caught:
        run(main())
    return wire, caught.value


async def idle(handler: ASGIHandler) -> None:
    """Wait until its threads have nothing more to do."""
    if handler._executor is not None:
        await asyncio.to_thread(handler._executor.shutdown)


def environ_of(**parts: Any) -> Environ:
    seen: Environ = {}

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.update(environ)
        start_response("200 OK", PLAIN)
        return [b""]

    wire = ask(app, **parts)
    assert wire.status == 200, wire.body
    return seen


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    return [environ["wsgi.input"].read(-1 if "read" in environ["PATH_INFO"] else 1 << 30)]


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    return [b"hello"]


class Pieces:
    """An application whose iterable tells when and where it is closed."""

    def __init__(self, pieces: Iterable[bytes], headers: list[tuple[str, str]] = PLAIN) -> None:
        self.pieces = iter(pieces)
        self.headers = headers
        self.made = 0
        self.closed: list[int] = []
        self.served_by: int | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self.served_by = threading.get_ident()
        start_response("200 OK", list(self.headers))
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self.pieces)
        self.made += len(piece)
        return piece

    def close(self) -> None:
        self.closed.append(threading.get_ident())

    def assert_closed(self) -> None:
        assert self.closed == [self.served_by]
        assert self.served_by != threading.get_ident()


# The environ ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root_path", "path", "raw_path", "expected"),
    [
        ("", "/a/b", b"/a/b", ("", "/a/b")),
        ("/app", "/app/a", b"/app/a", ("/app", "/a")),
        ("/app", "/a", b"/a", ("/app", "/a")),
        ("/app/", "/app/a", b"/app/a", ("/app", "/a")),
        ("/app", "/app", b"/app", ("/app", "")),
        ("/app", "/application", b"/application", ("/app", "/application")),
        ("", "/é", b"/%C3%A9", ("", "/\xc3\xa9")),
        ("/é", "/é/ü", b"/%C3%A9/%C3%BC", ("/\xc3\xa9", "/\xc3\xbc")),
        ("", "/\ufffd", b"/%ff", ("", "/\xff")),
        ("", "/a\ufffd", b"/a%FF?q=%ff", ("", "/a\xff")),
        ("", "/\ufffd", b"/else", ("", "/\xef\xbf\xbd")),
        ("", "/\ufffd", None, ("", "/\xef\xbf\xbd")),
        ("", "/a%2Fb", b"/a%252Fb", ("", "/a%2Fb")),
    ],
)
def test_paths_are_bytes_as_latin1_and_the_root_path_comes_once(
    root_path: str, path: str, raw_path: bytes | None, expected: tuple[str, str]
) -> None:
    environ = environ_of(root_path=root_path, path=path, raw_path=raw_path)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"query_string": b"a=%20&b=\xe9"}, {"QUERY_STRING": "a=%20&b=\xe9"}),
        ({"http_version": "2"}, {"SERVER_PROTOCOL": "HTTP/2"}),
        ({}, {"SERVER_NAME": "10.0.0.2", "SERVER_PORT": "8000"}),
        ({"server": ("::1", 8000)}, {"SERVER_NAME": "[::1]", "SERVER_PORT": "8000"}),
        ({"server": None}, {"SERVER_NAME": "localhost", "SERVER_PORT": "80"}),
        (
            {"server": ("/run/app.sock", None), "scheme": "https"},
            {"SERVER_NAME": "localhost", "SERVER_PORT": "443", "wsgi.url_scheme": "https"},
        ),
        ({}, {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "50000"}),
        ({"client": ("::1", 1)}, {"REMOTE_ADDR": "::1", "REMOTE_PORT": "1"}),
        ({"client": None}, {"REMOTE_ADDR": None, "REMOTE_PORT": None}),
        ({"client": ("", None)}, {"REMOTE_ADDR": "", "REMOTE_PORT": None}),
    ],
)
def test_request_line_and_addresses(parts: dict[str, Any], expected: Environ) -> None:
    environ = environ_of(**parts)
    assert {name: environ.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-a", b"1"), (b"X-A", b"2"), (b"x-a", b"3")], {"HTTP_X_A": "1,2,3"}),
        ([(b"cookie", b"a=1"), (b"cookie", b"b=2")], {"HTTP_COOKIE": "a=1; b=2"}),
        ([(b"x-a", b"\xe9\xff")], {"HTTP_X_A": "\xe9\xff"}),
        (
            [(b"content-type", b"text/x")],
            {"CONTENT_TYPE": "text/x", "HTTP_CONTENT_TYPE": None, "CONTENT_LENGTH": None},
        ),
        ([(b"content-length", b"0")] * 2, {"CONTENT_LENGTH": "0", "HTTP_CONTENT_LENGTH": None}),
        ([(b"transfer-encoding", b"chunked")], {"HTTP_TRANSFER_ENCODING": None}),
    ],
)
def test_headers(headers: list[tuple[bytes, bytes]], expected: Environ) -> None:
    environ = environ_of(headers=headers)
    assert {name: environ.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x_forwarded_for", b"1")],
        [(b"x-a", b"1"), (b"x_a", b"2")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-type", b"a/b"), (b"content-type", b"a/c")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"1 ")],
        [(b"content-length", "٣".encode())],
        [(b"content-length", b"9" * 5000)],
    ],
    ids=str,
)
def test_what_cannot_be_an_environ_gets_400(headers: list[tuple[bytes, bytes]]) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise AssertionError("must not be called")

    wire = ask(app, headers=headers)
    assert (wire.status, wire.complete) == (400, True)


def test_many_repeated_headers_are_joined_in_linear_time() -> None:
    # Joined one by one, these are 40 GB to copy, on the loop.
    environ = environ_of(headers=[(b"x-a", b"1")] * 200_000)
    assert len(environ["HTTP_X_A"]) == 399_999


def test_one_thread_is_told_as_such() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return [str(environ["wsgi.multithread"]).encode()]

    assert ask(ASGIHandler(app)).body == b"True"
    assert ask(ASGIHandler(app, threads=1)).body == b"False"


def test_context_variables_are_seen() -> None:
    variable = contextvars.ContextVar[bytes]("variable")

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        yield variable.get()

    variable.set(b"seen")
    assert ask(app).body == b"seen"


# The request's body --------------------------------------------------------------------------


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The temporary files that were made. All must be closed, and none left to the collector."""
    made: list[Any] = []
    make = tempfile.TemporaryFile

    def remember(*args: Any, **kwargs: Any) -> Any:
        made.append(make(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", remember)
    yield made
    assert [file.closed for file in made] == [True] * len(made)


@pytest.mark.parametrize(
    ("body", "spooled"),
    [
        ([b""], 0),
        ([b"abc"], 0),
        ([b"x" * 11], 0),  # the server has it whole
        ([b"ab", b"", b"cd", b""], 0),
        ([b"x" * 5, b"y" * 5], 0),
        ([b"x" * 5, b"y" * 5, b""], 0),
        ([b"x" * 5, b"y" * 6], 1),
        ([b"x" * 20, b"y" * 6, b""], 1),
        ([b"%d" % (number % 10) * 100_000 for number in range(30)], 1),
    ],
)
def test_the_body_is_kept_in_memory_up_to_a_limit(
    body: list[bytes], spooled: int, files: list[Any]
) -> None:
    wire = ask(ASGIHandler(validator(echo), body_in_memory=10), *body, method="POST")
    assert wire.body == b"".join(body)
    assert len(files) == spooled


@pytest.mark.parametrize(
    "headers", [[], [(b"content-length", b"6")], [(b"content-length", b"99")]], ids=str
)
def test_the_length_of_the_body_is_what_has_come(headers: list[tuple[bytes, bytes]]) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return [environ["CONTENT_LENGTH"].encode()]

    assert ask(app, b"abc", b"def", method="POST", headers=headers).body == b"6"


@pytest.mark.parametrize("in_memory", [0, 100])
@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda body: [body.read(3), body.read(100), body.read(1)], [b"a\nb", b"b\nccc", b""]),
        (lambda body: [body.readline(), body.readline(), body.read(1)], [b"a\n", b"bb\n", b"c"]),
        (lambda body: [body.readline(1), body.readline(9), body.readline(2)], [b"a", b"\n", b"bb"]),
        (lambda body: body.readlines(), [b"a\n", b"bb\n", b"ccc"]),
        (lambda body: body.readlines(3), [b"a\n", b"bb\n"]),
        (list, [b"a\n", b"bb\n", b"ccc"]),
        (lambda body: [body.read(), body.readline()], [b"a\nbb\nccc", b""]),
    ],
)
def test_reading_the_body(
    read: Callable[[Any], list[bytes]], expected: list[bytes], in_memory: int
) -> None:
    got: list[bytes] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        got.extend(read(environ["wsgi.input"]))
        start_response("200 OK", PLAIN)
        return [b""]

    ask(ASGIHandler(app, body_in_memory=in_memory), b"a\nb", b"b\nccc", method="POST")
    assert got == expected


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ([b"x" * 10], [], 200),
        ([b"x" * 5, b"y" * 5], [(b"content-length", b"10")], 200),
        ([b"x" * 11], [], 413),
        ([b"x" * 5, b"y" * 6], [], 413),
        ([b"x" * 5] * 100, [], 413),
    ],
)
def test_a_body_beyond_the_limit_is_refused(
    body: list[bytes], headers: list[tuple[bytes, bytes]], status: int, files: list[Any]
) -> None:
    handler = ASGIHandler(echo, max_body=10, body_in_memory=3)
    wire = ask(handler, *body, method="POST", headers=headers)
    assert (wire.status, wire.complete) == (status, True)
    assert wire.received <= 3


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    headers = [(b"content-length", b"11")]
    wire = ask(ASGIHandler(echo, max_body=10), b"x" * 11, method="POST", headers=headers)
    assert (wire.status, wire.received) == (413, 0)


@pytest.mark.parametrize("sent", [[], [b"x" * 5], [b"x" * 50, b"y" * 50]])
def test_a_client_that_goes_while_it_sends(sent: list[bytes], files: list[Any]) -> None:
    async def main() -> Wire:
        wire = Wire(*sent, whole=False)
        wire.gone.set()
        await ASGIHandler(echo, body_in_memory=10)(http(), wire.receive, wire.send)
        return wire

    assert run(main()).sent == []
    assert len(files) == (len(sent) > 1)


def test_a_cancellation_while_the_body_comes(files: list[Any]) -> None:
    async def main() -> None:
        wire = Wire(b"x" * 50, whole=False)
        handler = ASGIHandler(echo, body_in_memory=10)
        task = asyncio.ensure_future(handler(http(), wire.receive, wire.send))
        while wire.received < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert len(files) == 1


def test_a_cancellation_while_the_body_is_written(
    files: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed after the write: its number would be another file's."""
    writing, go_on = threading.Event(), threading.Event()
    make = tempfile.TemporaryFile

    class Slow:
        def __init__(self) -> None:
            self.file = make(buffering=0)
            self.closed_before_the_end = False
            self.closed = False

        def write(self, data: Any) -> int:
            writing.set()
            assert go_on.wait(10)
            self.closed_before_the_end = self.closed
            return self.file.write(data)

        def close(self) -> None:
            self.closed = True
            self.file.close()

    slow: list[Slow] = []

    def make_slow(**kwargs: Any) -> Slow:
        slow.append(Slow())
        return slow[0]

    monkeypatch.setattr(tempfile, "TemporaryFile", make_slow)

    async def main() -> None:
        wire = Wire(b"x" * 50, whole=False)
        handler = ASGIHandler(echo, body_in_memory=10)
        task = asyncio.ensure_future(handler(http(), wire.receive, wire.send))
        await asyncio.to_thread(writing.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    run(main())
    assert slow[0].closed
    assert not slow[0].closed_before_the_end


def test_a_full_disk(files: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:

    def full(**kwargs: Any) -> Any:
        files.append(open("/dev/full", "wb", buffering=0))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space"):
        ask(ASGIHandler(echo, body_in_memory=10), b"x" * 50, b"y", method="POST")


@pytest.mark.parametrize("replaced", [False, True])
def test_the_file_is_closed_when_the_application_raises(replaced: bool, files: list[Any]) -> None:
    """Django #33173; also when a middleware has put another stream into the environ."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if replaced:
            environ["wsgi.input"] = io.BytesIO()
        raise ValueError

    handler = ASGIHandler(app, body_in_memory=10)
    with pytest.raises(ValueError):
        ask(handler, b"x" * 50, b"y", method="POST")
    assert len(files) == 1


# start_response() ----------------------------------------------------------------------------


def test_a_complete_body_gets_its_length() -> None:
    wire = ask(ASGIHandler(hello))
    assert wire.headers == [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    assert wire.sent[1:] == [{"type": "http.response.body", "body": b"hello"}]


def test_several_pieces_that_are_there_make_one_body() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        return (b"ab", b"", b"cd")

    wire = ask(ASGIHandler(app))
    assert wire.headers == [
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"4"),
    ]
    assert wire.body == b"abcd"


def test_a_stream_gets_no_length() -> None:
    wire = ask(Pieces([b"", b"ab", b"", b"cd"]))
    assert wire.headers == [(b"content-type", b"text/plain")]
    assert (wire.body, wire.complete) == (b"abcd", True)


@pytest.mark.parametrize("pieces", [[], [b""], [b"", b""]])
def test_an_empty_body(pieces: list[bytes]) -> None:
    for app in (Pieces(pieces), Pieces(iter(pieces))):
        wire = ask(app)
        assert (b"content-length", b"0") in wire.headers
        assert (wire.body, wire.complete) == (b"", True)


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Same")]
)
@pytest.mark.parametrize("how", ["list", "stream", "write"])
def test_an_answer_without_a_body(method: str, status: str, how: str) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response(status, [("X-A", "b")])
        if how == "write":
            write(b"hello")
        return [b"hello"] if how == "list" else iter([b"hello"])

    wire = ask(ASGIHandler(app), method=method)
    assert wire.headers == [(b"x-a", b"b")]
    assert (wire.body, wire.complete) == (b"", True)


def test_the_length_of_what_head_leaves_out_may_be_told() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
        return [b""]

    wire = ask(app, method="HEAD")
    assert (b"content-length", b"5") in wire.headers
    assert wire.complete


@pytest.mark.parametrize("pieces", [[b"hello"], [b"hel", b"lo, world"], [b"hello", b"", b"world"]])
def test_no_more_is_sent_than_content_length_says(pieces: list[bytes]) -> None:
    def more() -> Iterator[bytes]:
        yield from pieces
        raise AssertionError("PEP 3333: stop iterating")

    app = Pieces(more(), [*PLAIN, ("Content-Length", "5")])
    wire = ask(app)
    assert (wire.body, wire.complete) == (b"hello", True)
    app.assert_closed()


@pytest.mark.parametrize("stream", [False, True])
def test_less_than_content_length_says_is_an_error(stream: bool) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "6")])
        return iter([b"hello"]) if stream else [b"hello"]

    wire, error = failing(app)
    assert isinstance(error, RuntimeError)
    assert "Content-Length: 6" in str(error)
    if stream:
        assert (wire.status, wire.complete) == (200, False)
    else:
        assert (wire.status, wire.complete) == (500, True)


def test_write_comes_before_what_is_returned() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"a")
        write(b"b")
        return [b"c"]

    wire = ask(app)
    assert (wire.body, wire.complete) == (b"abc", True)
    assert wire.headers == [(b"content-type", b"text/plain")]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, PLAIN),
        (b"200 OK", PLAIN),
        ("OK", PLAIN),
        ("2000 OK", PLAIN),
        ("٢٠٠ OK", PLAIN),
        ("100 Continue", PLAIN),
        ("200 OK\r\nX-A: b", PLAIN),
        ("200 OK", tuple(PLAIN)),
        ("200 OK", [("X-A", b"b")]),
        ("200 OK", [(b"X-A", "b")]),
        ("200 OK", [("X-A", 1)]),
        ("200 OK", [("X-A", "b\r\nX-C: d")]),
        ("200 OK", [("X-A", "b\nc")]),
        ("200 OK", [("X-A", "b\0c")]),
        ("200 OK", [("X-A", "\u20ac")]),
        ("200 OK", [("X-A\r\nX-C", "d")]),
        ("200 OK", [("X A", "b")]),
        ("200 OK", [("X-A:", "b")]),
        ("200 OK", [("", "b")]),
        ("200 OK", [("Connection", "close")]),
        ("200 OK", [("transfer-encoding", "chunked")]),
        ("200 OK", [("Content-Length", "five")]),
        ("200 OK", [("Content-Length", "-5")]),
        ("200 OK", [("Content-Length", "5_0")]),
        ("200 OK", [("Content-Length", "5"), ("content-length", "6")]),
    ],
    ids=str,
)
def test_a_wrong_status_or_header_is_an_error_in_the_application(status: Any, headers: Any) -> None:
    raised_inside: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            start_response(status, headers)
        except BaseException as error:
            raised_inside.append(error)
            raise
        return [b"hello"]

    wire, error = failing(app)
    assert isinstance(error, (TypeError, ValueError))
    assert raised_inside == [error]
    assert (wire.status, wire.complete) == (500, True)
    assert b"x-c" not in dict(wire.headers)


def test_spaces_round_a_value_are_left_out() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("X-A", " b\t"), ("Content-Length", "5 ")])
        return [b"hello"]

    assert ask(ASGIHandler(app)).headers == [(b"x-a", b"b"), (b"content-length", b"5")]


def _never(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return [b"hello"]


def _never_and_empty(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return []


def _twice(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    start_response("200 OK", PLAIN)
    return [b"hello"]


def _text(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)
    return ["hello"]


def _one_text(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)
    return "hello"


def _text_stream(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)
    return iter(["hello"])


def _text_written(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)("hello")  # type: ignore[arg-type]
    return []


def _nothing(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)


@pytest.mark.parametrize(
    ("app", "text"),
    [
        (_never, "before it calls start_response"),
        (_never_and_empty, "never called start_response"),
        (_twice, "second time, without exc_info"),
        (_text, "yields bytes, not str"),
        (_one_text, "yields bytes, not str"),
        (_text_stream, "yields bytes, not str"),
        (_text_written, "takes bytes, not str"),
        (_nothing, "NoneType"),
    ],
)
def test_an_application_that_breaks_the_rules_is_told(app: Application, text: str) -> None:
    wire, error = failing(app)
    assert text in str(error)
    assert (wire.status, wire.complete) == (500, True)


def test_an_error_page_replaces_a_start_that_was_not_sent() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "1000")])
        try:
            raise ValueError
        except ValueError as error:
            start_response("500 Oh", PLAIN, (ValueError, error, error.__traceback__))
        return [b"error page"]

    wire = ask(app)
    assert (wire.status, wire.body) == (500, b"error page")


@pytest.mark.parametrize("how", ["write", "stream"])
def test_an_error_page_after_the_start_was_sent_raises_the_error(how: str) -> None:
    mine = ValueError("mine")

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        write = start_response("200 OK", PLAIN)
        if how == "write":
            write(b"a")
        else:
            yield b"a"
        start_response("500 Oh", PLAIN, (ValueError, mine, None))

    wire, error = failing(app)
    assert error is mine
    assert (wire.status, wire.body, wire.complete) == (200, b"a", False)


# Applications that raise ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "raised",
    [
        ValueError(),
        OSError(),
        StopIteration(),
        BrokenPipeError(),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("when", ["before", "started", "sent", "close"])
def test_whatever_an_application_raises_ends_its_request_alone(
    raised: BaseException, when: str
) -> None:
    class App(Pieces):
        def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            if when == "before":
                raise raised
            super().__call__(environ, start_response)
            if when == "started":
                raise raised
            return self

        def __next__(self) -> bytes:
            if self.made and when == "sent":
                raise raised
            return super().__next__()

        def close(self) -> None:
            super().close()
            if when == "close":
                raise raised

    app = App([b"a"])
    if isinstance(raised, StopIteration) and when == "sent":
        pytest.skip("that is how an iterator ends")
    wire, error = failing(app)
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        assert error is raised
    else:
        # Of itself it would end the server, look like a cancellation, or be another error.
        assert isinstance(error, RuntimeError)
        assert error.__cause__ is raised
    if when in {"before", "started"}:
        assert (wire.status, wire.body, wire.complete) == (500, b"Internal Server Error", True)
        assert app.closed == []
    else:
        assert (wire.status, wire.body, wire.complete) == (200, b"a", when == "close")
        app.assert_closed()


def test_nothing_is_left_of_a_request_that_failed() -> None:
    """No cycle through the traceback: what the application held is freed at once."""

    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        thing = Held()
        held.append(weakref.ref(thing))
        raise ValueError

    async def main() -> None:
        wire = Wire(b"")
        handler = ASGIHandler(app)
        with pytest.raises(ValueError):
            await handler(http(), wire.receive, wire.send)
        await idle(handler)

    gc.disable()
    try:
        run(main())
        assert held[0]() is None
    finally:
        gc.enable()


# Streams and clients -------------------------------------------------------------------------


def test_the_first_piece_is_sent_before_the_second_is_made() -> None:
    seen = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"a"
        assert seen.wait(10)
        yield b"b"

    async def main() -> None:
        wire = Wire(b"")
        task = asyncio.ensure_future(
            ASGIHandler(validator(Pieces(pieces())))(http(), wire.receive, wire.send)
        )
        while len(wire.sent) < 2:
            await asyncio.sleep(0)
        assert wire.body == b"a"
        seen.set()
        await task
        assert wire.body == b"ab"

    run(main())


def test_nothing_is_sent_before_there_is_a_piece() -> None:
    """So that an error page is still possible."""
    reached, go_on = threading.Event(), threading.Event()

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b""
        reached.set()
        assert go_on.wait(10)
        start_response("500 Oh", PLAIN, (ValueError, ValueError(), None))
        yield b"error page"

    async def main() -> None:
        wire = Wire(b"")
        handler = ASGIHandler(validator(app))
        task = asyncio.ensure_future(handler(http(), wire.receive, wire.send))
        await asyncio.to_thread(reached.wait, 10)
        assert wire.sent == []
        go_on.set()
        await task
        assert (wire.status, wire.body) == (500, b"error page")

    run(main())


def test_a_slow_client_holds_the_application_back() -> None:
    app = Pieces(itertools.repeat(b"x" * 4096, 4096))

    async def main() -> None:
        wire = Wire(b"")
        wire.taking.clear()
        handler = ASGIHandler(validator(app))
        task = asyncio.ensure_future(handler(http(), wire.receive, wire.send))
        last = -1
        while last != app.made or not app.made:
            last = app.made
            await asyncio.sleep(0.05)
        assert app.made <= 3 * 4096 + (1 << 17)
        wire.taking.set()
        await task
        assert len(wire.body) == 4096 * 4096

    run(main())
    app.assert_closed()


@pytest.mark.parametrize("how", ["disconnect", "cancel", "send raises"])
@pytest.mark.parametrize("slow", [False, True])
def test_an_endless_stream_stops_when_its_client_goes(how: str, slow: bool) -> None:
    app = Pieces(itertools.repeat(b"x" * 4096))
    handler = ASGIHandler(app)

    async def main() -> None:
        wire = Wire(b"")

        async def send(message: Message) -> None:
            if how == "send raises" and wire.gone.is_set():
                raise OSError("gone")
            await wire.send(message)

        task = asyncio.ensure_future(handler(http(), wire.receive, send))
        await wire.begun.wait()
        if slow:
            wire.taking.clear()
            await asyncio.sleep(0.02)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            wire.gone.set()
            wire.taking.set()
            await task
        await idle(handler)

    run(main())
    app.assert_closed()


def test_write_raises_when_the_client_has_gone() -> None:
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        try:
            while True:
                write(b"x" * 4096)
        except BaseException as error:
            raised.append(error)
            raise

    async def main() -> None:
        wire = Wire(b"")
        task = asyncio.ensure_future(ASGIHandler(app)(http(), wire.receive, wire.send))
        await wire.begun.wait()
        wire.gone.set()
        await task

    run(main())
    assert [type(error) for error in raised] == [BrokenPipeError]


def test_an_error_after_the_client_has_gone_is_still_told() -> None:
    gone = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"a"
        assert gone.wait(10)
        raise ValueError("mine")

    async def main() -> None:
        wire = Wire(b"")

        async def send(message: Message) -> None:
            gone.set()
            raise OSError("gone")

        with pytest.raises(ValueError, match="mine"):
            await ASGIHandler(Pieces(pieces()))(http(), wire.receive, send)

    run(main())


def test_an_error_of_the_server_is_not_hidden() -> None:
    app = Pieces(itertools.repeat(b"x"))
    handler = ASGIHandler(app)

    async def main() -> None:
        wire = Wire(b"")

        async def send(message: Message) -> None:
            raise RuntimeError("the server's")

        with pytest.raises(RuntimeError, match="the server's"):
            await handler(http(), wire.receive, send)
        await idle(handler)

    run(main())
    app.assert_closed()


def test_the_client_does_not_wait_for_close() -> None:
    go_on = threading.Event()

    class App(Pieces):
        def close(self) -> None:
            assert go_on.wait(10)
            super().close()

    app = App([b"hello"], [*PLAIN, ("Content-Length", "5")])

    async def main() -> None:
        wire = Wire(b"")
        task = asyncio.ensure_future(ASGIHandler(app)(http(), wire.receive, wire.send))
        while not wire.complete:
            await asyncio.sleep(0)
        assert not task.done()
        wire.gone.set()  # as servers tell it when the response is complete
        go_on.set()
        await task

    run(main())
    app.assert_closed()


def test_requests_wait_for_a_thread_and_those_of_vanished_clients_are_dropped() -> None:
    go_on = threading.Event()
    served: list[str] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        served.append(environ["PATH_INFO"])
        assert go_on.wait(10)
        start_response("200 OK", PLAIN)
        return [b"hello"]

    async def main() -> None:
        handler = ASGIHandler(app, threads=2)
        wires = [Wire(b"") for _ in range(5)]
        tasks = [
            asyncio.ensure_future(handler(http(path=f"/{number}"), wire.receive, wire.send))
            for number, wire in enumerate(wires)
        ]
        while len(served) < 2:
            await asyncio.sleep(0)
        wires[2].gone.set()
        await tasks[2]
        tasks[3].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[3]
        go_on.set()
        await asyncio.gather(tasks[0], tasks[1], tasks[4])
        assert [wire.complete for wire in wires] == [True, True, False, False, True]

    run(main())
    assert served == ["/0", "/1", "/4"]


def test_a_server_that_always_has_a_message_does_not_stop_the_loop() -> None:
    released = threading.Event()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        assert released.wait(10)
        start_response("200 OK", PLAIN)
        return [b"hello"]

    async def main() -> None:
        wire = Wire()
        asked = 0

        async def receive() -> Message:
            nonlocal asked
            asked += 1
            if asked == 2:  # the client is watched
                asyncio.get_running_loop().call_soon(released.set)
            return {"type": "http.request", "body": b""}

        await ASGIHandler(app)(http(), receive, wire.send)
        assert wire.body == b"hello"
        assert asked < 10

    run(main())


@pytest.mark.parametrize("step", range(1, 9))
def test_a_cancellation_at_any_await(step: int, files: list[Any]) -> None:
    """Whatever the handler waits for, its application is closed, and so is the body's file."""
    app = Pieces(itertools.repeat(b"x" * 100_000))

    async def main() -> None:
        wire = Wire(*[b"x" * 20] * 3)
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1
            if steps == step:
                task.cancel()

        async def receive() -> Message:
            count()
            await asyncio.sleep(0)
            return await wire.receive()

        async def send(message: Message) -> None:
            count()
            await asyncio.sleep(0)
            await wire.send(message)

        handler = ASGIHandler(app, body_in_memory=30)
        task = asyncio.ensure_future(handler(http(method="POST"), receive, send))
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(handler)

    run(main())
    assert (app.served_by is None) == (step <= 3)
    if app.served_by is not None:
        app.assert_closed()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_loop_that_is_closed_frees_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncsafe.wsgi._ASK_AFTER", 0.05)
    closed = threading.Event()

    class App(Pieces):
        def close(self) -> None:
            super().close()
            closed.set()

    app = App(itertools.repeat(b"x" * 4096))
    loop = asyncio.new_event_loop()
    wire = Wire(b"")
    wire.taking.clear()
    task = loop.create_task(ASGIHandler(app)(http(), wire.receive, wire.send))
    while app.made <= 1 << 17:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert closed.wait(10)
    app.assert_closed()
    loop.set_exception_handler(lambda loop, context: None)  # of tasks that nobody can end
    del task, wire, loop
    gc.collect()


# Scopes, settings, connections ---------------------------------------------------------------


def test_lifespan_ends_the_threads_and_the_handler_can_be_used_again() -> None:
    handler = ASGIHandler(hello)

    def threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("asyncsafe-wsgi")]

    async def main() -> None:
        sent: list[str] = []
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            sent.append(message["type"])
            if message["type"] == "lifespan.startup.complete":
                wire = Wire(b"")
                await handler(http(), wire.receive, wire.send)
                assert wire.body == b"hello"

        await handler({"type": "lifespan"}, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    before = set(threads())
    for _ in range(2):
        run(main())
        for thread in set(threads()) - before:
            thread.join(10)
        assert set(threads()) <= before


@pytest.mark.parametrize("gone", [False, True])
def test_a_websocket_is_refused(gone: bool) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.disconnect" if gone else "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    run(ASGIHandler(hello)({"type": "websocket", "path": "/"}, receive, send))
    assert [message["type"] for message in sent] == ([] if gone else ["websocket.close"])


def test_another_scope_is_an_error() -> None:
    wire = Wire()
    with pytest.raises(ValueError, match="serves HTTP, not 'mqtt'"):
        run(ASGIHandler(hello)({"type": "mqtt"}, wire.receive, wire.send))


@pytest.mark.parametrize(
    ("args", "settings", "text"),
    [
        ((None,), {}, "a WSGI application is callable; this is a NoneType"),
        ((hello, 3), {}, "this is a int"),
        ((hello,), {"threads": 0}, "threads is a positive number, not 0"),
        ((hello,), {"threads": "4"}, "threads is a positive number, not '4'"),
        ((hello,), {"body_in_memory": -1}, "body_in_memory is a positive number, not -1"),
        ((hello,), {"max_body": -1}, "max_body is a number of bytes, or None, not -1"),
        ((hello,), {"max_body": "1 MB"}, "max_body is a number of bytes, or None, not '1 MB'"),
    ],
)
def test_wrong_settings(args: tuple[Any, ...], settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        ASGIHandler(*args, **settings)


def test_connections_are_closed_in_the_thread_that_made_them() -> None:
    events: list[tuple[str, int]] = []

    class Connection:
        def __init__(self) -> None:
            events.append(("open", threading.get_ident()))

        def close(self) -> None:
            events.append(("close", threading.get_ident()))

    class Others:
        def close_all(self) -> None:
            events.append(("others", threading.get_ident()))

    connections = asyncsafe.ConnectionHandler({"default": Connection})

    def pieces() -> Iterator[bytes]:
        assert connections["default"] is connections["default"]
        yield b"a"
        connections["default"]
        yield b"b"

    app = Pieces(pieces())
    assert ask(ASGIHandler(app, connections, Others())).body == b"ab"
    assert [what for what, _ in events] == ["open", "close", "others"]
    assert {where for _, where in events} == {app.served_by}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    handler = ASGIHandler(hello)
    assert ask(handler).body == b"hello"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if ask(handler).body == b"hello" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Real servers --------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[tuple[str, int]]:
    config = uvicorn.Config(app, port=0, log_level="critical", **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.ensure_future(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.001)
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            await task


async def over_the_wire(app: Any, *pieces: bytes) -> bytes:
    """What a client that sends this, and no more, reads until the server closes."""
    async with served(app) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.writelines(pieces)
        answer = await reader.read()
        writer.close()
    return answer


def test_uvicorn_serves_a_request(files: list[Any]) -> None:
    size = 3_000_000
    answer = run(
        over_the_wire(
            ASGIHandler(validator(echo)),
            b"POST /%%ff HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % size,
            b"x" * size,
        )
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Transfer-Encoding: chunked" in head  # the validator hides that it is a list
    assert body.count(b"x") == size
    assert len(files) == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX_A: b\r\nConnection: close\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nConnection: close\r\n\r\n", b"413"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"b\r\nhello world\r\n0\r\n\r\n",
            b"413",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            b"403",
        ),
    ],
)
def test_uvicorn_tells_what_is_refused(request_: bytes, status: bytes) -> None:
    answer = run(over_the_wire(ASGIHandler(hello, max_body=10), request_))
    assert answer.split(b" ")[1] == status


def test_uvicorn_cuts_off_what_failed_after_its_start() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a"
        raise ValueError

    request_ = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = run(over_the_wire(ASGIHandler(Pieces(pieces())), request_))
    assert b"1\r\na\r\n" in answer
    assert not answer.endswith(b"0\r\n\r\n")


def test_a_client_of_uvicorn_that_goes_stops_the_application() -> None:
    closed = threading.Event()

    class App(Pieces):
        def close(self) -> None:
            super().close()
            closed.set()

    app = App(itertools.repeat(b"x" * 65536))

    async def main() -> None:
        async with served(ASGIHandler(app)) as address:
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while not app.made:
                await asyncio.sleep(0)
            writer.transport.abort()
            assert await asyncio.to_thread(closed.wait, 10)

    run(main())
    app.assert_closed()


def test_a_flask_application() -> None:
    flasks = flask.Flask("flasks")
    events: list[str] = []

    @flasks.post("/upload")
    def upload() -> str:
        return f"{len(flask.request.files['file'].read())} {flask.request.headers['X-A']}"

    @flasks.get("/stream")
    def stream() -> flask.Response:
        def pieces() -> Iterator[str]:
            for number in range(3):
                events.append(f"made {number}")
                yield f"{flask.request.args['word']}{number} "

        return flask.Response(flask.stream_with_context(pieces()))

    @flasks.teardown_request
    def teardown(error: BaseException | None) -> None:
        events.append("teardown")

    wire = ask(flasks, path="/stream", query_string=b"word=%C3%A9")
    assert wire.body.decode() == "é0 é1 é2 "
    # Flask has pushed the request's context twice.
    assert events == ["teardown", "made 0", "made 1", "made 2", "teardown"]

    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        + b"x" * 2_000_000
        + b"\r\n--B--\r\n"
    )
    headers = [
        (b"content-type", b"multipart/form-data; boundary=B"),
        (b"content-length", b"%d" % len(form)),
        (b"x-a", b"b"),
    ]
    pieces = [form[start : start + 65536] for start in range(0, len(form), 65536)]
    wire = ask(flasks, *pieces, method="POST", path="/upload", headers=headers)
    assert (wire.status, wire.body) == (200, b"2000000 b")
