"""Gaussian process regression whose fit is streamed and whose deviations do not starve."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from bochner.catalog import spec
from bochner.gp.conditioning import exact, on_features, on_landmarks, scaled
from bochner.gp.hyperparameters import (
    Hyperparameters,
    StreamedEvidence,
    maximise_evidence,
    unit_variance,
)
from bochner.gp.paths import PosteriorPaths
from bochner.gp.posterior import Posterior
from bochner.gram import BlockFeatures
from bochner.gram.distributed import GroupRows
from bochner.gram.rows import is_dask, take_rows
from bochner.sklearn.model import FeatureParameters
from bochner.sklearn.rows import lazy_on_dask, validated

EXACT_ROWS = 4096
"""Rows up to which posterior='auto' is exact: k(X, X) takes 128 MB."""
PREDICTED_ROWS = 1024
"""Rows that are predicted at one time."""
LARGEST_GAP = 0.1
"""Log evidence for each observation by which the features may exceed the kernel without a warning."""
NOISE_SHARE = 0.1
"""noise='scale' is this share of the variance of y."""

Array = NDArray[np.float64]


class GaussianProcess(FeatureParameters, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Gaussian process regression on random features, landmarks or all rows.

    Random features give the evidence, by whose gradient the hyper-parameters are found, and the prior of
    posterior paths. Predictions come from `posterior`:

    - "exact" (n <= 4,096 under "auto"): the exact posterior from all rows, O(n^2) memory;
    - "nystrom" (larger n under "auto"): `n_landmarks` random rows. The deviation holds what the landmarks
      cannot express, so it returns to the prior's away from them. One pass, memory does not grow with n;
    - "features": regression on the features alone: the cheapest, O(m^2) a prediction. Its deviations starve
      once the data determine most weights; a warning says so from effective_dof_ > n_components / 2 on.

    Parameters:
        kernel, features, projection, n_components, gamma, random_state: as in `RandomFeatures`; gamma is
            where the search for lengthscales starts.
        outputscale: prior variance of the function; "scale" is the variance of y.
        noise: variance of the noise; "scale" is a tenth of the variance of y.
        hyperparameters: "ard" searches for a lengthscale for each column, "isotropic" for one common
            factor, both for outputscale and noise too; "fixed" takes what is given.
        posterior: "auto", "exact", "nystrom" or "features".
        n_landmarks: of "nystrom".
        max_optimizer_rows: the evidence is that of at most so many random rows (2,048: a compromise of
            time; optimizer_rows_ says how many there were). Predictions always use all rows.
    Attributes:
        lengthscales_, outputscale_, noise_, y_mean_: what was found, [d] and numbers.
        features_, posterior_: what predicts.
        optimizer_rows_: how many rows the search looked at, 0 if fixed.
        evidence_gap_: log evidence for each of these rows by which the features exceed the exact kernel
            where the search ended; NaN above 4,096 rows and if fixed.
        log_marginal_likelihood_value_, effective_dof_: of the model that predicts, on all rows.
    Numerics:   search, landmarks and exact formulas in float64; sums over rows in float32 blocks where
                noise / outputscale bears it (1e-6 n), in float64 otherwise.
    Error:      intervals are those of the model: they cover where kernel and noise are right, on average
                over the inputs, and know nothing of the uncertainty of hyper-parameters and of y_mean_.
    Cost:       search: about 40 times 2 n' m^2, n' = max_optimizer_rows; then n^3 / 3 (exact),
                n p (p + m) (nystrom) or n m^2 (features).
    Raises:     ValueError, naming the parameter; PrecisionError for a noise too small for float64.
    Reference:  docs/theory.md 24; Rasmussen and Williams, 2006; Wilson et al., 2020.
    Example:
        >>> X = np.linspace(0, 10, 200)[:, None]
        >>> y = np.sin(X[:, 0]) + 0.1 * np.random.default_rng(0).normal(size=200)
        >>> gp = GaussianProcess(n_components=64, random_state=0).fit(X, y)
        >>> mean, std = gp.predict([[5.0], [100.0]], return_std=True)
        >>> far = std[1] ** 2 / gp.outputscale_       # the prior's variance: nothing is known there
        >>> round(gp.noise_ ** 0.5, 2), bool(std[0] < 0.05), round(float(far), 6)
        (0.1, True, 1.0)
    """

    def __init__(
        self,
        kernel: Any = "gaussian",
        *,
        features: Any = "trigonometric",
        projection: Any = None,
        n_components: int = 512,
        gamma: Any = "scale",
        outputscale: Any = "scale",
        noise: Any = "scale",
        hyperparameters: str = "ard",
        posterior: str = "auto",
        n_landmarks: int = 512,
        max_optimizer_rows: int = 2048,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_components = n_components
        self.gamma = gamma
        self.outputscale = outputscale
        self.noise = noise
        self.hyperparameters = hyperparameters
        self.posterior = posterior
        self.n_landmarks = n_landmarks
        self.max_optimizer_rows = max_optimizer_rows
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Sparse rows are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # -- fit ----------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any) -> GaussianProcess:
        """Find the hyper-parameters and condition on all rows: X [n, d] dense or CSR, y [n] or [n, k]."""
        self._check_choices()
        if isinstance(X, GroupRows):
            raise TypeError(
                "GaussianProcess takes rows in memory or of Dask, not over the ranks of a process group:"
                " its hyper-parameters are found on some rows of all, with their targets."
            )
        X, y = validated(
            self, X, y, accept_sparse="csr", dtype=(np.float64, np.float32),
            multi_output=True, y_numeric=True,
        )  # fmt: skip
        random = check_random_state(self.random_state)
        targets = np.asarray(y, dtype=np.float64)
        self.y_mean_ = targets.mean(axis=0)
        targets = (targets - self.y_mean_).reshape(len(targets), -1)
        features = self._build_features(X, np.float64)
        found = self._found(features, X, targets, random)
        inverse = features.inverse_lengthscales / found.lengthscales
        self.features_ = BlockFeatures(
            features.feature_map, inverse_lengthscales=inverse, offset=features.offset
        )
        self.lengthscales_ = 1.0 / inverse
        self.outputscale_, self.noise_ = found.outputscale, found.noise
        self.posterior_ = self._conditioned(X, targets, random)
        self.log_marginal_likelihood_value_ = self.posterior_.log_evidence
        self.effective_dof_ = self.posterior_.effective_dof
        self._warn_of_few_directions()
        return self

    def _check_choices(self) -> None:
        for name, choices in (
            ("hyperparameters", ("ard", "isotropic", "fixed")),
            ("posterior", ("auto", "exact", "nystrom", "features")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, choices))}."
                )
        for name in ("outputscale", "noise"):
            value = getattr(self, name)
            if value != "scale" and not (isinstance(value, Real) and 0 < float(value) < math.inf):
                raise ValueError(f"{name}={value!r} must be 'scale' or a positive number.")
        for name in ("n_landmarks", "max_optimizer_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1.")
        named = isinstance(self.features, str) and spec(self.features).needs_data
        if named and self.hyperparameters != "fixed":
            raise ValueError(
                f"features={self.features!r} are fitted to the data at one lengthscale, which cannot be"
                " searched for through them; use hyperparameters='fixed'."
            )

    def _found(
        self, features: BlockFeatures, X: Any, targets: Array, random: Any
    ) -> Hyperparameters:
        """Factors of the lengthscales [1] or [d], outputscale and noise."""
        unit = unit_variance(torch.from_numpy(targets))
        start = Hyperparameters(
            np.ones(features.dim if self.hyperparameters == "ard" else 1),
            unit if self.outputscale == "scale" else float(self.outputscale),
            NOISE_SHARE * unit if self.noise == "scale" else float(self.noise),
        )
        self.optimizer_rows_, self.evidence_gap_ = 0, math.nan
        if self.hyperparameters == "fixed":
            return start
        rows = _some(len(targets), self.max_optimizer_rows, random)
        self.optimizer_rows_ = len(rows)
        scaled = torch.from_numpy(np.ascontiguousarray(features.scaled(take_rows(X, rows))))
        evidence = StreamedEvidence(features.feature_map, scaled, torch.from_numpy(targets[rows]))
        optimum = maximise_evidence(evidence, start)
        if optimum.at_bounds or not optimum.converged:
            where = ", ".join(optimum.at_bounds) or "no bound"
            warnings.warn(
                f"the search for hyper-parameters ended after {optimum.iterations} iterations at"
                f" {where}: scale X and y, start it elsewhere (gamma, outputscale, noise), or fix them.",
                ConvergenceWarning,
                stacklevel=3,
            )
        dof = evidence.posterior(optimum.hyperparameters).effective_dof
        if dof > features.num_features / 2:
            _warn_starved("hyper-parameters come from a model", dof, features.num_features)
        if len(rows) <= EXACT_ROWS:
            gap = optimum.log_evidence - evidence.exact(optimum.hyperparameters)
            self.evidence_gap_ = gap / targets[rows].size
        if self.evidence_gap_ > LARGEST_GAP:
            warnings.warn(
                f"the features' evidence exceeds the kernel's own by {self.evidence_gap_:.2f} for each"
                " observation: the search has fitted their random frequencies, so that lengthscales are not"
                " to be trusted; use a larger n_components, or another gamma to start from.",
                UserWarning,
                stacklevel=3,
            )
        return optimum.hyperparameters

    def _conditioned(self, X: Any, targets: Array, random: Any) -> Posterior:
        """The posterior given all rows."""
        kind = self.posterior
        if kind == "auto":
            kind = "exact" if len(targets) <= EXACT_ROWS else "nystrom"
        scales = {"outputscale": self.outputscale_, "noise": self.noise_}
        if kind == "exact":
            return exact(self.features_, take_rows(X, np.arange(len(targets))), targets, **scales)
        if kind == "features":
            return on_features(self.features_, X, targets, **scales)
        rows = _some(len(targets), self.n_landmarks, random)
        centres = scaled(self.features_, take_rows(X, rows))
        return on_landmarks(self.features_, centres, X, targets, **scales)

    def _warn_of_few_directions(self) -> None:
        """Features that starve, or landmarks that could be more."""
        dof, directions = self.effective_dof_, self.posterior_.num_directions
        if dof <= directions / 2:
            return
        if self.posterior_.name == "features":
            _warn_starved("deviations come from a model", dof, directions)
        if self.posterior_.name == "nystrom":
            warnings.warn(
                f"the data determine {dof:.0f} directions of {directions} landmarks: the mean could follow"
                " the data more closely with a larger n_landmarks (deviations already hold what it lacks).",
                UserWarning,
                stacklevel=3,
            )

    # -- predict ------------------------------------------------------------------------------------
    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Mean of the noise-free function, with its standard deviation or covariance if asked for.

        An observation's deviation is sqrt(std**2 + noise_); see `predict_interval`.

        Shapes:     X [t, d] -> mean [t] or [t, k]; std of the same shape; covariance [t, t] or [t, t, k].
        """
        if return_std and return_cov:
            raise ValueError("return_std and return_cov are both True; ask for one of them.")
        if is_dask(X):
            if return_cov:
                raise ValueError("return_cov=True wants all rows at once; give it X.compute().")
            return (self._mean(X), self._std(X)) if return_std else self._mean(X)
        z = self._checked(X)
        blocks = z.split(PREDICTED_ROWS)
        mean = np.concatenate([self.posterior_.mean(block) for block in blocks])
        outputs = mean.shape[-1]
        flat = np.ndim(self.y_mean_) == 0
        mean = (mean[:, 0] if flat else mean) + self.y_mean_
        if return_std:
            std = np.sqrt(np.concatenate([self.posterior_.variance(block) for block in blocks]))
            return mean, std if flat else np.repeat(std[:, None], outputs, axis=1)
        if return_cov:
            covariance = self.posterior_.covariance(z)
            return mean, covariance if flat else np.repeat(covariance[..., None], outputs, axis=-1)
        return mean

    @lazy_on_dask
    def _mean(self, X: Any) -> Array:
        mean: Array = self.predict(X)
        return mean

    @lazy_on_dask
    def _std(self, X: Any) -> Array:
        std: Array = self.predict(X, return_std=True)[1]
        return std

    def predict_interval(self, X: Any, coverage: float = 0.95) -> Array:
        """Central intervals for new observations, noise included.

        Shapes:     X [t, d] -> [t, 2], lower and upper end; [t, 2, k] for k outputs.
        Raises:     ValueError unless 0 < coverage < 1.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage={coverage!r} must lie between 0 and 1, for example 0.95.")
        mean, std = self.predict(X, return_std=True)
        half = norm.ppf(0.5 + coverage / 2) * np.sqrt(np.square(std) + self.noise_)
        return np.stack([mean - half, mean + half], axis=1)

    def posterior_paths(self, n_paths: int = 1, random_state: Any = None) -> PosteriorPaths:
        """Draws of the function as differentiable torch callables: x [*b, t, d] -> [*b, n_paths, t].

        Raises:     ValueError for several outputs.
        """
        check_is_fitted(self)
        generator = torch.Generator()
        generator.manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        paths = self.posterior_.paths(n_paths, generator)
        offset = self.features_.offset
        zero = np.zeros(self.features_.dim)
        return paths.in_units(
            offset=torch.from_numpy(zero if offset is None else offset),
            inverse_lengthscales=torch.from_numpy(self.features_.inverse_lengthscales),
            mean=float(np.ravel(self.y_mean_)[0]),
        )

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Draws of the noise-free function at X [t, d], [t, n_samples]: `posterior_paths` at X."""
        paths = self.posterior_paths(n_samples, random_state)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        dense = X.toarray() if hasattr(X, "toarray") else X
        with torch.no_grad():
            drawn: Array = paths(torch.from_numpy(dense.astype(np.float64))).numpy()
        return drawn.T

    def _checked(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        return scaled(self.features_, X)


def _some(count: int, most: int, random: Any) -> NDArray[np.int64]:
    """At most `most` of `count` rows, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(random.permutation(count)[:most])


def _warn_starved(what: str, dof: float, num_features: int) -> None:
    warnings.warn(
        f"{what} in which the data determine {dof:.0f} of {num_features} weights: with so few features left"
        " free its deviations are too small and its noise too large; use a larger n_components.",
        UserWarning,
        stacklevel=4,
    )
