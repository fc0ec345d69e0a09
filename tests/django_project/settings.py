"""What differs from run to run comes from the environment."""

from __future__ import annotations

import json
import os
from typing import Any

import asyncsafe

DIRECTORY = os.environ["SHOP_DIRECTORY"]


def _sqlite(name: str) -> dict[str, Any]:
    file = os.path.join(DIRECTORY, f"{name}.db")
    quick = {"init_command": "pragma synchronous = off"}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": quick}


def _postgres(dsn: str) -> dict[str, Any]:
    """Django takes libpq's own settings as OPTIONS, all but the database's name."""
    from psycopg2.extensions import parse_dsn

    options = parse_dsn(dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": options.pop("dbname"),
        "OPTIONS": options,
    }


DATABASES = {"default": _sqlite("default"), "d1": _sqlite("d1")}
if dsn := os.environ.get("SHOP_POSTGRES"):
    DATABASES["default"] = _postgres(dsn)
    if os.environ.get("SHOP_POOL"):
        DATABASES["default"]["OPTIONS"]["pool"] = json.loads(os.environ["SHOP_POOL"])

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "tests.django_project.shop",
]
# Without migrations the tables are made at once.
MIGRATION_MODULES = dict.fromkeys(("contenttypes", "auth", "sessions"))
if "SHOP_ASYNCSAFE" in os.environ:
    INSTALLED_APPS.append("asyncsafe.integrations.django")
    ASYNCSAFE = json.loads(os.environ["SHOP_ASYNCSAFE"])
if os.environ.get("SHOP_GUARD") == "early":
    asyncsafe.install()

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
ROOT_URLCONF = "tests.django_project.shop.urls"
if "SHOP_ASGI" in os.environ:
    ASGI_APPLICATION = "tests.django_project.asgi.application"
if "SHOP_CONN_MAX_AGE" in os.environ:
    DATABASES["default"]["CONN_MAX_AGE"] = json.loads(os.environ["SHOP_CONN_MAX_AGE"])
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
MEDIA_ROOT = os.path.join(DIRECTORY, "media")
SESSION_FILE_PATH = DIRECTORY
STATIC_URL = "static/"
USE_TZ = True
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "files": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": os.path.join(DIRECTORY, "cache"),
    },
}
