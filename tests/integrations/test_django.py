"""Django: its guards answer to asyncsafe, the gaps that they leave are closed, nothing gets worse.

The project in tests/django_project is set up once in this process, on sqlite files; what needs other
settings, another database or another server runs in a Python of its own.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import greenlet
import pytest
import trio
from asgiref.sync import sync_to_async
from django.core import exceptions

import asyncsafe

from ..django_project.running import ROOT, Shop, closing, in_project, stored
from ..running import in_thread, on_loop, refused

Refused = asyncsafe.SynchronousOnlyOperation

DJANGO_SAYS = "You cannot call this from an async context - use a thread or sync_to_async."


# Django's own guards ----------------------------------------------------------------------------


class TestOwnGuards:
    def test_a_query_is_refused_before_it_reaches_the_database(self, shop: Shop) -> None:
        with pytest.raises(exceptions.SynchronousOnlyOperation) as caught:
            on_loop(lambda: shop.Customer.objects.create(name="Grace"))
        assert isinstance(caught.value, Refused)
        assert caught.value.violation.library == "django"
        assert caught.value.violation.call_site.filename == __file__
        assert DJANGO_SAYS in str(caught.value)
        assert stored(shop) == 1

    def test_off_the_loop_nothing_is_refused(self, shop: Shop) -> None:
        assert shop.Customer.objects.count() == 1
        assert in_thread(closing(shop.Customer.objects.count)) == 1
        in_thread(closing(lambda: shop.Customer.objects.create(name="Grace")))
        assert stored(shop) == 2
        assert not asyncsafe.violations

    def test_asynchronous_methods_are_not_flagged(self, shop: Shop) -> None:
        async def main() -> Any:
            grace = await shop.Customer.objects.acreate(name="Grace")
            names = [customer.name async for customer in shop.Customer.objects.order_by("name")]
            return names, await sync_to_async(lambda: grace.orders.count())()

        assert asyncio.run(main()) == (["Ada", "Grace"], 0)
        assert not asyncsafe.violations

    def test_warn(self, shop: Shop) -> None:
        asyncsafe.configure(mode="warn")
        with pytest.warns(asyncsafe.AsyncUnsafeWarning) as told:
            assert on_loop(closing(lambda: shop.Customer.objects.count())) == 1
        assert "Customer.objects.count() was called from" in str(told[0].message)
        assert {warning.filename for warning in told} == {__file__}

    def test_record(self, shop: Shop) -> None:
        asyncsafe.configure(mode="record")
        assert on_loop(closing(lambda: shop.Customer.objects.count())) == 1
        sites = [site for site in asyncsafe.violations if site.violation.outcome == "recorded"]
        assert "django" in {site.violation.library for site in sites}
        assert sum(site.seconds for site in sites) > 0
        assert any("COUNT(*)" in (site.violation.statement or "") for site in sites)

    def test_off(self, shop: Shop) -> None:
        asyncsafe.configure(mode="off")
        assert on_loop(closing(shop.Customer.objects.count)) == 1
        assert [site.violation.outcome for site in asyncsafe.violations] in ([], ["allowed"])

    def test_allow_and_forbid(self, shop: Shop) -> None:
        def count() -> Any:
            with asyncsafe.allow("counted at start-up"):
                assert shop.Customer.objects.count() == 1
                with asyncsafe.forbid(), pytest.raises(Refused):
                    shop.Customer.objects.count()
                shop.connection.close()
            with pytest.raises(Refused):
                shop.Customer.objects.count()

        on_loop(count)
        assert {s.violation.reason for s in asyncsafe.violations} == {"counted at start-up", None}

    def test_the_environment(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "yes")
        assert on_loop(closing(shop.Customer.objects.count)) == 1
        reasons = {site.violation.reason for site in asyncsafe.violations}
        assert "DJANGO_ALLOW_ASYNC_UNSAFE=yes" in reasons

    def test_the_exception_can_be_pickled_and_copied(self, shop: Shop) -> None:
        with pytest.raises(Refused) as caught:
            on_loop(lambda: shop.Customer.objects.count())
        for other in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
            assert isinstance(other, Refused)
            assert isinstance(other, exceptions.SynchronousOnlyOperation)
            assert str(other) == str(caught.value)
        assert type(caught.value).__name__ == "SynchronousOnlyOperation"

    def test_trio(self, shop: Shop) -> None:
        async def main() -> None:
            shop.Customer.objects.count()

        with pytest.raises(Refused) as caught:
            trio.run(main)
        assert caught.value.violation.loop == "trio"

        async def threaded() -> int:
            return await trio.to_thread.run_sync(closing(shop.Customer.objects.count))

        assert trio.run(threaded) == 1

    def test_beside_a_loop_that_is_parked_in_another_greenlet(self, shop: Shop) -> None:
        plain = greenlet.getcurrent()

        async def park() -> None:
            with pytest.raises(Refused):
                shop.Customer.objects.count()
            plain.switch()

        parked = greenlet.greenlet(lambda: asyncio.run(park()))
        parked.switch()
        try:
            assert asyncio.get_running_loop() is not None
            assert closing(shop.Customer.objects.count)() == 1
            assert third_party() == "made"
        finally:
            parked.switch()

    def test_a_greenlet_below_a_coroutine(self, shop: Shop) -> None:
        refused(lambda: greenlet.greenlet(lambda: shop.Customer.objects.count()).switch())

    def test_uninstall_restores_everything(self, shop: Shop) -> None:
        asyncsafe.uninstall()
        before = dictionaries()
        for _ in range(2):
            asyncsafe.install()
            asyncsafe.install("django.caches", "django.files", "django.mail", "django.sessions")
            during = dictionaries()
            asyncsafe.uninstall()
            assert dictionaries() == before
        changed = {
            (name, attribute)
            for name in before
            for attribute in before[name]
            if before[name][attribute] is not during[name][attribute]
        }
        assert ("django.db.backends.base.base.BaseDatabaseWrapper", "cursor") in changed
        assert ("django.utils.asyncio", "get_running_loop") in changed
        assert ("django.core.files.base.File", "chunks") in changed
        with pytest.raises(exceptions.SynchronousOnlyOperation) as caught:
            on_loop(lambda: shop.Customer.objects.count())
        assert type(caught.value) is exceptions.SynchronousOnlyOperation


def dictionaries() -> dict[str, dict[str, Any]]:
    """What the guarded modules and classes hold."""
    from asyncsafe.installation import OPTIONAL, integration

    found: dict[str, dict[str, Any]] = {}
    for name in ("django", *OPTIONAL):
        guarded = integration(name)
        for table in (guarded.operations, guarded.replaced):
            for module, classes in table.items():
                if module in sys.modules:
                    for kind in classes:
                        owner = sys.modules[module]
                        thing = getattr(owner, kind) if kind else owner
                        found[f"{module}.{kind}".rstrip(".")] = dict(vars(thing))
    return found


from django.utils.asyncio import async_unsafe as django_async_unsafe  # noqa: E402


@django_async_unsafe
def third_party() -> str:
    """Decorated by Django's, as those of third-party backends are, before asyncsafe is installed."""
    return "made"


@django_async_unsafe("third_party_told() blocks.")
def third_party_told(value: int, *, double: bool = False) -> int:
    return value * 2 if double else value


class TestThirdParty:
    """What Django's async_unsafe decorates elsewhere."""

    def test_decorated_before(self, shop: Shop) -> None:
        violation = refused(lambda: third_party())
        assert violation.operation == f"{__name__}.third_party"
        assert violation.call_site.filename == __file__
        violation = refused(lambda: third_party_told(2, double=True))
        assert violation.operation == f"{__name__}.third_party_told"
        assert third_party_told(2, double=True) == 4
        assert third_party() == "made"

    def test_decorated_after(self, shop: Shop) -> None:
        from django.utils.asyncio import async_unsafe

        @async_unsafe
        def bare() -> str:
            return "made"

        @async_unsafe("told() blocks.")
        def told() -> str:
            return "made"

        for function in (bare, told):
            refused(function)
            assert function() == "made"
            assert in_thread(function) == "made"

    @pytest.mark.parametrize("mode", ["warn", "record", "off"])
    @pytest.mark.filterwarnings("ignore::asyncsafe.AsyncUnsafeWarning")
    def test_modes(self, shop: Shop, mode: Any) -> None:
        asyncsafe.configure(mode=mode)
        assert on_loop(third_party) == "made"
        outcomes = [site.violation.outcome for site in asyncsafe.violations]
        assert outcomes == {"warn": ["warned"], "record": ["recorded"], "off": []}[mode]

    def test_allowed(self, shop: Shop) -> None:
        assert on_loop(asyncsafe.allow("fine")(third_party)) == "made"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
            assert on_loop(third_party) == "made"
            refused(asyncsafe.forbid()(third_party))

    def test_its_own_errors_are_its_own(self, shop: Shop) -> None:
        @django_async_unsafe
        def fails() -> None:
            raise RuntimeError("its own")

        for call in (fails, lambda: on_loop(asyncsafe.allow("fine")(fails))):
            with pytest.raises(RuntimeError, match="its own"):
                call()

    def test_uninstalled(self, shop: Shop) -> None:
        asyncsafe.uninstall()
        with pytest.raises(exceptions.SynchronousOnlyOperation, match="third_party_told"):
            on_loop(lambda: third_party_told(1))
        assert third_party() == "made"


# What Django leaves open ------------------------------------------------------------------------

#: The method that is refused, how many rows that left behind, how many the call makes off the loop.
GAPS: dict[str, list[Any]] = {
    "execute": ["execute", 0, 1],
    "executemany": ["executemany", 0, 2],
    "debug_execute": ["execute", 0, 1],
    "iterator": ["fetchmany", 0, 0],
    "chunked": ["fetchone", 0, 0],
    "savepoint": ["savepoint", 0, 0],
    "raw_execute": ["execute", 0, 1],
    "raw_commit": ["commit", 0, 1],
}
NOT_REFUSED = [None, 0, 0]
ON_SQLITE: dict[str, list[Any]] = {
    **GAPS,
    "fetchone": ["fetchone", 0, 0],
    "fetchall": ["fetchall", 0, 0],
    "step": ["__next__", 0, 0],
    "is_usable": NOT_REFUSED,  # it asks nothing there
}
WITH_PSYCOPG2: dict[str, list[Any]] = {
    **GAPS,
    "fetchone": NOT_REFUSED,  # the rows are here
    "fetchall": NOT_REFUSED,
    "step": NOT_REFUSED,
    "is_usable": ["is_usable", 0, 0],
    "copy": ["copy_expert", 0, 1],
}
WITH_PSYCOPG: dict[str, list[Any]] = {**WITH_PSYCOPG2}
del WITH_PSYCOPG["copy"]
WITH_POOL: dict[str, list[Any]] = {
    **WITH_PSYCOPG,
    "take_from_pool": ["ensure_connection", 0, 0],
    "close_pool": ["close_pool", 0, 0],
}


class TestGaps:
    """Each is prepared off the loop, and refused on it, asyncio's and trio's, at the user's line."""

    RUN = "import runpy; runpy.run_module('tests.django_project.gaps', run_name='__main__')"

    def tried(self, tmp_path: Path, **environment: str) -> Any:
        found = json.loads(in_project(tmp_path, self.RUN, **environment))
        for operation, reason in found.pop("made all the same"):
            # The cursor of the iterator whose fetch was refused.
            assert operation.endswith("cursor.close")
            assert reason == "clean-up while an exception is on its way"
        return found

    @pytest.mark.parametrize("install", ["early", "late"])
    def test_sqlite(self, tmp_path: Path, install: str) -> None:
        assert self.tried(tmp_path, SHOP_GUARD=install) == ON_SQLITE

    @pytest.mark.parametrize(
        ("driver", "pool", "expected"),
        [
            ("psycopg2", "", WITH_PSYCOPG2),
            ("psycopg", "", WITH_PSYCOPG),
            ("psycopg", "true", WITH_POOL),
        ],
        ids=["psycopg2", "psycopg", "pool"],
    )
    def test_postgres(
        self, tmp_path: Path, postgres: str, driver: str, pool: str, expected: Any
    ) -> None:
        environment = {"SHOP_POSTGRES": postgres, "SHOP_DRIVER": driver, "SHOP_POOL": pool}
        assert self.tried(tmp_path, **environment) == expected


# The setting ------------------------------------------------------------------------------------


@contextmanager
def setting(value: Any) -> Iterator[None]:
    """The setting ASYNCSAFE, and what Django does with the application at its start."""
    from django.apps import AppConfig
    from django.test import override_settings

    application = AppConfig.create("asyncsafe.integrations.django")
    try:
        with override_settings(ASYNCSAFE=value):
            application.ready()
            yield
    finally:
        with override_settings(ASYNCSAFE={}):
            application.ready()


def count(alias: str) -> Callable[[], int]:
    """Count the customers of a database; then clean up, whatever the mode."""

    def counted() -> int:
        from ..django_project.shop.models import Customer

        return int(Customer.objects.using(alias).count())

    return closing(counted)


class TestSetting:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (["raise"], "ASYNCSAFE is a dictionary, not list"),
            (
                {"mode": "strict"},
                """ASYNCSAFE["mode"] must be one of raise, warn, record, off; it is 'strict'""",
            ),
            (
                {"startup": "warn"},
                """ASYNCSAFE["startup"] must be one of record, raise, off; it is 'warn'""",
            ),
            ({"aliases": ["d1"]}, """ASYNCSAFE["aliases"] is a dictionary, not ['d1']"""),
            (
                {"aliases": {"d2": "off"}},
                """ASYNCSAFE["aliases"] names 'd2', which is not in DATABASES: 'default', 'd1'""",
            ),
            (
                {"aliases": {"d1": False}},
                """ASYNCSAFE["aliases"]['d1'] must be one of raise, warn, record, off; it is False""",
            ),
            (
                {"install": ["django.cache"]},
                """ASYNCSAFE["install"] is a list of some of django.caches, django.files, """
                "django.mail, django.sessions, not ['django.cache']",
            ),
            (
                {"install": "django.caches"},
                """ASYNCSAFE["install"] is a list of some of django.caches, django.files, """
                "django.mail, django.sessions, not 'django.caches'",
            ),
            (
                {"install": [["django.caches"]]},
                """ASYNCSAFE["install"] is a list of some of django.caches, django.files, """
                "django.mail, django.sessions, not [['django.caches']]",
            ),
        ],
    )
    def test_errors_name_the_key(self, shop: Shop, value: Any, message: str) -> None:
        from asyncsafe.exceptions import ConfigurationError

        with pytest.raises(ConfigurationError) as caught, setting(value):
            raise AssertionError("not reached")
        assert str(caught.value) == message

    def test_mode(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        with setting({"mode": "record"}):
            assert on_loop(count("default")) == 1
            monkeypatch.setenv("ASYNCSAFE_MODE", "raise")
            with setting({"mode": "record"}):
                refused(count("default"))
            asyncsafe.configure(mode="off")
            assert on_loop(count("default")) == 1
        asyncsafe.configure(mode=None)
        monkeypatch.delenv("ASYNCSAFE_MODE")
        with setting({}):
            refused(count("default"))

    def test_startup(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """Django's ORM in the lifespan of another framework's application."""

        def start() -> int:
            async def server(scope: Any) -> int:
                return count("default")()

            return asyncio.run(server({"type": "lifespan"}))

        with setting({"mode": "raise"}):
            assert start() == 1
        with setting({"startup": "raise"}):
            with pytest.raises(asyncsafe.SynchronousOnlyOperation, match="during start-up"):
                start()
            monkeypatch.setenv("ASYNCSAFE_STARTUP", "record")
            with setting({"startup": "raise"}):
                assert start() == 1

    def test_off_for_one_alias(self, shop: Shop) -> None:
        """All of its calls are made, those that reach the driver past Django too."""
        with setting({"aliases": {"d1": "off"}}):
            assert on_loop(count("d1")) == 0
            refused(count("default"))

            def everything() -> None:
                from django.db import connections, transaction

                customers = shop.Customer.objects.using("d1")
                with transaction.atomic(using="d1"):
                    customers.create(name="Grace").save()
                rows = customers.iterator(chunk_size=1)
                assert [customer.name for customer in rows] == ["Grace"]
                with connections["d1"].cursor() as cursor:
                    cursor.execute("select name from shop_customer")
                    assert list(cursor) == [("Grace",)]
                with connections["d1"].chunked_cursor() as cursor:
                    cursor.execute("select name from shop_customer")
                    assert cursor.fetchone() == ("Grace",)
                customers.all().delete()
                connections["d1"].is_usable()
                connections["d1"].close()

            asyncsafe.violations.clear()
            on_loop(everything)
            assert not asyncsafe.violations

    def test_forbid_is_stronger_than_an_alias(self, shop: Shop) -> None:
        with setting({"aliases": {"d1": "off"}}):
            refused(asyncsafe.forbid()(lambda: shop.Customer.objects.using("d1").count()))

    def test_raise_for_one_alias_while_the_process_is_off(self, shop: Shop) -> None:
        with setting({"mode": "off", "aliases": {"d1": "raise", "default": "off"}}):
            for _ in range(3):
                assert on_loop(count("default")) == 1
                assert refused(count("d1")).operation.startswith("django.db")
        with setting({"aliases": {"d1": "raise"}}):
            asyncsafe.configure(mode="off")
            for _ in range(3):
                assert on_loop(count("default")) == 1
                refused(count("d1"))

    def test_record_for_one_alias(self, shop: Shop) -> None:
        with setting({"aliases": {"d1": "record"}}):
            refused(count("default"))
            asyncsafe.violations.clear()
            assert on_loop(count("d1")) == 0
            recorded = [v for v in asyncsafe.violations if v.violation.outcome == "recorded"]
            assert {site.violation.library for site in recorded} == {"django"}

    def test_exempt(self, shop: Shop) -> None:
        """A connection, in the task whose it is."""
        from django.db import connections

        def counted() -> None:
            asyncsafe.exempt(connections["d1"])
            assert shop.Customer.objects.using("d1").count() == 0
            assert [c.name for c in shop.Customer.objects.using("d1").iterator()] == []
            with pytest.raises(Refused):
                shop.Customer.objects.count()
            connections["d1"].close()

        on_loop(counted)

    def test_install(self, shop: Shop, tmp_path: Path) -> None:
        from django.core.cache.backends.filebased import FileBasedCache

        cache = FileBasedCache(str(tmp_path), {})
        with setting({}):
            assert on_loop(cache.get, "absent") is None
        with setting({"install": ["django.caches"]}):
            refused(lambda: cache.get("absent"))

    @pytest.mark.parametrize("start", ["app", "late"])
    def test_in_installed_apps(self, tmp_path: Path, start: str) -> None:
        """Django is imported before asyncsafe: an application is all that there is to add."""
        printed = in_project(
            tmp_path,
            """
            import asyncio, django
            from django.core.exceptions import SynchronousOnlyOperation
            from django.core.management import call_command
            import django.db.backends.sqlite3.base
            django.setup()
            call_command("migrate", run_syncdb=True, verbosity=0)
            from tests.django_project.shop.models import Customer
            from django.core.cache import caches

            async def main():
                for call in (Customer.objects.count, lambda: caches["files"].get("absent")):
                    try:
                        call()
                    except SynchronousOnlyOperation as refusal:
                        print(type(refusal).__module__, refusal.violation.subject)

            asyncio.run(main())
            """,
            SHOP_ASYNCSAFE='{"install": ["django.caches"]}',
            SHOP_GUARD="early" if start == "late" else "",
        )
        assert printed.splitlines() == [
            "asyncsafe.exceptions Customer.objects.count() was called",
            "asyncsafe.exceptions None",
        ]


def checked(tmp_path: Path, *options: str, **environment: str) -> str:
    """What `manage.py check` says."""
    result = subprocess.run(
        [sys.executable, "-m", "django", "check", "--tag", "async_support", *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SHOP_DIRECTORY": str(tmp_path),
            "DJANGO_SETTINGS_MODULE": "tests.django_project.settings",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr  # Django has an error for the environment
    return result.stdout + result.stderr


class TestChecks:
    def test_nothing_to_say(self, tmp_path: Path) -> None:
        said = checked(tmp_path, "--deploy", SHOP_ASYNCSAFE='{"mode": "raise"}', SHOP_ASGI="1")
        assert "no issues" in said

    def test_unknown_settings(self, tmp_path: Path) -> None:
        said = checked(tmp_path, SHOP_ASYNCSAFE='{"modes": "raise"}')
        assert "(asyncsafe.W001) ASYNCSAFE has no setting 'modes'." in said
        assert "HINT: There are: mode, startup, aliases, install." in said

    def test_deployment(self, tmp_path: Path) -> None:
        environment = {
            "SHOP_ASYNCSAFE": '{"mode": "off"}',
            "DJANGO_ALLOW_ASYNC_UNSAFE": "1",
            "SHOP_ASGI": "1",
            "SHOP_CONN_MAX_AGE": "60",
        }
        said = checked(tmp_path, "--deploy", **environment)
        assert (
            """(asyncsafe.W002) asyncsafe is off in the whole process (ASYNCSAFE["mode"])""" in said
        )
        assert "(asyncsafe.W003) DJANGO_ALLOW_ASYNC_UNSAFE allows" in said
        assert "(asyncsafe.W004) CONN_MAX_AGE of 'default' is 60, and ASGI_APPLICATION is" in said
        assert "no issues" in checked(tmp_path, **environment)

    @pytest.mark.parametrize(("age", "says"), [("0", False), ("null", True), ("5", True)])
    def test_connections_that_are_kept_under_asgi(
        self, tmp_path: Path, age: str, says: bool
    ) -> None:
        environment = {"SHOP_ASYNCSAFE": "{}", "SHOP_CONN_MAX_AGE": age}
        assert "W004" not in checked(tmp_path, "--deploy", **environment)
        said = checked(tmp_path, "--deploy", SHOP_ASGI="1", **environment)
        assert ("asyncsafe.W004" in said) is says


# Clean-up ---------------------------------------------------------------------------------------


class TestCleanUp:
    def test_close_on_the_loop_is_refused_and_loses_nothing(self, shop: Shop) -> None:
        """The connection is open as before, and is closed off the loop, or with an allowance."""

        def keep_and_close() -> None:
            with asyncsafe.allow("opens it"):
                shop.connection.ensure_connection()
            raw = shop.connection.connection
            with pytest.raises(Refused):
                shop.connection.close()
            assert shop.connection.connection is raw
            assert raw.in_transaction is False  # it is open: a closed one would raise
            with asyncsafe.allow("closes it"):
                shop.connection.close()
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                raw.in_transaction

        on_loop(keep_and_close)

    def test_close_on_an_error_s_way_out_is_made(self, shop: Shop) -> None:
        held: list[Any] = []

        def fails() -> None:
            with asyncsafe.allow("opens it"):
                shop.connection.ensure_connection()
            held.append(shop.connection.connection)
            try:
                raise LookupError("the application's")
            finally:
                shop.connection.close()

        with pytest.raises(LookupError, match="the application's"):
            on_loop(fails)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            held[0].in_transaction
        outcomes = {site.violation.outcome for site in asyncsafe.violations}
        assert outcomes == {"allowed"}

    def test_a_connection_that_isn_t_open_can_be_closed(self, shop: Shop) -> None:
        from django.db import close_old_connections, connections

        def close() -> None:
            shop.connection.close()
            close_old_connections()
            connections.close_all()

        on_loop(close)
        assert not asyncsafe.violations

    def test_close_old_connections_with_nothing_to_close(self, shop: Shop) -> None:
        from django.db import close_old_connections

        def close() -> None:
            with asyncsafe.allow("opens it"):
                shop.connection.ensure_connection()
            shop.connection.close_at = None
            close_old_connections()
            assert shop.connection.connection is not None

        on_loop(closing(close))

    def test_a_transaction_that_fails_on_the_loop_is_rolled_back(self, shop: Shop) -> None:
        from django.db import transaction

        def fails() -> None:
            block = transaction.atomic()
            with asyncsafe.allow("begins it"):
                block.__enter__()
                shop.Customer.objects.create(name="Grace")
            try:
                raise LookupError("the application's")
            except LookupError as error:
                block.__exit__(type(error), error, error.__traceback__)
                assert shop.connection.connection.in_transaction is False
                assert shop.connection.get_autocommit()
                raise

        with pytest.raises(LookupError, match="the application's"):
            on_loop(closing(fails))
        assert stored(shop) == 1

    def test_a_transaction_is_not_committed_on_the_loop(self, shop: Shop) -> None:
        from django.db import transaction

        def commits() -> None:
            block = transaction.atomic()
            with asyncsafe.allow("begins it"):
                block.__enter__()
                shop.Customer.objects.create(name="Grace")
            with pytest.raises(Refused) as caught:
                block.__exit__(None, None, None)
            assert caught.value.violation.subject == "transaction.atomic() was left"
            assert stored(shop) == 1
            with asyncsafe.allow("ends it"):
                shop.connection.rollback()
                shop.connection.close()

        on_loop(commits)
        assert stored(shop) == 1

    def test_an_asynchronous_generator_that_the_loop_closes(self, shop: Shop) -> None:
        """Its `finally` runs on the loop that is closing: the connection isn't kept open."""
        from django.db import connections

        held: list[Any] = []

        async def rows() -> Any:
            connection = connections["default"]  # the loop finalizes it in another task
            with asyncsafe.allow("opens it"):
                connection.ensure_connection()
            held.append(connection.connection)
            try:
                yield 1
                yield 2
            finally:
                connection.close()

        async def main() -> Any:
            generator = rows()
            assert await anext(generator) == 1
            return generator

        generator = asyncio.run(main())
        assert generator.ag_frame is None
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            held[0].in_transaction
        assert {site.violation.reason for site in asyncsafe.violations} == {
            "opens it",
            "a generator is being closed",
        }


ON_POSTGRES_CLEAN_UP = """
import asyncio, os, sys
if os.environ["SHOP_DRIVER"] == "psycopg2":
    sys.modules["psycopg"] = None
import django
django.setup()
import psycopg2
from django.core.management import call_command
from django.db import close_old_connections, connections, transaction
import asyncsafe
call_command("migrate", run_syncdb=True, verbosity=0)
from tests.django_project.shop.models import Customer
Customer.objects.all().delete()
connections.close_all()

watching = psycopg2.connect(os.environ["SHOP_POSTGRES"])
watching.autocommit = True

def ask(query):
    with asyncsafe.allow("the test's own"), watching.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]

def backends():
    return ask(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'clean-up'"
    )

def connected():
    wrapper = connections["default"]
    with asyncsafe.allow("connects"), wrapper.cursor() as cursor:
        cursor.execute("set application_name = 'clean-up'")
    return wrapper

def begun():
    wrapper = connected()
    block = transaction.atomic()
    with asyncsafe.allow("begins"):
        block.__enter__()
        Customer.objects.create(name="Grace")
    return wrapper, block

async def commits():
    wrapper, block = begun()
    try:
        block.__exit__(None, None, None)
    except Exception as error:
        print("commit", type(error).__name__, ask("select count(*) from shop_customer"))
    with asyncsafe.allow("ends it"):
        wrapper.rollback()
        wrapper.close()

async def rolls_back():
    wrapper, block = begun()
    try:
        try:
            raise LookupError
        except LookupError as error:
            block.__exit__(LookupError, error, error.__traceback__)
            raise
    except Exception as error:
        print("rollback", type(error).__name__, wrapper.get_autocommit())
    with asyncsafe.allow("uses it again"):
        print("again", Customer.objects.count())
    try:
        raise LookupError
    except LookupError:
        wrapper.close()

async def closes():
    wrapper = connected()
    try:
        wrapper.close()
    except asyncsafe.SynchronousOnlyOperation:
        print("close", wrapper.connection is not None, backends())
    try:
        close_old_connections()
    except asyncsafe.SynchronousOnlyOperation:
        print("old", wrapper.connection is not None, backends())
    await asyncsafe.database_sync_to_async(wrapper.inc_thread_sharing)()
    await asyncsafe.database_sync_to_async(wrapper.close)()

for main in (commits, rolls_back, closes):
    asyncio.run(main())
    for _ in range(1000):
        if not backends():
            break
    print(main.__name__, backends())
"""


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_clean_up_on_postgres(tmp_path: Path, postgres: str, driver: str) -> None:
    """One error stays one, nothing is committed, no backend stays behind."""
    environment = {"SHOP_POSTGRES": postgres, "SHOP_DRIVER": driver, "SHOP_ASYNCSAFE": "{}"}
    assert in_project(tmp_path, ON_POSTGRES_CLEAN_UP, **environment).splitlines() == [
        "commit SynchronousOnlyOperation 0",
        "commits 0",
        "rollback LookupError True",
        "again 0",
        "rolls_back 0",
        "close True 1",
        "old True 1",
        "closes 0",
    ]
