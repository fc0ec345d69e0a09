"""python -m downstream [--keep DIR] [--jobs N] NAME ... | all | ci"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .suites import NotRun, both

#: Those that take long come first: with --jobs, the others fill the time.
RECIPES = (
    "sqlalchemy_postgres",
    "sqlalchemy_mysql",
    "sqlalchemy",
    "aiomysql",
    "aioodbc",
    "aiosqlite",
    "apsw",
    "asyncpg",
    "cpython_sqlite3",
    "databases",
    "datasette",
    "django",
    "mysqlclient",
    "peewee",
    "pg8000",
    "pony",
    "psycopg2",
    "pymysql",
    "pyodbc",
    "sqlite_utils",
    "sqlmodel",
)

#: What CI runs. The others are left to whoever has half an hour.
CI = (
    "sqlalchemy_postgres",
    "sqlalchemy",
    "aiosqlite",
    "apsw",
    "cpython_sqlite3",
    "databases",
    "django",
    "mysqlclient",
    "peewee",
    "pony",
    "psycopg2",
    "pymysql",
    "pyodbc",
    "sqlite_utils",
    "sqlmodel",
)


def main() -> int:
    parser = argparse.ArgumentParser("python -m downstream", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*RECIPES, "all", "ci"])
    parser.add_argument("--keep", metavar="DIR", type=Path, help="write both runs' output there")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="recipes at the same time")
    options = parser.parse_args()
    names = RECIPES if "all" in options.names else CI if "ci" in options.names else options.names
    with tempfile.TemporaryDirectory(prefix="asyncsafe-downstream-") as temporary:
        folder: Path = (options.keep or Path(temporary)).resolve()
        if options.jobs > 1 and len(names) > 1:
            wrong = _run_each(names, folder, options.jobs)
        else:
            wrong = [name for name in names if _is_wrong(name, folder / name)]
    if wrong:
        print(f"Not the same, or not run: {', '.join(wrong)}")
    return 1 if wrong else 0


def _is_wrong(name: str, directory: Path) -> bool:
    """Run a recipe. What lacks a library or a server is passed over, but not in CI."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe = importlib.import_module(f"downstream.{name}")
    try:
        with recipe.prepared(directory) as suites:
            return any([both(suite, directory) for suite in suites])  # noqa: C419  (all are run)
    except NotRun as reason:
        print(f"{name}\n  not run: {reason}", flush=True)
        return bool(os.environ.get("CI"))


def _run_each(names: Sequence[str], folder: Path, jobs: int) -> list[str]:
    """In processes of their own. Each recipe's output is printed in one piece."""

    def run(name: str) -> bool:
        command = [sys.executable, "-m", "downstream", "--keep", str(folder), name]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        print(ran.stdout, end="", flush=True)
        return ran.returncode != 0

    with ThreadPoolExecutor(jobs) as executor:
        return [name for name, wrong in zip(names, executor.map(run, names), strict=True) if wrong]


if __name__ == "__main__":
    sys.exit(main())
