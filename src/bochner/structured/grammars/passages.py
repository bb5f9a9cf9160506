"""How spans of a sentence become parts of larger ones, over any semiring.

A span of several words holds weights of ranks, h[r] = sum over its splits of left[r] right[r], where left
and right are the parts of the two smaller spans. A `Passage` turns the weights of a span into its parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.structured.matrix import Matrix
from bochner.structured.semirings import Message, Semiring, log_sum

if TYPE_CHECKING:
    from bochner.structured.grammars.rules import LowRankRules

_RESCUED = 1 << 22  # logarithms summed at once: 16 MB in float32


class Passage(ABC):
    """The matrices of one evaluation; a new one for every evaluation that is differentiated.

    Shapes:     messages of spans [*b, spans, n]; matrices [n, k], or [*b, 1, n, k] for a grammar each.
    """

    def __init__(self, semiring: Semiring, rules: LowRankRules) -> None:
        self.semiring, self.rules = semiring, rules

    @abstractmethod
    def span_parts(self, ranks: Message) -> tuple[Message, Message, Message]:
        """Ranks [*b, spans, r] -> left and right parts [*b, spans, r], and the message of the span itself
        that both were computed from."""

    @abstractmethod
    def top(self, message: Message) -> Message:
        """The nonterminals [*b, spans, N] of spans, from their messages."""

    def word_parts(self, words: Message) -> tuple[Message, Message]:
        """Preterminals' weights of words [*b, spans, P] -> left and right parts [*b, spans, r]."""
        nonterminals = self.rules.num_nonterminals
        left = over_spans(self.rules.log_left[..., nonterminals:, :])
        right = over_spans(self.rules.log_right[..., nonterminals:, :])
        return exact_through(self.semiring, words, left), exact_through(self.semiring, words, right)

    def symbols(self, ranks: Message) -> Message:
        """Ranks [*b, spans, r] -> the nonterminals above them [*b, spans, N]."""
        return exact_through(self.semiring, ranks, self.to_symbols)

    @cached_property
    def to_symbols(self) -> Matrix:
        """H^T."""
        return over_spans(self.rules.log_head.transpose(-1, -2))


class SymbolPassage(Passage):
    """Ranks to symbols to parts: O(r N) a span, three times."""

    @cached_property
    def left(self) -> Matrix:
        """L of nonterminal children."""
        return over_spans(self.rules.log_left[..., : self.rules.num_nonterminals, :])

    @cached_property
    def right(self) -> Matrix:
        """R of nonterminal children."""
        return over_spans(self.rules.log_right[..., : self.rules.num_nonterminals, :])

    def span_parts(self, ranks: Message) -> tuple[Message, Message, Message]:
        """By way of the symbols, which are the span's message."""
        symbols = self.symbols(ranks)
        left = exact_through(self.semiring, symbols, self.left)
        return left, exact_through(self.semiring, symbols, self.right), symbols

    def top(self, message: Message) -> Message:
        """The message itself."""
        return message


class RankPassage(Passage):
    """Ranks to parts by H^T L and H^T R: O(r^2) a span, twice."""

    @cached_property
    def left(self) -> Matrix:
        """H^T L."""
        return self._joined(self.rules.log_left)

    @cached_property
    def right(self) -> Matrix:
        """H^T R."""
        return self._joined(self.rules.log_right)

    def _joined(self, log_children: Tensor) -> Matrix:
        """H^T times children: each of the r rows of H^T is a message."""
        children = over_spans(log_children[..., : self.rules.num_nonterminals, :])
        heads = self.semiring.lift(self.rules.log_head.transpose(-1, -2))
        rows = exact_through(self.semiring, heads, children)
        return over_spans(rows.log + rows.scale.unsqueeze(-1).to(rows.log.dtype))

    def span_parts(self, ranks: Message) -> tuple[Message, Message, Message]:
        """By the r x r matrices; the ranks are the span's message."""
        ranks = self.semiring.settled(ranks)
        left = exact_through(self.semiring, ranks, self.left)
        return left, exact_through(self.semiring, ranks, self.right), ranks

    def top(self, message: Message) -> Message:
        """Through H^T."""
        return self.symbols(message)


def over_spans(log: Tensor) -> Matrix:
    """One matrix for all spans: [n, k], or [*b, 1, n, k]."""
    return Matrix(log if log.ndim == 2 else log.unsqueeze(-3))


def exact_through(semiring: Semiring, message: Message, matrix: Matrix) -> Message:
    """A message through a matrix, settled, with every entry to full precision.

    Entries that a product of probabilities cannot hold are summed again as logarithms, one by one: the
    other child may have all its weight just there.
    """
    message = semiring.settled(message)
    out = semiring.through(message, matrix)
    if out.doubt is None:
        return semiring.settled(out)
    shape = out.log.shape
    alive = (message.log.amax(-1, keepdim=True) > -math.inf) & (matrix.log.amax(-2) > -math.inf)
    index = ((out.doubt > -math.inf) & alive).nonzero(as_tuple=True)
    *batch, column = index
    rows = message.log.expand(*shape[:-1], -1)
    columns = matrix.log.transpose(-1, -2).expand(*shape, -1)
    units = (message.scale - out.scale).to(out.log.dtype).expand(shape[:-1])
    step = max(1, _RESCUED // message.log.shape[-1])
    parts = [
        log_sum(rows[tuple(b[part] for b in batch)] + columns[tuple(i[part] for i in index)], -1)
        for part in torch.arange(column.numel(), device=column.device).split(step)
    ]
    log = out.log.index_put(index, torch.cat(parts) + units[tuple(batch)])
    return semiring.settled(Message(log, out.scale, out.lost))
