"""The report as workflow commands of GitHub Actions, which it shows beside the lines of code.

They are described in "Workflow commands for GitHub Actions" (docs.github.com); how they are
escaped stands in actions/toolkit, packages/core/src/command.ts.
"""

from __future__ import annotations

from ..messages import function
from ..violation import Frame
from .wording import headline, level, measured, relative

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
_IN_MESSAGES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_IN_PROPERTIES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def render(report: dict[str, Any], root: str) -> str:
    """One line for each call site, worst first: GitHub shows the first ten of each level in a step."""
    return "".join(_annotation(site, root) + "\n" for site in report["sites"])


def _annotation(site: dict[str, Any], root: str) -> str:
    at, under = site["call_site"], site["coroutine"]
    properties = {
        "file": relative(at["file"], root) or at["file"],
        "line": str(at["line"]),
        "title": headline(site),
    }
    lines = [f"{measured(site)[:1].upper()}{measured(site)[1:]}."]
    if site["statement"]:
        lines.append(site["statement"])
    if under and under != at:
        frame = Frame(under["file"], under["line"], under["function"], under["async"])
        where = relative(under["file"], root) or under["file"]
        lines.append(f"Under {function(frame)}, {where}:{under['line']}.")
    if site["reason"]:
        lines.append(f"Allowed: {site['reason']}")
    lines.append(f"Write instead: {site['fix']}")
    told = ",".join(
        f"{name}={value.translate(_IN_PROPERTIES)}" for name, value in properties.items()
    )
    return f"::{_COMMANDS[level(site)]} {told}::" + "\n".join(lines).translate(_IN_MESSAGES)
