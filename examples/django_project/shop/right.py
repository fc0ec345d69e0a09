"""The views of views.py as they should be."""

from __future__ import annotations

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from asyncsafe import database_sync_to_async

from .models import Order


async def list_orders(request: HttpRequest) -> JsonResponse:
    orders = Order.objects.select_related("customer").order_by("pk")[:10]
    return JsonResponse({"orders": [[order.customer.name, order.total] async for order in orders]})


async def orders_page(request: HttpRequest) -> HttpResponse:
    orders = Order.objects.select_related("customer").order_by("pk")[:10]
    context = {"orders": [order async for order in orders]}
    # What else the template asks for, the user, is loaded in the thread.
    return await database_sync_to_async(render)(request, "shop/orders.html", context)


@database_sync_to_async
def pay(pk: int) -> None:
    with transaction.atomic():
        order = Order.objects.select_for_update().get(pk=pk)
        order.paid = True
        order.save()


async def pay_order(request: HttpRequest, pk: int) -> JsonResponse:
    await pay(pk)
    return JsonResponse({"paid": pk})


@database_sync_to_async
def save_invoice(pk: int, invoice: UploadedFile) -> str:
    order = Order.objects.get(pk=pk)
    order.invoice.save("invoice.txt", invoice)
    return str(order.invoice.name)


async def upload_invoice(request: HttpRequest, pk: int) -> JsonResponse:
    return JsonResponse({"invoice": await save_invoice(pk, request.FILES["invoice"])})


async def whoami(request: HttpRequest) -> JsonResponse:
    user = await request.auser()
    return JsonResponse({"known": user.is_authenticated})
