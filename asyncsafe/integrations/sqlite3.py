"""sqlite3, the standard library's: its types live in the C module _sqlite3."""

from __future__ import annotations

import gc

from ..tables import Integration, Operation
from . import _sqlite

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3


def _ends_a_write(cursor: sqlite3.Cursor) -> bool:
    """Halfway through INSERT ... RETURNING, outside of a transaction: closing it commits.

    It holds its statement while rows are left, and has a `rowcount` if that writes.
    """
    return (
        cursor.description is not None
        and cursor.rowcount >= 0
        and not cursor.connection.in_transaction
        and any(type(held).__name__ == "Statement" for held in gc.get_referents(cursor))
    )


_shared = _sqlite.operations("sqlite3")

integration: Integration = Integration(
    "sqlite3",
    {
        "_sqlite3": {
            **_shared,
            "Cursor": [
                *_shared["Cursor"],
                Operation("close", does_block=_ends_a_write, cleans_up=True),
            ],
        }
    },
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
    not_guarded={
        **_sqlite.NOT_GUARDED,
        "closing a cursor halfway through `WITH ... INSERT ... RETURNING`": (
            "it doesn't tell that this writes"
        ),
    },
)
