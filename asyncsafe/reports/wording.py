"""What all reports say of a call site, in the same words."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Level = Literal["error", "warning", "note"]


def seconds(value: float) -> str:
    """A duration with the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def count(number: int, noun: str) -> str:
    """The number with its noun: "1 call", "1,204 calls"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """The text, with escapes in place of what would end its line or have a terminal do something."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def all_refused(site: dict[str, Any]) -> bool:
    """Whether no call was made here."""
    return bool(site["outcomes"]["raised"] == site["calls"])


def level(site: dict[str, Any]) -> Level:
    """How bad it is: what was refused or corrupts data is an error, what was allowed a note."""
    if site["begun_at"] or site["outcomes"]["raised"]:
        return "error"
    return "note" if site["outcomes"]["allowed"] == site["calls"] else "warning"


def headline(site: dict[str, Any]) -> str:
    """What was called, and what is wrong with it, without a full stop."""
    operation = f"{site['operation']}()"
    if site["begun_at"]:
        return f"{operation} uses a connection that has an open transaction of {site['begun_by']}"
    if site["subject"]:
        return f"{site['subject']} on the event loop ({operation})"
    return f"{operation} blocks the event loop"


def measured(site: dict[str, Any]) -> str:
    """How often and for how long: "3 calls blocked it for 1.2 ms, 640 µs at worst"."""
    calls = count(site["calls"], "call")
    refused: int = site["outcomes"]["raised"]
    if all_refused(site):
        return f"{calls}, refused"
    if site["begun_at"]:
        return calls
    told = f"{calls} blocked it for {seconds(site['seconds'])}"
    if site["calls"] > 1:
        told += f", {seconds(site['worst'])} at worst"
    if refused:
        told += f"; {refused:,} {'was' if refused == 1 else 'were'} refused"
    most = site["waiting"]["most"]
    return f"{told}; {count(most, 'task')} or callbacks waited" if most > 1 else told


def relative(filename: str, root: str) -> str | None:
    """The path below `root` with forward slashes; None where the file isn't below it."""
    if filename.startswith("<"):
        return None
    try:
        path = os.path.relpath(filename, root)
    except ValueError:  # another drive
        return None
    return None if path.split(os.sep)[0] == os.pardir else path.replace(os.sep, "/")
