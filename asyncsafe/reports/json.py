"""The report as JSON: report.schema.json, beside this file, is its schema."""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Raised when a reader of the earlier form would be misled.
FORMAT = 1

#: A pair of numbers in a list, over several lines. No string has a line break in it.
_PAIR = re.compile(r"\[\n\s+([-+.e\d]+),\n\s+(\d+)\n\s+\]")


def render(report: dict[str, Any]) -> str:
    """The report as JSON text."""
    from .. import __version__

    document = {"format": FORMAT, "asyncsafe": __version__, **report}
    return _PAIR.sub(r"[\1, \2]", json.dumps(document, indent=2)) + "\n"
