"""Django's caches that do I/O: files, memcached, Redis. (The database's is guarded as the database.)"""

from __future__ import annotations

from typing import Any

from ...tables import Integration, Operation
from . import TESTED
from .hints import tell


def _of(cache: str, *names: str) -> list[Operation]:
    return [
        Operation(name, called=f"django.cache.{cache}.{name}", hint=f"await cache.a{name}(...)")
        for name in names
    ]


#: get_many() and its like are made of these.
_FILES = ("add", "get", "set", "touch", "delete", "has_key", "clear")
_MEMCACHED = (
    *("add", "get", "set", "touch", "delete", "get_many", "incr"),
    *("set_many", "delete_many", "clear"),
)


def _does_io(session: Any) -> bool:
    """Whether this session's cache does: one in memory doesn't."""
    modules = {kind.__module__ for kind in type(session._cache).__mro__}
    return not modules.isdisjoint(integration.operations)


integration: Integration = Integration(
    "django.caches",
    {
        "django.core.cache.backends.filebased": {"FileBasedCache": _of("FileBasedCache", *_FILES)},
        "django.core.cache.backends.memcached": {
            "BaseMemcachedCache": _of("MemcachedCache", *_MEMCACHED),
            "PyLibMCCache": _of("MemcachedCache", "touch"),
        },
        "django.core.cache.backends.redis": {
            "RedisCacheClient": _of(
                "RedisCache",
                *("add", "get", "set", "touch", "delete", "get_many", "has_key", "incr"),
                *("set_many", "delete_many", "clear"),
            ),
        },
        # These swallow what their cache raises: a refusal would leave an empty session.
        "django.contrib.sessions.backends.cache": {
            "SessionStore": [
                Operation("load", called="django.sessions.cache.load", does_block=_does_io)
            ],
        },
        "django.contrib.sessions.backends.cached_db": {
            "SessionStore": [
                Operation("load", called="django.sessions.cached_db.load", does_block=_does_io)
            ],
        },
    },
    describe=tell,
    distributions=("Django",),
    tested=TESTED,
    exempt={
        "`locmem`, `dummy`": "they are in memory",
        "the database cache": "it is guarded as the database",
    },
    not_guarded={
        "`django-redis` and others": "they are packages of their own",
    },
)
