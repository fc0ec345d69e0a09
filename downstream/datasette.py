"""Datasette's own tests, from its source distribution: an ASGI application on sqlite in threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import environment
from .sources import fetch
from .suites import Suite

VERSION = "0.65.5"
TESTS = ["pytest", "pytest-asyncio", "pytest-timeout", "beautifulsoup4", "trustme"]

MAKES = "it makes its database with sqlite3 in a coroutine"
ASKS = "Datasette itself opens sqlite3 on the loop for a table's page, to see if it knows JSON"
TABLES = "tests/test_table_permissions.py"
REQUESTS = f"{TABLES}::test_ordinary_requests_retain_table_permission_hooks"
DIFFER = {
    f"{TABLES}::test_trailing_lf_table_permissions[.json-False]": MAKES,
    f"{TABLES}::test_trailing_lf_table_permissions[.json-True]": MAKES,
    f"{TABLES}::test_trailing_lf_table_permissions[/1.json-False]": MAKES,
    f"{TABLES}::test_trailing_lf_table_permissions[/1.json-True]": MAKES,
    "tests/test_utils.py::test_initial_path_for_datasette[dbs0-/one/one]": MAKES,
    "tests/test_utils.py::test_initial_path_for_datasette[dbs1-/two]": MAKES,
    "tests/test_utils.py::test_initial_path_for_datasette[dbs2-/]": MAKES,
    f"{REQUESTS}[/catalog/Items.json]": ASKS,
    f"{REQUESTS}[/catalog/Report.json]": ASKS,
    "tests/test_routes.py::test_db_with_route_that_does_not_match_name"
    "[/custom-route-name/t-200]": ASKS,
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    sources = fetch("datasette", VERSION, directory, without="datasette")
    python = environment([f"datasette=={VERSION}", *TESTS], directory)
    yield [
        Suite(
            "datasette",
            f"Datasette {VERSION}",
            ["tests"],
            ["sqlite3"],
            pytest=True,
            python=python,
            directory=sources,
            differ=DIFFER,
        )
    ]
