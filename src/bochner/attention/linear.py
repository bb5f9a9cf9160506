"""Attention whose cost is linear in the length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bochner.attention.backward import causal_rows
from bochner.attention.bidirectional import bidirectional
from bochner.attention.inputs import Mask, attention_inputs, check_some_key_visible
from bochner.attention.window import ExactWindow, windowed
from bochner.feature_map import FeatureMap

if TYPE_CHECKING:
    from torch import Tensor


def linear_attention(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    lengths: Tensor | None = None,
    exact: ExactWindow | None = None,
) -> Tensor:
    """Attention with the estimated kernel: out_i = sum_j K_ij v_j / sum_j K_ij.

    Shapes:     q [*b, H, n, d], k [*b, Hkv, s, d], v [*b, Hkv, s, dv] -> out [*b, H, n, dv] in v's
                dtype. Cross-attention: n != s. q and k are already divided by the temperature, so that
                the logit is q.k: multiply both by d^-1/4 for standard attention. Grouped queries: Hkv
                divides H, and query head h reads key head h // (H / Hkv); nothing is repeated in memory
                and features of a key are computed once, unless the map or the mask has H heads.
    Arguments:  causal: row i sees keys 0..i (needs n = s); key_mask: bool, broadcasting to [*b, Hkv, s],
                True where a key takes part; key_bias: added to the logits of a key, -inf hides it, same
                shapes; lengths: integers broadcasting to [*b, Hkv]: keys from there on are hidden.
                exact: pairs that are computed exactly, an `ExactWindow`.
    Numerics:   float32 inside for half precision (also under autocast), float64 for float64. No eps,
                no clamp, no redraw; a running maximum per feature; causal rows never depend on later
                keys. Causal rows before the first visible key are 0, as in torch's exact attention.
    Error:      see `bochner.diagnostics.measure` and `predict`. Signed maps (trigonometric) can give
                denominators <= 0: a DenominatorWarning says for what share of the rows.
    Cost:       O((n + s) m (d + dv)) time, O(m dv + block m) memory: never n x s. Recorded for
                autograd it is O((n + s)(d + dv) + blocks m dv), since the features of a block are
                computed again in the backward pass.
    Raises:     ValueError or TypeError for wrong shapes, NaN, heads or masks that do not match, and a
                mask that hides every key of a sequence.
    Example:
        >>> import bochner
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=16, num_features=256, generator=g)
        >>> q, k, v = (0.25 * torch.randn(2, 100, 16, generator=g) for _ in range(3))
        >>> out = linear_attention(phi, q, k, v)
        >>> exact = torch.softmax(q @ k.mT, dim=-1) @ v
        >>> round(float((out - exact).norm() / exact.norm()), 2)
        0.19
    """
    mask = Mask(key_mask, key_bias, lengths)
    inputs = attention_inputs(feature_map, q, k, v, mask, causal=causal)
    check_some_key_visible(inputs.key_mask, mask.names())
    if exact is not None:
        return windowed(feature_map, exact, inputs, causal=causal)
    if causal:
        return causal_rows(feature_map, inputs)
    return bidirectional(feature_map, inputs)
