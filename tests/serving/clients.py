"""Many clients at once, of whom some go at random moments."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

#: How long a client that aborts waits, at most, when it has sent its request.
LONGEST_WAIT = 0.1


class Clients:
    """port: where the server listens. seed: decides who goes, and when."""

    def __init__(self, port: int, seed: int, at_a_time: int = 100) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.limit = asyncio.Semaphore(at_a_time)
        #: The statuses of those that stayed, by number; and who went.
        self.answers: dict[int, int] = {}
        self.aborted: set[int] = set()

    async def run(self, numbers: range, aborting: float) -> None:
        """Ask for each number; this part of the clients goes before it is answered."""
        plans = {
            number: self.random.choice(("headers", "at once", "later"))
            if self.random.random() < aborting
            else None
            for number in numbers
        }
        waits = {number: self.random.uniform(0, LONGEST_WAIT) for number in numbers}
        await asyncio.gather(*(self._client(n, plans[n], waits[n]) for n in numbers))

    async def _client(self, number: int, plan: str | None, wait: float) -> None:
        async with self.limit:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            request = f"GET /{number} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()
            if plan is None:
                writer.write(request)
                head = (await reader.read()).partition(b"\r\n")[0]
                self.answers[number] = int(head.split()[1])
                writer.close()
                return
            writer.write(request[:-4] if plan == "headers" else request)
            if plan == "later":
                await asyncio.sleep(wait)
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
            self.aborted.add(number)
