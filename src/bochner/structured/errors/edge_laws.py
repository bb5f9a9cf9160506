"""rho: how the estimates of two edges move together, for any feature map with a closed form.

    E[K^_e K^_f] / (K_e K_f) = 1 + (rho(e, f) - 1) / r           e = (x, y), f = (x', y'), r directions

    positive        e^{s.s'}       s = x + y       hyperbolic, antithetic    cosh(s.s')
    trigonometric   cosh(t.t')     t = x - y       complex matrix A          theory 8, s = A x + A^-T y
    any Gaussian proposal N(mean, S), GERF's among them: theory 3, in the eigenbasis of S

Every rho depends on an edge through one vector alone, its `exponent`. The formulas themselves are
those of `bochner.moments` and `bochner.exponents`.

Reference:  docs/theory.md 3, 8, 14.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.directional import DirectionalMap
from bochner.exponents import shared_covariance
from bochner.feature_map import FeatureMap
from bochner.moments import log_cross_moment, log_second_moment_pairs, rho_of
from bochner.random_features import RandomFeatures
from bochner.transformed import TransformedFeatures


class EdgeLaw(ABC):
    """rho - 1 of all pairs of edges, and the number of independent directions that divides it.

    Example:
        >>> from bochner import make
        >>> law = edge_law(make("positive", dim=2, num_features=8, projection="iid"))
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> s = law.exponents(x, y)
        >>> law.directions, round(float(law.excess(s, s)), 4)            # e^{|x + y|^2} - 1
        (8, 6.3891)
    """

    directions: int
    """Independent directions of one draw, a pair ±w counted once."""

    @abstractmethod
    def exponents(self, x: Tensor, y: Tensor) -> Tensor:
        """The vector of each edge: x and y [*e, d], row by row -> [*e, d], double precision."""

    @abstractmethod
    def excess(self, one: Tensor, other: Tensor) -> Tensor:
        """rho - 1 of all pairs: exponents [*b, e, d] and [*b, f, d] -> [*b, e, f], float64; inf where
        it leaves float64."""

    @abstractmethod
    def own_excess(self, x: Tensor, y: Tensor) -> Tensor:
        """rho(e, e) - 1 of every edge e = (x_i, y_j): x [*b, n, d], y [*b, k, d] -> [*b, n, k]."""


def edge_law(feature_map: FeatureMap) -> EdgeLaw:
    """The closed form of a feature map; coupled directions count as independent.

    Error:      exact for iid directions. Orthogonal and simplex ones vary a little less (theory 2),
                which is left out.
    Raises:     ValueError for a map without a closed form: expressions, mixtures, biased maps and
                directions that are not normal (Hadamard, Sobol); see `RedrawnLaw`.
    """
    found = closed_form(feature_map)
    if found is None:
        raise ValueError(
            f"feature_map {type(feature_map).__name__} (unbiased={feature_map.unbiased}) has no closed form"
            " for the covariance of two estimates; use positive, hyperbolic, trigonometric, gerf, sderf,"
            " aderf, data-aware, balanced-exponential or complex-exponential features with iid,"
            " orthogonal, simplex or antithetic directions, or estimate it with RedrawnLaw."
        )
    return found


def closed_form(feature_map: FeatureMap) -> EdgeLaw | None:
    """As `edge_law`; None where there is none."""
    if isinstance(feature_map, TransformedFeatures):
        inner = closed_form(feature_map.inner)
        return None if inner is None else _Moved(inner, feature_map)
    if isinstance(feature_map, DirectionalMap):
        base = feature_map.base_projection
        normal = base.coupling(1, feature_map.dim) is not None
        if isinstance(feature_map, RandomFeatures) and normal and feature_map.proposal.gaussian:
            return _GaussianLaw(feature_map)
        if normal and feature_map.exponents(*_point(feature_map.dim)) is not None:
            return _ExponentialLaw(feature_map)
    return None


def _point(dim: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, dim), torch.zeros(1, dim)


class _GaussianLaw(EdgeLaw):
    """Positive, hyperbolic or trigonometric features under any Gaussian proposal."""

    def __init__(self, feature_map: RandomFeatures) -> None:
        self.directions, mirrored = feature_map.directions.independent
        self._even = mirrored or feature_map.nonlinearity.even
        self._oscillating = feature_map.nonlinearity.oscillating
        self._proposal = feature_map.proposal
        self._rho = rho_of(feature_map.proposal.variances)

    def exponents(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y (or x - y) in the proposal's eigenbasis, its mean taken off."""
        x = self._proposal.coordinates(x.detach().double())
        y = self._proposal.coordinates(y.detach().double())
        if self._oscillating:
            return x - y
        return x + y if self._proposal.centred else x + y - self._proposal.centre.to(x.device)

    def excess(self, one: Tensor, other: Tensor) -> Tensor:
        """docs/theory.md 3."""
        rho = self._rho.to(one.device)
        moment = log_cross_moment(one, other, rho, oscillating=self._oscillating, even=self._even)
        return torch.expm1(moment)

    def own_excess(self, x: Tensor, y: Tensor) -> Tensor:
        """docs/theory.md 3, without the vectors of all pairs."""
        x = self._proposal.coordinates(x.detach().double())
        y = self._proposal.coordinates(y.detach().double())
        if not self._oscillating and not self._proposal.centred:
            x = x - self._proposal.centre.to(x.device)
        rho = self._rho.to(x.device)
        moment = log_second_moment_pairs(x, y, rho, oscillating=self._oscillating, even=self._even)
        return torch.expm1(moment).clamp_min(0.0)


class _ExponentialLaw(EdgeLaw):
    """Complex exponentials with any matrix."""

    def __init__(self, feature_map: DirectionalMap) -> None:
        self.directions, _ = feature_map.directions.independent
        self._map = feature_map

    def exponents(self, x: Tensor, y: Tensor) -> Tensor:
        """A x + A^-T y, complex."""
        flat = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        found = self._map.exponents(*flat)
        assert found is not None
        return (found[0] + found[1]).reshape(x.shape)

    def excess(self, one: Tensor, other: Tensor) -> Tensor:
        """docs/theory.md 8, every exponent carried by the key points of one grid."""
        zero = torch.zeros_like(one[..., :1, :])
        found = self._map.exponents(*_point(self._map.dim))
        assert found is not None
        grid = shared_covariance(zero, one, zero, other, count=1, even=found[2], grid=True)
        return grid.squeeze(-3)

    def own_excess(self, x: Tensor, y: Tensor) -> Tensor:
        """docs/theory.md 8."""
        found = self._map.exponents(x, y)
        assert found is not None
        queries, keys, even = found
        return shared_covariance(queries, keys, queries, keys, count=1, even=even).clamp_min(0.0)


@dataclass(frozen=True)
class _Moved(EdgeLaw):
    """The law of the inner map at transformed points."""

    inner: EdgeLaw
    outer: TransformedFeatures

    @property
    def directions(self) -> int:  # type: ignore[override]
        """The inner map's."""
        return self.inner.directions

    def exponents(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner map's, of transformed points."""
        transform = self.outer.transform
        flat = (
            x.detach().double().reshape(-1, x.shape[-1]),
            y.detach().double().reshape(-1, y.shape[-1]),
        )
        moved = (transform.queries(flat[0]).points, transform.keys(flat[1]).points)
        one, two = (p.detach().reshape(*x.shape[:-1], p.shape[-1]) for p in moved)
        return self.inner.exponents(one, two)

    def excess(self, one: Tensor, other: Tensor) -> Tensor:
        """The inner map's."""
        return self.inner.excess(one, other)

    def own_excess(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner map's, of transformed points."""
        transform = self.outer.transform
        moved = transform.queries(x.detach().double()), transform.keys(y.detach().double())
        return self.inner.own_excess(moved[0].points.detach(), moved[1].points.detach())
