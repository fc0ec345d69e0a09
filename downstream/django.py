"""Django's own tests of what a database guard can touch, from its source distribution: on sqlite, and
on PostgreSQL with psycopg2 and with psycopg.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from .environments import installed
from .postgres import parts, running_postgres
from .sources import fetch
from .suites import Suite

ON_POSTGRES = ["backends", "transactions"]
ON_SQLITE = [*ON_POSTGRES, "async", "asgi", "handlers", "db_utils", "queries", "basic", "servers"]

#: Django takes psycopg where it is installed.
DRIVERS = {"psycopg2": "psycopg", "psycopg": "psycopg2"}

SETTINGS = """\
import json, os
DATABASES = json.loads(os.environ["DOWNSTREAM_DATABASES"])
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
"""


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("Django")
    tests = fetch("django", version, directory) / "tests"
    (tests / "downstream_settings.py").write_text(SETTINGS)
    command = ["runtests.py", "--settings=downstream_settings", "--parallel=1", "--noinput", "-v2"]
    suites = [
        Suite(
            "sqlite",
            f"Django {version} on sqlite: {' '.join(ON_SQLITE)}",
            [*command, *ON_SQLITE],
            ["django", "sqlite3"],
            directory=tests,
            environment=lambda: _databases({"ENGINE": "django.db.backends.sqlite3"}),
        )
    ]
    with running_postgres() as dsn:
        for driver, other in DRIVERS.items():
            title = f"Django {version} on PostgreSQL with {driver}: {' '.join(ON_POSTGRES)}"
            if dsn is None or find_spec(driver) is None:
                print(f"{title}\n  not run: it needs {driver} and a server")
                continue
            server = _server(dsn)
            suites.append(
                Suite(
                    driver,
                    title,
                    [*command, *ON_POSTGRES],
                    ["django", driver] if driver == "psycopg2" else ["django"],
                    without=[other],
                    directory=tests,
                    environment=lambda server=server: _databases(server),
                )
            )
        yield suites


def _databases(options: Mapping[str, str]) -> dict[str, str]:
    """Two, which the tests create and destroy."""
    databases = {
        alias: {**options, "NAME": f"asyncsafe_downstream_{os.getpid()}_{alias}"}
        for alias in ("default", "other")
    }
    if options["ENGINE"].endswith("sqlite3"):
        for database in databases.values():
            del database["NAME"]  # in memory
    return {"DOWNSTREAM_DATABASES": json.dumps(databases)}


def _server(dsn: str) -> dict[str, str]:
    options = {key.upper(): value for key, value in parts(dsn).items()}
    return {"ENGINE": "django.db.backends.postgresql", **options}
