"""Deep kernels of low rank: a network gives the features of a Gaussian process, which keeps its closed form.

    y = f(x) + e,   e ~ N(0, s),   k(x, x') = phi(x).phi(x') + 1[x = x'] v(x),   v(x) = (c - |phi(x)|^2)_+

phi is any torch module from R^d to R^r. The second term is a white process that fills every prior variance
up to c where phi, having only r directions, leaves it short (a diagonal correction, as FITC's): where the
network says nothing, f has deviation sqrt(c) again. The training rows see it too: this is one Gaussian
process: Bayesian linear regression in which a row has noise s + v(x).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bochner.feature_map import FeatureMap
from bochner.gp.evidence import WeightPosterior
from bochner.gram.grid import BLOCK_ROWS
from bochner.gram.solve import PrecisionError
from bochner.gram.statistics import GramStatistics


class SpectrumOnTop(nn.Module):
    """The features of a kernel on the outputs of a network: k(g(x), g(x')), with its random directions.

        phi(x) = sqrt(a) * feature_map(g(x))

    Arguments:  network: R^d -> R^p, whose last layer is the lengthscales; feature_map: symmetric, of
                dimension p; outputscale: the initial a, which is trained as the network is.
    Raises:     ValueError for a map that treats queries and keys differently.
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=2, num_features=16, kernel="matern-5/2")
        >>> features = SpectrumOnTop(nn.Linear(5, 2), phi, outputscale=4.0)(torch.randn(3, 5))
        >>> features.detach().square().sum(-1).round(decimals=3)                        # k(x, x) = a
        tensor([4., 4., 4.])
    """

    def __init__(
        self, network: nn.Module, feature_map: FeatureMap, *, outputscale: float = 1.0
    ) -> None:
        super().__init__()
        if not feature_map.symmetric:
            raise ValueError(
                f"feature_map={type(feature_map).__name__} has two functions, one for queries and one for"
                " keys; a Gaussian process needs one: use a symmetric map, such as 'trigonometric'."
            )
        self.network, self.feature_map = network, feature_map
        self.log_outputscale = nn.Parameter(torch.tensor(math.log(outputscale)))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, d] -> [n, m]."""
        features = self.feature_map.query(self.network(x)).materialise()
        return torch.exp(0.5 * self.log_outputscale) * features


class DeepKernelGP(nn.Module):
    """A Gaussian process whose kernel is phi(x).phi(x') filled up to a prior variance c.

    Arguments:  network: phi, [n, d] -> [n, r]; noise, prior_variance: initial s and c, in units of the
                squared targets, which should be centred; both are trained.
    Numerics:   evidence and posterior in float64, whatever the network computes in; Cholesky of
                I + Phi' (s + v)^-1 Phi, to which nothing is added.
    Cost:       O(n r^2 + r^3) for evidence or posterior, O(r^2) a prediction.
    Raises:     ValueError for a network whose output is not [n, r], or for values that are not positive.
    Reference:  after Zhu, Yuchi and Xie, Scalable Deep Basis Kernel Gaussian Processes, arXiv 2505.18526,
                2025 (low-rank deep kernels); Snelson and Ghahramani, Sparse Gaussian Processes using
                Pseudo-inputs, 2006 (the diagonal); docs/theory.md 21.
    Differs:    derived here: the diagonal is part of the model that is trained, not of predictions only.
    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> nn.init.ones_(network.weight)
        Parameter containing:
        tensor([[1.]], requires_grad=True)
        >>> gp = DeepKernelGP(network, noise=0.5, prior_variance=1.0)
        >>> x = torch.tensor([[1.0], [0.0]])                          # phi = 1 and 0: v = 0 and 1
        >>> found = gp.condition(x[:1], torch.tensor([2.0])).predict(x)
        >>> found.mean.tolist(), found.variance.tolist()
        ([1.333..., 0.0], [0.333..., 1.0])
    """

    def __init__(
        self, network: nn.Module, *, noise: float = 0.1, prior_variance: float = 1.0
    ) -> None:
        super().__init__()
        for name, value in (("noise", noise), ("prior_variance", prior_variance)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value!r} must be a positive, finite number.")
        self.network = network
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)))
        self.log_prior_variance = nn.Parameter(torch.tensor(math.log(prior_variance)))

    def features(self, x: Tensor) -> Tensor:
        """phi(x): [n, d] -> [n, r]."""
        features: Tensor = self.network(x)
        if features.ndim != 2 or len(features) != len(x):
            raise ValueError(
                f"network gives shape {list(features.shape)} for points {list(x.shape)}; expected [n, r]."
            )
        return features

    def white_variance(self, features: Tensor) -> Tensor:
        """v = (c - |phi|^2)_+ for features [n, r], [n]."""
        ceiling = torch.exp(self.log_prior_variance).to(features.dtype)
        return torch.relu(ceiling - features.square().sum(-1))

    def row_noise(self, features: Tensor) -> Tensor:
        """s + v for features [n, r], [n]: the variance of y that the weights do not explain."""
        return torch.exp(self.log_noise).to(features.dtype) + self.white_variance(features)

    def log_evidence(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) from all rows at once, differentiable in everything; x [n, d], y [n].

        It overfits what has as many parameters as a network: `bochner.gp.deep_training` has losses for
        minibatches.
        """
        features, y = self.features(x).double(), y.double()
        noise = self.row_noise(features)
        scaled, targets = features / noise.sqrt().unsqueeze(-1), y / noise.sqrt()
        matrix = scaled.mT @ scaled + torch.eye(scaled.shape[-1]).to(scaled)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise PrecisionError(
                "I + Phi' (s + v)^-1 Phi is not positive definite in float64: the network's features"
                " are not finite, or too large for this noise."
            )
        cross = torch.linalg.solve_triangular(
            factor, (scaled.mT @ targets).unsqueeze(-1), upper=False
        )
        quadratic = targets.square().sum() - cross.square().sum()
        log_det = 2.0 * factor.diagonal().log().sum() + noise.log().sum()
        return -0.5 * (quadratic + log_det + len(y) * math.log(2.0 * math.pi))

    @torch.no_grad()
    def condition(self, x: Tensor, y: Tensor) -> DeepPosterior:
        """The posterior given rows x [n, d] and y [n], in blocks: one block of features in memory."""
        if y.shape != x.shape[:1]:
            raise ValueError(f"y has shape {list(y.shape)}; expected [{len(x)}], one target a row.")
        total: GramStatistics | None = None
        log_noise = 0.0
        for rows, values in zip(x.split(BLOCK_ROWS), y.split(BLOCK_ROWS), strict=True):
            features = self.features(rows).double()
            noise = self.row_noise(features)
            root = noise.sqrt().unsqueeze(-1)
            targets = values.double().unsqueeze(-1) / root
            sums = GramStatistics.of((features / root).cpu().numpy(), targets.cpu().numpy())
            total = sums if total is None else total + sums
            log_noise += float(noise.log().sum())
        assert total is not None
        weights = WeightPosterior(total, outputscale=1.0, noise=1.0)
        return DeepPosterior(self, weights, weights.log_evidence - 0.5 * log_noise)


class Prediction(NamedTuple):
    """Mean and variance of the noise-free function, [t] each; add the noise for an observation."""

    mean: Tensor
    variance: Tensor


class DeepPosterior:
    """p(f | y) of a `DeepKernelGP`: its weights in closed form, the network as it was.

    Attributes: weights: the `WeightPosterior` (of rows divided by their noise); log_evidence.
    """

    def __init__(self, model: DeepKernelGP, weights: WeightPosterior, log_evidence: float) -> None:
        self.model, self.weights, self.log_evidence = model, weights, log_evidence

    @property
    def effective_dof(self) -> float:
        """Directions that the data determine, between 0 and r; far below r if phi is rank-deficient."""
        return self.weights.effective_dof

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Of f at x [t, d], float64, on the CPU: the white part of the prior variance comes back in full."""
        features = self.model.features(x).double()
        white = self.model.white_variance(features).cpu()
        rows = features.cpu().numpy()
        mean = torch.from_numpy(rows @ self.weights.mean[:, 0])
        return Prediction(mean, torch.from_numpy(self.weights.variance(rows)) + white)
