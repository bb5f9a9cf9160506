"""The inside recursion of a low-rank grammar, over any semiring: from short spans to the sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.structured.grammars.passages import Passage
from bochner.structured.matrix import finite_maximum
from bochner.structured.semirings import Message, Semiring


@dataclass(frozen=True)
class Chart:
    """What the spans of a sentence weigh, by their width.

    Shapes:     totals: for every width, float64 [*b], log-weight of the sentence if it had as many words.
                lefts, rights: for every width w, parts of its spans [*b, n - w + 1, r].
                spans: for every width, the message that its parts come from: preterminals [*b, n, P] of
                words, then nonterminals [*b, n - w + 1, N] (or ranks, in rank space).
                ranks: for every width from 2, [*b, n - w + 1, r].
    """

    totals: list[Tensor]
    spans: list[Message]
    lefts: list[Message]
    rights: list[Message]
    ranks: list[Message]


def inside(
    passage: Passage, words: Tensor, *, log_root: Tensor, log_spans: Tensor | None = None
) -> Chart:
    """The chart of a sentence, over the semiring of the passage.

        h_ij[r] = sum_k left_ik[r] right_kj[r],   left = L^T b,  right = R^T b,  b = H h

    Shapes:     words [*b, n, P], log_root [*b, S], log_spans [*b, n, n]: log-weights.
    Numerics:   every message has its largest logarithm at 0 beside a scale in float64; the sum over
                splits is one of logarithms; products of probabilities are checked entry by entry.
    Cost:       O(n^3 r + n^2 r N) time, O(n^2 r) memory and, for autograd, O(n^3 r).
    """
    semiring = passage.semiring
    length, nonterminals = words.shape[-2], passage.rules.num_nonterminals
    batch = torch.broadcast_shapes(words.shape[:-2], log_root.shape[:-1], passage.rules.batch_shape)
    root = log_root.expand(*batch, -1)
    message = _weighted(semiring, semiring.lift(words.expand(*batch, -1, -1)), log_spans, 1)
    left, right = passage.word_parts(message)
    totals = [_at_root(semiring, message, root[..., nonterminals:])]
    chart = Chart(totals, [message], [left], [right], [])
    for width in range(2, length + 1):
        ranks = _weighted(semiring, joined(semiring, chart, width), log_spans, width)
        left, right, message = passage.span_parts(ranks)
        top = passage.top(first_span(message))
        chart.totals.append(_at_root(semiring, top, root[..., :nonterminals]))
        chart.ranks.append(ranks)
        chart.spans.append(message)
        chart.lefts.append(left)
        chart.rights.append(right)
    return chart


def joined(semiring: Semiring, chart: Chart, width: int) -> Message:
    """The ranks of all spans of one width, from the parts of narrower ones."""
    starts = chart.lefts[0].log.shape[-2] - width + 1
    lefts = [chart.lefts[k - 1] for k in range(1, width)]
    rights = [chart.rights[width - k - 1] for k in range(1, width)]
    left = torch.stack([m.log[..., :starts, :] for m in lefts], dim=-2)
    right = torch.stack(
        [m.log[..., k : k + starts, :] for k, m in enumerate(rights, start=1)], dim=-2
    )
    scale = torch.stack([m.scale[..., :starts] for m in lefts], dim=-1) + torch.stack(
        [m.scale[..., k : k + starts] for k, m in enumerate(rights, start=1)], dim=-1
    )
    log = left + right  # [*b, starts, splits, r]
    # in units of the split that weighs most, so that float32 keeps its digits for it
    top = finite_maximum(scale + log.detach().amax(-1), -1)
    log = (log + (scale - top).to(log.dtype).unsqueeze(-1)).transpose(-1, -2)
    splits = Message(log, torch.zeros(log.shape[:-1], dtype=torch.float64, device=log.device))
    summed = semiring.total(splits).to(log.dtype)
    return semiring.settled(Message(summed, top.squeeze(-1)))


def first_span(message: Message) -> Message:
    """The span that begins the sentence, [*b, 1, n]."""
    return Message(message.log[..., :1, :], message.scale[..., :1])


def _weighted(
    semiring: Semiring, message: Message, log_spans: Tensor | None, width: int
) -> Message:
    """The spans of one width times their own weights."""
    if log_spans is None:
        return message
    own = log_spans.diagonal(offset=width - 1, dim1=-2, dim2=-1)
    return semiring.settled(semiring.times(message, own.unsqueeze(-1)))


def _at_root(semiring: Semiring, message: Message, log_root: Tensor) -> Tensor:
    """Log-weight of a whole sentence whose first span [*b, 1, n] is all of it, [*b]."""
    first = first_span(message)
    return semiring.total(semiring.times(first, log_root.unsqueeze(-2))).squeeze(-1)
