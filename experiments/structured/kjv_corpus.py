"""The King James Bible as numbered words: verses to train on, every tenth to test on.

A verse is a sequence of its own and ends in END; words are lower-cased, punctuation marks are words
(`bochner.data.verse_tokens`). Verses of more than LONGEST tokens are left out (595 of 31,102). Words
that the training verses have fewer than FEWEST times are all UNKNOWN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.data import kjv_verses, verse_tokens

LONGEST, FEWEST = 60, 5
TENTH = 10
UNKNOWN, END = "<unk>", "</s>"


class Corpus(NamedTuple):
    """Word numbers, verse by verse; `counts` of the words are those of the training verses."""

    words: list[str]
    counts: Tensor
    train: list[Tensor]
    test: list[Tensor]

    @property
    def unigram_perplexity(self) -> float:
        """Of the test words under the training frequencies."""
        frequencies = self.counts.double() / self.counts.sum()
        return math.exp(-float(frequencies[torch.cat(self.test)].log().mean()))


def read_corpus(take: int | None = None) -> Corpus:
    """The corpus, or one of its first `take` verses that are short enough."""
    verses = [verse_tokens(verse) for verse in kjv_verses().values()]
    return corpus_of([verse for verse in verses if len(verse) <= LONGEST][:take])


def corpus_of(verses: Sequence[list[str]]) -> Corpus:
    """Numbered verses; the last of every ten is for the test."""
    parts: tuple[list[list[str]], list[list[str]]] = ([], [])
    for index, verse in enumerate(verses):
        parts[index % TENTH == TENTH - 1].append(verse)
    counts = Counter(word for verse in parts[0] for word in verse)
    kept = sorted((w for w in counts if counts[w] >= FEWEST), key=lambda w: (-counts[w], w))
    words = [UNKNOWN, END, *kept]
    number = {word: i for i, word in enumerate(words)}
    train, test = (
        [torch.tensor([*(number.get(word, 0) for word in verse), 1]) for verse in part]
        for part in parts
    )
    # Counted once where the training verses lack it: a frequency of 0 would have no logarithm.
    seen = torch.bincount(torch.cat(train), minlength=len(words)).clamp_min(1)
    return Corpus(words, seen, train, test)


def batches(
    verses: Sequence[Tensor], tokens: int, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Verses of one length together [verses, length], at most about `tokens` words in a batch.

    Nothing is padded. With a generator, verses and batches come in a random order.
    """
    by_length: dict[int, list[Tensor]] = {}
    for verse in verses:
        by_length.setdefault(len(verse), []).append(verse)
    found: list[Tensor] = []
    for length in sorted(by_length):
        rows = torch.stack(by_length[length])
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        found += rows.split(max(1, tokens // length))
    if generator is None:
        return found
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
