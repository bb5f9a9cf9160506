"""Minibatch losses for deep kernels: the evidence lower bound, and the predictive density with a penalty.

    q(w) = N(mu, L L'),   KL = 1/2 [ |mu|^2 + |L|_F^2 - r - 2 sum log L_ii ],   n rows, B of them in a batch

    Elbo              -1/B sum [ log N(y; phi.mu, s + v) - |L' phi|^2 / (2 (s + v)) ]  +  KL / n
    PredictiveLoss    -1/B sum log N(y; phi.mu, |L' phi|^2 + s + v)                    +  penalty KL / n

Both are nats a row, and unbiased over batches. At its best q the first is -log_evidence / n; the second is
what a prediction is scored by, so that variances are trained rather than implied.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bochner.gp.deep import DeepKernelGP, Prediction
from bochner.validation import check_count


class WeightDistribution(nn.Module):
    """q(w) = N(mu, L L') over r weights, L lower triangular with a positive diagonal; N(0, I) at first.

    Example:
        >>> q = WeightDistribution(3)
        >>> q.divergence().item(), [v.tolist() for v in q.moments(torch.eye(3)[:1])]
        (0.0, [[0.0], [1.0]])
    """

    def __init__(self, num_weights: int) -> None:
        super().__init__()
        r = check_count("num_weights", num_weights)
        self.mean = nn.Parameter(torch.zeros(r))
        self.log_diagonal = nn.Parameter(torch.zeros(r))
        self.below = nn.Parameter(torch.zeros(r, r))

    @property
    def factor(self) -> Tensor:
        """L, [r, r]."""
        return torch.tril(self.below, -1) + torch.diag(torch.exp(self.log_diagonal))

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of phi.w for features [n, r], [n] each."""
        return features @ self.mean, (features @ self.factor).square().sum(-1)

    def divergence(self) -> Tensor:
        """KL(q, N(0, I)), in nats."""
        squares = self.mean.square().sum() + self.factor.square().sum()
        return 0.5 * (squares - len(self.mean)) - self.log_diagonal.sum()


class MinibatchLoss(nn.Module, ABC):
    """A loss of a model with its q(w), which is trained along; num_rows is n of the whole set."""

    def __init__(self, model: DeepKernelGP, weights: WeightDistribution, *, num_rows: int) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.num_rows = check_count("num_rows", num_rows)

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Nats a row for a batch x [B, d], y [B]."""

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Of f at x [t, d] by q(w) as trained (`DeepKernelGP.condition` has the exact posterior)."""
        features = self.model.features(x)
        mean, variance = self.weights.moments(features)
        return Prediction(mean, variance + self.model.white_variance(features))


class Elbo(MinibatchLoss):
    """Minus the evidence lower bound a row; equal to -log_evidence / n at the best q.

    Reference:  Titsias, 2009; Hensman, Fusi and Lawrence, Gaussian Processes for Big Data, 2013.
    Example:
        >>> gp = DeepKernelGP(nn.Linear(1, 2), prior_variance=1.0)
        >>> loss = Elbo(gp, WeightDistribution(2), num_rows=100)
        >>> loss(torch.zeros(5, 1), torch.zeros(5)).shape
        torch.Size([])
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Expected log-likelihood under q, and the divergence."""
        features = self.model.features(x)
        noise = self.model.row_noise(features)
        mean, variance = self.weights.moments(features)
        fit = _log_normal(y, mean, noise) - 0.5 * variance / noise
        return self.weights.divergence() / self.num_rows - fit.mean()


class PredictiveLoss(MinibatchLoss):
    """Minus the log predictive density a row, with the divergence at a weight of its own.

    Arguments:  penalty: the weight of KL / n, >= 0; 1 is the same regularisation as in the bound.
    Differs:    no likelihood is bounded: the noise is shared between s, v and q as predicts best.
    Reference:  Jankowiak, Pleiss and Gardner, Parametric Gaussian Process Regressors, 2020.
    """

    def __init__(
        self,
        model: DeepKernelGP,
        weights: WeightDistribution,
        *,
        num_rows: int,
        penalty: float = 1.0,
    ) -> None:
        super().__init__(model, weights, num_rows=num_rows)
        if not (penalty >= 0 and math.isfinite(penalty)):
            raise ValueError(f"penalty={penalty!r} must be finite and >= 0.")
        self.penalty = float(penalty)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log density of the predictive normal, and the divergence."""
        features = self.model.features(x)
        mean, variance = self.weights.moments(features)
        density = _log_normal(y, mean, variance + self.model.row_noise(features))
        return self.penalty * self.weights.divergence() / self.num_rows - density.mean()


def _log_normal(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((y - mean).square() / variance + variance.log() + math.log(2.0 * math.pi))


def minimise_(
    loss: MinibatchLoss,
    data: TensorDataset,
    *,
    steps: int,
    batch_rows: int,
    generator: torch.Generator,
    rate: float = 1e-2,
) -> MinibatchLoss:
    """Adam on random batches of the rows x [n, d], y [n] of `data`, its rate falling to 0; in place.

    Batches are drawn without replacement within an epoch.

    Raises:     ValueError if the data are not such rows, or not those that the loss was made for.
    """
    x, y = data.tensors
    if y.shape != x.shape[:1] or len(x) != loss.num_rows:
        raise ValueError(
            f"data has x {list(x.shape)} and y {list(y.shape)}, the loss num_rows={loss.num_rows}; expected"
            " one target a row, and a loss made for these rows."
        )
    optimiser = torch.optim.Adam(loss.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, check_count("steps", steps))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:batch_rows], order[batch_rows:]
        optimiser.zero_grad()
        loss(x[rows], y[rows]).backward()
        optimiser.step()
        schedule.step()
    return loss
