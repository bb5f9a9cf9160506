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

import torch
from torch import Tensor

_CACHED_ENTRIES = 1 << 22
_BLOCK_ENTRIES = 1 << 22


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


class _Through:
    """Log-messages through exp(rows), kept where they fit."""

    def __init__(
        self, log_rows: Callable[[Tensor], Tensor], states: int, device: torch.device
    ) -> None:
        self._log_rows, self._states, self._device = log_rows, states, device
        self._kept: tuple[Tensor, Tensor] | None = None
        if states**2 <= _CACHED_ENTRIES:
            self._kept = self._block(torch.arange(states, device=device))

    def _block(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """exp(rows - shift), shift [r, 1] the rows' maxima."""
        logs = self._log_rows(rows).double()
        shift = logs.amax(-1, keepdim=True)
        shift = torch.where(torch.isinf(shift), 0.0, shift)
        return torch.exp(logs - shift), shift

    def __call__(self, message: Tensor) -> Tensor:
        if self._kept is not None:
            return self._summed(message, *self._kept)
        size = max(1, _BLOCK_ENTRIES // self._states)
        total = torch.full_like(message, -torch.inf)
        for rows in torch.arange(self._states, device=self._device).split(size):
            total = torch.logaddexp(total, self._summed(message[rows], *self._block(rows)))
        return total

    def _summed(self, message: Tensor, values: Tensor, shift: Tensor) -> Tensor:
        logs = message + shift.squeeze(-1)
        top = logs.amax()
        if bool(torch.isinf(top)) and bool(top < 0):
            return torch.full_like(values[0], -torch.inf)
        return torch.log(torch.exp(logs - top) @ values) + top
