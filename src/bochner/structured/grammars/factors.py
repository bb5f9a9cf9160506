"""Factors of several variables as sums of products: positive CP decompositions from random features.

    F(x_1, ..., x_k) = sum_r U_1[x_1, r] U_2[x_2, r] ... U_k[x_k, r],   all U >= 0

Positive random features give one of any factor that is pairwise in embeddings, however many variables it
has, from one set of directions (docs/theory.md 16):

    exp(sum_{i<j} a_i.a_j) = E prod_i exp(omega.a_i - |a_i|^2/2),   omega ~ N(0, I)

since E exp(omega.s) = exp(|s|^2/2) and |a_1 + ... + a_k|^2 = sum_i |a_i|^2 + 2 sum_{i<j} a_i.a_j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bochner.feature_map import compute_dtype
from bochner.nonlinearities import Positive
from bochner.projections import IID, Projection
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.structured.semirings import log_sum
from bochner.validation import check_count, check_finite, check_points

MAX_ENTRIES = 1 << 24  # of a dense table that is still built: 128 MB in float64


class Factor:
    """A non-negative factor of k variables, as logarithms of its CP matrices.

    Shapes:     log_factors: k tensors [*b, n_i, r], natural logarithms, -inf for a zero; batch
                dimensions broadcast.
    Cost:       O(r sum_i n_i) memory, against prod_i n_i of the table.
    Raises:     ValueError for fewer than two matrices, or ranks, dtypes and batches that do not agree.
    Example:
        >>> identity = torch.eye(3).log()
        >>> Factor([identity, identity, identity]).dense().exp().sum()      # the diagonal of a cube
        tensor(3.)
    """

    def __init__(self, log_factors: Sequence[Tensor]) -> None:
        self.log_factors = tuple(log_factors)
        if len(self.log_factors) < 2:
            raise ValueError(
                f"log_factors holds {len(self.log_factors)} matrices; a factor joins at least two"
                " variables (one variable's is a unary)."
            )
        for position, log in enumerate(self.log_factors):
            check_points(f"log_factors[{position}]", log, self.log_factors[0].shape[-1])
            if log.dtype != self.log_factors[0].dtype:
                raise ValueError(
                    f"log_factors[{position}] has dtype {log.dtype}, log_factors[0] has"
                    f" {self.log_factors[0].dtype}; cast one."
                )
        try:
            self.batch_shape = torch.broadcast_shapes(*(f.shape[:-2] for f in self.log_factors))
        except RuntimeError:
            shapes = ", ".join(str(list(f.shape)) for f in self.log_factors)
            raise ValueError(f"log_factors have shapes {shapes}; batches must broadcast.") from None

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Sequence[Tensor],
        *,
        num_features: int,
        generator: torch.Generator,
        projection: Projection | None = None,
    ) -> Factor:
        """An unbiased estimate of exp(sum_{i<j} a_i[x_i] . a_j[x_j]), of rank num_features.

        A pair that should not interact gets coordinates of its own: with a_1 = (u, u'), a_2 = (v, 0),
        a_3 = (0, w) the factor is exp(u.v + u'.w).

        Shapes:     embeddings: k tensors [*b, n_i, d], -> log_factors [*b, n_i, num_features].
        Numerics:   every embedding is centred at its mean, and exp(c_i . sum_{j != i} mean_j) goes into
                    its matrix exactly: embeddings that share an offset lose none of their accuracy.
        Error:      relative variance of an entry: `relative_variance`. Positive, unbiased.
        Cost:       O(num_features d sum_i n_i).
        Raises:     ValueError or TypeError, naming the embedding, for shapes that do not fit and NaN.
        Reference:  docs/theory.md 16; Choromanski et al., 2021, for k = 2.
        Example:
            >>> g = torch.Generator().manual_seed(0)
            >>> a = [0.4 * torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(3)]
            >>> factor = Factor.from_embeddings(a, num_features=2048, generator=g)
            >>> error = torch.expm1(factor.dense() - log_pairwise(a)).square().mean().sqrt()
            >>> predicted = relative_variance(a, 2048).mean().sqrt()
            >>> bool(0.5 < error / predicted < 2), bool(predicted < 0.05)
            (True, True)
        """
        centred, log_scales = _centred(embeddings)
        check_count("num_features", num_features)
        dim = centred[0].shape[-1]
        draw = IID() if projection is None else projection
        omega = draw.draw(num_features, dim, generator=generator).to(centred[0])
        share = math.log(num_features) / len(centred)
        with torch.autocast(device_type=omega.device.type, enabled=False):
            return cls(
                [
                    a @ omega.T
                    - 0.5 * a.square().sum(-1, keepdim=True)
                    + scale.unsqueeze(-1)
                    - share
                    for a, scale in zip(centred, log_scales, strict=True)
                ]
            )

    @property
    def rank(self) -> int:
        """r, the number of products."""
        return self.log_factors[0].shape[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """n_1, ..., n_k, the numbers of states of the variables."""
        return tuple(f.shape[-2] for f in self.log_factors)

    def log_value(self, states: Tensor) -> Tensor:
        """log F at given states [*s, *b, k] -> [*s, *b].

        Cost:       O(r k) each, in time and memory.
        """
        if states.shape[-1] != len(self.sizes):
            raise ValueError(
                f"states has last dimension {states.shape[-1]}; this factor joins"
                f" {len(self.sizes)} variables."
            )
        batch = torch.broadcast_shapes(states.shape[:-1], self.batch_shape)
        joint = torch.zeros((), dtype=self.log_factors[0].dtype, device=states.device)
        for log, state in zip(self.log_factors, states.expand(*batch, -1).unbind(-1), strict=True):
            joint = joint + rows_of(log, state)
        return log_sum(joint, -1)

    def dense(self) -> Tensor:
        """log F of all states, [*b, n_1, ..., n_k].

        Cost:       O(r prod_i n_i) time; in memory, the table and one product of the CP sum.
        Raises:     ValueError for more than 2^24 entries.
        """
        entries = math.prod(self.sizes) * math.prod(self.batch_shape)
        if entries > MAX_ENTRIES:
            raise ValueError(
                f"a table of {entries} entries; dense() stops at {MAX_ENTRIES}. Ask for the entries that"
                " are needed with log_value(states)."
            )
        total: Tensor | None = None
        step = max(1, MAX_ENTRIES // entries)
        for start in range(0, self.rank, step):
            block = slice(start, start + step)
            part = log_sum(outer([f[..., block] for f in self.log_factors]), -1)
            total = part if total is None else log_sum(torch.stack([total, part], -1), -1)
        assert total is not None
        return total

    def __repr__(self) -> str:
        return f"Factor(sizes={list(self.sizes)}, rank={self.rank})"


def rows_of(log: Tensor, index: Tensor) -> Tensor:
    """Rows of log [*b, n, r] by index [*s, *b]: [*s, *b, r]."""
    if log.ndim == 2:
        return log[index]
    wide = log.expand(*index.shape, *log.shape[-2:])
    return wide.gather(-2, index[..., None, None].expand(*index.shape, 1, log.shape[-1])).squeeze(
        -2
    )


def outer(parts: Sequence[Tensor]) -> Tensor:
    """sum_i of row x_i of parts_i, for parts [*b, n_i, r]: [*b, n_1, ..., n_k, r]."""
    total = parts[0]
    for position, part in enumerate(parts[1:], start=1):
        for _ in range(position):
            part = part.unsqueeze(-3)
        total = total.unsqueeze(-2) + part
    return total


def log_pairwise(embeddings: Sequence[Tensor]) -> Tensor:
    """sum_{i<j} a_i[x_i] . a_j[x_j] of all states: what `Factor.from_embeddings` estimates.

    Shapes:     embeddings: k tensors [*b, n_i, d] -> [*b, n_1, ..., n_k].
    Example:
        >>> one = torch.ones(1, 2)
        >>> log_pairwise([one, one, one])                         # three pairs, each 2
        tensor([[[6.]]])
    """
    checked(embeddings)
    total = outer(embeddings)
    squares = outer([a.square().sum(-1, keepdim=True) for a in embeddings]).squeeze(-1)
    return 0.5 * (total.square().sum(-1) - squares)


def relative_variance(
    embeddings: Sequence[Tensor], num_features: int, projection: Projection | None = None
) -> Tensor:
    """Var[F^] / F^2 of every entry of `Factor.from_embeddings`.

        (exp(|s|^2) - 1) / num_features,   s = sum_i c_i,   c_i = a_i - mean(a_i)

    for independent directions; coupled ones add the pair term of docs/theory.md 2.

    Shapes:     embeddings: k tensors [*b, n_i, d] -> [*b, n_1, ..., n_k], float64.
    Raises:     ValueError for a projection that has no closed form.
    Example:
        >>> a = torch.tensor([[0.3], [-0.3]])                     # s is 0.9, 0.3, -0.3 or -0.9
        >>> float(relative_variance([a, a, a], 100)[0, 0, 0])     # (exp(0.81) - 1) / 100
        0.0124...
    """
    centred, _ = _centred([a.detach().double() for a in embeddings])
    sums = outer(centred)
    request = Request(
        dim=sums.shape[-1],
        num_features=num_features,
        projection=IID() if projection is None else projection,
        generator=torch.Generator().manual_seed(0),
    )
    points = sums.reshape(-1, 1, sums.shape[-1])
    variance = RandomFeatures(request, Positive()).relative_variance(
        points, torch.zeros_like(points)
    )
    if variance is None:
        raise ValueError(f"{projection!r} has no closed form; measure the variance over seeds.")
    return variance.reshape(sums.shape[:-1])


def relative_covariance(
    first: Sequence[Tensor], second: Sequence[Tensor], num_features: int
) -> Tensor:
    """Cov[F^(x), F^(x')] / (F(x) F(x')) = (exp(s.s') - 1) / num_features, for independent directions.

    Shapes:     first, second: k tensors [*b, d], the centred embeddings of x and of x' -> [*b], float64.
    Example:
        >>> x, y = [torch.tensor([0.5])] * 3, [torch.tensor([-0.5])] * 3
        >>> float(relative_covariance(x, y, 10))                  # (exp(-2.25) - 1) / 10
        -0.0894...
    """
    check_count("num_features", num_features)
    s, t = (torch.stack([a.double() for a in part]).sum(0) for part in (first, second))
    return torch.expm1((s * t).sum(-1)) / num_features


def checked(embeddings: Sequence[Tensor]) -> None:
    """Raise unless embeddings are k >= 2 finite tensors [*b, n_i, d] of one d and one dtype."""
    if len(embeddings) < 2:
        raise ValueError(f"embeddings holds {len(embeddings)} tensors; expected at least two.")
    for position, a in enumerate(embeddings):
        name = f"embeddings[{position}]"
        check_points(name, a, embeddings[0].shape[-1])
        check_finite(name, a)
        if a.dtype != embeddings[0].dtype:
            raise ValueError(
                f"{name} has dtype {a.dtype}, embeddings[0] has {embeddings[0].dtype}; cast one."
            )


def _centred(embeddings: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Embeddings without their means, and what each then owes: log factors [*b, n_i].

    sum_{i<j} a_i.a_j = sum_{i<j} c_i.c_j + sum_i c_i.(M - mu_i) + sum_{i<j} mu_i.mu_j,  M = sum_i mu_i.
    """
    checked(embeddings)
    embeddings = [a.to(compute_dtype(a)) for a in embeddings]
    means = [a.mean(-2, keepdim=True) for a in embeddings]
    whole = torch.stack(torch.broadcast_tensors(*means)).sum(0)
    centred = [a - mean for a, mean in zip(embeddings, means, strict=True)]
    scales = [(c * (whole - m)).sum(-1) for c, m in zip(centred, means, strict=True)]
    squares = torch.stack(torch.broadcast_tensors(*(m.square().sum(-1) for m in means))).sum(0)
    scales[0] = scales[0] + 0.5 * (whole.square().sum(-1) - squares)
    return centred, scales
