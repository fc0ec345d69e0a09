"""An application as people write it: a synchronous Session, in `async def` endpoints.

asyncsafe run uvicorn app:app --app-dir examples/fastapi_orders
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from models import Order, create_shop, engine, find_customer, get_session
from sqlalchemy.orm import Session

SessionDep = Annotated[Session, Depends(get_session)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Before the first request, and after the last: nobody waits for it."""
    create_shop()
    yield
    engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/orders/{number}")
async def show_order(number: int, session: SessionDep) -> dict[str, object]:
    """Two queries, of which only one is to be seen: `order.customer` is loaded when it is asked for."""
    order = session.get_one(Order, number)
    return {"number": number, "customer": order.customer.name, "paid": order.paid}


@app.get("/customers/{name}/orders")
async def list_orders(name: str, session: SessionDep) -> list[dict[str, int]]:
    customer = find_customer(session, name)
    return [{"number": order.id, "total": order.total} for order in customer.orders]


@app.post("/orders/{number}/pay")
async def pay_order(number: int, session: SessionDep) -> dict[str, bool]:
    order = session.get_one(Order, number)
    order.paid = await ask_bank(number)
    session.commit()
    return {"paid": order.paid}


async def ask_bank(number: int) -> bool:
    await asyncio.sleep(0.002)
    return number % 5 != 0
