"""The error of an expression in closed form, from the moments of the estimators that it is made of.

A sum of products of estimators is a sum of monomials T = w L_1 L_2 ..., whose factors are independent of
each other. For two monomials that share estimators (or draws), factor by factor,

    Cov(T_a, T_b) = w_a w_b [ prod (m_a m_b + c) - prod m_a m_b ],      m = E L, c = Cov(L_a, L_b)

accumulated so that nothing cancels: a factor whose covariance and mean vanish makes the term exactly 0.
This gives the mean squared error of bipolar, angular, Gaussian and clustered hybrids alike:

    MSE = sum_kl E[lam_k lam_l] Cov(SM_k, SM_l)         for weights that add up to 1

Reference:  Choromanski et al., Hybrid Random Features, 2022; docs/theory.md 9.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bochner.dependence import share_draws
from bochner.feature_map import FeatureMap, Monomial


class _Factor(NamedTuple):
    """Means of one factor in either monomial, and their covariance (None where the factors are
    independent), all in units of the leaves."""

    first: Tensor | float
    second: Tensor | float
    covariance: Tensor | None


def relative_variance(expression: FeatureMap, x: Tensor, y: Tensor) -> Tensor | None:
    """Var[estimate] / exact^2 for all pairs, [*b, n, n'] float64; None where a leaf has no closed form."""
    found = _relative(expression, x, y, grid=False)
    return None if found is None else found.clamp_min(0.0)


def relative_covariance(expression: FeatureMap, x: Tensor, y: Tensor) -> Tensor | None:
    """Cov[estimate_ij, estimate_ik] / (exact_ij exact_ik), [*b, n, n', n'] float64, or None."""
    return _relative(expression, x, y, grid=True)


def _relative(expression: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
    x, y = x.detach().double(), y.detach().double()
    terms = expression.monomials()
    whole = expression.log_exact(x, y)
    sign = torch.where(whole.sign == 0, 1.0, whole.sign)  # relative to 0, any error is infinite
    moments = {
        id(leaf): leaf.unit_mean(x, y) for leaf in {leaf for t in terms for leaf in t.leaves}
    }
    shares = []  # of each monomial: what multiplies its unit-free mean, relative to the whole
    for term in terms:
        log = -whole.log_abs
        for leaf in term.leaves:
            log = log + moments[id(leaf)][0]
        shares.append(term.weight * sign * torch.exp(log))
    total: Tensor = torch.zeros_like(_outer(shares[0], shares[0], grid))
    for i, a in enumerate(terms):
        for j, b in enumerate(terms):
            if not grid and j < i:
                continue
            factors = _factors(a, b, x, y, moments, grid)
            if factors is None:
                return None
            if all(f.covariance is None for f in factors):
                continue
            weight = _outer(shares[i], shares[j], grid)
            if not grid and j > i:
                weight = 2.0 * weight
            total = total + _times(weight, _covariance(factors))
    return total


def _factors(
    a: Monomial,
    b: Monomial,
    x: Tensor,
    y: Tensor,
    moments: dict[int, tuple[Tensor, Tensor]],
    grid: bool,
) -> list[_Factor] | None:
    """The factors of two monomials, matched where they are dependent; None if theory has no form."""

    def mean(leaf: FeatureMap, axis: int) -> Tensor:
        value = moments[id(leaf)][1]
        return value.unsqueeze(axis) if grid else value

    found, matched = [], set()
    for leaf in a.leaves:
        partners = [o for o in b.leaves if o is leaf or share_draws(leaf, o)]
        if not partners:
            found.append(_Factor(mean(leaf, -1), 1.0, None))
            continue
        if len(partners) > 1 or id(partners[0]) in matched:
            return None  # one factor that depends on two: 1 - lam_1 - lam_2 beside lam_1 lam_2
        covariance = leaf.covariance_with(partners[0], x, y, grid=grid)
        if covariance is None:
            return None
        matched.add(id(partners[0]))
        found.append(_Factor(mean(leaf, -1), mean(partners[0], -2), covariance))
    found += [_Factor(1.0, mean(o, -2), None) for o in b.leaves if id(o) not in matched]
    return found


def _covariance(factors: list[_Factor]) -> Tensor:
    """prod (m_a m_b + c) - prod m_a m_b, without cancellation."""
    means: Tensor | float = 1.0
    total: Tensor | float = 0.0
    for first, second, covariance in factors:
        both = torch.as_tensor(first * second)
        if covariance is None:
            total = _times(torch.as_tensor(total), both)
        else:
            total = _times(torch.as_tensor(total), both + covariance) + _times(
                torch.as_tensor(means), covariance
            )
        means = means * both
    return torch.as_tensor(total)


def _outer(a: Tensor, b: Tensor, grid: bool) -> Tensor:
    return a.unsqueeze(-1) * b.unsqueeze(-2) if grid else a * b


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a * b with 0 * inf = 0: a weight that is exactly 0 switches off an infinite variance."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)
