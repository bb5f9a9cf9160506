"""The choice of kernel, width, features, their number and the penalty by cross-validation, streamed.

Every candidate passes over the rows once; the whole path of penalties of every fold comes from one
eigendecomposition, and the errors on the rows held out from their sums (`bochner.sklearn.held_out`).
"""

from __future__ import annotations

import time
from itertools import product
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.gaussian_process.kernels import Kernel as SklearnKernel
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from bochner.gram import BlockFeatures, GramStatistics, PrecisionError
from bochner.kernels import Laplacian
from bochner.sklearn.features import build_features
from bochner.sklearn.held_out import Cells, Split, all_rows
from bochner.sklearn.kernel_ridge import KernelRidge
from bochner.sklearn.progress import progress_bar
from bochner.sklearn.ridge_fit import DTYPES, Rows, attempts, default_alphas
from bochner.sklearn.rows import is_distant

Matrix = NDArray[np.float64]
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What gamma=None multiplies 1 / lengthscale of gamma="scale" by."""
GRID = ("kernel", "features", "n_components", "gamma")


class KernelRidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """`KernelRidge` with everything chosen on rows held out.

    Parameters:
        alphas: penalties [a]; None: 25 from 1e-7 to 1 times the trace of its Gram matrix.
        kernel, features, n_components, gamma: as in `RandomFeatures`; each one value or a list of them.
            gamma=None: 4, 2, 1, 1/2 and 1/4 times the lengthscale of "scale"; an array is a list of
            numbers, and one for each column goes inside a list: [[0.1, 2.0]].
        projection, random_state: as in `RandomFeatures`. All candidates share the random state.
        cv: scikit-learn's: a number of folds (None: 5), a splitter, or an iterable of splits;
            `ShuffleSplit(1)` is a single set held out.
        fit_intercept, precision, verbose: as in `KernelRidge`.
    Attributes:
        best_estimator_: a fitted KernelRidge; coef_, intercept_, features_, statistics_, alpha_ are its.
        best_params_, best_score_, best_index_, n_splits_: as `GridSearchCV`'s.
        cv_results_: a table as `GridSearchCV`'s, for every candidate and penalty its param_*,
            split*_test_score (R^2, weighted), mean_test_score, std_test_score, rank_test_score and
            fit_time, the candidate's in seconds.
    Numerics:   gamma="scale" and centres look at all rows, targets at training rows only.
    Cost:       per candidate one pass, n m^2, and K eigendecompositions, 9 m^3 each; the final fit is free.
                Memory: the sums of the folds, K m^2; of the winner as well.
    Raises:     PrecisionError for precision="single" where an error is too small for float32 sums.
    Example:
        >>> X = np.linspace(0, 20, 400)[:, None]
        >>> cv = [(np.arange(400) % 4 != 0, np.arange(400) % 4 == 0)]
        >>> model = KernelRidgeCV(n_components=64, cv=cv, random_state=0).fit(X, np.sin(X[:, 0]))
        >>> len(model.cv_results_["params"]), round(model.best_score_, 3)     # 5 widths x 25 penalties
        (125, 1.0)
    """

    def __init__(
        self,
        *,
        alphas: Any = None,
        kernel: Any = "gaussian",
        features: Any = "trigonometric",
        projection: Any = None,
        n_components: Any = 256,
        gamma: Any = None,
        cv: Any = None,
        fit_intercept: bool = True,
        precision: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.alphas = alphas
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_components = n_components
        self.gamma = gamma
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose, and fit to all rows X [n, d], dense or CSR, and y [n] or [n, k], with weights [n]."""
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        model = KernelRidge(
            projection=self.projection,
            fit_intercept=self.fit_intercept,
            precision=self.precision,
            random_state=seed,
        )
        rows = self._checked_rows(model, X, y, sample_weight)
        cells = Cells.of(_splits(check_cv(self.cv), rows), rows.X.shape[0])
        self.n_splits_ = cells.roles.shape[1]
        candidates = self._candidates(rows, seed)
        results: list[dict[str, Any]] = []
        best: tuple[float, int, BlockFeatures, GramStatistics] | None = None
        with progress_bar("candidates", self.verbose) as step:
            for number, candidate in enumerate(candidates, start=1):
                started = time.perf_counter()
                features, alphas, sums, scores = self._scored(candidate, rows, cells, seed)
                means = scores.mean(axis=1)
                leading = _best(means)
                if best is None or means[leading] > best[0]:
                    index = len(results) + leading
                    best = (float(means[leading]), index, features, all_rows(sums))
                results += _table(candidate, alphas, scores, time.perf_counter() - started)
                if step is not None:
                    step(number, len(candidates))
        assert best is not None
        self.cv_results_ = _columns(results)
        self.best_score_, self.best_index_, features, statistics = best
        self.best_params_ = self.cv_results_["params"][self.best_index_]
        model.set_params(**self.best_params_)
        self.best_estimator_ = model._adopt(features, statistics)
        return self

    def _checked_rows(self, model: KernelRidge, X: Any, y: Any, sample_weight: Any) -> Rows:
        if is_distant(X):
            raise TypeError(
                f"X is a {type(X).__name__}: KernelRidgeCV cuts rows in memory into folds; fit"
                " KernelRidge(alpha='gcv') to rows elsewhere."
            )
        rows = model._checked_rows(X, y, sample_weight, reset=True)
        self.n_features_in_ = model.n_features_in_
        self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
        if hasattr(model, "feature_names_in_"):
            self.feature_names_in_ = model.feature_names_in_
        return rows

    def predict(self, X: Any) -> NDArray[np.floating[Any]]:
        """Predictions of the best model."""
        check_is_fitted(self)
        return self.best_estimator_.predict(X)

    @property
    def coef_(self) -> Matrix:
        """Weights of the best model."""
        check_is_fitted(self)
        return self.best_estimator_.coef_

    @property
    def intercept_(self) -> Any:
        """Constant of the best model."""
        check_is_fitted(self)
        return self.best_estimator_.intercept_

    @property
    def features_(self) -> BlockFeatures:
        """Rows -> features of the best model."""
        check_is_fitted(self)
        return self.best_estimator_.features_

    @property
    def alpha_(self) -> float:
        """The penalty chosen."""
        check_is_fitted(self)
        return float(self.best_params_["alpha"])

    def _candidates(self, rows: Rows, seed: Any) -> list[dict[str, Any]]:
        """All combinations of kernel, features, number and width, in the order of the parameters."""
        found: list[dict[str, Any]] = []
        for kernel, features, count in product(
            _listed(self.kernel), _listed(self.features), _listed(self.n_components)
        ):
            chosen = {"kernel": kernel, "features": features, "n_components": count}
            gammas = _listed(self.gamma)
            if self.gamma is None:
                gammas = self._widths(chosen, rows, seed)
            found += [{**chosen, "gamma": gamma} for gamma in gammas]
        return found

    def _widths(self, chosen: dict[str, Any], rows: Rows, seed: Any) -> list[Any]:
        """gamma for lengthscales of 4, 2, 1, 1/2 and 1/4 times that of 'scale'."""
        if isinstance(chosen["kernel"], SklearnKernel):
            return ["scale"]  # which leaves the kernel's own length_scale
        phi = self._features({**chosen, "gamma": "scale"}, rows, seed, np.float32)
        inverse = float(phi.inverse_lengthscales[0])
        if isinstance(phi.kernel, Laplacian):
            return [inverse * factor for factor in WIDTHS]
        return [0.5 * (inverse * factor) ** 2 for factor in WIDTHS]

    def _features(
        self, candidate: dict[str, Any], rows: Rows, seed: Any, dtype: Any
    ) -> BlockFeatures:
        return build_features(
            rows.X,
            **candidate,
            projection=self.projection,
            random_state=seed,
            dtype=dtype,
            sample_weight=rows.weight,
        )

    def _scored(
        self, candidate: dict[str, Any], rows: Rows, cells: Cells, seed: Any
    ) -> tuple[BlockFeatures, Matrix, list[GramStatistics], Matrix]:
        """Features, penalties [a], the sums of the cells and scores [a, splits] of one candidate."""
        precisions = attempts(self.precision, rows.X.shape[0])
        features = self._features(candidate, rows, seed, DTYPES[precisions[0]])
        for precision in precisions:
            features = features.with_dtype(DTYPES[precision])
            sums = cells.statistics(rows, features, precision)
            alphas = default_alphas(all_rows(sums))
            if self.alphas is not None:
                alphas = np.sort(np.atleast_1d(np.asarray(self.alphas, dtype=np.float64)))
            try:
                scores = cells.held_out(sums, alphas, fit_intercept=self.fit_intercept)
                return features, alphas, sums, scores
            except PrecisionError:
                if precision is precisions[-1]:
                    raise
        raise AssertionError("precisions is empty")

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _listed(parameter: Any) -> list[Any]:
    """A list of candidates: of one value a list of one."""
    several = isinstance(parameter, list | tuple) or np.ndim(parameter) == 1
    found = list(parameter) if several else [parameter]
    if not found:
        raise ValueError("a parameter of KernelRidgeCV is an empty list; give at least one value.")
    return found


def _splits(cv: Any, rows: Rows) -> list[Split]:
    """(training rows, test rows) of every split, as row numbers."""
    y = rows.targets[:, 0] if rows.targets.shape[1] == 1 else rows.targets
    numbers = np.arange(rows.X.shape[0])
    return [(numbers[train], numbers[test]) for train, test in cv.split(rows.X, y)]


def _best(means: Matrix) -> int:
    """The highest mean; the largest penalty of several."""
    if np.isnan(means).any():
        raise ValueError("a held-out score is NaN; a test set of cv has no weight.")
    return int(np.flatnonzero(means == means.max())[-1])


def _table(
    candidate: dict[str, Any], alphas: Matrix, scores: Matrix, seconds: float
) -> list[dict[str, Any]]:
    """One row for every penalty."""
    return [
        {"params": {**candidate, "alpha": float(alpha)}, "scores": row, "fit_time": seconds}
        for alpha, row in zip(alphas, scores, strict=True)
    ]


def _columns(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The table as columns, named as GridSearchCV names them."""
    params = [row["params"] for row in results]
    scores = np.stack([row["scores"] for row in results])
    columns: dict[str, Any] = {}
    for name in (*GRID, "alpha"):
        column = np.empty(len(params), dtype=object)
        column[:] = [p[name] for p in params]
        columns[f"param_{name}"] = column
    columns["params"] = params
    for split in range(scores.shape[1]):
        columns[f"split{split}_test_score"] = scores[:, split]
    columns["mean_test_score"] = scores.mean(axis=1)
    columns["std_test_score"] = scores.std(axis=1)
    columns["rank_test_score"] = rankdata(-scores.mean(axis=1), method="min").astype(np.int32)
    columns["fit_time"] = np.array([row["fit_time"] for row in results])
    return columns
