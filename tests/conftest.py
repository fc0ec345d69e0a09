"""What every test needs: a clean slate before and after."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import asyncsafe
from asyncsafe import sharing

# pony takes a program without a file, as pytest-xdist's workers are, for an interactive session, in
# which it wraps its functions.
vars(sys.modules["__main__"]).setdefault("__file__", __file__)

pytest_plugins = ["tests.fix_mysql", "tests.fix_postgres"]


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No environment, no configuration, no installed guard, nothing recorded."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)
    monkeypatch.delenv("ASYNCSAFE_MODE", raising=False)
    monkeypatch.delenv("ASYNCSAFE_STARTUP", raising=False)
    asyncsafe.configure()
    asyncsafe.violations.clear()
    # sqlite3's connections are known by their address, where an earlier test's may have stood.
    sharing._begun.clear()
    yield
    asyncsafe.uninstall()
    asyncsafe.configure()
    asyncsafe.violations.clear()


@pytest.fixture
def guarded() -> Iterator[None]:
    """Every supported library is guarded, in mode "raise"."""
    asyncsafe.install()
    yield
    asyncsafe.uninstall()


@pytest.fixture
def heard() -> Iterator[list[asyncsafe.Violation]]:
    """Every violation, in the order in which it is told."""
    told: list[Any] = []
    unsubscribe = asyncsafe.violations.subscribe(told.append)
    yield told
    unsubscribe()


def missing(what: str, how: str) -> None:
    """Skip for want of a server; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing in CI: {how}")
    pytest.skip(f"{what} is missing: {how}")
