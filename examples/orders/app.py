"""A web application with the mistakes that people make, and one view that does it right."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import mkdtemp

from database import count_paid, find_orders, open_database
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import asyncsafe

connection = open_database(Path(mkdtemp(prefix="orders-")) / "orders.db")


async def show_order(request: Request) -> Response:
    """A query in a coroutine: every other request waits for it."""
    row = connection.execute(
        "SELECT customer, total, paid FROM orders WHERE id = ?", (request.path_params["id"],)
    ).fetchone()
    return JSONResponse(row)


async def list_orders(request: Request) -> Response:
    """The same, three calls further down, where nobody sees it."""
    return PlainTextResponse(render_page(request.path_params["customer"]))


def render_page(customer: str) -> str:
    return f"{customer}: {summarize(customer)}"


def summarize(customer: str) -> str:
    orders = find_orders(connection, customer)
    return f"{len(orders)} orders, {sum(total for _, total in orders)} in all"


async def pay_order(request: Request) -> Response:
    """A connection shared by tasks: while this one awaits, others commit or roll back its work."""
    order = request.path_params["id"]
    connection.execute("UPDATE orders SET paid = 1 WHERE id = ?", (order,))
    if await ask_bank(order):
        connection.commit()
        return PlainTextResponse("paid")
    connection.rollback()
    return PlainTextResponse("declined", 402)


async def ask_bank(order: int) -> bool:
    await asyncio.sleep(0.002)
    return order % 5 != 0


async def report(request: Request) -> Response:
    """Done right: the query runs in a thread, and the event loop goes on."""
    paid = await asyncsafe.database_sync_to_async(count_paid)(connection)
    return JSONResponse({"paid": paid})


app = Starlette(
    routes=[
        Route("/orders/{id:int}", show_order),
        Route("/customers/{customer}", list_orders),
        Route("/orders/{id:int}/pay", pay_order, methods=["POST"]),
        Route("/report", report),
    ]
)
