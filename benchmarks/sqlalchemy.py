"""What SQLAlchemy costs with every guard installed, where no event loop runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncsafe

from .timing import Case, Ratio, Table, Values, in_processes, missing, take_turns

BARE = "bare SQLAlchemy"
OURS = "asyncsafe.install()"

#: What is timed, and with it the names that it needs: see `time_sqlalchemy`.
STATEMENTS = {
    "connection.execute(query).fetchone()": "connection.execute(query).fetchone()",
    "with engine.connect() as c: c.execute(query).fetchone()": (
        "with engine.connect() as c:\n    c.execute(query).fetchone()"
    ),
    "with Session(engine) as s: s.execute(query).fetchone()": (
        "with Session(engine) as s:\n    s.execute(query).fetchone()"
    ),
}


def measure(quick: bool) -> Iterator[Table]:
    """One table for each way of asking."""
    rounds, processes = (40, 2) if quick else (150, 5)
    for title in STATEMENTS:
        values: Values = {}
        if not missing("sqlalchemy"):
            values = in_processes(time_sqlalchemy, title, rounds, processes=processes)
        yield Table(
            f"SQLAlchemy on sqlite in memory, off the loop, select 1: {title}",
            "µs",
            values,
            {BARE: BARE, OURS: BARE},
            [Ratio("of bare", at_most={OURS: 1.08})],
        )


def time_sqlalchemy(title: str, rounds: int) -> Values:
    import asyncio  # noqa: F401  (without it the guards have nothing to ask)

    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import StaticPool

    engine = create_engine("sqlite://", poolclass=StaticPool)
    connection = engine.connect()
    names = {
        "engine": engine,
        "connection": connection,
        "Session": Session,
        "query": text("select 1"),
    }
    cases = [
        Case(BARE, STATEMENTS[title], names),
        Case(OURS, STATEMENTS[title], names, _installed),
    ]
    for case in cases:
        case.duration = 0.01
    return take_turns(cases, rounds)


@contextmanager
def _installed() -> Iterator[None]:
    asyncsafe.install()
    try:
        yield
    finally:
        asyncsafe.uninstall()
