"""A grammar that learns nesting from strings."""

import math

import pytest
import torch
from torch import Tensor

from bochner.structured.grammars.grammar import Grammar
from bochner.structured.grammars.pcfg import PCFG
from bochner.structured.grammars.rules import LowRankRules

ON, MOST = 0.6, 5
"""Pairs go on being nested with this probability, up to so many."""


def nested_pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sentences x1 ... xk yk ... y1: openers 0 or 1, each with its own closer, 2 or 3, in mirrored order."""
    words, lengths = torch.zeros(count, 2 * MOST, dtype=torch.long), torch.zeros(count).long()
    for row in range(count):
        depth = 1
        while depth < MOST and float(torch.rand((), generator=generator)) < ON:
            depth += 1
        openers = torch.randint(2, (depth,), generator=generator)
        words[row, : 2 * depth] = torch.cat([openers, 2 + openers.flip(0)])
        lengths[row] = 2 * depth
    return words, lengths


def entropy() -> float:
    """Nats a sentence."""
    depth = [ON ** (k - 1) * (1 - ON if k < MOST else 1.0) for k in range(1, MOST + 1)]
    return sum(p * (k * math.log(2) - math.log(p)) for k, p in enumerate(depth, start=1))


def nesting(trees: PCFG, lengths: Tensor) -> float:
    """Share of the pairs x_i ... y_i, all but the outermost, that the bracketing has as constituents."""
    spans = trees.mbr_spans()
    found = [
        spans[row, i, length - 1 - i]
        for row, length in enumerate(lengths.tolist())
        for i in range(1, length // 2)
    ]
    return float(torch.stack(found).double().mean())


def test_training_on_strings_alone_finds_the_nesting() -> None:
    g = torch.Generator().manual_seed(0)
    words, lengths = nested_pairs(256, g)
    grammar = Grammar(4, num_symbols=(5, 4), rank=12, generator=g)
    before = grammar(words, lengths=lengths)
    optimiser = torch.optim.Adam(grammar.parameters(), lr=0.1)
    for _ in range(120):
        rows = torch.randint(len(words), (32,), generator=g)
        loss = -grammar(words[rows], lengths=lengths[rows]).log_partition.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh, fresh_lengths = nested_pairs(256, g)
    trees = grammar(fresh, lengths=fresh_lengths)
    nats = -float(trees.log_partition.detach().mean())
    start = -float(before.log_partition.detach().mean())
    assert nats < entropy() + 0.5 * (start - entropy())
    assert nesting(before, lengths) < 0.6
    assert nesting(trees, fresh_lengths) > 0.95


def test_it_is_a_distribution_over_sentences() -> None:
    grammar = Grammar(3, num_symbols=(2, 2), rank=3, generator=torch.Generator().manual_seed(0))
    three = torch.cartesian_prod(*[torch.arange(3)] * 3)
    total = grammar(three).log_partition.exp().sum()
    rules, root = grammar.rules, torch.log_softmax(grammar.root, -1)
    assert isinstance(rules, LowRankRules)
    by_length = PCFG(rules, root, torch.zeros(3, 2)).log_partition.exp()
    torch.testing.assert_close(total, by_length)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (torch.tensor([3]), ValueError, "words are from 3 to 3"),
        (torch.tensor([-1]), ValueError, "words are from -1 to -1"),
        (torch.tensor([0.0]), TypeError, r"words is torch\.float32"),
    ],
)
def test_words_outside_the_vocabulary(words: Tensor, error: type[Exception], message: str) -> None:
    grammar = Grammar(3, num_symbols=(1, 1), rank=1, generator=torch.Generator())
    with pytest.raises(error, match=message):
        grammar(words)
    with pytest.raises(ValueError, match="rank=0"):
        Grammar(3, num_symbols=(1, 1), rank=0, generator=torch.Generator())


def test_padding_is_not_read() -> None:
    grammar = Grammar(3, num_symbols=(2, 2), rank=2, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([3, 2])
    padded = grammar(torch.tensor([[0, 1, 2], [1, 2, -1]]), lengths=lengths)
    clean = grammar(torch.tensor([[0, 1, 2], [1, 2, 0]]), lengths=lengths)
    torch.testing.assert_close(padded.log_partition, clean.log_partition)
    with pytest.raises(ValueError, match="num_symbols=4; expected a pair"):
        Grammar(3, num_symbols=4, rank=2, generator=torch.Generator())
