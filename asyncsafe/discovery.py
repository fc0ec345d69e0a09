"""Which integrations other distributions bring: the entry point group `asyncsafe.integrations`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint
    from typing import Any

GROUP = "asyncsafe.integrations"


class Offer:
    """One entry point: its name is the library's, and that of the module that stands for it."""

    __slots__ = ("_entry_point", "distribution", "name", "value")

    def __init__(self, entry_point: EntryPoint) -> None:
        distribution = entry_point.dist
        self.name: str = entry_point.name
        #: Where the integration is: "theirlib.guards:integration".
        self.value: str = entry_point.value
        #: Whose it is: "theirlib 1.0".
        self.distribution: str = (
            f"{distribution.name} {distribution.version}" if distribution else "a distribution"
        )
        self._entry_point = entry_point

    def load(self) -> Any:
        """Import it. Raises what that raises."""
        return self._entry_point.load()


def offers() -> list[Offer]:
    """What the distributions on sys.path offer, in its order. Imports nothing of theirs."""
    if not _any_offered():
        return []
    from importlib.metadata import entry_points

    return [Offer(entry_point) for entry_point in entry_points(group=GROUP)]


def _any_offered() -> bool:
    """Whether importlib.metadata is worth asking.

    That takes many times as long as this look into the files that it would read.
    """
    finders = (f for f in sys.meta_path if getattr(f, "__module__", "") != _PATH_FINDER)
    if any(hasattr(finder, "find_distributions") for finder in finders):
        return True
    for entry in sys.path:
        try:
            names = os.listdir(entry or os.curdir)
        except NotADirectoryError:
            return True  # a zip file
        except OSError:
            continue
        if any(_mentions_group(path) for path in _entry_point_files(entry, names)):
            return True
    return False


#: importlib.machinery.PathFinder's module: its distributions are those on sys.path.
_PATH_FINDER = "_frozen_importlib_external"


def _entry_point_files(entry: str, names: list[str]) -> Iterator[str]:
    for name in names:
        if name.lower().endswith((".dist-info", "egg-info")):
            yield os.path.join(entry, name, "entry_points.txt")


def _mentions_group(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return GROUP.encode() in file.read()
    except OSError:
        return False
