"""What the tests of the Django integration share."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncsafe

from ..conftest import missing
from ..running import python

ROOT = Path(__file__).parents[2]
Shop = Any


def stored(shop: Shop, table: str = "shop_customer") -> int:
    """How many rows there are, as a connection that knows nothing of Django sees it."""
    uri = f"file:{shop.directory / 'default.db'}?mode=ro"
    with asyncsafe.allow("the test's own"):
        connection = sqlite3.connect(uri, uri=True)
        count: int = connection.execute(f"select count(*) from {table}").fetchone()[0]
        connection.close()
    return count


def closing(call: Callable[..., Any]) -> Callable[..., Any]:
    """Call it, and close the connections that it made on this loop or thread."""
    from django.db import connections

    def closed(*args: Any) -> Any:
        try:
            return call(*args)
        finally:
            with asyncsafe.allow("the test's clean-up"):
                connections.close_all()

    return closed


def in_project(tmp_path: Path, code: str, **environment: str) -> str:
    """Run code beside the project, in a Python of its own. What it prints."""
    printed: str = python(
        textwrap.dedent(code),
        ROOT,
        SHOP_DIRECTORY=str(tmp_path),
        DJANGO_SETTINGS_MODULE="tests.django_project.settings",
        **environment,
    ).stdout
    return printed


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def served(*command: str, **environment: str) -> Iterator[int]:
    """A server on a port of its own, which stands for "PORT" in the command."""
    if shutil.which(command[0]) is None:
        missing(command[0], f"apt install {command[0]}")
    port = free_port()
    server = subprocess.Popen(
        [part.replace("PORT", str(port)) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield port
    finally:
        server.terminate()
        server.wait()
