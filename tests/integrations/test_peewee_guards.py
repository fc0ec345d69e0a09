"""peewee: what does I/O is refused on the loop before anything changes, and named as it was asked for."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peewee
import playhouse.apsw_ext
import playhouse.pool
import playhouse.postgres_ext
import playhouse.shortcuts
import playhouse.sqliteq
import psycopg2
import pymysql
import pytest

import asyncsafe
from asyncsafe import database_sync_to_async
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, refused

NAME = "asyncsafe-peewee-guards"
REFUSED = asyncsafe.SynchronousOnlyOperation


def models(database: Any) -> Any:
    class Base(peewee.Model):
        class Meta:
            database: Any = None

    Base._meta.database = database

    class Customer(Base):
        name = peewee.CharField()

    class Order(Base):
        customer = peewee.ForeignKeyField(Customer, backref="orders")
        parent = peewee.ForeignKeyField("self", null=True)
        total = peewee.IntegerField()

        class Meta:
            table_name = "orders"

    class Extra(Base):
        body = peewee.CharField()

    return Customer, Order, Extra


class Shop:
    """A database of peewee's with two orders of one customer, and a second connection to it."""

    def __init__(self, database: Any, watch: Any) -> None:
        self.db, self._watch = database, watch
        self.Customer, self.Order, self.Extra = models(database)
        self.fill()

    def fill(self) -> None:
        asyncsafe.uninstall()
        with self.db.connection_context():
            self.db.drop_tables([self.Order, self.Customer, self.Extra], safe=True)
            self.db.create_tables([self.Customer, self.Order])
            ada = self.Customer.create(name="Ada")
            first = self.Order.create(customer=ada, total=10)
            self.Order.create(customer=ada, total=20, parent=first)

    def ask(self, query: str) -> list[Any]:
        cursor = self._watch.cursor()
        cursor.execute(query)
        return [tuple(row) for row in cursor.fetchall()]

    def totals(self) -> list[int]:
        """From the second connection."""
        return [total for (total,) in self.ask("select total from orders order by total")]

    def seen(self) -> Any:
        """What others see of the tables, and what peewee knows of its connections."""
        state = self.db._state
        tables = self.ask("select name from customer order by id"), self.totals()
        pool = getattr(self.db, "_connections", None), getattr(self.db, "_in_use", None)
        return (
            tables,
            (state.closed, id(state.conn), [*state.transactions], [*state.ctx]),
            [[*map(id, part)] for part in pool if part is not None],
        )

    def opened(self) -> Any:
        self.db.connect()
        return self.db

    def order(self) -> Any:
        """Order 2, nothing of which is loaded but its own row."""
        self.opened()
        return self.Order.get(self.Order.total == 20)

    def customer(self) -> Any:
        self.opened()
        return self.Customer.get()

    def inside(self, block: Any) -> Any:
        """In this block, where an order was inserted that others don't see."""
        block.__enter__()
        self.Order.create(customer=1, total=30)
        return partial(block.__exit__, None, None, None)

    def end(self) -> None:
        """Close what a test has left open."""
        asyncsafe.uninstall()
        state = self.db._state
        if not state.closed:
            state.transactions.clear()
            try:
                state.conn.cursor().execute("ROLLBACK")
            except Exception:
                pass  # it isn't in a transaction, or refuses to tell
            self.db.close()
        if hasattr(self.db, "close_all"):
            self.db.close_all()


def to_sqlite(request: pytest.FixtureRequest, kind: Any = peewee.SqliteDatabase) -> Shop:
    path = request.getfixturevalue("tmp_path") / "shop.db"
    return Shop(kind(str(path)), sqlite3.connect(path))


def to_postgres(request: pytest.FixtureRequest, kind: Any, **options: Any) -> Shop:
    dsn = request.getfixturevalue("postgres")
    watch = psycopg2.connect(dsn)
    watch.autocommit = True
    return Shop(kind(dsn, application_name=NAME, **options), watch)


def to_mysql(request: pytest.FixtureRequest, kind: Any) -> Shop:
    settings = request.getfixturevalue("mysql")
    watch = pymysql.connect(**settings, autocommit=True)
    return Shop(kind(**settings), watch)


DATABASES: dict[str, Callable[[pytest.FixtureRequest], Shop]] = {
    "sqlite": to_sqlite,
    "pooled sqlite": partial(to_sqlite, kind=playhouse.pool.PooledSqliteDatabase),
    "apsw": partial(to_sqlite, kind=playhouse.apsw_ext.APSWDatabase),
    "psycopg2": partial(to_postgres, kind=peewee.PostgresqlDatabase),
    "psycopg": partial(to_postgres, kind=peewee.PostgresqlDatabase, prefer_psycopg3=True),
    "pooled psycopg2": partial(to_postgres, kind=playhouse.pool.PooledPostgresqlDatabase),
    "ext": partial(to_postgres, kind=playhouse.postgres_ext.PostgresqlExtDatabase),
    "mysql": partial(to_mysql, kind=peewee.MySQLDatabase),
    "pooled mysql": partial(to_mysql, kind=playhouse.pool.PooledMySQLDatabase),
}


def shop_of(name: str, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = DATABASES[name](request)
    try:
        yield shop
    finally:
        shop.end()
        shop._watch.close()


@pytest.fixture(params=["sqlite", "psycopg2", "psycopg", "mysql"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of(request.param, request)


@pytest.fixture(params=["sqlite", "psycopg2", "mysql"])
def any_shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of(request.param, request)


@pytest.fixture
def sqlite_shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of("sqlite", request)


@pytest.fixture
def postgres_shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of("psycopg2", request)


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, peewee.Model):
        return dict(result.__data__)
    if isinstance(result, (list, peewee.BaseQuery)):
        return [tell(each) for each in result]
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        return tuple(tell(each) for each in result)
    if result is None or isinstance(result, (bool, int, str)):
        return result
    return type(result)


def enter(block: Any) -> Any:
    return block.__enter__()


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


def new(shop: Shop) -> Any:
    shop.opened()
    return shop.Order(customer=1, total=30)


def with_extra(shop: Shop) -> Any:
    shop.opened().create_tables([shop.Extra])
    return shop.db


def changed(shop: Shop) -> Any:
    order = shop.order()
    order.total = 21
    return order


# Each makes the call to be tried, with all that comes before it; the second column is what is refused.
SQL, QUERY = "execute_sql", "select count(*) from orders"
IO = params(
    ("connect", "connect", lambda s: s.db.connect),
    ("connect, if it isn't", "connect", lambda s: partial(s.db.connect, reuse_if_open=True)),
    ("connection", "connect", lambda s: s.db.connection),
    ("cursor", "connect", lambda s: s.db.cursor),
    ("connection_context", "connect", lambda s: partial(enter, s.db.connection_context())),
    ("close", "close", lambda s: s.opened().close),
    ("init of an open one", "init", lambda s: partial(s.opened().init, s.db.database)),
    ("execute_sql", SQL, lambda s: partial(s.opened().execute_sql, QUERY)),
    ("execute_sql, closed", SQL, lambda s: partial(s.db.execute_sql, QUERY)),
    ("execute", SQL, lambda s: partial(s.opened().execute, s.Order.select())),
    ("list", SQL, lambda s: partial(list, s.opened() and s.Order.select())),
    ("for", SQL, lambda s: lambda: [order.total for order in s.Order.select()]),
    ("len", SQL, lambda s: partial(len, s.opened() and s.Order.select())),
    ("index", SQL, lambda s: lambda: s.Order.select()[0]),
    ("slice", SQL, lambda s: lambda: s.Order.select()[:1]),
    ("iterator", SQL, lambda s: lambda: [o.total for o in s.Order.select().iterator()]),
    ("dicts", SQL, lambda s: lambda: [*s.Order.select().dicts()]),
    ("tuples", SQL, lambda s: lambda: [*s.Order.select().tuples()]),
    ("namedtuples", SQL, lambda s: lambda: len(s.Order.select().namedtuples())),
    ("raw", SQL, lambda s: lambda: [*s.Order.raw("select * from orders").tuples()]),
    ("first", SQL, lambda s: lambda: s.Order.select().first()),
    ("count", SQL, lambda s: lambda: s.Order.select().count()),
    ("exists", SQL, lambda s: lambda: s.Order.select().exists()),
    ("scalar", SQL, lambda s: lambda: s.Order.select(peewee.fn.SUM(s.Order.id)).scalar()),
    ("get", SQL, lambda s: lambda: s.Order.get(total=10)),
    ("get_or_none", SQL, lambda s: lambda: s.Order.get_or_none(total=99)),
    ("get_by_id", SQL, lambda s: lambda: s.Order.get_by_id(1)),
    ("[]", SQL, lambda s: lambda: s.Order[1]),
    ("get_or_create", SQL, lambda s: lambda: s.Order.get_or_create(customer=1, total=10)),
    ("create", SQL, lambda s: lambda: s.Order.create(customer=1, total=30)),
    ("save a new one", SQL, lambda s: new(s).save),
    ("save", SQL, lambda s: changed(s).save),
    ("delete_instance", SQL, lambda s: s.order().delete_instance),
    ("recursively", SQL, lambda s: partial(s.order().delete_instance, recursive=True)),
    ("insert", SQL, lambda s: s.Order.insert(customer=1, total=30).execute),
    ("insert_many", SQL, lambda s: s.Order.insert_many([{"customer": 1, "total": 30}]).execute),
    ("update", SQL, lambda s: s.Order.update(total=1).execute),
    ("delete", SQL, lambda s: s.Order.delete().where(s.Order.total == 20).execute),
    ("bulk_create", SQL, lambda s: partial(s.Order.bulk_create, [new(s)])),
    ("bulk_update", SQL, lambda s: partial(s.Order.bulk_update, [changed(s)], [s.Order.total])),
    ("a foreign key", SQL, lambda s: (lambda order: lambda: order.customer)(s.order())),
    ("a foreign key to itself", SQL, lambda s: (lambda order: lambda: order.parent)(s.order())),
    ("a back-reference", SQL, lambda s: (lambda c: lambda: list(c.orders))(s.customer())),
    (
        "prefetch",
        SQL,
        lambda s: lambda: peewee.prefetch(s.Customer.select(), s.Order.select()),
    ),
    ("atomic", "begin", lambda s: partial(enter, s.opened().atomic())),
    ("atomic, closed", "begin", lambda s: partial(enter, s.db.atomic())),
    ("@atomic", "begin", lambda s: s.opened().atomic()(lambda: None)),
    ("transaction", "begin", lambda s: partial(enter, s.opened().transaction())),
    (
        "atomic in atomic",
        SQL,
        lambda s: s.inside(s.opened().atomic()) and partial(enter, s.db.atomic()),
    ),
    (
        "savepoint",
        SQL,
        lambda s: s.inside(s.opened().atomic()) and partial(enter, s.db.savepoint()),
    ),
    ("atomic's end", "transaction.__exit__", lambda s: s.inside(s.opened().atomic())),
    ("transaction's end", "transaction.__exit__", lambda s: s.inside(s.opened().transaction())),
    (
        "a savepoint's end",
        "savepoint.__exit__",
        lambda s: s.inside(s.opened().atomic()) and s.inside(s.db.savepoint()),
    ),
    (
        "an inner atomic's end",
        "savepoint.__exit__",
        lambda s: s.inside(s.opened().atomic()) and s.inside(s.db.atomic()),
    ),
    ("with db", "connect", lambda s: partial(enter, s.db)),
    ("with db, open", "begin", lambda s: partial(enter, s.opened())),
    ("with db's end", "__exit__", lambda s: s.inside(s.db)),
    (
        "connection_context's end",
        "connection_context.__exit__",
        lambda s: s.inside(s.db.connection_context()),
    ),
    ("begin", "begin", lambda s: s.opened().begin),
    ("begin, closed", "begin", lambda s: s.db.begin),
    ("commit", "commit", lambda s: s.inside(s.opened().transaction()) and s.db.commit),
    ("rollback", "rollback", lambda s: s.inside(s.opened().transaction()) and s.db.rollback),
    (
        "transaction.commit",
        "commit",
        lambda s: s.inside(s.opened().transaction()) and s.db.top_transaction().commit,
    ),
    (
        "transaction.rollback",
        "rollback",
        lambda s: s.inside(s.opened().transaction()) and s.db.top_transaction().rollback,
    ),
    ("session_start", "begin", lambda s: s.opened().session_start),
    (
        "session_commit",
        "session_commit",
        lambda s: s.inside(s.opened().transaction()) and s.db.session_commit,
    ),
    (
        "session_rollback",
        "session_rollback",
        lambda s: s.inside(s.opened().transaction()) and s.db.session_rollback,
    ),
    ("create_tables", SQL, lambda s: partial(s.opened().create_tables, [s.Extra])),
    ("drop_tables", SQL, lambda s: partial(with_extra(s).drop_tables, [s.Extra])),
    ("create_table", SQL, lambda s: s.opened() and s.Extra.create_table),
    ("table_exists", SQL, lambda s: s.opened() and s.Order.table_exists),
    ("get_tables", SQL, lambda s: s.opened().get_tables),
    ("get_columns", SQL, lambda s: partial(s.opened().get_columns, "orders")),
    ("get_indexes", SQL, lambda s: partial(s.opened().get_indexes, "orders")),
)


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(self, operation: str, make: Any, any_shop: Shop) -> None:
        shop = any_shop
        bare = tell(make(shop)())
        after = shop.totals()
        shop.end()
        shop.fill()
        asyncsafe.install("peewee")
        call = make(shop)
        before = shop.seen()
        told = refused(call)
        assert (told.operation, told.library) == (f"peewee.Database.{operation}", "peewee")
        assert shop.seen() == before
        # Off the loop it does what it always did.
        assert tell(call()) == bare
        assert shop.totals() == after
        assert len(asyncsafe.violations) == 1

    def test_untouched_in_a_thread(self, operation: str, make: Any, sqlite_shop: Shop) -> None:
        bare = tell(make(sqlite_shop)())
        sqlite_shop.end()
        sqlite_shop.fill()
        asyncsafe.install()
        assert in_thread(lambda: (tell(make(sqlite_shop)()), sqlite_shop.end())[0]) == bare
        assert not asyncsafe.violations

    def test_recorded_once(self, operation: str, make: Any, postgres_shop: Shop) -> None:
        """What peewee does is its own: its driver's guards have nothing to add."""
        shop = postgres_shop
        bare = tell(make(shop)())
        shop.end()
        shop.fill()
        asyncsafe.install()
        call = make(shop)
        asyncsafe.configure(mode="record")
        assert on_loop(lambda: tell(call())) == bare
        told = {site.violation.operation for site in asyncsafe.violations}
        assert f"peewee.Database.{operation}" in told
        assert {name.partition(".")[0] for name in told} == {"peewee"}


def test_one_query_is_one_violation(postgres_shop: Shop) -> None:
    shop = postgres_shop
    shop.opened()
    asyncsafe.install()
    asyncsafe.configure(mode="record")
    on_loop(
        lambda: [shop.Order.get(total=10), list(shop.Order.select()), shop.Order.select().count()]
    )
    assert [site.calls for site in asyncsafe.violations] == [1, 1, 1]
    assert all(site.seconds > 0 for site in asyncsafe.violations)


def test_rows_are_peewees_too(sqlite_shop: Shop) -> None:
    """sqlite reads them from the file: told as peewee's, which asks for them."""

    def work() -> None:
        for _ in sqlite_shop.Order.select():
            pass

    asyncsafe.install()
    asyncsafe.configure(mode="record")
    on_loop(partial(len, sqlite_shop.Order.select()))
    on_loop(work)
    assert [(site.violation.operation, site.calls) for site in asyncsafe.violations] == [
        ("peewee.Database.execute_sql", 1),
        ("peewee.CursorWrapper.fill_cache", 1),
        ("peewee.Database.execute_sql", 1),
        ("peewee.CursorWrapper.iterate", 3),
    ]


NO_IO = params(
    ("a query", lambda s: s.Order.select().where(s.Order.total > 1).sql),
    ("connect, open already", lambda s: partial(s.opened().connect, reuse_if_open=True)),
    ("connection, open", lambda s: s.opened().connection),
    ("close, closed", lambda s: s.db.close),
    ("is_closed", lambda s: s.db.is_closed),
    ("in_transaction", lambda s: s.db.in_transaction),
    (
        "connection_context in one",
        lambda s: partial(leave, s.inside(s.db.connection_context()) and s.db.connection_context()),
    ),
    (
        "an inner transaction's end",
        lambda s: s.inside(s.opened().transaction()) and partial(leave, s.db.transaction()),
    ),
    ("what is loaded", lambda s: partial(list, executed(s.opened() and s.Order.select()))),
    ("a joined foreign key", lambda s: (lambda order: lambda: order.customer.name)(joined(s))),
    ("customer_id", lambda s: (lambda order: lambda: order.customer_id)(s.order())),
    ("a prefetched back-reference", lambda s: (lambda c: lambda: [*c.orders])(prefetched(s))),
    ("after_commit", lambda s: partial(s.db.after_commit, lambda: None)),
)


def leave(block: Any) -> None:
    with block:
        pass


def executed(query: Any) -> Any:
    list(query)
    return query


def joined(shop: Shop) -> Any:
    shop.opened()
    Order, Customer = shop.Order, shop.Customer
    return Order.select(Order, Customer).join(Customer, on=Order.customer).get()


def prefetched(shop: Shop) -> Any:
    shop.opened()
    return peewee.prefetch(shop.Customer.select(), shop.Order.select())[0]


@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, shop: Shop, heard: list[Any]) -> None:
    call = make(shop)
    asyncsafe.install()
    on_loop(call)
    assert heard == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda db: db.connect(), "already opened"),
        (lambda db: (db.atomic().__enter__(), db.close()), "transaction is open"),
    ],
)
def test_an_error_of_peewees_own_stays(call: Any, error: str, sqlite_shop: Shop) -> None:
    sqlite_shop.opened()
    asyncsafe.install()
    with pytest.raises(peewee.OperationalError, match=error):

        async def main() -> None:
            with asyncsafe.allow("for what comes before the error"):
                call(sqlite_shop.db)

        asyncio.run(main())


def test_an_error_of_a_closed_one_stays(sqlite_shop: Shop) -> None:
    asyncsafe.install()
    for call in (sqlite_shop.db.commit, sqlite_shop.db.rollback):
        with pytest.raises(peewee.InterfaceError, match="connection not open"):
            on_loop(call)


# Clean-up ----------------------------------------------------------------------------------------


class TestErrorsOnTheirWay:
    """The application's error comes out, and what it leaves is ended."""

    @staticmethod
    def leave(block: Any) -> None:
        """As `with` does where ValueError comes out of it."""
        try:
            raise ValueError
        except ValueError as error:
            block.__exit__(ValueError, error, error.__traceback__)
            raise

    @pytest.mark.parametrize("kind", ["atomic", "transaction", "connection_context", "with"])
    def test_out_of_a_block(self, kind: str, shop: Shop) -> None:
        if kind in ("atomic", "transaction"):
            shop.opened()
        block = shop.db if kind == "with" else getattr(shop.db, kind)()
        shop.inside(block)
        rows = [10, 20, 30] if kind == "connection_context" else [10, 20]
        asyncsafe.install()
        with pytest.raises(ValueError):
            on_loop(partial(self.leave, block))
        assert not shop.db.in_transaction()
        assert shop.totals() == rows
        (site,) = asyncsafe.violations
        assert site.outcomes == {"allowed": 1}
        assert "exception is on its way" in str(site.violation.reason)

    def test_out_of_a_savepoint(self, shop: Shop) -> None:
        shop.opened()
        end = shop.inside(shop.db.atomic())
        savepoint = shop.db.savepoint()
        shop.inside(savepoint)
        asyncsafe.install()
        with pytest.raises(ValueError):
            on_loop(partial(self.leave, savepoint))
        end()
        assert shop.totals() == [10, 20, 30]

    def test_a_generator_that_is_closed(self, shop: Shop) -> None:
        shop.opened()
        batches = shop.db.batch_commit([1, 2, 3], 2)
        next(batches)
        shop.Order.create(customer=1, total=30)
        asyncsafe.install()
        on_loop(batches.close)
        assert not shop.db.in_transaction()

    def test_a_refusal_inside_is_the_one_that_comes_out(self, shop: Shop) -> None:
        """The block that it comes out of is rolled back, which isn't refused."""
        shop.opened()
        asyncsafe.install()

        async def main() -> None:
            with asyncsafe.allow("the block is entered"):
                block = shop.db.atomic()
                block.__enter__()
                shop.Order.create(customer=1, total=30)
            try:
                shop.Order.create(customer=1, total=40)
            except REFUSED as error:
                block.__exit__(type(error), error, error.__traceback__)
                raise

        with pytest.raises(REFUSED) as caught:
            asyncio.run(main())
        assert caught.value.violation.subject == "Order.create() was called"
        assert shop.totals() == [10, 20]
        assert not shop.db.in_transaction()


# Pools -------------------------------------------------------------------------------------------


@pytest.fixture(params=[name for name in DATABASES if name.startswith("pooled")])
def pooled(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of(request.param, request)


def idle(shop: Shop) -> Any:
    shop.opened().close()
    return shop.db


def stale(shop: Shop) -> Any:
    """A pool that lends a connection, by its own books, since a long time."""
    shop.opened()
    ((key, lent),) = shop.db._in_use.items()
    shop.db._in_use[key] = lent._replace(checked_out=0.0)
    return shop.db


POOL = params(
    ("connect", "connect", lambda s: s.db.connect),
    ("connect to an idle one", "connect", lambda s: idle(s).connect),
    ("close", "close", lambda s: s.opened().close),
    ("manual_close", "manual_close", lambda s: s.opened().manual_close),
    ("close_idle", "close_idle", lambda s: idle(s).close_idle),
    ("close_stale", "close_stale", lambda s: stale(s).close_stale),
    ("close_all, idle", "close_all", lambda s: idle(s).close_all),
    ("close_all, in use", "close_all", lambda s: s.opened().close_all),
    ("init", "init", lambda s: partial(s.opened().init, s.db.database)),
)


@pytest.mark.parametrize(("operation", "make"), POOL)
def test_a_pool_is_as_before(operation: str, make: Any, pooled: Shop) -> None:
    asyncsafe.install()
    call = make(pooled)
    before = pooled.seen()
    assert refused(call).operation == f"peewee.Database.{operation}"
    assert pooled.seen() == before
    call()
    assert pooled.seen() != before
    # Its connections are whole.
    if not pooled.db.is_closed():
        pooled.db.close()
    with pooled.db.connection_context():
        assert pooled.Order.select().count() == 2


@pytest.mark.parametrize("call", ["close_idle", "close_stale", "close_all"])
def test_an_empty_pool_does_nothing(call: str, pooled: Shop) -> None:
    pooled.db.close_all()
    asyncsafe.install()
    on_loop(getattr(pooled.db, call))
    assert not asyncsafe.violations


# What belongs to one kind of database ------------------------------------------------------------


class TestSqlite:
    @pytest.mark.parametrize(
        ("operation", "call"),
        [
            ("pragma", lambda db: db.pragma("cache_size")),
            ("pragma", lambda db: db.pragma("cache_size", -100, permanent=True)),
            ("pragma", lambda db: db.cache_size),
            ("attach", lambda db: db.attach(":memory:", "other")),
        ],
    )
    def test_what_it_remembers_is_as_before(
        self, operation: str, call: Any, sqlite_shop: Shop
    ) -> None:
        db = sqlite_shop.opened()
        before = list(db._pragmas), dict(db._attached)
        asyncsafe.install()
        assert refused(partial(call, db)).operation == f"peewee.Database.{operation}"
        assert (list(db._pragmas), dict(db._attached)) == before
        call(db)

    def test_detach(self, sqlite_shop: Shop) -> None:
        db = sqlite_shop.opened()
        db.attach(":memory:", "other")
        asyncsafe.install()
        assert refused(partial(db.detach, "other")).operation == "peewee.Database.detach"
        assert db.detach("other") is True

    def test_attach_to_a_closed_one(self, sqlite_shop: Shop) -> None:
        asyncsafe.install()
        assert on_loop(partial(sqlite_shop.db.attach, ":memory:", "other")) is True
        assert on_loop(partial(sqlite_shop.db.detach, "other")) is True

    def test_rows_of_a_query_that_was_executed_elsewhere(self, sqlite_shop: Shop) -> None:
        """sqlite reads them from the file, one by one."""
        sqlite_shop.opened()
        query = sqlite_shop.Order.select().order_by(sqlite_shop.Order.id)
        rows = iter(query)
        first = next(rows)
        asyncsafe.install()
        told = refused(lambda: next(rows))
        assert told.operation == "peewee.CursorWrapper.iterate"
        assert told.subject == "the rows of Order.select() were read"
        assert refused(lambda: list(query)).operation == "peewee.CursorWrapper.fill_cache"
        assert [first.total, *(order.total for order in rows)] == [10, 20]
        on_loop(partial(list, query))  # it has them all

    def test_apsw_without_a_transaction(self, request: pytest.FixtureRequest) -> None:
        for shop in shop_of("apsw", request):
            shop.opened()
            asyncsafe.install()
            assert on_loop(shop.db.commit) is on_loop(shop.db.rollback) is False


class TestQueue:
    """SqliteQueueDatabase: a thread writes, while who asks for the outcome waits."""

    @pytest.fixture
    def queue(self, tmp_path: Path) -> Iterator[Shop]:
        path = tmp_path / "queue.db"
        database = playhouse.sqliteq.SqliteQueueDatabase(str(path), autostart=True)
        watch = sqlite3.connect(path)
        shop = QueuedShop(database, watch)
        yield shop
        asyncsafe.uninstall()
        database.stop()
        if not database.is_closed():
            database.close()
        watch.close()

    @pytest.mark.parametrize(
        ("operation", "make"),
        params(
            ("create", "Query.execute", lambda s: lambda: s.Order.create(customer=1, total=30)),
            ("update", "Query.execute", lambda s: s.Order.update(total=1).execute),
            ("delete", "Query.execute", lambda s: s.Order.delete().execute),
            ("select", "Database.execute_sql", lambda s: lambda: s.Order.select().count()),
            (
                "an outcome",
                "SqliteQueueDatabase.wait",
                lambda s: paused(s).execute_sql("update orders set total = 1").fetchall,
            ),
            (
                "rowcount",
                "SqliteQueueDatabase.wait",
                lambda s: partial(getattr, paused(s).execute_sql("delete from orders"), "rowcount"),
            ),
            ("stop", "Database.stop", lambda s: s.db.stop),
            ("pause", "Database.pause", lambda s: s.db.pause),
        ),
    )
    def test_what_waits(self, operation: str, make: Any, queue: Shop) -> None:
        asyncsafe.install()
        call = make(queue)
        before = queue.totals(), queue.db.queue_size(), queue.db.is_stopped()
        assert refused(call).operation == f"peewee.{operation}"
        assert (queue.totals(), queue.db.queue_size(), queue.db.is_stopped()) == before

    def test_what_is_only_queued(self, queue: Shop, heard: list[Any]) -> None:
        asyncsafe.install()
        outcome = on_loop(partial(queue.db.execute_sql, "update orders set total = 1"))
        outcome.fetchall()
        assert queue.totals() == [1, 1]
        assert on_loop(lambda: outcome.rowcount) == 2
        assert on_loop(outcome.fetchall) == []
        assert heard == []

    def test_a_queue_that_is_full(self, tmp_path: Path) -> None:
        database = playhouse.sqliteq.SqliteQueueDatabase(
            str(tmp_path / "full.db"), autostart=False, queue_max_size=1
        )
        asyncsafe.install()
        insert = partial(database.execute_sql, "create table t (x)")
        on_loop(insert)
        assert refused(insert).operation == "peewee.Database.execute_sql"
        assert database.queue_size() == 1

    def test_made_before_it_was_guarded(self, queue: Shop) -> None:
        """Such a database holds on to what its base's execute_sql was."""
        asyncsafe.install()
        assert refused(queue.Order.select().first).library == "peewee"


class QueuedShop(Shop):
    """Whose writes take a while to be seen."""

    def fill(self) -> None:
        for query in (
            "create table customer (id integer primary key, name text not null)",
            "create table orders (id integer primary key, customer_id, parent_id, total integer)",
            "insert into customer values (1, 'Ada')",
            "insert into orders values (1, 1, null, 10), (2, 1, 1, 20)",
        ):
            self.db.execute_sql(query).fetchall()


def paused(shop: Shop) -> Any:
    """Its writer leaves what is queued where it is."""
    shop.db.stop()
    shop.db._is_stopped = False  # so that it isn't started, nor asks to be, until the end
    shop.db._writer = SimpleNamespace(join=lambda: None)
    return shop.db


class TestServerSide:
    """Rows that PostgreSQL still has."""

    @pytest.fixture(params=[False, True], ids=["psycopg2", "psycopg"])
    def shop(self, request: pytest.FixtureRequest) -> Iterator[Shop]:
        kind = playhouse.postgres_ext.PostgresqlExtDatabase
        shop = to_postgres(request, kind, prefer_psycopg3=request.param)
        yield shop
        shop.end()
        shop._watch.close()

    def test_refused_and_none_lost(self, shop: Shop) -> None:
        shop.opened()
        Order = shop.Order
        query = playhouse.postgres_ext.ServerSideQuery(
            Order.select().order_by(Order.id), array_size=1
        )
        asyncsafe.install()
        assert refused(lambda: list(query)).operation == "peewee.Database.execute_sql"
        with shop.db.atomic():
            query._execute(shop.db)
            told = refused(lambda: query._cursor_wrapper.iterate(False))
            assert told.operation == "peewee.CursorWrapper.iterate"
            fetch = query._cursor_wrapper.cursor.fetchone
            assert refused(fetch).operation == "peewee.ServerSide.fetchone"
            assert [order.total for order in query.iterator()] == [10, 20]
            query.close()


class TestMySQL:
    def test_a_connection_that_may_not_be_asked_is_not_broken(
        self, request: pytest.FixtureRequest
    ) -> None:
        """is_connection_usable() takes any error of its ping for a lost connection."""
        for shop in shop_of("mysql", request):
            shop.opened()
            asyncsafe.install()
            told = refused(shop.db.is_connection_usable)
            assert told.operation == "peewee.Database.is_connection_usable"
            assert shop.db.is_connection_usable()


def test_a_subclass_that_reconnects(sqlite_shop: Shop) -> None:
    """It makes the call again after some errors. Ours is none of them."""

    class Database(playhouse.shortcuts.ReconnectMixin, peewee.SqliteDatabase):
        pass

    database = Database(sqlite_shop.db.database)
    database.connect()
    asyncsafe.install()
    assert refused(partial(database.execute_sql, QUERY)).library == "peewee"
    assert len(asyncsafe.violations) == 1
    database.close()


# Whose it is -------------------------------------------------------------------------------------


def test_a_database_can_be_exempt(shop: Shop, heard: list[Any]) -> None:
    asyncsafe.install()
    asyncsafe.exempt(shop.db)

    def work() -> list[int]:
        with shop.db.atomic():
            shop.Order.create(customer=1, total=30)
        return [order.total for order in shop.Order.select()]

    assert sorted(on_loop(work)) == [10, 20, 30]
    assert on_loop(shop.Order.select().count) == 3  # rows that belong to no model
    assert on_loop(lambda: shop.db.execute_sql("select 1").fetchall())
    on_loop(shop.db.close)
    assert heard == []


def test_a_database_behind_a_proxy(sqlite_shop: Shop) -> None:
    proxy = peewee.DatabaseProxy()
    _, order, _ = models(proxy)
    asyncsafe.install()
    with pytest.raises(AttributeError, match="uninitialized Proxy"):
        on_loop(lambda: order.get())
    proxy.initialize(sqlite_shop.db)
    assert refused(lambda: order.get()).subject == "Order.get() was called"
    assert refused(partial(enter, proxy.atomic())).subject == "db.atomic() was entered"
    asyncsafe.exempt(sqlite_shop.db)
    assert on_loop(lambda: [o.total for o in order.select()]) == [10, 20]


def test_its_connection_can_be_exempt(postgres_shop: Shop, heard: list[Any]) -> None:
    shop = postgres_shop
    asyncsafe.install()
    asyncsafe.exempt(shop.opened().connection())
    on_loop(lambda: shop.Order.get(total=10))
    assert heard == []


def test_a_transaction_that_opened_its_connection_has_an_owner(
    postgres_shop: Shop, heard: list[Any]
) -> None:
    """`begin` connects: whose transaction it is, is known from that call on."""
    shop = postgres_shop
    asyncsafe.install()
    asyncsafe.configure(mode="record")

    async def begins(begun: asyncio.Event, end: asyncio.Event) -> None:
        with shop.db.atomic():
            begun.set()
            await end.wait()

    async def main() -> None:
        begun, end = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(begins(begun, end), name="first")
        await begun.wait()
        await asyncio.create_task(others())
        end.set()
        await first

    async def others() -> None:
        shop.Order.select().count()

    asyncio.run(main())
    assert [v.begun_by for v in heard if v.begun_by] == ["task 'first'"]


@pytest.mark.parametrize("isolated", [False, True])
def test_in_threads_with_use_local(isolated: bool, shop: Shop, heard: list[Any]) -> None:
    if isolated:
        asyncsafe.use_local(shop.db)
    asyncsafe.install()

    def work(total: int) -> int:
        with shop.db.connection_context(), shop.db.atomic():
            shop.Order.create(customer=1, total=total)
            return int(shop.Order.select().count())

    async def main() -> None:
        await asyncio.gather(*(database_sync_to_async(work)(total) for total in (30, 40)))
        await asyncio.to_thread(work, 50)

    asyncio.run(main())
    assert shop.totals() == [10, 20, 30, 40, 50]
    assert heard == []


# What is said of it ------------------------------------------------------------------------------

THREAD = "await asyncsafe.database_sync_to_async"
MESSAGES = params(
    ("for", "Order.select() was iterated", f"{THREAD}(list)(query)"),
    ("list", "Order.select() was iterated", f"{THREAD}(list)(query)"),
    ("len", "Order.select() was evaluated by len()", f"{THREAD}(len)(query)"),
    ("index", "Order.select() was indexed", f"{THREAD}(list)(query)"),
    ("iterator", "Order.select().iterator() was called", f"{THREAD}(query.iterator)(...)"),
    ("first", "Order.select().first() was called", f"{THREAD}(query.first)(...)"),
    ("count", "Order.select().count() was called", f"{THREAD}(query.count)(...)"),
    ("get", "Order.get() was called", f"{THREAD}(Order.get)(...)"),
    ("get_or_none", "Order.get_or_none() was called", f"{THREAD}(Order.get_or_none)(...)"),
    ("create", "Order.create() was called", f"{THREAD}(Order.create)(...)"),
    ("save", "order.save() was called", f"{THREAD}(order.save)(...)"),
    (
        "delete_instance",
        "order.delete_instance() was called",
        f"{THREAD}(order.delete_instance)(...)",
    ),
    ("insert", "Order.insert() was executed", f"{THREAD}(query.execute)()"),
    ("update", "Order.update() was executed", f"{THREAD}(query.execute)()"),
    ("delete", "Order.delete() was executed", f"{THREAD}(query.execute)()"),
    ("raw", "Order.raw() was iterated", f"{THREAD}(list)(query)"),
    (
        "a foreign key",
        "Order.customer was loaded",
        "Order.select(Order, Customer).join(Customer, on=Order.customer) beforehand",
    ),
    (
        "a foreign key to itself",
        "Order.parent was loaded",
        "Order.select(Order, Parent).join(Parent, on=Order.parent) beforehand, "
        "where Parent = Order.alias()",
    ),
    (
        "a back-reference",
        "Order.select() was iterated",
        "prefetch(Customer.select(), Order.select()) beforehand",
    ),
    ("prefetch", "prefetch() was called", f"{THREAD}(prefetch)(...)"),
    ("atomic", "db.atomic() was entered", f"{THREAD}(f)(...), where the function f has the whole"),
    ("@atomic", "db.atomic() was entered", f"{THREAD}(f)(...), where the function f has the whole"),
    ("transaction", "db.transaction() was entered", f"{THREAD}(f)(...), where"),
    ("atomic's end", "db.atomic() was left", "playhouse.pwasyncio's can: async with db.atomic()"),
    ("with db", "`with db` was entered", f"{THREAD}(f)(...), where"),
    (
        "create_tables",
        "SqliteDatabase.create_tables() was called",
        f"{THREAD}(db.create_tables)(...)",
    ),
    ("execute_sql", None, None),
    ("close", None, None),
)


@pytest.mark.parametrize(
    ("subject", "fix", "name"), [pytest.param(*row.values, row.id, id=row.id) for row in MESSAGES]
)
def test_the_message(name: str, subject: str | None, fix: str | None, sqlite_shop: Shop) -> None:
    (make,) = (row.values[1] for row in IO if row.id == name)
    asyncsafe.install()
    told = refused(make(sqlite_shop))
    assert told.subject == subject
    message = told.message()
    if subject is None:
        assert message.startswith(f"{told.operation}() was called from a running event loop")
        return
    assert message.startswith(f"{subject} from a running event loop (asyncio).")
    assert fix is not None
    assert fix in str(told.hint)


def test_the_whole_message(sqlite_shop: Shop) -> None:
    order = sqlite_shop.order()
    asyncsafe.install()

    async def show() -> str:
        return str(order.customer.name)

    with pytest.raises(REFUSED) as caught:
        asyncio.run(show())
    lines = str(caught.value).splitlines()
    assert lines[0] == "Order.customer was loaded from a running event loop (asyncio)."
    assert lines[2].startswith('    SELECT "t1"."id", "t1"."name" FROM "customer"')
    assert "in async show()" in lines[4]
    assert lines[6].startswith("  Write instead:       Order.select(Order, Customer).join(")


# What we know of peewee --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "class_name", "operation"),
    [
        pytest.param(module, class_name, operation, id=f"{module}:{class_name}.{operation.name}")
        for module, classes in integration("peewee").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed peewee lacks is passed over, which must not happen unseen."""
    if module == "playhouse.cysqlite_ext":
        pytest.importorskip("cysqlite")
    owner = getattr(importlib.import_module(module), class_name)
    before = vars(owner)[operation.name]
    asyncsafe.install("peewee")
    assert hasattr(vars(owner)[operation.name], "__async_unsafe__")
    asyncsafe.uninstall("peewee")
    assert vars(owner)[operation.name] is before


def test_what_overrides_them_is_in_the_table() -> None:
    """A method of a subclass of peewee's own that calls no base's would pass its guard."""
    import inspect

    import playhouse.cockroachdb
    import playhouse.mysql_ext
    import playhouse.pwasyncio
    import playhouse.sqlite_ext

    table = integration("peewee").operations
    names = {
        operation.name
        for classes in (table["peewee"], table["playhouse.pool"])
        for class_name, operations in classes.items()
        if class_name.endswith("Database")
        for operation in operations
    } - {"is_connection_usable"}  # only MySQL's asks the server
    found = set()
    kinds = [peewee.Database]
    for kind in kinds:
        kinds += kind.__subclasses__()
        asynchronous = issubclass(kind, playhouse.pwasyncio.AsyncDatabaseMixin)
        if not kind.__module__.startswith(("peewee", "playhouse")) or asynchronous:
            continue
        for name in names & vars(kind).keys():
            guarded = {o.name for o in table.get(kind.__module__, {}).get(kind.__name__, ())}
            source = inspect.getsource(vars(kind)[name])
            if name not in guarded and "super(" not in source:
                found.add(f"{kind.__module__}.{kind.__name__}.{name}")
    assert found == set()


def test_what_is_read_of_peewee_in_private(sqlite_shop: Shop, tmp_path: Path) -> None:
    db = sqlite_shop.opened()
    with db.connection_context():
        assert len(db._state.ctx) == 1
    assert {"_attached", "_pragmas"} <= vars(db).keys()
    query = sqlite_shop.Order.select().where(sqlite_shop.Order.customer == 1)
    assert (query._where.op, query._where.lhs) == (peewee.OP.EQ, sqlite_shop.Order.customer)
    assert query._database is db
    query.execute()
    assert query._cursor_wrapper.populated is False
    assert query._cursor_wrapper.model._meta.database is db
    assert issubclass(peewee.Insert, peewee._WriteQuery)
    pool = playhouse.pool.PooledSqliteDatabase(str(tmp_path / "a.db"))
    assert pool._connections == []
    assert pool._in_use == {}
    with closing(pool.connection()):
        assert [used.checked_out > 0 for used in pool._in_use.values()] == [True]
    assert playhouse.postgres_ext.FetchManyCursor.row_gen
    assert {"_event", "_cursor"} <= set(playhouse.sqliteq.AsyncCursor.__slots__)
