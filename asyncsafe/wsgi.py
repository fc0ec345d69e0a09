"""WSGI, as an ASGI server sees it: the environ, the request's body, the response.

PEP 3333 is the reference; ASGI 3's HTTP specification for what is translated.
"""

from __future__ import annotations

import asyncio
import functools
import io
import re
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from threading import Condition
from typing import IO, TYPE_CHECKING, Any
from wsgiref.util import FileWrapper, is_hop_by_hop

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import TracebackType

    ExceptionInfo = (
        tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
    )

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Environ = dict[str, Any]
Application = Callable[..., Iterable[bytes]]

#: Bytes of a request's body that are written to its file at once.
_BLOCK = 1 << 18
#: Bytes of a response that wait for the client before the application has to.
_AHEAD = 1 << 17
#: Seconds after which a thread that waits for room asks whether the loop still runs.
_ASK_AFTER = 5.0

_LENGTH = re.compile(r"[0-9]{1,18}").fullmatch
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
_STATUS = re.compile(r"[2-9][0-9]{2}(?: .*)?").fullmatch


class Refused(Exception):  # noqa: N818  (it is an answer, not an error of ours)
    """A request that gets an answer of ours: an HTTP status and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status: int = status


class Disconnected(Exception):  # noqa: N818
    """The client has gone before its request was complete."""


# The request ---------------------------------------------------------------------------------


def build_environ(scope: Scope) -> Environ:
    """The environ of PEP 3333, but for `wsgi.input`. Raises Refused for what has none."""
    root_path, path = _paths(scope)
    scheme = scope.get("scheme", "http")
    server_name, server_port = _server(scope, scheme)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root_path,
        "PATH_INFO": path,
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": server_name,
        "SERVER_PORT": server_port,
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        "asgi.scope": scope,
    }
    if client := scope.get("client"):
        environ["REMOTE_ADDR"] = client[0] or ""
        if client[1] is not None:  # a Unix socket has none
            environ["REMOTE_PORT"] = str(client[1])
    repeated: dict[str, list[str]] = {}
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = _variable(bytes(raw_name)), raw_value.decode("latin-1")
        if name in environ:
            repeated.setdefault(name, [environ[name]]).append(value)
        else:
            environ[name] = value
    for name, values in repeated.items():
        environ[name] = _join(name, values)
    # The body comes without its transfer coding, and its length is known when it has come.
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    if "CONTENT_LENGTH" in environ and not _LENGTH(environ["CONTENT_LENGTH"]):
        raise Refused(400, "Content-Length is not a number of bytes")
    return environ


def _server(scope: Scope, scheme: str) -> tuple[str, str]:
    """SERVER_NAME and SERVER_PORT, which PEP 3333 wants of Unix sockets too."""
    name, port = scope.get("server") or (None, None)
    if not name or port is None:
        name = "localhost"
    elif ":" in name:
        name = f"[{name}]"  # RFC 3875, 4.1.14
    return name, str(port or (443 if scheme == "https" else 80))


def _paths(scope: Scope) -> tuple[str, str]:
    """SCRIPT_NAME and PATH_INFO: bytes as latin-1, the root path only once."""
    root_path = scope.get("root_path", "").rstrip("/")
    path = scope["path"]
    if "\ufffd" in path and scope.get("raw_path"):
        # The server had to replace what isn't UTF-8. Its bytes are in raw_path, unless somebody
        # has set another path since.
        from urllib.parse import unquote_to_bytes

        raw = unquote_to_bytes(bytes(scope["raw_path"]).partition(b"?")[0])
        path_bytes = raw if raw.decode("utf-8", "replace") == path else path.encode()
    else:
        path_bytes = path.encode("utf-8", "surrogateescape")
    root_bytes = root_path.encode("utf-8", "surrogateescape")
    # In ASGI the path includes the root path; some servers leave it out.
    if path_bytes == root_bytes or path_bytes.startswith(root_bytes + b"/"):
        path_bytes = path_bytes[len(root_bytes) :]
    return root_bytes.decode("latin-1"), path_bytes.decode("latin-1")


@functools.lru_cache(maxsize=128)
def _variable(header: bytes) -> str:
    """The environ's name of a header."""
    name = header.decode("latin-1")
    if "_" in name:
        # As X-Forwarded-For and X_Forwarded_For would be one variable, which anybody could set.
        raise Refused(400, f"A header's name has hyphens, not underscores: {name[:100]}")
    variable = name.upper().replace("-", "_")
    return variable if variable in {"CONTENT_LENGTH", "CONTENT_TYPE"} else f"HTTP_{variable}"


def _join(name: str, values: list[str]) -> str:
    """A header that comes repeatedly (RFC 9110, 5.3; RFC 9113, 8.2.3 for cookies)."""
    if name in {"CONTENT_LENGTH", "CONTENT_TYPE"}:
        if len(set(values)) > 1:
            raise Refused(400, f"{name} was sent twice, and differs")
        return values[0]
    return ("; " if name == "HTTP_COOKIE" else ",").join(values)


async def read_body(receive: Receive, in_memory: int, at_most: int | None) -> IO[bytes]:
    """The request's body, from its begin: in memory, or in a file, which the caller closes.

    in_memory: bytes up to which it is kept in memory; so is one that the server has whole.
    at_most: bytes beyond which it is refused. None: any number.
    Raises Refused beyond that, Disconnected if the client goes before the end; the file is closed.
    """
    blocks: list[bytes] = []
    held = total = 0
    file: IO[bytes] | None = None
    writing: asyncio.Future[IO[bytes]] | None = None
    more = True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            total += len(body)
            if at_most is not None and total > at_most:
                raise Refused(413, f"The body is larger than {at_most} bytes")
            if not more and not blocks and writing is None:
                return io.BytesIO(body)
            blocks.append(body)
            held += len(body)
            if total > in_memory and (not more or writing is None or held >= _BLOCK):
                # It writes to the disk: not on the loop, and while more comes.
                if writing is not None:
                    file = await asyncio.shield(writing)
                loop = asyncio.get_running_loop()
                writing = loop.run_in_executor(None, _write, file, blocks)
                blocks, held = [], 0
        if writing is None:
            return io.BytesIO(b"".join(blocks))
        written = await asyncio.shield(writing)
        written.seek(0)
        return io.BufferedReader(written)  # type: ignore[type-var]
    except BaseException:
        if writing is not None:
            if writing.done():
                _close_written(writing)
            else:
                # What a thread writes to would be another's file, once this one's number is free.
                writing.add_done_callback(_close_written)
        raise


def _write(file: IO[bytes] | None, blocks: list[bytes]) -> IO[bytes]:
    """In a thread: write these to the file, or to a new one. It is closed if that fails."""
    if file is None:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    try:
        # Each write waits for the loop to let go of the interpreter: few and large ones.
        rest = memoryview(b"".join(blocks))
        blocks.clear()
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    return file


def _close_written(writing: asyncio.Future[IO[bytes]]) -> None:
    if not writing.cancelled() and writing.exception() is None:
        writing.result().close()


def length_of(body: IO[bytes]) -> int:
    """Bytes in this body, which is left at its begin."""
    length = body.seek(0, io.SEEK_END)
    body.seek(0)
    return length


# The response ---------------------------------------------------------------------------------


class Response:
    """One call of a WSGI application, in a worker thread, and what it answers.

    A response that is complete at once is sent when the thread is done with it. One that isn't goes
    to the loop piece by piece, no faster than the client takes it.
    """

    def __init__(
        self, application: Application, environ: Environ, body: IO[bytes], loop: AbstractEventLoop
    ) -> None:
        self._application = application
        self._environ = environ
        # The application may put another one into the environ.
        self._request_body = body
        self._loop = loop
        #: The ASGI message that starts the response, once start_response() was called.
        self.start: Message | None = None
        #: The body, or what is left of it when pieces were handed over.
        self.body: bytes = b""
        #: Whether the application has made all of its response.
        self.complete: bool = False
        #: What was raised: before the response was complete, or after it, in close().
        self.failure: BaseException | None = None
        #: Whether the client has gone.
        self.aborted: bool = False
        #: Whether the thread is done with it.
        self.ended: bool = False
        #: Set, on the loop, when there is something to send, or the end.
        self.ready: asyncio.Event = asyncio.Event()
        self._length: int | None = None
        self._counted = 0
        self._handed_over = False
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._changed = Condition()

    # In the worker thread

    def make(self) -> None:
        """Call the application. What it raises is kept in `failure`."""
        try:
            if not self.aborted:
                self._call()
        except BaseException as error:
            self.failure = error

    def end(self) -> None:
        """The thread is done with the request."""
        try:
            self._request_body.close()
        finally:
            self.ended = True
            self._tell()

    def _call(self) -> None:
        iterable: Any = self._application(self._environ, self._start_response)
        try:
            pieces: Iterable[bytes] = iterable
            last = isinstance(iterable, (list, tuple))
            if last:
                for piece in iterable:
                    _check_piece(piece)
                pieces = [b"".join(iterable)]
            for piece in pieces:
                _check_piece(piece)
                if piece and not self._take(piece, last):
                    break
            self._check_end()
        finally:
            if hasattr(iterable, "close"):
                if self.complete:
                    # The client doesn't wait for what is done in close().
                    self._tell()
                iterable.close()

    def _start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExceptionInfo | None = None,
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._handed_over and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a cycle with the traceback's frames (PEP 3333)
        elif self.start is not None:
            raise AssertionError("start_response() was called a second time, without exc_info")
        self.start = {
            "type": "http.response.start",
            "status": _status(status),
            "headers": self._headers(headers),
        }
        return self._write

    def _headers(self, headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
        if type(headers) is not list:
            raise TypeError(f"headers are a list, not {type(headers).__name__} (PEP 3333)")
        length: str | None = None
        encoded = []
        for name, value in headers:
            _check_header(name, value)
            lower, stripped = name.lower(), value.strip(" \t")
            if lower == "content-length":
                if not _LENGTH(stripped) or length not in {None, stripped}:
                    raise ValueError(f"Content-Length is one number of bytes, not {value!r}")
                if length is not None:
                    continue
                length = stripped
            encoded.append((lower.encode("latin-1"), stripped.encode("latin-1")))
        self._length = None if length is None else int(length)
        return encoded

    def _write(self, data: bytes) -> None:
        """What start_response() returns: PEP 3333's write(), for what was written for CGI."""
        if not isinstance(data, bytes):
            raise TypeError(f"write() takes bytes, not {type(data).__name__} (PEP 3333)")
        if (data := self._limited(data)) and not self._hand_over(data):
            raise BrokenPipeError("the client has disconnected")

    def _take(self, piece: bytes, last: bool) -> bool:
        """A piece of the body. Returns whether the application is to go on."""
        if self.start is None:
            raise AssertionError("the application yields before it calls start_response()")
        piece = self._limited(piece)
        if last or not self._has_body() or self._counted == self._length:
            # What Content-Length says has come. PEP 3333: the server should stop iterating.
            self.body = piece
            return False
        return self._hand_over(piece)

    def _limited(self, piece: bytes) -> bytes:
        """No more than Content-Length says, and nothing in an answer that has no body."""
        if not self._has_body():
            return b""
        if self._length is not None:
            piece = piece[: self._length - self._counted]
        self._counted += len(piece)
        return piece

    def _hand_over(self, piece: bytes) -> bool:
        """Give a piece to the loop, when there is room. Returns False once the client has gone."""
        with self._changed:
            while self._waiting >= _AHEAD and not self.aborted:
                if not self._changed.wait(_ASK_AFTER) and not self._loop.is_running():
                    self.aborted = True  # it was closed, or left: nobody sends this
            if self.aborted:
                return False
            self._handed_over = True
            self._pieces.append(piece)
            self._waiting += len(piece)
            tell = len(self._pieces) == 1
        if tell:
            self._tell()
        return True

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self.ready.set)
        except RuntimeError:  # the loop is closed: nobody sends this
            self.abort()

    def _check_end(self) -> None:
        if self.aborted:
            return
        if self.start is None:
            raise AssertionError("the application never called start_response()")
        if self._length is not None and self._counted < self._length and self._has_body():
            raise RuntimeError(
                f"the application said Content-Length: {self._length}, and gave "
                f"{self._counted} bytes"
            )
        if self._length is None and not self._handed_over and self._has_body():
            self.start["headers"].append((b"content-length", b"%d" % len(self.body)))
        self.complete = True

    def _has_body(self) -> bool:
        assert self.start is not None
        status = self.start["status"]
        return self._environ["REQUEST_METHOD"] != "HEAD" and status not in {204, 304}

    # On the loop

    def take_pieces(self) -> bytes:
        """What there is to send."""
        with self._changed:
            pieces = b"".join(self._pieces)
            self._pieces.clear()
        return pieces

    def sent(self, count: int) -> None:
        """So many bytes have been sent: there is room again."""
        with self._changed:
            self._waiting -= count
            self._changed.notify()

    def abort(self) -> None:
        """The client has gone: have the application stop."""
        with self._changed:
            self.aborted = True
            self._changed.notify_all()


def _status(status: str) -> int:
    if not isinstance(status, str) or not _STATUS(status) or _CONTROL(status):
        raise ValueError(f"a status is like '200 OK', and no interim one, not {status!r}")
    return int(status[:3])


def _check_piece(piece: bytes) -> None:
    if not isinstance(piece, bytes):
        raise TypeError(f"a WSGI application yields bytes, not {type(piece).__name__} (PEP 3333)")


def _check_header(name: str, value: str) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a header's name and value are strings (PEP 3333): {name!r}: {value!r}")
    if not _TOKEN(name):
        raise ValueError(f"{name!r} is no name of a header")
    if _CONTROL(value):
        raise ValueError(f"the header {name} has a control character in its value: {value!r}")
    if is_hop_by_hop(name):
        raise ValueError(f"{name} is the server's to set, not the application's (PEP 3333)")
