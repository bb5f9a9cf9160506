"""The pairs of an exact window as a mask: for diagnostics, which look at every pair anyway."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.attention.inputs import attention_inputs
from bochner.attention.window import ExactWindow
from bochner.attention.window_sinks import heavy_keys, is_among
from bochner.feature_map import FeatureMap


@dataclass(frozen=True)
class WindowPairs:
    """Which pairs of some queries and keys `exact` computes exactly.

    Shapes:     columns [*b, s], True for the keys that every row sees exactly.
    Example:
        >>> import bochner
        >>> phi = bochner.make("positive", dim=2, num_features=4)
        >>> x = torch.zeros(3, 2)
        >>> WindowPairs.of(ExactWindow(2, sinks=0), phi, x, x, causal=True).rows(slice(0, 3)).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
    """

    exact: ExactWindow
    causal: bool
    columns: Tensor

    @classmethod
    def of(
        cls, exact: ExactWindow, feature_map: FeatureMap, q: Tensor, k: Tensor, *, causal: bool
    ) -> WindowPairs:
        """For queries [*b, n, d] and keys [*b, s, d], all visible; as `linear_attention` chooses them."""
        count = k.shape[-2]
        if causal or not exact.sinks:
            columns = torch.arange(count, device=k.device) < exact.sinks
        else:
            inputs = attention_inputs(feature_map, q, k, k, None, causal=False)
            columns = is_among(heavy_keys(feature_map, inputs, exact.sinks)[0], 0, count)
        return cls(exact, causal, columns)

    def rows(self, rows: slice) -> Tensor:
        """Their mask for some of the queries, [*b, rows, s]; what a row does not see is up to the caller."""
        row = torch.arange(rows.start, rows.stop, device=self.columns.device).unsqueeze(-1)
        distance = row - torch.arange(self.columns.shape[-1], device=self.columns.device)
        if self.causal:
            band = (distance >= 0) & (distance < self.exact.window)
        else:
            band = distance.abs() <= self.exact.reach
        return band | self.columns.unsqueeze(-2)
