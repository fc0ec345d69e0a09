"""python -m downstream [--keep DIR] NAME ... | all"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from .suites import NotRun, both

RECIPES = (
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
    "pg8000",
    "pony",
    "psycopg2",
    "pymysql",
    "pyodbc",
    "sqlalchemy",
    "sqlalchemy_mysql",
    "sqlalchemy_postgres",
    "sqlite_utils",
    "sqlmodel",
)


def main() -> int:
    parser = argparse.ArgumentParser("python -m downstream", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*RECIPES, "all"])
    parser.add_argument("--keep", metavar="DIR", type=Path, help="write both runs' output there")
    options = parser.parse_args()
    names = RECIPES if "all" in options.names else options.names
    differ = False
    with tempfile.TemporaryDirectory(prefix="asyncsafe-downstream-") as temporary:
        for name in names:
            directory = (options.keep or Path(temporary)).resolve() / name
            directory.mkdir(parents=True, exist_ok=True)
            recipe = importlib.import_module(f"downstream.{name}")
            try:
                with recipe.prepared(directory) as suites:
                    for suite in suites:
                        differ |= both(suite, directory)
            except NotRun as reason:
                print(f"{name}\n  not run: {reason}", flush=True)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
