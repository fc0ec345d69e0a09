"""Migrate, serve the project with uvicorn, ask for every page, and end."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter

import django
import uvicorn
from django.conf import settings
from django.core.management import call_command
from django.http import HttpRequest

BOUNDARY = "a-boundary"
UPLOAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="invoice"; filename="i.txt"\r\n'
    f"Content-Type: text/plain\r\n\r\nan invoice\r\n--{BOUNDARY}--\r\n"
)


def prepare() -> str:
    """A database with twenty orders, and a customer who is logged in. Returns her session's key."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth import login
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore
    from shop.models import Customer, Order

    Customer.objects.all().delete()
    User.objects.all().delete()
    request = HttpRequest()
    request.session = SessionStore()
    login(request, User.objects.create_user("ada"))
    request.session.save()
    customers = Customer.objects.bulk_create(Customer(name=name) for name in ("Ada", "Grace"))
    Order.objects.bulk_create(
        Order(customer=customers[number % 2], total=number) for number in range(1, 21)
    )
    return str(request.session.session_key)


def pages() -> list[tuple[str, str]]:
    from shop.models import Order

    pks = Order.objects.order_by("pk").values_list("pk", flat=True)[:10]
    asked = [("GET", path) for path in ("/orders/", "/orders/page/", "/whoami/") for _ in range(5)]
    asked += [("POST", f"/orders/{pk}/pay/") for pk in pks]
    asked += [("UPLOAD", f"/orders/{pk}/invoice/") for pk in pks[:3]]
    right = [(method, f"/right{path}") for method, path in asked]
    return [*asked, *right, ("GET", "/report/"), ("GET", "/admin/login/")]


async def fetch(port: int, session: str, method: str, path: str) -> int:
    """The status of one response."""
    body, headers = "", ""
    if method == "UPLOAD":
        method, body = "POST", UPLOAD
        headers = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{headers}"
        f"Cookie: sessionid={session}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    head = (await reader.read()).decode(errors="replace").partition("\r\n\r\n")[0]
    writer.close()
    return int(head.split()[1])


async def serve(session: str, asked: list[tuple[str, str]]) -> Counter[int]:
    from mysite.asgi import application

    config = uvicorn.Config(application, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    answers = Counter([await fetch(port, session, method, path) for method, path in asked])
    server.should_exit = True
    await serving
    return answers


def main() -> None:
    session = prepare()
    try:
        answers = asyncio.run(serve(session, pages()))
    finally:
        shutil.rmtree(settings.MEDIA_ROOT, ignore_errors=True)
    told = ", ".join(f"{count} were answered with {status}" for status, count in answers.items())
    print(f"Of {answers.total()} requests {told}.")


main()
