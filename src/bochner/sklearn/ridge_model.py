"""What ridge regression and ridge classification share: fitting, adding rows, the path of penalties."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from bochner.gram import BlockFeatures, GramStatistics, Precision, RidgeSolution, Spectrum
from bochner.sklearn.model import FeatureParameters
from bochner.sklearn.progress import progress_bar
from bochner.sklearn.ridge_fit import (
    DTYPES,
    Chosen,
    Rows,
    attempts,
    check_alpha_parameter,
    choose_alpha,
    default_alphas,
    fit_ridge,
)

Matrix = NDArray[np.float64]


class AlphaPath(NamedTuple):
    """Every penalty of a path with its model and generalised cross-validation.

    The i-th penalty predicts model.features_(X) @ coef[i] + intercept[i].

    Shapes:     alphas [a], coef [a, m, k], intercept [a, k], gcv [a, k], effective_dof [a].
    """

    alphas: Matrix
    coef: Matrix
    intercept: Matrix
    gcv: Matrix
    effective_dof: Matrix


class RidgeModel(FeatureParameters):
    """A mixin: least squares on features with a penalty, from sums over the rows.

    Parameters:
        alpha: the penalty, a number; or "gcv" (generalised cross-validation) or "loo" (the exact
            leave-one-out error, one more pass), which take the best of `alphas`.
        alphas: penalties for "gcv" and "loo"; None: 25 from 1e-7 to 1 times the trace of the Gram matrix.
        fit_intercept: whether there is a constant, without penalty.
        precision: what blocks of rows are multiplied in. "single": float32, summed in float64. "double".
            "auto": float64 up to one block (8,192 rows); above, float32, and float64 in a second pass
            if alpha is too small for that.
        verbose: 1 shows a progress bar on standard error.
    """

    alpha: Any
    alphas: Any
    fit_intercept: bool
    precision: str
    verbose: int
    features_: BlockFeatures
    statistics_: GramStatistics
    _solution: RidgeSolution | None

    def path(self, alphas: Any = None) -> AlphaPath:
        """The model of every penalty, from one eigendecomposition of what has been summed.

        Arguments:  alphas: [a]; None takes those of the constructor, or else the default 25.
        Cost:       9 m^3, and m^2 k for each penalty.
        Raises:     PrecisionError for a penalty that the sums cannot bear.
        """
        check_is_fitted(self)
        alphas = self.alphas if alphas is None else alphas
        chosen = default_alphas(self.statistics_) if alphas is None else np.atleast_1d(alphas)
        spectrum = Spectrum.of(self.statistics_, fit_intercept=self.fit_intercept)
        return AlphaPath(
            np.asarray(chosen, dtype=np.float64),
            spectrum.coef(chosen),
            spectrum.intercept(chosen),
            spectrum.gcv(chosen),
            spectrum.effective_dof(chosen),
        )

    def _fit_rows(self, rows: Rows) -> None:
        """Choose features, take the sums in the precision that alpha wants, and solve."""
        check_alpha_parameter(self.alpha)
        if isinstance(self.alpha, str) and rows.X.shape[0] < 2:
            raise ValueError(
                f"n_samples=1: alpha={self.alpha!r} leaves rows out; give it two or more."
            )
        precisions = attempts(self.precision, rows.X.shape[0])
        features = self._build_features(rows.X, DTYPES[precisions[0]], sample_weight=rows.weight)

        def choose(phi: BlockFeatures, sums: GramStatistics) -> Chosen:
            return self._chosen(rows, phi, sums)

        with progress_bar("rows", self.verbose) as step:
            fit = fit_ridge(rows, features, choose, precisions=precisions, progress=step)
        self.features_, self.statistics_ = fit.features, fit.statistics
        self._keep(fit.chosen)

    def _add_rows(self, rows: Rows, *, first: bool) -> None:
        """Add to the sums; what was solved is forgotten."""
        check_alpha_parameter(self.alpha)
        single = self.precision == "auto"
        precision = Precision.SINGLE if single else attempts(self.precision, rows.X.shape[0])[0]
        if first:
            dtype = DTYPES[precision]
            self.features_ = self._build_features(rows.X, dtype, sample_weight=rows.weight)
        with progress_bar("rows", self.verbose) as step:
            new = rows.statistics(self.features_, precision, step)
        self.statistics_ = new if first else self.statistics_ + new
        self._solution = None

    def _solved(self) -> RidgeSolution:
        check_is_fitted(self)
        if self._solution is None:
            self._keep(self._chosen(None, self.features_, self.statistics_))
        assert self._solution is not None
        return self._solution

    def _chosen(self, rows: Rows | None, phi: BlockFeatures, sums: GramStatistics) -> Chosen:
        return choose_alpha(
            self.alpha, self.alphas, rows, phi, sums, fit_intercept=self.fit_intercept
        )

    def _keep(self, chosen: Chosen) -> None:
        self._solution = chosen.solution
        self.alpha_ = chosen.alpha
        self._forget("alphas_", "criterion_")
        if chosen.alphas is not None:
            self.alphas_, self.criterion_ = chosen.alphas, chosen.criterion

    def _forget(self, *names: str) -> None:
        """Drop what another fit has left and this one has not."""
        for name in names:
            self.__dict__.pop(name, None)
