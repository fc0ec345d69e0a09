"""Every integration: what its table names is there, and the page of the documentation is up to date."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from asyncsafe.installation import LIBRARIES, OPTIONAL, integration

from .running import python

NAMES = (*LIBRARIES, *OPTIONAL)
#: Modules that a library has only where its C extension was built and finds its own libraries.
NOT_EVERYWHERE = {
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
