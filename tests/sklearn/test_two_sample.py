"""Two-sample tests: the statistic by hand, the level among equal laws, the power among others.

Rates among R tests are binomial; their bounds have a false-alarm rate of 1e-6 a side.
"""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from scipy import sparse

import bochner
from bochner.gram.feature_sums import FeatureSums
from bochner.gram.features import BlockFeatures
from bochner.gram.statistics import Precision
from bochner.sklearn.two_sample import asymptotic_test, mmd2, permutation_test

DOUBLE = {"precision": Precision.DOUBLE}


def features(dim: int = 2, num_features: int = 32, seed: int = 0) -> BlockFeatures:
    phi = bochner.make(
        "trigonometric",
        dim=dim,
        num_features=num_features,
        kernel="gaussian",
        generator=torch.Generator().manual_seed(seed),
    )
    return BlockFeatures(phi, dtype=np.float64)


def band(tests: int, rate: float) -> tuple[int, int]:
    """Counts of rejections that a rate leaves with probability 2e-6."""
    law = scipy.stats.binom(tests, rate)
    return int(law.ppf(1e-6)), int(law.isf(1e-6))


def normal(rng: np.random.Generator, rows: int, shift: float = 0.0) -> np.ndarray:
    return rng.standard_normal((rows, 2)) + np.array([shift, 0.0])


def test_the_estimate_is_the_mean_over_pairs_of_rows() -> None:
    rng, phi = np.random.default_rng(0), features()
    x, y = phi(normal(rng, 7)), phi(normal(rng, 5, 0.5))
    inside = [np.mean([a @ b for a, b in itertools.permutations(rows, 2)]) for rows in (x, y)]
    expected = sum(inside) - 2 * np.mean(x @ y.T)
    assert mmd2(FeatureSums.of(x), FeatureSums.of(y)) == pytest.approx(expected, abs=1e-14)


def test_both_tests_report_the_same_numbers() -> None:
    rng, phi = np.random.default_rng(1), features()
    x, y = normal(rng, 60), normal(rng, 90, 0.3)
    one = permutation_test(phi, (x, y), rng=rng)
    two = asymptotic_test(phi, (x, y), **DOUBLE)
    by_hand = np.square(phi(x).mean(axis=0) - phi(y).mean(axis=0)).sum()
    assert one.statistic == pytest.approx(by_hand, rel=1e-10)
    assert two.statistic == pytest.approx(by_hand, rel=1e-10)
    assert one.mmd2 == pytest.approx(mmd2(FeatureSums.of(phi(x)), FeatureSums.of(phi(y))), rel=1e-9)
    assert two.mmd2 == pytest.approx(one.mmd2, rel=1e-9)
    assert one.num_rows == two.num_rows == (60, 90)


def test_sparse_rows_give_the_same_test() -> None:
    rng, phi = np.random.default_rng(2), features()
    x, y = normal(rng, 40), normal(rng, 40)
    dense, csr = (
        permutation_test(phi, pair, rng=np.random.default_rng(0))
        for pair in ((x, y), (sparse.csr_array(x), sparse.csr_array(y)))
    )
    assert dense.p_value == csr.p_value
    assert dense.threshold == pytest.approx(csr.threshold, rel=1e-12)


@pytest.mark.parametrize(
    ("sizes", "num_bins"), [((20, 20), 2048), ((50, 37), 16), ((6, 300), 64), ((101, 33), 8)]
)
def test_permutations_have_their_level_exactly(sizes: tuple[int, int], num_bins: int) -> None:
    """Bins that do not divide the rows, and samples of other sizes, included: 1,500 tests at 20 %."""
    rng, phi, tests = np.random.default_rng(3), features(num_features=8), 1500
    options = {"level": 0.2, "num_permutations": 19, "num_bins": num_bins, "rng": rng}
    rejected = sum(
        permutation_test(phi, (normal(rng, sizes[0]), normal(rng, sizes[1])), **options).rejected
        for _ in range(tests)
    )
    low, high = band(tests, 0.2)
    if num_bins == 8:  # few ways to place 8 bins: ties make it conservative
        low = 0
    assert low <= rejected <= high


def test_the_asymptotic_level_holds_for_large_samples() -> None:
    rng, phi, tests = np.random.default_rng(4), features(num_features=8), 500
    rejected = sum(
        asymptotic_test(phi, (normal(rng, 400), normal(rng, 300)), level=0.1, **DOUBLE).rejected
        for _ in range(tests)
    )
    low, high = band(tests, 0.1)
    assert low <= rejected <= high


def test_the_two_tests_agree_on_the_threshold() -> None:
    rng, phi = np.random.default_rng(5), features(num_features=64)
    x, y = normal(rng, 1500), normal(rng, 1000)
    permuted = permutation_test(phi, (x, y), num_permutations=9999, num_bins=400, rng=rng)
    expected = asymptotic_test(phi, (x, y), **DOUBLE)
    # a 5 % quantile of 9,999 draws: relative spread about 2 %
    assert permuted.threshold == pytest.approx(expected.threshold, rel=0.1)
    assert abs(permuted.p_value - expected.p_value) < 5 * 0.5 / np.sqrt(9999) + 0.01


def test_power_against_a_shift() -> None:
    rng, phi = np.random.default_rng(6), features(num_features=64)
    pairs = [(normal(rng, 300), normal(rng, 300, 0.4)) for _ in range(40)]
    binned = sum(permutation_test(phi, p, num_bins=60, rng=rng).rejected for p in pairs)
    every_row = sum(permutation_test(phi, p, num_permutations=199, rng=rng).rejected for p in pairs)
    asymptotic = sum(asymptotic_test(phi, p, **DOUBLE).rejected for p in pairs)
    assert min(binned, every_row, asymptotic) >= 38


def test_power_against_another_shape_with_the_same_mean_and_variance() -> None:
    rng, phi = np.random.default_rng(7), features(num_features=64)
    signs = rng.choice([-1.0, 1.0], size=(600, 2))
    test = asymptotic_test(phi, (normal(rng, 600), signs), **DOUBLE)
    assert test.p_value < 1e-12
    assert test.rejected
    assert "differ" in str(test)


def test_a_p_value_below_the_level_is_a_statistic_above_the_threshold() -> None:
    rng, phi = np.random.default_rng(8), features(num_features=8)
    for shift in (0.0, 0.3, 0.6) * 10:
        pair = normal(rng, 30), normal(rng, 30, shift)
        for test in (
            permutation_test(phi, pair, num_permutations=99, level=0.3, rng=rng),
            asymptotic_test(phi, pair, level=0.3, **DOUBLE),
        ):
            assert test.rejected == (test.statistic > test.threshold)


def test_rows_of_one_point_are_no_evidence() -> None:
    rng, phi = np.random.default_rng(9), features()
    same = np.ones((10, 2))
    assert permutation_test(phi, (same, same), rng=rng).p_value == 1.0
    with pytest.raises(ValueError, match="all rows have the same features"):
        asymptotic_test(phi, (same, same), **DOUBLE)


def test_arguments() -> None:
    rng, phi = np.random.default_rng(10), features()
    x = normal(rng, 10)
    with pytest.raises(ValueError, match="num_permutations=9 gives no p-value below 0.1"):
        permutation_test(phi, (x, x), num_permutations=9, rng=rng)
    with pytest.raises(ValueError, match="level=1.5 must lie between 0 and 1"):
        asymptotic_test(phi, (x, x), level=1.5)
    with pytest.raises(ValueError, match="each needs 2 or more"):
        permutation_test(phi, (x, x[:1]), rng=rng)
    with pytest.raises(ValueError, match="num_bins=3 must be 4 or more"):
        permutation_test(phi, (x, x), num_bins=3, rng=rng)
