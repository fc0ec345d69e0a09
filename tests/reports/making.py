"""Reports for the tests, as `asyncsafe run --report` writes them: read back, with their schema kept."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema

import asyncsafe
from asyncsafe.durations import Durations

SCHEMA = json.loads(
    (Path(asyncsafe.__file__).parent / "reports" / "report.schema.json").read_text()
)

#: Ends whatever it is put into, and does something where it is taken for markup or a command.
HOSTILE = '</script><img src=x onerror="hacked=1"><!--&amp;[a](http:x)\'"`${1}{{1}}{%\n::error::%'


def place(file: str, line: int, function: str, asynchronous: bool = False) -> dict[str, Any]:
    return {"file": file, "line": line, "function": function, "async": asynchronous}


def site(number: int = 1, durations: list[float] | None = None, **changed: Any) -> dict[str, Any]:
    took = [0.002, 0.004] if durations is None else durations
    at = place(f"/app/orders/queries_{number}.py", number, f"find_{number}")
    under = place("/app/orders/views.py", 42, "list_orders", True)
    quantiles = Durations((seconds, 1) for seconds in took)
    known: dict[str, Any] = {
        "operation": "sqlite3.Cursor.execute",
        "subject": None,
        "library": "sqlite3",
        "statement": f"SELECT total FROM orders_{number}",
        "loop": "asyncio",
        "loop_type": None,
        "task": "Task-2",
        "importing": None,
        "phase": None,
        "reason": None,
        "begun_by": None,
        "begun_at": None,
        "fix": f"await asyncsafe.database_sync_to_async(find_{number})(...)",
        "call_site": at,
        "coroutine": under,
        "stack": [at, under],
        "calls": len(took) or 1,
        "outcomes": {"raised": 0, "warned": 0, "recorded": len(took) or 1, "allowed": 0},
        "seconds": sum(took),
        "worst": max(took, default=0.0),
        "p50": quantiles.quantile(0.50),
        "p95": quantiles.quantile(0.95),
        "p99": quantiles.quantile(0.99),
        "durations": [[seconds, count] for seconds, count in quantiles],
        "waiting": {"calls": len(took), "total": 3 * len(took), "most": 5 if took else 0},
    }
    return {**known, **changed}


def refused(number: int) -> dict[str, Any]:
    outcomes = {"raised": 1, "warned": 0, "recorded": 0, "allowed": 0}
    return site(number, [], outcomes=outcomes)


def allowed(number: int, reason: str) -> dict[str, Any]:
    outcomes = {"raised": 0, "warned": 0, "recorded": 0, "allowed": 2}
    return site(number, outcomes=outcomes, reason=reason)


def sharing(number: int) -> dict[str, Any]:
    begun = place("/app/orders/views.py", 7, "begin", True)
    return site(number, [], begun_by="task 'Task-9'", begun_at=begun)


def hostile(number: int) -> dict[str, Any]:
    at = place(f"/app/{HOSTILE}.py", 3, f"find{HOSTILE}")
    under = place("/app/views.py", 5, HOSTILE, True)
    return site(
        number,
        operation=f"lib.{HOSTILE}",
        subject=HOSTILE,
        statement=HOSTILE,
        task=HOSTILE,
        reason=HOSTILE,
        fix=HOSTILE,
        call_site=at,
        coroutine=under,
        stack=[at, under],
    )


def report(*sites: dict[str, Any], **changed: Any) -> dict[str, Any]:
    stalls = [
        {"start": 1_790_000_000.5 + number, "seconds": each["worst"], "waiting": 5, "site": number}
        for number, each in enumerate(sites[:1000])
        if each["seconds"]
    ]
    made = {
        "format": 1,
        "asyncsafe": asyncsafe.__version__,
        "command": ["app.py", "--port", "1"],
        "mode": "record",
        "exit_status": 0,
        "processes": [{"pid": 7, "argv": ["app.py"], "python": "3.12.1"}],
        "dropped": 0,
        "sites": list(sites),
        "stalls": stalls,
        **changed,
    }
    if len(sites) < 100:
        jsonschema.validate(made, SCHEMA)
    return made


def large(count: int) -> dict[str, Any]:
    """As many call sites, with distributions of their own and stacks that branch."""
    chance = random.Random(count)
    sites = []
    for number in range(count):
        middle = chance.lognormvariate(-7, 1.5)
        took = [middle * chance.lognormvariate(0, 0.5) for _ in range(chance.randint(1, 30))]
        at = place(f"/app/part_{number % 40}/queries.py", number, f"find_{number}")
        between = [
            place(f"/app/part_{number % 40}/service.py", chance.randint(1, 400), f"load_{step}")
            for step in range(chance.randint(0, 5))
        ]
        under = place(f"/app/part_{number % 40}/views.py", number % 7, f"view_{number % 7}", True)
        sites.append(site(number, took, call_site=at, coroutine=under, stack=[at, *between, under]))
    return report(*sites)


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path
