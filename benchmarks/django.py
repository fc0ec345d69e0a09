"""What Django's database layer costs with the guards in it, where no event loop runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncsafe

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

OURS = "asyncsafe.install()"
BARE = "Django alone"

#: What is asked of each: its statement, and its cost with asyncsafe of Django's alone.
OPERATIONS = {
    "Model.objects.get(pk=1)": 1.02,
    "with connection.cursor() as c: c.execute('select 1'); c.fetchone()": 1.05,
    "with atomic(): pass": 1.05,
}


def measure(quick: bool) -> Iterator[Table]:
    """One table for each operation."""
    rounds, processes = (30, 2) if quick else (60, 5)
    values: Values = {}
    if not missing("django"):
        values = in_processes(time_django, rounds, processes=processes)
    for operation, at_most in OPERATIONS.items():
        measured = {c: values[f"{c}: {operation}"] for c in (BARE, OURS) if values}
        yield Table(
            f"Django on sqlite in memory, off the loop: {operation}",
            "µs",
            measured,
            {BARE: BARE, OURS: BARE},
            [Ratio("of Django alone", at_most={OURS: at_most})],
        )


def time_django(rounds: int) -> Values:
    """Both on the same connection, in turns: a process of its own is faster or slower by more."""
    import asyncio  # noqa: F401  (without it the guards have nothing to ask)

    names = _names()
    cases = []
    for operation in OPERATIONS:
        cases += [
            Case(f"{BARE}: {operation}", operation, names),
            Case(f"{OURS}: {operation}", operation, names, _installed),
        ]
    for case in cases:
        # Where a class has changed, CPython specializes its calls anew after some 50 of them: in
        # this time there are enough before those that count.
        case.duration = 0.05
    return take_turns(cases, rounds)


def _names() -> dict[str, Any]:
    """A model with one row in a database, and what the statements use."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()
    from django.db import connection, models
    from django.db.transaction import atomic

    class Order(models.Model):
        customer = models.CharField(max_length=20)

        class Meta:
            app_label = "benchmarks"

    with connection.schema_editor() as editor:
        editor.create_model(Order)
    Order.objects.create(customer="Ada")
    return {"Model": Order, "connection": connection, "atomic": atomic}


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install()
    try:
        yield
    finally:
        asyncsafe.uninstall()
