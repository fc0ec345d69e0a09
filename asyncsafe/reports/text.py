"""The report as a table, worst first."""

from __future__ import annotations

from ..messages import during, function, place
from ..violation import Frame
from .wording import all_refused, count, printable, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEADINGS = ("total", "p95", "worst", "waiting", "calls", "operation", "call site", "under")
_SHARING_HEADINGS = ("calls", "operation", "call site", "transaction begun at")

#: How many coroutines the table tells how to mend.
FIXES = 10


def render(report: dict[str, Any]) -> str:
    """The table, with a line above that sums it up; before it, that of the transactions shared."""
    sites = report["sites"]
    if not sites:
        return "asyncsafe: nothing blocked the event loop.\n"
    # What corrupts data comes before what takes time. Its calls take no time of their own: where
    # they were made on the loop, that is told as well.
    sharing = [site for site in sites if site["begun_at"]]
    blocking = [site for site in sites if not (site["begun_at"] or site["phase"])]
    nobody_waits = [site for site in sites if site["phase"]]
    lines = []
    if sharing:
        rows = [_SHARING_HEADINGS, *map(_sharing_row, sharing)]
        lines += [_summarize_sharing(sharing), "", *_table(rows, "calls"), ""]
    if blocking:
        rows = [_HEADINGS, *map(_row, blocking)]
        told = _summary(blocking, "on the event loop", "blocked it for {}")
        lines += [told, "", *_table(rows, "calls"), ""]
    if nobody_waits:
        rows = [_HEADINGS, *map(_row, nobody_waits)]
        told = _summary(nobody_waits, _phases(nobody_waits), "took {}, and no request waited")
        lines += [told, "", *_table(rows, "calls"), ""]
    to_mend = [*sharing, *blocking, *filter(_was_refused, nobody_waits)]
    if to_mend:
        lines.append("To mend them, worst first:" if len(to_mend) > 1 else "To mend it:")
        lines += [*_fixes(to_mend), ""]
    if report["dropped"]:
        lines.append(
            f"And {report['dropped']} calls at further call sites, which aren't told apart."
        )
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(rows: list[tuple[str, ...]], last_number: str) -> list[str]:
    """The rows, the first of which has the headings, in columns: numbers are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = rows[0].index(last_number) + 1
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column < numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _summarize_sharing(sites: list[dict[str, Any]]) -> str:
    calls, refused = _calls(sites)
    told = (
        f"asyncsafe: {count(calls, 'call')} on a connection with another task's open transaction, "
        f"at {count(len(sites), 'call site')}"
    )
    if refused == calls:
        return f"{told}; all were refused."
    return (
        f"{told}; {refused:,} {'was' if refused == 1 else 'were'} refused."
        if refused
        else f"{told}."
    )


def _calls(sites: list[dict[str, Any]]) -> tuple[int, int]:
    """How many calls there were, and how many of them were refused."""
    refused = sum(site["outcomes"]["raised"] for site in sites)
    return sum(site["calls"] for site in sites), refused


def _phases(sites: list[dict[str, Any]]) -> str:
    """When these calls were made: they are told apart, since no request waits for them."""
    phases = {site["phase"] for site in sites}
    return "during start-up and shutdown" if len(phases) == 2 else during(*phases)


def _was_refused(site: dict[str, Any]) -> bool:
    return bool(site["outcomes"]["raised"])


def _summary(sites: list[dict[str, Any]], where: str, took: str) -> str:
    calls, refused = _calls(sites)
    blocked = seconds(sum(site["seconds"] for site in sites))
    what = f"{count(calls, 'synchronous call')} {where}, at {count(len(sites), 'call site')}"
    if refused == calls:
        return f"asyncsafe: {what}; all were refused."
    told = f"asyncsafe: {what}, {took.format(blocked)}"
    return (
        f"{told}; {refused:,} {'was' if refused == 1 else 'were'} refused."
        if refused
        else f"{told}."
    )


def _row(site: dict[str, Any]) -> tuple[str, ...]:
    refused = all_refused(site)
    at, under = site["call_site"], site["coroutine"]
    waiting = site["waiting"]
    return (
        "refused" if refused else seconds(site["seconds"]),
        "" if site["p95"] is None else seconds(site["p95"]),
        "" if refused else seconds(site["worst"]),
        f"{waiting['most']:,}" if waiting["calls"] else "",
        f"{site['calls']:,}",
        _asked(site),
        _place(at),
        "a callback of the loop" if under is None else "" if under == at else _place(under),
    )


def _asked(site: dict[str, Any]) -> str:
    """What the user's line asked for, and the operation that it took."""
    operation: str = site["operation"]
    if site["subject"] is None:
        return printable(operation)
    return printable(f"{site['subject']} ({'.'.join(operation.split('.')[-2:])})")


def _sharing_row(site: dict[str, Any]) -> tuple[str, ...]:
    at, begun = _place(site["call_site"]), _place(site["begun_at"])
    return (
        f"{site['calls']:,}",
        printable(site["operation"]),
        at,
        "the same line" if begun == at else begun,
    )


def _fixes(sites: list[dict[str, Any]]) -> list[str]:
    """One line for each function and its fix, the worst first."""
    fixes: dict[tuple[str, str, str], str] = {}
    for site in sites:
        under = site["coroutine"] or site["call_site"]
        fixes.setdefault((under["file"], under["function"], site["fix"]), _place(under))
    shown = list(fixes.items())[:FIXES]
    width = max(len(where) for _, where in shown)
    lines = [f"  {where.ljust(width)}  {printable(fix)}" for (_, _, fix), where in shown]
    if len(fixes) > len(shown):
        lines.append(
            f"  and {len(fixes) - len(shown)} more: a report in a file (HTML, JSON) has them all"
        )
    return lines


def _place(where: dict[str, Any]) -> str:
    frame = Frame(where["file"], where["line"], where["function"], where["async"])
    return printable(f"{place(frame)} {function(frame)}")
