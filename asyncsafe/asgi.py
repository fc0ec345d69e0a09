"""Connections for each request of an ASGI application, and WSGI applications on ASGI servers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from . import owners
from .connections import ConnectionHandler, start_in_thread
from .exceptions import ConfigurationError
from .thread_locals import SwappedLocal
from .wsgi import (
    Application,
    Disconnected,
    Receive,
    Refused,
    Response,
    Scope,
    Send,
    build_environ,
    length_of,
    read_body,
)

T = TypeVar("T")

__all__ = ["ASGIHandler", "ConnectionMiddleware"]

ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Threads that stay when no request needs them.
IDLE_THREADS = 40
#: Seconds that a request may take before its client is watched, which costs more than most take.
_WATCH_AFTER = 0.05


class Closable(Protocol):
    """What can close the connections of the thread that calls it: `django.db.connections`."""

    def close_all(self) -> object:
        """Close them."""


class ConnectionMiddleware:
    """Any ASGI application, with connections for each request or WebSocket connection of its own.

    app: the application.
    handlers: what keeps its connections: ConnectionHandlers, what `use_local()` returned, and
        whatever has a `close_all()` that closes the calling thread's (`django.db.connections`).

    A request is an owner: what it and its `database_sync_to_async` calls use is not shared with
    another, and is closed, or given back to its pool, when it ends: after an exception, a
    disconnect, a cancellation too, in the thread that made it. Thread-sensitive calls (asgiref's
    `sync_to_async`) of a request have a thread that is theirs while it lasts, as in a
    ThreadSensitiveContext, but one that has served other requests: a new one costs twenty times as
    much.

    Raises ConfigurationError for what is no application or handler.
    """

    def __init__(self, app: ASGIApplication, *handlers: Closable) -> None:
        if not callable(app):
            raise ConfigurationError(
                f"an ASGI application is callable; this is a {type(app).__name__}"
            )
        self.app: ASGIApplication = app
        self._others = _without_ours(handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = owners.Request(_name(scope), asyncio.current_task())
        thread = _RequestThread()
        sensitive = ThreadSensitiveContext()
        async with sensitive:
            # Below another ThreadSensitiveContext, that one's thread is used.
            outermost = SyncToAsync.thread_sensitive_context.get() is sensitive
            if outermost:
                SyncToAsync.context_to_thread_executor[sensitive] = thread
            request.begin()
            try:
                await self.app(scope, receive, send)
            finally:
                try:
                    released = self._end(request, thread.used or not outermost)
                    if outermost:
                        # Whoever outlives the request gets a thread from asgiref.
                        SyncToAsync.context_to_thread_executor.pop(sensitive, None)
                        thread.give_back()
                    if released is not None:
                        await asyncio.shield(released)
                finally:
                    request.leave()
        if scope["type"] == "lifespan":
            close_idle_threads()

    def _end(self, request: owners.Request, used_a_thread: bool) -> asyncio.Future[Any] | None:
        """Release what the request still has. Returns what is done when that is, or None."""
        request.ended = True
        for owner in request.owners:
            owner.ended = True
            owner.release()
        left = [owner for owner in request.owners if owner.kept]
        others = self._others if used_a_thread else ()
        if not left and not others:
            return None

        def release() -> None:
            for owner in left:
                owner.release(everything=True)
            for handler in others:
                _close_all(handler)

        return start_in_thread(contextvars.copy_context(), release)


class ASGIHandler:
    """A synchronous (WSGI) application, for ASGI servers: HTTP and lifespan.

    wsgi_app: the application (PEP 3333).
    handlers: as for ConnectionMiddleware: a request's connections are its own, and closed, or
        given back, in the thread that served it, when its response has been made.
    threads: how many requests are served at a time. Others wait, and are dropped if their client
        goes.
    max_body: bytes beyond which a request's body is refused with 413. None: any number.
    body_in_memory: bytes up to which it is kept in memory; a larger one in a temporary file.

    A request that can't be one gets 400, a WebSocket is refused, an application that raises gives
    500. A client that disconnects stops the application at the next piece of the body it yields.

    Raises ConfigurationError for what is no application or handler, or such a number.
    """

    def __init__(
        self,
        wsgi_app: Application,
        *handlers: Closable,
        threads: int = 40,
        max_body: int | None = 1 << 30,
        body_in_memory: int = 1 << 20,
    ) -> None:
        if not callable(wsgi_app):
            raise ConfigurationError(
                f"a WSGI application is callable; this is a {type(wsgi_app).__name__}"
            )
        for name, number in (("threads", threads), ("body_in_memory", body_in_memory)):
            if not isinstance(number, int) or number < (name == "threads"):
                raise ConfigurationError(f"{name} is a positive number, not {number!r}")
        if max_body is not None and (not isinstance(max_body, int) or max_body < 0):
            raise ConfigurationError(f"max_body is a number of bytes, or None, not {max_body!r}")
        self.wsgi_app: Application = wsgi_app
        self._others = _without_ours(handlers)
        self._threads = threads
        self._max_body = max_body
        self._body_in_memory = body_in_memory
        self._executor: ThreadPoolExecutor | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket":
            await receive()
            # Before it is accepted, that is a 403 to the client.
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"a WSGI application serves HTTP, not {kind!r}")

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                if self._executor is not None:
                    self._executor.shutdown(wait=False)
                    self._executor = None
                return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            environ = build_environ(scope)
            length = environ.get("CONTENT_LENGTH")
            if length is not None and self._max_body is not None and int(length) > self._max_body:
                raise Refused(413, f"The body is larger than {self._max_body} bytes")
            body = await read_body(receive, self._body_in_memory, self._max_body)
        except Refused as refused:
            await _answer(send, refused.status, str(refused))
            return
        except Disconnected:
            return
        if length is None and (size := length_of(body)):
            environ["CONTENT_LENGTH"] = str(size)
        environ["wsgi.input"] = body
        response = Response(self.wsgi_app, environ, body, asyncio.get_running_loop())
        run = functools.partial(self._run, response, owners.Owner(_name(scope)))
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="asyncsafe-wsgi")
        called = self._executor.submit(contextvars.copy_context().run, run)
        await _Exchange(response, called, receive, send).run()

    def _run(self, response: Response, owner: owners.Owner) -> None:
        """In a thread: make the response, and end the request there."""
        try:
            with owners.acting_for(owner):
                response.make()
                owner.ended = True
                owner.release(everything=True)
                for handler in self._others:
                    _close_all(handler)
        finally:
            response.end()


class _Exchange:
    """One request from the loop's side, while a thread makes its response."""

    def __init__(
        self, response: Response, called: Future[None], receive: Receive, send: Send
    ) -> None:
        self._response = response
        self._called = called
        self._receive = receive
        self._send = send
        self._started = False
        self._watch: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Send what the thread makes, until it is done."""
        response = self._response
        timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._watch_client)
        try:
            while not response.ended:
                await response.ready.wait()
                await self._send_pieces()
            await self._finish()
        except OSError:
            if response.failure is not None:
                raise
            # What send() raises when the client has gone (ASGI 3, version 2.4).
        finally:
            timer.cancel()
            if self._watch is not None:
                self._watch.cancel()
            if not response.ended:
                self._stop()

    async def _send_pieces(self) -> None:
        pieces = self._response.take_pieces()
        if not pieces:
            return
        await self._start()
        await self._send({"type": "http.response.body", "body": pieces, "more_body": True})
        self._response.sent(len(pieces))

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            self._watch_client()
            assert self._response.start is not None
            await self._send(self._response.start)

    async def _finish(self) -> None:
        response = self._response
        await self._send_pieces()
        failure = response.failure
        if response.aborted:
            if failure is not None and not isinstance(failure, BrokenPipeError):
                raise failure
            return
        if failure is None or response.complete:
            if not self._started:
                assert response.start is not None
                await self._send(response.start)
            await self._send({"type": "http.response.body", "body": response.body})
        elif not self._started:
            await _answer(self._send, 500, "Internal Server Error")
        if failure is not None:
            raise failure

    def _watch_client(self) -> None:
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._stop()

    def _stop(self) -> None:
        """Nobody wants the response any more."""
        self._response.abort()
        if self._called.cancel():  # no thread has begun with it
            self._response.end()


class _RequestThread(Executor):
    """The thread for a request's thread-sensitive calls: borrowed when the first comes."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    @property
    def used(self) -> bool:
        return self._executor is not None

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As Executor.submit()."""
        if self._executor is None:
            try:
                self._executor = _idle.pop()
            except IndexError:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="asyncsafe-request")
        return self._executor.submit(fn, *args, **kwargs)

    def give_back(self) -> None:
        """To the next request; what was submitted is done before what that one submits."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        if len(_idle) < IDLE_THREADS:
            _idle.append(executor)
        else:
            executor.shutdown(wait=False)


_idle: deque[ThreadPoolExecutor] = deque()


def close_idle_threads() -> None:
    """End the threads that no request needs. The next request makes another."""
    while _idle:
        _idle.pop().shutdown(wait=False)


def _forget_threads() -> None:
    _idle.clear()  # a forked child has none of them


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(scope: Scope) -> str:
    """A request, as errors tell it."""
    if scope["type"] == "http":
        return f"request {scope['method']} {scope['path']}"
    return f"{scope['type']} {scope.get('path', '')}".rstrip()


def _without_ours(handlers: tuple[Closable, ...]) -> tuple[Closable, ...]:
    """Those that must be asked to close. Ours know their owners' ends themselves."""
    for handler in handlers:
        if not callable(getattr(handler, "close_all", None)) or isinstance(handler, type):
            raise ConfigurationError(
                "a handler is a ConnectionHandler, what use_local() returned, or has a "
                f"close_all(); this is a {type(handler).__name__}"
            )
    return tuple(h for h in handlers if not isinstance(h, (ConnectionHandler, SwappedLocal)))


def _close_all(handler: Closable) -> None:
    try:
        handler.close_all()
    except Exception:
        logging.getLogger("asyncsafe").warning("%r.close_all() failed", handler, exc_info=True)
