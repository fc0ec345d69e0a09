"""How long calls took: a histogram that doesn't grow with their number, and quantiles from it."""

from __future__ import annotations

from math import ceil, log2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Buckets for each doubling of the duration: each reaches to 2 ** (1 / 16) times where it begins.
_PER_DOUBLING = 16
#: The shortest and the longest duration that are told apart, as powers of two of a second: about
#: a microsecond, and about an hour.
_SHORTEST, _LONGEST = -20, 12
_SHORTEST_SECONDS: float = 2**_SHORTEST
_LAST = (_LONGEST - _SHORTEST) * _PER_DOUBLING - 1
_OFFSET = -_SHORTEST * _PER_DOUBLING
_GROWTH: float = 2 ** (1 / _PER_DOUBLING)

#: How far a quantile may be from the true one, as a part of that: 2.2 %.
RELATIVE_ERROR: float = (_GROWTH - 1) / (_GROWTH + 1)


class Durations:
    """A histogram of durations in seconds. Its buckets grow by a constant factor, as in DDSketch.

    However many durations it has seen, it has at most 512 buckets, and in practice a few dozen:
    one for each that was met. Histograms of several processes add up without loss.
    """

    __slots__ = ("_counts",)

    def __init__(self, pairs: Iterable[tuple[float, int]] = ()) -> None:
        """pairs: durations, and how many of each, as iterating over another histogram gives them."""
        self._counts: dict[int, int] = {}
        for seconds, count in pairs:
            self.add(seconds, count)

    def add(self, seconds: float, count: int = 1) -> int:
        """Count a duration. Returns the number of its bucket."""
        if seconds < _SHORTEST_SECONDS:
            bucket = 0
        else:
            bucket = min(int(log2(seconds) * _PER_DOUBLING + _OFFSET), _LAST)
        self._counts[bucket] = self._counts.get(bucket, 0) + count
        return bucket

    def count(self, bucket: int) -> int:
        """How many durations the bucket has."""
        return self._counts.get(bucket, 0)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        """The durations, ascending, with how many there were of each: each stands for its bucket."""
        return iter([(middle(bucket), count) for bucket, count in sorted(self._counts.items())])

    def __len__(self) -> int:
        """How many durations were counted."""
        return sum(self._counts.values())

    def __repr__(self) -> str:
        return f"<Durations {list(self)}>"

    def quantile(self, part: float) -> float | None:
        """The duration that this part (0.95) of the calls did not exceed; None where there are none.

        Within RELATIVE_ERROR of the duration at that rank; below a microsecond, within that.
        """
        rank = max(1, ceil(part * len(self)))
        for seconds, count in self:
            rank -= count
            if rank <= 0:
                return seconds
        return None


def middle(bucket: int) -> float:
    """The duration that is at most RELATIVE_ERROR away from all that are in this bucket."""
    begin: float = 2 ** ((bucket - _OFFSET) / _PER_DOUBLING)
    return begin * 2 * _GROWTH / (1 + _GROWTH)
