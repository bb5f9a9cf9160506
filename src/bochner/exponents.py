"""Real parts of exp(w.s - s^T s / 2) for complex s: the covariance of any two on the same w.

With w ~ N(0, I), s_a = u + i v, s_b = u' + i v' and Z = Re exp(w.s - s^T s / 2), E[Z] = 1 and

    Cov[Z_a, Z_b] = Re e^{s_a^T s_b} / 2 + Re e^{s_a^H s_b} / 2 - 1

for any complex s_a, s_b, because E exp(w.s_a + w.s_b - s_a^T s_a / 2 - s_b^T s_b / 2) = e^{s_a^T s_b} and
Re a Re b = Re (a b + conj(a) b) / 2. In real terms, p = u.u', q = v.v', g = u.v', h = v.u':

    s_a^T s_b = (p - q) + i (g + h),   s_a^H s_b = (p + q) + i (g - h)

Every estimator of exp(x.y) in the house has such an s = query point + key point (docs/theory.md 8):

    positive, hyperbolic   x + y             real matrix A      A x + A^-T y
    trigonometric          i x - i y         complex matrix A   A x + A^-T y
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_EXPONENT = 700.0  # e^709 is the end of float64


def shared_covariance(
    a_query: Tensor,
    a_key: Tensor,
    b_query: Tensor,
    b_key: Tensor,
    *,
    count: int,
    even: bool = False,
    grid: bool = False,
) -> Tensor:
    """Cov / K^2 of two estimators of one kernel that average over the same `count` iid directions.

    Arguments:  a_query, a_key: points whose sums are s_a, of the first estimator; b_query, b_key: of
                the second; count: directions, each pair ±w counted once; even: whether one of the
                two averages over ±w; grid: see Shapes.
    Shapes:     points [*b, n, d] and [*b, n', d], complex128 or float64 -> [*b, n, n'] for the pairs
                (i, j); with grid [*b, n, n', n'], pair (i, j) of a with (i, k) of b.
    Error:      exact for iid directions; ±inf where it leaves float64, never NaN.
    Cost:       O(n n' d) time, O(n n') memory; with grid O(n n'^2) memory.
    Example:
        >>> x, y = torch.tensor([[0.5]]).double(), torch.tensor([[0.2]]).double()
        >>> float(shared_covariance(x, y, 1j * x, -1j * y, count=1))      # cos(x^2 - y^2) - 1
        -0.0219...
    """
    aq, ak, bq, bk = (_real_and_imaginary(points) for points in (a_query, a_key, b_query, b_key))

    def products(i: int, j: int) -> Tensor:
        return _sum_products(aq[i], ak[i], bq[j], bk[j], grid=grid)

    p, q, g, h = products(0, 0), products(1, 1), products(0, 1), products(1, 0)
    terms = [(p + q, g - h), (p - q, g + h)]
    if even:  # w -> -w in one of the two negates both exponents; the cosine is even
        terms += [(-real, imaginary) for real, imaginary in terms]
    top = torch.stack([real for real, _ in terms]).amax(0)
    beyond = (top - _LARGEST_EXPONENT).clamp_min(0.0)
    total = torch.zeros_like(top)
    for real, imaginary in terms:
        total = total + _real_expm1(real - beyond, imaginary)
    infinite = torch.copysign(torch.full_like(total, torch.inf), total)
    return torch.where(beyond > 0, infinite, total / (len(terms) * count))


def _real_and_imaginary(points: Tensor) -> tuple[Tensor, Tensor]:
    if points.is_complex():
        return points.real, points.imag
    return points, torch.zeros_like(points)


def _sum_products(
    a_query: Tensor, a_key: Tensor, b_query: Tensor, b_key: Tensor, *, grid: bool
) -> Tensor:
    """(a_query_i + a_key_j) . (b_query_i + b_key_j), or (b_query_i + b_key_k) on the grid."""
    queries = (a_query * b_query).sum(-1).unsqueeze(-1)
    left = a_query @ b_key.transpose(-1, -2)
    right = b_query @ a_key.transpose(-1, -2)
    if not grid:
        return queries + left + right + (a_key * b_key).sum(-1).unsqueeze(-2)
    keys = a_key @ b_key.transpose(-1, -2)
    return queries.unsqueeze(-1) + left.unsqueeze(-2) + right.unsqueeze(-1) + keys.unsqueeze(-3)


def _real_expm1(real: Tensor, imaginary: Tensor) -> Tensor:
    """Re e^(a + i b) - 1 without cancellation at 0."""
    return torch.expm1(real) * torch.cos(imaginary) - 2.0 * torch.sin(0.5 * imaginary).square()
