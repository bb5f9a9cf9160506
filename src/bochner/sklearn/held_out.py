"""Errors of ridge regression on rows held out, from sums alone: every row is passed over once.

    G_train = sum of the G of the cells of the training set,   R^2 of a fold from its own G, h, YY

Rows that every split treats alike form a cell (of K-fold cross-validation: a fold). Cells are summed once;
training sets are sums of cells, and squared errors on a fold need no prediction:

    |Y - Phi W - b|^2 = YY_c - 2 W'h_c + W'G_c W + v |mean Y - mean Phi W - b|^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram import BlockFeatures, GramStatistics, Precision, Spectrum
from bochner.gram.rows import Progress
from bochner.gram.solve import FLOORS, intercept_of, precision_error
from bochner.sklearn.ridge_fit import CONSTANT, Rows

Matrix = NDArray[np.float64]
Split = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]
_TRAIN, _TEST = 1, 2
_TOLERATED = 0.01  # share of a squared error that rounding may make up


@dataclass(frozen=True)
class Cells:
    """A partition of the rows such that every training and test set is a union of its parts.

    Shapes:     rows: the row numbers of every cell; roles [cells, splits]: 1 training, 2 test, 0 neither.
    """

    rows: tuple[NDArray[np.intp], ...]
    roles: NDArray[np.int8]

    @classmethod
    def of(cls, splits: Sequence[Split], num_rows: int) -> Cells:
        """The coarsest partition for (training rows, test rows) of every split.

        Raises:     ValueError for a split with a row on both sides, a row twice, or an empty side.
        Example:
            >>> cells = Cells.of([(np.array([0, 1]), np.array([2])), (np.array([2, 1]), np.array([0]))], 3)
            >>> [r.tolist() for r in cells.rows], cells.roles.tolist()
            ([[1], [0], [2]], [[1, 1], [1, 2], [2, 1]])
        """
        roles = np.zeros((num_rows, len(splits)), dtype=np.int8)
        for number, (train, test) in enumerate(splits):
            both = np.concatenate([train, test])
            if not (len(train) and len(test)) or len(np.unique(both)) != len(both):
                raise ValueError(
                    f"split {number} of cv has {len(train)} training and {len(test)} test rows, with"
                    f" {len(both) - len(np.unique(both))} repeated; expected both, each row once."
                )
            roles[train, number], roles[test, number] = _TRAIN, _TEST
        kinds, which = np.unique(roles, axis=0, return_inverse=True)
        which = which.ravel()
        return cls(tuple(np.flatnonzero(which == kind) for kind in range(len(kinds))), kinds)

    def statistics(
        self,
        rows: Rows,
        features: BlockFeatures,
        precision: Precision,
        progress: Progress | None = None,
    ) -> list[GramStatistics]:
        """The sums of every cell: one pass over the rows."""
        found: list[GramStatistics] = []
        done, total = 0, sum(map(len, self.rows))
        for cell in self.rows:
            weight = None if rows.weight is None else rows.weight[cell]
            part = Rows(rows.X[cell], rows.targets[cell], weight)
            found.append(part.statistics(features, precision))
            done += len(cell)
            if progress is not None:
                progress(done, total)
        return found

    def held_out(
        self, sums: Sequence[GramStatistics], alphas: Matrix, *, fit_intercept: bool
    ) -> Matrix:
        """R^2 of every penalty on every test set, [a, splits]: the mean over targets.

        Raises:     PrecisionError if rounding may make up more than 1 % of an error.
        Cost:       an eigendecomposition and products m^2 a k for every split.
        """
        scores = np.empty((len(alphas), self.roles.shape[1]))
        for split in range(self.roles.shape[1]):
            train, test = (_merged(sums, self.roles[:, split] == role) for role in (_TRAIN, _TEST))
            path = Spectrum.of(train, fit_intercept=fit_intercept)
            coef = path.coef(alphas)
            intercept = intercept_of(train, coef, fit_intercept=fit_intercept)
            errors = squared_errors(test, coef, intercept)
            largest = float(np.trace(test.gram))
            rounding = FLOORS[test.precision] * largest * np.square(coef).sum(axis=1)
            doubtful = (rounding > _TOLERATED * errors).any(axis=1)
            if test.precision is Precision.SINGLE and doubtful.any():
                trusted = alphas[~doubtful].min() if not doubtful.all() else np.inf
                raise precision_error(test, float(alphas[doubtful].max()), float(trusted))
            scores[:, split] = _r2(test, errors)
        return scores


def squared_errors(test: GramStatistics, coef: Matrix, intercept: Matrix) -> Matrix:
    """Weighted sums of squared errors [a, k] of models coef [a, m, k], intercept [a, k] on summed rows."""
    centred = test.centred()
    mean, target_mean = test.feature_sum / test.weight, test.target_sum / test.weight
    count, size, outputs = coef.shape
    side_by_side = centred.gram @ coef.transpose(1, 0, 2).reshape(size, -1)  # one product
    products = side_by_side.reshape(size, count, outputs).transpose(1, 0, 2)
    spread = (
        np.diag(centred.target_products)
        - 2.0 * (coef * centred.cross).sum(axis=1)
        + (coef * products).sum(axis=1)
    )
    shift = target_mean - mean @ coef - intercept
    errors: Matrix = spread + test.weight * shift**2
    return errors


def _r2(test: GramStatistics, errors: Matrix) -> Matrix:
    """1 - errors / (squares about the mean), averaged over targets [a]; as scikit-learn where those are 0."""
    total = np.diag(test.centred().target_products)
    flat = total <= CONSTANT * np.diag(test.target_products)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(flat, np.where(errors <= 0, 1.0, 0.0), 1.0 - errors / total)
    return scores.mean(axis=1)


def _merged(sums: Sequence[GramStatistics], chosen: NDArray[np.bool_]) -> GramStatistics:
    """The sum of the chosen ones, in order."""
    total: GramStatistics | None = None
    for part, wanted in zip(sums, chosen, strict=True):
        if wanted:
            total = part if total is None else total + part
    assert total is not None
    return total


def all_rows(sums: Sequence[GramStatistics]) -> GramStatistics:
    """The sums over all cells: no further pass for the final fit."""
    return _merged(sums, np.ones(len(sums), dtype=np.bool_))
