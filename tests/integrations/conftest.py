"""The Django project of tests/django_project, set up in this process once it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import asyncsafe


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, set up in this process, and the directory of its databases."""
    directory = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_DIRECTORY", str(directory))
        patch.setenv("DJANGO_SETTINGS_MODULE", "tests.django_project.settings")
        import django

        django.setup()
        from django.core.management import call_command

        for alias in ("default", "d1"):
            call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    return directory


@pytest.fixture
def shop(project: Path) -> Iterator[Any]:
    """The models, with two orders of one customer; asyncsafe is installed, long after Django."""
    from django.contrib.contenttypes.models import ContentType
    from django.db import connection, connections

    from ..django_project.shop import models

    ContentType.objects.clear_cache()
    ada = models.Customer.objects.create(name="Ada")
    models.Profile.objects.create(customer=ada)
    tag = models.Tag.objects.create(name="urgent")
    order = models.Order.objects.create(customer=ada, label=tag, total=10)
    order.tags.add(tag)
    models.Order.objects.create(customer=ada, total=20)
    models.Comment.objects.create(subject=order)
    ContentType.objects.clear_cache()
    shop = SimpleNamespace(**vars(models), directory=project, connection=connection)
    shop.ada, shop.order = ada, models.Order.objects.get(total=10)
    asyncsafe.install()
    yield shop
    asyncsafe.uninstall()
    connections.close_all()
    for model in (models.Comment, models.Order, models.Profile, models.Customer, models.Tag):
        model.objects.all().delete()
