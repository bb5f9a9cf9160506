"""Lengthscales, outputscale and noise by the evidence of the feature model, with its gradient.

    maximise log p(y | X, l, a, s) over log l (one, or one for each dimension), log a, log s

with the random directions fixed, so that it is one smooth function: features are those of x / l. Rows come in
blocks. A first pass sums Phi'Phi and Phi'y, whose evidence and gradient are in closed form
(`bochner.gp.evidence`); a second pass gives every block Phi_b the gradient Phi_b (D + D') + y_b d' and lets
autograd carry it through the features to l. No more than one block of features is in memory. With fewer rows
than features the same evidence is cheaper through K = a Phi Phi' + s I, which then replaces both passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.gp.evidence import WeightPosterior
from bochner.gp.exact import ExactPosterior

Array = NDArray[np.float64]

LENGTHSCALE_RANGE = 1e4
"""A lengthscale moves at most by this factor from where it starts, up or down."""
NOISE_RANGE = (1e-6, 1e2)
"""Of the noise, in units of the variance of y: below it, Phi'Phi + (s/a) I is near what float64 resolves."""
OUTPUTSCALE_RANGE = (1e-4, 1e4)
"""Of the outputscale, in units of the variance of y."""

FIRST_STEP = 0.5
"""Largest change of a logarithm in the first step of the search."""


@dataclass(frozen=True)
class Hyperparameters:
    """Lengthscales [1] (one for all) or [d], outputscale a, noise variance s.

    Example:
        >>> h = Hyperparameters(np.array([2.0]), outputscale=1.0, noise=0.1)
        >>> Hyperparameters.from_logs(h.logs()) == h
        True
    """

    lengthscales: Array
    outputscale: float
    noise: float

    def logs(self) -> Array:
        """All of them in one vector of logarithms: lengthscales, outputscale, noise."""
        return np.log(np.concatenate([self.lengthscales, [self.outputscale, self.noise]]))

    @classmethod
    def from_logs(cls, logs: Array) -> Hyperparameters:
        """The inverse of `logs`."""
        values = np.exp(logs)
        return cls(values[:-2], float(values[-2]), float(values[-1]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hyperparameters) and np.allclose(
            self.logs(), other.logs(), rtol=0, atol=1e-12
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Optimum:
    """Where the search ended: hyper-parameters, log evidence there, iterations, what sits at a bound."""

    hyperparameters: Hyperparameters
    log_evidence: float
    iterations: int
    converged: bool
    at_bounds: tuple[str, ...]


class StreamedEvidence:
    """log p(y) as a function of the hyper-parameters, with its gradient in their logarithms.

    Arguments:  feature_map: symmetric, differentiable in its inputs; x: centred rows [n, d]; y: centred
                targets [n, k]; block_rows: rows whose features are in memory at one time.
    Numerics:   features, sums and factorisations in float64.
    Cost:       O(n m^2 + m^3) a call, twice that of the value alone; O(n^2 m) where n < m.
    Raises:     ValueError if the map is not symmetric, or its features do not depend smoothly on x.
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=1, num_features=8, kernel="gaussian",
        ...                    generator=torch.Generator().manual_seed(0))
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
        >>> evidence = StreamedEvidence(phi, x, torch.sin(3 * x))
        >>> value, gradient = evidence(Hyperparameters(np.array([0.5]), outputscale=1.0, noise=0.1))
        >>> gradient.shape
        (3,)
    """

    def __init__(
        self, feature_map: FeatureMap, x: Tensor, y: Tensor, *, block_rows: int = 4096
    ) -> None:
        if not feature_map.symmetric:
            raise ValueError(
                f"feature_map {type(feature_map).__name__} is not symmetric: its query and key features"
                " differ, so that Phi'Phi is no Gram matrix of a model; use a symmetric one."
            )
        self.feature_map, self.block_rows = feature_map, block_rows
        self.x, self.y = x.double(), y.double()

    def __call__(self, at: Hyperparameters) -> tuple[float, Array]:
        """(log evidence, gradient in `at.logs()`)."""
        if len(self.x) < self.feature_map.num_features:
            return self._through_rows(at)
        return self._through_sums(at)

    def exact(self, at: Hyperparameters) -> float:
        """The evidence of the kernel itself, which the features estimate: O(n^3).

        Far below the features' own, it says that the search has fitted the features' random frequencies.
        """
        z = self.x / torch.from_numpy(at.lengthscales)
        posterior = ExactPosterior(
            self.feature_map, z, self.y.numpy(), outputscale=at.outputscale, noise=at.noise
        )
        return posterior.log_evidence

    def posterior(self, at: Hyperparameters) -> WeightPosterior:
        """The weights' posterior there: the first pass."""
        m, k = self.feature_map.num_features, self.y.shape[-1]
        gram, cross = np.zeros((m, m)), np.zeros((m, k))
        with torch.no_grad():
            for phi, y in self._blocks(torch.from_numpy(np.log(at.lengthscales))):
                p = phi.numpy()
                gram += p.T @ p
                cross += p.T @ y.numpy()
        sums = _Sums(gram, cross, (self.y.T @ self.y).numpy(), len(self.x))
        return WeightPosterior(sums, outputscale=at.outputscale, noise=at.noise)

    def _through_sums(self, at: Hyperparameters) -> tuple[float, Array]:
        posterior = self.posterior(at)
        gradient = posterior.gradient()
        log_lengthscales = torch.from_numpy(np.log(at.lengthscales))
        d_gram, d_cross = torch.from_numpy(2.0 * gradient.gram), torch.from_numpy(gradient.cross)
        log_lengthscales.requires_grad_()
        slope = torch.zeros_like(log_lengthscales)
        for phi, y in self._blocks(log_lengthscales):
            with torch.no_grad():
                d_phi = phi @ d_gram + y @ d_cross.T
            slope += _pulled_back(phi, d_phi, log_lengthscales)
        scales = [gradient.log_outputscale, gradient.log_noise]
        return posterior.log_evidence, np.concatenate([slope.numpy(), scales])

    def _through_rows(self, at: Hyperparameters) -> tuple[float, Array]:
        """The same by K = a Phi Phi' + s I: d log p / dK = (alpha alpha' - k K^-1) / 2, alpha = K^-1 Y."""
        n, k = self.y.shape
        log_lengthscales = torch.from_numpy(np.log(at.lengthscales)).requires_grad_()
        ((phi, _),) = self._blocks(log_lengthscales, rows=n)
        p, y = phi.detach().numpy(), self.y.numpy()
        kernel = at.outputscale * (p @ p.T)
        kernel[np.diag_indices(n)] += at.noise
        factor = cholesky(kernel, lower=True, overwrite_a=True)
        alpha = cho_solve((factor, True), y)
        inverse = cho_solve((factor, True), np.eye(n))
        log_det = 2.0 * float(np.log(np.diagonal(factor)).sum())
        value = -0.5 * (float((y * alpha).sum()) + k * (log_det + n * math.log(2 * math.pi)))
        d_kernel = 0.5 * (alpha @ alpha.T - k * inverse)
        d_half = at.outputscale * (d_kernel @ p)
        slope = _pulled_back(phi, torch.from_numpy(2.0 * d_half), log_lengthscales)
        scales = [float((d_half * p).sum()), at.noise * float(np.trace(d_kernel))]
        return value, np.concatenate([slope.numpy(), scales])

    def _blocks(
        self, log_lengthscales: Tensor, rows: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [b, m] and targets [b, k] of consecutive rows."""
        rows = rows or self.block_rows
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            yield self.feature_map.query(x * torch.exp(-log_lengthscales)).materialise(), y


@dataclass(frozen=True)
class _Sums:
    gram: Array
    cross: Array
    target_products: Array
    num_rows: int


def _pulled_back(phi: Tensor, d_phi: Tensor, log_lengthscales: Tensor) -> Tensor:
    """The gradient in the lengthscales of what has gradient d_phi in the features."""
    if not phi.requires_grad:
        raise ValueError(
            "these features are no differentiable function of their inputs (bins, landmarks that were"
            " chosen once): their lengthscales have no gradient; fix them."
        )
    (slope,) = torch.autograd.grad(phi, log_lengthscales, d_phi)
    return slope


def maximise_evidence(
    evidence: StreamedEvidence, start: Hyperparameters, *, max_iterations: int = 60
) -> Optimum:
    """The hyper-parameters of largest evidence by L-BFGS-B from `start`.

    A local maximum: the evidence of a Gaussian process has several, and the one found depends on `start`.

    Numerics:   searched within LENGTHSCALE_RANGE, NOISE_RANGE, OUTPUTSCALE_RANGE; what ended at one of
                these bounds is named in `at_bounds`, for the caller to report (a lengthscale at its largest
                is not: its input does not matter).
    Cost:       about 1.1 evaluations an iteration; 20 to 60 iterations are usual.
    Raises:     ValueError as `StreamedEvidence`.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("trigonometric", dim=1, num_features=64, kernel="gaussian", generator=g)
        >>> x = torch.linspace(-2, 2, 200, dtype=torch.float64)[:, None]
        >>> y = torch.sin(4 * x) + 0.1 * torch.randn(200, 1, generator=g, dtype=torch.float64)
        >>> start = Hyperparameters(np.array([1.0]), outputscale=1.0, noise=0.1)
        >>> round(maximise_evidence(StreamedEvidence(phi, x, y), start).hyperparameters.noise ** 0.5, 1)
        0.1
    """
    unit = unit_variance(evidence.y)
    first = start.logs()
    reach = math.log(LENGTHSCALE_RANGE)
    bounds = [(v - reach, v + reach) for v in first[:-2]]
    bounds += [tuple(np.log(np.array(r) * unit)) for r in (OUTPUTSCALE_RANGE, NOISE_RANGE)]
    # the first step of L-BFGS-B is the gradient itself: it must not leave the basin of `start`
    scale = max(evidence.y.numel(), float(np.abs(evidence(start)[1]).max()) / FIRST_STEP)

    def negative(logs: Array) -> tuple[float, Array]:
        value, gradient = evidence(Hyperparameters.from_logs(logs))
        return -value / scale, -gradient / scale

    options = {"maxiter": max_iterations, "ftol": 1e-8, "gtol": 1e-5}
    found = minimize(negative, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    names = [*(f"lengthscale {i}" for i in range(len(first) - 2)), "outputscale", "noise"]
    at_bounds = tuple(
        name
        for name, value, (low, high) in zip(names, found.x, bounds, strict=True)
        if value - low < 1e-6 or (high - value < 1e-6 and not name.startswith("lengthscale"))
    )
    return Optimum(
        Hyperparameters.from_logs(found.x), -scale * float(found.fun), int(found.nit),
        bool(found.success), at_bounds,
    )  # fmt: skip


def unit_variance(y: Tensor) -> float:
    """The mean variance of the targets' columns; 1 where they are constant and have no unit."""
    variance = float(y.double().var(dim=0, correction=0).mean())
    return variance if variance > 0 else 1.0
