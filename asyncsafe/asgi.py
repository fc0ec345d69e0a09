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
from threading import get_ident
from typing import Any, Protocol, TypeVar
from weakref import WeakSet, ref

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext

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


#: Libraries with a `close_all()` that isn't about the calling thread.
_NOT_FOR_ONE_THREAD = {
    "peewee": "a peewee database",
    "playhouse": "a peewee database",
    "sqlalchemy": "SQLAlchemy's sessions",
}


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
        owners.watch_workers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        request = owners.Request(_name(scope), task)
        thread = _RequestThread(request)
        entered = _RequestContext.enter(task, thread)
        request.begin()
        thrown_away = False
        try:
            await self.app(scope, receive, send)
        except GeneratorExit:
            # By whoever freed it, when its loop had ended: neither is this its context, nor may it
            # await.
            thrown_away = True
            raise
        finally:
            try:
                if thrown_away:
                    _release_here(request)
                elif (released := self._end(request, thread, entered)) is not None:
                    await asyncio.shield(released)
            finally:
                if entered is not None:
                    entered.leave(thrown_away)
                if not thrown_away:
                    request.leave()
                if scope["type"] == "lifespan":
                    close_idle_threads()

    def _end(
        self, request: owners.Request, thread: _RequestThread, entered: _RequestContext | None
    ) -> asyncio.Future[Any] | None:
        """Release what the request still has. Returns what is done when that is, or None."""
        request.end()
        mine = request.idle()
        # Below another ThreadSensitiveContext, or async_to_sync, it is a thread of theirs.
        ours = entered is not None and getattr(AsyncToSync.executors, "current", None) is None
        if not ours or thread.busy:
            # A call that was cancelled still runs there, and may use what this thread made.
            here = [owner for owner in mine if get_ident() in owner.made_in.values()]
        else:
            here = []
            for owner in mine:
                owner.release()
        left = [owner for owner in mine if owner.kept]
        others = self._others if thread.used or not ours else ()
        if not left and not others:
            return None

        def release() -> None:
            for owner in left:
                owner.release(everything=owner not in here)
            for handler in others:
                _close_all(handler)

        try:
            released = start_in_thread(contextvars.copy_context(), release)
        except RuntimeError:  # the interpreter shuts down: no thread starts any more
            _release_here(request)
            return None
        if here:
            released.add_done_callback(lambda _: _release_here(request))
        return released


def _release_here(request: owners.Request) -> None:
    """Release all that a request has, in this thread."""
    request.end()
    for owner in request.idle():
        owner.release(everything=True)


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
        body_in_memory: int = 1 << 18,
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
        _wsgi_handlers.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket":
            if (await receive())["type"] == "websocket.connect":
                # Before it is accepted, that is a 403 to the client.
                await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"a WSGI application serves HTTP, not {kind!r}")

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                self._end_threads()
                return

    def _end_threads(self) -> None:
        """End the threads, each when it has done its work. The next request starts others."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

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
        try:
            size = length_of(body)
            if size or length is not None:
                environ["CONTENT_LENGTH"] = str(size)
            environ["wsgi.input"] = body
            environ["wsgi.multithread"] = self._threads > 1
            response = Response(self.wsgi_app, environ, body, asyncio.get_running_loop())
            called = self._submit(response, owners.Owner(_name(scope)))
        except BaseException:
            body.close()
            raise
        await _Exchange(response, called, receive, send).run()

    def _submit(self, response: Response, owner: owners.Owner) -> Future[None]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="asyncsafe-wsgi")
        context = contextvars.copy_context()
        try:
            return self._executor.submit(lambda: context.run(self._run, response, owner))
        except BaseException:
            response.abort()  # where no thread could be started, it waits for another
            raise

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


_wsgi_handlers: WeakSet[ASGIHandler] = WeakSet()


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
        self._finished = False
        self._watch: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Send what the thread makes, until it is done. Raises what the application raised."""
        response = self._response
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_WATCH_AFTER, self._watch_client)
        ended = False
        try:
            while not ended:
                await response.ready.wait()
                response.ready.clear()
                ended = response.ended
                if not response.aborted and not self._finished:
                    try:
                        await self._send_more(ended)
                    except OSError:  # ASGI 2.4: the client has gone
                        self._stop()
        finally:
            if not ended:
                self._stop()
            timer.cancel()
            if self._watch is not None and not loop.is_closed():
                self._watch.cancel()
        failure, response.failure = response.failure, None
        if failure is None or (response.aborted and isinstance(failure, BrokenPipeError)):
            return
        try:
            if isinstance(failure, Exception):
                raise failure
            # Raised here, SystemExit and its like would end the server, or look like a cancellation.
            raise RuntimeError(f"the WSGI application raised {failure!r}") from failure
        finally:
            del failure  # a cycle with the traceback's frames

    async def _send_more(self, ended: bool) -> None:
        """Send what there is."""
        response = self._response
        complete = response.complete  # before the pieces: then these are all
        pieces = response.take_pieces()
        if complete:
            self._finished = True
            await self._start()
            await self._send({"type": "http.response.body", "body": pieces + response.body})
        elif pieces:
            await self._start()
            await self._send({"type": "http.response.body", "body": pieces, "more_body": True})
            response.sent(len(pieces))
        elif ended and not self._started:
            await _answer(self._send, 500, "Internal Server Error")

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            assert self._response.start is not None
            await self._send(self._response.start)

    def _watch_client(self) -> None:
        if self._watch is None and not self._finished:
            self._watch = asyncio.ensure_future(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            # There should be no other message. One that comes at once, again and again, would
            # keep the loop from everything else.
            await asyncio.sleep(_WATCH_AFTER)
        if not self._finished:
            self._stop()

    def _stop(self) -> None:
        """Nobody wants the response any more."""
        self._response.abort()
        if self._called.cancel():  # no thread has begun with it
            self._response.end()


class _RequestThread(Executor):
    """The thread for a request's thread-sensitive calls: borrowed when the first comes.

    They act for the task that awaits them, those by asgiref's `sync_to_async` too.
    """

    def __init__(self, request: owners.Request) -> None:
        self._request = request
        self._executor: ThreadPoolExecutor | None = None
        self._last: Future[Any] | None = None
        self._children: WeakSet[owners.Owner] = WeakSet()

    @property
    def used(self) -> bool:
        """Whether a call was submitted."""
        return self._last is not None

    @property
    def busy(self) -> bool:
        """Whether a call may be running."""
        # One that was cancelled before it began tells nothing of those before it.
        last = self._last
        return last is not None and (not last.done() or last.cancelled())

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As Executor.submit()."""
        if self._executor is None:
            try:
                self._executor = _idle.pop()
            except IndexError:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="asyncsafe-request")
        owner = owners.current()
        if owner.task() is None:  # in a callback, what an ended child task has is released
            submitted = self._executor.submit(fn, *args, **kwargs)
        else:
            if owner is not self._request.owner:  # a child task's
                self._children.add(owner)
                if owner.leave is None:
                    owner.leave = functools.partial(_leave, contextvars.copy_context())
            submitted = self._executor.submit(_run_for, owner, fn, *args, **kwargs)
        self._last = submitted
        return submitted

    def give_back(self) -> None:
        """To the next request, when what was submitted is done.

        While a child task that outlives the request may need it, it stays with that and its like.
        """
        executor, busy = self._executor, self.busy
        if executor is None:
            return
        if any((child.kept or busy) and not child.ended for child in self._children):
            return
        self._executor = None
        if not busy:
            _keep(executor)
            return
        try:
            executor.submit(_keep, executor)
        except RuntimeError:  # the interpreter shuts down
            pass

    def __del__(self) -> None:
        # The last context that knew it has gone. Nothing here may wait for a lock.
        if self._executor is not None and not self.busy:
            _idle.append(self._executor)


class _RequestContext(ThreadSensitiveContext):
    """A ThreadSensitiveContext whose thread is borrowed.

    It isn't entered by `async with`, which would end the thread, and wait for calls that tasks make
    who outlive the request.
    """

    @classmethod
    def enter(cls, task: Any, thread: _RequestThread) -> _RequestContext | None:
        """From here on, this thread is for thread-sensitive calls.

        Returns None below another ThreadSensitiveContext, where that one's is.
        """
        outer = SyncToAsync.thread_sensitive_context.get(None)
        # Servers start a pipelined request in the context of the one before it.
        if outer is not None and not (isinstance(outer, cls) and outer._task() is not task):
            return None
        return cls(task, thread)

    def __init__(self, task: Any, thread: _RequestThread) -> None:
        super().__init__()
        self._task: Callable[[], Any] = ref(task)
        self._thread = thread
        self._token = SyncToAsync.thread_sensitive_context.set(self)
        SyncToAsync.context_to_thread_executor[self] = thread

    def leave(self, thrown_away: bool) -> None:
        """Give the thread back. Tasks that outlive the request borrow another.

        thrown_away: in another context than it was entered in.
        """
        if not thrown_away:
            SyncToAsync.thread_sensitive_context.reset(self._token)
        self._thread.give_back()


def _run_for(owner: owners.Owner, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    with owners.acting_for(owner):
        try:
            return fn(*args, **kwargs)
        finally:
            if owner.ended:  # the call went on when its task was cancelled
                owner.release()


def _leave(context: contextvars.Context, owner: owners.Owner) -> bool:
    """Release what is an ended task's in the thread of this context. Returns whether it is done."""
    try:
        start_in_thread(context, functools.partial(owner.release, everything=True))
    except RuntimeError:
        return False
    return True


def _keep(executor: ThreadPoolExecutor) -> None:
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
    # A forked child has none of them.
    _idle.clear()
    for handler in _wsgi_handlers:
        handler._executor = None


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
        library = next(
            (
                name
                for kind in type(handler).__mro__
                if (name := kind.__module__.partition(".")[0]) in _NOT_FOR_ONE_THREAD
            ),
            None,
        )
        if library is not None:
            raise ConfigurationError(
                f"the close_all() of {_NOT_FOR_ONE_THREAD[library]} closes those of all requests: "
                "pass what use_local() returned for it"
            )
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
