"""Transitions exp(a_x . b_y) with learned embeddings: exact, estimated by features, or both.

    EmbeddingTransitions        exact, O(X^2) time a step
    RandomFeatureTransitions    positive random features for all pairs: O(X m)
    HybridTransitions           exact between the likeliest states of neighbouring steps, features elsewhere

The likelihood that trains is that of the chain with the features in it: what is learned fits the draw.
Features that are themselves learned (`LowRankTransitions`) have no draw and no error to speak of.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bochner.request import fresh_generator
from bochner.structured.chains.chain import Chain
from bochner.structured.chains.exact import ExactChain
from bochner.structured.chains.hybrid_chain import HybridChain
from bochner.structured.chains.low_rank_chain import LowRankChain
from bochner.structured.models.learned import LearnedTransitions, normal
from bochner.validation import check_count

INITIAL_LOGIT = 0.1
"""Standard deviation of a_x . b_y at first: nearly uniform, and no symmetry to be stuck in."""


class EmbeddingTransitions(LearnedTransitions):
    """K(x, y) = exp(a_x . b_y), exactly, with learned a, b [X, dim].

    Arguments:  dim: of the embeddings; generator: of their initial values.
    Cost:       O(X dim) parameters, O(X^2) time a step; X^2 of memory where that is small (`ExactChain`).
    Example:
        >>> k = EmbeddingTransitions(6, 3, generator=torch.Generator().manual_seed(0))
        >>> k.chain(torch.zeros(4, 6)).transitions.log_block(0, slice(2)).shape
        torch.Size([2, 6])
    """

    def __init__(
        self, num_states: int, dim: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(num_states)
        self.dim = check_count("dim", dim)
        generator = fresh_generator() if generator is None else generator
        scale = math.sqrt(INITIAL_LOGIT) * dim**-0.25  # (scale^2 sqrt(dim) is the std of a.b)
        self.before = nn.Parameter(normal(num_states, dim, generator=generator).detach() * scale)
        self.after = nn.Parameter(normal(num_states, dim, generator=generator).detach() * scale)

    def chain(
        self, unaries: Float[Tensor, "*b t x"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """An ExactChain."""
        return ExactChain.from_embeddings(*self._embeddings(unaries), unaries, lengths=lengths)

    def _embeddings(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.before.to(like.dtype), self.after.to(like.dtype)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, dim={self.dim}"


class RandomFeatureTransitions(EmbeddingTransitions):
    """K(x, y) ~ exp(a_x . b_y) by positive random features of learned embeddings.

    The directions are drawn anew for every chain from one seed, a buffer: they are the same until
    `resample_`. They are placed in centred, balanced coordinates of the embeddings of the moment.

    Arguments:  dim, generator: as `EmbeddingTransitions` (the seed comes from the generator as well);
                num_features: m of an edge; blocks: draws that the edges use in turn.
    Error:      see `LowRankChain.from_embeddings`: of use while |a + b|^2 is small, not for peaked K.
    Example:
        >>> k = RandomFeatureTransitions(6, 3, num_features=512, generator=torch.Generator().manual_seed(0))
        >>> exact = (k.before @ k.after.T).exp()
        >>> found = k.chain(torch.zeros(4, 6)).transitions.log_block(0, slice(6)).exp()
        >>> ((found - exact).abs() / exact).max().item() < 0.1
        True
    """

    seed: Tensor

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        num_features: int,
        blocks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        generator = fresh_generator() if generator is None else generator
        super().__init__(num_states, dim, generator=generator)
        self.num_features = check_count("num_features", num_features)
        self.blocks = check_count("blocks", blocks)
        self.register_buffer("seed", _fresh_seed(generator))

    def resample_(self, generator: torch.Generator) -> RandomFeatureTransitions:
        """Redraw the directions in place and return self; the embeddings stay."""
        self.seed.copy_(_fresh_seed(generator))
        return self

    def chain(
        self, unaries: Float[Tensor, "*b t x"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """A LowRankChain."""
        return LowRankChain.from_embeddings(
            *self._embeddings(unaries),
            unaries,
            num_features=self.num_features,
            blocks=self.blocks,
            lengths=lengths,
            generator=self._generator(),
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.seed))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, num_features={self.num_features}, blocks={self.blocks}"


class HybridTransitions(RandomFeatureTransitions):
    """K(x, y) = exp(a_x . b_y) between beams of likely states, by positive features elsewhere.

    Arguments:  as `RandomFeatureTransitions`; beam: states of every step that are exact, chosen by the
                unaries and the embeddings. With beam >= num_states all are: nothing is estimated.
    Example:
        >>> k = HybridTransitions(
        ...     6, 3, num_features=8, beam=6, generator=torch.Generator().manual_seed(0)
        ... )
        >>> exact = k.before @ k.after.T
        >>> bool(torch.allclose(k.chain(torch.zeros(4, 6)).transitions.log_block(0, slice(6)), exact))
        True
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        num_features: int,
        beam: int = 64,
        blocks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            num_states, dim, num_features=num_features, blocks=blocks, generator=generator
        )
        self.beam = check_count("beam", beam)

    def chain(
        self, unaries: Float[Tensor, "*b t x"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """A HybridChain."""
        return HybridChain.from_embeddings(
            *self._embeddings(unaries),
            unaries,
            num_features=self.num_features,
            beam=self.beam,
            blocks=self.blocks,
            lengths=lengths,
            generator=self._generator(),
        )

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, beam={self.beam}"


def _fresh_seed(generator: torch.Generator) -> Tensor:
    return torch.randint(2**62, (), generator=generator, device=generator.device)
