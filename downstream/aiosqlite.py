"""aiosqlite's own tests, from the source distribution of the version that is installed.

They are a part of the package, and what the package does with sqlite3 is not refused. So they are
run from a package of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import installed
from .sources import fetch
from .suites import Suite

DIFFER = {
    "aiosqlite_tests.smoke.SmokeTest.test_backup_sqlite": (
        "it opens sqlite3 on the loop, for a connection of the other kind to copy to"
    )
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("aiosqlite")
    sources = fetch("aiosqlite", version, directory)
    shutil.copytree(
        sources / "aiosqlite" / "tests", directory / "aiosqlite_tests", dirs_exist_ok=True
    )
    yield [
        Suite(
            "aiosqlite",
            f"aiosqlite {version}",
            ["aiosqlite_tests"],
            ["sqlite3"],
            directory=directory,
            differ=DIFFER,
        )
    ]
