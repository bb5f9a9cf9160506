"""Chains whose transitions are of low rank by construction."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from bochner.structured.chains.chain import Chain
from bochner.structured.edges.embedded import (
    DEFAULT_MAP,
    Budget,
    MapChoice,
    check_embeddings,
    embed,
)
from bochner.structured.edges.low_rank import LowRank
from bochner.structured.edges.source import EmbeddingSource


class LowRankChain(Chain):
    """A chain with K(x, y) = sum_j exp(log_left(x, j) + log_right(y, j)): the features are the model.

    Shapes:     log_left, log_right [*b, X, m]; unaries [*b, T, X]; lengths [*b] (see `Chain`).
                For edges that differ, pass `LowRank` transitions with several blocks to `Chain`.
    Error:      none: inference is exact in this model. Where the features approximate another kernel,
                `from_embeddings` says how well.
    Cost:       log Z and all marginals in O(T X m) time and O((T + m) X) memory, never O(X^2).
    Example:
        >>> import torch
        >>> from bochner.structured import LowRankChain
        >>> g = torch.Generator().manual_seed(0)
        >>> left, right = torch.randn(2, 1000, 16, generator=g)
        >>> chain = LowRankChain(left, right, torch.zeros(50, 1000))
        >>> chain.marginals.shape, round(float(chain.marginals[3].sum()), 4)
        (torch.Size([50, 1000]), 1.0)
    """

    source: EmbeddingSource | None = None
    """What is approximated; None where the features are the model."""

    def __init__(
        self, log_left: Tensor, log_right: Tensor, unaries: Tensor, *, lengths: Tensor | None = None
    ) -> None:
        for name, log in (("log_left", log_left), ("log_right", log_right)):
            if not isinstance(log, Tensor) or not log.is_floating_point() or log.ndim < 2:
                got = (
                    f"{log.dtype} {list(log.shape)}"
                    if isinstance(log, Tensor)
                    else type(log).__name__
                )
                raise TypeError(
                    f"{name} is {got}; expected a floating-point tensor [*batch, X, m]."
                )
        super().__init__(
            LowRank(log_left.unsqueeze(-3), log_right.unsqueeze(-3)), unaries, lengths=lengths
        )

    @classmethod
    def from_embeddings(
        cls,
        a: Tensor,
        b: Tensor,
        unaries: Tensor,
        *,
        num_features: int | None = None,
        feature_map: MapChoice = DEFAULT_MAP,
        blocks: int = 1,
        lengths: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Random features for log K(x, y) = a_x . b_y.

            exp(a_x . b_y) ~ sum_j left_e(x, j) right_e(y, j),    edge e uses draw e mod B

        Shapes:     a, b [*b, X, n]; unaries [*b, T, X]; lengths [*b].
        Arguments:  num_features: m, the columns of one edge: what an edge costs;
                    feature_map: a name of the catalogue, a FeatureMap, or one for every block. A name is
                    made (and fitted, if it needs data) in centred and balanced coordinates, which is
                    exact; a map is used on a and b as they are (see `Budget`);
                    blocks: B independent draws of m columns each, m_total = B m, cycled over the edges;
                    generator: of the draws; None takes a fresh one seeded by the system.
        Error:      std(log Z^) ~ (T-1) sqrt((chi-1) / m_total), however the draws are shared;
                    the bias grows with B to -(T-1)(chi-1) / 2m, B = T-1, where Z^ itself is unbiased.
                    Peaked potentials are beyond any of these maps: `diagnose` measures chi and says so.
        Cost:       time O(T X m + B X m n), memory O(B X m).
        Raises:     ValueError for signed maps, naming the positive ones, and for maps that do not
                    estimate exp(a.b).
        Reference:  docs/theory.md 14.
        Example:
            >>> import torch
            >>> from bochner.structured import ExactChain, LowRankChain
            >>> g = torch.Generator().manual_seed(0)
            >>> a, b = 0.3 * torch.randn(2, 500, 8, generator=g)
            >>> exact = ExactChain.from_embeddings(a, b, torch.zeros(20, 500)).log_partition
            >>> errors = [
            ...     LowRankChain.from_embeddings(
            ...         a, b, torch.zeros(20, 500), num_features=256, blocks=blocks, generator=g
            ...     ).log_partition - exact
            ...     for blocks in (1, 8)
            ... ]
            >>> [round(float(e) / 20, 3) for e in errors]                       # nats a step
            [-0.01, -0.005]
        """
        check_embeddings(a, b, unaries)
        budget = Budget(feature_map, num_features, blocks, generator)
        embedded = embed(a, b, budget, edges=unaries.shape[-2] - 1, positive=cls.__name__)
        chain = cls.__new__(cls)
        Chain.__init__(chain, LowRank(*embedded.logs()), unaries, lengths=lengths)
        chain.source = embedded.source(a, b, unaries)
        return chain
