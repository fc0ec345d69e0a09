"""Django's sessions in files. Those in a cache or the database are guarded as these are.

Its asynchronous methods (`aload()`, `asave()`) read and write the file on the loop, and are refused
as well: a file session has no way that doesn't block.
"""

from __future__ import annotations

from ...tables import Integration, Operation
from . import TESTED
from .hints import tell

integration: Integration = Integration(
    "django.sessions",
    {
        "django.contrib.sessions.backends.file": {
            "SessionStore": [
                Operation(name, called=f"django.sessions.file.{name}")
                for name in ("load", "save", "exists", "delete")
            ]
        },
    },
    describe=tell,
    distributions=("Django",),
    tested=TESTED,
    exempt={
        "`signed_cookies`": "it does no I/O",
    },
    not_guarded={
        "`cache`, `db`, `cached_db`": "they are guarded as the cache and the database are",
    },
)
