"""What landmark features are fitted to: sequences of every head, and the pairs that need no fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.kernels import ExponentialKernel, Kernel

_SINK_ROWS = 16  # as many as attention asks when it looks for them


@dataclass(frozen=True)
class ExactPairs:
    """Pairs that the features need not serve: hidden ones (causal), a window, sinks.

    Arguments:  causal: pairs i < j do not exist; window: pairs with 0 <= i - j < window if causal, else
                |i - j| <= window // 2; sinks: that many keys which every row sees exactly, the first
                ones if causal, else those with most attention from a few rows.
    """

    causal: bool = False
    window: int = 0
    sinks: int = 0

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether row i sees column j at all, [n, n'] of positions [n] and [n']."""
        gap = rows[:, None] - columns[None, :]
        return gap >= 0 if self.causal else torch.ones_like(gap, dtype=torch.bool)

    def near(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether j is in the window of i, [n, n']."""
        gap = rows[:, None] - columns[None, :]
        if self.window == 0:
            return torch.zeros_like(gap, dtype=torch.bool)
        if self.causal:
            return (gap >= 0) & (gap < self.window)
        return gap.abs() <= self.window // 2

    def sink_keys(self, queries: Tensor, keys: Tensor, key_factor: Tensor) -> Tensor:
        """Which keys [*b, n'] are sinks, of whole sequences [*b, n, d], [*b, n', d]."""
        chosen = torch.zeros(keys.shape[:-1], dtype=torch.bool, device=keys.device)
        count = min(self.sinks, keys.shape[-2])
        if self.causal:
            chosen[..., :count] = True
        elif count:
            picks = spaced(queries.shape[-2], _SINK_ROWS, queries.device)
            logits = queries[..., picks, :] @ keys.transpose(-1, -2) + key_factor.unsqueeze(-2)
            heaviest = torch.softmax(logits, dim=-1).sum(-2).topk(count, dim=-1).indices
            chosen.scatter_(-1, heaviest, True)
        return chosen


@dataclass(frozen=True)
class Sequences:
    """Sequences of every head in float64, all of the same positions.

    Shapes:     queries [heads, s, n, d], keys [heads, s, n', d], values [heads, s, n', dv] or None,
                key_factor [heads, s, n'] (logarithm of the kernel's factor of a key), sinks like it;
                rows [n] and columns [n'] positions.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor | None
    key_factor: Tensor
    sinks: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(
        cls, kernel: Kernel, queries: Tensor, keys: Tensor, values: Tensor | None, exact: ExactPairs
    ) -> Sequences:
        """From queries, keys and values [heads, s, n, d]."""
        queries, keys = queries.double(), keys.double()
        factor = ExponentialKernel.of(kernel, "a fit of landmarks").log_point_factor(keys)
        flat = keys.new_zeros(keys.shape[:-1]) if factor is None else factor.squeeze(-1)
        sinks = exact.sink_keys(queries, keys, flat)
        rows, columns = (torch.arange(x.shape[-2], device=x.device) for x in (queries, keys))
        values = None if values is None else values.double()
        return cls(queries, keys, values, flat, sinks, rows, columns)

    def take(self, sequences: Tensor, rows: Tensor, columns: Tensor) -> Sequences:
        """Some sequences, of them some rows and columns."""

        def keys(x: Tensor) -> Tensor:
            return x[:, sequences][:, :, columns]

        return Sequences(
            self.queries[:, sequences][:, :, rows],
            keys(self.keys),
            None if self.values is None else keys(self.values),
            keys(self.key_factor),
            keys(self.sinks),
            self.rows[rows],
            self.columns[columns],
        )


def spaced(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` evenly spaced positions of `length`, first and last among them."""
    if count >= length:
        return torch.arange(length, device=device)
    ends = torch.linspace(0, length - 1, count, dtype=torch.float64, device=device)
    return ends.round().long()
