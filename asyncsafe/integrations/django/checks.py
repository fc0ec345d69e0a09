"""Django's system checks (`manage.py check --deploy`)."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core import checks

from ...policy import current_mode
from .settings import KNOWN


def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """Settings that asyncsafe doesn't know."""
    given = getattr(settings, "ASYNCSAFE", {})
    unknown = sorted(set(given) - set(KNOWN)) if isinstance(given, dict) else []
    return [
        checks.Warning(
            f"ASYNCSAFE has no setting {name!r}.",
            hint=f"There are: {', '.join(KNOWN)}.",
            id="asyncsafe.W001",
        )
        for name in unknown
    ]


def check_deployment(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """What a deployment should not have."""
    found: list[checks.CheckMessage] = []
    mode, where = current_mode()
    if mode == "off":
        found.append(
            checks.Warning(
                f"asyncsafe is off in the whole process ({where}).",
                hint='Set the mode to "record", or use asyncsafe.allow() where it is needed.',
                id="asyncsafe.W002",
            )
        )
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        found.append(
            checks.Warning(
                "DJANGO_ALLOW_ASYNC_UNSAFE allows synchronous operations in the whole process.",
                hint='Unset it; write `with asyncsafe.allow("reason"):` where it is needed.',
                id="asyncsafe.W003",
            )
        )
    if getattr(settings, "ASGI_APPLICATION", None):
        found += [
            checks.Warning(
                f"CONN_MAX_AGE of {alias!r} is {options['CONN_MAX_AGE']!r}, and ASGI_APPLICATION is "
                "set.",
                hint="Under ASGI each request has a thread of its own, which ends with its "
                "connection open: set it to 0, and have a pool keep connections "
                '(OPTIONS = {"pool": True}).',
                id="asyncsafe.W004",
            )
            for alias, options in settings.DATABASES.items()
            if options.get("CONN_MAX_AGE", 0) != 0
        ]
    return found
