"""Whose code is on the stack, through every greenlet that leads to a call."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import sysconfig
import traceback
import warnings
from pathlib import Path

import greenlet
import pytest

import asyncsafe
from asyncsafe import stacks


def functions_on_the_stack() -> list[str]:
    return [frame.f_code.co_name for frame in stacks.call_chain(sys._getframe(1))]


def python_stack() -> list[str]:
    return [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._getframe(1))]


def test_the_chain_leads_through_the_greenlets_that_are_parents() -> None:
    def innermost() -> list[str]:
        return functions_on_the_stack()

    def middle() -> list[str]:
        return greenlet.greenlet(innermost).switch()

    def outermost() -> list[str]:
        return greenlet.greenlet(middle).switch()

    names = outermost()

    assert names == ["innermost", "middle", "outermost", *python_stack()]


def test_the_chain_leaves_out_greenlets_beside_it() -> None:
    plain = greenlet.getcurrent()
    seen: list[list[str]] = []

    def beside() -> None:
        plain.switch()

    def asking() -> None:
        seen.append(functions_on_the_stack())

    waiting = greenlet.greenlet(beside)
    waiting.switch()
    greenlet.greenlet(asking).switch()
    waiting.switch()

    assert seen[0][0] == "asking"
    assert "beside" not in seen[0]


def test_the_chain_without_greenlet_is_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "greenlet")

    assert functions_on_the_stack() == python_stack()


@pytest.mark.parametrize(
    ("filename", "is_user"),
    [
        (__file__, True),
        ("<stdin>", True),
        ("<ipython-input-1-abc>", True),
        (str(Path(asyncsafe.__file__).parent.parent / "asyncsafe_shop.py"), True),
        (asyncsafe.__file__, False),
        (stacks.WRAPPER_FILE, False),
        (stacks.COUNTED_WRAPPER_FILE, False),
        ("<sqlalchemy generated _go() wrapper for sqlalchemy.orm.session.Session>", False),
        (os.__file__, False),
        (contextlib.__file__, False),
        (pytest.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("/usr/lib/python3/dist-packages/psycopg2/__init__.py", False),
        (os.path.join(sysconfig.get_path("scripts"), "uvicorn"), False),
    ],
)
def test_whose_a_file_is(filename: str, is_user: bool) -> None:
    assert (stacks.whose(filename.replace("/", os.sep)) == "user") is is_user


SITE_PACKAGES = os.path.dirname(os.path.dirname(pytest.__file__))


@pytest.mark.parametrize(
    ("filename", "owner"),
    [
        (os.path.join(SITE_PACKAGES, "jupyterhub", "orm.py"), "installed"),
        (os.path.join(SITE_PACKAGES, "typing_extensions.py"), "installed"),
        (os.path.join(SITE_PACKAGES, "psycopg2", "extras.py"), "library"),
        (os.path.join(SITE_PACKAGES, "MySQLdb", "cursors.py"), "library"),
        ("<psycopg2 generated wrapper for execute>", "library"),
        (contextlib.__file__, "library"),
        (__file__, "user"),
    ],
)
def test_a_guarded_library_is_no_program(filename: str, owner: str) -> None:
    asyncsafe.install()
    asyncsafe.uninstall()

    assert stacks.whose(filename) == owner


def test_a_warning_in_a_guarded_function_is_blamed_on_its_caller() -> None:
    @asyncsafe.async_unsafe
    def old() -> None:
        warnings.warn("old is old", DeprecationWarning, stacklevel=2)

    def caller() -> None:
        old()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        caller()

    (warning,) = caught
    assert warning.filename == __file__
    assert linecache.getline(warning.filename, warning.lineno).strip() == "old()"
