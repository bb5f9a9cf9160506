"""From projections u = x . omega to features of exp(x.y): what makes a map positive or oscillating.

    positive       exp(u - |x|^2/2) / sqrt(r)                              one column a projection
    hyperbolic     [exp(u - |x|^2/2), exp(-u - |x|^2/2)] / sqrt(2r)        two
    trigonometric  [cos u, sin u] exp(+|x|^2/2) / sqrt(r)                  two

each times sqrt(p/psi)(omega) if the directions come from a proposal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.features import Features


class Nonlinearity(ABC):
    """A pointwise function of the projections, with what theory has to know about it."""

    columns: int
    """Columns that one projection spends (num_features = columns * num_projections)."""
    positive: bool
    """Whether all features are positive."""
    even: bool
    """Whether the estimate averages over +omega and -omega."""
    oscillating: bool
    """Whether its variance depends on x - y (trigonometric) instead of x + y."""

    @abstractmethod
    def features(
        self, projected: Tensor, half_norms: Tensor, log_weight: Tensor | None
    ) -> Features:
        """Features of exp(x.y).

        Shapes:     projected [*b, n, r], handed over: the features may write over it;
                    half_norms = |x|^2/2 [*b, n, 1], log_weight [*batch, r]
                    -> Features [*b, n, columns * r].
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _weighted(logs: Tensor, log_weight: Tensor | None) -> Tensor:
    return logs if log_weight is None else logs + log_weight.unsqueeze(-2)


@dataclass(frozen=True, repr=False)
class Positive(Nonlinearity):
    """exp(u - |x|^2/2) / sqrt(r): positive, so denominators of attention stay positive.

    Error:      relative variance (e^{|x+y|^2} - 1) / r for iid N(0, I) directions.
    Reference:  Choromanski et al., Rethinking Attention with Performers, 2021, Lemma 1.
    """

    columns = 1
    positive = True
    even = False
    oscillating = False

    def features(
        self, projected: Tensor, half_norms: Tensor, log_weight: Tensor | None
    ) -> Features:
        """Logarithms u + log_weight, scale -|x|^2/2 - log(r)/2."""
        log_scale = -half_norms - 0.5 * math.log(projected.shape[-1])  # 1/sqrt(r)
        return Features.from_own_logs(_weighted(projected, log_weight), log_scale)


@dataclass(frozen=True, repr=False)
class Hyperbolic(Nonlinearity):
    """[exp(u), exp(-u)] exp(-|x|^2/2) / sqrt(2r): zero error at x = -y.

    Error:      relative variance 2 sinh^2(|x+y|^2/2) / r for iid N(0, I) directions.
    Reference:  Choromanski et al., 2021, Lemma 1 (SM^hyp+).
    """

    columns = 2
    positive = True
    even = True
    oscillating = False

    def features(
        self, projected: Tensor, half_norms: Tensor, log_weight: Tensor | None
    ) -> Features:
        """Logarithms ±u + log_weight, scale -|x|^2/2 - log(2r)/2."""
        both = (_weighted(u, log_weight) for u in (projected, -projected))
        log_features = torch.cat((*both,), dim=-1)
        log_scale = -half_norms - 0.5 * math.log(2 * projected.shape[-1])  # 1/sqrt(2r)
        return Features.from_own_logs(log_features, log_scale)


@dataclass(frozen=True, repr=False)
class Trigonometric(Nonlinearity):
    """[cos u, sin u] exp(|x|^2/2) / sqrt(r): zero error at x = y, signed elsewhere.

    Error:      relative variance 2 sinh^2(|x-y|^2/2) / r for iid N(0, I) directions.
    Reference:  Rahimi and Recht, 2007; Choromanski et al., 2022, Lemma 1.4.
    """

    columns = 2
    positive = False
    even = True
    oscillating = True

    def features(
        self, projected: Tensor, half_norms: Tensor, log_weight: Tensor | None
    ) -> Features:
        """Cosines and sines, scale +|x|^2/2 - log(r)/2."""
        values = torch.cat((torch.cos(projected), torch.sin(projected)), dim=-1)
        log_scale = half_norms - 0.5 * math.log(projected.shape[-1])  # 1/sqrt(r)
        if log_weight is not None:
            shift = log_weight.amax(dim=-1, keepdim=True)
            weight = torch.exp(log_weight - shift)
            values = values * torch.cat((weight, weight), dim=-1).unsqueeze(-2)
            log_scale = log_scale + shift.unsqueeze(-2)
        return Features(values, log_scale.expand(*values.shape[:-1], 1))
