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
    assert (weighted.num_rows, repeated.num_rows) == (np.count_nonzero(times), times.sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [1e3, 1e8])
def test_a_mean_of_many_deviations_costs_no_digits(offset: float, weighted: bool) -> None:
    """Targets of mean 1e8 and deviation 1, of which float32 would keep nothing, in blocks that merge."""
    random = np.random.default_rng(0)
    phi = random.normal(size=(4000, 5)).astype(np.float32)
    y = phi[:, :2] + offset * np.array([1.0, -1.0])
    w = random.uniform(size=4000) if weighted else np.ones(4000)
    parts = [slice(i, i + 1000) for i in range(0, 4000, 1000)]
    blocks = [
        GramStatistics.of(phi[p], y[p], w[p] if weighted else None, precision=Precision.SINGLE)
        for p in parts
    ]
    whole = blocks[0] + blocks[1]
    whole = whole.add_(blocks[2]).add_(blocks[3])
    apart, rows = y - np.average(y, axis=0, weights=w), phi.astype(np.float64)
    centred = whole.centred()
    # 4,000 sums of ulps of 1e8, 1.5e-8, beside float32's 1e-7 of sums of 4,000
    np.testing.assert_allclose(centred.cross, rows.T @ (w[:, None] * apart), rtol=0, atol=5e-3)
    scatter = apart.T @ (w[:, None] * apart)
    np.testing.assert_allclose(centred.target_products, scatter, rtol=1e-6, atol=1e-3)
    products = y.T @ (w[:, None] * y)
    np.testing.assert_allclose(whole.target_products, products, rtol=1e-12)


@pytest.mark.parametrize("factor", [2.0**-200, 2.0**-66, 2.0**66, 2.0**200])
def test_powers_of_two_change_no_bit_of_float32_products(factor: float) -> None:
    """2^66 is beyond the squares that float32 holds, 2^200 beyond what it holds itself."""
    random = np.random.default_rng(0)
    phi = random.normal(size=(300, 5)).astype(np.float32)
    y, w = random.normal(size=(300, 2)), random.uniform(size=300)
    plain = GramStatistics.of(phi, y, w, precision=Precision.SINGLE)
    heavy = GramStatistics.of(phi, y, w * factor**2, precision=Precision.SINGLE)
    large = GramStatistics.of(phi, y * factor, w, precision=Precision.SINGLE)
    for name in ("gram", "cross", "feature_sum", "target_sum", "target_scatter"):
        assert np.array_equal(getattr(heavy, name), getattr(plain, name) * factor**2), name
    assert np.array_equal(large.cross, plain.cross * factor)
    assert np.array_equal(large.target_products, plain.target_products * factor**2)


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
