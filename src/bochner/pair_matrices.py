"""Which matrix A: choices of the pair (A x, A^-T y) that make s = A x + A^-T y small.

A diagonal A acts on each coordinate alone, s_k = a x_k + y_k / a. For a = b e^{i phi} and independent
queries x and keys y,

    E|s_k|^2 = b^2 E x_k^2 + E y_k^2 / b^2 + 2 cos(2 phi) E x_k E y_k

is least at b = (E y_k^2 / E x_k^2)^(1/4), with a real (phi = 0) where E x_k E y_k is negative and a
imaginary (phi = pi/2) where it is positive. Points without spread are the case of centres, where the
least value is zero: s = 0.

A coordinate that is nearly zero on one side would send b to 0 or infinity, and with it the spread of the
data around the centre on the other side. Sizes are therefore raised to `smallest_share` times the
largest coordinate of their own centre. This keeps sqrt(smallest_share) <= b / b_0 <= 1 / sqrt(smallest_share)
with b_0 the ratio of the largest coordinates, gives b = b_0 where both are tiny, follows x -> c x,
y -> y / c, and costs at most |s_k|^2 = smallest_share * (largest x) * (largest y) where one is raised.
A centre that is zero altogether has no size to compare with; b = 1 there.

Reference:  Choromanski et al., Hybrid Random Features, 2022 (the real diagonal one); docs/theory.md 8.
Differs:    the bound above; the published form divides by the coordinate as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.statistics import Moments
from bochner.transforms import LinearPair

SMALLEST_SHARE = 0.01
"""Coordinates below this share of a centre's largest one are raised to it (0: as they are)."""


def real_from_centres(
    query_centre: Tensor, key_centre: Tensor, *, smallest_share: float = SMALLEST_SHARE
) -> Tensor:
    """The diagonal sqrt|key_k / query_k|, real: s_k = 0 where the signs are opposite.

    Where they are equal, s_k = 2 sqrt(query_k key_k), the least that a real A reaches.

    Shapes:     query_centre, key_centre [*batch, d], broadcasting -> [*batch, d] in float64.
    Raises:     ValueError for NaN, shapes that do not broadcast, or a share outside [0, 1].
    Example:
        >>> real_from_centres(torch.tensor([1.0, -2.0]), torch.tensor([-4.0, 2.0]))
        tensor([2., 1.], dtype=torch.float64)
    """
    query, key = _pair("centre", query_centre, key_centre)
    return _ratio(query.abs(), key.abs(), smallest_share)


def from_centres(
    query_centre: Tensor, key_centre: Tensor, *, smallest_share: float = SMALLEST_SHARE
) -> Tensor:
    """The diagonal sqrt|key_k / query_k|, times i where query_k key_k > 0: s = 0 at the centres.

    Shapes:     query_centre, key_centre [*batch, d], broadcasting -> [*batch, d]; complex128 if any
                entry is imaginary, else float64.
    Raises:     as `real_from_centres`.
    Example:
        >>> from_centres(torch.tensor([1.0, -2.0]), torch.tensor([4.0, 2.0]))
        tensor([0.+2.j, 1.+0.j], dtype=torch.complex128)
    """
    query, key = _pair("centre", query_centre, key_centre)
    return _turned(_ratio(query.abs(), key.abs(), smallest_share), query, key)


def real_from_moments(
    query_squares: Tensor, key_squares: Tensor, *, smallest_share: float = SMALLEST_SHARE
) -> Tensor:
    """The real diagonal (E key_k^2 / E query_k^2)^(1/4): least E|A q + A^-T k|^2 of all real ones.

    Shapes:     query_squares = E query_k^2 and key_squares [*batch, d], broadcasting: [c, 1, d] and
                [c', d] give one matrix for every pair of clusters, [c, c', d] in float64.
    Raises:     ValueError for NaN, negative squares, shapes that do not broadcast, or a share outside
                [0, 1].
    Example:
        >>> real_from_moments(torch.tensor([1.0, 2.0]), torch.tensor([16.0, 2.0]))
        tensor([2., 1.], dtype=torch.float64)
    """
    query, key = _pair("squares", query_squares, key_squares)
    if bool((query < 0).any()) or bool((key < 0).any()):
        raise ValueError("query_squares and key_squares are means of squares: none is negative.")
    return _ratio(query.sqrt(), key.sqrt(), smallest_share)


def from_moments(
    query_mean: Tensor,
    key_mean: Tensor,
    query_squares: Tensor,
    key_squares: Tensor,
    *,
    smallest_share: float = SMALLEST_SHARE,
) -> Tensor:
    """As `real_from_moments`, times i where E query_k E key_k > 0: least E|s_k|^2 of all diagonal ones.

        E|s_k|^2 = 2 sqrt(E query_k^2 E key_k^2) - 2 |E query_k E key_k|

    Shapes:     all [*batch, d], broadcasting -> [*batch, d]; complex128 if any entry is imaginary,
                else float64.
    Raises:     as `real_from_moments`.
    Example:
        >>> mean, squares = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])
        >>> from_moments(mean, torch.tensor([1.0, -1.0]), squares, squares)
        tensor([0.+1.j, 1.+0.j], dtype=torch.complex128)
    """
    real = real_from_moments(query_squares, key_squares, smallest_share=smallest_share)
    return _turned(real, *_pair("mean", query_mean, key_mean))


def geometric_mean(query_moment: Tensor, key_moment: Tensor) -> Tensor:
    """The dense real G with G^T G = M1^{-1/2} (M1^{1/2} M2 M1^{1/2})^{1/2} M1^{-1/2}.

    It minimises E|G q + G^-T k|^2 = tr(G M1 G^T) + tr(G^-T M2 G^-1) + 2 E q.E k over all invertible
    real matrices: with P = G^T G this is tr(P M1) + tr(P^-1 M2) + const, whose derivative M1 - P^-1 M2 P^-1
    vanishes where P M1 P = M2. Any rotation R G does as well; this one makes both sides diagonal.

    Shapes:     query_moment M1 = E q q^T, key_moment M2 = E k k^T [*batch, d, d], symmetric positive
                definite -> [*batch, d, d] in float64.
    Raises:     ValueError for NaN or a matrix that is not square; LinAlgError if not positive definite.
    Reference:  Likhosherstov et al., FAVOR#, 2023 (ADERF); docs/theory.md 5. `LinearPair.balancing`.
    Example:
        >>> g = geometric_mean(torch.eye(1), 16 * torch.eye(1))
        >>> round(float(g.abs()), 6)
        2.0
    """
    m1, m2 = _pair("moment", query_moment, key_moment)
    if m1.ndim < 2 or m1.shape[-1] != m1.shape[-2]:
        raise ValueError(f"moments have shape {list(m1.shape)}; expected [*batch, d, d].")
    zero = torch.zeros_like(m1[..., 0])
    return LinearPair.balancing(Moments(zero, zero, m1, m2)).matrix


def _pair(what: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 and one shape; ValueError for NaN or shapes that do not broadcast."""
    for name, value in ((f"query_{what}", query), (f"key_{what}", key)):
        if not isinstance(value, Tensor) or value.is_complex():
            raise TypeError(f"{name} must be a real torch.Tensor.")
        if value.ndim == 0 or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} {list(value.shape)} must be finite and [*batch, d].")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query_{what} has dimension {query.shape[-1]}, key_{what} {key.shape[-1]};"
            " they must agree."
        )
    try:
        both = torch.broadcast_tensors(query.detach().double(), key.detach().double())
    except RuntimeError:
        raise ValueError(
            f"query_{what} {list(query.shape)} and key_{what} {list(key.shape)} do not broadcast."
        ) from None
    return both[0], both[1]


def _ratio(query: Tensor, key: Tensor, smallest_share: float) -> Tensor:
    """sqrt(key / query) of sizes [*batch, d], raised as the module says; 1 where a side is all zero."""
    if not 0.0 <= smallest_share <= 1.0:
        raise ValueError(f"smallest_share={smallest_share} must be in [0, 1].")
    tops = query.amax(-1, keepdim=True), key.amax(-1, keepdim=True)
    query, key = (
        torch.maximum(size, smallest_share * top)
        for size, top in zip((query, key), tops, strict=True)
    )
    empty = (tops[0] == 0) | (tops[1] == 0)
    return torch.where(empty, 1.0, key.sqrt() / query.sqrt())


def _turned(real: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """i times the entries whose query and key have the same sign; real if there are none."""
    imaginary = (torch.sign(query) * torch.sign(key) > 0).expand(real.shape)
    if not bool(imaginary.any()):
        return real
    zero = torch.zeros_like(real)
    return torch.complex(torch.where(imaginary, zero, real), torch.where(imaginary, real, zero))
