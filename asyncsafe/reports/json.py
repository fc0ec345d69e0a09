"""The report as JSON: report.schema.json, beside this file, is its schema."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Raised when a reader of the earlier form would be misled.
FORMAT = 1


def render(report: dict[str, Any]) -> str:
    """The report as JSON text."""
    from .. import __version__

    document = {"format": FORMAT, "asyncsafe": __version__, **report}
    return json.dumps(document, indent=2) + "\n"
