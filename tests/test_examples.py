"""The examples run, and what they print is right."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

ROOT = Path(__file__).parent.parent


def run_example(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """What an example prints, and `asyncsafe run` of it."""
    done = subprocess.run(
        [sys.executable, "-m", "asyncsafe", "run", f"examples/{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def fastapi_peewee() -> str:
    return run_example("fastapi_peewee")


@pytest.fixture(scope="module")
def flask_psycopg2(postgres: str) -> str:
    dsn = create_database(postgres, "flask_example")
    return run_example("flask_psycopg2", {**os.environ, "ASYNCSAFE_TEST_POSTGRES": dsn})


def number(pattern: str, text: str) -> int:
    """The number that stands where the pattern has its group."""
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


class TestFastAPIAndPeewee:
    def test_every_request_is_answered(self, fastapi_peewee: str) -> None:
        ordered = number(r"(\d+) ordered \(201\)", fastapi_peewee)
        refused = number(r"(\d+) ordered \(409\)", fastapi_peewee)
        paid = number(r"(\d+) paid \(200\)", fastapi_peewee)
        cancelled = number(r"(\d+) cancelled \(200\)", fastapi_peewee)

        assert ordered + refused == 200
        assert paid + cancelled == ordered
        assert number(r"(\d+) listed \(200\)", fastapi_peewee) == 200
        assert number(r"^(\d+) requests", fastapi_peewee) == 400 + ordered

    def test_the_totals_are_right(self, fastapi_peewee: str) -> None:
        paid = {
            product: number(rf"of {product}: (\d+) paid, \d+ left, {stock} in all", fastapi_peewee)
            for product, stock in {"tea": 150, "coffee": 60}.items()
        }

        assert sum(paid.values()) == number(r"(\d+) paid \(200\)", fastapi_peewee)

    def test_every_connection_is_closed(self, fastapi_peewee: str) -> None:
        assert "Every connection was closed." in fastapi_peewee

    def test_nothing_blocks_the_loop(self, fastapi_peewee: str) -> None:
        assert "nothing blocked the event loop" in fastapi_peewee


class TestFlaskAndPsycopg2:
    def test_every_request_is_answered(self, flask_psycopg2: str) -> None:
        assert "Of 200 requests at once 200 were answered with 201." in flask_psycopg2

    def test_no_order_is_lost_or_doubled(self, flask_psycopg2: str) -> None:
        assert "The database has 200 orders, of 200 customers." in flask_psycopg2

    def test_the_cap_holds(self, flask_psycopg2: str) -> None:
        assert 1 <= number(r"never saw more than (\d+) connections", flask_psycopg2) <= 5

    def test_every_connection_is_given_back(self, flask_psycopg2: str) -> None:
        assert "; 0 were not given back." in flask_psycopg2

    def test_nothing_blocks_the_loop(self, flask_psycopg2: str) -> None:
        assert "nothing blocked the event loop" in flask_psycopg2


def create_database(postgres: str, name: str) -> str:
    """One of its own: other tests have tables in the server's. Returns its DSN."""
    connection = psycopg2.connect(postgres)
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return make_dsn(postgres, dbname=name)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def fastapi_orders(request: pytest.FixtureRequest) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if request.param == "postgresql":
        dsn = create_database(request.getfixturevalue("postgres"), "fastapi_example")
        environment["DATABASE_URL"] = f"postgresql+psycopg2://?{urlencode(parse_dsn(dsn))}"
    return run_example("fastapi_orders", environment)


class TestFastAPIAndSQLAlchemy:
    @pytest.mark.parametrize("version", ["app.py", "right.py"])
    def test_every_request_is_answered(self, fastapi_orders: str, version: str) -> None:
        told = f"{version}: of 300 requests 300 were answered with 200; 80 orders are paid."
        assert told in fastapi_orders

    @pytest.mark.parametrize("endpoint", ["show_order", "list_orders", "pay_order"])
    def test_endpoints_that_stall_the_loop_are_told(
        self, fastapi_orders: str, endpoint: str
    ) -> None:
        while_serving = fastapi_orders.partition("during start-up")[0]
        assert re.search(
            rf" [mµ]?s .* examples/fastapi_orders/app\.py:\d+ async {endpoint}\(\)", while_serving
        ), fastapi_orders

    def test_start_up_is_told_apart(self, fastapi_orders: str) -> None:
        while_serving, told, during = fastapi_orders.partition("during start-up and shutdown, at ")
        assert told
        assert "create_shop()" in during
        assert "create_shop()" not in while_serving
        assert "async lifespan()" in during.partition("To mend them")[0]
        assert "async lifespan()" not in during.partition("To mend them")[2]

    def test_the_corrected_version_is_not(self, fastapi_orders: str) -> None:
        assert "fastapi_orders/right.py" not in fastapi_orders

    @pytest.mark.parametrize(("version", "status"), [("app", 3), ("right", 0)])
    def test_uvicorn_serves_it(self, version: str, status: int, tmp_path: Path) -> None:
        """By the command that stands in the example, and in the guide."""
        port = free_port()
        report = tmp_path / "report.json"
        arguments = ["--fail", "--report", report, "uvicorn", f"{version}:app"]
        arguments += ["--app-dir", "examples/fastapi_orders", "--port", str(port)]
        with subprocess.Popen(
            [sys.executable, "-m", "asyncsafe", "run", *arguments],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            stderr=subprocess.PIPE,
            text=True,
        ) as uvicorn:
            try:
                assert uvicorn.stderr is not None
                next(line for line in uvicorn.stderr if "Uvicorn running on" in line)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/orders/1") as response:
                    assert response.status == 200
            finally:
                uvicorn.send_signal(signal.SIGINT)
                uvicorn.communicate(timeout=30)
        assert uvicorn.returncode == status
        sites = json.loads(report.read_text())["sites"]
        phases = {(site["coroutine"]["function"], site["phase"]) for site in sites}
        expected = {("lifespan", "startup"), ("show_order", None), ("lifespan", "shutdown")}
        assert phases == (expected if version == "app" else set())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def django_database(postgres: str) -> str:
    return create_database(postgres, "django_example")


@pytest.fixture(scope="module")
def django_project(django_database: str) -> str:
    return run_example("django_project", {**os.environ, "DATABASE_URL": django_database})


class TestDjangoProject:
    def test_every_request_is_answered(self, django_project: str) -> None:
        assert re.search(r"Of (\d+) requests \1 were answered with 200\.", django_project)

    @pytest.mark.parametrize(
        "told",
        [
            r"QuerySet\[Order\] was iterated .* list_orders\(\)",
            r"Order\.customer was loaded .* list_orders\(\)",
            r"template 'shop/orders\.html' .* orders_page\(\)",
            r"transaction\.atomic\(\) was entered .* pay_order\(\)",
            r"order\.save\(\) was called .* pay_order\(\)",
            r"FileSystemStorage\.save\) .* upload_invoice\(\)",
            r"request\.user was loaded .* whoami\(\)",
            r"whoami\(\) .* user = await request\.auser\(\)",
        ],
    )
    def test_its_mistakes_are_told(self, django_project: str, told: str) -> None:
        assert re.search(told, django_project), django_project

    def test_the_corrected_views_are_not(self, django_project: str) -> None:
        assert "shop/views.py" in django_project
        assert "shop/right.py" not in django_project

    def test_daphne_serves_it(
        self, django_project: str, django_database: str, tmp_path: Path
    ) -> None:
        """Twisted's reactor on asyncio's loop. The other run has made the tables."""
        port = free_port()
        report = tmp_path / "report.json"
        command = ["asyncsafe", "run", "--report", report, "daphne", "-p", str(port)]
        with subprocess.Popen(
            [sys.executable, "-m", *command, "mysite.asgi:application"],
            cwd=ROOT / "examples" / "django_project",
            env={**os.environ, "DATABASE_URL": django_database},
            stderr=subprocess.PIPE,
            text=True,
        ) as daphne:
            try:
                assert daphne.stderr is not None
                next(line for line in daphne.stderr if "Listening on TCP" in line)
                for page in ("orders", "right/orders"):
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}/") as response:
                        assert response.status == 200
            finally:
                daphne.send_signal(signal.SIGINT)
                daphne.communicate(timeout=30)
        sites = json.loads(report.read_text())["sites"]
        files = {Path(site["call_site"]["file"]).name for site in sites}
        assert files == {"views.py"}
