"""Logistic regression on streamed features: Newton's method for two classes, L-BFGS for more.

minimise  sum_i v_i l(phi_i' w + b, t_i) + alpha/2 |w|^2          (alpha = 1/C of scikit-learn)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram import BlockFeatures, Precision, PrecisionError, accumulate
from bochner.gram.likelihood import Binary, Multinomial
from bochner.gram.logistic import LogisticPass, LogisticSums
from bochner.gram.majorised import majorised
from bochner.gram.newton import LogisticFit, Penalty, newton
from bochner.gram.rows import Progress
from bochner.sklearn.ridge_fit import DTYPES

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ClassRows:
    """What is fitted to.

    Shapes:     X [n, d], codes [n] in 0..K-1, weight [n] or None; numpy, CSR (X) or Dask.
    """

    X: Any
    codes: Any
    weight: Any
    num_classes: int


@dataclass(frozen=True)
class Stopping:
    """When to stop: at a promised fall below tol times the objective, or after max_iter steps."""

    tol: float
    max_iter: int


def fit_logistic(
    rows: ClassRows,
    features: BlockFeatures,
    penalty: Penalty,
    stopping: Stopping,
    *,
    precisions: tuple[Precision, ...],
    progress: Progress | None = None,
) -> tuple[BlockFeatures, LogisticFit]:
    """The minimum in the first precision whose Hessian can bear the penalty.

    Raises:     PrecisionError if none can.
    """
    for precision in precisions:
        features = features.with_dtype(DTYPES[precision])
        try:
            minimise = _two_classes if rows.num_classes == 2 else _more_classes
            return features, minimise(rows, features, penalty, stopping, precision, progress)
        except PrecisionError:
            if precision is precisions[-1]:
                raise
    raise AssertionError("precisions is empty")


def _two_classes(
    rows: ClassRows,
    features: BlockFeatures,
    penalty: Penalty,
    stopping: Stopping,
    precision: Precision,
    progress: Progress | None,
) -> LogisticFit:
    passes = 0

    def sums(coefficients: Matrix, curvature: bool) -> LogisticSums:
        nonlocal passes
        one_pass = LogisticPass(features, Binary(), coefficients, curvature=curvature)
        found = one_pass.over(rows.X, rows.codes, rows.weight)
        passes += 1
        if progress is not None:
            progress(min(passes, stopping.max_iter), stopping.max_iter)
        return found

    start = np.zeros((features.num_features + 1, 1))
    return newton(sums, start, penalty, tol=stopping.tol, max_iter=stopping.max_iter)


def _more_classes(
    rows: ClassRows,
    features: BlockFeatures,
    penalty: Penalty,
    stopping: Stopping,
    precision: Precision,
    progress: Progress | None,
) -> LogisticFit:
    statistics = accumulate(features, rows.X, sample_weight=rows.weight, precision=precision)
    likelihood, passes = Multinomial(rows.num_classes), 0

    def sums(coefficients: Matrix) -> LogisticSums:
        nonlocal passes
        found = LogisticPass(features, likelihood, coefficients).over(
            rows.X, rows.codes, rows.weight
        )
        passes += 1
        if progress is not None:
            progress(min(passes, stopping.max_iter), stopping.max_iter)
        return found

    return majorised(
        sums,
        statistics,
        penalty,
        num_classes=rows.num_classes,
        tol=stopping.tol,
        max_iter=stopping.max_iter,
    )
