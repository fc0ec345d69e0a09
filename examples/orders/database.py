"""The database: two thousand orders in a sqlite3 file, and the one connection to it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

CUSTOMERS = ["Ada", "Barbara", "Edsger", "Grace", "Niklaus"]


def open_database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total INTEGER, paid INTEGER)"
    )
    connection.executemany(
        "INSERT INTO orders (customer, total, paid) VALUES (?, ?, 0)",
        [(CUSTOMERS[number % 5], number * 37 % 1000) for number in range(2000)],
    )
    connection.commit()
    return connection


def find_orders(connection: sqlite3.Connection, customer: str) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT id, total FROM orders WHERE customer = ? ORDER BY total DESC", (customer,)
    ).fetchall()


def count_paid(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM orders WHERE paid").fetchone()
    return int(count)
