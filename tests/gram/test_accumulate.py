"""The pass over the rows: against the dense product, and the same bits whatever the workers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import bochner
from bochner.gram import BlockFeatures, BlockGrid, GramStatistics, Precision, accumulate
from bochner.gram.accumulate import group_statistics
from bochner.gram.threads import in_order, one_thread


def features(dim: int = 3, m: int = 16, name: str = "trigonometric", **options) -> BlockFeatures:
    generator = torch.Generator().manual_seed(0)
    phi = bochner.make(
        name, dim=dim, num_features=m, kernel="gaussian", generator=generator, dtype=torch.float64
    )
    return BlockFeatures(phi, **options)


def data(n: int, dim: int = 3, k: int = 2):
    random = np.random.default_rng(n)
    return random.normal(size=(n, dim)), random.normal(size=(n, k)), random.uniform(0, 2, size=n)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 10**9), block=st.sampled_from([1, 7, 8192]))
def test_the_grid_covers_every_row_once_with_few_groups(rows: int, block: int) -> None:
    grid = BlockGrid(rows, block)
    groups = grid.groups()
    assert 1 <= len(groups) == grid.num_groups <= 64
    assert groups[0].start == 0
    assert groups[-1].stop == rows
    assert all(a.stop == b.start for a, b in itertools.pairwise(groups))
    assert all(g.start % block == 0 for g in groups)


def test_bad_grids() -> None:
    with pytest.raises(ValueError, match="num_rows=0"):
        BlockGrid(0)
    with pytest.raises(IndexError, match="group 3 of 1"):
        BlockGrid(10).group(3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", list(Precision))
def test_sums_against_the_dense_products(weighted: bool, precision: Precision) -> None:
    x, y, w = data(20_000)
    w = w if weighted else None
    phi = features(dtype=np.float64 if precision is Precision.DOUBLE else np.float32)
    found = accumulate(phi, x, y, sample_weight=w, precision=precision)
    dense = phi.with_dtype(np.float64)(x)
    weights = np.ones(len(x)) if w is None else w
    truth = {
        "gram": dense.T @ (weights[:, None] * dense),
        "cross": dense.T @ (weights[:, None] * y),
        "feature_sum": weights @ dense,
        "target_sum": weights @ y,
        "target_products": y.T @ (weights[:, None] * y),
    }
    tolerance = 1e-10 if precision is Precision.DOUBLE else 1e-6
    for name, expected in truth.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(getattr(found, name) / scale, expected / scale, atol=tolerance)
    assert found.weight == pytest.approx(weights.sum(), rel=1e-12)
    assert (found.num_rows, found.precision) == (20_000, precision)
    assert np.array_equal(found.gram, found.gram.T)


def same(a: GramStatistics, b: GramStatistics) -> bool:
    names = ("gram", "cross", "feature_sum", "target_sum", "target_products")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("name", ["trigonometric", "positive"])
def test_threads_do_not_change_a_bit(name: str) -> None:
    x, y, w = data(70_000)  # 9 groups
    runs = [
        accumulate(features(name=name), x, y, sample_weight=w, num_threads=t) for t in (1, 2, 3)
    ]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_workers_that_take_groups_and_add_them_in_order_change_no_bit() -> None:
    x, y, _ = data(70_000)
    phi, grid = features(), BlockGrid(70_000)
    with one_thread():
        odd = {i: group_statistics(phi, x[g], y[g]) for i, g in enumerate(grid.groups()) if i % 2}
        even = {
            i: group_statistics(phi, x[g], y[g]) for i, g in enumerate(grid.groups()) if not i % 2
        }
    total = None
    for _, part in sorted({**odd, **even}.items()):
        total = part if total is None else total + part
    assert same(total, accumulate(phi, x, y))


def test_other_groups_do_change_bits() -> None:
    """So that the tests above can fail: without a common grid, the sums differ in their last bits."""
    x, y, _ = data(30_000)
    phi = features()
    with one_thread():
        other = group_statistics(phi, x, y, block_rows=5_000)
    assert not same(other, accumulate(phi, x, y))
    np.testing.assert_allclose(other.gram, accumulate(phi, x, y).gram, rtol=1e-4, atol=1e-2)


def test_sparse_rows_give_the_features_of_dense_ones() -> None:
    x = sparse.random(500, 40, density=0.1, random_state=0, format="csr", dtype=np.float64)
    for name in ("trigonometric", "positive", "cosine"):
        phi = features(dim=40, name=name, inverse_lengthscales=np.linspace(0.5, 1.5, 40))
        np.testing.assert_allclose(phi(x), phi(x.toarray()), atol=2e-6)


def test_features_are_those_of_the_map() -> None:
    x, _, _ = data(300)
    offset, scale = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0])
    for name in ("trigonometric", "positive", "hyperbolic", "cosine"):
        phi = features(name=name, offset=offset, inverse_lengthscales=scale, dtype=np.float64)
        points = torch.from_numpy((x - offset) * scale)
        np.testing.assert_allclose(
            phi(x), phi.feature_map.query(points).materialise().numpy(), rtol=1e-12, atol=1e-14
        )


def test_large_offsets_are_taken_off_in_float64() -> None:
    x, _, _ = data(300)
    far = 1.7e9  # seconds since 1970: float32 has steps of 128 there
    moved = features(offset=np.full(3, far))(x + far)
    np.testing.assert_allclose(moved, features()(x), atol=1e-5)


def test_maps_that_cannot_be_used() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(50, 3, generator=generator)
    asymmetric = bochner.make("data-aware", dim=3, num_features=8, generator=generator).fit(
        q, q + 1
    )
    with pytest.raises(ValueError, match="treats queries and keys differently"):
        BlockFeatures(asymmetric)
    heads = bochner.make("positive", dim=3, num_features=8, batch_shape=(2,))
    with pytest.raises(ValueError, match=r"batch_shape=\(2,\)"):
        BlockFeatures(heads)


def test_in_order_raises_what_a_task_raises_and_restores_the_threads() -> None:
    def work(i: int) -> int:
        if i == 5:
            raise RuntimeError("task 5")
        return i

    before = torch.get_num_threads()
    seen = []
    with pytest.raises(RuntimeError, match="task 5"):
        seen.extend(in_order(work, list(range(20)), num_threads=3))
    assert seen == [(i, i) for i in range(5)]
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="num_threads=0"):
        list(in_order(work, [1], num_threads=0))


def test_progress_counts_rows() -> None:
    x, _, _ = data(20_000)
    seen: list[tuple[int, int]] = []
    accumulate(features(), x, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8192, 20_000), (16_384, 20_000), (20_000, 20_000)]
