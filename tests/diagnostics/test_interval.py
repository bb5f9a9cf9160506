"""Intervals hold what they promise."""

import math

import pytest
import torch

from bochner.diagnostics import Interval, measure
from bochner.diagnostics.interval import median
from tests.maps import fitted, normal, seeded

SIGMAS = 4.9
"""Two-sided false-alarm rate 1e-6 for a binomial count close to normal."""


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_normal_samples_are_covered_as_often_as_the_level_says(count: int, level: float) -> None:
    """Student's t, exact for normal samples: 4,000 intervals, false-alarm rate 1e-6."""
    samples = 3.0 + 0.1 * torch.randn(4000, count, generator=seeded(1), dtype=torch.float64)
    intervals = [Interval.over(row, level) for row in samples]
    covered = sum(i.low <= 3.0 <= i.high for i in intervals)
    assert abs(covered - 4000 * level) <= SIGMAS * math.sqrt(4000 * level * (1 - level))


def test_the_formula() -> None:
    interval = Interval.over(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    stderr = math.sqrt(14.0 / 3.0) / 2.0
    assert interval.value == 3.0
    assert interval.high == pytest.approx(3.0 + 3.182446305 * stderr)  # t(0.975, 3)
    assert interval.low == pytest.approx(3.0 - 3.182446305 * stderr)
    assert (interval.redraws, interval.level) == (4, 0.95)


def test_one_redraw_gives_no_interval() -> None:
    interval = Interval.over(torch.tensor([0.25]))
    assert interval.low == interval.high == interval.value == 0.25
    assert str(interval) == "0.250 (one redraw: no interval)"


def test_nothing_drawn_is_a_point_and_says_so() -> None:
    interval = Interval.fixed(0.25)
    assert interval.low == interval.high == interval.value == 0.25
    assert interval.redraws == 0
    assert str(interval) == "0.250 (nothing is drawn)"


def test_an_infinite_redraw_is_not_hidden() -> None:
    interval = Interval.over(torch.tensor([1.0, torch.inf, 2.0]))
    assert (interval.low, interval.value, interval.high) == (1.0, torch.inf, torch.inf)
    assert math.isnan(Interval.over(torch.tensor([1.0, torch.nan])).value)


def test_the_median_of_an_even_number_is_not_the_better_half() -> None:
    assert float(median(torch.tensor([1.0, 5.0]))) == 3.0
    assert float(median(torch.tensor([9.0, 1.0, 5.0]))) == 5.0
    assert float(median(torch.tensor([1.0, torch.inf]))) == torch.inf
    assert math.isnan(float(median(torch.tensor([1.0, torch.nan, 2.0]))))
    rows = torch.tensor([[1.0, 2.0, 3.0, 5.0], [4.0, 4.0, 0.0, 8.0]])
    assert median(rows).tolist() == [2.5, 4.0]


def test_measured_intervals_cover_the_mean_over_many_redraws() -> None:
    """300 measurements of 6 redraws against the mean of 3,000: 95 % nominally, 88 % allowed.

    Errors of positive features are skewed, so a t-interval covers a little less than its level; the
    standard error of the count is 1.3 %.
    """
    phi = fitted("positive", dim=3, num_features=32, projection="iid")
    q, k, v = (normal(6, 3, seed=s, scale=0.4) for s in (1, 2, 3))
    truth = measure(phi, q, k, v, num_redraws=3000, generator=seeded(1)).output_error.value
    generator = seeded(2)
    intervals = [
        measure(phi, q, k, v, num_redraws=6, generator=generator).output_error for _ in range(300)
    ]
    assert sum(i.low <= truth <= i.high for i in intervals) >= 0.88 * 300
