"""Transitions with parameters: what an `HMM` or a `CRF` is made of and trains.

    SoftmaxTransitions      K(x, y) = softmax_y(a_x . b_y)                            X^2, for HMMs
    FeatureTransitions      K(x, y) = sum_j p(j | x) p(y | j), from learned features  X m, for HMMs
    LowRankTransitions      K(x, y) = sum_j exp(l_xj + r_yj), from learned features   X m, for CRFs

The features are exp(embedding . learned projection): they are the model, and inference is exact in it.

Reference:  Chiu, Deng and Rush, Low-Rank Constraints for Fast Inference in Structured Models, 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bochner.feature_map import compute_dtype
from bochner.request import fresh_generator
from bochner.structured.chains.chain import Chain
from bochner.structured.edges.low_rank import LowRank
from bochner.structured.edges.transitions import Dense
from bochner.structured.semirings import log_sum
from bochner.validation import check_count


class LearnedTransitions(nn.Module, ABC):
    """Parameters from which chains over `num_states` states are made.

    Subclasses: give `chain`, and set `stochastic` where sum_y K(x, y) = 1 for every x.
    """

    stochastic = False

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.num_states = check_count("num_states", num_states)

    @abstractmethod
    def chain(
        self, unaries: Float[Tensor, "*b t x"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """The chain with these transitions and the given unaries; differentiable in both."""

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_states={self.num_states}"


class SoftmaxTransitions(LearnedTransitions):
    """K(x, y) = softmax_y(a_x . b_y), row by row: exact, for as many states as fit squared.

    Arguments:  dim: of the embeddings a and b; generator: of their initial values.
    Cost:       O(X^2) memory, O(X^2) time for a step.
    Example:
        >>> k = SoftmaxTransitions(5, 3, generator=torch.Generator().manual_seed(0))
        >>> round(k.chain(torch.zeros(4, 5)).log_partition.exp().item(), 4)    # five starts, rows sum to 1
        5.0
    """

    stochastic = True

    def __init__(
        self, num_states: int, dim: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(num_states)
        generator = fresh_generator() if generator is None else generator
        self.before = normal(num_states, check_count("dim", dim), generator=generator)
        self.after = normal(num_states, dim, generator=generator)

    def chain(
        self, unaries: Float[Tensor, "*b t x"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """A chain over a dense table."""
        logits = self.before @ self.after.T / self.before.shape[-1] ** 0.5
        table = torch.log_softmax(logits, dim=-1).to(compute_dtype(unaries))
        return Chain(Dense(table.unsqueeze(0)), unaries, lengths=lengths)


class LowRankTransitions(LearnedTransitions):
    """K(x, y) = sum_j exp(l_xj + r_yj) of any size: positive, of rank m, for CRFs.

        l = a W / sqrt(dim),    r = b V / sqrt(dim),    a, b [X, dim], W, V [dim, m]

    Arguments:  rank: m; dim: of the embeddings; None (default) makes l and r themselves the parameters;
                generator: of the initial values.
    Cost:       O(X (dim + m)) memory, O(X m) time for a step.
    Example:
        >>> k = LowRankTransitions(10_000, 16, generator=torch.Generator().manual_seed(0))
        >>> k.chain(torch.zeros(3, 10_000)).log_partition.shape, sum(p.numel() for p in k.parameters())
        (torch.Size([]), 320000)
    """

    project_before: nn.Parameter | None
    project_after: nn.Parameter | None

    def __init__(
        self,
        num_states: int,
        rank: int,
        *,
        dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_states)
        self.rank, self.dim = check_count("rank", rank), dim
        generator = fresh_generator() if generator is None else generator
        width = rank if dim is None else check_count("dim", dim)
        self.before = normal(num_states, width, generator=generator)
        self.after = normal(num_states, width, generator=generator)
        for side in ("before", "after"):
            projection = None if dim is None else normal(dim, rank, generator=generator)
            self.register_parameter(f"project_{side}", projection)

    def log_features(self) -> tuple[Float[Tensor, "x m"], Float[Tensor, "x m"]]:
        """l and r."""
        return (
            _projected(self.before, self.project_before),
            _projected(self.after, self.project_after),
        )

    def chain(
        self, unaries: Float[Tensor, "*b t x"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """A chain that never holds X^2 of anything."""
        dtype = compute_dtype(unaries)
        left, right = (logs.to(dtype).unsqueeze(0) for logs in self.log_features())
        return Chain(LowRank(left, right), unaries, lengths=lengths)

    def extra_repr(self) -> str:
        """Sizes."""
        dim = "" if self.dim is None else f", dim={self.dim}"
        return f"{super().extra_repr()}, rank={self.rank}{dim}"


class FeatureTransitions(LowRankTransitions):
    """K(x, y) = sum_j p(j | x) p(y | j): rows that sum to one, of rank m, for HMMs.

        K(x, y) = sum_j exp(l_xj + r_yj) / den_x,    den_x = sum_j exp(l_xj) (sum_y exp(r_yj))

    The normaliser needs sums over y of features, not of K: O(X m), as the rest.

    Arguments:  as `LowRankTransitions`.
    Example:
        >>> k = FeatureTransitions(1000, 8, generator=torch.Generator().manual_seed(0))
        >>> round(k.chain(torch.zeros(4, 1000)).log_partition.exp().item(), 1)        # rows sum to 1
        1000.0
    """

    stochastic = True

    def log_features(self) -> tuple[Float[Tensor, "x m"], Float[Tensor, "x m"]]:
        """log p(j | x) and log p(y | j)."""
        left, right = super().log_features()
        totals = log_sum(right, 0)
        joint = left + totals
        return joint - log_sum(joint, -1).unsqueeze(-1), right - totals


def normal(*shape: int, generator: torch.Generator) -> nn.Parameter:
    """A parameter of independent standard normal entries."""
    return nn.Parameter(torch.randn(*shape, generator=generator, device=generator.device))


def _projected(embeddings: Tensor, projection: Tensor | None) -> Tensor:
    if projection is None:
        return embeddings
    return embeddings @ projection / projection.shape[0] ** 0.5
