"""Views that make the mistakes that people make. right.py has each of them as it should be."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from .models import Order


async def list_orders(request: HttpRequest) -> JsonResponse:
    orders = Order.objects.order_by("pk")[:10]
    # The loop runs the query, and another for each order's customer.
    return JsonResponse({"orders": [[order.customer.name, order.total] for order in orders]})


async def orders_page(request: HttpRequest) -> HttpResponse:
    # The template evaluates the queryset.
    return render(request, "shop/orders.html", {"orders": Order.objects.order_by("pk")[:10]})


async def pay_order(request: HttpRequest, pk: int) -> JsonResponse:
    order = await Order.objects.aget(pk=pk)
    with transaction.atomic():  # sends BEGIN and COMMIT from the loop
        order.paid = True
        order.save()
    return JsonResponse({"paid": order.pk})


async def upload_invoice(request: HttpRequest, pk: int) -> JsonResponse:
    order = await Order.objects.aget(pk=pk)
    order.invoice.save("invoice.txt", request.FILES["invoice"], save=False)  # writes the file
    await order.asave()
    return JsonResponse({"invoice": order.invoice.name})


async def whoami(request: HttpRequest) -> JsonResponse:
    # request.user is lazy: it loads the session and the user.
    return JsonResponse({"known": request.user.is_authenticated})


def report(request: HttpRequest) -> JsonResponse:
    """A synchronous view: Django runs it in a thread, and there is nothing to tell."""
    told = Order.objects.filter(paid=True).aggregate(orders=Count("pk"), total=Sum("total"))
    return JsonResponse(told)
