"""Django's own ASGI application; with SHOP_IMPORTS, it asks the database while it is imported."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django_project.settings")

application = get_asgi_application()

if "SHOP_IMPORTS" in os.environ:
    from .shop.models import Customer

    NAMES = [customer.name for customer in Customer.objects.all()]
