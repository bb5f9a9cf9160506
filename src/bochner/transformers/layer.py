"""The linear attention of one converted layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bochner.attention import AttentionState, ExactWindow, linear_attention, step
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.transformers.masks import past_only
from bochner.validation import NotFittedError

if TYPE_CHECKING:
    from bochner.transformers.cache import LinearCacheLayer

PART = "bochner_attention"
"""The name of a LinearLayer in its attention module, and in the keys of the model's state_dict."""


class LinearLayer(nn.Module):
    """What a converted attention module computes with: its feature map, and what stays exact.

    Arguments:  feature_map: for the head dimension, with batch_shape (kv heads,), (heads,) or ();
                num_heads: query heads; exact: pairs that stay exact, or None; place: the module's name
                in the model, for messages and reports.
    Attributes: exact_heads [heads] bool: query heads that keep exact attention, quadratic in the
                length (`keep_exact` sets it); they are computed linearly too, which is dropped.
                without_dropout: run without attention dropout where the model asks for it in training;
                linear attention has no weights to drop, so without this word such a call raises.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=4, num_features=16, batch_shape=(2,), generator=g)
        >>> layer = LinearLayer(phi, num_heads=2)
        >>> q, k, v = (torch.randn(1, 2, 6, 4, generator=g) for _ in range(3))
        >>> layer(q, k, v, causal=True).shape
        torch.Size([1, 2, 6, 4])
        >>> layer.keep_exact([0, 1])
        >>> weights = torch.softmax(q @ k.mT, dim=-1)
        >>> bool(torch.allclose(layer(q, k, v, causal=False), weights @ v, atol=1e-6))
        True
    """

    exact_heads: Tensor

    def __init__(
        self,
        feature_map: FeatureMap,
        num_heads: int,
        *,
        exact: ExactWindow | None = None,
        place: str = "",
    ) -> None:
        super().__init__()
        self.feature_map = feature_map
        self.exact = exact
        self.place = place
        self.without_dropout = False
        self.may_be_cached = False  # compiled code looks for a cache only after one was made
        self.register_buffer("exact_heads", torch.zeros(num_heads, dtype=torch.bool))
        self._kept: tuple[int, ...] = ()
        self._kept_from: tuple[int, int] = (0, 0)

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return len(self.exact_heads)

    def keep_exact(self, heads: Iterable[int]) -> None:
        """Let these query heads run exact attention, all others linear.

        Raises:     ValueError for a head that the layer does not have.
        """
        wanted = sorted(set(heads))
        if not set(wanted) <= set(range(self.num_heads)):
            raise ValueError(f"heads={wanted} must be numbers from 0 to {self.num_heads - 1}.")
        self.exact_heads.zero_()
        self.exact_heads[wanted] = True
        self.kept_heads()

    def kept_heads(self) -> tuple[int, ...]:
        """The numbers of the heads that stay exact."""
        buffer = self.exact_heads
        if not torch.compiler.is_compiling():  # compiled code takes what the last eager look found
            version = -1 if buffer.is_inference() else buffer._version
            seen = (id(buffer), version)
            if seen != self._kept_from or version < 0:
                self._kept = tuple(buffer.nonzero().flatten().tolist())
                self._kept_from = seen
        return self._kept

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.kept_heads()

    def check_call(
        self, query: Tensor, key: Tensor, *, causal: bool, dropout: float, cached: bool
    ) -> None:
        """Raise for what linear attention would have to drop silently, and for a map without data."""
        if query.shape[1] != self.num_heads:
            raise ValueError(
                f"the attention has {query.shape[1]} heads; the layer was converted for"
                f" {self.num_heads}. Call restore(model), then linearize(model) again."
            )
        if isinstance(self.feature_map, UnfittedMap) and len(self.kept_heads()) < self.num_heads:
            raise NotFittedError(
                f"feature map {self.feature_map.name!r} of layer {self.place!r} is data-aware and has"
                " seen no data; call bochner.transformers.calibrate(model, batches) first, or"
                " linearize with a map that needs none, such as 'positive'."
            )
        if causal and not cached and query.shape[2] != key.shape[2]:
            raise ValueError(
                f"causal attention got {query.shape[2]} queries and {key.shape[2]} keys; expected"
                " equal lengths. This cache keeps keys, and linear attention keeps a state: pass"
                " past_key_values=LinearCache(model), or use_cache=False."
            )
        if dropout and not self.without_dropout:
            raise ValueError(
                f"attention dropout is {dropout}; linear attention has no weights to drop. Call"
                " model.eval(), or train without it: layer.without_dropout = True for each layer of"
                " converted_layers(model), or load the model with attention dropout 0 (setting it in"
                " model.config afterwards changes nothing)."
            )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool,
        key_mask: Tensor | None = None,
        cache: LinearCacheLayer | None = None,
    ) -> Tensor:
        """Attention of one layer.

        Shapes:     q [b, heads, n, d], k [b, kv heads, s, d], v [b, kv heads, s, dv]; the logit is q·k;
                    key_mask [b, s] bool, True = attend -> [b, heads, n, dv].
        Arguments:  cache: k and v are the next tokens of these sequences, and key_mask is of all their
                    tokens so far.
        """
        kept = self.kept_heads()
        exact = None
        if kept:
            exact = self._exact(kept, (q, k, v), causal=causal, key_mask=key_mask, cache=cache)
            if len(kept) == self.num_heads:
                if cache is not None:
                    cache.length += q.shape[2]
                return exact
        mask = None if key_mask is None else key_mask.unsqueeze(1)
        if cache is None:
            out = linear_attention(
                self.feature_map, q, k, v, causal=causal, key_mask=mask, exact=self.exact
            )
        else:
            mask = None if mask is None else mask[..., -k.shape[2] :]
            state = cache.state
            if state is None and cache.length:
                raise ValueError(
                    f"the cache has {cache.length} tokens of a layer whose heads all stay exact, and so no"
                    " state of linear ones; start another LinearCache after changing exact heads."
                )
            if state is None:
                state = AttentionState(self.feature_map, exact=self.exact)
            out, cache.state = step(state, q, k, v, key_mask=mask)
            cache.length += q.shape[2]
        if exact is None:
            return out
        return out.index_copy(1, torch.tensor(kept, device=q.device), exact.to(out.dtype))

    def _exact(
        self,
        kept: tuple[int, ...],
        qkv: tuple[Tensor, Tensor, Tensor],
        *,
        causal: bool,
        key_mask: Tensor | None,
        cache: LinearCacheLayer | None,
    ) -> Tensor:
        """Exact attention of the heads `kept`, [b, kept, n, dv]."""
        q, k, v = qkv
        group = q.shape[1] // k.shape[1]
        shared = sorted({head // group for head in kept})
        k, v = k[:, shared], v[:, shared]
        if cache is not None:
            k, v = cache.with_past(k, v, tuple(shared))
        sources = [shared.index(head // group) for head in kept]
        q, k, v = q[:, list(kept)], k[:, sources], v[:, sources].to(q.dtype)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        n, s = q.shape[2], k.shape[2]
        if causal and (mask is not None or n != s):
            past = past_only(n, s, q.device)
            mask, causal = past if mask is None else mask & past, False
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1.0)

    def extra_repr(self) -> str:
        """Where the layer is and what stays exact."""
        return f"place={self.place!r}, exact={self.exact}, exact_heads={list(self.kept_heads())}"
