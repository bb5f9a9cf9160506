"""eta: whether the noise of random features outgrows the chain, edge by edge.

For features drawn independently for each edge, every path x contributes to the relative variance of Z^
at least what two copies of itself do:

    E Z^^2 / Z^2 >= sum_x p(x)^2 prod_t (1 + (rho_tt - 1) / r) >= eta^(T-1)
    eta^(T-1)    =  sum_x p(x)^2 prod_t (rho_tt - 1) / r

By messages through K K (rho - 1) (elementwise), as log Z itself; for equal unaries and many steps

    eta -> lambda_max(K K (rho - 1)) / (r lambda_max(K)^2)

eta > 1: the relative variance grows like eta^T, whatever chi says.

Reference:  docs/theory.md 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CACHED_ENTRIES = 1 << 22
_BLOCK_ENTRIES = 1 << 22
_HELD = 600.0  # between logarithms whose exponentials float64 holds side by side


def noise_ratio(
    log_rows: Callable[[Tensor], Tensor],
    unaries: Tensor,
    *,
    log_partition: float,
    directions: float,
    beam: Tensor | None = None,
) -> float:
    """eta of one chain.

    Arguments:  log_rows: states [r] -> log K(x, y)^2 (rho - 1) of these rows [r, X]; unaries [T, X];
                log_partition: log Z; directions: r of one edge; beam [T, X]: True for the states of the
                beam; edges from beam to beam are exact.
    Error:      exact; given a subset of the states (and the log Z of all), a lower bound.
    Cost:       O(X^2 d + T X^2) time where X^2 <= 2^22, else O(T X^2 d) by blocks of rows and O(X) memory.
    Example:
        >>> rows = lambda states: torch.zeros(len(states), 3)            # K = 1, rho = 2, three states
        >>> eta = noise_ratio(rows, torch.zeros(2, 3), log_partition=2.1972245, directions=10)
        >>> round(eta, 4)                                                # 9 / 9^2 / 10
        0.0111
    """
    steps, states = unaries.shape
    if steps < 2:
        return 0.0
    through = _Through(log_rows, states, unaries.device)
    doubled = 2.0 * unaries.detach().double()
    message = doubled[0]
    for edge in range(steps - 1):
        message = _step(through, message, beam, edge) + doubled[edge + 1]
    log_sum = float(torch.logsumexp(message, dim=0)) - 2.0 * log_partition
    per_edge = log_sum / (steps - 1) - math.log(directions)
    return math.exp(per_edge) if per_edge < 700.0 else math.inf


def _step(through: _Through, message: Tensor, beam: Tensor | None, edge: int) -> Tensor:
    """log sum_x exp(message(x)) M(x, y), without the edges from beam to beam."""
    if beam is None:
        return through(message)
    inside, ends = beam[edge], beam[edge + 1]
    rest = through(message.masked_fill(inside, -torch.inf))
    start = through(message.masked_fill(~inside, -torch.inf))
    return torch.logaddexp(rest, start.masked_fill(ends, -torch.inf))


class _Rows(NamedTuple):
    """exp(logs) = values * exp(shift) of some rows, [r, X] and [r]; span: between the logs of a row."""

    logs: Tensor
    values: Tensor
    shift: Tensor
    span: Tensor

    @classmethod
    def of(cls, logs: Tensor) -> _Rows:
        """The shifts are the rows' maxima."""
        top = logs.amax(-1, keepdim=True)
        span = (top - logs).masked_fill(logs == -torch.inf, 0.0).amax()
        shift = torch.where(torch.isinf(top), 0.0, top)
        return cls(logs, torch.exp(logs - shift), shift.squeeze(-1), span)

    def summed(self, message: Tensor) -> Tensor:
        """log sum_x exp(message(x) + logs(x, y)); from logarithms where float64 does not hold them all."""
        sides = message + self.shift
        top = sides.amax()
        if bool(top == -torch.inf):
            return torch.full_like(self.logs[0], -torch.inf)
        low = torch.where(sides == -torch.inf, top, sides).amin()
        if bool(top - low + self.span < _HELD):
            return torch.log(torch.exp(sides - top) @ self.values) + top
        terms = message.unsqueeze(-1) + self.logs
        return torch.logsumexp(terms.masked_fill(self.logs == -torch.inf, -torch.inf), dim=0)


class _Through:
    """Log-messages through exp(rows), kept where they fit."""

    def __init__(
        self, log_rows: Callable[[Tensor], Tensor], states: int, device: torch.device
    ) -> None:
        self._log_rows, self._states, self._device = log_rows, states, device
        self._kept: _Rows | None = None
        if states**2 <= _CACHED_ENTRIES:
            self._kept = self._rows(torch.arange(states, device=device))

    def _rows(self, which: Tensor) -> _Rows:
        return _Rows.of(self._log_rows(which).double())

    def __call__(self, message: Tensor) -> Tensor:
        if self._kept is not None:
            return self._kept.summed(message)
        size = max(1, _BLOCK_ENTRIES // self._states)
        total = torch.full_like(message, -torch.inf)
        for which in torch.arange(self._states, device=self._device).split(size):
            total = torch.logaddexp(total, self._rows(which).summed(message[which]))
        return total
