"""The models, and what is done with them: peewee as anywhere else. This file knows of no web."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp

from peewee import JOIN, CharField, ForeignKeyField, IntegerField, Model, SqliteDatabase, fn

import asyncsafe

database = SqliteDatabase(
    Path(mkdtemp(prefix="fastapi-peewee-")) / "shop.db",
    pragmas={"journal_mode": "wal", "foreign_keys": 1},
    # FastAPI runs a request's `def` dependencies and its endpoint in one thread after the other,
    # and they go on with the same connection. sqlite3 would refuse that.
    check_same_thread=False,
)

# peewee keeps its connection and its transactions for each thread. All coroutines are in one
# thread, and a request is in several: from here on they are kept for each request.
connections = asyncsafe.use_local(database)


class Product(Model):
    name = CharField(unique=True)
    stock = IntegerField()

    class Meta:
        database = database


class Order(Model):
    product = ForeignKeyField(Product, backref="orders")
    customer = CharField()
    quantity = IntegerField()
    state = CharField(default="placed")

    class Meta:
        database = database


class OutOfStockError(Exception):
    pass


def create_shop() -> None:
    with database:
        database.create_tables([Product, Order])
        Product.insert_many(
            [{"name": "tea", "stock": 150}, {"name": "coffee", "stock": 60}]
        ).execute()


def place_order(product: str, customer: str, quantity: int) -> Order:
    """One transaction: an order that can't be met leaves nothing behind."""
    # "immediate": one writer after the other. Two that have read first can't both go on to write.
    with database.atomic("immediate"):
        ordered = Product.get(Product.name == product)
        order = Order.create(product=ordered, customer=customer, quantity=quantity)
        if ordered.stock < quantity:
            raise OutOfStockError(product)
        Product.update(stock=Product.stock - quantity).where(Product.id == ordered.id).execute()
    return order


def settle_order(number: int, paid: bool) -> str:
    """One transaction: the order is paid, or the goods go back."""
    with database.atomic("immediate"):
        order = Order.get_by_id(number)
        order.state = "paid" if paid else "cancelled"
        order.save()
        if not paid:
            returned = Product.stock + order.quantity
            Product.update(stock=returned).where(Product.id == order.product_id).execute()
    return order.state


def count_units() -> dict[str, tuple[int, int]]:
    """For each product, the units that are left and those that are paid."""
    paid = fn.COALESCE(fn.SUM(Order.quantity).filter(Order.state == "paid"), 0)
    rows = (
        Product.select(Product.name, Product.stock, paid)
        .join(Order, JOIN.LEFT_OUTER)
        .group_by(Product.id)
    )
    return {name: (stock, sold) for name, stock, sold in rows.tuples()}
