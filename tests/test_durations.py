"""Durations: a histogram of bounded size, and how near its quantiles are."""

from __future__ import annotations

import copy
import pickle
import random
from math import ceil

import pytest

from asyncsafe.durations import RELATIVE_ERROR, Durations, middle


def true_quantile(values: list[float], part: float) -> float:
    return sorted(values)[max(1, ceil(part * len(values))) - 1]


DISTRIBUTIONS = {
    "uniform": lambda chance: chance.uniform(1e-6, 1e-2),
    "lognormal": lambda chance: max(1e-6, chance.lognormvariate(-8, 2)),
    "two humps": lambda chance: chance.gauss(1e-4, 1e-6) if chance.random() < 0.9 else 0.5,
    "all the same": lambda chance: 0.0123,
    "powers of two": lambda chance: 2.0 ** chance.randint(-19, 10),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_a_quantile_is_within_the_error_that_is_told(name: str, part: float) -> None:
    chance = random.Random(name)
    values = [DISTRIBUTIONS[name](chance) for _ in range(5000)]
    durations = Durations((value, 1) for value in values)

    assert len(durations) == 5000
    assert durations.quantile(part) == pytest.approx(
        true_quantile(values, part), rel=RELATIVE_ERROR * (1 + 1e-9)
    )
    assert RELATIVE_ERROR < 0.022


def test_it_is_bounded_whatever_it_sees() -> None:
    durations = Durations()
    chance = random.Random(1)
    for exponent in range(-40, 30):
        for _ in range(100):
            durations.add(2.0**exponent * chance.uniform(1, 2))
    durations.add(0.0)

    assert len(durations) == 7001
    assert len(list(durations)) <= 512
    assert durations.quantile(0.0) == pytest.approx(2**-20, rel=0.03)
    assert durations.quantile(1.0) == pytest.approx(2**12, rel=0.03)


def test_without_durations_there_is_no_quantile() -> None:
    assert Durations().quantile(0.5) is None
    assert list(Durations()) == []


def test_histograms_add_up_without_loss() -> None:
    chance = random.Random(2)
    values = [chance.lognormvariate(-8, 3) for _ in range(3000)]
    parts = [Durations((value, 1) for value in values[start::3]) for start in range(3)]

    together = Durations(pair for part in parts for pair in part)

    assert list(together) == list(Durations((value, 1) for value in values))


def test_what_stands_for_a_bucket_is_in_it_also_when_written_with_nine_digits() -> None:
    for bucket in range(512):
        assert Durations().add(middle(bucket)) == bucket
        assert Durations().add(round(middle(bucket), 9)) == bucket


def test_it_is_pickled_and_copied() -> None:
    durations = Durations([(0.5, 3), (0.001, 1)])
    for same in (pickle.loads(pickle.dumps(durations)), copy.deepcopy(durations)):
        assert list(same) == list(durations)
    assert repr(durations).startswith("<Durations [(0.00")
