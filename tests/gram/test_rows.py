"""Sums over groups, moments, and rows by their number, for rows in memory; sums against plain numpy."""

import numpy as np
import pytest
from scipy import sparse

from bochner.gram.grid import BlockGrid
from bochner.gram.rows import ColumnMoments, different_values, sum_over_groups, take_rows


def table(rows=20_000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)) * [1, 2, 3, 4] + [100, 0, -5, 1e4], rng.random(rows)


def test_groups_come_whole_and_in_order():
    """A sum that does not commute: strings."""
    rows = np.arange(70_000).reshape(-1, 1)

    def work(group, others, nothing):
        assert nothing is None
        assert np.array_equal(group[:, 0], others)
        return f"{group[0, 0]}-{group[-1, 0] + 1} "

    found = {sum_over_groups(work, rows, rows[:, 0], None, num_threads=n) for n in (1, 2, 5)}
    groups = BlockGrid(70_000).groups()
    assert found == {"".join(f"{group.start}-{group.stop} " for group in groups)}


def test_progress():
    seen = []
    sum_over_groups(np.sum, np.zeros((20_000, 1)), progress=lambda *at: seen.append(at))
    assert seen == [(8192, 20_000), (16_384, 20_000), (20_000, 20_000)]


def test_an_array_of_another_length():
    with pytest.raises(ValueError, match="array 2 beside the rows has 4 rows; expected 5"):
        sum_over_groups(print, np.zeros((5, 1)), np.zeros(5), np.zeros(4))


@pytest.mark.parametrize("weighted", [False, True])
def test_moments(weighted):
    X, weight = table()
    given = weight if weighted else None
    found = ColumnMoments.over(X, given)
    assert found.mean == pytest.approx(np.average(X, axis=0, weights=given), rel=1e-12, abs=1e-12)
    mean = np.average(X, axis=0, weights=given)
    expected = np.average((X - mean) ** 2, axis=0, weights=given)
    assert found.variance() == pytest.approx(expected, rel=1e-10)
    if not weighted:
        assert found.variance_of_entries() == pytest.approx(X.var(), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_sparse_rows(weighted):
    X = np.where(table()[0] > 0, table()[0], 0)
    given = table()[1] if weighted else None
    dense, found = ColumnMoments.over(X, given), ColumnMoments.over(sparse.csr_matrix(X), given)
    assert found.mean == pytest.approx(dense.mean, rel=1e-12)
    assert found.squares == pytest.approx(dense.squares, rel=1e-6)


def test_weights_are_repetitions_and_zeros_are_absences():
    X, _ = table(100)
    weight = np.arange(100) % 3
    found, expected = (
        ColumnMoments.over(X, weight),
        ColumnMoments.over(np.repeat(X, weight, axis=0)),
    )
    assert found.mean == pytest.approx(expected.mean, rel=1e-13)
    assert found.squares == pytest.approx(expected.squares, rel=1e-10)
    with pytest.raises(ValueError, match="sums to zero"):
        ColumnMoments.over(X, np.zeros(100))


def test_a_large_mean_does_not_drown_the_variance():
    """Means of 1e8 with a spread of 1: the sum of squares less the squared sum keeps nothing of it."""
    X = 1e8 + np.random.default_rng(0).normal(size=(20_000, 1))
    naive = (X**2).mean() - X.mean() ** 2
    assert abs(naive / X.var() - 1) > 0.1
    assert ColumnMoments.over(X).variance()[0] == pytest.approx(X.var(), rel=1e-6)


def test_rows_by_number_and_classes():
    X, _ = table(50)
    assert np.array_equal(take_rows(X, np.array([3, 1])), X[[3, 1]])
    assert np.array_equal(take_rows(sparse.csr_matrix(X), np.array([3, 1])), X[[3, 1]])
    assert different_values(["b", "a", "b"]).tolist() == ["a", "b"]


def test_sparse_columns_far_from_zero():
    """(v - m)^2 - m^2 would leave nothing of a variance of 1 beside a mean of 1e8."""
    X = np.random.default_rng(0).normal([1e8, 0.0], size=(1000, 2))
    X[::3, 1] = 0.0
    found = ColumnMoments.over(sparse.csr_matrix(X))
    assert found.variance() == pytest.approx(X.var(axis=0), rel=1e-6)


def test_sparse_entries_that_are_given_twice_add_up():
    X = sparse.csr_matrix((np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), np.array([0, 2, 3])))
    assert ColumnMoments.over(X).variance() == pytest.approx(X.toarray().var(axis=0))
    assert X.nnz == 3  # as it was
