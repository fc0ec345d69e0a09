"""What Django's own guards leave open, tried on the loop and off it. Prints JSON.

Each gap is prepared in synchronous code, as a view that was called by a thread pool would, and used
in a coroutine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

if os.environ.get("SHOP_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None  # type: ignore[assignment]  # Django would take it

import django
import trio

import asyncsafe

if os.environ.get("SHOP_GUARD") == "late":
    django.setup()
asyncsafe.install()
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402

from tests.django_project.shop.models import Customer  # noqa: E402

#: Taken here: `django.db.connection` stands for another in each task.
connection = connections["default"]

INSERT = "insert into shop_customer (name) values (%s)"


def another() -> Any:
    """A connection that Django knows nothing of."""
    if connection.vendor == "sqlite":
        import sqlite3

        return sqlite3.connect(connection.settings_dict["NAME"])
    import psycopg2

    return psycopg2.connect(os.environ["SHOP_POSTGRES"])


def rows() -> int:
    watching = another()
    cursor = watching.cursor()
    cursor.execute("select count(*) from shop_customer")
    count: int = cursor.fetchone()[0]
    watching.close()
    return count


def open_cursor() -> Any:
    cursor = connection.cursor()
    cursor.execute("select id from shop_customer order by id")
    return cursor


def execute() -> Callable[[], Any]:
    cursor = connection.cursor()
    return lambda: cursor.execute(INSERT, ["a"])


def executemany() -> Callable[[], Any]:
    cursor = connection.cursor()
    return lambda: cursor.executemany(INSERT, [["a"], ["b"]])


def debug_execute() -> Callable[[], Any]:
    connection.force_debug_cursor = True
    cursor = connection.cursor()
    connection.force_debug_cursor = False
    return lambda: cursor.execute(INSERT, ["a"])


def fetchone() -> Callable[[], Any]:
    cursor = open_cursor()
    return lambda: cursor.fetchone()


def fetchall() -> Callable[[], Any]:
    cursor = open_cursor()
    return lambda: cursor.fetchall()


def step() -> Callable[[], Any]:
    cursor = open_cursor()
    return lambda: next(iter(cursor))


def iterator() -> Callable[[], Any]:
    customers = Customer.objects.order_by("id").iterator(chunk_size=1)
    next(customers)
    return lambda: next(customers).pk


def chunked() -> Callable[[], Any]:
    cursor = connection.chunked_cursor()
    cursor.execute("select id from shop_customer order by id")
    return lambda: cursor.fetchone()


def is_usable() -> Callable[[], Any]:
    connection.ensure_connection()
    return lambda: connection.is_usable()


def raw_execute() -> Callable[[], Any]:
    connection.ensure_connection()
    return lambda: connection.connection.cursor().execute(INSERT.replace("%s", "'a'"))


def raw_commit() -> Callable[[], Any]:
    connection.ensure_connection()
    connection.set_autocommit(False)
    Customer.objects.create(name="a")
    return lambda: connection.connection.commit()


def savepoint() -> Callable[[], Any]:
    connection.set_autocommit(False)
    return lambda: connection.savepoint()


def copy() -> Callable[[], Any]:
    import io

    cursor = connection.cursor()
    return lambda: cursor.copy_expert("copy shop_customer (name) from stdin", io.StringIO("a\n"))


def close_pool() -> Callable[[], Any]:
    connection.ensure_connection()
    connection.close()
    return lambda: connection.close_pool()


def take_from_pool() -> Callable[[], Any]:
    connection.close()
    return lambda: connection.ensure_connection()


GAPS = (
    *(execute, executemany, debug_execute, fetchone, fetchall, step, iterator, chunked, is_usable),
    *(raw_execute, raw_commit, savepoint, copy, take_from_pool, close_pool),
)


def on_loop(call: Callable[[], Any], library: str) -> Any:
    async def main() -> Any:
        return call()

    return asyncio.run(main()) if library == "asyncio" else trio.run(main)


def tried(gap: Callable[[], Callable[[], Any]], library: str) -> Any:
    """The operation that was refused, or None; what that changed; what the call does off the loop."""
    call = gap()
    before = rows()
    told: Any = None
    try:
        on_loop(call, library)
    except asyncsafe.SynchronousOnlyOperation as refusal:
        told = refusal.violation
        assert told.loop == library
        line = f"{told.call_site.filename}:{told.call_site.lineno}"
        assert told.call_site.function == f"{gap.__name__}.<locals>.<lambda>", line
    changed = rows() - before
    if told is not None:
        if gap is iterator:  # a generator that has raised has ended
            call = gap()
        call()
    if gap in (raw_execute, raw_commit):
        connection.commit()
    in_all = rows() - before
    del call
    gc.collect()  # the refusal's traceback keeps cursors, which hold locks
    connection.close()
    return [told and told.operation.rpartition(".")[2], changed, in_all]


if __name__ == "__main__":
    call_command("migrate", run_syncdb=True, verbosity=0)
    Customer.objects.all().delete()
    Customer.objects.bulk_create(Customer(name="a") for _ in range(5))
    outcome = {}
    for gap in GAPS:
        if os.environ.get("SHOP_POOL") or gap not in (close_pool, take_from_pool):
            if gap is copy and os.environ.get("SHOP_DRIVER") != "psycopg2":
                continue
            found = [tried(gap, library) for library in ("asyncio", "trio")]
            assert found[0] == found[1], (gap.__name__, found)
            outcome[gap.__name__] = found[0]
    made = [site.violation for site in asyncsafe.violations if site.violation.outcome != "raised"]
    outcome["made all the same"] = [[told.operation, told.reason] for told in made]
    print(json.dumps(outcome))
