"""What a chain that approximates given embeddings remembers of them: what `diagnose` reads.

exact model     log p(x_1 .. x_T) = sum_t unaries[t, x_t] + sum_t a[x_t] . b[x_{t+1}] - log Z
approximation   exp(a_x . b_y) ~ features of `left_points`[x] . features of `right_points`[y]
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bochner.feature_map import FeatureMap


@dataclass(frozen=True, eq=False)
class EmbeddingSource:
    """The embeddings, unaries and feature maps behind one chain: its attribute `source`.

    `None` instead of a source says that the features are the model: nothing is approximated.

    Shapes:     a, b [*b, X, n] as the caller gave them: log K(x, y) = a_x . b_y.
                unaries [*b, T, X] as the caller gave them, before centring moved anything into them.
                left_points, right_points [*b, X, n]: a and b after every exact transform (centring,
                balancing), as the feature maps were evaluated on them: queries and keys.
                beam [*b, T, k] states, or None: the edges from beam t to beam t+1 are exact (hybrid).
    Arguments:  feature_maps: one for each of the B cycled blocks, drawn independently; edge e uses
                block e mod B. Each estimates exp(left_points_x . right_points_y).
    """

    a: Tensor
    b: Tensor
    unaries: Tensor
    left_points: Tensor
    right_points: Tensor
    feature_maps: tuple[FeatureMap, ...]
    beam: Tensor | None = None

    @property
    def blocks(self) -> int:
        """B, the number of independent draws that the edges share in turn."""
        return len(self.feature_maps)

    @property
    def num_features(self) -> int:
        """Columns of one block: what one edge pays for."""
        return self.feature_maps[0].num_features
