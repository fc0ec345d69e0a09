"""The same application as it should be: no query runs on the event loop.

asyncsafe run --fail uvicorn right:app --app-dir examples/fastapi_orders
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app import SessionDep, ask_bank
from fastapi import FastAPI
from models import Order, create_shop, engine, find_customer
from sqlalchemy.orm import Session

from asyncsafe import database_sync_to_async


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await database_sync_to_async(create_shop)()
    yield
    await database_sync_to_async(engine.dispose)()


app = FastAPI(lifespan=lifespan)


@app.get("/orders/{number}")
def show_order(number: int, session: SessionDep) -> dict[str, object]:
    """`def`: FastAPI runs it in a thread, where queries block nobody."""
    order = session.get_one(Order, number)
    return {"number": number, "customer": order.customer.name, "paid": order.paid}


@app.get("/customers/{name}/orders")
def list_orders(name: str, session: SessionDep) -> list[dict[str, int]]:
    customer = find_customer(session, name)
    return [{"number": order.id, "total": order.total} for order in customer.orders]


@app.post("/orders/{number}/pay")
async def pay_order(number: int) -> dict[str, bool]:
    """It awaits the bank, so it stays `async def`: what it does with the database is one call."""
    return {"paid": await database_sync_to_async(settle)(number, await ask_bank(number))}


def settle(number: int, paid: bool) -> bool:
    with Session(engine) as session:
        order = session.get_one(Order, number)
        order.paid = paid
        session.commit()
        return order.paid
