"""The README tells the truth: its code runs, and what it shows is what is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

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
        """The lines, without durations, which also order them, and the payments lost."""
        text = re.sub(r"[\d.]+ (s|ms|µs)|(?<=paid.:)\d+", "~", text)
        return {" ".join(line.split()) for line in text.splitlines()}

    assert without_chance(done.stdout + done.stderr) == without_chance(shown("report"))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_code_runs(code: str) -> None:
    import asyncsafe

    names = {
        "asyncsafe": asyncsafe,
        "connection": SimpleNamespace(),
        "load_settings": lambda connection: {},
    }

    exec(compile(code, "README.md", "exec"), names)
