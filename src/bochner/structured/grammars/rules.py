"""Rules of a grammar in Chomsky normal form, as sums of products.

    weight(A -> B C) = sum_r H[A, r] L[B, r] R[C, r]

A is one of N nonterminals, B and C are any of S = N + P symbols: nonterminals first, then the P
preterminals, each of which stands for one word.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bochner.projections import Projection
from bochner.structured.grammars.factors import Factor
from bochner.structured.grammars.grammar_arguments import check_log_weights
from bochner.structured.grammars.passages import Passage, RankPassage, SymbolPassage
from bochner.structured.semirings import Semiring, log_sum


class Rules(ABC):
    """Rules as an inside recursion takes them, by symbols or by ranks."""

    low_rank: LowRankRules
    """The same rules by their symbols."""

    @abstractmethod
    def passage(self, semiring: Semiring) -> Passage:
        """What spans pass through, for one evaluation."""


class LowRankRules(Rules):
    """Rules of rank r from the logarithms of H, L and R; any non-negative weights.

    Shapes:     log_head [*b, N, r], log_left and log_right [*b, S, r] with S > N; -inf for a zero.
    Cost:       O(r (N + 2 S)) memory, against N S^2 of the table.
    Raises:     ValueError, naming the argument, for shapes or dtypes that do not fit, NaN and +inf.
    Example:
        >>> log = torch.zeros
        >>> rules = LowRankRules(log(1, 2), log(3, 2), log(3, 2))   # S -> any two of three, weight 2
        >>> rules.dense().exp().sum()
        tensor(18.)
    """

    def __init__(self, log_head: Tensor, log_left: Tensor, log_right: Tensor) -> None:
        self.factor = Factor([log_head, log_left, log_right])
        self.log_head, self.log_left, self.log_right = log_head, log_left, log_right
        self.low_rank = self
        heads, left, right = self.factor.sizes
        if left != right or left <= heads:
            raise ValueError(
                f"log_head, log_left, log_right have {heads}, {left}, {right} rows; expected N, S and S"
                " rows: the N nonterminals can be heads, children are any of S = N + P > N symbols."
            )
        for name, log in (("log_head", log_head), ("log_left", log_left), ("log_right", log_right)):
            check_log_weights(name, log)

    @classmethod
    def normalised(cls, head: Tensor, left: Tensor, right: Tensor) -> LowRankRules:
        """Rules that are probabilities, p(A -> B C | A) = sum_r p(r | A) p(B | r) p(C | r), from logits.

        Shapes:     head [*b, N, r], left and right [*b, S, r].
        Reference:  Cohen, Satta and Collins, 2013; Yang, Zhao and Tu, 2021 (softmax factors).
        Example:
            >>> x = torch.linspace(-1, 1, 6).reshape(3, 2)
            >>> LowRankRules.normalised(x[:2], x, -x).dense().exp().sum((-2, -1)).round(decimals=5)
            tensor([1., 1.])
        """
        log_head = torch.log_softmax(head, dim=-1)
        return cls(log_head, torch.log_softmax(left, dim=-2), torch.log_softmax(right, dim=-2))

    @classmethod
    def from_dense(cls, log_rules: Tensor) -> LowRankRules:
        """Any table of log-weights [*b, N, S, S], exactly, with a rank for every pair (A, B).

        Cost:       rank N S; memory and time of what follows grow by that. For small grammars.
        Example:
            >>> table = torch.arange(9.0).reshape(1, 3, 3)
            >>> torch.equal(LowRankRules.from_dense(table).dense(), table)
            True
        """
        if log_rules.ndim < 3 or log_rules.shape[-1] != log_rules.shape[-2]:
            raise ValueError(
                f"log_rules has shape {list(log_rules.shape)}; expected [*b, N, S, S]."
            )
        heads, symbols = log_rules.shape[-3:-1]
        head = torch.eye(heads).to(log_rules).log().repeat_interleave(symbols, dim=-1)
        left = torch.eye(symbols).to(log_rules).log().repeat(1, heads)
        return cls(head, left, log_rules.flatten(-3, -2).transpose(-1, -2))

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Sequence[Tensor],
        *,
        num_features: int,
        generator: torch.Generator,
        projection: Projection | None = None,
    ) -> LowRankRules:
        """Positive random features of weight(A -> B C) = exp(a_A.b_B + a_A.c_C + b_B.c_C).

        Shapes:     embeddings: a [*b, N, d], b and c [*b, S, d]; the rank is num_features.
        Error:      as `Factor.from_embeddings`: unbiased, (exp(|a_A + b_B + c_C|^2) - 1) / num_features
                    for centred embeddings. Useless where rules are sharp: train the factors instead.
        Example:
            >>> g = torch.Generator().manual_seed(0)
            >>> a, b, c = (0.5 * torch.randn(n, 4, generator=g) for n in (2, 5, 5))
            >>> rules = LowRankRules.from_embeddings([a, b, c], num_features=512, generator=g)
            >>> rules.row_normalised().dense().exp().sum((-2, -1)).round(decimals=5)
            tensor([1., 1.])
        """
        if len(embeddings) != 3:
            raise ValueError(
                f"embeddings holds {len(embeddings)} tensors; a rule joins three: head, left, right."
            )
        factor = Factor.from_embeddings(
            embeddings, num_features=num_features, generator=generator, projection=projection
        )
        return cls(*factor.log_factors)

    def row_normalised(self) -> LowRankRules:
        """The rules divided by their sum for every A, taken in the features: probabilities.

        Cost:       O(r (N + 2 S)).
        Raises:     ValueError if a nonterminal has no rule of positive weight.
        """
        weights = log_sum(self.log_left, -2) + log_sum(self.log_right, -2)
        sums = log_sum(self.log_head + weights.unsqueeze(-2), -1)
        if bool((sums == -math.inf).any()):
            raise ValueError(
                f"{int((sums == -math.inf).sum())} nonterminals have no rule of positive weight and"
                " cannot be normalised; give each a rank whose left and right columns are not all -inf."
            )
        return LowRankRules(self.log_head - sums.unsqueeze(-1), self.log_left, self.log_right)

    def in_rank_space(self) -> RankSpaceRules:
        """The same rules without symbols between spans: faster where r is below 3/2 N."""
        return RankSpaceRules(self)

    @property
    def num_nonterminals(self) -> int:
        """N."""
        return self.log_head.shape[-2]

    @property
    def num_symbols(self) -> int:
        """S = N + P."""
        return self.log_left.shape[-2]

    @property
    def num_preterminals(self) -> int:
        """P."""
        return self.num_symbols - self.num_nonterminals

    @property
    def rank(self) -> int:
        """r."""
        return self.factor.rank

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dimensions: several grammars."""
        return self.factor.batch_shape

    def dense(self) -> Tensor:
        """The table of log-weights [*b, N, S, S]."""
        return self.factor.dense()

    def log_rule(self, heads: Tensor, lefts: Tensor, rights: Tensor) -> Tensor:
        """log weight(A -> B C) of given symbols, each [*s, *b] -> [*s, *b]."""
        return self.factor.log_value(torch.stack([heads, lefts, rights], dim=-1))

    def passage(self, semiring: Semiring) -> Passage:
        """Through the symbols."""
        return SymbolPassage(semiring, self)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_nonterminals={self.num_nonterminals},"
            f" num_preterminals={self.num_preterminals}, rank={self.rank})"
        )


class RankSpaceRules(Rules):
    """Low-rank rules with the symbols between two spans summed out once: H^T L and H^T R, [r, r].

    Cost:       O(N r^2) once, then O(r^2) a span, twice, instead of O(N r) three times.
    Reference:  Yang, Liu and Tu, Dynamic Programming in Rank Space, 2022.
    """

    def __init__(self, rules: LowRankRules) -> None:
        self.low_rank = rules

    def passage(self, semiring: Semiring) -> Passage:
        """Through ranks alone."""
        return RankPassage(semiring, self.low_rank)

    def __repr__(self) -> str:
        return f"RankSpaceRules({self.low_rank!r})"
