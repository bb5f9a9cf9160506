"""Which Hebrew or Greek word does an English one render? The King James Bible as a tagger's corpus.

A verse is the sequence of its words that have a Strong's number; the number is the label. Nothing restricts
the labels of a word: all labels of the Bible stand at every word. Every twentieth verse is held out.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.data import kjv_strongs

HELD_OUT, EVERY = 7, 20  # verses 7, 27, 47, ... are the test
FOLDS = 8  # what is counted for a training verse is counted on the others of eight parts
CONTEXT = 2  # words on either side
PAD, UNKNOWN = 0, 1
LabelledWords = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Corpus:
    """All verses one after another.

    Shapes:     words, labels [N], integers; starts [V + 1]: verse v is starts[v] ... starts[v + 1] - 1;
                context [N, 5]: the word and its neighbours in the verse; train, test: verses.
    """

    words: Tensor
    labels: Tensor
    starts: Tensor
    context: Tensor
    train: Tensor
    test: Tensor
    label_names: tuple[str, ...]
    num_words: int

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def lengths(self) -> Tensor:
        """Words of every verse, [V]."""
        return self.starts.diff()

    def tokens(self, verses: Tensor) -> Tensor:
        """Positions of the words of some verses."""
        rows, steps = self.places(verses)
        return self.starts[verses][rows] + steps

    def places(self, verses: Tensor) -> tuple[Tensor, Tensor]:
        """(row, step) of every word in a batch of these verses, [n] each."""
        lengths = self.lengths[verses]
        rows = torch.repeat_interleave(torch.arange(len(verses)), lengths)
        begins = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return rows, torch.arange(len(rows)) - begins

    def padded_labels(self, verses: Tensor) -> Tensor:
        """[b, T], 0 beyond the lengths."""
        found = torch.zeros(len(verses), int(self.lengths[verses].max()), dtype=torch.long)
        found[self.places(verses)] = self.labels[self.tokens(verses)]
        return found

    def hebrew(self) -> Tensor:
        """Which labels are Hebrew or Aramaic ones, bool [labels]."""
        return torch.tensor([name.startswith("H") for name in self.label_names])


@functools.cache
def bible(verses: int) -> Corpus:
    """The first so many verses with labelled words; 0 for all."""
    found = [words for words in kjv_strongs().values() if words]
    if verses:  # of both testaments
        found = found[: verses // 2] + found[-(verses - verses // 2) :]
    return corpus(found)


def corpus(verses: list[LabelledWords]) -> Corpus:
    """Integers for words and labels. Words seen once in training, or never, are one unknown word.

    Of several words that were not seen together, such as "priest's office", the last that is known counts.
    """
    numbers = torch.arange(len(verses))
    test = numbers[numbers % EVERY == HELD_OUT]
    train = numbers[numbers % EVERY != HELD_OUT]
    counts = Counter(word.lower() for v in train.tolist() for word, _ in verses[v])
    known = sorted(word for word, count in counts.items() if count > 1)
    index = {word: at for at, word in enumerate(known, start=UNKNOWN + 1)}
    names = sorted({label for verse in verses for _, label in verse})
    label_index = {name: at for at, name in enumerate(names)}

    def word_of(text: str) -> int:
        parts = [text.lower(), *reversed(text.lower().split())]
        return next((index[part] for part in parts if part in index), UNKNOWN)

    words = torch.tensor([word_of(word) for verse in verses for word, _ in verse])
    labels = torch.tensor([label_index[label] for verse in verses for _, label in verse])
    lengths = torch.tensor([len(verse) for verse in verses])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    context = _context(words, torch.repeat_interleave(numbers, lengths))
    return Corpus(
        words, labels, starts, context, train, test, tuple(names), len(index) + UNKNOWN + 1
    )


def _context(words: Tensor, verse: Tensor) -> Tensor:
    """Every word with those up to CONTEXT places before and after it in its verse."""
    columns = []
    for shift in range(-CONTEXT, CONTEXT + 1):
        moved, of = words.roll(-shift), verse.roll(-shift)
        columns.append(torch.where(of == verse, moved, PAD))
    return torch.stack(columns, dim=-1)


class LabelCounts:
    """log p(label | word) from counts, with the frequencies of labels for what was not seen.

    p(l | w) = (c(w, l) + alpha p(l)) / (c(w) + alpha),     p(l) = (c(l) + 0.1) / (n + 0.1 X)
    """

    ALPHA = 2.0

    def __init__(self, made: Corpus, verses: Tensor) -> None:
        tokens = made.tokens(verses)
        words, labels, size = made.words[tokens], made.labels[tokens], made.num_labels
        frequency = torch.bincount(labels, minlength=size).float() + 0.1
        self.prior = frequency / frequency.sum()
        pairs, counts = (words * size + labels).unique(return_counts=True)
        owner = pairs // size
        self.labels, self.counts = pairs % size, counts.float()
        self.totals = torch.zeros(made.num_words).index_add_(0, owner, self.counts)
        self.first = torch.searchsorted(owner, torch.arange(made.num_words + 1))

    def log_probabilities(self, words: Tensor) -> Tensor:
        """[n] words -> [n, labels]."""
        weight = self.totals[words] + self.ALPHA
        found = self.prior.log() + (self.ALPHA / weight).log().unsqueeze(-1)
        seen = self.first[words + 1] - self.first[words]
        rows = torch.repeat_interleave(torch.arange(len(words)), seen)
        offset = torch.arange(len(rows)) - torch.repeat_interleave(seen.cumsum(0) - seen, seen)
        at = self.first[words][rows] + offset
        labels = self.labels[at]
        found[rows, labels] = (
            (self.counts[at] + self.ALPHA * self.prior[labels]) / weight[rows]
        ).log()
        return found
