"""The report as SARIF 2.1.0, which code scanning shows at the lines of code."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from urllib.parse import quote

from .. import __version__
from ..messages import function
from ..violation import Frame
from .wording import headline, level, measured, relative

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
#: What paths are relative to, by the name that is usual. Where that folder is, whoever reads it
#: knows: the report may have been written on another machine.
_ROOT = "%SRCROOT%"

_RULES: dict[str, dict[str, Any]] = {
    "blocking-call": {
        "name": "SynchronousCallOnEventLoop",
        "level": "warning",
        "short": "A synchronous call blocks the event loop",
        "full": "A synchronous database call was made by a running event loop. No other task runs "
        "until it returns: requests wait, timeouts and heartbeats are late.",
        "advice": "Run the call in a thread: `await asyncsafe.database_sync_to_async(function)(...)`, "
        "or use the asynchronous interface of the library, where the message names one. A call "
        'that may block is marked by `with asyncsafe.allow("reason"):`.',
        "tags": ["asyncio", "performance", "reliability"],
    },
    "shared-transaction": {
        "name": "ConnectionSharedDuringTransaction",
        "level": "error",
        "short": "Two tasks share a connection during a transaction",
        "full": "A task used a connection on which another task has begun a transaction. What one "
        "commits or rolls back, it does with the other's work.",
        "advice": "Give each task its own connection, by `asyncsafe.ConnectionHandler` or a pool. "
        "Where they are meant to share it: `asyncsafe.exempt(connection)`.",
        "tags": ["asyncio", "correctness", "reliability"],
    },
}


def render(report: dict[str, Any], root: str) -> str:
    """The report as SARIF. Paths below `root` are written relative to it."""
    fingerprints: dict[str, int] = {}
    results = [_result(site, root, fingerprints) for site in report["sites"]]
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "asyncsafe",
                "semanticVersion": __version__,
                "rules": [_rule(name, **told) for name, told in _RULES.items()],
            }
        },
        "automationDetails": {"id": "asyncsafe/"},
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The root of the repository."}}},
        "columnKind": "utf16CodeUnits",
        "results": results,
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(
    identifier: str, name: str, level: str, short: str, full: str, advice: str, tags: list[str]
) -> dict[str, Any]:
    return {
        "id": identifier,
        "name": name,
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": advice.replace("`", ""), "markdown": advice},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": tags, "precision": "very-high", "problem.severity": level},
    }


def _result(site: dict[str, Any], root: str, fingerprints: dict[str, int]) -> dict[str, Any]:
    rule = "shared-transaction" if site["begun_at"] else "blocking-call"
    at, under = site["call_site"], site["coroutine"]
    related = []
    if site["begun_at"]:
        related.append((site["begun_at"], "the transaction was begun here"))
    if under and under != at:
        related.append((under, f"called under {_function(under)}"))
    result = {
        "ruleId": rule,
        "ruleIndex": list(_RULES).index(rule),
        "level": level(site),
        "message": {"text": _message(site)},
        "locations": [_location(at, root)],
        "partialFingerprints": {"asyncsafeSite/v1": _fingerprint(site, root, fingerprints)},
        "occurrenceCount": site["calls"],
        "properties": {
            name: site[name]
            for name in ("operation", "statement", "seconds", "worst", "p50", "p95", "p99")
        }
        | {"outcomes": site["outcomes"], "waiting": site["waiting"]},
    }
    if related:
        result["relatedLocations"] = [
            {"id": number, **_location(where, root, text)}
            for number, (where, text) in enumerate(related, 1)
        ]
    if len(site["stack"]) > 1:
        steps = [
            {"location": _location(where, root, _function(where))}
            for where in reversed(site["stack"])
        ]
        result["codeFlows"] = [{"threadFlows": [{"locations": steps}]}]
    if site["outcomes"]["allowed"] == site["calls"]:
        reason = site["reason"] or "allowed"
        result["suppressions"] = [{"kind": "inSource", "justification": _plain(reason)}]
    return result


def _message(site: dict[str, Any]) -> str:
    parts = [f"{headline(site)}: {measured(site)}."]
    if site["statement"]:
        parts.append(f"Statement: {site['statement']}")
    parts.append(f"Write instead: {site['fix']}")
    return _plain("\n".join(parts))


def _plain(text: str) -> str:
    """SARIF takes "[text](target)" for a link (3.11.6); none of ours is meant to be one."""
    return text.replace("](", "]\u200b(")


def _location(where: dict[str, Any], root: str, message: str | None = None) -> dict[str, Any]:
    path = relative(where["file"], root)
    artifact: dict[str, Any]
    if path is not None:
        artifact = {"uri": _quote(path), "uriBaseId": _ROOT}
    elif os.path.isabs(where["file"]):
        artifact = {"uri": Path(where["file"]).as_uri()}
    else:
        artifact = {"uri": _quote(where["file"])}  # "<string>"
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": artifact,
            "region": {"startLine": max(1, where["line"])},
        },
        "logicalLocations": [{"fullyQualifiedName": where["function"], "kind": "function"}],
    }
    return location | ({"message": {"text": _plain(message)}} if message else {})


def _quote(path: str) -> str:
    """Byte for byte: file names needn't be UTF-8."""
    return quote(os.fsencode(path))


def _function(where: dict[str, Any]) -> str:
    return function(Frame(where["file"], where["line"], where["function"], where["async"]))


def _fingerprint(site: dict[str, Any], root: str, seen: dict[str, int]) -> str:
    """The same as long as the code is, wherever its lines move; with a number where several are alike."""
    names = [site["operation"], site["subject"]]
    for where in (site["call_site"], site["coroutine"], site["begun_at"]):
        if where is not None:
            names += [relative(where["file"], root) or where["file"], where["function"]]
    fingerprint = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]
    seen[fingerprint] = seen.get(fingerprint, 0) + 1
    return f"{fingerprint}:{seen[fingerprint]}"
