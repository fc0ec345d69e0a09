"""What it costs to import asyncsafe, over a bare Python, in fresh processes that take turns."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pyperf

from .timing import Ratio, Table, Values, missing

BARE = "bare python"
IMPORTS = {
    BARE: "pass",
    "import asyncsafe": "import asyncsafe",
    "from asyncsafe import async_unsafe": "from asyncsafe import async_unsafe",
    "asyncsafe.install()": "import asyncsafe; asyncsafe.install()",
    "import asyncio": "import asyncio",
    "import asgiref.sync": "import asgiref.sync",
    "import django.utils.asyncio": "import django.utils.asyncio",
}
LIMITS = {"import asyncsafe": 0.2, "from asyncsafe import async_unsafe": 0.2}


def measure(quick: bool) -> Iterator[Table]:
    """One table."""
    rounds = 7 if quick else 41
    statements = {
        name: statement
        for name, statement in IMPORTS.items()
        if not (
            ("django" in name and missing("django")) or ("asgiref" in name and missing("asgiref"))
        )
    }
    values: Values = {name: [] for name in statements}
    for number in range(-1, rounds):
        for name, statement in statements.items():
            seconds = _time_process(statement)
            if number >= 0:
                values[name].append(seconds)
    yield Table(
        "Imports, in a process of their own: python -I -c ...",
        "ms",
        values,
        dict.fromkeys(IMPORTS, BARE),
        [Ratio("of what asyncio adds", "import asyncio", LIMITS)],
        remarks={
            name: _loaded(statement, must_not=name in LIMITS)
            for name, statement in statements.items()
            if name != BARE
        },
    )


def _time_process(statement: str) -> float:
    start = pyperf.perf_counter()
    # Not here: install() would read this project's pyproject.toml.
    subprocess.run([sys.executable, "-I", "-c", statement], check=True, cwd=tempfile.gettempdir())
    return pyperf.perf_counter() - start


def _loaded(statement: str, must_not: bool) -> tuple[str, bool]:
    """Which of the two costly ones came with it, and whether that may be."""
    tell = "import sys; print(*[name for name in ('asyncio', 'asgiref') if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", f"{statement}; {tell}"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = ran.stdout.split()
    return f"loads {' and '.join(loaded) or 'neither asyncio nor asgiref'}", not (
        must_not and loaded
    )
