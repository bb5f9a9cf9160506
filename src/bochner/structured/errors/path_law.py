"""The exact law of a chain with few states, from its dense potentials, in float64.

    p(x_1 .. x_T) ~ prod_t exp(unaries[t, x_t]) prod_t K(x_t, x_{t+1})

backward messages once; then initial and transition probabilities, marginals, samples, and the second
moment of an estimate of Z. The reference for every error law, and where `diagnose` gets its paths
while K fits in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class PathLaw:
    """A Markov chain in the form p(x_1) prod_t p(x_{t+1} | x_t).

    Arguments:  log_potential log K [X, X]; unaries [T, X]; -inf forbids.
    Cost:       O(T X^2) time, O(X^2 + T X) memory.
    Raises:     ValueError for shapes that do not fit, or if no path is allowed.
    Example:
        >>> law = PathLaw(torch.zeros(3, 3), torch.zeros(4, 3))
        >>> round(law.log_partition, 4)                                  # log 3^4
        4.3944
    """

    def __init__(self, log_potential: Tensor, unaries: Tensor) -> None:
        states = unaries.shape[-1]
        if unaries.ndim != 2 or tuple(log_potential.shape) != (states, states):
            raise ValueError(
                f"log_potential {list(log_potential.shape)} and unaries {list(unaries.shape)} must be"
                " [X, X] and [T, X]: one chain without batch dimensions."
            )
        self.num_steps, self.num_states = unaries.shape
        self._unaries = unaries.detach().double()
        log_potential = log_potential.detach().double()
        self._shift = log_potential.amax()
        self._potential = torch.exp(log_potential - self._shift)
        self._log_potential = log_potential
        self._backward()

    def _backward(self) -> None:
        """log beta_t(x) = log sum_y K(x, y) w_{t+1}(y) beta_{t+1}(y), each row up to its maximum."""
        log_beta = torch.zeros_like(self._unaries)
        total = torch.zeros((), dtype=torch.float64)
        for t in range(self.num_steps - 2, -1, -1):
            weights = self._unaries[t + 1] + log_beta[t + 1]
            top = weights.amax()
            message = torch.log(self._potential @ torch.exp(weights - top)) + self._shift
            low = torch.isinf(message) & ~torch.isinf(self._log_potential).all(-1)
            if bool(
                low.any()
            ):  # K spans more than float64 does: these rows once more, in logarithms
                rows = self._log_potential[low] + (weights - top)
                message[low] = torch.logsumexp(rows, dim=-1)
            log_beta[t] = message - message.amax()
            total = total + top + message.amax()
        start = self._unaries[0] + log_beta[0]
        log_partition = torch.logsumexp(start, dim=0) + total
        if not bool(torch.isfinite(log_partition)):
            raise ValueError(
                f"log Z = {float(log_partition)}: the unaries and potentials allow no path, or hold"
                " NaN or +inf; expected finite values, and -inf for what is forbidden."
            )
        self._log_beta = log_beta
        self.log_partition = float(log_partition)
        self.initial = torch.softmax(start, dim=0)

    def transition(self, edge: int) -> Tensor:
        """p(x_{t+1} = y | x_t = x) of the edge t -> t+1, counted from 0: [X, X]; rows of states that
        lead nowhere are 0."""
        return self._rows(edge, self._log_potential)

    def _rows(self, edge: int, log_potential: Tensor) -> Tensor:
        logs = log_potential + self._unaries[edge + 1] + self._log_beta[edge + 1]
        return torch.softmax(logs, dim=-1).nan_to_num(nan=0.0)

    def marginals(self) -> Tensor:
        """p(x_t), [T, X]."""
        found = [self.initial]
        for edge in range(self.num_steps - 1):
            found.append(found[-1] @ self.transition(edge))
        return torch.stack(found)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Paths [count, T], O(T X count)."""
        states = torch.multinomial(self.initial, count, replacement=True, generator=generator)
        paths = [states]
        for edge in range(self.num_steps - 1):
            rows = self._rows(edge, self._log_potential[states])
            states = torch.multinomial(rows, 1, generator=generator).squeeze(-1)
            paths.append(states)
        return torch.stack(paths, dim=-1)

    def relative_second_moment(self, excess: Tensor, directions: float) -> float:
        """E Z^^2 / Z^2, exactly, for features drawn independently for each edge.

            E_{p x p} prod_t (1 + (rho_t - 1) / r)

        by messages over pairs of states: the transfer matrix of two independent paths.

        Arguments:  excess: rho((x, y), (x', y')) - 1 as [X, X, X, X], indexed x, y, x', y';
                    directions: r of one edge.
        Cost:       O(T X^4) time, O(X^4) memory.
        Example:
            >>> law = PathLaw(torch.zeros(1, 1), torch.zeros(3, 1))
            >>> law.relative_second_moment(torch.ones(1, 1, 1, 1), 4)    # (1 + 1/4)^2
            1.5625
        """
        together = 1.0 + excess.double().permute(0, 2, 1, 3) / directions  # x, x', y, y'
        pairs = torch.outer(self.initial, self.initial)
        log_total = 0.0
        for edge in range(self.num_steps - 1):
            step = self.transition(edge)
            pairs = torch.einsum("ab,ax,by,abxy->xy", pairs, step, step, together)
            size = pairs.sum()
            log_total += math.log(size)
            pairs = pairs / size
        return math.exp(log_total) if log_total < 700.0 else math.inf
