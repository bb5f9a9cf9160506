"""What a semi-Markov chain says of labels, boundaries and durations: sums of probabilities, no differences.

p(a segment of label x covers the steps t-k+1 .. t) = open_{t-k}(x) L(x, k) prod_s w_s(x) tail_t(x) / Z
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.graphs.semi_markov_recursion import (
    Backwards,
    Forwards,
    Weights,
    backwards,
    forwards,
)
from bochner.structured.semirings import Message, Semiring, either


@dataclass(frozen=True)
class SegmentMarginals:
    """Expected counts of a flattened batch; constants to autograd.

    Shapes:     labels [N, T, X]: p(step t has label x); begins, ends [N, T, X]: p(a segment of label x has
                t as its first, its last step); durations [N, X, K]: expected number of segments.
    """

    labels: Tensor
    begins: Tensor
    ends: Tensor
    durations: Tensor


@dataclass(frozen=True)
class BothWays:
    """Messages both ways, and what follows from them."""

    forwards: Forwards
    backwards: Backwards
    marginals: SegmentMarginals
    lost: Tensor | None


def both_ways(semiring: Semiring, transitions: Transitions, weights: Weights) -> BothWays:
    """Forward, backward, and the counts: O(T X (m + K)) time, O(T X) memory."""
    ahead = forwards(semiring, transitions, weights)
    back = backwards(semiring, transitions, weights)
    log_z = ahead.log_partition - weights.log_scale
    begins = [
        _joint(semiring, open_, head, log_z)
        for open_, head in zip(ahead.opens, back.heads, strict=True)
    ]
    ends = [
        _joint(semiring, close, tail, log_z)
        for close, tail in zip(ahead.closes[1:], back.tails[1:], strict=True)
    ]
    # beyond the lengths there is nothing, whatever the messages hold
    steps = torch.arange(len(begins), device=log_z.device)
    there = (steps < weights.lengths.unsqueeze(-1)).unsqueeze(-1)
    first, last = (torch.where(there, torch.stack(found, dim=1), 0.0) for found in (begins, ends))
    labels, durations = _counts(ahead, back, weights, log_z)
    counts = SegmentMarginals(labels, first, last, durations)
    return BothWays(ahead, back, counts, either(ahead.lost, back.lost))


def _joint(semiring: Semiring, one: Message, other: Message, log_z: Tensor) -> Tensor:
    """one * other / Z, [N, X]."""
    joint = semiring.product(one, other)
    shift = (joint.scale - log_z).to(joint.log.dtype)
    return torch.exp(joint.log + shift.unsqueeze(-1))


def _counts(
    ahead: Forwards, back: Backwards, weights: Weights, log_z: Tensor
) -> tuple[Tensor, Tensor]:
    """labels [N, T, X] and durations [N, X, K], segment by segment."""
    batch, steps, states = weights.unaries.shape
    labels = torch.zeros_like(weights.unaries)
    durations = labels.new_zeros(batch, weights.longest, states)
    for end in range(1, steps + 1):
        count = min(weights.longest, end)
        earlier = ahead.opens[end - count : end][::-1]
        tail = back.tails[end]
        scales = torch.stack([m.scale for m in earlier], dim=-1)
        shifts = scales + (tail.scale - log_z).unsqueeze(-1)
        logs = torch.stack([m.log for m in earlier], dim=1) + weights.before(end)
        logs = logs + tail.log.unsqueeze(1) + shifts.to(logs.dtype).unsqueeze(-1)
        probability = torch.exp(logs)  # 0 beyond the lengths, where the tails are
        durations[:, :count] += probability
        # a step k before the end is covered by the segments of length k and more
        covered = probability.flip(1).cumsum(dim=1)
        labels[:, end - count : end] += covered
    return labels, durations.transpose(-1, -2)
