"""Which pairs attention computes exactly: a band around the diagonal, and a few keys for all rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bochner.attention.state import AttentionState
from bochner.attention.window_bidirectional import attend_all
from bochner.attention.window_causal import advance
from bochner.feature_map import FeatureMap
from bochner.validation import check_count

if TYPE_CHECKING:
    from torch import Tensor

    from bochner.attention.inputs import AttentionInputs


@dataclass(frozen=True)
class ExactWindow:
    """Exact kernel values on a band and on a few keys; random features for all other pairs.

        out_i = (sum_{j in E_i} K(q_i, k_j) v_j + sum_{j not in E_i} phi(q_i).phi(k_j) v_j) / (same, v_j = 1)

    One normaliser: exact and estimated values are weights of one average. Every pair is in one of the
    two sums, and nothing is computed as a difference of states.

    Arguments:  window w: causal: pairs with 0 <= i - j < w; bidirectional: |i - j| <= w // 2; positions
                are those of tokens, hidden ones included; 0: no band. sinks s: keys that every row sees
                exactly; causal: the first s visible keys of each sequence; bidirectional: the s keys
                with most attention from 16 evenly spaced queries (summed over the queries' heads that
                share a key's head); 0: none. A sequence with no more than s visible keys is attended
                exactly.
                denominator_floor: for signed or biased maps, whose part of a denominator may come out
                negative: rows where it is less than denominator_floor times the exact part use the
                exact part alone, and a DenominatorWarning says for what share of the rows. None: no
                such guard.
    Kernel:     the one that the map estimates (`FeatureMap.log_kernel`): exp(q.k), or the trained one.
    Error:      the kernel estimate stays unbiased where the map's is; the error of exact pairs is 0.
                `bochner.algebra.Constant` (averaging) estimates exp(q.k) by 1: outside the window
                every key then weighs exp(0), and inside exp(q.k).
    Cost:       O(n (m + w + s + 128)(d + dv)) time. Bidirectional with w > 0 keeps the features of all
                keys, m numbers a key, and one state for every 256 rows.
    Raises:     ValueError for a negative or fractional window or sinks, and for a denominator_floor
                that is not finite or not above -1.
    Reference:  the local band as in Arora et al., 2024 (Based) and Zhang et al., 2024 (LoLCATs); first
                keys as in Xiao et al., 2024 (attention sinks).
    Differs:    exact values join the features' normaliser with no learned factor between them.
    Example:
        >>> import bochner, torch
        >>> from bochner.attention import ExactWindow
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=8, num_features=32, generator=g)
        >>> q, k, v = (torch.randn(200, 8, generator=g) for _ in range(3))
        >>> exact = torch.softmax(q @ k.mT, dim=-1) @ v
        >>> windows = (None, ExactWindow(64, sinks=8), ExactWindow(400, sinks=0))
        >>> outs = [bochner.linear_attention(phi, q, k, v, exact=w) for w in windows]
        >>> [round(float((out - exact).norm() / exact.norm()), 2) for out in outs]
        [1.07, 0.91, 0.0]
    """

    window: int = 32
    sinks: int = 8
    denominator_floor: float | None = None

    def __post_init__(self) -> None:
        check_count("window", self.window, at_least=0)
        check_count("sinks", self.sinks, at_least=0)
        floor = self.denominator_floor
        if floor is not None and not (math.isfinite(floor) and floor > -1.0):
            raise ValueError(
                f"denominator_floor={floor!r} must be None or a finite number above -1 (at -1 the"
                " features' part may cancel the exact part); 0.0 guards against negative parts."
            )

    @property
    def reach(self) -> int:
        """Bidirectional: the largest |i - j| in the band; -1 without a band."""
        return self.window // 2 if self.window else -1

    def advance(
        self, state: AttentionState, inputs: AttentionInputs
    ) -> tuple[Tensor, AttentionState]:
        """`bochner.step` on checked inputs, for a state with this window."""
        return advance(state, inputs)


def windowed(
    feature_map: FeatureMap, exact: ExactWindow, inputs: AttentionInputs, *, causal: bool
) -> Tensor:
    """`linear_attention` on checked inputs with exact pairs.

    Raises:     TypeError for another `exact`; ValueError for a band where queries and keys are not the
                same tokens.
    """
    if not isinstance(exact, ExactWindow):
        raise TypeError(
            f"exact must be a bochner.attention.ExactWindow, got {type(exact).__name__};"
            " for example ExactWindow(window=32, sinks=8)."
        )
    if causal:
        return advance(AttentionState(feature_map, exact=exact), inputs)[0]
    n, s = inputs.q.shape[-2], inputs.k.shape[-2]
    if exact.window and n != s:
        raise ValueError(
            f"exact has window={exact.window}, but q has length {n} and k {s}: a band of neighbours"
            " needs one query per key. For cross-attention use ExactWindow(window=0, sinks=...)."
        )
    return attend_all(feature_map, exact, inputs)
