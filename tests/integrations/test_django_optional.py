"""Django beyond the database: caches, sessions, files, mail, where install() is asked for them."""

from __future__ import annotations

import asyncio
import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async

import asyncsafe

from ..django_project.running import Shop, free_port, served
from ..running import on_loop, refused

Refused = asyncsafe.SynchronousOnlyOperation


@pytest.fixture(scope="module")
def memcached() -> Iterator[int]:
    with served("memcached", "-l", "127.0.0.1", "-p", "PORT", "-u", "nobody") as port:
        yield port


@pytest.fixture(scope="module")
def redis() -> Iterator[int]:
    with served("redis-server", "--bind", "127.0.0.1", "--port", "PORT", "--save", "") as port:
        yield port


@pytest.fixture(params=["file", "memcached", "redis"])
def cache(request: pytest.FixtureRequest, shop: Shop, tmp_path: Path) -> Any:
    if request.param == "file":
        from django.core.cache.backends.filebased import FileBasedCache

        return FileBasedCache(str(tmp_path), {})
    port = request.getfixturevalue(request.param)
    if request.param == "memcached":
        from django.core.cache.backends.memcached import PyMemcacheCache

        return PyMemcacheCache(f"127.0.0.1:{port}", {})
    from django.core.cache.backends.redis import RedisCache

    return RedisCache(f"redis://127.0.0.1:{port}", {})


CACHE_CALLS: dict[str, Callable[[Any], Any]] = {
    "get": lambda cache: cache.get("kept"),
    "set": lambda cache: cache.set("new", 1),
    "add": lambda cache: cache.add("new", 1),
    "touch": lambda cache: cache.touch("kept", 10),
    "delete": lambda cache: cache.delete("kept"),
    "has_key": lambda cache: cache.has_key("kept"),
    "in": lambda cache: "kept" in cache,
    "incr": lambda cache: cache.incr("kept"),
    "decr": lambda cache: cache.decr("kept"),
    "get_many": lambda cache: cache.get_many(["kept"]),
    "set_many": lambda cache: cache.set_many({"new": 1}),
    "delete_many": lambda cache: cache.delete_many(["kept"]),
    "get_or_set": lambda cache: cache.get_or_set("new", 1),
    "clear": lambda cache: cache.clear(),
}


class TestCaches:
    def test_each_call_is_refused_and_has_no_effect(self, cache: Any) -> None:
        asyncsafe.install("django.caches")
        for name, call in CACHE_CALLS.items():
            cache.clear()
            cache.set("kept", 5)
            violation = refused(functools.partial(call, cache))
            assert violation.call_site.function.endswith("<lambda>")
            assert violation.operation.startswith("django.cache.")
            if name != "in":
                assert violation.hint is not None, name
                assert re.fullmatch(rf"await cache\.a{name}\((\.\.\.)?\)", violation.hint)
            assert (cache.get("kept"), cache.get("new")) == (5, None), name
            call(cache)  # off the loop

    def test_asynchronous_calls_are_not_flagged(self, cache: Any) -> None:
        asyncsafe.install("django.caches")

        async def main() -> Any:
            await cache.aset("kept", 1)
            return await cache.aget("kept"), await cache.aincr("kept")

        assert asyncio.run(main()) == (1, 2)
        assert not asyncsafe.violations

    def test_off_by_default(self, cache: Any) -> None:
        assert on_loop(cache.get, "absent") is None

    def test_uninstalled(self, cache: Any) -> None:
        asyncsafe.install("django.caches")
        asyncsafe.uninstall("django.caches")
        assert on_loop(cache.get, "absent") is None

    def test_a_cache_in_memory_is_not_flagged(self, shop: Shop) -> None:
        asyncsafe.install("django.caches")
        from django.core.cache import cache

        on_loop(cache.set, "kept", 1)
        assert on_loop(cache.get, "kept") == 1

    def test_a_session_in_the_cache(self, shop: Shop, redis: int) -> None:
        from django.contrib.sessions.backends.cache import SessionStore
        from django.core.cache.backends.redis import RedisCache

        asyncsafe.install("django.caches")
        session = SessionStore("a" * 32)
        session._cache = RedisCache(f"redis://127.0.0.1:{redis}", {})
        violation = refused(lambda: session.get("cart"))
        assert violation.hint == "await request.session.aget(...)"
        assert violation.operation == "django.sessions.cache.load"
        assert session.session_key == "a" * 32  # and not a new, empty session's
        assert asyncio.run(session.aget("cart")) is None

    def test_a_session_in_a_cache_in_memory(self, shop: Shop) -> None:
        from django.contrib.sessions.backends.cache import SessionStore

        asyncsafe.install("django.caches")
        assert on_loop(SessionStore("a" * 32).get, "cart") is None


class TestSessions:
    def test_in_files(self, shop: Shop) -> None:
        from django.contrib.sessions.backends.file import SessionStore

        asyncsafe.install("django.sessions")
        session = SessionStore()
        session["cart"] = 1
        session.save()
        again = SessionStore(session.session_key)
        violation = refused(lambda: again["cart"])
        assert violation.operation == "django.sessions.file.load"
        assert violation.hint == (
            "await asyncsafe.database_sync_to_async(request.session.get)('cart')"
        )
        violation = refused(lambda: again.get("cart"))
        assert violation.hint == "await asyncsafe.database_sync_to_async(request.session.get)(...)"
        again["cart"] = 2
        refused(lambda: again.save())
        refused(lambda: again.delete())
        refused(lambda: again.exists("a" * 32))
        assert SessionStore(session.session_key)["cart"] == 1
        again.save()
        assert SessionStore(session.session_key)["cart"] == 2

    def test_the_asynchronous_methods_of_sessions_in_files_block_too(self, shop: Shop) -> None:
        from django.contrib.sessions.backends.file import SessionStore

        asyncsafe.install("django.sessions")
        with pytest.raises(Refused):
            asyncio.run(SessionStore("a" * 32).aget("cart"))

    def test_in_the_database(self, shop: Shop) -> None:
        from django.contrib.sessions.backends.db import SessionStore

        session = SessionStore("a" * 32)
        refused(lambda: session.get("cart"))
        assert asyncio.run(session.aget("cart")) is None


class TestFiles:
    def test_storage(self, shop: Shop, tmp_path: Path) -> None:
        from django.core.files.base import ContentFile
        from django.core.files.storage import FileSystemStorage

        asyncsafe.install("django.files")
        storage = FileSystemStorage(tmp_path)
        storage.save("kept.txt", ContentFile(b"kept"))
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("open", lambda: storage.open("kept.txt")),
            ("save", lambda: storage.save("new.txt", ContentFile(b"new"))),
            ("exists", lambda: storage.exists("kept.txt")),
            ("listdir", lambda: storage.listdir("")),
            ("size", lambda: storage.size("kept.txt")),
            ("get_modified_time", lambda: storage.get_modified_time("kept.txt")),
            ("delete", lambda: storage.delete("kept.txt")),
        ]
        for name, call in calls:
            violation = refused(call)
            told = violation.subject or violation.operation
            assert f"FileSystemStorage.{name}" in told
            assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
        with storage.open("kept.txt") as kept:
            assert kept.read() == b"kept"
        for _, call in calls[1:]:
            call()
        assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]
        assert on_loop(storage.path, "kept.txt") == str(tmp_path / "kept.txt")

    def test_a_field_s_file(self, shop: Shop) -> None:
        from django.core.files.base import ContentFile

        asyncsafe.install("django.files")
        order = shop.order
        refused(lambda: order.receipt.save("receipt.txt", ContentFile(b"paid"), save=False))
        order.receipt.save("receipt.txt", ContentFile(b"paid"))
        again = shop.Order.objects.get(pk=order.pk)
        assert refused(lambda: list(again.receipt.chunks())).operation == "django.files.File.chunks"
        assert refused(lambda: again.receipt.read()).library == "django.files"
        assert refused(lambda: again.receipt.size).library == "django.files"
        assert len(list(asyncsafe.violations)) == 4
        assert b"".join(again.receipt.chunks()) == b"paid"
        again.receipt.close()
        again.receipt.delete()

    def test_uploads(self, shop: Shop) -> None:
        from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile

        asyncsafe.install("django.files")
        held = SimpleUploadedFile("held.txt", b"held")
        assert on_loop(lambda: (list(held.chunks()), held.open().read())) == ([b"held"], b"held")
        with TemporaryUploadedFile("kept.txt", "text/plain", 4, None) as kept:
            kept.write(b"kept")
            refused(lambda: list(kept.chunks()))
            assert list(kept.chunks()) == [b"kept"]
        from django.core.files.base import ContentFile, File

        assert on_loop(lambda: list(ContentFile(b"held").chunks())) == [b"held"]
        assert on_loop(lambda: list(File(io.BytesIO(b"held")).chunks())) == [b"held"]
        assert not [v for v in asyncsafe.violations if v.violation.outcome != "raised"]


# Django 6.1 configures it by MAILERS, which 5.2 lacks.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
class TestMail:
    def test_smtp(self, shop: Shop) -> None:
        from aiosmtpd.controller import Controller
        from django.core.mail import EmailMessage
        from django.core.mail.backends.smtp import EmailBackend

        arrived: list[str] = []

        class Inbox:
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                arrived.append(envelope.rcpt_tos[0])
                return "250 OK"

        asyncsafe.install("django.mail")
        server = Controller(Inbox(), hostname="127.0.0.1", port=free_port())
        server.start()
        try:
            backend = EmailBackend(host="127.0.0.1", port=server.port)
            letter = EmailMessage("Paid", "Thank you", "shop@x.org", ["ada@x.org"])
            letter.connection = backend
            violation = refused(lambda: letter.send())
            assert violation.subject == "EmailMessage.send() was called"
            assert violation.operation == "django.mail.smtp.send_messages"
            refused(lambda: backend.open())
            assert arrived == []
            letter.send()
            assert arrived == ["ada@x.org"]
            asyncio.run(sync_to_async(letter.send)())
            assert len(arrived) == 2

            def fails() -> None:
                try:
                    raise LookupError("the application's")
                finally:
                    backend.close()

            backend.open()
            refused(lambda: backend.close())
            assert backend.connection is not None
            with pytest.raises(LookupError, match="the application's"):
                on_loop(fails)
            assert backend.connection is None
        finally:
            server.stop()

    def test_in_files(self, shop: Shop, tmp_path: Path) -> None:
        from django.core.mail import EmailMessage
        from django.core.mail.backends.filebased import EmailBackend

        asyncsafe.install("django.mail")
        letter = EmailMessage("Paid", "Thank you", "shop@x.org", ["ada@x.org"])
        letter.connection = EmailBackend(file_path=str(tmp_path))
        refused(lambda: letter.send())
        assert list(tmp_path.iterdir()) == []
        letter.send()
        assert len(list(tmp_path.iterdir())) == 1

    def test_in_memory(self, shop: Shop) -> None:
        from django.core.mail import EmailMessage
        from django.core.mail.backends.dummy import EmailBackend

        asyncsafe.install("django.mail")
        letter = EmailMessage("Paid", "Thank you", "shop@x.org", ["ada@x.org"])
        letter.connection = EmailBackend()
        assert on_loop(letter.send) == 1
