"""Whether a transaction is open on a connection: what each driver tells without I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: libpq's PQTRANS_ACTIVE, PQTRANS_INTRANS, PQTRANS_INERROR
_LIBPQ_OPEN = frozenset({1, 2, 3})
#: MySQL's SERVER_STATUS_IN_TRANS
_MYSQL_OPEN = 1


#: For libraries that don't tell it in a way that others share: their integrations know how.
tell_by_library: dict[str, Callable[[Any], bool | None]] = {}


def in_transaction(connection: Any) -> bool | None:
    """Whether a transaction is open on this connection; None where its driver doesn't tell.

    sqlite3, psycopg2, psycopg, PyMySQL, mysql.connector, SQLAlchemy's connections and those of its
    pools, peewee's databases; pg8000 where it is guarded. No statement is sent.
    """
    if _tells(connection):
        return _told(connection)
    connection = getattr(connection, "driver_connection", connection)  # below SQLAlchemy's pools
    if _tells(connection):
        return _told(connection)
    if (tell := tell_by_library.get(type(connection).__module__.partition(".")[0])) is not None:
        try:
            return tell(connection)
        except Exception:  # it isn't connected yet
            return None
    try:
        return connection.info.transaction_status in _LIBPQ_OPEN  # psycopg2, psycopg
    except Exception:  # another driver, or closed
        pass
    try:
        return bool(connection.server_status & _MYSQL_OPEN)  # PyMySQL
    except Exception:
        return None


def _tells(connection: Any) -> bool:
    """Whether it has `in_transaction`: sqlite3's, SQLAlchemy's and peewee's have.

    Its type is asked, since a mock has every attribute, and would remember a call.
    """
    return hasattr(type(connection), "in_transaction")


def _told(connection: Any) -> bool:
    try:
        told = connection.in_transaction
    except Exception:  # closed: sqlite3.ProgrammingError
        return False
    return bool(told() if callable(told) else told)


def begins_by_itself(connection: Any) -> bool:
    """Whether a transaction is open at all times: sqlite3's connections with `autocommit=False`.

    Each end of one begins the next, with nothing in it. (mysql.connector sends a query to tell its
    `autocommit`: sqlite3's connections alone are asked.)
    """
    return hasattr(connection, "total_changes") and getattr(connection, "autocommit", 0) is False
