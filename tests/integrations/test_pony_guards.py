"""pony: what does I/O is refused on the loop before anything changes, and named as it was asked for."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pymysql
import pytest
from pony import orm
from pony.orm import core

import asyncsafe
from asyncsafe import database_sync_to_async
from asyncsafe.installation import integration

from ..running import in_thread, on_loop, python, refused

REFUSED = asyncsafe.SynchronousOnlyOperation
local: Any = core.local


class Shop:
    """A database of pony's with two orders of one customer, and a second connection to it."""

    def __init__(self, watch: Any, **provider: Any) -> None:
        self._watch = watch
        self.drop()
        self.provider = provider
        self.db: Any = orm.Database()

        class Customer(self.db.Entity):  # type: ignore[misc, name-defined]
            _table_ = "customer"
            name = orm.Required(str)
            bio = orm.Optional(str, lazy=True)
            orders = orm.Set("Order")

        class Order(self.db.Entity):  # type: ignore[misc, name-defined]
            _table_ = "orders"
            customer = orm.Required(Customer)
            total = orm.Required(int)
            tags = orm.Set("Tag", table="tagged")

        class Tag(self.db.Entity):  # type: ignore[misc, name-defined]
            _table_ = "tag"
            name = orm.Required(str)
            orders = orm.Set(Order)

        self.Customer, self.Order, self.Tag = Customer, Order, Tag
        self.db.bind(**provider)
        self.db.generate_mapping(create_tables=True)
        self.fill()

    def fill(self) -> None:
        for table in ("tagged", "orders", "customer", "tag"):
            self.tell(f"delete from {table}")
        with orm.db_session:
            ada = self.Customer(name="Ada", bio="...")
            orders = [self.Order(customer=ada, total=10), self.Order(customer=ada, total=20)]
            tag = self.Tag(name="urgent", orders=orders[:1])
            orm.commit()
            self.ids = [order.id for order in orders]
            self.ada, self.tag = ada.id, tag.id

    def tell(self, statement: str) -> Any:
        cursor = self._watch.cursor()
        cursor.execute(statement)
        return cursor

    def ask(self, query: str) -> list[Any]:
        return [tuple(row) for row in self.tell(query).fetchall()]

    def totals(self) -> list[int]:
        """From the second connection."""
        return [total for (total,) in self.ask("select total from orders order by total")]

    def seen(self) -> Any:
        """What others see of the tables, and what pony knows of its session and connection."""
        cache = local.db2cache.get(self.db)
        session = local.db_context_counter, id(local.db_session)
        pool = id(getattr(self.db.provider.pool, "con", None))
        if cache is None or not (
            cache.connection or cache.modified
        ):  # an empty one is as good as none
            return self.totals(), session, pool
        state = (
            id(cache),
            cache.is_alive,
            id(cache.connection),
            cache.in_transaction,
            cache.modified,
        )
        unsaved = [obj and obj._status_ for obj in cache.objects_to_save]
        return self.totals(), session, pool, state, unsaved, len(cache.modified_collections)

    def warm(self) -> Shop:
        """Its session has a connection, and nothing of the shop."""
        self.db.select("select 1")
        return self

    def order(self) -> Any:
        return self.Order[self.ids[0]]

    def customer(self) -> Any:
        """That an order points to, and nothing of it is loaded."""
        return self.order().customer

    def changed(self) -> Shop:
        """Its session has something to save."""
        self.warm().Order(customer=self.customer(), total=30)
        return self

    def saved(self) -> Shop:
        """Its session has an open transaction, with something in it."""
        self.changed()
        orm.flush()
        return self

    def end(self) -> None:
        asyncsafe.uninstall()
        while local.db_context_counter:
            local.db_session.__exit__(ValueError, ValueError(), None)
        orm.rollback()
        self.db.disconnect()
        self.drop()

    def drop(self) -> None:
        for table in ("tagged", "orders", "customer", "tag"):
            self.tell(f"drop table if exists {table}")


def to_sqlite(request: pytest.FixtureRequest) -> Shop:
    path = request.getfixturevalue("tmp_path") / "shop.db"
    watch = sqlite3.connect(path, isolation_level=None)
    return Shop(watch, provider="sqlite", filename=str(path), create_db=True)


def to_postgres(request: pytest.FixtureRequest) -> Shop:
    dsn = request.getfixturevalue("postgres")
    watch = psycopg2.connect(dsn)
    watch.autocommit = True
    return Shop(watch, provider="postgres", dsn=dsn)


def to_mysql(request: pytest.FixtureRequest) -> Shop:
    settings = dict(request.getfixturevalue("mysql"))
    watch = pymysql.connect(**settings, autocommit=True)
    settings["db"], settings["passwd"] = settings.pop("database"), settings.pop("password")
    return Shop(watch, provider="mysql", **settings)


DATABASES: dict[str, Callable[[pytest.FixtureRequest], Shop]] = {
    "sqlite": to_sqlite,
    "postgres": to_postgres,
    "mysql": to_mysql,
}


def shop_of(name: str, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = DATABASES[name](request)
    try:
        yield shop
    finally:
        shop.end()
        shop._watch.close()


@pytest.fixture(params=DATABASES)
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of(request.param, request)


@pytest.fixture
def sqlite_shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of("sqlite", request)


@pytest.fixture
def postgres_shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from shop_of("postgres", request)


def tell(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, core.Entity):
        return type(result).__name__
    if isinstance(result, (list, core.QueryResult)):
        return [tell(each) for each in result]
    if result is None or isinstance(result, (bool, int, str)):
        return result
    return type(result)


def params(*rows: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in rows]


EXECUTE = "Database.execute"
# Each makes, in a session, the call to be tried; the second column is what is refused.
IO = params(
    ("the first query", EXECUTE, lambda s: lambda: s.Order.select().count()),
    ("the first fetch", "Database.connect", lambda s: lambda: list(s.Order.select())),
    ("the first key", EXECUTE, lambda s: lambda: s.order()),
    ("list", EXECUTE, lambda s: lambda: list(orm.select(o for o in s.warm().Order))),
    ("for", EXECUTE, lambda s: (lambda q: lambda: [o.total for o in q])(s.warm().Order.select())),
    ("len", EXECUTE, lambda s: partial(len, s.warm().Order.select())),
    ("slice", EXECUTE, lambda s: (lambda q: lambda: q[:1])(s.warm().Order.select())),
    ("fetch", EXECUTE, lambda s: s.warm().Order.select().fetch),
    ("first", EXECUTE, lambda s: s.warm().Order.select().first),
    ("exists", EXECUTE, lambda s: s.warm().Order.select().exists),
    ("count", EXECUTE, lambda s: s.warm().Order.select().count),
    ("page", EXECUTE, lambda s: (lambda q: lambda: list(q.page(1)))(s.warm().Order.select())),
    ("sum", EXECUTE, lambda s: (lambda w: lambda: orm.sum(o.total for o in w.Order))(s.warm())),
    (
        "delete bulk",
        "Database.connect",
        lambda s: partial(s.Order.select().delete, bulk=True),
    ),
    (
        "for update",
        "Database.connect",
        lambda s: partial(list, s.Order.select().for_update()),
    ),
    ("[]", EXECUTE, lambda s: (lambda w: lambda: w.Order[w.ids[1]])(s.warm())),
    ("get", EXECUTE, lambda s: partial(s.warm().Order.get, total=20)),
    ("get of nothing", EXECUTE, lambda s: partial(s.warm().Order.get, total=99)),
    ("entity.exists", EXECUTE, lambda s: partial(s.warm().Order.exists, total=20)),
    (
        "select_by_sql",
        EXECUTE,
        lambda s: partial(s.warm().Order.select_by_sql, "select * from orders"),
    ),
    ("an attribute", EXECUTE, lambda s: partial(getattr, s.customer(), "name")),
    ("a lazy attribute", EXECUTE, lambda s: partial(getattr, s.customer(), "bio")),
    ("load", EXECUTE, lambda s: s.customer().load),
    ("a collection", EXECUTE, lambda s: partial(list, s.customer().orders)),
    ("its length", EXECUTE, lambda s: partial(len, s.customer().orders)),
    ("its count", EXECUTE, lambda s: s.customer().orders.count),
    ("whether it is empty", EXECUTE, lambda s: s.warm().Customer[s.ada].orders.is_empty),
    ("its query", EXECUTE, lambda s: s.customer().orders.select().first),
    ("many to many", EXECUTE, lambda s: partial(list, s.order().tags)),
    ("database.select", EXECUTE, lambda s: partial(s.warm().db.select, "select 1")),
    ("database.get", EXECUTE, lambda s: partial(s.warm().db.get, "select 1")),
    ("database.exists", EXECUTE, lambda s: partial(s.warm().db.exists, "select 1")),
    ("database.execute", EXECUTE, lambda s: partial(s.warm().db.execute, "select 1")),
    ("database.insert", EXECUTE, lambda s: partial(inserts, s.warm())),
    ("a query that saves", "Database.connect", lambda s: partial(list, s.changed().Order.select())),
    ("flush", "Database.flush", lambda s: s.changed() and orm.flush),
    ("database.flush", "Database.flush", lambda s: s.changed().db.flush),
    (
        "entity.flush",
        "Entity.flush",
        lambda s: s.warm().Order(customer=s.customer(), total=30).flush,
    ),
    (
        "to_dict",
        "Database.flush",
        lambda s: s.warm().Order(customer=s.customer(), total=30).to_dict,
    ),
    ("commit of what is unsaved", "orm.commit", lambda s: s.changed() and orm.commit),
    ("commit", "orm.commit", lambda s: s.saved() and orm.commit),
    ("database.commit", "Database.commit", lambda s: s.saved().db.commit),
    ("rollback", "orm.rollback", lambda s: s.saved() and orm.rollback),
    ("rollback of a connection", "orm.rollback", lambda s: s.warm() and orm.rollback),
    ("database.rollback", "Database.rollback", lambda s: s.saved().db.rollback),
    ("get_connection", "Database.get_connection", lambda s: s.db.get_connection),
    ("a collection that is changed", "orm.commit", lambda s: retag(s) and orm.commit),
)


def inserts(shop: Shop) -> None:
    shop.db.insert("tag", name="x")


def retag(shop: Shop) -> bool:
    order = shop.order()
    order.tags.load()
    order.tags.clear()
    return True


@pytest.mark.parametrize(("operation", "make"), IO)
class TestIO:
    def test_refused_on_the_loop(self, operation: str, make: Any, shop: Shop) -> None:
        with orm.db_session:
            bare = tell(make(shop)())
        after = shop.totals()
        shop.fill()
        asyncsafe.install("pony")
        with orm.db_session:
            call = make(shop)
            before = shop.seen()
            told = refused(call)
            assert (told.operation, told.library) == (f"pony.{operation}", "pony")
            assert shop.seen() == before
            # Off the loop it does what it always did, and so does the session.
            assert tell(call()) == bare
        assert shop.totals() == after
        assert len(asyncsafe.violations) == 1

    def test_untouched_in_a_thread(self, operation: str, make: Any, sqlite_shop: Shop) -> None:
        def work() -> Any:
            with orm.db_session:
                result = tell(make(sqlite_shop)())
            sqlite_shop.db.disconnect()
            return result

        bare = work()
        sqlite_shop.fill()
        asyncsafe.install()
        assert in_thread(work) == bare
        assert not asyncsafe.violations

    def test_recorded_once(self, operation: str, make: Any, postgres_shop: Shop) -> None:
        """What pony does is its own: its driver's guards have nothing to add."""
        shop = postgres_shop
        with orm.db_session:
            bare = tell(make(shop)())
        after = shop.totals()
        shop.fill()
        asyncsafe.install()
        with orm.db_session:
            call = make(shop)
            asyncsafe.configure(mode="record")
            assert on_loop(lambda: tell(call())) == bare
            asyncsafe.configure(mode="raise")
        assert shop.totals() == after
        told = [site.violation.operation for site in asyncsafe.violations]
        assert f"pony.{operation}" in told
        assert {name.partition(".")[0] for name in told} == {"pony"}


NO_IO = params(
    ("a query that isn't asked", lambda s: s.Order.select),
    ("an object that is loaded", lambda s: s.order),
    ("its attributes", lambda s: partial(getattr, s.order(), "total")),
    ("what it points to", lambda s: partial(getattr, s.order(), "customer")),
    ("a collection that is loaded", lambda s: partial(list, loaded(s.customer().orders))),
    ("a result that is cached", lambda s: partial(list, loaded(s.Order.select()))),
    ("a new object", lambda s: partial(s.Order, customer=s.customer(), total=30)),
    ("flush of nothing", lambda s: s.warm() and orm.flush),
    ("a block in a block", lambda s: partial(block, s)),
)


def loaded(things: Any) -> Any:
    list(things)
    return things


def block(shop: Shop) -> None:
    with orm.db_session:
        shop.Order(customer=local.db2cache and shop.customer(), total=30)


@pytest.mark.parametrize("make", NO_IO)
def test_no_io_is_not_flagged(make: Any, shop: Shop, heard: list[Any]) -> None:
    with orm.db_session:
        shop.order()
        call = make(shop)
        asyncsafe.install()
        on_loop(call)
        assert heard == []
        asyncsafe.uninstall()


def test_a_session_without_anything(shop: Shop, heard: list[Any]) -> None:
    asyncsafe.install()

    @orm.db_session
    def nothing() -> int:
        return 1

    def empty_block() -> None:
        with orm.db_session:
            pass

    assert on_loop(nothing) == 1
    on_loop(empty_block)
    for call in (orm.flush, orm.commit, orm.rollback, shop.db.rollback, shop.db.commit):
        on_loop(call)
    assert heard == []


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.db.select("select 1"),
        lambda s: s.db.get_connection(),
        lambda s: s.Order.get(total=10),
        lambda s: s.Order.select()[:],
    ],
)
def test_outside_of_a_session_ponys_own_error_stays(call: Any, sqlite_shop: Shop) -> None:
    asyncsafe.install()
    with pytest.raises(core.TransactionError, match="db_session is required"):
        on_loop(partial(call, sqlite_shop))
    assert not asyncsafe.violations


# Sessions ----------------------------------------------------------------------------------------


def create(shop: Shop) -> None:
    with orm.db_session:
        shop.Tag(name="x")


def decorated(shop: Shop) -> None:
    @orm.db_session
    def create_tag() -> None:
        shop.Tag(name="x")

    create_tag()


def reads(shop: Shop) -> None:
    with orm.db_session:
        shop.Tag.select().count()


class TestSessions:
    """One that may not commit is over: the next isn't a part of it."""

    @pytest.mark.parametrize("call", [create, decorated, reads])
    def test_refused(self, call: Any, shop: Shop) -> None:
        before = shop.seen()
        asyncsafe.install()
        refused(partial(call, shop))
        assert shop.seen() == before
        assert shop.ask("select name from tag") == [("urgent",)]
        with orm.db_session:  # not a part of another
            shop.Tag(name="y")
        assert len(shop.ask("select name from tag")) == 2

    def test_one_that_was_let_work(self, shop: Shop) -> None:
        """Its transaction is rolled back, as where a commit fails: the block has raised."""

        def work() -> None:
            with orm.db_session:
                with asyncsafe.allow("but not its end"):
                    shop.Tag(name="x")
                    orm.flush()

        asyncsafe.install()
        told = refused(work)
        assert told.operation == "pony.orm.db_session.__exit__"
        assert shop.ask("select name from tag") == [("urgent",)]
        assert (local.db_context_counter, local.db_session, local.db2cache) == (0, None, {})
        with orm.db_session:
            assert shop.Tag.select().count() == 1

    def test_one_that_commits_after_any_error(self, shop: Shop) -> None:
        """Ours is none of those that it means."""

        def work() -> None:
            with orm.db_session(allowed_exceptions=[Exception]):
                shop.Tag(name="x")

        asyncsafe.install()
        assert refused(work).operation == "pony.orm.db_session.__exit__"
        assert shop.ask("select name from tag") == [("urgent",)]
        assert (local.db_context_counter, local.db_session, local.db2cache) == (0, None, {})

    def test_its_message(self, sqlite_shop: Shop) -> None:
        asyncsafe.install()

        async def endpoint() -> None:
            with orm.db_session:
                sqlite_shop.Tag(name="x")

        with pytest.raises(REFUSED, match="the function f has the whole db_session"):
            asyncio.run(endpoint())

    def test_an_error_comes_out(self, shop: Shop) -> None:
        asyncsafe.install()

        def work() -> None:
            with orm.db_session:
                with asyncsafe.allow("but not its end"):
                    shop.Tag(name="x")
                    orm.flush()
                raise ValueError

        with pytest.raises(ValueError):
            on_loop(work)
        assert shop.ask("select name from tag") == [("urgent",)]
        assert (local.db_context_counter, local.db2cache) == (0, {})
        reasons = {site.violation.reason for site in asyncsafe.violations}
        assert "clean-up while an exception is on its way" in reasons

    def test_recorded(self, shop: Shop) -> None:
        asyncsafe.install()
        asyncsafe.configure(mode="record")
        on_loop(partial(create, shop))
        assert len(shop.ask("select name from tag")) == 2
        (site,) = asyncsafe.violations
        assert site.violation.operation == "pony.orm.db_session.__exit__"
        assert site.calls == 1
        assert site.seconds > 0

    def test_warnings_that_are_errors(self, shop: Shop) -> None:
        asyncsafe.install()
        asyncsafe.configure(mode="warn")
        with pytest.raises(asyncsafe.AsyncUnsafeWarning):
            on_loop(partial(create, shop))
        assert (local.db_context_counter, local.db_session, local.db2cache) == (0, None, {})

    @pytest.mark.parametrize("name", ["a coroutine", "a generator"])
    def test_what_pony_makes_of_them(self, name: str, sqlite_shop: Shop) -> None:
        """@db_session on them: each step has the session, and each query is refused."""

        @orm.db_session
        async def coroutine() -> int:
            await asyncio.sleep(0)
            return int(sqlite_shop.Tag.select().count())

        @orm.db_session
        def generator() -> Any:
            yield sqlite_shop.Tag.select().count()

        async def main() -> Any:
            return await coroutine() if name == "a coroutine" else next(iter(generator()))

        asyncsafe.install()
        with pytest.raises(REFUSED):
            asyncio.run(main())
        assert (local.db_context_counter, local.db_session, local.db2cache) == (0, None, {})

    def test_a_coroutine_that_commits(self, shop: Shop) -> None:
        @orm.db_session
        async def coroutine() -> None:
            shop.Tag(name="x")
            await asyncio.sleep(0) if False else None

        async def main() -> None:
            await coroutine()

        asyncsafe.install()
        with pytest.raises(REFUSED) as caught:
            asyncio.run(main())
        assert caught.value.violation.operation == "pony.orm.commit"
        assert shop.ask("select name from tag") == [("urgent",)]
        assert (local.db_context_counter, local.db_session, local.db2cache) == (0, None, {})

    def test_a_coroutine_that_was_let_read(self, postgres_shop: Shop) -> None:
        """Its end gives the connection back, by clean-up on the way of StopIteration."""

        @orm.db_session
        async def coroutine() -> None:
            with asyncsafe.allow("its query"):
                postgres_shop.Tag.select().count()

        async def main() -> None:
            await coroutine()

        connection = postgres_shop.db.provider.pool.con
        asyncsafe.install()
        asyncio.run(main())
        assert {site.violation.operation: site.outcomes for site in asyncsafe.violations} == {
            "pony.Database.execute": {"allowed": 1},
            "pony.Database.release": {"allowed": 1},
        }
        assert postgres_shop.db.provider.pool.con is connection is not None
        assert (local.db_context_counter, local.db_session, local.db2cache) == (0, None, {})

    def test_in_threads(self, shop: Shop, heard: list[Any]) -> None:
        @orm.db_session
        def work(number: int) -> None:
            shop.Order(customer=shop.Customer[shop.ada], total=number)

        def and_leave(number: int) -> None:
            work(number)
            shop.db.disconnect()

        async def main() -> None:
            await database_sync_to_async(and_leave)(30)
            await asyncio.to_thread(and_leave, 40)

        asyncsafe.install()
        asyncio.run(main())
        assert shop.totals() == [10, 20, 30, 40]
        assert heard == []


# Databases ---------------------------------------------------------------------------------------


class TestDatabases:
    def test_bind(self, shop: Shop) -> None:
        asyncsafe.install()
        database = orm.Database()
        told = refused(partial(database.bind, **shop.provider))
        assert told.operation == "pony.Database.connect"
        assert told.subject == "Database.bind() was called"
        assert database.provider is None
        database.bind(**shop.provider)
        database.disconnect()

    def test_bind_by_its_constructor(self, sqlite_shop: Shop) -> None:
        asyncsafe.install()
        told = refused(partial(orm.Database, **sqlite_shop.provider))
        assert told.subject == "Database() was bound"

    def test_a_relative_file_is_its_callers(self, tmp_path: Path) -> None:
        """pony counts the frames up to who calls bind()."""
        (tmp_path / "models.py").write_text(
            "from pony import orm\n"
            "db = orm.Database()\n"
            "db.bind(provider='sqlite', filename='here.db', create_db=True)\n"
        )
        (tmp_path / "elsewhere").mkdir()
        python(
            f"import asyncsafe, sys; asyncsafe.install(); sys.path.append({str(tmp_path)!r})\n"
            "import models",
            tmp_path / "elsewhere",
        )
        assert (tmp_path / "here.db").exists()

    def test_variables_are_the_callers(self, sqlite_shop: Shop) -> None:
        """And the frames up to who calls select(), execute(), get() ..."""
        asyncsafe.install()
        asyncsafe.configure(mode="record")
        Order, db = sqlite_shop.Order, sqlite_shop.db

        def work() -> Any:
            wanted = 20
            with orm.db_session:
                found = list(orm.select(o.total for o in Order if o.total == wanted))
                found += db.select("select total from orders where total = $wanted")
                found += [db.get("select total from orders where total = $wanted")]
                found += db.execute("select total from orders where total = $wanted").fetchone()
                found += [Order.get(lambda o: o.total == wanted).total]
                return found

        assert on_loop(work) == work() == [20] * 5

    def test_generate_mapping(self, tmp_path: Path) -> None:
        database = orm.Database("sqlite", str(tmp_path / "new.db"), create_db=True)
        asyncsafe.install()
        for options in ({"create_tables": True}, {}):
            told = refused(partial(database.generate_mapping, **options))
            assert told.operation == "pony.Database.generate_mapping"
            assert database.schema is None
        on_loop(partial(database.generate_mapping, check_tables=False))
        database.disconnect()

    @pytest.mark.parametrize(
        ("operation", "call"),
        [
            ("create_tables", lambda s: s.db.create_tables),
            ("check_tables", lambda s: s.db.check_tables),
            ("drop_table", lambda s: partial(s.db.drop_table, "tagged", with_all_data=True)),
            ("drop_all_tables", lambda s: partial(s.db.drop_all_tables, with_all_data=True)),
            ("disconnect", lambda s: s.db.disconnect),
        ],
    )
    def test_tables(self, operation: str, call: Any, shop: Shop) -> None:
        with orm.db_session:
            shop.warm()
        before = shop.seen()
        asyncsafe.install()
        assert refused(call(shop)).operation == f"pony.Database.{operation}"
        assert shop.seen() == before
        call(shop)()

    @pytest.mark.parametrize(
        "call",
        [
            lambda s: s.db.create_tables(),
            lambda s: s.db.drop_table("tagged"),
            lambda s: s.db.drop_all_tables(),
        ],
    )
    def test_in_a_session_they_are_ponys_error(self, call: Any, sqlite_shop: Shop) -> None:
        asyncsafe.install()
        with orm.db_session, pytest.raises(core.TransactionError, match="inside of another"):
            on_loop(partial(call, sqlite_shop))

    @pytest.mark.parametrize(
        "call", [lambda s: s.Tag.drop_table, lambda s: s.Order.tags.drop_table]
    )
    def test_tables_of_an_entity(self, call: Any, shop: Shop) -> None:
        before = shop.seen()
        asyncsafe.install()
        assert refused(partial(call(shop), with_all_data=True)).library == "pony"
        assert shop.seen() == before

    def test_one_can_be_exempt(self, shop: Shop, heard: list[Any]) -> None:
        asyncsafe.install()
        asyncsafe.exempt(shop.db)

        def work() -> int:
            with orm.db_session:
                shop.Tag(name="x")
                assert len(shop.Tag.select()[:]) == 2
                return int(shop.Tag.select().count())

        assert on_loop(work) == 2
        assert heard == []


class TestTakenHoldOfBefore:
    """`from pony.orm import *` before install(): the functions are as they were, and are refused."""

    commit, rollback = staticmethod(orm.commit), staticmethod(orm.rollback)

    @pytest.mark.parametrize("name", ["commit", "rollback"])
    def test_refused(self, name: str, shop: Shop) -> None:
        call = getattr(self, name)
        assert not hasattr(call, "__async_unsafe__")
        asyncsafe.install()
        with orm.db_session:
            shop.saved()
            before = shop.seen()
            told = refused(call)
            assert told.subject == f"{name}() was called"
            assert shop.seen() == before
            call()
        assert shop.totals() == ([10, 20, 30] if name == "commit" else [10, 20])

    def test_with_nothing_to_do(self, shop: Shop, heard: list[Any]) -> None:
        asyncsafe.install()
        with orm.db_session:
            on_loop(self.commit)
            on_loop(self.rollback)
        assert heard == []

    def test_rollback_on_an_errors_way(self, shop: Shop) -> None:
        asyncsafe.install()

        def work() -> None:
            try:
                raise ValueError
            except ValueError:
                self.rollback()
                raise

        with orm.db_session:
            shop.saved()
            with pytest.raises(ValueError):
                on_loop(work)
        assert shop.totals() == [10, 20]


# What is said of it ------------------------------------------------------------------------------

WHOLE = (
    "await asyncsafe.database_sync_to_async(f)(...), where the function f has the whole db_session"
)
MESSAGES = params(
    ("for", "select(... in Order) was iterated", WHOLE),
    ("len", "select(... in Order) was evaluated", WHOLE),
    ("slice", "select(... in Order) was indexed", WHOLE),
    ("first", "select(... in Order).first() was called", WHOLE),
    ("count", "select(... in Order).count() was called", WHOLE),
    ("sum", "select(...).sum() was called", WHOLE),
    ("[]", "Order[...] was loaded", WHOLE),
    ("get", "Order.get() was called", WHOLE),
    ("an attribute", "Customer.name was loaded", "select(...).prefetch(Customer) beforehand"),
    (
        "a lazy attribute",
        "Customer.bio was loaded",
        "select(...).prefetch(Customer.bio) beforehand",
    ),
    (
        "a collection",
        "Customer.orders was loaded",
        "select(...).prefetch(Customer.orders) beforehand",
    ),
    (
        "its length",
        "Customer.orders was loaded",
        "select(...).prefetch(Customer.orders) beforehand",
    ),
    ("many to many", "Order.tags was loaded", "select(...).prefetch(Order.tags) beforehand"),
    ("load", "customer.load() was called", WHOLE),
    ("database.select", "Database.select() was called", WHOLE),
    ("database.execute", "Database.execute() was called", WHOLE),
    ("flush", "flush() was called", WHOLE),
    ("to_dict", "order.to_dict() was called", WHOLE),
    ("commit", None, None),
)


@pytest.mark.parametrize(
    ("subject", "fix", "name"),
    [pytest.param(*row.values, row.id, id=str(row.id)) for row in MESSAGES],
)
def test_the_message(name: str, subject: str | None, fix: str | None, sqlite_shop: Shop) -> None:
    (make,) = (row.values[1] for row in IO if row.id == name)
    asyncsafe.install()
    with orm.db_session:
        told = refused(make(sqlite_shop))
    assert told.subject == subject
    if subject is None:
        assert told.message().startswith("pony.orm.commit() was called from a running event loop")
        return
    assert told.message().startswith(f"{subject} from a running event loop (asyncio).")
    assert told.hint == fix


def test_an_interactive_session(tmp_path: Path) -> None:
    """Where no db_session is needed, and pony wraps its functions."""
    code = """
import asyncio
import pony
pony.MODE = "INTERACTIVE"
from pony import orm
import asyncsafe

db = orm.Database("sqlite", ":memory:")
class Order(db.Entity):
    total = orm.Required(int)
    note = orm.Optional(str, lazy=True)
db.generate_mapping(create_tables=True)
with orm.db_session:
    Order(total=1)
asyncsafe.install()

async def tell(call):
    try:
        call()
    except asyncsafe.SynchronousOnlyOperation as refusal:
        print(refusal.violation.operation, "|", refusal.violation.message().partition(" from ")[0])

asyncio.run(tell(lambda: db.execute("select 1")))
order = Order.get(total=1)
asyncio.run(tell(lambda: order.note))
asyncio.run(tell(lambda: len(Order.select())))
"""
    assert python(code, tmp_path).stdout.splitlines() == [
        "pony.Database.execute | Database.execute() was called",
        "pony.Database.execute | Order.note was loaded",
        "pony.Database.execute | select(... in Order) was evaluated",
    ]


def test_the_message_of_a_decorated_function(sqlite_shop: Shop) -> None:
    asyncsafe.install()

    @orm.db_session
    def create_tag() -> None:
        sqlite_shop.Tag(name="x")

    async def endpoint() -> None:
        create_tag()

    with pytest.raises(REFUSED) as caught:
        asyncio.run(endpoint())
    message = str(caught.value)
    assert message.startswith("the db_session of create_tag() was left from a running event loop")
    assert "await asyncsafe.database_sync_to_async(create_tag)(...)" in message
    assert "in async endpoint()" in message


# Whose it is -------------------------------------------------------------------------------------


def test_two_tasks_in_one_session_are_told(postgres: str) -> None:
    """As pony is, both are in it. With use_local each has its own."""
    code = """
        import asyncio, sys
        import asyncsafe
        if {isolated}:
            asyncsafe.use_local("pony")
        asyncsafe.install()
        asyncsafe.configure(mode="record")
        from pony import orm

        db = orm.Database("postgres", dsn={dsn!r})

        async def first(inserted, end):
            with orm.db_session:
                db.execute("create temporary table t (x integer)")
                inserted.set()
                await end.wait()

        async def second(inserted, end):
            await inserted.wait()
            with orm.db_session:
                db.select("select 1")
            end.set()

        async def main():
            inserted, end = asyncio.Event(), asyncio.Event()
            one = asyncio.create_task(first(inserted, end), name="first")
            await asyncio.gather(one, second(inserted, end))

        told = []
        asyncsafe.violations.subscribe(told.append)
        asyncio.run(main())
        print({{violation.begun_by for violation in told if violation.begun_by}})
        assert {{violation.library for violation in told}} <= {{"pony", "psycopg2"}}
    """
    for isolated, said in ((False, "{\"task 'first'\"}"), (True, "set()")):
        done = python(
            textwrap.dedent(code.format(dsn=postgres, isolated=isolated)), Path(__file__).parent
        )
        assert done.stdout.strip() == said


# What we know of pony ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "class_name", "operation"),
    [
        pytest.param(module, class_name, operation, id=f"{module}:{class_name}.{operation.name}")
        for module, classes in integration("pony").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ],
)
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed pony lacks is passed over, which must not happen unseen."""
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    before = vars(owner)[operation.name]
    asyncsafe.install("pony")
    assert hasattr(vars(owner)[operation.name], "__async_unsafe__")
    asyncsafe.uninstall("pony")
    assert vars(owner)[operation.name] is before


def test_what_is_read_of_pony_in_private(sqlite_shop: Shop) -> None:
    assert callable(core._get_caches)
    assert {"commit", "rollback"} <= {orm.commit.__name__, orm.rollback.__name__}
    for function in (orm.commit, orm.rollback):
        assert "_get_caches" in function.__code__.co_names
        assert function.__code__.co_qualname == function.__name__
    with orm.db_session:
        assert local.db_context_counter == 1
        order = sqlite_shop.order()
        cache = local.db2cache[sqlite_shop.db]
        assert order._session_cache_ is cache
        assert order._status_ == "loaded"
        assert cache.database is sqlite_shop.db
        assert cache.connection is sqlite_shop.db.provider.pool.con
        assert (cache.in_transaction, cache.immediate, cache.modified) == (False, False, False)
        assert cache.noflush_counter == 0
        query = sqlite_shop.Order.select()
        assert query._translator.expr_type is sqlite_shop.Order
        assert query.fetch()._query is query
        orders = order.customer.orders
        assert orders._attr_ is sqlite_shop.Customer.orders
        assert orders._obj_ is order.customer
