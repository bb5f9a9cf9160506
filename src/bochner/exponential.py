"""Complex exponential estimators: one invertible matrix A, real or complex, for each choice of s.

    exp(x.y) = E[ f(w, A x) f(w, A^-T y) ],   f(w, u) = exp(w.u - u^T u / 2),   w ~ N(0, I)

with u^T u not conjugated. One sample is exactly exp(x.y) exp(w.s - s^T s / 2), s = A x + A^-T y. A = I gives
positive features, A = i I trigonometric ones; any other A moves the point where the error is zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.directional import DirectionalMap
from bochner.directions import Directions
from bochner.exponents import shared_covariance
from bochner.features import Features
from bochner.kernels import ExponentialKernel
from bochner.request import Request

_LARGEST_RESIDUAL = 1e-6
"""Entry of A A^-1 - I above which a dense matrix counts as singular."""


class ComplexExponential(DirectionalMap):
    """exp(x.y) from Re f(w, A x) f(w, A^-T y); a real matrix gives positive features.

        real A      [f(w_j, A x)] / sqrt(r)                       r columns, positive
        complex A   [Re f, Im f] / sqrt(r), keys [Re f, -Im f]    2 r columns, signed

    Arguments:  request: sizes, kernel, projection, generator; matrix: A, whose dtype decides: complex
                gives 2 r columns, whatever its values; directions: those of another map, to share;
                offset: a point c [*batch_shape, d] near Re A x and -Re A^-T y. Queries take
                exp(-w.c), keys exp(w.c): no estimate changes, but both stay in range, which signed
                features far from 0 need (their products cannot be summed as logarithms).
    Shapes:     matrix [*batch_shape, d, d], or its diagonal [*batch_shape, d] (batch sizes of 1
                broadcast). x [*b, n, d] -> values [*b, n, m].
    Error:      unbiased; relative variance (e^{s^H s} / 2 + Re e^{s^T s} / 2 - 1) / r for iid
                directions, e^{|s|^2} - 1 over r for real A; zero where s = 0.
    Cost:       O(n d r) time (dense: + n d^2), O(n m) memory.
    Raises:     ValueError for a matrix that is not square, not finite or singular, that does not fit
                dim and batch_shape, or for directions that are not standard normal; TypeError for one
                that is not a real or complex tensor.
    Reference:  Choromanski et al., Hybrid Random Features, 2022; docs/theory.md 8.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 2.0]])
        >>> a = torch.tensor([2**0.5 * 1j, 2**0.5])       # s = A x + A^-T y = 0: no error
        >>> phi = ComplexExponential(Request(dim=2, num_features=4, generator=g), a)
        >>> round(float(phi.estimate(x, y)), 4), round(float(phi.kernel(x, y)), 4)
        (1.0, 1.0)
    """

    kernel: ExponentialKernel
    _matrix: Tensor
    _inverse_transpose: Tensor
    offset: Tensor | None

    def __init__(
        self,
        request: Request,
        matrix: Tensor,
        *,
        directions: Directions | None = None,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__(request)
        self.kernel = ExponentialKernel.of(request.kernel, "ComplexExponential")
        matrix = _checked(matrix, request)
        self.oscillating = matrix.is_complex()
        self.diagonal = matrix.ndim == len(self.batch_shape) + 1
        count = request.num_projections(
            2 if self.oscillating else 1, "a complex matrix" if self.oscillating else "a real one"
        )
        # [..., (re, im)]: `.to(dtype)` of a complex buffer warns that it drops the imaginary part
        self.register_buffer("_matrix", _stored(matrix))
        self.register_buffer(
            "_inverse_transpose", _stored(_inverse_transpose(matrix, diagonal=self.diagonal))
        )
        self.register_buffer("offset", None if offset is None else _checked_offset(offset, request))
        if directions is None:
            directions = Directions(request, count).to(matrix.device)
        self.directions = directions.checked(request, count)
        if directions.log_weight is not None:
            raise ValueError(
                f"directions come from {directions.proposal!r}; a complex exponential needs"
                " standard normal ones (put a spread into positive RandomFeatures instead)."
            )

    @property
    def matrix(self) -> Tensor:
        """A, float64 or complex128: [*batch_shape, d, d] or its diagonal [*batch_shape, d]."""
        return torch.view_as_complex(self._matrix) if self.oscillating else self._matrix

    @property
    def inverse_transpose(self) -> Tensor:
        """A^-T in the form of `matrix`."""
        stored = self._inverse_transpose
        return torch.view_as_complex(stored) if self.oscillating else stored

    # -- features -----------------------------------------------------------------------------------
    def _query(self, x: Tensor) -> Features:
        return self._features(x, self._matrix, 1.0)

    def _key(self, y: Tensor) -> Features:
        return self._features(y, self._inverse_transpose, -1.0)

    def _features(self, x: Tensor, stored: Tensor, conjugation: float) -> Features:
        """|f| = exp(w.u - (|u|^2 - |v|^2)/2) and arg f = w.v - u.v, for A x = u + i v.

        `conjugation` is 1 for queries and -1 for keys, and so is the direction of the offset.
        """
        omega = self.omega.to(x.dtype).transpose(-1, -2)
        log_scale = x.new_tensor(-0.5 * math.log(self.num_projections))  # 1/sqrt(r)
        point_factor = self.kernel.log_point_factor(x)
        towards = (
            0.0 if self.offset is None else conjugation * self.offset.to(x.dtype).unsqueeze(-2)
        )
        if not self.oscillating:
            u = self._apply_matrix(stored, x)
            norms = 0.5 * u.square().sum(-1, keepdim=True)
            if point_factor is not None:
                norms = norms - point_factor
            return Features.from_own_logs((u - towards) @ omega, log_scale - norms)
        u, v = (self._apply_matrix(part, x) for part in stored.unbind(-1))
        norms = 0.5 * (v.square().sum(-1, keepdim=True) - u.square().sum(-1, keepdim=True))
        if point_factor is not None:  # summed with ±|u|^2/2 first: at A = i I they cancel exactly
            norms = norms + point_factor
        log_modulus = (u - towards) @ omega
        phase = v @ omega - (u * v).sum(-1, keepdim=True)
        shift = log_modulus.detach().amax(dim=-1, keepdim=True)
        modulus = torch.exp(log_modulus - shift)
        columns = (modulus * torch.cos(phase), conjugation * modulus * torch.sin(phase))
        return Features(torch.cat(columns, dim=-1), log_scale + norms + shift)

    def _apply_matrix(self, matrix: Tensor, x: Tensor) -> Tensor:
        """A x for every row of x [*b, n, d], A real."""
        matrix = matrix.to(x.dtype)
        if self.diagonal:
            return x * matrix.unsqueeze(-2)
        return x @ matrix.transpose(-1, -2)

    # -- properties -----------------------------------------------------------------------------------
    @property
    def positive(self) -> bool:
        """If the matrix is real."""
        return not self.oscillating

    @property
    def symmetric(self) -> bool:
        """Whether A is unitary to working precision, where conj(A^-T) = A, and nothing is offset."""
        if self.offset is not None and bool(self.offset.any()):
            return False
        gap = (self.matrix - self.inverse_transpose.conj()).abs().amax()
        return bool(gap <= 1e-12)

    # -- closed forms ---------------------------------------------------------------------------------
    def exponents(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
        """A x, A^-T y and whether every w comes with -w: what `shared_covariance` is about.

        Shapes:     x [*b, n, d], y [*b, n', d] -> [*b, n, d], [*b, n', d] in complex128; the sum of
                    row i of the first and row j of the second is s_ij.
        """
        points = []
        for p, stored in ((x, self._matrix), (y, self._inverse_transpose)):
            p = p.detach().double()
            parts = stored.unbind(-1) if self.oscillating else (stored, torch.zeros_like(stored))
            points.append(torch.complex(*(self._apply_matrix(part, p) for part in parts)))
        return points[0], points[1], self.directions.independent[1]

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """docs/theory.md 8; None for Hadamard and Sobol, and for coupled w with a complex matrix."""
        count, even = self.directions.independent
        coupling = self.base_projection.coupling(count, self.dim)
        if coupling is None or (coupling.share and self.oscillating):
            return None
        queries, keys, _ = self.exponents(x, y)
        variance = shared_covariance(queries, keys, queries, keys, count=count, even=even)
        return self.with_coupling(variance, queries.real, keys.real, oscillating=False, even=even)

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """docs/theory.md 8 on the grid; directions taken as independent."""
        base = self.base_projection
        if base.coupling(1, self.dim) is None and not base.unbiased:
            return None  # rows that are not normal have no closed form at all
        queries, keys, even = self.exponents(x, y)
        count, _ = self.directions.independent
        return shared_covariance(queries, keys, queries, keys, count=count, even=even, grid=True)

    def extra_repr(self) -> str:
        """Form of the matrix, coupling and properties."""
        field = "complex" if self.oscillating else "real"
        form = "diagonal" if self.diagonal else "dense"
        return f"{field} {form} matrix, {self.projection!r}, {super().extra_repr()}"


def _checked(matrix: Tensor, request: Request) -> Tensor:
    """The matrix in double precision; ValueError or TypeError for what cannot be A."""
    if not isinstance(matrix, Tensor):
        raise TypeError(f"matrix must be a torch.Tensor, got {type(matrix).__name__}.")
    if not (matrix.is_floating_point() or matrix.is_complex()):
        raise TypeError(f"matrix has dtype {matrix.dtype}; expected a real or complex one.")
    batch, dim = request.batch_shape, request.dim
    forms = ((*batch, dim), (*batch, dim, dim))
    fits = any(
        matrix.ndim == len(form)
        and tuple(matrix.shape[len(batch) :]) == form[len(batch) :]
        and all(have in (1, want) for have, want in zip(matrix.shape, batch, strict=False))
        for form in forms
    )
    if not fits:
        raise ValueError(
            f"matrix has shape {list(matrix.shape)}; expected [*batch_shape, d, d] ="
            f" {list(forms[1])} or the diagonal [*batch_shape, d] = {list(forms[0])}."
        )
    bad = int((~torch.isfinite(matrix.detach())).sum())
    if bad:
        raise ValueError(
            f"matrix holds {bad} NaN or infinite entries out of {matrix.numel()};"
            " expected finite values."
        )
    dtype = torch.complex128 if matrix.is_complex() else torch.float64
    return matrix.detach().to(dtype)


def _checked_offset(offset: Tensor, request: Request) -> Tensor:
    form = (*request.batch_shape, request.dim)
    if not isinstance(offset, Tensor):
        raise TypeError(f"offset must be a torch.Tensor, got {type(offset).__name__}.")
    if tuple(offset.shape) != form or not offset.is_floating_point():
        raise ValueError(
            f"offset has shape {list(offset.shape)} and dtype {offset.dtype}; expected a real"
            f" [*batch_shape, d] = {list(form)}."
        )
    if not bool(torch.isfinite(offset).all()):
        raise ValueError("offset holds NaN or infinite entries; expected finite values.")
    return offset.detach().double().clone()


def _inverse_transpose(matrix: Tensor, *, diagonal: bool) -> Tensor:
    """A^-T in the form of A; ValueError if A has none to working precision."""
    if diagonal:
        inverse = matrix.reciprocal()
        good = bool(torch.isfinite(inverse).all())
    else:
        inverse, info = torch.linalg.inv_ex(matrix)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        gap = (matrix @ inverse - eye).abs().amax()
        good = not bool(info.any()) and bool(gap <= _LARGEST_RESIDUAL)
    if not good:
        raise ValueError(
            "matrix is singular to working precision; exp(x.y) = exp(A x . A^-T y) needs an"
            " invertible one (no zero on a diagonal)."
        )
    return inverse if diagonal else inverse.transpose(-1, -2)


def _stored(matrix: Tensor) -> Tensor:
    """A copy in real numbers: [..., 2] for complex ones."""
    return (torch.view_as_real(matrix) if matrix.is_complex() else matrix).clone()
