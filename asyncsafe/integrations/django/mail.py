"""Django's mail that goes out by SMTP, or into files."""

from __future__ import annotations

from ...tables import Integration, Operation
from . import TESTED
from .hints import tell


def _of(backend: str, *names: str) -> list[Operation]:
    cleans_up = {"close"}
    return [
        Operation(name, called=f"django.mail.{backend}.{name}", cleans_up=name in cleans_up)
        for name in names
    ]


integration: Integration = Integration(
    "django.mail",
    {
        "django.core.mail.backends.smtp": {
            "EmailBackend": _of("smtp", "open", "send_messages", "close"),
        },
        "django.core.mail.backends.filebased": {
            "EmailBackend": _of("filebased", "open", "write_message"),
        },
    },
    describe=tell,
    distributions=("Django",),
    tested=TESTED,
    exempt={
        "`console`, `locmem`, `dummy`": "they send nothing",
    },
    not_guarded={
        "backends of other packages": "they are their packages'",
    },
)
