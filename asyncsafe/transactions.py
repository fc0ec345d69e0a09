"""Whether a transaction is open on a connection: what each driver tells without I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: libpq's PQTRANS_ACTIVE, PQTRANS_INTRANS, PQTRANS_INERROR
_LIBPQ_OPEN = frozenset({1, 2, 3})
#: MySQL's SERVER_STATUS_IN_TRANS
_MYSQL_OPEN = 1


def in_transaction(connection: Any) -> bool | None:
    """Whether a transaction is open on this connection; None where its driver doesn't tell.

    sqlite3, psycopg2, psycopg, PyMySQL, SQLAlchemy's connections and those of its pools, peewee's
    databases. No statement is sent.
    """
    try:
        told = connection.in_transaction  # sqlite3; a method of SQLAlchemy's and peewee's
    except AttributeError:
        pass
    except Exception:  # closed: sqlite3.ProgrammingError
        return False
    else:
        return bool(told() if callable(told) else told)
    connection = getattr(connection, "driver_connection", connection)  # below SQLAlchemy's pools
    try:
        return connection.info.transaction_status in _LIBPQ_OPEN  # psycopg2, psycopg
    except Exception:  # another driver, or closed
        pass
    try:
        return bool(connection.server_status & _MYSQL_OPEN)  # PyMySQL
    except Exception:
        return None


def begins_by_itself(connection: Any) -> bool:
    """Whether a transaction is open at all times: sqlite3's connections with `autocommit=False`.

    Each end of one begins the next, with nothing in it.
    """
    return getattr(connection, "autocommit", None) is False and hasattr(
        connection, "in_transaction"
    )
