"""Classification on random features, streamed: least squares on classes, or logistic regression.

    ridge      sum_i v_i |Y_i - W'phi_i - b|^2 + alpha |W|^2,   Y = +1 for the class, -1 for the others
    logistic   sum_i v_i log(1 + exp(-Y_i f_i)) + alpha/2 |w|^2;   of K classes: minus log softmax

One pass over the rows for the first. The second, for two classes, is Newton's method: 5 to 10 passes of
the same cost. For more classes it is L-BFGS, preconditioned by one such pass, with some tens of cheap ones.
"""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d

from bochner.gram import RidgeSolution
from bochner.gram.newton import Penalty
from bochner.gram.rows import different_values
from bochner.sklearn.classes import class_codes, class_totals, class_weighted, signed_targets
from bochner.sklearn.linear import linear_scores
from bochner.sklearn.logistic_fit import ClassRows, Stopping, fit_logistic
from bochner.sklearn.progress import progress_bar
from bochner.sklearn.ridge_fit import DTYPES, Rows, attempts
from bochner.sklearn.ridge_model import AlphaPath, RidgeModel
from bochner.sklearn.rows import FLOATS, is_distant, lazy_on_dask, validated, validated_weight

Matrix = NDArray[np.float64]


def _is_ridge(model: Any) -> bool:
    if model.loss != "ridge":
        raise AttributeError(
            f"loss={model.loss!r} needs all rows again and again; only 'ridge' adds"
        )
    return True


def _is_logistic(model: Any) -> bool:
    if model.loss != "logistic":
        raise AttributeError(f"loss={model.loss!r} has no probabilities; use loss='logistic'")
    return True


class KernelClassifier(ClassifierMixin, RidgeModel, BaseEstimator):
    """A classifier with random features, for any number of rows.

    Parameters:
        loss: "ridge" (least squares, one pass) or "logistic" (probabilities).
        alpha: the penalty; of "logistic" a number, 1/C of scikit-learn's LogisticRegression; of "ridge"
            also "gcv" or "loo", which score the targets +1 and -1.
        alphas, fit_intercept, precision, verbose: as in `KernelRidge`.
        kernel, features, projection, n_components, gamma, random_state: as in `RandomFeatures`.
        class_weight: None, "balanced" or {class: weight}.
        tol, max_iter: of "logistic": stop at a promised fall of the objective below tol times it.
    Attributes:
        classes_, coef_, intercept_: [K], [1 or K, m], [1 or K].
        n_iter_, features_, alpha_: steps, the maps of the rows, the penalty.
        statistics_: of "ridge", the sums; alphas_, criterion_: of a path.
    Numerics:   gradients of "logistic" are float64 sums, so its minimum does not depend on `precision`;
                coefficients of K classes sum to 0 over classes.
    Cost:       "ridge": n m^2 + n m (d + k) + m^3/3. "logistic", two classes: the same for every step, 5
                to 10 in all; more: it once, and some tens of passes of n m (d + 2 K).
    Raises:     ValueError for fewer than two classes; PrecisionError as `KernelRidge`.
    Example:
        >>> X = np.concatenate([np.linspace(-2, -1, 50), np.linspace(-0.5, 0.5, 50), np.linspace(1, 2, 50)])
        >>> inside = abs(X) < 0.8                                     # no line separates these
        >>> model = KernelClassifier("logistic", alpha=0.1, random_state=0).fit(X[:, None], inside)
        >>> model.score(X[:, None], inside), model.predict_proba([[0.0]]).round(1).tolist()
        (1.0, [[0.0, 1.0]])
    """

    def __init__(
        self,
        loss: str = "ridge",
        *,
        alpha: float | str = 1.0,
        alphas: Any = None,
        kernel: Any = "gaussian",
        features: Any = "trigonometric",
        projection: Any = None,
        n_components: int = 256,
        gamma: Any = "scale",
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-8,
        max_iter: int = 200,
        precision: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.alphas = alphas
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_components = n_components
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X [n, d], dense or CSR, and classes y [n], with weights [n]."""
        if self.loss not in ("ridge", "logistic"):
            raise ValueError(f"loss={self.loss!r} must be 'ridge' or 'logistic'.")
        X, y, weight = self._checked(X, y, sample_weight, reset=True)
        self.classes_ = different_values(y, X)
        self._check_classes()
        codes = class_codes(y, self.classes_)
        weight = class_weighted(self.class_weight, self.classes_, X, codes, weight)
        if self.loss == "logistic":
            return self._fit_logistic(X, codes, weight)
        self._fit_rows(Rows(X, signed_targets(codes, len(self.classes_)), weight))
        self.n_iter_ = 1
        return self

    @available_if(_is_ridge)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to what has been seen; the first call names all classes and chooses the features.

        Raises:     ValueError for a class that the first call did not name, or class_weight='balanced'.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs the frequencies of all rows; give {class: weight}, or fit."
            )
        first = not hasattr(self, "statistics_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        X, y, weight = self._checked(X, y, sample_weight, reset=first)
        if first:
            self.classes_ = np.unique(classes)
            self._check_classes()
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"classes={classes!r} are not those of the first call: {self.classes_}."
            )
        codes = class_codes(y, self.classes_)
        weight = class_weighted(self.class_weight, self.classes_, X, codes, weight)
        self._add_rows(Rows(X, signed_targets(codes, len(self.classes_)), weight), first=first)
        self.n_iter_ = 1
        return self

    @lazy_on_dask
    def decision_function(self, X: Any) -> NDArray[np.floating[Any]]:
        """Scores [n] of the second of two classes, or [n, K], streamed, float64."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        scores = linear_scores(self.features_, X, self._solved())
        return scores[:, 0] if len(self.classes_) == 2 else scores

    @lazy_on_dask
    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the highest score, [n]."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[best]

    @available_if(_is_logistic)
    @lazy_on_dask
    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Probabilities [n, K] of the classes."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return np.exp(log_softmax(scores, axis=1))

    @available_if(_is_logistic)
    @lazy_on_dask
    def predict_log_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Logarithms of the probabilities [n, K], finite also where those underflow."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return -np.stack([np.logaddexp(0, scores), np.logaddexp(0, -scores)], axis=1)
        return np.asarray(log_softmax(scores, axis=1))

    @available_if(_is_ridge)
    def path(self, alphas: Any = None) -> AlphaPath:
        """As `KernelRidge.path`, for targets +1 and -1."""
        return super().path(alphas)

    @property
    def coef_(self) -> Matrix:
        """Weights [1, m] of two classes, [K, m] of more."""
        return self._solved().coef.T

    @property
    def intercept_(self) -> Matrix:
        """Constants [1] or [K]."""
        return self._solved().intercept

    def _fit_logistic(self, X: Any, codes: Any, weight: Any) -> Self:
        if not isinstance(self.alpha, Real) or not 0 <= float(self.alpha) < np.inf:
            raise ValueError(
                f"alpha={self.alpha!r} must be a finite number >= 0 for loss='logistic'."
            )
        carried = class_totals(X, codes, len(self.classes_), weight)
        if not carried.all():
            raise ValueError(
                f"every class needs a row of positive weight; {self.classes_[carried == 0]} have none."
            )
        precisions = attempts(self.precision, X.shape[0])
        with progress_bar("passes", self.verbose) as step:
            self.features_, fit = fit_logistic(
                ClassRows(X, codes, weight, len(self.classes_)),
                self._build_features(X, DTYPES[precisions[0]], sample_weight=weight),
                Penalty(float(self.alpha), self.fit_intercept),
                Stopping(self.tol, self.max_iter),
                precisions=precisions,
                progress=step,
            )
        if not fit.converged:
            warnings.warn(
                f"{fit.num_iterations} steps did not reach tol={self.tol:g}; raise max_iter or alpha.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self._forget("statistics_", "alphas_", "criterion_")
        self.n_iter_, self.alpha_ = fit.num_iterations, float(self.alpha)
        self._solution = RidgeSolution(fit.coefficients[:-1], fit.coefficients[-1])
        return self

    def _check_classes(self) -> None:
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class, {self.classes_}; a classifier needs rows of at least two classes."
            )

    def _checked(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> tuple[Any, Any, Any]:
        if y is None:
            raise ValueError("KernelClassifier requires y to be passed, but the target y is None.")
        X, y = validated(
            self, X, y, accept_sparse="csr", dtype=FLOATS, multi_output=True, reset=reset
        )
        if is_distant(X):
            return X, y, validated_weight(X, sample_weight)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if sample_weight is None:
            return X, y, None
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y, weight

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
