"""pysqlite3 and pysqlite3-binary: the standard library's sqlite3 over an sqlite of their own.

Their Blob is a type that no module names, so that it can't be reached before one is opened:
`open_blob()` is guarded, and what is then read and written is not.
"""

from __future__ import annotations

from ..tables import Integration, Operation
from . import _sqlite

_shared = _sqlite.operations("pysqlite3")

integration: Integration = Integration(
    "pysqlite3",
    {
        "pysqlite3._sqlite3": {
            "Connection": [*_shared["Connection"], Operation("open_blob")],
            "Cursor": _shared["Cursor"],
        }
    },
    connection=_sqlite.connection_of,
    distributions=("pysqlite3", "pysqlite3-binary"),
    tested=("0.5.4", "0.6.1"),
    exempt=_sqlite.EXEMPT,
    not_guarded={
        **_sqlite.NOT_GUARDED,
        "closing a cursor halfway through `INSERT ... RETURNING`": "it doesn't tell that it is",
        "`read()` and `write()` of a blob": "its type can't be reached before one is opened",
    },
)
