"""Applications that insert a row for each request, in a transaction of two calls.

SERVING_DSN: the database. SERVING_POOL: which pool caps the connections, "sqlalchemy" or
"psycopg_pool". `GET /17` inserts 17, and is answered when that is committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import asyncsafe
from asyncsafe.asgi import ASGIHandler, ConnectionMiddleware

from . import CAP, NAME

#: Seconds that a request waits for a connection, before it fails.
PATIENCE = 30


def connect() -> Callable[[], Any]:
    dsn = os.environ["SERVING_DSN"]
    if os.environ["SERVING_POOL"] == "psycopg_pool":
        from psycopg_pool import ConnectionPool

        return ConnectionPool(
            dsn,
            min_size=1,
            max_size=CAP,
            timeout=PATIENCE,
            kwargs={"application_name": NAME},
            open=True,
        ).getconn
    import psycopg2
    from sqlalchemy.pool import QueuePool

    return QueuePool(
        lambda: psycopg2.connect(dsn, application_name=NAME),
        pool_size=CAP,
        max_overflow=0,
        timeout=PATIENCE,
    ).connect


connections = asyncsafe.ConnectionHandler({"default": connect()})


@asyncsafe.database_sync_to_async
def insert(number: int) -> None:
    connections["default"].cursor().execute("INSERT INTO served VALUES (%s)", (number,))


@asyncsafe.database_sync_to_async
def commit() -> None:
    connections["default"].commit()


async def asynchronous(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError  # as an application that has no lifespan
    await insert(int(scope["path"][1:]))
    await commit()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def synchronous(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    number = int(environ["PATH_INFO"][1:])
    connections["default"].cursor().execute("INSERT INTO served VALUES (%s)", (number,))
    connections["default"].commit()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


middleware = ConnectionMiddleware(asynchronous, connections)
handler = ASGIHandler(synchronous, connections)
