"""Chains of signed features (trigonometric, angular, ...): log |Z| and its sign, and nothing else.

    v_1 = w_1,    v_{t+1} = w_{t+1} * (R (L^T v_t)),    Z^ = sum_x v_T(x)

the recursion of every chain without its logarithms: a negative entry is no probability, has no logarithm
and cannot be drawn from. Marginals would leave [0, 1], entropies the real numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, Self

import torch
from torch import Tensor

from bochner.features import Features, SignedLog
from bochner.structured.chains.chain import Chain
from bochner.structured.edges.embedded import Budget, MapChoice, check_embeddings, embed
from bochner.structured.edges.positivity import needs_positivity
from bochner.structured.edges.source import EmbeddingSource
from bochner.structured.edges.transitions import Transitions
from bochner.structured.matrix import finite_maximum
from bochner.structured.semirings import Message, Semiring, safe_log


class SignedFeatures(Transitions):
    """K_e(x, y) = left_e(x) . right_e(y) of any sign. Whatever needs K >= 0 raises ValueError.

    Arguments:  left, right: one Features [*b, X, m] for every block; edge e uses block e mod B.
    """

    def __init__(self, left: Sequence[Features], right: Sequence[Features]) -> None:
        shapes = {tuple(f.values.shape) for f in (*left, *right)}
        if len(left) != len(right) or len(shapes) != 1:
            raise ValueError(
                f"left has {len(left)} blocks, right {len(right)}, with shapes {sorted(shapes)}; expected"
                " as many of each, all of one shape [*batch, X, m]."
            )
        self.left, self.right = tuple(left), tuple(right)
        *batch, self.num_states, self.rank = shapes.pop()
        self.num_blocks, self.batch_shape = len(left), tuple(batch)

    def _refuse(self) -> NoReturn:
        raise needs_positivity("this query of a SignedChain")

    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """Raises ValueError, as all that follow."""
        self._refuse()

    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """Raises ValueError."""
        self._refuse()

    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """Raises ValueError."""
        self._refuse()

    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """Raises ValueError."""
        self._refuse()

    def log_block(self, edge: int, rows: slice) -> Tensor:
        """Raises ValueError."""
        self._refuse()

    def tensors(self) -> tuple[Tensor, ...]:
        """The values of all features."""
        return tuple(f.values for f in (*self.left, *self.right))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Raises ValueError."""
        self._refuse()

    def flattened(self, batch: torch.Size) -> Self:
        """Raises ValueError."""
        self._refuse()


class SignedChain(Chain):
    """A chain whose estimated weights can be negative: `log_partition` is what it has, and `diagnose`.

    Shapes:     transitions (`SignedFeatures`), unaries, lengths as in `Chain`.
    Numerics:   float64 throughout, whatever comes in: the sign is what cancellation leaves over, and
                `cancellation` says how many digits that cost.
    Cost:       O(T X m) time, O(X m) memory in float64.
    Raises:     every other query raises ValueError, naming the maps of the catalogue that work.
    Example:
        >>> import torch
        >>> from bochner.structured import ExactChain, SignedChain
        >>> g = torch.Generator().manual_seed(0)
        >>> a = 0.8 * torch.randn(300, 8, generator=g)
        >>> u = torch.zeros(10, 300)
        >>> signed = SignedChain.from_embeddings(a, a, u, num_features=1024, generator=g)
        >>> value, exact = signed.log_partition, ExactChain.from_embeddings(a, a, u).log_partition
        >>> float(value.sign), round(float(value.log_abs - exact), 1)
        (1.0, 0.0)
    """

    transitions: SignedFeatures
    source: EmbeddingSource | None = None

    @classmethod
    def from_embeddings(
        cls,
        a: Tensor,
        b: Tensor,
        unaries: Tensor,
        *,
        num_features: int | None = None,
        feature_map: MapChoice = "trigonometric",
        blocks: int = 1,
        lengths: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Features of log K(x, y) = a_x . b_y, positive or not; arguments as in `LowRankChain`.

        Error:      trigonometric features: chi of the differences a_x - b_y. Signs get lost where
                    |a_x - b_y|^2 exceeds about log(2 num_features).
        """
        check_embeddings(a, b, unaries)
        budget = Budget(feature_map, num_features, blocks, generator)
        embedded = embed(a, b, budget, edges=unaries.shape[-2] - 1, positive=None)
        transitions = SignedFeatures(embedded.left, embedded.right)
        chain = cls(transitions, unaries, lengths=lengths)
        chain.source = embedded.source(a, b, unaries)
        return chain

    @property
    def log_partition(self) -> SignedLog:  # type: ignore[override]
        """log |Z^| and the sign of Z^, [*b]; differentiable."""
        value = self._total(_as_they_are)
        return SignedLog(*(part.to(self.unaries.dtype) for part in value))

    @property
    def cancellation(self) -> Tensor:
        """log of (the sum with every product taken positive) / |Z^|, [*b], in nats, >= 0.

        The relative rounding error of Z^ is about 2e-16 exp(cancellation); beyond 36 its sign is noise.
        """
        apart = self._total(torch.abs).log_abs - self._total(_as_they_are).log_abs
        return apart.to(self.unaries.dtype)

    def _total(self, side: Callable[[Tensor], Tensor]) -> SignedLog:
        """The recursion, over the values of the features as `side` sees them."""
        unaries = self.unaries.double()
        values, scale = _weighted(torch.ones_like(unaries[..., 0, :]), unaries[..., 0, :])
        blocks = [
            (_Part.of(left, side), _Part.of(right, side))
            for left, right in zip(self.transitions.left, self.transitions.right, strict=True)
        ]
        for step in range(1, self.num_steps):
            left, right = blocks[(step - 1) % len(blocks)]
            moved, gained = _weighted(values, left.log_scale)
            hidden = (moved.unsqueeze(-2) @ left.values) @ right.values.transpose(-1, -2)
            moved, more = _weighted(hidden.squeeze(-2), right.log_scale + unaries[..., step, :])
            there = self.lengths > step
            values = torch.where(there.unsqueeze(-1), moved, values)
            scale = torch.where(there, scale + gained + more, scale)
        total = values.sum(-1)
        return SignedLog(safe_log(total.abs()) + scale, torch.sign(total))


def _as_they_are(values: Tensor) -> Tensor:
    return values


class _Part(NamedTuple):
    """One side of a block in float64: values [*b, X, m], log_scale [*b, X]."""

    values: Tensor
    log_scale: Tensor

    @classmethod
    def of(cls, features: Features, side: Callable[[Tensor], Tensor]) -> _Part:
        """The features, their values as `side` sees them."""
        return cls(side(features.values.double()), features.log_scale.squeeze(-1).double())


def _weighted(values: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """values exp(log_weights) as numbers of at most 1 and the log [*b] of what was taken out."""
    log = safe_log(values.abs()) + log_weights
    top = finite_maximum(log, -1)
    return torch.sign(values) * torch.exp(log - top), top.squeeze(-1)
