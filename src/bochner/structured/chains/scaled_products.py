"""log Z of a chain by nothing but matrix products and divisions, where that is known to lose nothing.

    v <- (v A) B * w,    log Z = sum_t log |v|_1,    v <- v / |v|_1

With K = A B (or K = A) equilibrated and the largest weight w of every step 1, all numbers are in [0, m]. What
float32 flushes to zero in a step is then at most X^2 m times its smallest number. No weight that follows can
favour what was lost over what was kept by more than

    max_{x,x',y} K(x, y) / K(x', y)  <=  1 / min A,

whatever the number of steps: where |v|_1 exceeds X^2 m tiny / (eps min A) at every step, all losses together
are below T eps. Elsewhere, and where a gradient is wanted, the recursion over semirings is run
(recursion.py): the same sums, with every loss accounted for state by state, at several times the cost
of a step where there are few states.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.matrix import Matrix, finite_maximum

_ELEMENTS = 1 << 20  # of weights that are exponentiated at once: 4 MB in float32
_FEW = 3  # sequences whose products are bound by reading the factors from memory
_REPAID = 16  # products with a factor after which another layout of it has paid


class _Edge:
    """One block: factors in [0, 1], and the logarithms that belong to the states before and after."""

    def __init__(self, factors: tuple[Matrix, ...], *, long_rows: bool) -> None:
        self.before = factors[0].row_scale
        self.after = factors[-1].column_scale
        self.matrices = [_laid(factor.values, long_rows) for factor in factors]
        self.least = float(self.matrices[0].amin())
        self.shift = 0.0
        for at, (one, other) in enumerate(pairwise(factors)):
            middle = one.column_scale + other.row_scale
            top = finite_maximum(middle, -1)
            self.shift += float(top)
            self.matrices[at] = self.matrices[at] * torch.exp(middle - top)

    @property
    def width(self) -> int:
        """Products that are added up for one state: at most so much exceeds 1."""
        return max(len(matrix) for matrix in self.matrices[1:]) if self.matrices[1:] else 1


def scaled_log_partition(transitions: Transitions, unaries: Tensor) -> tuple[Tensor, Tensor] | None:
    """log Z [N] in float64 and where it is sure, bool [N]; None for transitions without factors.

    Shapes:     unaries [N, T, X], all of length T; transitions without a batch.
    Cost:       two thin products a step and three passes over [N, X]. For up to three sequences it is the
                time in which the factors are read from memory, and a copy of each of them is made.
    """
    batch, steps, states = unaries.shape
    uses = (steps - 1) // max(1, transitions.num_blocks)
    edges = _edges(transitions, steps - 1, long_rows=batch <= _FEW and uses >= _REPAID)
    if edges is None:
        return None
    info = torch.finfo(unaries.dtype)
    width = max((edge.width for edge in edges), default=1)
    favour = min((edge.least for edge in edges), default=1.0)
    least = float(states) ** 2 * width * info.tiny / info.eps
    if least >= favour:  # no message could be large enough
        return None
    norms, shifts = [], unaries.new_zeros(batch, dtype=torch.float64)
    message: Tensor | None = None
    chunk = max(1, _ELEMENTS // max(1, batch * states))
    for first in range(0, steps, chunk):
        weights, tops = _weights(unaries, edges, first, min(first + chunk, steps))
        shifts += tops.double().sum(-1)
        # of a single sequence, vectors: a product with one row is slower than one with a vector
        rows = weights.squeeze(0) if batch == 1 else weights.transpose(0, 1)
        for at, weight in enumerate(rows.unbind(0)):
            if message is None:
                message = weight
            else:
                for matrix in edges[(first + at - 1) % len(edges)].matrices:
                    message = message @ matrix
                message = message * weight
            norms.append(message.sum(-1, keepdim=True))
            message = message / norms[-1]
    logs = torch.cat(norms, dim=-1).reshape(batch, steps).double().log()
    shift = sum(edges[edge % len(edges)].shift for edge in range(steps - 1))
    return logs.sum(-1) + shifts + shift, (logs > math.log(least / favour)).all(-1)


def _edges(transitions: Transitions, count: int, *, long_rows: bool) -> list[_Edge] | None:
    blocks = [transitions.factors(block) for block in range(min(transitions.num_blocks, count))]
    if any(factors is None for factors in blocks):
        return None
    return [_Edge(factors, long_rows=long_rows) for factors in blocks if factors is not None]


def _laid(matrix: Tensor, long_rows: bool) -> Tensor:
    """The same matrix; with `long_rows`, the longer of its dimensions is contiguous in memory.

    A vector passes through it as fast as memory is read; through short rows at half of that.
    """
    if not long_rows:
        return matrix
    rows, columns = matrix.shape
    return matrix.T.contiguous().T if rows > columns else matrix.contiguous()


def _weights(unaries: Tensor, edges: list[_Edge], first: int, stop: int) -> tuple[Tensor, Tensor]:
    """Weights [N, t, X] of some steps with 1 as the largest, and the logarithms [N, t] taken out.

    The scales of the edges around a step belong to its states.
    """
    log = unaries[:, first:stop]
    steps = unaries.shape[1]
    if edges:
        scales = torch.stack(
            [
                (edges[(step - 1) % len(edges)].after if step else 0.0 * edges[0].after)
                + (edges[step % len(edges)].before if step < steps - 1 else 0.0)
                for step in range(first, stop)
            ]
        )
        log = log + scales
    top = finite_maximum(log, -1)
    return torch.exp(log - top), top.squeeze(-1)
