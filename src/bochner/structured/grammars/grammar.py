"""A grammar that learns from sentences alone: softmax parameters whose low rank is the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bochner.structured.arguments import checked_lengths
from bochner.structured.grammars.pcfg import PCFG
from bochner.structured.grammars.rules import LowRankRules
from bochner.validation import check_count


class Grammar(nn.Module):
    """A proper PCFG with low-rank rules, from logits: words -> the distribution over their parses.

        p(A -> B C) = sum_r p(r | A) p(B | r) p(C | r),   p(word | preterminal),   p(top symbol)

    Inference is exact: nothing is approximated by the rank. The loss of unsupervised training is
    `-grammar(words, lengths=lengths).log_partition.mean()`.

    Shapes:     words [*b, n], integers below num_words; lengths [*b]; -> PCFG of batch [*b].
    Arguments:  num_symbols: (N, P), nonterminals and preterminals; rank: r; generator: initial logits
                are N(0, 1).
    Cost:       that of `PCFG`; parameters r (N + 2 S) + P V + S.
    Raises:     ValueError for counts below 1 and words that are not in the vocabulary.
    Reference:  Yang, Zhao and Tu, PCFGs Can Do Better: Inducing Probabilistic Context-Free Grammars with
                Many Symbols, 2021 (their factors come from a neural network; these are free).
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> grammar = Grammar(5, num_symbols=(3, 4), rank=8, generator=g)
        >>> every = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(5))
        >>> p = grammar(every).log_partition.exp().sum()          # all sentences of three words:
        >>> bool(0 < p < 1)                                       # some have other lengths
        True
    """

    def __init__(
        self,
        num_words: int,
        *,
        num_symbols: tuple[int, int],
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if isinstance(num_symbols, int) or len(num_symbols) != 2:
            raise ValueError(
                f"num_symbols={num_symbols!r}; expected a pair: nonterminals, preterminals."
            )
        nonterminals, preterminals = num_symbols
        self.num_words = check_count("num_words", num_words)
        check_count("num_symbols[0]", nonterminals)
        check_count("num_symbols[1]", preterminals)
        check_count("rank", rank)

        def logits(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, device=generator.device))

        symbols = nonterminals + preterminals
        self.head = logits(nonterminals, rank)
        self.left, self.right = logits(symbols, rank), logits(symbols, rank)
        self.root = logits(symbols)
        self.emission = logits(preterminals, num_words)

    @property
    def rules(self) -> LowRankRules:
        """The rules at the present parameters."""
        return LowRankRules.normalised(self.head, self.left, self.right)

    def forward(self, words: Tensor, *, lengths: Tensor | None = None) -> PCFG:
        """The parses of sentences; words at and after lengths are not read."""
        if not isinstance(words, Tensor) or words.is_floating_point() or words.dtype == torch.bool:
            kind = words.dtype if isinstance(words, Tensor) else type(words).__name__
            raise TypeError(f"words is {kind}; expected a tensor of integers.")
        if lengths is not None:
            lengths = checked_lengths(lengths, words.unsqueeze(-1))
            there = torch.arange(words.shape[-1], device=words.device) < lengths.unsqueeze(-1)
            words = words.masked_fill(~there, 0)
        if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < self.num_words:
            raise ValueError(
                f"words are from {int(words.min())} to {int(words.max())}; expected 0 to"
                f" {self.num_words - 1} (padding is not read: give `lengths`)."
            )
        log_emission = torch.log_softmax(self.emission, dim=-1).transpose(-1, -2)
        unaries = nn.functional.embedding(words, log_emission)
        return PCFG(self.rules, torch.log_softmax(self.root, dim=-1), unaries, lengths=lengths)

    def extra_repr(self) -> str:
        """Sizes."""
        nonterminals, rank = self.head.shape
        preterminals = self.emission.shape[0]
        return f"{self.num_words}, num_symbols=({nonterminals}, {preterminals}), rank={rank}"
