"""Every integration: what its table names is there, and the page of the documentation is up to date."""

from __future__ import annotations

import json
import runpy
from importlib import metadata
from pathlib import Path

import pytest

from asyncsafe.installation import LIBRARIES, OPTIONAL, integration

from .running import python

NAMES = (*LIBRARIES, *OPTIONAL)
#: Modules that a library has only where its C extension was built and finds its own libraries.
NOT_EVERYWHERE = {
    "django": ("django.db.backends.mysql.",),  # for want of mysqlclient
    # duckdb 1's, which duckdb 2 has no more
    "duckdb": (
        "duckdb.DuckDBPyConnection.pl",
        "duckdb.DuckDBPyConnection.arrow",
        "duckdb.DuckDBPyConnection.fetch_arrow_table",
        "duckdb.DuckDBPyConnection.fetch_record_batch",
        "duckdb.DuckDBPyRelation.execute",
        "duckdb.DuckDBPyRelation.fetch",
        "duckdb.pl",
        "duckdb.fetch_arrow_table",
        "duckdb.fetch_record_batch",
    ),
    "sqlite3": ("_sqlite3.Connection.autocommit",),  # Python 3.12's
    "peewee": ("playhouse.cysqlite_ext: ",),
    "mysql.connector": ("mysql.connector.connection_cext: ", "mysql.connector.cursor_cext: "),
}

MISSING = """
import json, sys
from django.conf import settings
from asyncsafe.installation import LIBRARIES, OPTIONAL, integration

settings.configure()
missing = {name: integration(name).missing() for name in (*LIBRARIES, *OPTIONAL)}
for name in missing:
    integration(name).install()
    assert integration(name).missing() == missing[name], "it is the same while it is guarded"
print(json.dumps(missing))
"""


@pytest.fixture(scope="module")
def missing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each integration misses, by its name. In a process of its own: it imports everything."""
    told = python(MISSING, tmp_path_factory.mktemp("missing")).stdout
    return json.loads(told.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_table_names_is_there(name: str, missing: dict[str, list[str]]) -> None:
    """It tells when a library renames what we hook, which is passed over in silence otherwise."""
    distributions = integration(name).distributions
    if distributions and not any(map(is_installed, distributions)):
        pytest.skip(f"{name} is not installed")
    allowed = NOT_EVERYWHERE.get(name, ())
    assert [entry for entry in missing[name] if not entry.startswith(allowed)] == []


def is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


# The documentation ------------------------------------------------------------------------------

SCRIPT = Path(__file__).parent.parent / "docs" / "integrations_table.py"


def test_the_page_is_what_the_script_writes() -> None:
    made = runpy.run_path(str(SCRIPT))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), f"run {SCRIPT}"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_tells_each_operation(name: str) -> None:
    text = runpy.run_path(str(SCRIPT))["page"]()
    section = text.partition(f"### `{name}`\n")[2].partition("###")[0]
    for classes in integration(name).operations.values():
        for operation in (each for operations in classes.values() for each in operations):
            told = (operation.called or operation.name).rpartition(".")[2]
            assert f"`{told}`" in section or f"`{told} = ...`" in section
