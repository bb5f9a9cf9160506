"""Draws from categorical distributions that are given by unnormalised log-weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ELEMENTS = 1 << 21  # of the distributions that are held at once: 16 MB in float64


def draw(log_weights: Tensor, group: Tensor, *, generator: torch.Generator) -> Tensor:
    """One draw from row `group` of unnormalised log-weights, for every entry of group.

        x = the first state whose cumulative weight exceeds u * total,  u ~ U[0, 1)

    Shapes:     log_weights [g, n], -inf allowed; group [k], integers below g -> [k], below n.
    Numerics:   cumulative weights in float64; a state of weight 0 is never drawn (unless all are 0).
    Cost:       O(g n + k log n).
    Example:
        >>> two = torch.tensor([[0.0, -torch.inf], [-torch.inf, 2.0]])
        >>> draw(two, torch.tensor([0, 1, 1]), generator=torch.Generator().manual_seed(0))
        tensor([0, 1, 1])
    """
    logs = log_weights.double()
    top = logs.amax(dim=-1, keepdim=True)
    cumulative = torch.exp(logs - top.masked_fill(top == -torch.inf, 0.0)).cumsum(dim=-1)
    total = cumulative[:, -1][group]
    uniform = torch.rand(
        group.shape, generator=generator, device=generator.device, dtype=torch.float64
    ).to(logs.device)
    target = uniform * total  # below total: u <= 1 - 2^-53, and that product never rounds up to it
    low = torch.zeros_like(group)
    high = torch.full_like(group, logs.shape[-1] - 1)
    for _ in range((logs.shape[-1] - 1).bit_length()):
        middle = (low + high) // 2
        beyond = cumulative[group, middle] > target
        low, high = torch.where(beyond, low, middle + 1), torch.where(beyond, middle, high)
        low = torch.minimum(low, high)
    return low


def draw_by_key(
    keys: Tensor,
    log_weights: Callable[[Tensor], Tensor],
    num_states: int,
    *,
    generator: torch.Generator,
) -> Tensor:
    """One draw for every key; equal keys share a distribution, which is made once.

    Shapes:     keys [k], integers -> [k]; log_weights(some keys [u]) -> [u, num_states].
    """
    distinct, inverse = keys.unique(return_inverse=True)
    step = max(1, _ELEMENTS // num_states)
    if len(distinct) <= step:
        return draw(log_weights(distinct), inverse, generator=generator)
    drawn = torch.empty_like(keys)
    for start in range(0, len(distinct), step):
        mine = ((inverse >= start) & (inverse < start + step)).nonzero().squeeze(-1)
        weights = log_weights(distinct[start : start + step])
        drawn[mine] = draw(weights, inverse[mine] - start, generator=generator)
    return drawn
