"""How many columns each degree of a Maclaurin series gets: what is exact, what is sampled, what is left.

    exp(x.y) = sum_p (x.y)^p / p!

    degrees 0 .. E-1      exact, one column a monomial: C(d+p-1, p) columns
    degrees E .. T-1      n_p products of p Rademacher projections each, variance (v^p - s^2p) / (p!^2 n_p)
    degrees T and above   r columns of a random degree N >= T, drawn as Poisson(lambda), weighed by 1/p_N:
                          variance (e_T(lambda) e_T(v/lambda) - e_T(s)^2) / r,   e_T(z) = sum_{N>=T} z^N/N!

with s = x.y and v = E[(w.x)^2 (w.y)^2] = |x|^2 |y|^2 + 2 s^2 - 2 sum_l x_l^2 y_l^2. For one v the best law
of N is Poisson(sqrt v), with e_0 e_0 = exp(2 sqrt v). E, T, the n_p and lambda are those that minimise the
mean variance over given pairs, in units of K(x, x) K(y, y).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammainc, gammaln
from torch import Tensor

from bochner.validation import check_count

LARGEST_DEGREE = 24  # that is exact or has columns of its own
_LARGEST_RATE = (
    64.0  # mean of the random degree: beyond it a column is a product of hundreds of projections
)
_SERIES = 80  # terms of e_T(z) / (z^T/T!) for |z| <= T+1: below 1e-16

Float = NDArray[np.float64]


@dataclass(frozen=True)
class DegreePlan:
    """Columns of every degree.

    Arguments:  exact: E, degrees below it are exact; sampled: columns of degree E, E+1, ..., T-1;
                tail: columns of a random degree of at least T (0: the series ends, biased);
                rate: lambda of that degree's Poisson law.
    Example:
        >>> plan = DegreePlan(exact=2, sampled=(4, 2), tail=2, rate=1.0)
        >>> plan.first_random, plan.num_features(dim=3)                  # 1 + 3 monomials, 4 + 2, 2
        (4, 12)
    """

    exact: int
    sampled: tuple[int, ...]
    tail: int
    rate: float

    @property
    def first_random(self) -> int:
        """T, the smallest degree of the tail."""
        return self.exact + len(self.sampled)

    @property
    def random_columns(self) -> int:
        """Columns with anything random."""
        return sum(self.sampled) + self.tail

    def num_features(self, dim: int) -> int:
        """m of this plan in d dimensions."""
        return monomials_below(self.exact, dim) + self.random_columns

    @classmethod
    def optimal(
        cls, x: Tensor, y: Tensor, num_features: int, *, unbiased: bool = True
    ) -> DegreePlan:
        """The plan with the smallest mean squared error over all pairs of x [*b, n, d] and y [*b, n', d].

        Arguments:  unbiased: whether there must be a tail; without, the series ends at degree T and the
                    bias e_T(s)^2 is part of the error.
        Cost:       O(n n') for each of the few hundred plans looked at.
        Raises:     ValueError for pairs so far from 0 that the series needs degrees beyond 64.
        Example:
            >>> x = 0.3 * torch.eye(3, dtype=torch.float64)
            >>> DegreePlan.optimal(x, x, 20).exact          # 1 + 3 + 6 monomials, 10 columns beyond
            3
        """
        check_count("num_features", num_features)
        pairs = _Pairs.of(x, y)
        best = min(_candidates(pairs, num_features, x.shape[-1], unbiased), key=lambda c: c.error)
        return best.plan()

    def covariance(self, v: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Cov of two estimates in units of exp(s + s'), float64; inf where it leaves float64.

        Shapes:     v = E[(w.x)^2 (w.y)(w.y')], first = s = x.y, second = s' = x.y', broadcast together.
        """
        sums = first + second
        unit = sums.clamp_min(0.0)
        total = torch.zeros_like(v)
        for p, count in enumerate(self.sampled, start=self.exact):
            term = v**p - (first**p * second**p)
            total = total + term * torch.exp(-2.0 * math.lgamma(p + 1) - unit) / count
        if self.tail:
            degree, rate = self.first_random, self.rate
            scale = tail_of_exp(degree, torch.full((), rate, dtype=v.dtype))
            moment = scale * tail_of_exp(degree, v / rate, minus=unit)
            means = [
                tail_of_exp(degree, s, minus=torch.where(sums > 0, s, 0.0)) for s in (first, second)
            ]
            spread = torch.where(torch.isinf(moment), moment, moment - means[0] * means[1])
            total = total + spread / self.tail
        below = torch.exp(-sums.clamp_max(0.0))
        return torch.where(total == 0, 0.0, total * below)


def monomials_below(degree: int, dim: int) -> int:
    """Monomials of degree 0 .. degree-1 in d variables."""
    return math.comb(dim + degree - 1, dim) if degree else 0


def tail_of_exp(degree: int, z: Tensor, *, minus: Tensor | float = 0.0) -> Tensor:
    """exp(-minus) sum_{N >= degree} z^N / N!, without cancellation, float64.

    Example:
        >>> z = torch.tensor([1e-3, 1.0, -1.0], dtype=torch.float64)
        >>> [f"{v:.6g}" for v in tail_of_exp(2, z).tolist()]             # e^z - 1 - z
        ['5.00167e-07', '0.718282', '0.367879']
    """
    if degree == 0:
        return torch.exp(z - minus)
    near, term = torch.zeros_like(z), torch.ones_like(z)
    close = z.clamp(-degree - 1.0, degree + 1.0)
    for k in range(1, _SERIES):
        near, term = near + term, term * close / (degree + k)
    near = near * close**degree / math.gamma(degree + 1)
    low = z.clamp_max(0.0)
    below = torch.exp(low)
    for p in range(degree):
        below = below - low**p / math.gamma(p + 1)
    value = torch.where(z < 0, below, near)
    value = torch.where(z.abs() <= degree + 1.0, near, value)
    value = value * torch.exp(-torch.as_tensor(minus, dtype=z.dtype))
    share = torch.special.gammainc(torch.full_like(z, float(degree)), z.clamp_min(0.0))
    return torch.where(z > degree + 1.0, torch.exp(z - minus) * share, value)


def degree_table(first: int, rate: float) -> tuple[Tensor, float]:
    """(P(N <= first), P(N <= first + 1), ...) of the Poisson law given N >= first, and log e_first(rate).

    The table ends where float64 has no probability left to draw.
    """
    log_mass = _log_tail(first, np.array(rate)).item()
    degrees = np.arange(first, first + 40 + int(4 * rate + 20 * math.sqrt(rate + 1)))
    probabilities = np.exp(degrees * math.log(rate) - gammaln(degrees + 1) - log_mass)
    return torch.from_numpy(np.cumsum(probabilities)), log_mass


# -- the optimum -----------------------------------------------------------------------------------
def _log_tail(degree: int, z: Float) -> Float:
    """log e_degree(z) for z >= 0."""
    if degree == 0:
        return np.asarray(z)
    with np.errstate(divide="ignore", under="ignore"):
        leading = degree * np.log(z) - gammaln(degree + 1)
        whole = z + np.log(gammainc(degree, z))
    return np.where(z < 1e-3, leading + z / (degree + 1), whole)  # gammainc underflows at small z


@dataclass(frozen=True)
class _Pairs:
    """s, v and the log-weight of reference pairs, flat; the largest contribution has size 1."""

    s: Float
    v: Float
    log_weight: Float

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Pairs:
        a, b = (points.detach().double().numpy(force=True) for points in (x, y))
        s = a @ b.swapaxes(-1, -2)
        norms = (a**2).sum(-1)[..., :, None], (b**2).sum(-1)[..., None, :]
        v = norms[0] * norms[1] + 2 * s**2 - 2 * (a**2) @ (b**2).swapaxes(-1, -2)
        v = np.maximum(v, s**2)
        log_weight = -(norms[0] + norms[1])
        largest = (2.0 * np.sqrt(v) + log_weight).max()
        return cls(s.ravel(), v.ravel(), (log_weight - largest).ravel())

    def mean(self, log_terms: Float) -> float:
        return float(np.exp(log_terms + self.log_weight).mean())

    def power(self, degree: int, base: Float) -> float:
        """Weighted mean of base^degree / degree!^2."""
        with np.errstate(divide="ignore", under="ignore", over="ignore"):
            log = degree * np.log(base) if degree else np.zeros_like(base)
            return self.mean(log - 2.0 * gammaln(degree + 1))

    def sampled(self, degree: int) -> float:
        """Variance of one column of a degree."""
        return max(self.power(degree, self.v) - self.power(degree, self.s**2), 0.0)

    def rate(self, degree: int) -> tuple[float, float]:
        """(lambda, second moment of one column) of the best tail from a degree on."""
        largest = math.sqrt(float(self.v.max()))
        if largest == 0.0:
            return 1.0, 0.0

        def log_moment(log_rate: float) -> float:
            rate = math.exp(log_rate)
            logs = _log_tail(degree, self.v / rate) + self.log_weight
            top = logs.max()
            return float(
                _log_tail(degree, np.array(rate)) + top + np.log(np.exp(logs - top).mean())
            )

        bounds = (math.log(0.02 * largest), math.log(largest))
        found = minimize_scalar(log_moment, bounds=bounds, method="bounded")
        rate = math.exp(found.x)
        if rate > _LARGEST_RATE:
            raise ValueError(
                f"the calibration points are so far from their centre that degrees around {rate:.3g} of"
                f" the series matter, expected at most {_LARGEST_RATE:g}; local features are for points"
                " within a few lengthscales of a centre: take larger lengthscales, or several centres"
                " (bochner.sklearn.LocalGaussianProcess)."
            )
        return rate, math.exp(found.fun)

    def biases(self, degree: int) -> list[float]:
        """Weighted means of e_0(s)^2, ..., e_degree(s)^2: e_p = e_{p+1} + s^p / p!."""
        tail = tail_of_exp(degree, torch.from_numpy(self.s)).numpy()
        found = []
        for p in range(degree, -1, -1):
            with np.errstate(divide="ignore"):
                found.append(self.mean(2.0 * np.log(np.abs(tail))))
            if p:
                tail = tail + self.s ** (p - 1) / math.gamma(p)
        return found[::-1]


@dataclass(frozen=True)
class _Candidate:
    """One choice of E and T, its real-valued allocation, and its error."""

    exact: int
    columns: Float  # of degrees E .. T-1, and of the tail if there is one
    budget: int
    rate: float
    unbiased: bool
    error: float

    def plan(self) -> DegreePlan:
        """Integer columns: rounded down, the rest to the largest remainders."""
        counts = np.floor(self.columns).astype(int)
        rest = self.budget - int(counts.sum())
        if rest:
            counts[np.argsort(counts - self.columns, kind="stable")[:rest]] += 1
        sampled = counts[:-1] if self.unbiased else counts
        return DegreePlan(
            self.exact,
            tuple(int(n) for n in sampled),
            int(counts[-1]) if self.unbiased else 0,
            self.rate,
        )


def _candidates(pairs: _Pairs, num_features: int, dim: int, unbiased: bool) -> Iterator[_Candidate]:
    """Every E and T that the budget allows, with the best allocation of each."""
    top = LARGEST_DEGREE
    errors = [pairs.sampled(p) for p in range(top)]
    rests = [pairs.rate(t) for t in range(top + 1)] if unbiased else []
    biases = pairs.biases(top)  # also what the mean takes off a second moment
    for exact in range(top + 1):
        budget = num_features - monomials_below(exact, dim)
        if budget < (1 if unbiased else 0):
            return
        for first in range(exact, top + 1):
            cost = errors[exact:first]
            if unbiased:
                rate, moment = rests[first]
                cost = [*cost, max(moment - biases[first], 0.0)]
            if len(cost) > budget or (budget and not cost):
                continue
            columns, error = _shared(np.array(cost), budget)
            if not unbiased:
                rate, error = 1.0, error + biases[first]
            yield _Candidate(exact, columns, budget, rate, unbiased, error)


def _shared(cost: Float, budget: int) -> tuple[Float, float]:
    """n minimising sum cost/n with sum n = budget and every n >= 1, and the minimum."""
    columns = np.ones(len(cost))
    free = np.ones(len(cost), dtype=bool)
    while free.any():
        left = budget - float(columns[~free].sum())
        roots = np.sqrt(cost[free])
        share = (
            left * roots / roots.sum()
            if roots.sum() > 0
            else np.full(len(roots), left / len(roots))
        )
        columns[free] = np.maximum(share, 1.0)
        if (share >= 1.0).all():
            break
        low = np.flatnonzero(free)[share < 1.0]
        free[low] = False
    return columns, float((cost / columns).sum()) if len(cost) else 0.0
