"""Serve the application with uvicorn, send it a few hundred requests, and end."""

from __future__ import annotations

import asyncio
from collections import Counter

import uvicorn
from app import app
from database import CUSTOMERS

REQUESTS = [
    [("GET", f"/orders/{number}") for number in range(1, 101)],
    [("GET", f"/customers/{CUSTOMERS[number % 5]}") for number in range(100)],
    [("POST", f"/orders/{number}/pay") for number in range(1, 101)],
]


async def fetch(port: int, method: str, path: str) -> tuple[int, str]:
    """One HTTP request: the response's status and its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    limit = asyncio.Semaphore(20)
    answers: Counter[tuple[str, int]] = Counter()

    async def send(method: str, path: str) -> None:
        async with limit:
            status, _ = await fetch(port, method, path)
        answers[method, status] += 1

    for requests in REQUESTS:
        await asyncio.gather(*(send(method, path) for method, path in requests))
    _, body = await fetch(port, "GET", "/report")
    server.should_exit = True
    await serving

    print(f"{answers.total()} requests.", end=" ")
    print(f"{answers['POST', 200]} payments were accepted; the database says {body}.")


asyncio.run(main())
