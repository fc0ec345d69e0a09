"""What a run tells of its baseline: what passed, what is new, what wasn't seen."""

from __future__ import annotations

import os

from ..exceptions import ConfigurationError
from ..messages import shorten
from ..policy import DJANGO_VARIABLE
from .wording import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..baseline import Baseline

#: How many call sites are listed of each kind.
LISTED = 20


def finish(
    baseline: Baseline,
    report: dict[str, Any],
    *,
    update: bool = False,
    prune: bool = False,
    why_not: str | None = None,
) -> str:
    """Bring the file up to date, if that was asked for. Returns what to tell of it.

    report: what `read_recordings` returns.
    update: add what is new.
    prune: take out what this run didn't see, unless `why_not` says why it may not have come by.
    """
    if os.environ.get(DJANGO_VARIABLE):  # it is stronger than the baseline, which wasn't asked
        why_not = f"{DJANGO_VARIABLE} allowed everything"
    add = baseline.new
    unseen = [] if why_not else baseline.unseen
    take_out = unseen if prune else []
    failure = None
    if (update and add) or take_out:
        try:
            baseline.write(add=add if update else (), take_out=take_out)
        except (ConfigurationError, OSError) as error:
            failure = f"It was not written: {error}."
    lines = [_passed(baseline, report)]
    added = update and not failure
    lines += _list(add, "new call site", ", added to it" if added else "")
    removed = bool(take_out) and not failure
    lines += _list(
        unseen,
        "known call site",
        " not seen in this run" + (", taken out of it" if removed else ""),
    )
    if unseen and not prune:
        lines.append("What is mended can be taken out: by hand, or with --prune-baseline.")
    if prune and why_not:
        lines.append(f"Nothing was taken out: {why_not}.")
    if failure:
        lines.append(failure)
    return "\n".join(lines) + "\n"


def _passed(baseline: Baseline, report: dict[str, Any]) -> str:
    passed = [site for site in report["sites"] if site["reason"] == baseline.reason]
    calls = sum(site["outcomes"]["allowed"] for site in passed)
    seen = len(baseline) - len(baseline.unseen)
    return (
        f"Baseline {shorten(baseline.path)}: {calls:,} {'call' if calls == 1 else 'calls'} at "
        f"{seen:,} of {len(baseline):,} known call sites passed."
    )


def _list(entries: list[str], what: str, more: str) -> list[str]:
    if not entries:
        return []
    lines = [f"{len(entries):,} {what}{'' if len(entries) == 1 else 's'}{more}:"]
    lines += [f"  {printable(entry)}" for entry in entries[:LISTED]]
    if len(entries) > LISTED:
        lines.append(f"  and {len(entries) - LISTED:,} more")
    return lines
