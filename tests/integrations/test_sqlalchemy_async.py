"""SQLAlchemy's asynchronous engines, and SQLModel's sessions over them, are never flagged."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy import orm, pool
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession, async_sessionmaker, create_async_engine

import asyncsafe


class Base(AsyncAttrs, orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "async_customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(20))
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="customer", cascade="all")


class Order(Base):
    __tablename__ = "async_orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    total: orm.Mapped[int]
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("async_customers.id"))
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")


DRIVERS = ["aiosqlite", "asyncpg", "psycopg", "aiomysql", "asyncmy"]


@pytest.fixture
def url(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    if driver == "aiosqlite":
        return sa.make_url(f"sqlite+aiosqlite:///{tmp_path / 'orders.db'}")
    if driver in ("asyncpg", "psycopg"):
        dsn = sa.make_url(request.getfixturevalue("postgres"))
        return dsn.set(drivername=f"postgresql+{driver}")
    settings = request.getfixturevalue("mysql")
    return sa.URL.create(
        f"mysql+{driver}",
        settings["user"],
        settings["password"] or None,
        settings["host"],
        settings["port"],
        settings["database"],
    )


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    def run(coroutine: Any) -> Any:
        factory = None if request.param == "asyncio" else uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(coroutine)

    return run


async def whole_story(engine: Any) -> None:
    """What people do with sessions and connections."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        assert "async_orders" in names
    async with sessions() as session:
        session.add(
            Customer(id=1, name="Ada", orders=[Order(id=i, total=10 * i) for i in (1, 2, 3)])
        )
        await session.flush()
        await session.commit()
    async with sessions.begin() as session:
        order = await session.get_one(Order, 1)
        order.total = 11
        assert (await order.awaitable_attrs.customer).name == "Ada"
        await session.refresh(order, ["customer"])
    async with sessions() as session:
        # sqlite3 begins a transaction with the first change, not with a savepoint.
        await session.execute(sa.update(Order).where(Order.id == 3).values(total=33))
        async with session.begin_nested():
            await session.execute(sa.update(Order).values(total=0))
        await session.rollback()
        orders = (await session.scalars(sa.select(Order).order_by(Order.id))).all()
        assert [order.total for order in orders] == [11, 20, 30]
        await session.merge(Order(id=1, total=12, customer_id=1))
        assert await session.scalar(sa.select(sa.func.count()).select_from(Order)) == 3
        streamed = await session.stream_scalars(
            sa.select(Order).execution_options(yield_per=1).order_by(Order.id)
        )
        assert [order.id async for order in streamed] == [1, 2, 3]

        def lazily(sync: Any) -> list[str]:
            sync.expire_all()
            return [order.customer.name for order in sync.scalars(sa.select(Order))]

        assert await session.run_sync(lazily) == ["Ada"] * 3
        await session.delete(await session.get(Customer, 1))
        await session.rollback()
        await session.close()
    async with engine.connect() as connection:
        async with connection.stream(sa.select(Order.id).order_by(Order.id)) as result:
            assert [row.id async for row in result] == [1, 2, 3]
        async with connection.begin_nested() if connection.in_transaction() else connection.begin():
            await connection.exec_driver_sql("select 1")
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await connection.rollback()
        await connection.invalidate()
    await engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", [None, pool.NullPool], ids=["pool", "NullPool"])
def test_an_asynchronous_engine(
    kind: Any, driver: str, url: sa.URL, run: Any, heard: list[asyncsafe.Violation]
) -> None:
    asyncsafe.install()
    connected: list[Any] = []

    async def main() -> None:
        options = {} if kind is None else {"poolclass": kind}
        engine = create_async_engine(url, pool_pre_ping=True, **options)

        @sa.event.listens_for(engine.sync_engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("select 1")
            connected.append(cursor.fetchone())
            cursor.close()

        await whole_story(engine)
        # Two tasks, each with its own.
        await asyncio.gather(*(count(engine) for _ in range(3)))
        await engine.dispose()

    async def count(engine: Any) -> None:
        async with AsyncSession(engine) as session:
            assert await session.scalar(sa.select(sa.func.count(Order.id))) == 3

    run(main())
    assert connected
    assert heard == []


@pytest.mark.parametrize("driver", ["aiosqlite", "asyncpg"])
def test_sqlmodel(driver: str, url: sa.URL, run: Any, heard: list[asyncsafe.Violation]) -> None:
    from sqlmodel import select
    from sqlmodel.ext.asyncio.session import AsyncSession as ModelSession

    from .test_sqlmodel import Hero

    asyncsafe.install()

    async def main() -> None:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(Hero.__table__.drop, checkfirst=True)  # type: ignore[attr-defined]
            await connection.run_sync(Hero.__table__.create)  # type: ignore[attr-defined]
        async with ModelSession(engine) as session:
            session.add(Hero(name="Deadpond"))
            await session.commit()
            assert [hero.name for hero in await session.exec(select(Hero))] == ["Deadpond"]
        await engine.dispose()

    run(main())
    assert heard == []


def test_a_session_that_is_given_an_asynchronous_engines_own(
    tmp_path: Path, heard: list[asyncsafe.Violation]
) -> None:
    """engine.sync_engine is asynchronous all the same: SQLAlchemy's own error arrives."""
    asyncsafe.install()
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'orders.db'}")

    async def main() -> None:
        with pytest.raises(sa.exc.MissingGreenlet):
            orm.Session(engine.sync_engine).execute(sa.text("select 1"))
        await engine.dispose()

    asyncio.run(main())
    assert heard == []


def test_a_synchronous_engine_below_run_sync(tmp_path: Path) -> None:
    """The greenlet is asynchronous, the engine isn't: it blocks the loop."""
    asyncsafe.install()
    engine = create_async_engine("sqlite+aiosqlite://")
    synchronous = sa.create_engine(f"sqlite:///{tmp_path / 'orders.db'}")

    async def main() -> None:
        async with AsyncSession(engine) as session:
            with pytest.raises(asyncsafe.SynchronousOnlyOperation) as caught:
                await session.run_sync(lambda _: synchronous.connect())
            assert caught.value.violation.subject == "Engine.connect() was called"
        await engine.dispose()

    asyncio.run(main())


def test_rows_that_have_arrived_pass_no_guard(tmp_path: Path) -> None:
    """However many there are: a guard for each would cost several times what its row does."""
    asyncsafe.install("sqlalchemy")
    ours = str(Path(asyncsafe.__file__).parent)
    calls = []

    def count(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            calls.append(frame.f_code.co_qualname)

    async def read() -> int:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'rows.db'}")
        counting = "with recursive t(n) as (select 1 union all select n + 1 from t where n < 500)"
        async with engine.connect() as connection:
            result = await connection.execute(sa.text(f"{counting} select n from t"))
            sys.setprofile(count)
            try:
                found = sum(1 for _ in result)
            finally:
                sys.setprofile(None)
        await engine.dispose()
        return found

    assert asyncio.run(read()) == 500
    assert 0 < len(calls) < 50
