"""What a guarded method costs where no event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncsafe

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

BARE = "bare method"
INLINED = "the check inlined by hand"
OURS = "asyncsafe.async_unsafe"
VARIADIC = "a guard with *args, **kwargs"
DJANGO = "django.utils.asyncio.async_unsafe"
WRAPT = "wrapt.FunctionWrapper with a guard"

CALLS = {
    "positional": "orders.find0(1, 2)",
    "by keyword": "orders.find0(1, limit=2)",
    # A program guards more than one function of one signature.
    "eight functions in turn": "; ".join(f"orders.find{i}(1, 2)" for i in range(8)),
}


def measure(quick: bool) -> Iterator[Table]:
    """One table for each way to call."""
    rounds, processes = (100, 2) if quick else (400, 5)
    for kind, call in CALLS.items():
        yield Table(
            f"A guarded method off the loop, {kind}: {call.partition(';')[0]}",
            "ns",
            in_processes(time_call, call, rounds, processes=processes),
            dict.fromkeys([BARE, INLINED, OURS, VARIADIC, DJANGO, WRAPT], BARE),
            [
                Ratio("of what Django adds", DJANGO, {OURS: 0.16}),
                Ratio("of the inlined check", INLINED, {OURS: 2.3}),
            ],
        )


def time_call(call: str, rounds: int) -> Values:
    guards: dict[str, Any] = {BARE: lambda method: method, INLINED: None, VARIADIC: _variadic}
    guards[OURS] = asyncsafe.async_unsafe
    if not missing("django"):
        from django.utils.asyncio import async_unsafe

        guards[DJANGO] = async_unsafe
    if not missing("wrapt"):
        guards[WRAPT] = _wrapt
    return take_turns(
        [
            Case(name, call, {"orders": _orders(guard)}, calls=call.count(";") + 1)
            for name, guard in guards.items()
        ],
        rounds,
    )


_METHOD = """\
def find(self, number, limit=None):
    pass
"""
_INLINED = """\
def find(self, number, limit=None):
    if get_running_loop() is not None:
        refuse()
"""


def _orders(guard: Any) -> object:
    """An object whose methods find0, find1, ... share nothing, not even their code."""
    methods = {}
    for i in range(8):
        names: dict[str, Any] = {"get_running_loop": asyncio._get_running_loop}
        exec(_METHOD if guard else _INLINED, names)
        methods[f"find{i}"] = guard(names["find"]) if guard else names["find"]
    return type("Orders", (), methods)()


def _variadic(function: Any) -> Any:
    get_running_loop = asyncio._get_running_loop

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if get_running_loop() is not None:
            raise RuntimeError("on the loop")
        return function(*args, **kwargs)

    return guarded


def _wrapt(function: Any) -> Any:
    import wrapt

    get_running_loop = asyncio._get_running_loop

    def guard(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if get_running_loop() is not None:
            raise RuntimeError("on the loop")
        return wrapped(*args, **kwargs)

    return wrapt.FunctionWrapper(function, guard)
