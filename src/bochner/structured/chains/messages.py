"""Both messages at every step of a chain: what pairwise marginals, samples and entropies are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.structured.chains.recursion import Part, backward_messages, forward_messages
from bochner.structured.edges.transitions import Transitions
from bochner.structured.semirings import LogSum, Message, Semiring, Sum, log_sum


class Messages(NamedTuple):
    """alpha and beta of a flattened batch: p(x_t) = exp(alpha_t + beta_t) / Z.

    Shapes:     alpha, beta [N, T, X], logarithms with about 0 as the largest of a step, to which
                alpha_scale, beta_scale [N, T] in float64 are added; log_partition [N] in float64.
    """

    alpha: Tensor
    alpha_scale: Tensor
    beta: Tensor
    beta_scale: Tensor
    log_partition: Tensor


@torch.no_grad()
def both_messages(transitions: Transitions, unaries: Tensor, lengths: Tensor) -> Messages:
    """The messages of a chain, constants to autograd: unaries [N, T, X], lengths [N].

    Numerics:   as `log_partition`: by `Sum` in the dtype of the unaries; the elements whose messages do
                not agree about log Z at every step again in float64, and at last by `LogSum`.
    Cost:       O(T) products with the transitions, O(N T X) memory.
    """
    found, doubtful = _messages(Sum(), transitions, unaries, lengths)
    index = doubtful.nonzero().squeeze(-1)
    if not index.numel():
        return found
    part = transitions.selected(index).double(), unaries[index].double(), lengths[index]
    if unaries.dtype == torch.float64:
        again, _ = _messages(LogSum(), *part)
    else:
        again = both_messages(*part)
    pairs = zip(found, again, strict=True)
    return Messages(*(ours.index_copy(0, index, new.to(ours.dtype)) for ours, new in pairs))


def _messages(
    semiring: Semiring, transitions: Transitions, unaries: Tensor, lengths: Tensor
) -> tuple[Messages, Tensor]:
    """The messages, and the elements [N] that may be wrong."""
    part = Part.whole(unaries, lengths)
    alpha, alpha_scale, missed = _stacked(forward_messages(semiring, transitions, part))
    beta, beta_scale, missed_too = _stacked(backward_messages(semiring, transitions, part))
    beta, beta_scale = beta.flip(1), beta_scale.flip(1)
    seen = log_sum(alpha + beta, -1).double() + alpha_scale + beta_scale
    value = seen[:, -1]  # beta is 1 there: the total of alpha
    eps = torch.finfo(unaries.dtype).eps
    tolerance = 10 * math.sqrt(eps) + 8 * eps * unaries.shape[1]
    # -inf - -inf is NaN, and agrees: there is no path
    apart = ((seen - value.unsqueeze(-1)).abs() > tolerance).any(dim=-1)
    found = Messages(alpha, alpha_scale, beta, beta_scale, value)
    return found, missed | missed_too | apart


def _stacked(messages: Iterator[Message]) -> tuple[Tensor, Tensor, Tensor]:
    """log [N, T, X], scale [N, T] and what was lost [N], in the order in which they come."""
    kept = list(messages)
    lost = kept[-1].lost
    if lost is None:
        lost = torch.zeros_like(kept[-1].scale, dtype=torch.bool)
    return torch.stack([m.log for m in kept], 1), torch.stack([m.scale for m in kept], 1), lost
