"""Exact changes of coordinates on (queries, keys), and the two that change the kernel on purpose.

An exact transform keeps exp(x.y); what it takes out of the product goes into a log-scale:

    Centring     exp(q.k) = exp((q-a).(k-c)) * exp(q.c) * exp(a.(k-c))
    LinearPair   exp(q.k) = exp((A q).(A^-T k))

`Lengthscale` and `SharedLinear` (DARKFormer's M) replace the kernel by K(x/l, y/l) and K(Mx, My).
Data-dependent ones are fitted by a constructor and frozen; forward never learns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bochner.statistics import Moments


class Transformed(NamedTuple):
    """New points [*b, n, d'] and the log of the factor taken out of the kernel, [*b, n, 1] or None."""

    points: Tensor
    log_factor: Tensor | None


class Transform(nn.Module, ABC):
    """A change of coordinates for queries and for keys."""

    exact: bool
    """Whether the kernel is unchanged once the log-factors are put back."""
    input_dim: int
    output_dim: int

    @abstractmethod
    def queries(self, x: Tensor) -> Transformed:
        """Queries [*b, n, input_dim] in the new coordinates."""

    @abstractmethod
    def keys(self, y: Tensor) -> Transformed:
        """Keys [*b, n, input_dim] in the new coordinates."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether queries and keys are treated alike."""


def _cast(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x.dtype)


class Lengthscale(Transform):
    """x / lengthscale on both sides: K(x/l, y/l); one length, or one per dimension (ARD).

    Shapes:     lengthscale: a float, [d] or [*batch, d].
    Raises:     ValueError unless every length is positive and finite.
    Example:
        >>> Lengthscale(2.0, dim=1).queries(torch.ones(1, 1)).points
        tensor([[0.5000]])
    """

    exact = False
    lengthscale: Tensor

    def __init__(self, lengthscale: float | Tensor, dim: int) -> None:
        super().__init__()
        lengths = torch.as_tensor(lengthscale, dtype=torch.float64).detach()
        if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
            raise ValueError(f"lengthscale={lengthscale} must be positive and finite.")
        if lengths.ndim and lengths.shape[-1] != dim:
            raise ValueError(
                f"lengthscale has last dimension {lengths.shape[-1]}; expected dim={dim}."
            )
        self.input_dim = self.output_dim = dim
        self.register_buffer("lengthscale", lengths.expand(*lengths.shape[:-1], dim).clone())

    def queries(self, x: Tensor) -> Transformed:
        """x / l."""
        return Transformed(x / _cast(self.lengthscale, x).unsqueeze(-2), None)

    def keys(self, y: Tensor) -> Transformed:
        """y / l."""
        return self.queries(y)

    @property
    def symmetric(self) -> bool:
        """True."""
        return True


class Centring(Transform):
    """q - a and k - c, exactly: the same as moving the proposal's mean to a + c.

    Shapes:     query_centre a, key_centre c: [*batch, d].
    Reference:  docs/theory.md 4.
    Example:
        >>> t = Centring(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> q, k = t.queries(torch.tensor([[3.0]])), t.keys(torch.tensor([[5.0]]))
        >>> float(q.points * k.points + q.log_factor + k.log_factor)        # 3 * 5
        15.0
    """

    exact = True
    query_centre: Tensor
    key_centre: Tensor

    def __init__(self, query_centre: Tensor, key_centre: Tensor) -> None:
        super().__init__()
        if query_centre.shape != key_centre.shape or query_centre.ndim == 0:
            raise ValueError(
                f"query_centre {list(query_centre.shape)} and key_centre {list(key_centre.shape)}"
                " must share one shape [*batch, d]."
            )
        self.input_dim = self.output_dim = query_centre.shape[-1]
        self.register_buffer("query_centre", query_centre.detach().double().clone())
        self.register_buffer("key_centre", key_centre.detach().double().clone())

    @classmethod
    def fit(cls, moments: Moments) -> Centring:
        """Centres at the means of the data."""
        return cls(moments.query_mean, moments.key_mean)

    def queries(self, x: Tensor) -> Transformed:
        """q - a, with log-factor q.c."""
        centre = _cast(self.key_centre, x).unsqueeze(-1)
        return Transformed(x - _cast(self.query_centre, x).unsqueeze(-2), x @ centre)

    def keys(self, y: Tensor) -> Transformed:
        """k - c, with log-factor a.(k - c)."""
        centred = y - _cast(self.key_centre, y).unsqueeze(-2)
        return Transformed(centred, centred @ _cast(self.query_centre, y).unsqueeze(-1))

    @property
    def symmetric(self) -> bool:
        """Whether both centres are the same."""
        return bool(torch.equal(self.query_centre, self.key_centre))


class LinearPair(Transform):
    """A q and A^-T k: exact for every invertible A.

    Shapes:     matrix [*batch, d, d] maps queries; `inverse_transpose` (computed unless given) keys.
    Raises:     ValueError if the matrix is not square or is singular to working precision.
    Example:
        >>> t = LinearPair(torch.tensor([[2.0]]))
        >>> float(t.queries(torch.ones(1, 1)).points * t.keys(torch.ones(1, 1)).points)
        1.0
    """

    exact = True
    matrix: Tensor
    inverse_transpose: Tensor

    def __init__(self, matrix: Tensor, inverse_transpose: Tensor | None = None) -> None:
        super().__init__()
        matrix = matrix.detach().double()
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f"matrix has shape {list(matrix.shape)}; expected [*batch, d, d].")
        if inverse_transpose is None:
            inverse, info = torch.linalg.inv_ex(matrix)
            if bool(info.any()) or not bool(torch.isfinite(inverse).all()):
                raise ValueError("matrix is singular; a linear pair needs an invertible one.")
            inverse_transpose = inverse.transpose(-1, -2)
        self.input_dim = self.output_dim = matrix.shape[-1]
        self.register_buffer("matrix", matrix.clone())
        self.register_buffer("inverse_transpose", inverse_transpose.detach().double().clone())

    @classmethod
    def balancing(cls, moments: Moments) -> LinearPair:
        """The A that gives queries and keys one diagonal covariance diag(sigma).

        sigma = sqrt(eig(Lq Lk)); with Lk = C C^T and C^T Lq C = U diag(sigma^2) U^T:
        A = diag(sigma)^-1/2 U^T C^T, A^-T = diag(sigma)^1/2 U^T C^-1.  It minimises E|Aq + A^-T k|^2.

        Reference:  docs/theory.md 5; it is the geometric mean of ADERF (Likhosherstov et al., 2023).
        """
        c = torch.linalg.cholesky(moments.key_covariance)
        squares, axes = torch.linalg.eigh(c.transpose(-1, -2) @ moments.query_covariance @ c)
        root = squares.clamp_min(torch.finfo(squares.dtype).tiny).pow(0.25)  # sigma^(1/2)
        matrix = (c @ axes / root.unsqueeze(-2)).transpose(-1, -2)
        inverse = torch.linalg.solve_triangular(c.transpose(-1, -2), axes, upper=True)
        return cls(matrix, (inverse * root.unsqueeze(-2)).transpose(-1, -2))

    def queries(self, x: Tensor) -> Transformed:
        """A q."""
        return Transformed(x @ _cast(self.matrix, x).transpose(-1, -2), None)

    def keys(self, y: Tensor) -> Transformed:
        """A^-T k."""
        return Transformed(y @ _cast(self.inverse_transpose, y).transpose(-1, -2), None)

    @property
    def symmetric(self) -> bool:
        """Whether A is orthogonal to working precision."""
        return bool(torch.allclose(self.matrix, self.inverse_transpose, rtol=0, atol=1e-12))


class SharedLinear(Transform):
    """M x on both sides: the kernel K(Mx, My); exp(x^T Sigma y) with Sigma = M^T M for the softmax.

    Shapes:     matrix M [*batch, rank, d], an nn.Parameter (it is what DARKFormer trains).
    Reference:  Farzam et al., DARKFormer, 2026, eq. (3).
    Example:
        >>> t = SharedLinear(2 * torch.eye(1))
        >>> float((t.queries(torch.ones(1, 1)).points * t.keys(torch.ones(1, 1)).points).detach())
        4.0
    """

    exact = False

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        if matrix.ndim < 2:
            raise ValueError(f"matrix has shape {list(matrix.shape)}; expected [*batch, rank, d].")
        self.output_dim, self.input_dim = matrix.shape[-2:]
        self.matrix = nn.Parameter(matrix.detach().clone())

    @staticmethod
    def whitening(moments: Moments, rank: int) -> Tensor:
        """M [*batch, rank, d] that gives the pooled covariance the identity on its top directions."""
        pooled = 0.5 * (moments.query_covariance + moments.key_covariance)
        variances, axes = torch.linalg.eigh(pooled)
        top = axes[..., -rank:] / variances[..., -rank:].sqrt().unsqueeze(-2)
        return top.flip(-1).transpose(-1, -2)

    def queries(self, x: Tensor) -> Transformed:
        """M x."""
        return Transformed(x @ _cast(self.matrix, x).transpose(-1, -2), None)

    def keys(self, y: Tensor) -> Transformed:
        """M y."""
        return self.queries(y)

    @property
    def symmetric(self) -> bool:
        """True."""
        return True


class Composed(Transform):
    """One transform after another; exact if all are.

    Raises:     ValueError if the dimensions do not follow on each other.
    """

    def __init__(self, *parts: Transform) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts is empty; give at least one transform.")
        for first, second in pairwise(parts):
            if first.output_dim != second.input_dim:
                raise ValueError(
                    f"{type(first).__name__} gives dimension {first.output_dim},"
                    f" {type(second).__name__} expects {second.input_dim}."
                )
        self.parts = nn.ModuleList(parts)
        self.exact = all(part.exact for part in parts)
        self.input_dim, self.output_dim = parts[0].input_dim, parts[-1].output_dim

    def queries(self, x: Tensor) -> Transformed:
        """All parts in order, log-factors added up."""
        return self._through(x, "queries")

    def keys(self, y: Tensor) -> Transformed:
        """All parts in order, log-factors added up."""
        return self._through(y, "keys")

    def _through(self, points: Tensor, side: str) -> Transformed:
        total: Tensor | None = None
        for part in self.parts:
            points, factor = getattr(part, side)(points)
            if factor is not None:
                total = factor if total is None else total + factor
        return Transformed(points, total)

    @property
    def symmetric(self) -> bool:
        """Whether every part is."""
        return all(bool(part.symmetric) for part in self.parts)
