"""The application: `"asyncsafe.integrations.django"` in INSTALLED_APPS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core import checks

from ...installation import install
from . import settings
from .checks import check_deployment, check_settings

if TYPE_CHECKING:

    class AppConfig:
        """Django's, which has no types."""

        def ready(self) -> None:
            """Called when Django has loaded its models."""

else:
    from django.apps import AppConfig


class AsyncsafeConfig(AppConfig):
    """Installs the guards when Django starts, as the setting ASYNCSAFE says."""

    name = "asyncsafe.integrations.django"
    label = "asyncsafe"
    verbose_name = "asyncsafe"

    def ready(self) -> None:
        """Apply the settings; guard every supported library, and what the settings name."""
        settings.apply()
        install()
        if extra := settings.read().get("install"):
            install(*extra)
        checks.register(check_settings, checks.Tags.async_support)
        checks.register(check_deployment, checks.Tags.async_support, deploy=True)
