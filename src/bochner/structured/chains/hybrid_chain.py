"""Chains that are exact between the strongest states of neighbouring steps, and of low rank elsewhere."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from bochner.structured.chains.chain import Chain
from bochner.structured.edges.beams import strongest_states
from bochner.structured.edges.embedded import (
    DEFAULT_MAP,
    Budget,
    MapChoice,
    check_embeddings,
    embed,
)
from bochner.structured.edges.hybrid import Hybrid
from bochner.structured.edges.log_bilinear import LogBilinear
from bochner.structured.edges.low_rank import LowRank
from bochner.structured.edges.source import EmbeddingSource


class HybridChain(Chain):
    """A chain over given embeddings: exact on beam_t x beam_{t+1}, features elsewhere.

    What every query sees is one model: K of the embeddings between the beams, positive features for
    all other pairs. Unbiased edge by edge, never negative, exact where the beams hold all states.

    Shapes:     see `Hybrid` (transitions) and `Chain`.
    Error:      that of the features, on the mass outside the beams alone: with peaked unaries a small
                fraction of both the features' and the beams' own error, with diffuse ones that of the
                features. `diagnose` measures it.
    Example:
        >>> import torch
        >>> from bochner.structured import ExactChain, HybridChain, LowRankChain
        >>> g = torch.Generator().manual_seed(0)
        >>> a, b = 0.4 * torch.randn(2, 500, 8, generator=g)
        >>> u = 4 * torch.randn(20, 500, generator=g)
        >>> exact = ExactChain.from_embeddings(a, b, u).log_partition
        >>> errors = {
        ...     kind.__name__: sum(
        ...         float(
        ...             kind.from_embeddings(a, b, u, num_features=64, generator=g).log_partition
        ...             - exact
        ...         )
        ...         ** 2
        ...         for _ in range(8)
        ...     )
        ...     for kind in (LowRankChain, HybridChain)
        ... }
        >>> errors["HybridChain"] < 0.01 * errors["LowRankChain"]
        True
    """

    source: EmbeddingSource | None = None

    def __init__(
        self, transitions: Hybrid, unaries: Tensor, *, lengths: Tensor | None = None
    ) -> None:
        steps = transitions.beams.shape[-2]
        if unaries.shape[-2] != steps:
            raise ValueError(
                f"transitions have beams for {steps} steps, unaries have T={unaries.shape[-2]}; give one"
                " beam a step."
            )
        super().__init__(transitions, unaries, lengths=lengths)

    @classmethod
    def from_embeddings(
        cls,
        a: Tensor,
        b: Tensor,
        unaries: Tensor,
        *,
        num_features: int | None = None,
        beam: int = 64,
        feature_map: MapChoice = DEFAULT_MAP,
        blocks: int = 1,
        lengths: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """log K(x, y) = a_x . b_y between beams of the strongest states, estimated elsewhere.

        Shapes:     a, b [*b, X, n]; unaries [*b, T, X]; lengths [*b]. Embeddings without a batch are
                    shared: one set of features for all sequences, beams for each.
        Arguments:  num_features, feature_map, blocks, generator: see `Budget`; positive maps only;
                    beam: states of every step that are exact (all of them if there are no more), chosen
                    by `strongest_states`, which does not know the features' draw.
        Cost:       beside the features (`embed`), O(T X n) time to choose the beams.
        Raises:     ValueError for signed maps, naming the positive ones, and for maps that do not
                    estimate exp(a.b).
        """
        check_embeddings(a, b, unaries)
        budget = Budget(feature_map, num_features, blocks, generator)
        embedded = embed(a, b, budget, edges=unaries.shape[-2] - 1, positive=cls.__name__)
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], unaries.shape[:-2])
        wide = unaries.expand(*batch, *unaries.shape[-2:])
        if lengths is None:
            lengths = torch.full(batch, unaries.shape[-2], device=unaries.device)
        beams = strongest_states(a, b, wide, lengths, beam=beam)
        transitions = Hybrid(LogBilinear(a, b), LowRank(*embedded.logs()), beams)
        chain = cls(transitions, unaries, lengths=lengths)
        chain.source = embedded.source(a, b, unaries, beams)
        return chain
