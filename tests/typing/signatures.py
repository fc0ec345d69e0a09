"""What is decorated keeps its type. Checked by mypy and pyright, never run: see test_typing.py.

Lines that end in `# error` must be errors, and no others may.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import assert_type

import asyncsafe
from asyncsafe import allow, async_unsafe, forbid

# Functions -------------------------------------------------------------------------------------


@async_unsafe
def bare(a: int, /, b: str = "", *, c: bytes = b"") -> float:
    return 1.0


@async_unsafe("In a thread, please.")
def with_message(a: int, *rest: str, **more: bytes) -> list[int]:
    return [a]


def takes(function: Callable[[int, str], float]) -> None: ...


assert_type(bare(1), float)
assert_type(bare(1, b="x", c=b"x"), float)
assert_type(with_message(1, "a", "b", c=b""), list[int])
assert_type(async_unsafe(len)([1]), int)
takes(bare)

bare()  # error
bare("1")  # error
bare(a=1)  # error
bare(1, c="x")  # error
bare(1, unknown=1)  # error
with_message("1")  # error
with_message(1, 2)  # error
with_message(1, c="x")  # error
takes(with_message)  # error
wrong: str = bare(1)  # error
async_unsafe()  # error


# Methods ---------------------------------------------------------------------------------------


class Repository:
    @async_unsafe
    def method(self, a: int) -> str:
        return str(a)

    @async_unsafe
    @classmethod
    def decorated_classmethod(cls, a: int) -> Repository:
        return cls()

    @classmethod
    @async_unsafe
    def classmethod_of_decorated(cls, a: int) -> Repository:
        return cls()

    @async_unsafe
    @staticmethod
    def decorated_staticmethod(a: int) -> str:
        return str(a)

    @staticmethod
    @async_unsafe("In a thread, please.")
    def staticmethod_of_decorated(a: int) -> str:
        return str(a)

    @property
    @async_unsafe
    def total(self) -> int:
        return 1

    @functools.cached_property
    @async_unsafe
    def cached(self) -> int:
        return 1


repository = Repository()
assert_type(repository.method(1), str)
assert_type(Repository.method(repository, a=1), str)
assert_type(Repository.decorated_classmethod(1), Repository)
assert_type(Repository.classmethod_of_decorated(a=1), Repository)
assert_type(Repository.decorated_staticmethod(1), str)
assert_type(repository.staticmethod_of_decorated(1), str)
assert_type(repository.total, int)
assert_type(repository.cached, int)

repository.method("1")  # error
repository.method()  # error
Repository.decorated_classmethod("1")  # error
Repository.classmethod_of_decorated("1")  # error
Repository.decorated_staticmethod("1")  # error
Repository.staticmethod_of_decorated("1")  # error
repository.total = 2  # error
repository.total.append(1)  # error


# Generators and context managers -----------------------------------------------------------------


@async_unsafe
def rows(count: int) -> Iterator[str]:
    yield str(count)


@async_unsafe
@contextmanager
def transaction(name: str) -> Generator[int, None, None]:
    yield 1


@contextmanager
@async_unsafe("In a thread, please.")
def other_transaction(name: str) -> Generator[int, None, None]:
    yield 1


assert_type(rows(3), Iterator[str])
for row in rows(3):
    assert_type(row, str)
with transaction("a") as number, other_transaction(name="b") as other_number:
    assert_type(number, int)
    assert_type(other_number, int)

rows("3")  # error
transaction(1)  # error
other_transaction(1)  # error


# Classes -----------------------------------------------------------------------------------------


@async_unsafe
class Store:
    def __init__(self, name: str) -> None:
        self.name = name

    def save(self, a: int) -> str:
        return self.name


@async_unsafe("In a thread, please.")
class Special(Store):
    pass


assert_type(Store("a"), Store)
assert_type(Special("a").save(1), str)
store: type[Store] = Special

Store(1)  # error
Store("a").save("1")  # error
Special("a").unknown()  # error


# allow() and forbid() ----------------------------------------------------------------------------


@allow("a lookup table")
def allowed(a: int) -> str:
    return str(a)


@allow()
async def allowed_coroutine(a: int) -> str:
    return str(a)


@forbid()
def forbidden(a: int) -> str:
    return str(a)


@forbid()
async def forbidden_coroutine(a: int) -> str:
    return str(a)


def coroutine_of(made: Coroutine[object, object, str]) -> None: ...


assert_type(allowed(1), str)
assert_type(forbidden(a=1), str)
coroutine_of(allowed_coroutine(1))
coroutine_of(forbidden_coroutine(1))


async def scopes() -> None:
    assert_type(await allowed_coroutine(1), str)
    assert_type(await forbidden_coroutine(1), str)
    with allow("why"), forbid() as nothing:
        assert_type(nothing, None)
    async with allow(), forbid() as nothing:
        assert_type(nothing, None)


def after_a_scope() -> int:
    """A scope swallows no exception: this function needs no second return."""
    with allow():
        return 1


allowed("1")  # error
allowed_coroutine("1")  # error
forbidden("1")  # error
forbidden_coroutine("1")  # error
allow(1)  # error
forbid("why")  # error
allow()(1)  # error


# The rest ----------------------------------------------------------------------------------------

asyncsafe.configure(mode="record")
asyncsafe.configure(mode=None)
asyncsafe.check("orders.find")
assert_type(asyncsafe.check(), None)
for site in asyncsafe.violations:
    assert_type(site, asyncsafe.CallSite)
    assert_type(site.violation.call_site.lineno, int)


def heard(violation: asyncsafe.Violation) -> None: ...


assert_type(asyncsafe.violations.subscribe(heard), Callable[[], None])

asyncsafe.configure(mode="loud")  # error
asyncsafe.configure("record")  # error
asyncsafe.check(1)  # error
asyncsafe.violations.subscribe(1)  # error
asyncsafe.unsafe_async  # error
