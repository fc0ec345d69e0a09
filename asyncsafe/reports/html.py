"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from .. import __version__
from ..durations import RELATIVE_ERROR
from ..messages import function, shorten
from ..violation import Frame
from .formats import require
from .wording import all_refused, headline, level, relative, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("vendor/uplot.js", "vendor/flamegraph.js", "page.js")
_STYLES = ("vendor/uplot.css", "page.css")

#: What the page has of each call site as the report has it.
_COPIED = (
    *("operation", "subject", "statement", "task", "reason", "begun_by", "fix", "calls"),
    *("seconds", "worst", "p50", "p95", "p99", "durations", "waiting", "outcomes"),
)


def render(report: dict[str, Any], root: str) -> str:
    """The page. Paths below `root` are shown relative to it. Raises MissingExtra without jinja2."""
    require("html")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [(_PAGE / name).read_text("utf-8") for name in _SCRIPTS]
    styles = [(_PAGE / name).read_text("utf-8") for name in _STYLES]
    return environment.get_template("page.html").render(
        version=__version__,
        policy="; ".join(
            [
                "default-src 'none'",
                "script-src " + " ".join(map(_hash, scripts)),
                "style-src " + " ".join(map(_hash, styles)),
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        scripts=scripts,
        styles=styles,
        data=_for_script(_data(report, root)),
        command=" ".join(report["command"] or []),
        mode=report["mode"],
        processes=len(report["processes"]),
        dropped=report["dropped"],
        shared=sum(site["begun_at"] is not None for site in report["sites"]),
        summary=_summary(report),
        error=f"{RELATIVE_ERROR:.1%}",
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _for_script(data: object) -> str:
    """JSON in which nothing ends the element that it stands in, or begins another."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _summary(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands at the top: what is measured, and how much it is."""
    sites = report["sites"]
    refused = sum(site["outcomes"]["raised"] for site in sites)
    told = [
        ("blocked in total", seconds(sum(site["seconds"] for site in sites))),
        ("longest call", seconds(max((site["worst"] for site in sites), default=0.0))),
        ("most tasks waiting", f"{max((s['waiting']['most'] for s in sites), default=0):,}"),
        ("calls", f"{sum(site['calls'] for site in sites):,}"),
        ("call sites", f"{len(sites):,}"),
    ]
    return told + ([("refused calls", f"{refused:,}")] if refused else [])


def _data(report: dict[str, Any], root: str) -> dict[str, Any]:
    """What the script shows. Places are told once, and referred to by their position."""
    places: dict[tuple[str, int, str, bool], int] = {}

    def number(where: dict[str, Any] | None) -> int | None:
        if where is None:
            return None
        file = relative(where["file"], root) or shorten(where["file"])
        name = function(Frame(where["file"], where["line"], where["function"], where["async"]))
        return places.setdefault((file, where["line"], name, where["async"]), len(places))

    sites = [
        {name: site[name] for name in _COPIED}
        | {
            "headline": headline(site),
            "level": level(site),
            "refused": all_refused(site),
            "at": number(site["call_site"]),
            "under": number(site["coroutine"]),
            "begun": number(site["begun_at"]),
            "stack": [number(where) for where in site["stack"]],
        }
        for site in report["sites"]
    ]
    return {"sites": sites, "places": list(places), "stalls": report["stalls"]}
