"""The next state of a hybrid chain, from a state in the beam: an exact choice with one entry for the rest.

p(y | x) ~ K(x, y) w(y)                      y in the next beam
p(rest | x) ~ left(x) . sum_{y outside} right(y) w(y),     then y | rest through the features
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.structured.draws import draw
from bochner.structured.semirings import LogSum, Sum, log_sum

if TYPE_CHECKING:
    from bochner.structured.edges.hybrid import Hybrid


def draw_from_beam(
    transitions: Hybrid,
    edge: int,
    states: Tensor,
    log_weights: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor:
    """States after the edge for states [s, N] in its beam, as `Transitions.draw`; 0 for the others.

    Cost:       O(X m) for the edge, O(m + k n) a sample, and O(X) for those that leave the beam.
    """
    elements = torch.arange(states.shape[-1], device=states.device)
    leaving, arriving = (transitions.beam_of(step, elements) for step in (edge, edge + 1))
    inside = (leaving == states.unsqueeze(-1)).any(dim=-1)
    owners, wanted = elements.expand(states.shape)[inside], states[inside]
    rest = log_weights.scatter(-1, arriving, -torch.inf)
    choices = torch.cat(
        [
            transitions.log_between(edge, leaving, arriving).double()[
                owners, _place(leaving[owners], wanted)
            ]
            + log_weights.gather(-1, arriving)[owners].double(),
            _log_rest(transitions, edge, wanted, owners, rest).unsqueeze(-1),
        ],
        dim=-1,
    )
    choice = draw(choices, torch.arange(len(wanted), device=wanted.device), generator=generator)
    width = arriving.shape[-1]
    into = arriving[owners].gather(-1, choice.clamp_max(width - 1).unsqueeze(-1)).squeeze(-1)
    result = torch.zeros_like(states)
    result[inside] = into
    if bool((choice == width).any()):
        past = torch.zeros_like(inside)
        past[inside] = choice == width
        outside = transitions.features.draw(edge, states, rest, generator=generator)
        result = torch.where(past, outside, result)
    return result


def _place(beams: Tensor, states: Tensor) -> Tensor:
    """Where in its beam [k, width] each state [k] stands."""
    return (beams == states.unsqueeze(-1)).int().argmax(dim=-1)


def _log_rest(
    transitions: Hybrid, edge: int, states: Tensor, owners: Tensor, rest: Tensor
) -> Tensor:
    """log sum_y K^(x, y) exp(rest(y)) of states [k] of elements `owners` of the batch, [k]."""
    features = transitions.features
    block = edge % features.num_blocks
    message = Sum().lift(rest)
    hidden = Sum().through(message, features.right[block])
    if hidden.doubt is not None:  # an index that is rare in all may be all that one state has
        hidden = LogSum().through(message, features.right[block])
    left = features.log_left[..., block, :, :]
    rows = left[owners, states] if features.batch_shape else left[states]
    return log_sum(rows + hidden.log[owners], -1).double() + hidden.scale[owners]
