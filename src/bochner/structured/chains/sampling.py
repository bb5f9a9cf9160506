"""Exact samples of chains: filtering backward, then drawing forward.

    x_1 ~ w_1 beta_1,        x_{t+1} | x_t ~ K_t(x_t, .) w_{t+1} beta_{t+1}

Transitions of low rank draw x_{t+1} in two steps: the hidden index j ~ left(x_t, j) c_j with
c_j = sum_y right(y, j) w_{t+1}(y) beta_{t+1}(y), then x_{t+1} ~ right(., j) w_{t+1} beta_{t+1}: no row of
K is ever made. All samples of a batch are drawn together; those that share j share its distribution.

Cost:       one pass of messages, and O(T (m + X)) a sample (low rank; less where samples share j).
Reference:  docs/theory.md 15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.structured.arguments import check_possible
from bochner.structured.chains.messages import both_messages
from bochner.structured.draws import draw

if TYPE_CHECKING:
    from bochner.structured.chains.chain import Chain


@torch.no_grad()
def sample(chain: Chain, sample_shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Independent draws from a chain, [*sample_shape, *b, T] int64; 0 at steps that do not exist."""
    transitions, unaries, lengths = chain.flat()
    messages = both_messages(transitions, unaries, lengths)
    check_possible(messages.log_partition)
    count, batch = torch.Size(sample_shape).numel(), len(unaries)
    element = torch.arange(batch, device=unaries.device).expand(count, batch)
    first = unaries[:, 0] + messages.beta[:, 0]
    states = draw(first, element.reshape(-1), generator=generator).view(count, batch)
    drawn = [states]
    for step in range(1, unaries.shape[1]):
        there = lengths > step
        # what lies beyond the lengths may forbid everything: nothing is drawn from it
        weights = torch.where(there.unsqueeze(-1), unaries[:, step] + messages.beta[:, step], 0.0)
        states = transitions.draw(step - 1, states, weights, generator=generator)
        states = torch.where(there, states, 0)
        drawn.append(states)
    return torch.stack(drawn, dim=-1).view(*sample_shape, *chain.batch_shape, unaries.shape[1])
