"""Non-negative matrices of any range: what a message is passed through."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor


def finite_maximum(log: Tensor, dim: int) -> Tensor:
    """The largest logarithm along `dim`, kept as a dimension; 0 where all are -inf. A constant."""
    top = log.detach().amax(dim=dim, keepdim=True)
    return top.masked_fill(top == -math.inf, 0.0)


class Matrix:
    """exp(log) [*b, n, k], equilibrated: values * exp(row_scale + column_scale), exactly.

    Every row and every column of `values` [*b, n, k] has 1 as its largest entry (unless it is zero), so
    that a float32 product loses nothing that a row or a column of another size would have hidden.

    Shapes:     log [*b, n, k]; row_scale [*b, n], column_scale [*b, k]. -inf is a zero.
    Autograd:   the scales are constants and cancel; `values` and `log` carry the gradient. What is
                cached lives as long as the object: make one for every evaluation that is differentiated.
    Example:
        >>> m = Matrix(torch.tensor([[1000.0, 998.0], [-1000.0, -1000.0]]))
        >>> m.values, m.row_scale
        (tensor([[1.0000, 0.1353],
                [1.0000, 1.0000]]), tensor([ 1000., -1000.]))
    """

    def __init__(self, log: Tensor) -> None:
        self.log = log

    @cached_property
    def row_scale(self) -> Tensor:
        """Logarithm of the factor of every row, [*b, n]."""
        return finite_maximum(self.log, -1).squeeze(-1)

    @cached_property
    def column_scale(self) -> Tensor:
        """Logarithm of the factor of every column, [*b, k]."""
        rest = self.log.detach() - self.row_scale.unsqueeze(-1)
        return finite_maximum(rest, -2).squeeze(-2)

    @cached_property
    def values(self) -> Tensor:
        """What is left between the scales, in [0, 1]."""
        rest = self.log - self.row_scale.unsqueeze(-1)
        if "column_scale" not in self.__dict__:
            self.__dict__["column_scale"] = finite_maximum(rest, -2).squeeze(-2)
        return rest.sub_(self.column_scale.unsqueeze(-2)).exp_()

    @cached_property
    def positive(self) -> bool:
        """Whether no entry is 0."""
        return bool((self.log > -math.inf).all())

    @cached_property
    def T(self) -> Matrix:
        """The transpose, sharing what has been computed."""
        other = Matrix(self.log.transpose(-1, -2))
        other.__dict__.update(
            row_scale=self.column_scale,
            column_scale=self.row_scale,
            values=self.values.transpose(-1, -2),
            T=self,
        )
        if "positive" in self.__dict__:
            other.__dict__["positive"] = self.positive
        return other

    def rows(self, index: Tensor) -> Matrix:
        """Some rows: index [j], or [*b, j] for other rows in every element of the batch."""
        if index.ndim == 1:
            return Matrix(self.log[..., index, :])
        batch = torch.broadcast_shapes(index.shape[:-1], self.log.shape[:-2])
        log = self.log.expand(*batch, *self.log.shape[-2:])
        wide = index.expand(*batch, index.shape[-1])
        return Matrix(log.gather(-2, wide.unsqueeze(-1).expand(*wide.shape, log.shape[-1])))


def row_times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """vectors [*b, n] times matrix [*mb, n, k], batch by batch: [*b, k]."""
    if matrix.ndim == 2:
        return vectors @ matrix
    if (
        matrix.shape[-3] == 1 and vectors.ndim > 1
    ):  # one matrix for a whole dimension: no copies of it
        return vectors @ matrix.squeeze(-3)
    return (vectors.unsqueeze(-2) @ matrix).squeeze(-2)
