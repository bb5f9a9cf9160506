"""A commutative monoid: merging, centring, weights as repetition, and files."""

import numpy as np
import pytest

from bochner.gram import GramStatistics, Precision

NAMES = ("gram", "cross", "feature_sum", "target_sum", "target_products")


def parts(seed: int = 0):
    random = np.random.default_rng(seed)
    return [(random.normal(size=(n, 4)), random.normal(size=(n, 2))) for n in (5, 1, 30)]


def assert_same(a: GramStatistics, b: GramStatistics, atol: float = 1e-12) -> None:
    for name in NAMES:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol)
    assert (a.num_rows, a.precision) == (b.num_rows, b.precision)
    assert a.weight == pytest.approx(b.weight)


def test_merging_is_stacking_whatever_the_order() -> None:
    one, two, three = (GramStatistics.of(*part) for part in parts())
    whole = GramStatistics.of(*(np.concatenate(c) for c in zip(*parts(), strict=True)))
    assert_same(one + two + three, whole)
    assert_same(three + (two + one), whole)
    assert_same(GramStatistics.zeros(4, 2) + whole, whole)
    before = one.gram.copy()
    _ = one + two
    assert np.array_equal(one.gram, before)
    assert_same(one.add_(two).add_(three), whole)


def test_integer_weights_are_repetitions() -> None:
    phi, y = parts()[2]
    times = np.arange(30) % 4
    weighted = GramStatistics.of(phi, y, times)
    repeated = GramStatistics.of(np.repeat(phi, times, axis=0), np.repeat(y, times, axis=0))
    for name in NAMES:
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), atol=1e-12)
    assert weighted.weight == repeated.weight
    assert (weighted.num_rows, repeated.num_rows) == (30, times.sum())


def test_weights_in_float32() -> None:
    random = np.random.default_rng(0)
    phi = random.normal(size=(3000, 5)).astype(np.float32)
    w = random.uniform(size=3000)
    found = GramStatistics.of(phi, None, w, precision=Precision.SINGLE)
    np.testing.assert_allclose(found.feature_sum, w @ phi.astype(np.float64), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.gram, phi.T @ (w[:, None] * phi), rtol=1e-4, atol=1e-2)


def test_centred_sums_are_those_of_centred_rows() -> None:
    phi, y = parts()[2]
    w = np.random.default_rng(1).uniform(0.1, 2, size=30)
    mean, target_mean = np.average(phi, axis=0, weights=w), np.average(y, axis=0, weights=w)
    expected = GramStatistics.of(phi - mean, y - target_mean, w)
    assert_same(GramStatistics.of(phi, y, w).centred(), expected)


def test_the_lowest_precision_wins() -> None:
    phi, y = parts()[0]
    single = GramStatistics.of(phi.astype(np.float32), y, precision=Precision.SINGLE)
    double = GramStatistics.of(phi.astype(np.float32), y, precision=Precision.DOUBLE)
    assert (single.precision, double.precision) == (Precision.SINGLE, Precision.DOUBLE)
    assert (single + double).precision is Precision.SINGLE
    assert double.add_(single).precision is Precision.SINGLE
    # float64 features are never rounded
    assert GramStatistics.of(phi, y, precision=Precision.SINGLE).precision is Precision.DOUBLE


def test_unlike_statistics_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\) cannot be merged"):
        GramStatistics.zeros(4, 2) + GramStatistics.zeros(4, 3)


def test_a_file_keeps_every_bit(tmp_path) -> None:
    found = GramStatistics.of(*parts()[2])
    found.save(tmp_path / "sums.npz")
    assert_same(GramStatistics.load(tmp_path / "sums.npz"), found, atol=0.0)
    assert [p.name for p in tmp_path.iterdir()] == ["sums.npz"]
