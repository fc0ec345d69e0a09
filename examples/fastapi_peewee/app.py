"""peewee under FastAPI, done right: three lines of asyncsafe, here and in models.py.

The recipe that FastAPI's documentation once had (`PeeweeConnectionState`, a ContextVar) shared a
connection with child tasks, and needed a dependency that opened and closed it in every endpoint.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, HTTPException
from models import (
    Order,
    OutOfStockError,
    connections,
    count_units,
    place_order,
    settle_order,
)

import asyncsafe
from asyncsafe import database_sync_to_async
from asyncsafe.asgi import ConnectionMiddleware

# A query that is made on the event loop after all is refused, and the error says where.
asyncsafe.install()

app = FastAPI()

# Each request has a connection of its own. It is opened by the first query, and closed when the
# request ends, whichever way: no `Depends(get_db)`, no `database.connect()`.
app.add_middleware(ConnectionMiddleware, connections)


@app.post("/orders", status_code=201)
def order(product: str, customer: str, quantity: int = 1) -> dict[str, int]:
    """A `def` endpoint: FastAPI runs it in a thread, where queries block nobody."""
    try:
        return {"number": place_order(product, customer, quantity).id}
    except OutOfStockError as error:
        raise HTTPException(409, f"not enough {error} left") from error


@app.get("/customers/{customer}/orders")
def list_orders(customer: str) -> list[dict[str, object]]:
    orders = Order.select().where(Order.customer == customer).order_by(Order.id)
    return [{"number": order.id, "state": order.state} for order in orders]


@app.post("/orders/{number}/pay")
async def pay(number: int) -> dict[str, str]:
    """An `async def` endpoint, as it waits for the bank: its transaction runs in a thread.

    The whole of it, in one call: nobody's write lock is held while the bank thinks.
    """
    paid = await ask_bank(number)
    return {"state": await database_sync_to_async(settle_order)(number, paid)}


@app.get("/report")
async def report() -> dict[str, tuple[int, int]]:
    return await database_sync_to_async(count_units)()


async def ask_bank(number: int) -> bool:
    await asyncio.sleep(0.01)
    return number % 5 != 0
