"""docs/guides/hooks.md: its recipes, run with the SDKs that they are for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .running import python

PAGE = (Path(__file__).parent.parent / "docs" / "guides" / "hooks.md").read_text()

#: What violates: a call site three times, others once: one is allowed, one refused.
VIOLATIONS = """
import asyncio, json, sqlite3
import asyncsafe

asyncsafe.install("sqlite3")
asyncsafe.configure(mode="record")
db = sqlite3.connect(":memory:")

def find_orders():
    return db.execute("SELECT 'a', ?", ("secret",))

async def list_orders():
    find_orders()

async def main():
    for _ in range(3):
        await list_orders()
    db.execute("SELECT 'b'")
    with asyncsafe.allow("a test"):
        db.execute("SELECT 'c'")
    try:
        with asyncsafe.forbid():
            db.execute("SELECT 'd'")
    except asyncsafe.SynchronousOnlyOperation:
        pass
"""


def recipe(heading: str) -> str:
    """The code of a section of the page."""
    _, _, rest = PAGE.partition(f"\n## {heading}\n")
    section = re.split(r"^## ", rest, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert blocks
    return "\n".join(blocks)


def run(tmp_path: Path, before: str, heading: str, after: str) -> Any:
    """Violate while a recipe is in use. Returns what `after` prints, as JSON."""
    (tmp_path / "app.py").write_text(VIOLATIONS)
    program = "import asyncsafe\n" + before + recipe(heading) + "\nfrom app import *\n" + after
    printed = python(program, tmp_path, PYTHONPATH=str(tmp_path)).stdout
    assert "secret" not in printed
    return json.loads(printed)


def test_logging(tmp_path: Path) -> None:
    before = """
import logging

class Records(logging.Handler):
    records = []
    def emit(self, record):
        self.records.append(record)

logging.basicConfig(handlers=[Records()], level=logging.INFO)
"""
    after = """
asyncio.run(main())
names = ("operation", "outcome", "call_site_function", "task", "statement", "skipped")
print(json.dumps([
    [record.name, record.levelname, record.getMessage(), [getattr(record, n, None) for n in names]]
    for record in Records.records if record.name != "asyncio"
]))
"""
    told = run(tmp_path, before, "Logging", after)
    ours = [entry for entry in told if entry[0] == "app.event_loop"]
    assert [entry[3][4] for entry in ours] == [
        "SELECT 'a', ?", "SELECT 'b'", "SELECT 'c'", "SELECT 'd'"
    ]  # fmt: skip
    assert ours[0][3] == [
        "sqlite3.Connection.execute",
        "recorded",
        "find_orders",
        "Task-1",
        "SELECT 'a', ?",
        0,
    ]
    assert ours[0][2].startswith("sqlite3.Connection.execute() blocked the event loop at ")
    by_itself = [entry[1] for entry in told if entry[0] == "asyncsafe"]
    assert by_itself == ["INFO", "INFO", "INFO", "WARNING"]


def test_sentry(tmp_path: Path) -> None:
    before = """
import sentry_sdk
from sentry_sdk.transport import Transport

class InMemory(Transport):
    events = []
    def capture_envelope(self, envelope):
        self.events.append(envelope.get_event())

sentry_sdk.init(dsn="https://key@sentry.invalid/1", transport=InMemory, default_integrations=False)
"""
    after = """
async def request():
    await main()
    sentry_sdk.capture_exception(LookupError("an error of the same request"))

asyncio.run(request())
sentry_sdk.flush()
print(json.dumps(InMemory.events))
"""
    *events, error = run(tmp_path, before, "Sentry", after)
    assert [event["tags"]["asyncsafe.outcome"] for event in events] == [
        "recorded",
        "recorded",
        "raised",
    ]
    first, _, refused = events
    assert first["level"] == "warning"
    assert first["fingerprint"][:2] == ["asyncsafe", "sqlite3.Connection.execute"]
    assert first["fingerprint"][3] == "find_orders"
    (exception,) = first["exception"]["values"]
    assert [frame["function"] for frame in exception["stacktrace"]["frames"]][-3:] == [
        "main",
        "list_orders",
        "find_orders",
    ]
    assert "SELECT 'a', ?" in exception["value"]
    assert first["contexts"]["asyncsafe"]["blocked_seconds"] > 0
    assert refused["contexts"]["asyncsafe"]["blocked_seconds"] is None
    assert len({tuple(event["fingerprint"]) for event in events}) == 2, "by function, not by line"
    crumbs = [crumb["data"]["statement"] for crumb in error["breadcrumbs"]["values"]]
    assert crumbs == [*["SELECT 'a', ?"] * 3, "SELECT 'b'", "SELECT 'c'", "SELECT 'd'"]


TELEMETRY = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
"""

TRACED = """
async def traced():
    with trace.get_tracer("app").start_as_current_span("GET /orders"):
        await main()

asyncio.run(traced())
asyncio.run(traced())
"""


def test_spans_of_opentelemetry(tmp_path: Path) -> None:
    after = (
        TRACED
        + """
(first, second) = spans.get_finished_spans()
print(json.dumps([[event.name, dict(event.attributes)] for event in first.events]))
"""
    )
    events = run(tmp_path, TELEMETRY, "OpenTelemetry", after)
    assert [name for name, _ in events] == ["asyncsafe.violation"] * 6
    attributes = events[0][1]
    assert attributes.pop("asyncsafe.blocked.duration") > 0
    assert attributes == {
        "asyncsafe.operation": "sqlite3.Connection.execute",
        "asyncsafe.outcome": "recorded",
        "code.file.path": str(tmp_path / "app.py"),
        "code.function.name": "find_orders",
        "code.line.number": 10,
        "db.query.text": "SELECT 'a', ?",
        "db.system.name": "sqlite",
    }
    assert "asyncsafe.blocked.duration" not in events[-1][1]


def test_metrics_of_opentelemetry(tmp_path: Path) -> None:
    after = TRACED + "print(reader.get_metrics_data().to_json())\n"
    told = run(tmp_path, TELEMETRY, "OpenTelemetry", after)
    found = {
        metric["name"]: metric
        for resource in told["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
    }
    calls = found["asyncsafe.violations"]["data"]
    assert calls["is_monotonic"]
    counted = {
        (point["attributes"]["code.line.number"], point["attributes"]["asyncsafe.outcome"]): point[
            "value"
        ]
        for point in calls["data_points"]
    }
    assert sorted(counted.values()) == [2, 2, 2, 6]
    assert counted[10, "recorded"] == 6
    seconds = sum(
        point["value"] for point in found["asyncsafe.blocked.time"]["data"]["data_points"]
    )
    (histogram,) = found["asyncsafe.blocked.duration"]["data"]["data_points"]
    assert histogram["sum"] == pytest.approx(seconds)
    assert histogram["explicit_bounds"] == [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5]
    assert histogram["attributes"] == {"asyncsafe.operation": "sqlite3.Connection.execute"}
