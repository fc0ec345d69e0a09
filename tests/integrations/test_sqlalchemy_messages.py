"""What SQLAlchemy's users are told: the operation of the ORM's, and what to write instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Session

import asyncsafe

from ..running import on_loop, refused


class Base(orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "told_customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="customer")
    visits: orm.DynamicMapped[Order] = orm.relationship(viewonly=True)


class Order(Base):
    __tablename__ = "told_orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    total: orm.Mapped[int]
    note: orm.Mapped[str] = orm.mapped_column(default="", deferred=True)
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("told_customers.id"))
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")
    buyer: AssociationProxy[str] = association_proxy("customer", "name")


ORDERS = Order.__table__


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'orders.db'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Customer(id=1, name="Ada", orders=[Order(id=1, total=10)]))
        session.commit()
    asyncsafe.install()
    yield engine
    asyncsafe.uninstall()
    engine.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


AWAIT = "await session.{}, with an AsyncSession"

#: (what a line calls of a session, the subject, the hint)
TOLD: tuple[tuple[Callable[[Session], Any], str, str | None], ...] = (
    (
        lambda s: s.execute(sa.select(Order)),
        "Session.execute(select(Order))",
        AWAIT.format("execute(...)"),
    ),
    (
        lambda s: s.scalars(sa.select(Order.id, Order.total)),
        "Session.scalars(select(Order.id, Order.total))",
        AWAIT.format("scalars(...)"),
    ),
    (
        lambda s: s.scalar(sa.select(sa.func.count()).select_from(Order)),
        "Session.scalar(select(count))",
        AWAIT.format("scalar(...)"),
    ),
    (
        lambda s: s.execute(sa.select(ORDERS)),
        "Session.execute(select(told_orders.c.id, told_orders.c.total, told_orders.c.note, ...))",
        AWAIT.format("execute(...)"),
    ),
    (
        lambda s: s.execute(sa.update(Order).values(total=1)),
        "Session.execute(update(Order))",
        AWAIT.format("execute(...)"),
    ),
    (
        lambda s: s.execute(sa.insert(ORDERS)),
        "Session.execute(insert(told_orders))",
        AWAIT.format("execute(...)"),
    ),
    (
        lambda s: s.execute(sa.text("select 1")),
        "Session.execute(text(...))",
        AWAIT.format("execute(...)"),
    ),
    (
        lambda s: s.execute(sa.union(sa.select(Order.id), sa.select(Order.total))),
        "Session.execute(...)",
        AWAIT.format("execute(...)"),
    ),
    (lambda s: s.get(Order, 1), "Session.get(Order, ...)", AWAIT.format("get(...)")),
    (lambda s: s.get_one(Order, 1), "Session.get_one(Order, ...)", AWAIT.format("get_one(...)")),
    (lambda s: s.connection(), "Session.connection()", AWAIT.format("connection(...)")),
    (
        lambda s: s.bulk_insert_mappings(Order, [{"id": 2}]),  # type: ignore[arg-type]
        "Session.bulk_insert_mappings(Order)",
        "await session.run_sync(lambda session: session.bulk_insert_mappings(...)), with an AsyncSession",
    ),
    (
        lambda s: s.query(Order).filter_by(id=1).all(),
        "Query(Order).all()",
        "await session.execute(select(...)), with an AsyncSession",
    ),
    (
        lambda s: s.query(Order.id).first(),
        "Query(Order.id).first()",
        "await session.execute(select(...)), with an AsyncSession",
    ),
    (
        lambda s: s.get_bind().connect(),
        "Engine.connect()",
        "async with engine.connect() as connection: ..., with create_async_engine(...)",
    ),
    (
        lambda s: s.get_bind().begin().__enter__(),  # type: ignore[union-attr]
        "Engine.begin()",
        "async with engine.begin() as connection: ..., with create_async_engine(...)",
    ),
    (
        lambda s: Base.metadata.create_all(s.get_bind()),
        "MetaData.create_all(engine)",
        "await connection.run_sync(metadata.create_all), with an AsyncEngine's connection",
    ),
    (
        lambda s: sa.inspect(s.get_bind()),
        "inspect(engine)",
        "await connection.run_sync(lambda connection: inspect(connection)...), with an AsyncEngine's "
        "connection",
    ),
)


@pytest.mark.parametrize(("call", "subject", "hint"), TOLD, ids=[told[1] for told in TOLD])
def test_what_the_line_called(call: Any, subject: str, hint: str | None, session: Session) -> None:
    violation = refused(lambda: call(session))
    assert violation.subject == f"{subject} was called"
    assert violation.hint == hint
    assert violation.call_site.filename == __file__


class TestAttributes:
    @pytest.fixture
    def order(self, session: Session) -> Any:
        return session.get(Order, 1)

    def test_a_relation(self, order: Any) -> None:
        violation = refused(lambda: order.customer)
        assert violation.subject == "Order.customer was loaded"
        assert violation.hint == (
            "select(Order).options(selectinload(Order.customer)) beforehand, or, with an "
            "AsyncSession, await session.refresh(order, ['customer'])"
        )
        assert str(violation.message()).startswith(
            "Order.customer was loaded from a running event loop (asyncio).\n\n    SELECT told_customers"
        )

    def test_a_collection(self, order: Any) -> None:
        customer = order.customer
        assert refused(lambda: customer.orders).subject == "Customer.orders was loaded"
        assert refused(lambda: len(customer.orders)).subject == "Customer.orders was loaded"

    def test_a_dynamic_relation(self, order: Any) -> None:
        visits = order.customer.visits
        assert refused(visits.all).subject == "Query(Order).all() was called"

    def test_an_association_proxy(self, order: Any) -> None:
        assert refused(lambda: order.buyer).subject == "Order.customer was loaded"

    def test_an_expired_column(self, order: Any, session: Session) -> None:
        session.commit()
        violation = refused(lambda: order.total)
        assert violation.subject == "Order.total was loaded"
        assert violation.hint == (
            "await session.refresh(order), with an AsyncSession, or a Session with "
            "expire_on_commit=False"
        )

    def test_a_deferred_column(self, order: Any) -> None:
        violation = refused(lambda: order.note)
        assert violation.subject == "Order.note was loaded"
        assert violation.hint == "select(Order).options(undefer(Order.note)) beforehand"

    def test_describing_loads_nothing(self, order: Any, session: Session) -> None:
        session.expire(order)
        refused(lambda: order.customer)
        assert sa.inspect(order).expired_attributes >= {"total", "customer_id"}

    def test_when_no_frame_is_the_users(self, order: Any) -> None:
        """As where FastAPI serializes what an endpoint returned."""

        async def main() -> None:
            asyncio.get_running_loop().call_soon(getattr, order, "customer")
            await asyncio.sleep(0)

        told: list[Any] = []
        unsubscribe = asyncsafe.violations.subscribe(told.append)
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(lambda *_: None)
            runner.run(main())
        unsubscribe()
        assert [violation.subject for violation in told] == ["Order.customer was loaded"]


class TestBlocks:
    def test_the_end_of_a_session(self, session: Session) -> None:
        session.get(Order, 1)

        def leave() -> None:
            with session:
                pass

        violation = refused(leave)
        assert violation.subject == "the `with` block of a Session was left"
        assert violation.hint == "async with AsyncSession(engine) as session: ..."

    def test_the_end_of_a_transaction(self, engine: sa.Engine) -> None:
        connection = engine.connect()
        transaction = connection.begin()
        transaction.__enter__()
        connection.execute(ORDERS.update().values(total=0))
        violation = refused(lambda: transaction.__exit__(None, None, None))
        assert violation.subject == "the `with` block of a RootTransaction was left"
        connection.close()

    def test_rows(self, engine: sa.Engine) -> None:
        with engine.connect() as connection:
            result = connection.execute(sa.select(ORDERS.c.id))
            violation = refused(lambda: list(result))
            assert violation.subject == "Result was iterated"
            violation = refused(result.scalars().all)
            assert violation.subject == "ScalarResult.all() was called"
            assert violation.hint == "(await session.scalars(...)).all(), with an AsyncSession"
            assert violation.statement == "SELECT told_orders.id FROM told_orders"


class TestStatements:
    def test_parameters_are_never_told(self, session: Session) -> None:
        statement = (
            sa.select(Order).where(Order.id.in_([4711, 4712]), Order.note == "secret").limit(815)
        )
        violation = refused(lambda: session.scalars(statement))
        assert violation.statement is not None
        assert "IN (?, ?)" in violation.statement
        for parameter in ("4711", "secret", "815"):
            assert parameter not in violation.message()
        assert "4711" not in refused(lambda: session.get(Order, 4711)).message()

    def test_of_a_string(self, engine: sa.Engine) -> None:
        with engine.connect() as connection:
            violation = refused(lambda: connection.exec_driver_sql("select 1"))
        assert violation.statement == "select 1"
        assert violation.subject == "Connection.exec_driver_sql(...) was called"

    def test_that_cannot_be_compiled(self, session: Session) -> None:
        class Strange(sa.sql.expression.ColumnElement[Any]):
            inherit_cache = False

        assert refused(lambda: session.execute(sa.select(Strange()))).statement is None


class TestFastAPI:
    """`def` in place of `async def` is the shortest way, and FastAPI's own."""

    @pytest.fixture
    def answer(self, session: Session) -> Callable[[Any], asyncsafe.Violation]:
        import fastapi
        import httpx

        def answer(endpoint: Any) -> asyncsafe.Violation:
            app = fastapi.FastAPI()
            app.get("/")(endpoint)

            async def main() -> None:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    await client.get("/")

            with pytest.raises(asyncsafe.SynchronousOnlyOperation) as caught:
                asyncio.run(main())
            return caught.value.violation

        return answer

    def test_an_endpoint(self, answer: Any, session: Session) -> None:
        async def list_orders() -> int:
            return len(session.scalars(sa.select(Order)).all())

        assert answer(list_orders).hint == (
            "await session.scalars(...), with an AsyncSession; or make list_orders() a `def` "
            "endpoint, which FastAPI runs in a thread"
        )

    def test_below_an_endpoint(self, answer: Any, session: Session) -> None:
        def count() -> int:
            return session.query(Order).count()

        async def list_orders() -> int:
            return count()

        assert "make list_orders() a `def` endpoint" in answer(list_orders).message()

    def test_no_endpoint(self, session: Session) -> None:
        import fastapi  # noqa: F401

        assert "endpoint" not in refused(lambda: session.execute(sa.select(Order))).message()


def test_of_a_scoped_session(engine: sa.Engine) -> None:
    session = orm.scoped_session(orm.sessionmaker(engine))
    violation = refused(lambda: session.scalars(sa.select(Order)))
    assert violation.subject == "Session.scalars(select(Order)) was called"
    session.remove()


def test_of_a_subclass(engine: sa.Engine) -> None:
    class Routing(Session):
        pass

    violation = refused(lambda: Routing(engine).execute(sa.select(Order)))
    assert violation.subject == "Session.execute(select(Order)) was called"


def test_recorded_by_what_was_asked_for(session: Session) -> None:
    """Two lazy loads in one line are two call sites."""
    asyncsafe.configure(mode="record")
    order: Any = session.get(Order, 1)
    on_loop(lambda: (order.customer, order.note))
    told = [(site.violation.subject, site.violation.operation) for site in asyncsafe.violations]
    customer, note = "Order.customer was loaded", "Order.note was loaded"
    # sqlite reads the file once more for the rows.
    execute, fetch = "sqlalchemy.Session.execute", "sqlalchemy.Result.fetchone"
    assert told == [(customer, execute), (customer, fetch), (note, execute), (note, fetch)]
