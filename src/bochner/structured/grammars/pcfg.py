"""Probabilistic context-free grammars with low-rank rules: a distribution over parses of a sentence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.structured.arguments import check_possible, checked_lengths, log_probability
from bochner.structured.chains.information import Estimate
from bochner.structured.grammars.chart import Chart, inside
from bochner.structured.grammars.factors import MAX_ENTRIES
from bochner.structured.grammars.grammar_arguments import check_sizes, check_spans
from bochner.structured.grammars.parse_sampling import sampled
from bochner.structured.grammars.parses import check_parses, log_weights
from bochner.structured.grammars.rules import LowRankRules, Rules
from bochner.structured.semirings import Max, Semiring, Sum
from bochner.validation import check_count


class PCFG:
    """Labelled binary trees over the words of a sentence, weighed by a grammar in Chomsky normal form.

        log weight = root[top] + sum of log weight(A -> B C) over branchings + sum_i unaries[i, preterminal_i]

    With normalised rules, root and emissions it is a PCFG, and `log_partition` the log-likelihood of the
    sentence; any other weights give a weighted grammar. In both, `log_prob` is that of a parse given the
    sentence, and never positive. A parse is a chart [n, n] (see
    `bochner.structured.grammars.parses`).

    Shapes:     log_root [*b, S]: -inf for symbols that no sentence has at its top (in the usual
                definition the preterminals, and then a sentence of one word has none).
                unaries [*b, n, P]: log-weight of each word under each preterminal, from rules of
                N nonterminals and S = N + P symbols; log_spans [*b, n, n]: log-weights of constituents
                (-inf forbids one). lengths [*b]: words at and after them do not exist.
    Numerics:   float64 scales for every span, maxima taken out, no eps; entries that a product of
                probabilities cannot hold are summed again as logarithms.
    Cost:       O(n^3 r + n^2 r N) time, O(n^2 (r + N)) memory; autograd keeps O(n^3 r).
                `rules.in_rank_space()` makes it O(n^3 r + n^2 r^2).
    Raises:     ValueError or TypeError, naming the argument, for shapes that do not fit, NaN and +inf.
    Reference:  Cohen, Satta and Collins, Approximate PCFG Parsing Using Tensor Decomposition, 2013; Yang,
                Zhao and Tu, PCFGs Can Do Better, 2021; docs/theory.md 16.
    Example:
        >>> rules = LowRankRules(*(torch.zeros(k, 1) for k in (1, 2, 2)))   # one nonterminal, all weigh 1
        >>> root, words = torch.zeros(2), torch.zeros(4, 1)
        >>> trees = PCFG(rules, root, words)
        >>> trees.log_partition.exp()                                  # the third Catalan number
        tensor(5.)
        >>> trees.span_marginals[0]                                    # (0, 1) is in 2 of the 5
        tensor([1.0000, 0.4000, 0.4000, 1.0000])
    """

    def __init__(
        self,
        rules: Rules,
        log_root: Tensor,
        unaries: Tensor,
        *,
        lengths: Tensor | None = None,
        log_spans: Tensor | None = None,
    ) -> None:
        check_sizes(rules.low_rank, log_root, unaries)
        self.rules, self.log_root = rules, log_root
        batches = [rules.low_rank.batch_shape, log_root.shape[:-1], unaries.shape[:-2]]
        if log_spans is not None:
            check_spans(log_spans, unaries)
            batches.append(log_spans.shape[:-2])
        try:
            self.batch_shape = torch.broadcast_shapes(*batches)
        except RuntimeError:
            raise ValueError(
                f"rules, log_root, unaries, log_spans have batches {[list(b) for b in batches]};"
                " they must broadcast."
            ) from None
        self.num_words = unaries.shape[-2]
        self.lengths = checked_lengths(lengths, unaries.expand(*self.batch_shape, -1, -1))
        self.unaries, self.log_spans = unaries, log_spans

    # -- sums over parses ---------------------------------------------------------------------------
    @property
    def log_partition(self) -> Tensor:
        """Log of the sum of the weights of all parses, [*b]; -inf for a sentence that has none.

        Differentiable, also twice; computed anew each time it is asked for, as the marginals are.
        """
        return self._log_partition.to(self.unaries.dtype)

    @property
    def _log_partition(self) -> Tensor:
        return self._total(self._inside_of(self.rules, Sum(), self.unaries))

    @property
    def span_marginals(self) -> Tensor:
        """Probability that words i to j are a constituent, [*b, n, n]; 0 beyond lengths.

        Differentiable where the weights are.

        Cost:       as `log_partition` forward and backward.
        Raises:     ValueError for a sentence that has no parse.
        """
        return _spread([part.sum(-1) for part in self._posterior(self.rules, Sum())])

    @property
    def label_marginals(self) -> Tensor:
        """Probability that words i to j are a constituent with symbol A, [*b, n, n, S].

        Raises:     ValueError for a sentence that has no parse.
        """
        return self._labels(self._posterior(self.rules.low_rank, Sum()))

    def score(self, parses: Tensor) -> Tensor:
        """Log-weight of given parses [*s, *b, n, n] -> [*s, *b].

        Raises:     ValueError for a chart that is not a binary tree over the sentence.
        Cost:       O(n r) a parse, after O(n^2) for its branchings.
        """
        return self._score(parses).to(self.unaries.dtype)

    def _score(self, parses: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(parses.shape[:-2], self.batch_shape)
        size = self.num_words
        if parses.shape[-2:] != (size, size) or parses.is_floating_point():
            raise ValueError(
                f"parses has shape {list(parses.shape)} and dtype {parses.dtype}; expected integers"
                f" [*s, *b, {size}, {size}]."
            )
        flat = parses.expand(*lead, size, size).reshape(-1, size, size).long()
        lengths = self.lengths.expand(lead).reshape(-1)
        rules = self.rules.low_rank
        check_parses(flat, lengths, rules.num_nonterminals, rules.num_symbols)
        # which element of the batch every parse belongs to
        element = torch.arange(math.prod(self.batch_shape), device=flat.device)
        element = element.view(self.batch_shape).expand(lead).reshape(-1)
        total = log_weights(flat, element, self._tables(), self._flat(self.unaries, 2))
        if self.log_spans is not None:
            spans = self._flat(self.log_spans, 2)[element]
            total = total + torch.where(flat >= 0, spans, 0.0).double().sum((-2, -1))
        return total.view(lead)

    def log_prob(self, parses: Tensor) -> Tensor:
        """Log-probability of parses [*s, *b, n, n] given their sentences, [*s, *b]; at most 0.

        Raises:     ValueError for a chart that is not a binary tree, or a sentence without parses.
        """
        total = self._log_partition
        check_possible(total)
        return log_probability(self._score(parses), total).to(self.unaries.dtype)

    def entropy_sampled(self, num_samples: int, *, generator: torch.Generator) -> Estimate:
        """Entropy of the parses in nats, from samples, with its interval; a constant to autograd.

        Raises:     ValueError for a sentence that has no parse.
        """
        check_count("num_samples", num_samples)
        with torch.no_grad():
            return Estimate.over(-self.log_prob(self.sample((num_samples,), generator=generator)))

    # -- single parses ------------------------------------------------------------------------------
    def mbr_spans(self) -> Tensor:
        """The bracketing with the largest expected number of constituents, bool [*b, n, n].

        Cost:       span marginals, then O(n^3).
        Raises:     ValueError for a sentence that has no parse.
        Reference:  Goodman, Parsing Algorithms and Metrics, 1996.
        """
        with torch.no_grad():
            return self._heaviest(self.span_marginals)

    def mbr_labels(self) -> Tensor:
        """The parse with the largest expected number of labelled constituents, [*b, n, n].

        Every constituent has its most probable symbol; the branchings need not be rules of the grammar.

        Cost:       label marginals, O(n^2 S) memory, then O(n^3).
        Raises:     ValueError for a sentence that has no parse.
        """
        with torch.no_grad():
            best = self.label_marginals.max(-1)
            return torch.where(self._heaviest(best.values), best.indices, -1)

    def mode(self) -> Tensor:
        """The most probable parse, [*b, n, n], exactly.

        The maximum does not go through a sum over ranks: the rules are written out first.

        Cost:       O(n^3 N S + n^2 N S^2) time, O(n^3 N S) memory: for small grammars.
        Raises:     ValueError for a sentence that has no parse, or a table of more than 2^24 rules.
        """
        with torch.no_grad():
            rules = self.rules.low_rank
            entries = rules.num_nonterminals * rules.num_symbols**2 * math.prod(rules.batch_shape)
            if entries > MAX_ENTRIES:
                raise ValueError(
                    f"mode() writes out all {entries} rules and stops at {MAX_ENTRIES}. For larger"
                    " grammars take mbr_spans() or mbr_labels(), or the likeliest of many samples."
                )
            table = LowRankRules.from_dense(rules.dense())
            best = self._labels(self._posterior(table, Max())).max(-1)
            return torch.where(best.values > 0.5, best.indices, -1)

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Independent parses [*sample_shape, *b, n, n], exactly from the distribution.

        Cost:       one inside recursion with O(n^2 (r + S)) memory, then O(n (n + r + S)) a parse.
        Raises:     ValueError for a sentence that has no parse.
        """
        with torch.no_grad():
            chart = self._inside_of(self.rules.low_rank, Sum(), self.unaries)
            check_possible(self._total(chart))
            drawn = sampled(
                chart,
                self._tables(),
                self.lengths.reshape(-1),
                count=math.prod(sample_shape),
                generator=generator,
            )
        return drawn.view(*sample_shape, *self.batch_shape, self.num_words, self.num_words)

    # -- one recursion, by way of every query -------------------------------------------------------
    def _inside_of(self, rules: Rules, semiring: Semiring, unaries: Tensor) -> Chart:
        words = unaries.expand(*self.batch_shape, -1, -1)
        return inside(
            rules.passage(semiring), words, log_root=self.log_root, log_spans=self.log_spans
        )

    def _total(self, chart: Chart) -> Tensor:
        totals = torch.stack([t.expand(self.batch_shape) for t in chart.totals], dim=-1)
        return totals.gather(-1, self.lengths.unsqueeze(-1) - 1).squeeze(-1)

    def _posterior(self, rules: Rules, semiring: Semiring) -> list[Tensor]:
        """d log Z / d log-weight of the message of every span, by width: [*b, n - w + 1, n]."""
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "marginals of parses are derivatives of log Z, which torch.inference_mode() rules out; use"
                " torch.no_grad()."
            )
        graph = torch.is_grad_enabled() and self._requires_grad
        with torch.enable_grad():
            # a sum of zeros makes the recursion differentiable where no weight asks for it
            switch = torch.zeros_like(self.unaries).requires_grad_()
            chart = self._inside_of(rules, semiring, self.unaries + switch)
            total = self._total(chart)
            check_possible(total)
            parts = torch.autograd.grad(
                total.sum(), [m.log for m in chart.spans], create_graph=graph
            )
        return list(parts)

    def _labels(self, parts: list[Tensor]) -> Tensor:
        rules = self.rules.low_rank
        words = torch.nn.functional.pad(parts[0], (rules.num_nonterminals, 0))
        spans = [torch.nn.functional.pad(p, (0, rules.num_preterminals)) for p in parts[1:]]
        return _spread([words, *spans], trailing=1)

    def _heaviest(self, spans: Tensor) -> Tensor:
        """The bracketing whose spans weigh most together: the same recursion for one rule of weight 1."""
        like = spans.new_zeros
        trivial = LowRankRules(like(1, 1), like(2, 1), like(2, 1))
        trees = PCFG(
            trivial, like(2), like(self.num_words, 1), lengths=self.lengths, log_spans=spans
        )
        chosen = trees._posterior(trivial, Max())
        return _spread([part.sum(-1) for part in chosen]) > 0.5

    def _flat(self, x: Tensor, keep: int) -> Tensor:
        """x [*b, ...] with its batch expanded and made one dimension, the last `keep` kept."""
        own = x.shape[x.ndim - keep :]
        return x.expand(*self.batch_shape, *own).reshape(-1, *own)

    def _tables(self) -> list[Tensor]:
        """log H, log L, log R and log root, over the flattened batch."""
        rules = self.rules.low_rank
        tables = [self._flat(x, 2) for x in (rules.log_head, rules.log_left, rules.log_right)]
        return [*tables, self._flat(self.log_root, 1)]

    @property
    def _requires_grad(self) -> bool:
        rules = self.rules.low_rank
        tensors = [rules.log_head, rules.log_left, rules.log_right, self.log_root, self.unaries]
        spans = self.log_spans is not None and self.log_spans.requires_grad
        return spans or any(t.requires_grad for t in tensors)

    def __repr__(self) -> str:
        return f"PCFG({self.rules!r}, batch_shape={list(self.batch_shape)}, num_words={self.num_words})"


def _spread(parts: list[Tensor], trailing: int = 0) -> Tensor:
    """Values by width, [*b, n - w + 1, ...], at their places (first, last) of a chart [*b, n, n, ...]."""
    size, dim = len(parts), -1 - trailing
    first = torch.arange(size, device=parts[0].device)
    width = first - first.unsqueeze(-1)  # last - first
    offset = width * size - width * (width - 1) // 2
    there = width >= 0
    place = torch.where(there, offset + first.unsqueeze(-1), 0)
    whole = torch.cat(parts, dim=dim)
    chart = whole.index_select(whole.ndim + dim, place.flatten())
    chart = chart.unflatten(whole.ndim + dim, (size, size))
    return torch.where(there.view(size, size, *[1] * trailing), chart, 0.0)
