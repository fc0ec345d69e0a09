"""The models and the engine: synchronous SQLAlchemy as its tutorial writes it. No web here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import mkdtemp

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

CUSTOMERS = ["Ada", "Barbara", "Edsger", "Grace", "Niklaus"]
ORDERS = 100

#: PostgreSQL, where DATABASE_URL says so (postgresql+psycopg2://user@host/name); else a file.
URL = os.environ.get("DATABASE_URL") or f"sqlite:///{mkdtemp(prefix='fastapi-orders-')}/orders.db"
engine = create_engine(URL)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list[Order]] = relationship(back_populates="customer", order_by="Order.id")


class Order(Base):
    __tablename__ = "order"

    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]
    paid: Mapped[bool] = mapped_column(default=False)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))
    customer: Mapped[Customer] = relationship(back_populates="orders")


def create_shop() -> None:
    """The tables, anew, with a hundred orders."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        customers = [Customer(name=name) for name in CUSTOMERS]
        session.add_all(
            Order(id=number, total=number * 37 % 1000, customer=customers[number % 5])
            for number in range(1, ORDERS + 1)
        )
        session.commit()


def get_session() -> Iterator[Session]:
    """A dependency: FastAPI opens and closes the session in a thread, as for every `def`."""
    with Session(engine) as session:
        yield session


def find_customer(session: Session, name: str) -> Customer:
    return session.scalars(select(Customer).where(Customer.name == name)).one()
