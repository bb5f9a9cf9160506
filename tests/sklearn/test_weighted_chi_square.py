"""The tail of a weighted sum of chi-squares, against scipy's laws and convolutions in closed form."""

import numpy as np
import pytest
import scipy.stats

from bochner.sklearn.weighted_chi_square import upper_quantile, upper_tail


@pytest.mark.parametrize("degrees", [1, 2, 5, 64, 1000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_equal_weights_are_a_chi_square(degrees: int, scale: float) -> None:
    law = scipy.stats.chi2(degrees)
    for tail in (0.999, 0.9, 0.5, 0.05, 1e-3, 1e-12, 1e-100):
        x = law.isf(tail)
        assert upper_tail(np.full(degrees, scale), scale * x) == pytest.approx(law.sf(x), rel=1e-9)


def test_pairs_of_weights_have_a_closed_form() -> None:
    # two equal weights w are an exponential of mean 2w; a sum of exponentials of distinct means
    rates = 0.5 / np.array([1.0, 0.3, 0.05])
    weights = np.repeat([1.0, 0.3, 0.05], 2)
    shares = [np.prod([b / (b - a) for b in rates if b != a]) for a in rates]
    for x in (0.1, 1.0, 3.0, 10.0, 100.0):
        exact = sum(s * np.exp(-a * x) for s, a in zip(shares, rates, strict=True))
        assert upper_tail(weights, x) == pytest.approx(exact, rel=1e-9)


def test_weights_that_decay_as_those_of_a_kernel() -> None:
    weights = 0.7 ** np.arange(40)
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((200_000, 40)) ** 2 @ weights
    for x in (1.0, 3.0, 10.0):
        tail = upper_tail(weights, x)
        stderr = np.sqrt(tail * (1 - tail) / draws.size)
        assert abs(np.mean(draws > x) - tail) < 5.2 * stderr  # false alarm 2e-7 each


def test_a_weight_of_zero_adds_nothing_and_a_tiny_one_next_to_nothing() -> None:
    assert upper_tail(np.array([1.0, 0.0, 0.0]), 2.0) == upper_tail(np.ones(1), 2.0)
    tiny = np.concatenate([np.ones(1), np.full(500, 1e-13)])
    assert upper_tail(tiny, 2.0) == pytest.approx(upper_tail(np.ones(1), 2.0), rel=1e-9)


@pytest.mark.parametrize("level", [1e-8, 0.01, 0.05, 0.5, 0.99])
def test_quantiles_invert_tails(level: float) -> None:
    weights = 1.0 / np.arange(1.0, 200.0) ** 1.5
    assert upper_tail(weights, upper_quantile(weights, level)) == pytest.approx(level, rel=1e-8)


def test_nothing_lies_below_zero() -> None:
    assert upper_tail(np.ones(3), 0.0) == 1.0


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1e-9], [[1.0]], [np.nan]])
def test_weights_must_be_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be a vector of numbers >= 0"):
        upper_tail(np.array(weights), 1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1])
def test_a_level_is_a_probability(level: float) -> None:
    with pytest.raises(ValueError, match=f"level={level} must lie between 0 and 1"):
        upper_quantile(np.ones(2), level)
