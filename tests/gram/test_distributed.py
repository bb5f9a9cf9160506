"""Rows over gloo ranks: every rank ends with the bits of one process, or with the same error."""

import numpy as np
import pytest
import torch.distributed as dist

from bochner.gram import accumulate, ridge
from bochner.gram.distributed import RankRows, SharedRows
from bochner.gram.rows import ColumnMoments, different_values, take_rows
from tests.attention.processes import Raised
from tests.gram.rows_problem import ROWS, features, problem, same_bits, single_process

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")

CUTS = {  # where the second and the third rank begin: on the grid, off it, within one group, nothing
    "on the grid": (8192, 16384),
    "off the grid": (9000, 20001),
    "in one group": (100, 200),
    "empty": (0, ROWS),
    "last row": (ROWS - 2, ROWS - 1),
}


def own_part(rank, cut, *arrays):
    edges = (0, *cut, ROWS)
    return [array[edges[rank] : edges[rank + 1]] for array in arrays]


def sums_of_own_rows(rank, cut, weighted):
    X, Y, weight = own_part(rank, cut, *problem())
    return accumulate(features(), RankRows(X), Y, sample_weight=weight if weighted else None)


def sums_of_shared_rows(rank, weighted, num_threads):
    X, Y, weight = problem()
    given = {"sample_weight": weight if weighted else None, "num_threads": num_threads}
    return accumulate(features(), SharedRows(X), Y, **given)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_own_rows(three, cut):
    truth = single_process(weighted=True)
    for found in three.run(sums_of_own_rows, [(cut, True)] * 3):
        assert same_bits(found, truth)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_shared_rows(three, num_threads):
    truth = single_process()
    for found in three.run(sums_of_shared_rows, [(False, num_threads)] * 3):
        assert same_bits(found, truth)
    assert ridge(found, 1.0).coef.tobytes() == ridge(truth, 1.0).coef.tobytes()


def test_cut_off_the_grid_would_have_other_bits():
    """What RankRows prevents: sums of each rank's own blocks."""
    X, Y, _ = problem()
    parts = [accumulate(features(), X[part], Y[part]) for part in (slice(9000), slice(9000, None))]
    assert not same_bits(parts[0] + parts[1], single_process())


def look_around(rank, cut):
    X, _, weight = own_part(rank, cut, *problem())
    rows = RankRows(X)
    labels = np.array(["b", "a", "c"])[[rank] * len(X)]
    moments = ColumnMoments.over(rows, weight)
    indices = np.array([29_999, 0, 8_999, 9_000, 20_001])
    return rows.shape, moments, take_rows(rows, indices), different_values(labels, rows)


def test_moments_rows_and_classes(three):
    X, _, weight = problem()
    truth = ColumnMoments.over(X, weight)
    for shape, moments, taken, labels in three.run(look_around, [((9000, 20001),)] * 3):
        assert shape == X.shape
        assert np.array_equal(moments.mean, truth.mean)
        assert np.array_equal(moments.squares, truth.squares)
        assert np.array_equal(taken, X[[29_999, 0, 8_999, 9_000, 20_001]])
        assert labels.tolist() == ["a", "b", "c"]


def sums_with(rank, wrong, what):
    X, Y, _ = own_part(rank, (9000, 20001), *problem())
    phi = features(seed=7 if what == "seed" and rank == wrong else 0)
    if rank == wrong and what == "columns":
        X = X[:, :4]
    if rank == wrong and what == "targets":
        Y = Y.astype(np.float32)
    if rank == wrong and what == "rows":
        Y = Y[1:]
    return accumulate(phi, RankRows(X), Y)


@pytest.mark.parametrize("wrong", [0, 2])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("seed", "differ in what is computed (give the estimator an int as random_state"),
        ("columns", "differ in the columns and type"),
        ("targets", "differ in the targets and weights"),
    ],
)
def test_ranks_that_differ_raise_alike(three, what, message, wrong):
    answers = three.answers(sums_with, [(wrong, what)] * 3)
    assert all(isinstance(answer, Raised) and answer.kind == "ValueError" for answer in answers)
    assert all(message in answer.message for answer in answers), answers[0]


class Breaks:
    """Features that fail on rows of one rank."""

    num_features = 3

    def __init__(self, where):
        self.where = where

    def __call__(self, rows):
        if (rows[:, 0] == self.where).any():
            raise ArithmeticError("no features here")
        return np.ones((len(rows), 3), dtype=np.float32)


def sums_that_break(rank, shared, where):
    X, Y, _ = problem()
    if shared:
        return accumulate(Breaks(where), SharedRows(X), Y)
    X, Y = own_part(rank, (9000, 20001), X, Y)
    return accumulate(Breaks(where), RankRows(X), Y)


@pytest.mark.parametrize(("shared", "row", "guilty"), [(True, 9_000, 1), (False, 29_000, 2)])
def test_an_error_on_one_rank_reaches_all(three, shared, row, guilty):
    where = float(problem()[0][row, 0])
    for rank, answer in enumerate(three.answers(sums_that_break, [(shared, where)] * 3)):
        assert isinstance(answer, Raised)
        assert "no features here" in answer.message
        assert answer.kind == ("ArithmeticError" if rank == guilty else "RuntimeError")
        assert rank == guilty or f"rank {guilty}" in answer.message


def test_without_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        RankRows(np.zeros((2, 2)))
