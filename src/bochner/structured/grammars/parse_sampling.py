"""Parses drawn from the top down: rank, then split, then the two children, from an inside chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bochner.structured.draws import draw
from bochner.structured.grammars.chart import Chart
from bochner.structured.semirings import Message


def sampled(
    chart: Chart,
    weights: Sequence[Tensor],
    lengths: Tensor,
    *,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """`count` independent parses of every sentence: [count * B, n, n], sentences innermost.

    A branching of symbol A over words i ... j: rank r ~ H[A, r] h_ij[r], split k ~ left_ik[r] right_kj[r],
    children B ~ L[B, r] b_ik[B] and C ~ R[C, r] b_kj[C]. All spans of one width are drawn at once.

    Shapes:     chart of symbols over the flattened batch B; weights: log H [B, N, r], log L and log R
                [B, S, r], log root [B, S]; lengths [B].
    """
    log_head, log_left, log_right, log_root = weights
    size, nonterminals = len(chart.spans), log_head.shape[-2]
    symbols = _by_start_and_width(chart.spans, nonterminals, log_root.shape[-1])
    lefts, rights = (_scaled(messages) for messages in (chart.lefts, chart.rights))
    ranks = _padded([m.log for m in chart.ranks], size) if chart.ranks else None
    element = torch.arange(len(lengths), device=lengths.device).repeat(count)
    parses = torch.full((len(element), size, size), -1, device=lengths.device)
    top = log_root[element] + symbols[element, 0, lengths[element] - 1]
    rows = torch.arange(len(element), device=lengths.device)
    parses[rows, 0, lengths[element] - 1] = _drawn(top, generator)
    splits = torch.arange(1, size, device=lengths.device)
    for width in range(size, 1, -1):
        assert ranks is not None
        row, first = (parses.diagonal(offset=width - 1, dim1=-2, dim2=-1) >= 0).nonzero(
            as_tuple=True
        )
        owner, head = element[row], parses[row, first, first + width - 1]
        rank = _drawn(log_head[owner, head] + ranks[owner, first, width - 2], generator)
        k = splits[: width - 1].unsqueeze(-1)
        both = lefts[owner, first, k - 1, rank] + rights[owner, first + k, width - k - 1, rank]
        split = 1 + _drawn(both.T, generator)
        left = log_left[owner, :, rank] + symbols[owner, first, split - 1]
        parses[row, first, first + split - 1] = _drawn(left, generator)
        right = log_right[owner, :, rank] + symbols[owner, first + split, width - split - 1]
        parses[row, first + split, first + width - 1] = _drawn(right, generator)
    return parses


def _drawn(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """One index for every row of [k, n]."""
    rows = torch.arange(len(log_weights), device=log_weights.device)
    return draw(log_weights, rows, generator=generator)


def _padded(parts: list[Tensor], size: int) -> Tensor:
    """By width, [*b, n - w + 1, k] -> [B, n starts, widths, k], -inf where no span is."""
    wide = [pad(p, (0, 0, 0, size - p.shape[-2]), value=-math.inf) for p in parts]
    chart = torch.stack(wide, dim=-2)
    return chart.reshape(-1, *chart.shape[-3:])


def _scaled(messages: list[Message]) -> Tensor:
    return _padded([m.log.double() + m.scale.unsqueeze(-1) for m in messages], len(messages))


def _by_start_and_width(spans: list[Message], nonterminals: int, symbols: int) -> Tensor:
    """Messages of symbols, preterminals of words among them: [B, n, n, S]."""
    words = pad(spans[0].log, (nonterminals, 0), value=-math.inf)
    rest = [pad(m.log, (0, symbols - nonterminals), value=-math.inf) for m in spans[1:]]
    return _padded([words, *rest], len(spans))
