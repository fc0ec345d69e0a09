"""Serve both applications with uvicorn, one after the other, send each 300 requests, and end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import app
import right
import uvicorn
from fastapi import FastAPI
from models import CUSTOMERS, ORDERS

REQUESTS = [
    *(("GET", f"/orders/{number}") for number in range(1, ORDERS + 1)),
    *(("GET", f"/customers/{CUSTOMERS[number % 5]}/orders") for number in range(ORDERS)),
    *(("POST", f"/orders/{number}/pay") for number in range(1, ORDERS + 1)),
]


async def fetch(port: int, method: str, path: str) -> tuple[int, Any]:
    """One HTTP request: the response's status and its JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def serve(application: FastAPI) -> tuple[Counter[int], int]:
    """The answers' statuses, and how many orders are paid in the end."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    limit = asyncio.Semaphore(5)  # as many as the engine's pool keeps connections

    async def send(method: str, path: str) -> int:
        async with limit:
            return (await fetch(port, method, path))[0]

    statuses = Counter(await asyncio.gather(*(send(*request) for request in REQUESTS)))
    orders = [await fetch(port, "GET", f"/orders/{number}") for number in range(1, ORDERS + 1)]
    server.should_exit = True
    await serving
    return statuses, sum(order["paid"] for _, order in orders)


for name, module in {"app.py": app, "right.py": right}.items():
    statuses, paid = asyncio.run(serve(module.app))
    told = ", ".join(f"{count} were answered with {status}" for status, count in statuses.items())
    print(f"{name}: of {statuses.total()} requests {told}; {paid} orders are paid.")
