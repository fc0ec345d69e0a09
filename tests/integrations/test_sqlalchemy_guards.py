"""SQLAlchemy on the loop: refused before anything is sent, and everything as it was."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import itertools
import logging
import pickle
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pymysql
import pytest
import sqlalchemy as sa
from sqlalchemy import orm, pool
from sqlalchemy.orm import Session

import asyncsafe
from asyncsafe.installation import integration

from ..fix_mysql import Letters
from ..running import on_loop, python, refused

#: A name for each test's connections: a server takes a while to notice that others were closed.
NAMES = (f"asyncsafe-sqlalchemy-{number}" for number in itertools.count())


class Base(orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "guarded_customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(20))
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="customer", cascade="all")


class Order(Base):
    __tablename__ = "guarded_orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    total: orm.Mapped[int]
    note: orm.Mapped[str] = orm.mapped_column(sa.String(20), default="", deferred=True)
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("guarded_customers.id"))
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")


ORDERS = Order.__table__
ROWS = [(1, 10), (2, 20), (3, 30)]


class Database:
    """An engine, and what a second connection and the server know of its connections."""

    def __init__(self, url: str, watch: Any, letters: Any, name: str | None) -> None:
        self.url = url
        self.watch = watch
        self.name = name
        self.letters = letters  # which asks the kernel what went to MySQL
        self.kept: list[Any] = []
        self.statements: list[str] = []
        self.engine = self.create()

    def create(self, **options: Any) -> sa.Engine:
        engine = sa.create_engine(self.url, **options)
        self.kept.append(engine)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", self._trace)
        return engine

    def _trace(self, connection: Any, record: Any) -> None:
        connection.set_trace_callback(self.statements.append)

    def ask(self, query: str) -> list[Any]:
        cursor = self.watch.cursor()
        cursor.execute(query)
        return list(cursor.fetchall())

    def rows(self) -> list[Any]:
        return self.ask("select id, total from guarded_orders order by id")

    def seen(self) -> Any:
        """The rows that are committed, and what each connection has been asked to do."""
        dialect = self.engine.dialect.name
        sent: Any = list(self.statements)
        if dialect == "postgresql":
            sent = self.ask(
                "select pid, state, query, query_start, state_change from pg_stat_activity "
                f"where application_name = '{self.name}' order by pid"
            )
        elif dialect == "mysql":
            sent = self.letters.sent()
        return self.rows(), sent

    def keep(self, thing: Any) -> Any:
        self.kept.append(thing)
        return thing

    # What is to be used on the loop, made here.

    def connection(self) -> sa.Connection:
        return self.keep(self.engine.connect())  # type: ignore[no-any-return]

    def writing(self) -> sa.Connection:
        """In a transaction with a fourth order that nobody else sees."""
        connection = self.connection()
        connection.execute(ORDERS.insert().values(id=4, total=40, note="", customer_id=1))
        return connection

    def nested(self) -> Any:
        connection = self.writing()
        return connection.begin_nested()

    def session(self, **options: Any) -> Session:
        return self.keep(Session(self.engine, **options))  # type: ignore[no-any-return]

    def used(self) -> Session:
        """With a connection, and an order that is loaded."""
        session = self.session()
        self.keep(session.get(Order, 1))
        return session

    def changed(self) -> Session:
        session = self.used()
        session.get(Order, 1).total = 11  # type: ignore[union-attr]
        return session

    def added(self) -> Session:
        session = self.session()
        session.add(Order(id=4, total=40, customer_id=1))
        return session

    def expired(self) -> Order:
        session = self.used()
        order: Any = session.get(Order, 1)
        session.expire(order)
        return order  # type: ignore[no-any-return]

    def streamed(self, **options: Any) -> Any:
        """Rows of which none has come, on every server."""
        connection = self.connection().execution_options(stream_results=True, max_row_buffer=1)
        result = connection.execute(sa.select(ORDERS.c.id).order_by(ORDERS.c.id), **options)
        result.fetchone()  # the one that came with the execution
        return self.keep(result)

    def two_phase(self) -> Any:
        connection = self.connection()
        transaction = connection.begin_twophase()
        connection.execute(ORDERS.insert().values(id=4, total=40, note="", customer_id=1))
        return transaction

    def end(self) -> None:
        asyncsafe.uninstall()
        for one in reversed(self.kept):
            if hasattr(one, "dispose") or hasattr(one, "close"):
                with suppress(Exception):
                    (one.dispose if hasattr(one, "dispose") else one.close)()
        self.kept.clear()


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    watch: Any
    letters = name = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'orders.db'}"
        watch = sqlite3.connect(tmp_path / "orders.db", isolation_level=None)
    elif request.param == "postgresql":
        dsn = request.getfixturevalue("postgres")
        url = dsn.replace("postgresql://", "postgresql+psycopg2://")
        name = next(NAMES)
        url += f"{'&' if '?' in url else '?'}application_name={name}"
        watch = psycopg2.connect(dsn)
        watch.autocommit = True
    else:
        settings = request.getfixturevalue("mysql")
        url = sa.URL.create(
            "mysql+pymysql",
            settings["user"],
            settings["password"] or None,
            settings["host"],
            settings["port"],
            settings["database"],
        ).render_as_string(hide_password=False)
        letters = Letters(settings, pymysql.connect)
        watch = letters.watch
    setup = sa.create_engine(url.replace(str(name), "asyncsafe-setup"))
    Base.metadata.drop_all(setup)
    Base.metadata.create_all(setup)
    with Session(setup) as session:
        session.add(Customer(id=1, name="Ada"))
        session.flush()
        session.add_all([Order(id=id, total=total, customer_id=1) for id, total in ROWS])
        session.commit()
    setup.dispose()
    db = Database(url, watch, letters, name)
    yield db
    db.end()
    Base.metadata.drop_all(setup)
    setup.dispose()
    watch.close()


def leave(manager: Any) -> None:
    manager.__exit__(None, None, None)


def begun(session: Session) -> Any:
    """A block that has changed an order, about to be left."""
    transaction = session.begin()
    transaction.__enter__()
    session.get(Order, 1).total = 11  # type: ignore[union-attr]
    return transaction


def raw(db: Database) -> Any:
    return db.keep(db.engine.raw_connection())


def saving(session: Session) -> Any:
    return partial(session.bulk_save_objects, [Order(id=4, total=40, note="", customer_id=1)])


def given(db: Database) -> Session:
    """A session in the transaction of a connection that isn't its own."""
    session = db.keep(Session(db.writing(), join_transaction_mode="rollback_only"))
    session.connection()
    return session  # type: ignore[no-any-return]


def deleting(session: Session) -> Any:
    """Which loads what is to be deleted, or changed, with it."""
    customer = session.get(Customer, 1)
    return lambda: session.delete(customer)


MAPPING = {"id": 4, "total": 40, "note": "", "customer_id": 1}
SELECT = sa.select(ORDERS.c.id)

#: (what, the operation that refuses it, what makes a call of a database)
IO: tuple[tuple[str, str, Callable[[Database], Callable[[], Any]]], ...] = (
    ("engine.connect", "Engine.raw_connection", lambda db: lambda: db.keep(db.engine.connect())),
    ("engine.begin", "Engine.raw_connection", lambda db: lambda: db.engine.begin().__enter__()),
    (
        "engine.raw_connection",
        "Engine.raw_connection",
        lambda db: lambda: db.keep(db.engine.raw_connection()),
    ),
    ("engine.dispose", "Engine.dispose", lambda db: (raw(db).close(), db.engine.dispose)[1]),
    ("pool.connect", "Pool.connect", lambda db: lambda: db.keep(db.engine.pool.connect())),
    ("pool.dispose", "Pool.dispose", lambda db: (raw(db).close(), db.engine.pool.dispose)[1]),
    (
        "create_all",
        "Engine.raw_connection",
        lambda db: partial(Base.metadata.create_all, db.engine),
    ),
    ("inspect", "Engine.raw_connection", lambda db: partial(sa.inspect, db.engine)),
    (
        "inspector.get_table_names",
        "Engine.raw_connection",
        lambda db: sa.inspect(db.engine).get_table_names,
    ),
    ("raw close", "PoolProxiedConnection.close", lambda db: raw(db).close),
    ("raw invalidate", "PoolProxiedConnection.invalidate", lambda db: raw(db).invalidate),
    (
        "connection.execute",
        "Connection.execute",
        lambda db: partial(db.connection().execute, SELECT),
    ),
    ("connection.scalar", "Connection.scalar", lambda db: partial(db.connection().scalar, SELECT)),
    (
        "connection.scalars",
        "Connection.execute",
        lambda db: partial(db.connection().scalars, SELECT),
    ),
    (
        "connection.execute, many",
        "Connection.execute",
        lambda db: partial(
            db.connection().execute,
            ORDERS.insert().returning(ORDERS.c.id),
            [MAPPING, {**MAPPING, "id": 5}],
        ),
    ),
    (
        "connection.execute, DDL",
        "Connection.execute",
        lambda db: partial(
            db.connection().execute, sa.schema.CreateTable(ORDERS, if_not_exists=True)
        ),
    ),
    (
        "connection.exec_driver_sql",
        "Connection.exec_driver_sql",
        lambda db: partial(db.connection().exec_driver_sql, "select 1"),
    ),
    (
        "connection.get_isolation_level",
        "Connection.get_isolation_level",
        lambda db: db.connection().get_isolation_level,
    ),
    ("connection.begin_nested", "Connection.begin_nested", lambda db: db.connection().begin_nested),
    ("connection.commit", "Transaction.commit", lambda db: db.writing().commit),
    ("connection.rollback", "Transaction.rollback", lambda db: db.writing().rollback),
    ("connection.close", "Connection.close", lambda db: db.writing().close),
    ("connection.close, idle", "Connection.close", lambda db: db.connection().close),
    ("connection left", "Connection.close", lambda db: partial(leave, db.writing())),
    ("connection.invalidate", "Connection.invalidate", lambda db: db.writing().invalidate),
    ("transaction.close", "Transaction.close", lambda db: db.writing().get_transaction().close),  # type: ignore[union-attr]
    ("nested.commit", "Transaction.commit", lambda db: db.nested().commit),
    ("nested.rollback", "Transaction.rollback", lambda db: db.nested().rollback),
    ("result.fetchone", "Result.fetchone", lambda db: db.streamed().fetchone),
    ("result.fetchmany", "Result.fetchmany", lambda db: partial(db.streamed().fetchmany, 2)),
    ("result.fetchall", "Result.fetchall", lambda db: db.streamed().fetchall),
    ("result.first", "Result.fetchone", lambda db: db.streamed().first),
    ("result.scalars.all", "Result.fetchall", lambda db: db.streamed().scalars().all),
    ("result.mappings.one", "Result.fetchone", lambda db: db.streamed().mappings().fetchone),
    ("result iterated", "Result.__next__", lambda db: partial(list, db.streamed())),
    (
        "result.partitions",
        "Result.fetchmany",
        lambda db: (lambda rows: lambda: list(rows.partitions(2)))(db.streamed()),
    ),
    ("session.execute", "Session.execute", lambda db: partial(db.session().execute, SELECT)),
    ("session.scalar", "Session.scalar", lambda db: partial(db.session().scalar, SELECT)),
    ("session.scalars", "Session.scalars", lambda db: partial(db.session().scalars, SELECT)),
    ("session.get", "Session.execute", lambda db: partial(db.session().get, Order, 1)),
    ("session.connection", "Session.connection", lambda db: db.session().connection),
    (
        "session.refresh",
        "Session.refresh",
        lambda db: (lambda s: partial(s.refresh, s.get(Order, 1)))(db.used()),
    ),
    ("session.flush", "Session.flush", lambda db: db.changed().flush),
    ("session.flush, new", "Session.flush", lambda db: db.added().flush),
    ("autoflush", "Session.execute", lambda db: partial(db.added().execute, SELECT)),
    ("session.begin_nested", "Session.flush", lambda db: db.added().begin_nested),
    ("session.commit", "SessionTransaction.commit", lambda db: db.changed().commit),
    ("session.commit, new", "SessionTransaction.commit", lambda db: db.added().commit),
    ("session.commit, read only", "SessionTransaction.commit", lambda db: db.used().commit),
    ("session.rollback", "SessionTransaction.rollback", lambda db: db.changed().rollback),
    ("session.close", "Session.close", lambda db: db.changed().close),
    ("session.reset", "Session.reset", lambda db: db.changed().reset),
    ("session.invalidate", "Session.invalidate", lambda db: db.changed().invalidate),
    (
        "session.invalidate, of a connection that it was given",
        "Session.invalidate",
        lambda db: given(db).invalidate,
    ),
    (
        "transaction.close(invalidate=True)",
        "SessionTransaction.close",
        lambda db: partial(given(db).get_transaction().close, invalidate=True),
    ),
    ("session left", "Session.close", lambda db: partial(leave, db.changed())),
    (
        "session.merge",
        "Session.execute",
        lambda db: partial(db.session().merge, Order(id=1, total=5)),
    ),
    (
        "session.delete, which loads",
        "Session.execute",
        lambda db: deleting(db.session()),
    ),
    ("bulk_save_objects", "Session.bulk_save_objects", lambda db: saving(db.session())),
    (
        "bulk_insert_mappings",
        "Session.bulk_insert_mappings",
        lambda db: partial(db.session().bulk_insert_mappings, Order, [MAPPING]),  # type: ignore[arg-type]
    ),
    (
        "bulk_update_mappings",
        "Session.bulk_update_mappings",
        lambda db: partial(db.session().bulk_update_mappings, Order, [{"id": 1, "total": 11}]),  # type: ignore[arg-type]
    ),
    (
        "bulk_insert_mappings of nothing, which connects",
        "Session.bulk_insert_mappings",
        lambda db: partial(db.session().bulk_insert_mappings, Order, []),  # type: ignore[arg-type]
    ),
    ("query.all", "Session.execute", lambda db: db.session().query(Order).all),
    ("query.count", "Session.execute", lambda db: db.session().query(Order).count),
    (
        "query.update",
        "Session.execute",
        lambda db: partial(db.session().query(Order).update, {"total": 5}),
    ),
    (
        "lazy load",
        "Session.execute",
        lambda db: partial(getattr, db.used().get(Order, 1), "customer"),
    ),
    ("deferred", "Session.execute", lambda db: partial(getattr, db.used().get(Order, 1), "note")),
    ("expired", "Session.execute", lambda db: partial(getattr, db.expired(), "total")),
    (
        "ORM rows that are streamed",
        "Result.fetchmany",
        lambda db: (lambda rows: lambda: list(rows.partitions(2)))(orm_rows(db)),
    ),
)


def orm_rows(db: Database) -> Any:
    result = db.session().scalars(sa.select(Order).execution_options(yield_per=1))
    result.fetchmany(1)
    return result


def picture(things: list[Any]) -> list[Any]:
    """What sessions, connections and pools say of themselves."""
    told: list[Any] = []
    for thing in things:
        if isinstance(thing, sa.Engine):
            told.append(thing.pool.status())
        elif isinstance(thing, sa.Connection):
            told.append((thing.closed, thing.invalidated))
            told.append((thing.in_transaction(), thing.in_nested_transaction()))
        elif isinstance(thing, Session):
            told.append((thing.in_transaction(), thing.in_nested_transaction(), thing.is_active))
            told.append((list(thing.new), list(thing.dirty), list(thing.deleted)))
            told.append(sorted(map(id, thing.identity_map.values())))
    return told


@pytest.mark.parametrize(("operation", "make"), [io[1:] for io in IO], ids=[io[0] for io in IO])
class TestIO:
    def test_refused_before_anything_is_sent(
        self, operation: str, make: Any, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        asyncsafe.install()
        call = make(db)
        kept = [*db.kept]
        before = db.seen(), picture(kept)
        caplog.clear()
        assert refused(call).operation == f"sqlalchemy.{operation}"
        assert [r for r in caplog.records if r.name.startswith("sqlalchemy")] == []
        assert (db.seen(), picture(kept)) == before
        # Off the loop it does what it always did, and that is seen.
        call()

    def test_not_by_sqlalchemys_guard_alone_either(
        self, operation: str, make: Any, db: Database
    ) -> None:
        asyncsafe.install("sqlalchemy")
        call = make(db)
        assert refused(call).operation == f"sqlalchemy.{operation}"
        call()


TWO_PHASE: tuple[tuple[str, str, Callable[[Database], Callable[[], Any]]], ...] = (
    ("begin_twophase", "Connection.begin_twophase", lambda db: db.connection().begin_twophase),
    ("prepare", "TwoPhaseTransaction.prepare", lambda db: db.two_phase().prepare),
    (
        "recover_twophase",
        "Connection.recover_twophase",
        lambda db: db.connection().recover_twophase,
    ),
    (
        "execution_options(isolation_level=...)",
        "Connection.execution_options",
        lambda db: partial(db.connection().execution_options, isolation_level="SERIALIZABLE"),
    ),
)


@pytest.mark.parametrize("db", ["mysql"], indirect=True)
@pytest.mark.parametrize(
    ("operation", "make"), [io[1:] for io in TWO_PHASE], ids=[io[0] for io in TWO_PHASE]
)
def test_what_sqlite_lacks(operation: str, make: Any, db: Database) -> None:
    asyncsafe.install()
    call = make(db)
    before = db.seen(), picture(db.kept)
    assert refused(call).operation == f"sqlalchemy.{operation}"
    assert (db.seen(), picture(db.kept)) == before
    call()


# What doesn't block ------------------------------------------------------------------------------

NO_IO: tuple[tuple[str, Callable[[Database], Callable[[], Any]]], ...] = (
    ("create_engine", lambda db: db.create),
    ("a session without a connection", lambda db: lambda: leave(db.session())),
    ("commit of nothing", lambda db: db.session().commit),
    ("rollback of nothing", lambda db: db.session().rollback),
    ("add and close", lambda db: adding(db.session(), "close")),
    ("add and rollback", lambda db: adding(db.session(), "rollback")),
    ("get of what is loaded", lambda db: partial(db.used().get, Order, 1)),
    ("flush of nothing", lambda db: db.used().flush),
    ("rollback of an unused savepoint", lambda db: db.used().begin_nested().rollback),
    ("bulk_save_objects of nothing", lambda db: partial(db.session().bulk_save_objects, [])),
    (
        "bulk_insert_mappings of nothing, with a connection",
        lambda db: partial(db.used().bulk_insert_mappings, Order, []),
    ),
    (
        "flush of the same value",
        lambda db: setting(db.used()),
    ),
    ("expire and expunge", lambda db: forgetting(db.used())),
    ("session.begin", lambda db: db.session().begin),
    ("session.connection, there already", lambda db: db.used().connection),
    ("connection.begin", lambda db: db.connection().begin),
    ("connection.commit of nothing", lambda db: db.connection().commit),
    ("connection.detach", lambda db: db.connection().detach),
    ("close twice", lambda db: (lambda c: (c.close(), c.close)[1])(db.connection())),
    ("dispose of nothing", lambda db: db.create().dispose),
    ("dispose without a pool", lambda db: db.create(poolclass=pool.NullPool).dispose),
    ("dispose(close=False)", lambda db: (raw(db).close(), partial(db.engine.dispose, False))[1]),
    ("raw cursor", lambda db: raw(db).cursor),
    ("invalidate(soft=True)", lambda db: partial(raw(db).invalidate, soft=True)),
    ("options", lambda db: partial(db.connection().execution_options, logging_token="a")),
    ("rows that have come", lambda db: fetched(db).all),
    ("compile", lambda db: lambda: str(sa.select(Order).compile(db.engine))),
)


def adding(session: Session, end: str) -> Any:
    def call() -> None:
        session.add(Order(id=9))
        getattr(session, end)()

    return call


def setting(session: Session) -> Any:
    def call() -> None:
        session.get(Order, 1).total = 10  # type: ignore[union-attr]
        session.flush()

    return call


def forgetting(session: Session) -> Any:
    def call() -> None:
        session.expire_all()
        session.expunge_all()

    return call


def fetched(db: Database) -> Any:
    result = db.connection().execute(sa.select(ORDERS.c.id))
    return result.freeze()() if db.engine.dialect.name == "sqlite" else result


@pytest.mark.parametrize("make", [make for _, make in NO_IO], ids=[name for name, _ in NO_IO])
def test_what_does_no_io_is_not_refused(
    make: Any, db: Database, heard: list[asyncsafe.Violation]
) -> None:
    asyncsafe.install()
    call = make(db)
    before = db.seen()
    on_loop(call)
    assert heard == []
    assert db.seen() == before


def test_errors_of_sqlalchemys_own_come_first(db: Database) -> None:
    asyncsafe.install()
    connection = db.connection()
    connection.close()
    with pytest.raises(sa.exc.ResourceClosedError):
        on_loop(lambda: connection.execute(SELECT))
    session = db.added()
    (pending,) = session.new
    for order in (pending, db.session().get(Order, 1), Order(id=5)):
        with pytest.raises(sa.exc.InvalidRequestError, match="not persistent"):
            on_loop(partial(session.refresh, order))


# Pools -------------------------------------------------------------------------------------------

POOLS = [
    pool.QueuePool,
    pool.NullPool,
    pool.StaticPool,
    pool.SingletonThreadPool,
    pool.AssertionPool,
]


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("checked", [False, True], ids=["", "pre_ping"])
def test_pools_are_as_they_were(kind: Any, checked: bool, db: Database) -> None:
    engine = db.create(poolclass=kind, pool_pre_ping=checked)
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
    asyncsafe.install()
    before = db.seen(), engine.pool.status()
    calls: list[Callable[[], Any]] = [
        engine.connect,
        engine.raw_connection,
        lambda: Session(engine).execute(SELECT),
        lambda: sa.inspect(engine),
    ]
    if kind is not pool.NullPool:
        calls.append(engine.dispose)
    for call in calls:
        refused(call)
        assert (db.seen(), engine.pool.status()) == before
    with engine.connect() as connection:
        assert connection.execute(SELECT).fetchall() == [(1,), (2,), (3,)]
        if kind is not pool.NullPool:
            assert connection.connection.dbapi_connection is driver
    used = engine.connect()
    used.execute(SELECT)
    refused(used.close)
    assert not used.closed
    assert used.execute(SELECT).fetchall() == [(1,), (2,), (3,)]
    used.close()
    assert engine.pool.status() == before[1]


def test_a_pool_without_an_engine(db: Database) -> None:
    asyncsafe.install()
    alone = db.keep(pool.QueuePool(db.engine.raw_connection, pool_size=1))
    refused(alone.connect)
    alone.connect().close()
    assert alone.checkedin() == 1


# State, afterwards -------------------------------------------------------------------------------


class TestAfterwards:
    def test_a_refused_commit_can_be_made(self, db: Database) -> None:
        asyncsafe.install()
        session = db.changed()
        session.add(Order(id=4, total=40, customer_id=1))
        refused(session.commit)
        refused(session.flush)
        assert db.rows() == ROWS
        session.commit()
        assert db.rows() == [(1, 11), (2, 20), (3, 30), (4, 40)]

    def test_after_a_flush(self, db: Database) -> None:
        asyncsafe.install()
        session = db.added()
        session.flush()
        refused(session.commit)
        session.commit()
        assert db.rows() == [*ROWS, (4, 40)]

    def test_a_refused_block_is_rolled_back_by_its_own_end(self, db: Database) -> None:
        """The refusal is an error in it, as any other."""
        asyncsafe.install()
        session = db.session()
        assert (
            refused(partial(leave, begun(session))).operation
            == "sqlalchemy.SessionTransaction.commit"
        )
        assert not session.in_transaction()
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        with session.begin():
            session.get(Order, 1).total = 12  # type: ignore[union-attr]
        assert db.rows()[0] == (1, 12)

    def test_a_refused_fetch_loses_no_row(self, db: Database) -> None:
        asyncsafe.install()
        result = db.streamed()
        for call in (result.fetchone, result.fetchall, result.first, partial(list, result)):
            refused(call)
        assert len(result.fetchall()) == 2

    def test_a_refused_fetch_of_the_orm_loses_no_row(self, db: Database) -> None:
        asyncsafe.install()
        result = orm_rows(db)
        for call in (result.all, result.first, partial(list, result), lambda: result.fetchmany(2)):
            refused(call)
        assert len(result.all()) == 2

    def test_a_refused_execute_begins_nothing(self, db: Database) -> None:
        asyncsafe.install()
        session, connection = db.session(), db.connection()
        refused(lambda: session.execute(SELECT))
        refused(lambda: connection.execute(SELECT))
        session.begin()  # raises where one is begun already
        connection.begin()


# Errors on their way -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["Session", "Session.begin", "engine.begin", "engine.connect"])
def test_an_applications_error_is_not_masked(how: str, db: Database) -> None:
    asyncsafe.install()

    def block() -> Any:
        if how == "Session":
            return Session(db.engine)
        if how == "Session.begin":
            return orm.sessionmaker(db.engine).begin()
        return db.engine.begin() if how == "engine.begin" else db.engine.connect()

    async def coroutine() -> None:
        with asyncsafe.allow("set up"):
            manager = block()
            entered = manager.__enter__()
            entered.execute(ORDERS.update().values(total=0))
        try:
            raise LookupError("the application's")
        except LookupError as error:
            if not manager.__exit__(type(error), error, error.__traceback__):
                raise

    with pytest.raises(LookupError, match="the application's") as caught:
        asyncio.run(coroutine())
    assert caught.value.__context__ is None
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert db.rows() == ROWS


# The garbage collector ---------------------------------------------------------------------------


@pytest.mark.parametrize("install_first", [True, False])
def test_what_the_garbage_collector_gives_back(
    install_first: bool,
    db: Database,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    if install_first:
        asyncsafe.install()
    connection = db.engine.connect()
    connection.execute(ORDERS.update().values(total=0))
    driver = connection.connection.dbapi_connection
    asyncsafe.install()
    caplog.clear()
    things = [connection]
    del connection

    def drop() -> None:
        things.clear()
        gc.collect()

    on_loop(drop)
    assert lost == []
    assert [r for r in caplog.records if r.name.startswith("sqlalchemy")] == []
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with db.engine.connect() as again:
        assert again.connection.dbapi_connection is driver
    assert db.rows() == ROWS
    outcomes = [
        site.violation.reason for site in asyncsafe.violations if site.outcomes.get("allowed")
    ]
    assert set(outcomes) == {"in a finalizer"}


# How often ---------------------------------------------------------------------------------------


def test_a_call_counts_once(db: Database) -> None:
    asyncsafe.install()
    asyncsafe.configure(mode="record")

    def work() -> None:
        session = db.session()
        session.add(Order(id=4, total=40, customer_id=1))
        session.commit()
        session.scalar(sa.select(sa.func.count(Order.id)))
        session.close()

    on_loop(work)
    told = [
        (site.violation.operation.removeprefix("sqlalchemy."), site.calls)
        for site in asyncsafe.violations
    ]
    assert told == [("SessionTransaction.commit", 1), ("Session.scalar", 1), ("Session.close", 1)]
    assert db.rows() == [*ROWS, (4, 40)]


# Two tasks ---------------------------------------------------------------------------------------


class TestSharing:
    def test_a_session_of_two_tasks(self, db: Database) -> None:
        asyncsafe.install()
        session = db.session()

        async def first() -> None:
            session.execute(ORDERS.update().values(total=0))

        async def second() -> None:
            session.scalars(sa.select(ORDERS.c.total)).all()

        async def main() -> None:
            with asyncsafe.allow("a test"):
                await first()

            async def other() -> None:
                with asyncsafe.allow("a test"):
                    await second()

            with pytest.raises(asyncsafe.ConnectionSharingError) as caught:
                await asyncio.create_task(other())
            violation = caught.value.violation
            assert violation.operation == "sqlalchemy.Session.scalars"
            assert violation.begun_at is not None
            assert violation.begun_at.function.endswith("first")

        asyncio.run(main())
        session.rollback()
        assert db.rows() == ROWS

    def test_a_connection_below_two_sessions(self, db: Database) -> None:
        """StaticPool has one for all: whose it is is known once the session has it."""
        asyncsafe.install()
        asyncsafe.configure(mode="record")
        engine = db.create(poolclass=pool.StaticPool)
        one, other = db.keep(Session(engine)), db.keep(Session(engine))

        async def use(session: Session) -> None:
            session.execute(ORDERS.update().values(total=0))

        async def main() -> None:
            await asyncio.create_task(use(one))
            await asyncio.create_task(use(other))

        asyncio.run(main())
        shared = [s.violation for s in asyncsafe.violations if s.violation.begun_by]
        assert len(shared) == 1
        one.rollback()
        other.rollback()

    def test_a_transaction_that_ended_is_nobodys(
        self, db: Database, heard: list[asyncsafe.Violation]
    ) -> None:
        asyncsafe.install()
        asyncsafe.configure(mode="record")
        session = db.session()

        async def use() -> None:
            session.execute(ORDERS.update().values(total=0))
            session.commit()

        async def main() -> None:
            await asyncio.create_task(use())
            await asyncio.create_task(use())

        asyncio.run(main())
        assert not [violation for violation in heard if violation.begun_by]


# exempt() ----------------------------------------------------------------------------------------


class TestExempt:
    def test_an_engine(self, db: Database, heard: list[asyncsafe.Violation]) -> None:
        asyncsafe.install()
        asyncsafe.exempt(db.engine)

        def work() -> None:
            with Session(db.engine) as session:
                session.add(Order(id=4, total=40, customer_id=1))
                session.commit()
                assert session.get(Order, 4).customer.name == "Ada"  # type: ignore[union-attr]
                assert len(session.scalars(sa.select(Order)).all()) == 4
            with db.engine.execution_options(logging_token="a").begin() as connection:
                assert [*connection.execute(SELECT)]
            raw = db.engine.raw_connection()
            cursor = raw.cursor()
            cursor.execute("select 1")
            assert cursor.fetchone()
            cursor.close()
            raw.close()
            pooled = db.engine.pool.connect()
            cursor = pooled.cursor()
            cursor.execute("select 1")
            cursor.close()
            pooled.close()
            db.engine.pool.dispose()
            db.engine.dispose()
            db.engine.pool.connect().close()  # another one, since dispose()

        on_loop(work)
        assert heard == []
        refused(db.create().pool.connect)
        refused(db.create().connect)

    def test_a_connection(self, db: Database, heard: list[asyncsafe.Violation]) -> None:
        asyncsafe.install()
        connection, other = db.connection(), db.connection()
        asyncsafe.exempt(connection)

        def work() -> None:
            with connection.begin():
                assert connection.execute(SELECT).fetchall()
                connection.execute(ORDERS.update().values(total=0))

        on_loop(work)
        assert heard == []
        refused(lambda: other.execute(SELECT))

    def test_a_session_of_a_connection(self, db: Database) -> None:
        asyncsafe.install()
        connection = db.connection()
        asyncsafe.exempt(connection)
        on_loop(lambda: Session(connection).scalars(sa.select(Order)).all())


# Sessions that choose their engine ---------------------------------------------------------------


class TestBinds:
    def test_binds(self, db: Database) -> None:
        asyncsafe.install()
        session = db.keep(Session(binds={Order: db.engine}))
        assert (
            refused(lambda: session.execute(sa.select(Order))).operation
            == "sqlalchemy.Session.execute"
        )
        session.add(Order(id=4, total=40, customer_id=1))
        assert refused(session.commit).operation == "sqlalchemy.SessionTransaction.commit"
        session.commit()
        assert db.rows() == [*ROWS, (4, 40)]

    def test_get_bind(self, db: Database) -> None:
        class Routing(Session):
            def get_bind(self, mapper: Any = None, **kwargs: Any) -> Any:
                return db.engine

        asyncsafe.install()
        session = db.keep(Routing())
        session.add(Order(id=4, total=40, customer_id=1))
        assert refused(session.commit).operation == "sqlalchemy.SessionTransaction.commit"
        session.commit()
        assert db.rows() == [*ROWS, (4, 40)]

    def test_no_bind_is_sqlalchemys_error(self, db: Database) -> None:
        asyncsafe.install()
        with pytest.raises(sa.exc.UnboundExecutionError):
            on_loop(lambda: Session().execute(SELECT))

    def test_a_cached_result(self, db: Database, heard: list[asyncsafe.Violation]) -> None:
        """What a listener of do_orm_execute answers by itself, as dogpile.cache's example does."""
        asyncsafe.install()
        session = db.session()
        with db.engine.connect() as connection:
            frozen = connection.execute(SELECT).freeze()

        def answer(state: Any) -> Any:
            return frozen() if state.execution_options.get("cached") else None

        sa.event.listen(session, "do_orm_execute", answer)
        on_loop(lambda: session.execute(SELECT, execution_options={"cached": True}).all())
        assert heard == []
        assert (
            refused(lambda: session.execute(SELECT)).operation == "sqlalchemy.Engine.raw_connection"
        )


# Installation ------------------------------------------------------------------------------------


def operations() -> list[Any]:
    return [
        pytest.param(module, class_name, operation, id=f"{module}:{class_name}.{operation.name}")
        for module, classes in integration("sqlalchemy").operations.items()
        for class_name, operations in classes.items()
        for operation in operations
    ]


@pytest.mark.parametrize(("module", "class_name", "operation"), operations())
def test_every_operation_exists(module: str, class_name: str, operation: Any) -> None:
    """What the installed SQLAlchemy lacks is passed over, which must not happen unseen."""
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    before = vars(owner)[operation.name]
    asyncsafe.install("sqlalchemy")
    guarded = vars(owner)[operation.name]
    assert hasattr(guarded, "__async_unsafe__")
    assert inspect.signature(guarded) == inspect.signature(before)
    assert guarded.__doc__ == before.__doc__
    assert guarded.__qualname__ == before.__qualname__
    asyncsafe.uninstall()
    assert vars(owner)[operation.name] is before


def test_what_is_read_of_sqlalchemy_in_private(db: Database) -> None:
    """Where there is no public way to know it."""
    session = db.used()
    transaction: Any = session.get_transaction()
    ((connection, begun, commits, closes),) = set(transaction._connections.values())
    assert connection is session.connection()
    assert begun is connection.get_transaction()
    assert (commits, closes) == (True, True)
    assert session._flushing is False
    assert not session.dispatch.do_orm_execute
    assert sa.select(Order)._propagate_attrs["plugin_subject"].mapper is Order.__mapper__
    proxy: Any = raw(db)
    assert proxy._counter == 1
    assert proxy._pool is db.engine.pool
    assert db.engine.pool._dialect is db.engine.dialect
    assert db.engine.execution_options(logging_token="a")._proxied is db.engine  # type: ignore[attr-defined]
    result = db.streamed()
    assert result.context._is_server_side is (db.engine.dialect.name != "sqlite")
    assert len(result.cursor_strategy._rowbuffer) == 0
    rows = session.scalars(sa.select(Order))
    assert isinstance(rows._real_result.raw, sa.CursorResult)  # type: ignore[attr-defined]
    rows.close()
    cursor = importlib.import_module("sqlalchemy.engine.cursor")
    assert issubclass(cursor.FullyBufferedCursorFetchStrategy, cursor.CursorFetchStrategy)
    from sqlalchemy.pool import base

    assert list(inspect.signature(base._finalize_fairy).parameters)[:3] == [
        "dbapi_connection",
        "connection_record",
        "pool",
    ]


def test_before_and_after_the_import(tmp_path: Path) -> None:
    code = """
import asyncio
import asyncsafe
{first}
import sqlalchemy
from sqlalchemy.orm import Session
engine = sqlalchemy.create_engine("sqlite://")
session = Session(engine)
session.execute(sqlalchemy.text("select 1"))
{second}
async def main():
    for call in (engine.connect, session.commit, lambda: session.execute(sqlalchemy.text("select 1"))):
        try:
            call()
        except asyncsafe.SynchronousOnlyOperation as error:
            print(error.violation.operation)
asyncio.run(main())
"""
    install = "asyncsafe.install()"
    for first, second in ((install, ""), ("", install)):
        out = python(code.format(first=first, second=second), tmp_path).stdout.split()
        assert out == [
            "sqlalchemy.Engine.raw_connection",
            "sqlalchemy.SessionTransaction.commit",
            "sqlalchemy.Session.execute",
        ]


def test_nothing_of_it_is_imported(tmp_path: Path) -> None:
    out = python(
        "import asyncsafe, sys; asyncsafe.install(); print('sqlalchemy' in sys.modules)", tmp_path
    )
    assert out.stdout.split() == ["False"]


def test_pickle_and_types(db: Database) -> None:
    asyncsafe.install()
    session = db.session()
    row = session.execute(sa.select(Order.id, Order.total).order_by(Order.id)).first()
    assert pickle.loads(pickle.dumps(row)) == (1, 10)
    order: Any = pickle.loads(pickle.dumps(session.get(Order, 1)))
    assert (order.id, order.total) == (1, 10)
    assert pickle.loads(pickle.dumps(Session.execute)) is Session.execute
    assert type(db.connection()) is sa.Connection


def test_in_threads_nothing_is_refused(db: Database, heard: list[asyncsafe.Violation]) -> None:
    asyncsafe.install()

    def work() -> list[Any]:
        engine = db.create(poolclass=pool.NullPool)
        with Session(engine) as session:
            orders = session.scalars(sa.select(Order)).all()
            return [order.customer.name for order in orders]

    async def main() -> None:
        assert await asyncio.to_thread(work) == ["Ada"] * 3
        assert await asyncsafe.database_sync_to_async(work)() == ["Ada"] * 3

    asyncio.run(main())
    assert heard == []


@pytest.mark.parametrize("mode", ["raise", "record"])
@pytest.mark.parametrize("run", [lambda call: call(), on_loop], ids=["off", "on"])
def test_warnings_name_the_users_line(db: Database, run: Callable[..., Any], mode: Any) -> None:
    """SQLAlchemy counts the frames up to the first that isn't its own."""
    asyncsafe.install()
    asyncsafe.configure(mode=mode)
    session = db.session()
    product = sa.select(ORDERS.c.id, Customer.__table__.c.id)

    def execute() -> None:
        with asyncsafe.allow("to see what it warns of"):
            session.execute(product)

    def query() -> None:
        with asyncsafe.allow("to see what it warns of"):
            session.query(ORDERS.c.id, Customer.__table__.c.id).all()

    for call in (execute, query):
        with pytest.warns(sa.exc.SAWarning, match="cartesian product") as told:
            run(call)
        assert [warning.filename for warning in told] == [__file__]
        assert told[0].lineno == call.__code__.co_firstlineno + 2


def test_the_log_is_as_it_was(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    engine = db.create(echo=True)
    logging.getLogger("sqlalchemy.engine.Engine").handlers.clear()

    def statements() -> list[tuple[str, str]]:
        caplog.clear()
        with engine.begin() as connection:
            connection.execute(SELECT)
        return [
            (record.funcName, record.getMessage())
            for record in caplog.records
            if not record.getMessage().startswith("[")
        ]

    statements()
    before = statements()
    asyncsafe.install()
    assert statements() == before
