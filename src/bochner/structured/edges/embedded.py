"""Features of given embeddings: exp(a_x . b_y) ~ left_e(x) . right_e(y), B independent draws in turn.

    a_x.b_y = a'_x . b'_y + l_x + r_y,     a' = A (a - mean a),  b' = A^-T (b - mean b)         exactly
    K^_e(x, y) = e^{l_x} phi_e(a'_x) . phi_e(b'_y) e^{r_y},        e -> block e mod B

Centring and balancing shrink what the features have to estimate (|a' + b'|) and cost no accuracy: l and r
are factors of a state, put back as scales of the features' rows.

Reference:  docs/theory.md 4, 5 (the exact transforms), 14 (the block law).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.catalog import make, spec
from bochner.feature_map import FeatureMap
from bochner.features import Features
from bochner.fitting import UnfittedMap
from bochner.kernels import Softmax
from bochner.request import fresh_generator
from bochner.statistics import Moments
from bochner.structured.edges.positivity import needs_positivity, other_kernel
from bochner.structured.edges.source import EmbeddingSource
from bochner.transforms import Centring, Composed, LinearPair
from bochner.validation import check_count, check_finite, check_points

MapChoice = str | FeatureMap | Sequence[FeatureMap]
"""A name of the catalogue, one map (redrawn for further blocks), or one map for every block."""

DEFAULT_MAP = "gerf"
"""Positive and unbiased, its spread fitted to the embeddings: 2 to 12 times less error of log Z than
"positive" at logits of standard deviation 0.5 to 1.5 (512 states, 32 dimensions, m = 256, in the same
centred and balanced coordinates), for the time of two covariances."""


@dataclass(frozen=True)
class Budget:
    """Which features a chain buys.

    Arguments:  feature_map: a name (made in centred, balanced coordinates, fitted there if it needs
                data), a FeatureMap (used on a and b as they are; an unfitted one is fitted to them), or a
                sequence of maps, one for every block;
                num_features: m, the columns of one edge, which is what an edge costs; None takes those
                of the given map;
                blocks: B independent draws that the edges use in turn. The error of log Z follows their
                total m_total = B m, the time follows m (docs/theory.md 14). Blocks beyond the number
                of edges would never be used and are not drawn;
                generator: of all draws; None takes a fresh one seeded by the system.
    Raises:     ValueError for counts below 1, or for a name without num_features.
    """

    feature_map: MapChoice
    num_features: int | None = None
    blocks: int = 1
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_count("blocks", self.blocks)
        if isinstance(self.feature_map, str):
            if self.num_features is None:
                raise ValueError(
                    f"num_features=None with feature_map={self.feature_map!r}: a map made by name wants"
                    " the columns of one edge, for example num_features=256."
                )
            return
        maps = [self.feature_map] if isinstance(self.feature_map, FeatureMap) else self.feature_map
        for phi in maps:
            if not isinstance(phi, FeatureMap):
                raise TypeError(
                    f"feature_map holds a {type(phi).__name__}; expected a name, a FeatureMap or a"
                    " sequence of FeatureMaps."
                )
            if self.num_features not in (None, phi.num_features):
                raise ValueError(
                    f"num_features={self.num_features}, but the given feature_map has"
                    f" {phi.num_features} columns; leave num_features out."
                )
        if not isinstance(self.feature_map, FeatureMap) and self.blocks not in (1, len(maps)):
            raise ValueError(
                f"blocks={self.blocks} with {len(maps)} feature maps: give one map a block, and leave"
                " blocks out."
            )
        if not maps:
            raise ValueError("feature_map is empty; give at least one map.")
        sizes = sorted({phi.num_features for phi in maps})
        if len(sizes) > 1:
            raise ValueError(
                f"feature_map holds maps of {sizes} columns; every block must have as many as the others."
            )

    def check(self, positive: str | None) -> None:
        """Raise ValueError for maps that do not estimate exp(a.b) or, where `positive` says who needs
        that, can be negative."""
        if isinstance(self.feature_map, str):
            known = spec(self.feature_map)
            if positive is not None and not known.positive:
                raise needs_positivity(f"{positive} with feature_map={self.feature_map!r}")
            if known.changes_kernel:
                raise other_kernel(f"feature_map={self.feature_map!r}")
            return
        given = self.feature_map
        for phi in [given] if isinstance(given, FeatureMap) else given:
            if positive is not None and not phi.positive:
                raise needs_positivity(f"{positive} with a {type(phi).__name__}")
            if phi.changes_kernel or not isinstance(phi.kernel, Softmax):
                raise other_kernel(f"feature_map {type(phi).__name__} of {phi.kernel!r}")


@dataclass(frozen=True)
class EmbeddedFeatures:
    """Features of embeddings, as every chain that approximates them starts from.

    Shapes:     left, right: one Features [*b, X, m] for every block, all factors included;
                left_points, right_points [*b, X, n]: what the maps were evaluated on.
    """

    left: tuple[Features, ...]
    right: tuple[Features, ...]
    left_points: Tensor
    right_points: Tensor
    feature_maps: tuple[FeatureMap, ...]

    def source(
        self, a: Tensor, b: Tensor, unaries: Tensor, beam: Tensor | None = None
    ) -> EmbeddingSource:
        """What the chain remembers of them."""
        points = self.left_points, self.right_points
        return EmbeddingSource(a, b, unaries, *points, self.feature_maps, beam)

    def logs(self) -> tuple[Tensor, Tensor]:
        """log_left, log_right [*b, B, X, m] of positive features."""
        return _stacked(self.left), _stacked(self.right)


def _stacked(blocks: tuple[Features, ...]) -> Tensor:
    """The logarithms of all blocks; one block is not copied."""
    logs = [features.log_features() for features in blocks]
    return logs[0].unsqueeze(-3) if len(logs) == 1 else torch.stack(logs, dim=-3)


def check_embeddings(a: Tensor, b: Tensor, unaries: Tensor) -> None:
    """Raise unless a, b [*b, X, n] are finite embeddings of the states of unaries [*b, T, X]."""
    check_points("a", a, a.shape[-1] if isinstance(a, Tensor) and a.ndim else 0)
    check_points("b", b, a.shape[-1])
    if a.shape[-2] != b.shape[-2]:
        raise ValueError(
            f"a has shape {list(a.shape)}, b {list(b.shape)}; both need one row a state, [*batch, X, n]."
        )
    if not isinstance(unaries, Tensor) or unaries.ndim < 2 or unaries.shape[-1] != a.shape[-2]:
        got = list(unaries.shape) if isinstance(unaries, Tensor) else type(unaries).__name__
        raise ValueError(
            f"unaries is {got}; expected [*batch, T, X] with X={a.shape[-2]}, the rows of a and b."
        )
    for name, tensor in (("b", b), ("unaries", unaries)):
        if tensor.dtype != a.dtype or tensor.device != a.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, a is {a.dtype} on {a.device};"
                " convert one: all three must agree."
            )
    if a.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"a has dtype {a.dtype}; potentials are computed in float32 or float64: convert a, b and"
            " unaries (.float())."
        )
    check_finite("a", a)
    check_finite("b", b)


def balancing_coordinates(a: Tensor, b: Tensor) -> Composed:
    """The exact transform to centred, balanced coordinates, one for every element of the batch.

    Example:
        >>> a, b = torch.tensor([[5.0], [7.0]]), torch.tensor([[-0.1], [0.1]])
        >>> t = balancing_coordinates(a, b)
        >>> [[round(float(v), 2) for v in p] for p in (t.queries(a).points, t.keys(b).points)]
        [[-0.32, 0.32], [-0.32, 0.32]]
    """
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (x.detach().expand(*batch, *x.shape[-2:]) for x in (a, b))
    moments = Moments.of(a, b, batch_shape=tuple(batch))
    return Composed(Centring.fit(moments), LinearPair.balancing(moments))


def embed(
    a: Tensor, b: Tensor, budget: Budget, *, edges: int, positive: str | None
) -> EmbeddedFeatures:
    """Draw the features of embeddings a, b [*b, X, n] (checked) for a chain of so many edges.

    Arguments:  positive: who needs features that are never negative; None if nobody does.
    Cost:       O(B X m n) time, O(B X m) memory, and that of a fit if the map needs data.
    Raises:     ValueError for signed maps where positive ones are needed (it names those), for maps that
                do not estimate exp(a.b), and for blocks of a map without random directions.
    """
    budget.check(positive)
    blocks = min(budget.blocks, max(edges, 1))
    if isinstance(budget.feature_map, str):
        transform = balancing_coordinates(a, b)
        left, left_factor = transform.queries(a)
        right, right_factor = transform.keys(b)
        maps = _made(budget, budget.feature_map, left, right)
    else:
        left, right, left_factor, right_factor = a, b, None, None
        given = budget.feature_map
        maps = [given] if isinstance(given, FeatureMap) else list(given)
        maps = [phi.fit(a, b) if isinstance(phi, UnfittedMap) else phi for phi in maps]
    if len(maps) == 1:
        maps += _redrawn(maps[0], blocks - 1, budget)
    return EmbeddedFeatures(
        tuple(_scaled(phi.query(left), left_factor) for phi in maps),
        tuple(_scaled(phi.key(right), right_factor) for phi in maps),
        left,
        right,
        tuple(maps),
    )


def _made(budget: Budget, name: str, left: Tensor, right: Tensor) -> list[FeatureMap]:
    """The map of a name, fitted to the points if it needs data."""
    assert budget.num_features is not None
    phi = make(
        name,
        dim=left.shape[-1],
        num_features=budget.num_features,
        generator=budget.generator,
        dtype=left.dtype,
    ).to(left.device)
    return [phi.fit(left, right) if isinstance(phi, UnfittedMap) else phi]


def _redrawn(phi: FeatureMap, count: int, budget: Budget) -> list[FeatureMap]:
    """Copies of a map with directions of their own; what is fitted is shared."""
    if count and not phi.num_projections:
        raise ValueError(
            f"blocks={budget.blocks}: {type(phi).__name__} draws no random directions, so that all blocks"
            " would be the same; use blocks=1."
        )
    generator = budget.generator or fresh_generator()
    return [copy.deepcopy(phi).resample_(generator) for _ in range(count)]


def _scaled(features: Features, log_factor: Tensor | None) -> Features:
    return features if log_factor is None else features.scaled(log_factor)
