"""Serve the application with uvicorn, send it a few hundred requests at once, and end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn
from app import app
from models import create_shop, database

CUSTOMERS = ["Ada", "Barbara", "Edsger", "Grace", "Niklaus"]


async def fetch(port: int, method: str, path: str) -> tuple[int, Any]:
    """One HTTP request: the response's status and its JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    limit = asyncio.Semaphore(50)
    answers: Counter[tuple[str, int]] = Counter()

    async def shop(number: int) -> None:
        """A customer orders, pays if there was enough, and looks at the list."""
        product = "tea" if number % 2 else "coffee"
        customer = CUSTOMERS[number % 5]
        async with limit:
            path = f"/orders?product={product}&customer={customer}&quantity=1"
            status, ordered = await fetch(port, "POST", path)
            answers["ordered", status] += 1
            if status == 201:
                status, paid = await fetch(port, "POST", f"/orders/{ordered['number']}/pay")
                answers[paid["state"], status] += 1
            status, _ = await fetch(port, "GET", f"/customers/{customer}/orders")
            answers["listed", status] += 1

    await asyncio.gather(*(shop(number) for number in range(200)))
    _, units = await fetch(port, "GET", "/report")
    server.should_exit = True
    await serving

    print(f"{answers.total()} requests, 50 at a time.")
    for (what, status), count in sorted(answers.items()):
        print(f"  {count:4} {what} ({status})")
    for product, (stock, paid) in units.items():
        print(f"The database says of {product}: {paid} paid, {stock} left, {paid + stock} in all.")
    # SQLite removes its write-ahead log when the last connection is closed.
    left_open = Path(f"{database.database}-wal").exists()
    print("Connections were left open." if left_open else "Every connection was closed.")


create_shop()
asyncio.run(main())
