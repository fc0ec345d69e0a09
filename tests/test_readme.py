"""The README tells the truth: its code runs, and what it shows is what is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .running import python

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

REPOSITORY = """\
import sqlite3

connection = sqlite3.connect(":memory:")
connection.execute("CREATE TABLE orders (id, total, customer)")


def find_orders(customer):
    cursor = connection.execute(
        "SELECT id, total FROM orders WHERE customer = ?", (customer,)
    )
    return cursor.fetchall()
"""

VIEWS = """\
from app.repository import find_orders

JSONResponse = list


async def list_orders(request):
    return JSONResponse(find_orders("Ada"))
"""

PROGRAM = """\
import asyncio
import app.views
import asyncsafe

asyncsafe.install()

async def serve():
    await asyncio.create_task(app.views.list_orders(None))

asyncio.run(serve())
"""


#: What the README's code takes for given.
NAMES = """\
import threading
from types import SimpleNamespace

import peewee
import psycopg2
from sqlalchemy.orm import scoped_session

import asyncsafe
from asyncsafe import ConnectionHandler

connection = SimpleNamespace()
connections = asyncsafe.ConnectionHandler({"default": SimpleNamespace})
db = peewee.SqliteDatabase("orders.db")
registry = SimpleNamespace(local=threading.local())
Session = scoped_session(SimpleNamespace)


def load_settings(connection):
    return {}


def app(*arguments):
    pass


flask_app = app
"""


def shown(name: str) -> str:
    """The block below `<!-- output: name -->`."""
    found = re.search(rf"<!-- output: {name} -->\n```\n(.*?)```\n", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_message_is_what_is_printed(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "repository.py").write_text(REPOSITORY)
    (tmp_path / "app" / "views.py").write_text(VIEWS)
    (tmp_path / "program.py").write_text(PROGRAM)

    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.stderr.endswith("\n" + shown("message"))


def test_the_report_is_what_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncsafe", "run", "examples/orders"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    def without_chance(text: str) -> set[str]:
        """The lines, without durations, which also order them, and who met whose transaction."""
        text = re.sub(r"[\d.]+ (s|ms|µs)|(?<=paid.:)\d+", "~", text)
        text = re.sub(r"\d+ (calls? on a connection .*), at .*", r"~ \1", text)
        # Who waited is counted for long calls, of which there are none or a few.
        text = re.sub(r"(~ +~ +~) +(\d+ +)?(?=\d+  sqlite3)", r"\1 ", text)
        text = re.sub(r"^ +\d+  (?=sqlite3)", "~ ", text, flags=re.MULTILINE)
        # Most payments begin in another's transaction; a few end in one, or none does.
        text = re.sub(r"^~ sqlite3.Connection.(commit|rollback) .*\n", "", text, flags=re.MULTILINE)
        lines = {" ".join(line.split()) for line in text.splitlines()}
        # Of a coroutine's lines, the fix names the one that took longest.
        lines = {re.sub(r"^(examples/orders/app.py):\d+ ", r"\1 ", line) for line in lines}
        # How many waited, before the number of calls.
        return {re.sub(r"~ \d+ (\d+ sqlite3)", r"~ \1", line) for line in lines}

    assert without_chance(done.stdout + done.stderr) == without_chance(shown("report"))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_code_runs(code: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    dsn = request.getfixturevalue("postgres") if "dsn" in code else None
    close = "\npool.close()" if "pool =" in code else ""
    python(f"{NAMES}\ndsn = {dsn!r}\n{code}{close}", tmp_path)
