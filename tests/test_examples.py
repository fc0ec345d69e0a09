"""The examples run, and what they print is right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

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
    return run_example("flask_psycopg2", {**os.environ, "ASYNCSAFE_TEST_POSTGRES": postgres})


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
