"""Many requests in one process: what is left of them?

python -m tests.serving.leaks 50000 [middleware] [handler]
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
from asgiref.sync import sync_to_async
from sqlalchemy.pool import QueuePool

import asyncsafe
from asyncsafe.asgi import ASGIHandler, ConnectionMiddleware

#: How many requests are served at a time, and to how many connections.
AT_A_TIME = 20
CAP = 5


class Figures(NamedTuple):
    """What there is in the process while no request is served."""

    connections: int
    threads: int
    files: int
    objects: int
    kilobytes: int

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in self._asdict().items())


class Serving:
    """An application with a database of its own, and requests to it."""

    def __init__(self, kind: str, path: Path) -> None:
        self.random = random.Random(kind)
        self.pool = QueuePool(
            lambda: sqlite3.connect(path, check_same_thread=False), pool_size=CAP, max_overflow=0
        )
        self.connections = asyncsafe.ConnectionHandler({"default": self.pool.connect})
        application: Any = ConnectionMiddleware(self.asynchronous, self.connections)
        if kind == "handler":
            application = ASGIHandler(self.synchronous, self.connections, body_in_memory=1000)
        self.application = application

    def query(self) -> None:
        cursor = self.connections["default"].cursor()
        cursor.execute("SELECT 1")
        cursor.fetchone()

    async def asynchronous(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        ways = (
            asyncsafe.database_sync_to_async(self.query),
            sync_to_async(self.query),
            lambda: asyncio.to_thread(self.query),
            lambda: anyio.to_thread.run_sync(self.query),
            lambda: asyncio.create_task(asyncsafe.database_sync_to_async(self.query)()),
        )
        # A request with more than one connection at a time could wait for itself.
        await ways[scope["way"]]()
        if scope["fails"]:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    def synchronous(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        scope = environ["asgi.scope"]
        environ["wsgi.input"].read()
        self.query()
        if scope["fails"]:
            raise ZeroDivisionError
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"] if scope["way"] else (bytes(10_000) for _ in range(3))

    async def request(self) -> None:
        """One request; some are cancelled, some fail, some have a body that goes to a file."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [],
            "way": self.random.randrange(5),
            "fails": self.random.random() < 0.1,
        }
        steps = self.random.randrange(8) if self.random.random() < 0.1 else None
        body = [bytes(10 if self.random.random() < 0.9 else 10_000)] * 2

        async def receive() -> dict[str, Any]:
            if not body:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": body.pop(), "more_body": bool(body)}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        task = asyncio.ensure_future(self.application(scope, receive, send))
        if steps is not None:
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(ZeroDivisionError, asyncio.CancelledError):
            await task

    async def requests(self, count: int) -> None:
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                await self.request()

        await asyncio.gather(*(client() for _ in range(AT_A_TIME)))
        async with asyncio.timeout(20):
            while self.pool.checkedout():
                await asyncio.sleep(0.01)

    def figures(self) -> Figures:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        return Figures(
            connections=self.pool.checkedout(),
            threads=threading.active_count(),
            files=len(os.listdir("/proc/self/fd")),
            objects=len(gc.get_objects()),
            kilobytes=int(status.partition("VmRSS:")[2].split()[0]),
        )


async def measure(kind: str, count: int, steps: int = 2) -> list[Figures]:
    """The figures after some requests, and after each of so many equal parts of all of them."""
    # An error that nobody retrieves, of a request that was cancelled.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        serving = Serving(kind, Path(directory) / "db.sqlite3")
        await serving.requests(max(500, count // 10))
        told = [serving.figures()]
        for _ in range(steps):
            await serving.requests(count // steps)
            told.append(serving.figures())
        serving.pool.dispose()
    return told


def main() -> None:
    count = int(sys.argv[1])
    for kind in sys.argv[2:] or ["middleware", "handler"]:
        steps = 5
        for number, figures in enumerate(asyncio.run(measure(kind, count, steps))):
            print(f"{kind:10} after {number * count // steps:6} requests: {figures}")


if __name__ == "__main__":
    main()
