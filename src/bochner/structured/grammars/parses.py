"""Parses as tensors: which spans of a sentence are constituents, and of which symbol.

A parse is a chart [n, n] of integers: entry (i, j) is the symbol of the constituent that covers the words
i to j, both included, and -1 where there is none. Nonterminals come first, preterminals stand on the
diagonal. A bracketing is a parse without symbols: a bool chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.structured.semirings import log_sum


class Nodes(NamedTuple):
    """The branchings of many parses, one row for every one.

    Shapes:     parse [k]: which of the flattened parses; head, left, right [k]: symbols;
                first, last [k]: the words that it covers.
    """

    parse: Tensor
    first: Tensor
    last: Tensor
    head: Tensor
    left: Tensor
    right: Tensor


def check_parses(parses: Tensor, lengths: Tensor, num_nonterminals: int, num_symbols: int) -> None:
    """Raise ValueError unless every chart [B, n, n] is a binary tree over its first words, lengths [B].

    2 length - 1 constituents, all inside the sentence, none below the diagonal, words with preterminals,
    longer spans with nonterminals, and every branching with two constituents that meet.
    """
    size = parses.shape[-1]
    there = parses >= 0
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    row, column = row.to(parses.device), column.to(parses.device)
    word = row == column
    inside = (row <= column) & (column < lengths[:, None, None])
    symbol_fits = torch.where(
        word,
        (parses >= num_nonterminals) & (parses < num_symbols),
        parses < num_nonterminals,
    )
    fits = ((~there & (parses == -1)) | (there & inside & symbol_fits)).flatten(1).all(-1)
    count = there.flatten(1).sum(-1) == 2 * lengths - 1
    whole = there[torch.arange(len(parses), device=parses.device), 0, lengths - 1]
    good = fits & count & whole
    if bool(good.all()):
        found = nodes(parses)
        broken = (found.left < 0) | (found.right < 0)
        good = good.index_fill(0, found.parse[broken], False)
    if not bool(good.all()):
        raise ValueError(
            f"parse {int((~good).nonzero()[0])} (of {len(good)}, flattened) is not a binary tree over its"
            f" words: expected 2 length - 1 constituents, preterminals {num_nonterminals} ..."
            f" {num_symbols - 1} on the diagonal, nonterminals 0 ... {num_nonterminals - 1} above it,"
            " two that meet under each, and -1 elsewhere."
        )


def nodes(parses: Tensor) -> Nodes:
    """The branchings of charts [B, n, n]; a child that is missing is -1.

    The left child of (i, j) is the widest constituent that begins at i and ends before j.
    """
    size = parses.shape[-1]
    last = torch.arange(size, device=parses.device)
    ends = (
        torch.where(parses >= 0, last, -1).cummax(-1).values
    )  # the last one so far that ends here
    before = torch.nn.functional.pad(ends[..., :-1], (1, 0), value=-1)
    parse, i, j = ((parses >= 0) & (last > last.unsqueeze(-1))).nonzero(as_tuple=True)
    k = before[parse, i, j]
    left = torch.where(k >= 0, parses[parse, i, k.clamp_min(0)], -1)
    return Nodes(parse, i, j, parses[parse, i, j], left, parses[parse, k + 1, j])


def log_weights(
    parses: Tensor, element: Tensor, tables: Sequence[Tensor], unaries: Tensor
) -> Tensor:
    """Log-weights [B'] of checked charts [B', n, n], float64.

    Shapes:     element [B']: the row of the tables, log H [B, N, r], log L and log R [B, S, r],
                log root [B, S], and of unaries [B, n, P], that each belongs to.
    """
    found, root = nodes(parses), tables[3]
    owner, symbols = element[found.parse], (found.head, found.left, found.right)
    ranks = [log[owner, symbol] for log, symbol in zip(tables[:3], symbols, strict=True)]
    rules = log_sum(ranks[0] + ranks[1] + ranks[2], -1).double()
    parse, word = (parses.diagonal(dim1=-2, dim2=-1) >= 0).nonzero(as_tuple=True)
    nonterminals = root.shape[-1] - unaries.shape[-1]
    unary = unaries[element[parse], word, parses[parse, word, word] - nonterminals].double()
    # the widest constituent that begins with the first word
    top = parses[:, 0].gather(-1, (parses[:, 0] >= 0).long().cumsum(-1).argmax(-1, keepdim=True))
    total = root[element, top.squeeze(-1)].double()
    return total.index_add(0, found.parse, rules).index_add(0, parse, unary)


def brackets(parse: Tensor, words: list[str]) -> str:
    """One parse or bracketing [n, n] as a line of text.

    Raises:     ValueError for a batch, or a tree over more or fewer words than are given.
    Example:
        >>> spans = torch.eye(3).bool()
        >>> spans[1, 2] = spans[0, 2] = True
        >>> brackets(spans, ["dogs", "chase", "cats"])
        '(dogs (chase cats))'
    """
    there = parse if parse.dtype == torch.bool else parse >= 0
    if there.ndim != 2:
        raise ValueError(
            f"parse has shape {list(parse.shape)}; expected one chart [n, n]: parse[i]."
        )
    covered = int(there.diagonal().sum())
    if covered != len(words):
        raise ValueError(
            f"parse covers {covered} words, words holds {len(words)}: pass words[:length] of the sentence."
        )

    def text(first: int, last: int) -> str:
        if first == last:
            return words[first]
        split = next(k for k in range(last - 1, first - 1, -1) if bool(there[first, k]))
        return f"({text(first, split)} {text(split + 1, last)})"

    return text(0, len(words) - 1)
