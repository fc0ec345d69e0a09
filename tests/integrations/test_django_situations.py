"""Django in real runs: pytest-django, Playwright, gevent, uvicorn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from ..conftest import missing
from ..django_project.running import ROOT, in_project, served

# pytest-django ----------------------------------------------------------------------------------


PYTEST = (sys.executable, "-m", "pytest")


def run_pytest(tmp_path: Path, tests: str, **environment: str) -> str:
    """Run tests with pytest-django in a process of their own. What pytest says of each."""
    directory = tmp_path / "suite"
    directory.mkdir(exist_ok=True)
    (directory / "test_suite.py").write_text(textwrap.dedent(tests))
    (directory / "pytest.ini").write_text(
        "[pytest]\nDJANGO_SETTINGS_MODULE = tests.django_project.settings\n"
        f"pythonpath = {ROOT}\nasyncio_default_fixture_loop_scope = function\n"
    )
    result = subprocess.run(
        # The page is our own.
        [*PYTEST, "-rA", "--tb=short", "-q", ".", "-p", "no:playwright", "-p", "no:cacheprovider"],
        cwd=directory,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "SHOP_DIRECTORY": str(tmp_path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return result.stdout + result.stderr


def outcomes(said: str) -> dict[str, str]:
    """{test: "PASSED"}, of pytest's summary."""
    found = re.findall(r"^([A-Z]+) test_suite\.py::(\S+)", said, re.MULTILINE)
    assert found, said
    return {test: outcome for outcome, test in found}


SUITE = """
import asyncio
import asyncsafe
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.test import TestCase, TransactionTestCase
from tests.django_project.shop.models import Customer

either = pytest.mark.parametrize(
    "expected", [asyncsafe.SynchronousOnlyOperation, SynchronousOnlyOperation], ids=["ours", "django"]
)

@pytest.mark.django_db
def test_sync():
    Customer.objects.create(name="Ada")
    assert Customer.objects.count() == 1

@pytest.mark.django_db(transaction=True)
def test_transaction():
    with transaction.atomic():
        Customer.objects.create(name="Ada")
    assert Customer.objects.count() == 1

@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_async():
    await Customer.objects.acreate(name="Ada")
    assert await Customer.objects.acount() == 1

@pytest.mark.django_db
@pytest.mark.asyncio
@either
async def test_refused(expected):
    with pytest.raises(expected):
        Customer.objects.count()

@pytest.mark.django_db
@pytest.mark.asyncio
async def test_fails_with_its_own_error():
    with asyncsafe.allow("begins it"):
        transaction.atomic().__enter__()
    raise LookupError("the test's own")

@pytest.mark.django_db(transaction=True)
def test_after_it(client):
    assert Customer.objects.count() == 0
    assert client.get("/count").content == b"0 customers"
    assert client.get("/asynchronous").content == b"0 customers"
    with pytest.raises(SynchronousOnlyOperation):
        client.get("/blocking")

@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_async_client(async_client):
    assert (await async_client.get("/count")).content == b"0 customers"
    assert (await async_client.get("/asynchronous")).content == b"0 customers"
    with pytest.raises(asyncsafe.SynchronousOnlyOperation):
        await async_client.get("/blocking")

class TestInTransaction(TestCase):
    @classmethod
    def setUpTestData(cls):
        Customer.objects.create(name="Ada")

    async def test_it(self):
        assert await Customer.objects.acount() == 1
        with self.assertRaises(SynchronousOnlyOperation):
            Customer.objects.count()

class TestWithoutTransaction(TransactionTestCase):
    async def test_it(self):
        with self.assertRaises(asyncsafe.SynchronousOnlyOperation):
            Customer.objects.count()
"""


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_pytest_django(tmp_path: Path, database: str, request: pytest.FixtureRequest) -> None:
    environment = {"SHOP_ASYNCSAFE": "{}"}
    if database == "postgres":
        environment["SHOP_POSTGRES"] = request.getfixturevalue("postgres")
    said = run_pytest(tmp_path, SUITE, **environment)
    told = outcomes(said)
    assert told.pop("test_fails_with_its_own_error") == "FAILED", said
    assert "LookupError: the test's own" in said
    assert set(told.values()) == {"PASSED"}, said
    assert len(told) == 9, said


# The situations that give false alarms ------------------------------------------------------------

PLAYWRIGHT = """
import asyncio
import shutil
import pytest
from django.db import transaction
from playwright.sync_api import sync_playwright
from tests.django_project.shop.models import Customer

@pytest.fixture(scope="session")
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser.new_page()
        browser.close()

@pytest.mark.parametrize("number", [1, 2])
def test_page(page, live_server, number):
    assert asyncio._get_running_loop() is not None  # Playwright's, parked in another greenlet
    Customer.objects.create(name="Ada")
    with transaction.atomic():
        Customer.objects.create(name="Grace")
    page.goto(live_server.url + "/count")
    assert page.text_content("body") == "2 customers"
    page.goto(live_server.url + "/asynchronous")
    assert page.text_content("body") == "2 customers"
    assert sorted(customer.name for customer in Customer.objects.iterator()) == ["Ada", "Grace"]
"""


LAUNCH = """
import shutil
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    playwright.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox"]
    ).close()
"""


def need_chromium() -> None:
    """Debian's, or the one that Playwright installs."""
    command = [sys.executable, "-c", LAUNCH]
    if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode:
        missing("Chromium", "apt install chromium, or playwright install chromium")


def test_playwright_beside_the_orm_and_a_live_server(tmp_path: Path) -> None:
    """A real browser, no environment variable; the flush at the end of each test, too."""
    need_chromium()
    said = run_pytest(tmp_path, PLAYWRIGHT, SHOP_ASYNCSAFE="{}")
    assert outcomes(said) == {"test_page[1]": "PASSED", "test_page[2]": "PASSED"}, said
    said = run_pytest(tmp_path, PLAYWRIGHT)  # Django alone
    assert "SynchronousOnlyOperation" in said
    assert "PASSED" not in outcomes(said).values()


GEVENT = """
from gevent import monkey; monkey.patch_all()
import asyncio, gevent
from gevent.event import Event
import django
django.setup()
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import call_command
from django.db import connection, transaction
call_command("migrate", run_syncdb=True, verbosity=0)
from asgiref.sync import async_to_sync
from tests.django_project.shop.models import Customer

def worker(n):
    with transaction.atomic():
        Customer.objects.create(name=f"{n}")
    found = Customer.objects.filter(name=f"{n}").count()
    connection.close()
    return found

def refused():
    try:
        Customer.objects.count()
    except SynchronousOnlyOperation:
        return True

for run in (asyncio.run, lambda main: async_to_sync(lambda: main)()):
    in_loop, go_on = Event(), Event()

    async def main():
        in_loop.set()
        go_on.wait()  # in mid-step: the others see this loop, and this task
        await asyncio.sleep(0)
        return refused()

    loop = gevent.spawn(run, main())
    in_loop.wait()
    print(asyncio._get_running_loop() is not None)
    try:
        print([gevent.spawn(worker, n).get() for n in range(3)], worker(3))
    except SynchronousOnlyOperation as refusal:
        print(type(refusal).__module__)
    go_on.set()
    print(loop.get())
"""


@pytest.mark.parametrize("guarded", [True, False], ids=["asyncsafe", "django alone"])
def test_gevent(tmp_path: Path, guarded: bool) -> None:
    environment = {"SHOP_ASYNCSAFE": "{}"} if guarded else {}
    printed = in_project(tmp_path, GEVENT, **environment).splitlines()
    if guarded:
        assert printed[0:3] == ["True", "[1, 1, 1] 1", "True"]
        assert printed[3:6] == ["True", "[2, 2, 2] 2", "True"]
    else:
        assert "django.core.exceptions" in printed


MIGRATE = """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
"""


class TestUvicorn:
    SERVER = (sys.executable, "-m", "uvicorn", "tests.django_project.asgi:application")

    def environment(self, tmp_path: Path) -> dict[str, str]:
        in_project(tmp_path, MIGRATE)
        return {
            "SHOP_DIRECTORY": str(tmp_path),
            "DJANGO_SETTINGS_MODULE": "tests.django_project.settings",
            "SHOP_ASYNCSAFE": "{}",
        }

    def test_views(self, tmp_path: Path) -> None:
        environment = self.environment(tmp_path)
        with served(*self.SERVER, "--port", "PORT", **environment) as port:
            for path, status in (("count", 200), ("asynchronous", 200), ("blocking", 500)):
                response = httpx.get(f"http://127.0.0.1:{port}/{path}")
                assert response.status_code == status
                assert status == 500 or response.text == "0 customers"

    def test_importing_the_project_inside_its_loop(self, tmp_path: Path) -> None:
        """uvicorn's command imports it before its loop runs; its Server by itself doesn't."""
        code = """
            import asyncio, uvicorn
            config = uvicorn.Config("tests.django_project.asgi:application", port=0)
            asyncio.run(uvicorn.Server(config).serve())
        """
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT,
            env={**os.environ, **self.environment(tmp_path), "SHOP_IMPORTS": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode != 0
        module = "tests.django_project.asgi"
        assert (
            "QuerySet[Customer] was iterated from a running event loop (asyncio), while importing "
            f"{module}."
        ) in result.stderr
        assert f"Import it earlier:   import {module} before the event loop starts" in result.stderr
        assert "tests/django_project/asgi.py:" in result.stderr
