"""Real servers, a capped pool, and clients of whom a third goes at random moments."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from .running import python
from .serving import CAP, NAME
from .serving.clients import Clients

ROOT = Path(__file__).parent.parent
REQUESTS = 1000
#: Seconds after which something that should happen has not.
LONG = 30.0

SERVERS = {
    "uvicorn": ["uvicorn", "--port", "{port}", "--log-level", "warning"],
    "daphne": ["daphne", "-p", "{port}", "-v", "0"],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning"],
}
RUNS = [
    pytest.param(server, application, pool, id=f"{server}-{application}-{pool}")
    for server, application, pool in [
        ("uvicorn", "middleware", "sqlalchemy"),
        ("daphne", "middleware", "sqlalchemy"),
        ("hypercorn", "middleware", "sqlalchemy"),
        ("uvicorn", "handler", "sqlalchemy"),
        ("daphne", "handler", "sqlalchemy"),
        ("hypercorn", "handler", "sqlalchemy"),
        ("uvicorn", "middleware", "psycopg_pool"),
        ("uvicorn", "handler", "psycopg_pool"),
    ]
]


class Activity(threading.Thread):
    """What pg_stat_activity says of the server's connections, while it runs."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        self.most = 0
        self.samples = 0
        self.stopped = threading.Event()

    def now(self, condition: str = "true") -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                f" WHERE application_name = %s AND {condition}",
                (NAME,),
            )
            return cursor.fetchone()[0]  # type: ignore[index,no-any-return]

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.most = max(self.most, self.now())
            self.samples += 1

    def stop(self) -> None:
        self.stopped.set()
        self.join(LONG)


def wait_until(true: Callable[[], Any]) -> bool:
    """Whether this becomes true."""
    end = time.monotonic() + LONG
    while not (is_true := bool(true())) and time.monotonic() < end:
        time.sleep(0.02)
    return is_true


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def serving(
    server: str, application: str, pool: str, dsn: str, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server's process, and its port. It has ended afterwards."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.format(port=port) for part in SERVERS[server]]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"tests.serving.applications:{application}"],
            cwd=ROOT,
            env={**os.environ, "SERVING_DSN": dsn, "SERVING_POOL": pool},
            stdout=output,
            stderr=output,
        )
        try:
            assert wait_until(lambda: listens(port) or process.poll() is not None)
            assert process.poll() is None
            yield process, port
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(LONG)


@pytest.fixture
def table(postgres: str) -> Iterator[psycopg2.extensions.connection]:
    """A connection to where there is a table `served`, which is empty."""
    with closing(psycopg2.connect(postgres)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS served; CREATE TABLE served (number int)")
        yield connection


def rows(connection: psycopg2.extensions.connection) -> dict[int, int]:
    """How often each number is there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT number, count(*) FROM served GROUP BY number")
        return dict(cursor.fetchall())


@pytest.mark.parametrize(("server", "application", "pool"), RUNS)
def test_no_row_is_lost_or_doubled_and_no_connection_leaks(
    server: str,
    application: str,
    pool: str,
    postgres: str,
    table: psycopg2.extensions.connection,
    tmp_path: Path,
) -> None:
    seed = int(
        os.environ.get("SERVING_SEED", random.Random(f"{server} {application}").getrandbits(32))
    )
    log = tmp_path / "log"
    activity = Activity(postgres)
    try:
        with serving(server, application, pool, postgres, log) as (process, port):
            activity.start()
            clients = Clients(port, seed)
            asyncio.run(clients.run(range(REQUESTS), aborting=1 / 3))
            assert set(clients.answers.values()) == {200}
            assert wait_until(
                lambda: activity.now("starts_with(state, 'idle in transaction')") == 0
            )
            # Every connection of the pool is there for those who come now.
            asyncio.run(clients.run(range(REQUESTS, REQUESTS + 3 * CAP), aborting=0))
            activity.stop()
            process.send_signal(signal.SIGTERM)
            process.wait(LONG)
        assert wait_until(lambda: activity.now() == 0), "a connection is left"
    finally:
        activity.stop()
        print(f"SERVING_SEED={seed}", log.read_text(errors="replace")[-5000:], sep="\n")
    stayed, gone = set(clients.answers), clients.aborted
    assert len(stayed | gone) == REQUESTS + 3 * CAP
    assert set(clients.answers.values()) == {200}
    found = rows(table)
    assert {number: found.get(number, 0) for number in stayed} == dict.fromkeys(stayed, 1)
    assert all(found.get(number, 0) <= 1 for number in gone)
    assert found.keys() <= stayed | gone
    assert 1 < activity.most <= CAP
    assert activity.samples > 10
    said = log.read_text(errors="replace")
    assert "asyncsafe" not in said.replace(str(ROOT), "")


@pytest.mark.parametrize("kind", ["middleware", "handler"])
def test_nothing_grows_with_the_requests(kind: str) -> None:
    """For more of them: python -m tests.serving.leaks 50000."""
    result = python(MEASURES.format(kind=kind), ROOT)
    print(result.stdout)
    before, after = json.loads(result.stdout)
    assert after["connections"] == 0
    # Nor all connections of the pool, each of which has a file.
    assert after["files"] <= before["files"] + CAP
    # Not all threads that there may be have been needed yet.
    assert after["threads"] <= 100
    # One object or 2 KiB for each request would be more.
    assert after["objects"] - before["objects"] < 1000
    assert after["kilobytes"] - before["kilobytes"] < 4000


MEASURES = """
import asyncio, json
from tests.serving.leaks import measure

print(json.dumps([figures._asdict() for figures in asyncio.run(measure({kind!r}, 2000, steps=1))]))
"""
