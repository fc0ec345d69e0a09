"""What `asyncsafe run` does in its own process and in each child: guard, and record into files."""

from __future__ import annotations

import os

from . import baseline
from .installation import install
from .reports.recording import DIRECTORY_VARIABLE, record_into


def follow() -> None:
    """Guard every library and record into the directory that the environment names."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory and os.path.isdir(directory):
        record_into(directory)
        install()
        known = baseline.active()
        if known is not None:
            known.keep_in(directory)
