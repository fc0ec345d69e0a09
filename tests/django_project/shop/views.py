from __future__ import annotations

from django.http import HttpResponse

from .models import Customer


def count(request):
    return HttpResponse(f"{Customer.objects.count()} customers")


async def blocking(request):
    return HttpResponse(f"{Customer.objects.count()} customers")


async def asynchronous(request):
    return HttpResponse(f"{await Customer.objects.acount()} customers")
