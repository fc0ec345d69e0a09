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
_BLOCK = 1 << 20
#: Bytes of a response that wait for the client before the application has to.
_AHEAD = 1 << 18

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
_STATUS = re.compile(r"[1-9]\d\d(?: .*)?").fullmatch


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
    server = scope.get("server") or ("localhost", None)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root_path,
        "PATH_INFO": path,
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": server[0],
        # A Unix socket has none, and PEP 3333 wants one.
        "SERVER_PORT": str(server[1] or (443 if scheme == "https" else 80)),
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
        environ["REMOTE_ADDR"] = client[0]
        environ["REMOTE_PORT"] = str(client[1])
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = _variable(bytes(raw_name)), raw_value.decode("latin-1")
        if name in environ:
            value = _join(name, environ[name], value)
        environ[name] = value
    # The body comes without its transfer coding, and its length is known when it has come.
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    length = environ.get("CONTENT_LENGTH")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise Refused(400, f"Content-Length is a number of bytes, not {length!r}")
    return environ


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


@functools.lru_cache(maxsize=512)
def _variable(header: bytes) -> str:
    """The environ's name of a header."""
    name = header.decode("latin-1")
    if "_" in name:
        # As X-Forwarded-For and X_Forwarded_For would be one variable, which anybody could set.
        raise Refused(400, f"A header's name has hyphens, not underscores: {name[:100]}")
    variable = name.upper().replace("-", "_")
    return variable if variable in {"CONTENT_LENGTH", "CONTENT_TYPE"} else f"HTTP_{variable}"


def _join(name: str, first: str, second: str) -> str:
    """A header that comes repeatedly (RFC 9110, 5.3; RFC 9113, 8.2.3 for cookies)."""
    if name in {"CONTENT_LENGTH", "CONTENT_TYPE"}:
        if first != second:
            raise Refused(400, f"{name} was sent twice, and differs")
        return first
    return f"{first}; {second}" if name == "HTTP_COOKIE" else f"{first},{second}"


async def read_body(receive: Receive, in_memory: int, at_most: int | None) -> IO[bytes]:
    """The request's body, from its begin: in memory, or in a file, which the caller closes.

    in_memory: bytes up to which it is kept in memory.
    at_most: bytes beyond which it is refused. None: any number.
    Raises Refused beyond that, Disconnected if the client goes before the end; the file is closed.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if at_most is not None and len(body) > at_most:
            raise Refused(413, f"The body is larger than {at_most} bytes")
        return io.BytesIO(body)
    blocks: list[bytes] = []
    held = total = 0
    file: IO[bytes] | None = None
    loop = asyncio.get_running_loop()
    try:
        while True:
            if message["type"] == "http.disconnect":
                raise Disconnected
            body = message.get("body", b"")
            total += len(body)
            if at_most is not None and total > at_most:
                raise Refused(413, f"The body is larger than {at_most} bytes")
            blocks.append(body)
            held += len(body)
            if total > in_memory and held >= (_BLOCK if file else 0):
                if file is None:
                    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                # It writes to the disk: not on the loop.
                await asyncio.shield(loop.run_in_executor(None, _write, file, blocks))
                blocks, held = [], 0
            if not message.get("more_body"):
                break
            message = await receive()
        if file is None:
            return io.BytesIO(b"".join(blocks))
        await asyncio.shield(loop.run_in_executor(None, _write, file, blocks))
        file.seek(0)
        return io.BufferedReader(file)  # type: ignore[type-var]
    except BaseException:
        if file is not None:
            file.close()
        raise


def _write(file: IO[bytes], blocks: list[bytes]) -> None:
    rest = memoryview(b"".join(blocks))
    while rest:
        rest = rest[file.write(rest) :]


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
            pieces = [b"".join(iterable)] if isinstance(iterable, (list, tuple)) else iterable
            last = pieces is not iterable
            for piece in pieces:
                if not isinstance(piece, bytes):
                    raise TypeError(
                        f"a WSGI application yields bytes, not {type(piece).__name__} (PEP 3333)"
                    )
                if piece and not self._take(piece, last):
                    break
            self._check_end()
        finally:
            if hasattr(iterable, "close"):
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
        self._length = None
        encoded = []
        for name, value in headers:
            _check_header(name, value)
            if name.lower() == "content-length":
                self._length = int(value)
            encoded.append((name.lower().encode("latin-1"), value.encode("latin-1")))
        return encoded

    def _write(self, data: bytes) -> None:
        """What start_response() returns: PEP 3333's write(), for what was written for CGI."""
        if not isinstance(data, bytes):
            raise TypeError(f"write() takes bytes, not {type(data).__name__} (PEP 3333)")
        if data and not self._hand_over(self._limited(data)):
            raise BrokenPipeError("the client has disconnected")

    def _take(self, piece: bytes, last: bool) -> bool:
        """A piece of the body. Returns whether the application is to go on."""
        if self.start is None:
            raise AssertionError("the application yields before it calls start_response()")
        piece = self._limited(piece)
        if last or (self._length is not None and self._counted >= self._length):
            # What Content-Length says has come. PEP 3333: the server should stop iterating.
            self.body = piece
            return False
        return self._hand_over(piece)

    def _limited(self, piece: bytes) -> bytes:
        """No more than Content-Length says."""
        if self._length is not None:
            piece = piece[: self._length - self._counted]
        self._counted += len(piece)
        return piece

    def _hand_over(self, piece: bytes) -> bool:
        """Give a piece to the loop, when there is room. Returns False once the client has gone."""
        with self._changed:
            while self._waiting >= _AHEAD and not self.aborted:
                self._changed.wait()
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
        self.ready.clear()
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
        raise ValueError(f"a status is three digits, a space and a reason, not {status!r}")
    return int(status[:3])


def _check_header(name: str, value: str) -> None:
    if type(name) is not str or type(value) is not str:
        raise TypeError(f"a header's name and value are strings (PEP 3333): {name!r}: {value!r}")
    if not _TOKEN(name):
        raise ValueError(f"{name!r} is no name of a header")
    if _CONTROL(value):
        raise ValueError(f"the header {name} has a control character in its value: {value!r}")
    if is_hop_by_hop(name):
        raise ValueError(f"{name} is the server's to set, not the application's (PEP 3333)")
