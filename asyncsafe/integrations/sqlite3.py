"""sqlite3, the standard library's: its types live in the C module _sqlite3."""

from __future__ import annotations

from ..tables import Integration
from . import _sqlite

integration: Integration = Integration(
    "sqlite3",
    {"_sqlite3": _sqlite.operations("sqlite3")},
    # With a __getitem__ that is written in Python, a type becomes iterable. Blob is not.
    replaced={"_sqlite3": {"Blob": {"__iter__": None}}},
    connection=_sqlite.connection_of,
    # aiosqlite calls its connection in a thread; what it calls on the loop doesn't block.
    # coverage and IPython keep books of their own in sqlite, wherever they are called.
    trusted=("aiosqlite", "coverage", "IPython"),
    tested=("3.11", "3.12", "3.13"),  # of Python
    exempt={
        **_sqlite.EXEMPT,
        "aiosqlite": "it calls sqlite3 in a thread",
        "coverage, IPython": "they keep books of their own, wherever they are called",
    },
    not_guarded=_sqlite.NOT_GUARDED,
)
