"""Multi-head attention as a module, in linear time: projections around `linear_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bochner.attention.linear import linear_attention
from bochner.attention.window import ExactWindow
from bochner.catalog import make
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.request import fresh_generator
from bochner.validation import check_count, check_points, last_dimension

NUM_FEATURES = 128
"""m where a feature map is asked for by name alone."""


class RandomFeatureAttention(nn.Module):
    """Multi-head attention with an estimated kernel, in the shape of torch.nn.MultiheadAttention.

        out = W_o concat_h attention(W_q x, W_k y, W_v z)_h,    logits q.k / sqrt(head_dim)

    Shapes:     query [n, b, embed_dim], key [s, b, kdim], value [s, b, vdim] -> (out [n, b, embed_dim],
                None); [b, n, ...] with batch_first; without b for one sequence.
    Arguments:  embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in torch;
                feature_map: a name of `bochner.specs()`, made with num_features (128) per key-value head,
                or a FeatureMap of dimension head_dim; num_kv_heads: fewer heads of keys and values, each
                read by num_heads / num_kv_heads of queries; exact: an ExactWindow; causal: every call is
                causal; generator: the source of the directions and of the initial weights.
    Numerics:   as `linear_attention`; the projections run in `dtype`, all between them in float32.
    Cost:       O((n + s) (embed_dim^2 + num_heads m head_dim)) time.
    Raises:     ValueError or TypeError for sizes that do not fit, weights that are asked for, an attn_mask
                that is not the causal one; NotFittedError if the map needs data (call `fit`).
    Differs:    from nn.MultiheadAttention: no attention weights, so need_weights is False by default and
                must be, and there is no dropout on them; is_causal needs no attn_mask; a sequence whose
                keys are all ignored is an error, not NaN; q, k, v have a projection each
                (`from_multihead_attention` converts); no bias_k, no zero attention. From
                `linear_attention`: key_padding_mask is True where a key is ignored, key_mask where
                it takes part.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> exact = nn.MultiheadAttention(32, 4, batch_first=True)
        >>> linear = RandomFeatureAttention.from_multihead_attention(exact, num_features=512, generator=g)
        >>> x = torch.randn(2, 100, 32, generator=g) / 2
        >>> truth = exact(x, x, x, need_weights=False)[0]
        >>> bool((linear(x, x, x)[0] - truth).norm() < 0.15 * truth.norm())  # about 0.065
        True
    """

    # what torch's transformer layers look at before they take their fused path past this module
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        feature_map: str | FeatureMap = "positive",
        num_features: int | None = None,
        num_kv_heads: int | None = None,
        exact: ExactWindow | None = None,
        causal: bool = False,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first, self.causal, self.exact = batch_first, causal, exact
        self._check_sizes()
        self.head_dim = embed_dim // num_heads
        generator = fresh_generator() if generator is None else generator
        width = self.num_kv_heads * self.head_dim
        self.q_proj = _linear(embed_dim, embed_dim, bias, generator)
        self.k_proj = _linear(self.kdim, width, bias, generator)
        self.v_proj = _linear(self.vdim, width, bias, generator)
        self.out_proj = _linear(embed_dim, embed_dim, bias, generator)
        self.feature_map = self._made(feature_map, num_features, generator, dtype)
        self.to(device=device, dtype=dtype)

    def _check_sizes(self) -> None:
        for name in ("embed_dim", "num_heads", "num_kv_heads", "kdim", "vdim"):
            check_count(name, getattr(self, name))
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}."
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}."
            )
        if self.exact is not None and not isinstance(self.exact, ExactWindow):
            raise TypeError(
                f"exact must be an ExactWindow or None, got {type(self.exact).__name__};"
                " for example bochner.attention.ExactWindow(window=32, sinks=8)."
            )

    def _made(
        self,
        feature_map: str | FeatureMap,
        num_features: int | None,
        generator: torch.Generator,
        dtype: torch.dtype | None,
    ) -> FeatureMap:
        """The map of a name; a map as it is, after a look at its sizes."""
        if not isinstance(feature_map, FeatureMap):
            return make(
                feature_map,
                dim=self.head_dim,
                num_features=NUM_FEATURES if num_features is None else num_features,
                batch_shape=(self.num_kv_heads,),
                generator=generator,
                dtype=torch.float64 if dtype == torch.float64 else torch.float32,
            )
        if feature_map.dim != self.head_dim:
            raise ValueError(
                f"feature_map has dim={feature_map.dim}; expected embed_dim / num_heads ="
                f" {self.head_dim}."
            )
        shapes = [(), (self.num_kv_heads,), (self.num_heads,)]
        if feature_map.batch_shape not in shapes:
            raise ValueError(
                f"feature_map has batch_shape={feature_map.batch_shape}; expected () or"
                f" {' or '.join(map(str, dict.fromkeys(shapes[1:])))}: one map, or one per head."
            )
        if num_features not in (None, feature_map.num_features):
            raise ValueError(
                f"num_features={num_features}, but feature_map has {feature_map.num_features}; leave"
                " num_features out."
            )
        return feature_map

    @classmethod
    def from_multihead_attention(
        cls, module: nn.MultiheadAttention, **options: Any
    ) -> RandomFeatureAttention:
        """The same projections around an estimated kernel; weights are copied.

        Arguments:  options: feature_map, num_features, exact, causal, generator as in the constructor.
        Raises:     TypeError for another module; ValueError for bias_k, zero attention, and dropout on
                    the weights of a module in training: there are no weights to drop.
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(
                f"module must be a torch.nn.MultiheadAttention, got {type(module).__name__}."
            )
        if module.bias_k is not None or module.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn have no counterpart here.")
        if module.training and module.dropout > 0:
            raise ValueError(
                f"module drops attention weights (dropout={module.dropout}) while training, and linear"
                " attention has no weights; set module.dropout = 0, or call module.eval() first."
            )
        own = cls(
            module.embed_dim,
            module.num_heads,
            kdim=module.kdim,
            vdim=module.vdim,
            bias=module.in_proj_bias is not None,
            batch_first=module.batch_first,
            device=module.out_proj.weight.device,
            dtype=module.out_proj.weight.dtype,
            **options,
        )
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)
        else:
            weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        with torch.no_grad():
            for projection, weight, bias in zip(
                (own.q_proj, own.k_proj, own.v_proj, own.out_proj),
                (*weights, module.out_proj.weight),
                (*biases, module.out_proj.bias),
                strict=True,
            ):
                projection.weight.copy_(weight)
                if bias is not None:
                    projection.bias.copy_(bias)
        return own.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention of every query; see the class.

        Shapes:     key_padding_mask [b, s] (or [s]): bool, True = ignored, or floating, added to the
                    logits of a key.
        Arguments:  attn_mask: None or the causal one, bool or additive, [n, n] (then is_causal follows);
                    average_attn_weights: of no meaning here, as in torch without weights.
        """
        del average_attn_weights
        if need_weights:
            raise ValueError("need_weights=True: linear attention never forms weights; pass False.")
        is_causal = self.causal or is_causal or attn_mask is not None
        _check_causal_mask(attn_mask, query, key, self.batch_first)
        batched = isinstance(query, Tensor) and query.ndim == 3
        q, k, v = self._heads(query, key, value)
        hides: dict[str, Any] = {}
        if key_padding_mask is not None:
            shape = (q.shape[0], k.shape[-2]) if batched else (k.shape[-2],)
            hides = _masks(key_padding_mask, shape)
        out = linear_attention(
            self.feature_map, q, k, v, causal=is_causal, exact=self.exact, **hides
        )
        out = self.out_proj(out.transpose(-3, -2).flatten(-2))
        return (out if self.batch_first or not batched else out.transpose(0, 1)), None

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projected q [*b, heads, n, head_dim] and k, both times head_dim^-1/4, and v."""
        for name, x, width in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            check_points(name, x, width)
            if x.ndim != query.ndim or x.ndim > 3:
                raise ValueError(
                    f"{name} has shape {list(x.shape)}, query {list(query.shape)}; expected two"
                    " dimensions (one sequence) or three, the same for all."
                )
        temperature = self.head_dim**-0.25
        q = self.q_proj(query) * temperature
        k = self.k_proj(key) * temperature
        return self._split(q), self._split(k), self._split(self.v_proj(value))

    def _split(self, x: Tensor) -> Tensor:
        """[n, b, heads * head_dim] (or [b, n, ...] with batch_first) -> [b, heads, n, head_dim]."""
        x = x.unflatten(-1, (-1, self.head_dim))
        if x.ndim == 4 and not self.batch_first:
            x = x.transpose(0, 1)
        return x.transpose(-3, -2)

    def fit(self, query: Tensor, key: Tensor | None = None) -> RandomFeatureAttention:
        """Fit a feature map that needs data to inputs of this module; in place, again as often as wanted.

        Shapes:     query and key as in `forward`, without padding; key is query if None.
        Raises:     TypeError if the map needs no data.
        """
        unfitted = self.__dict__.get("_unfitted", self.feature_map)
        if not isinstance(unfitted, UnfittedMap):
            raise TypeError(
                f"feature map {type(self.feature_map).__name__} takes no data; nothing to fit."
            )
        with torch.no_grad():
            key = query if key is None else key
            q, k, _ = self._heads(query, key, key.new_zeros(*key.shape[:-1], self.vdim))
        if unfitted.batch_shape == (self.num_heads,):
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=-3)
        else:  # the queries of all heads that read one key head are its sample
            q = q.unflatten(-3, (self.num_kv_heads, -1)).flatten(-3, -2)
        fitted = unfitted.fit(q, k)
        object.__setattr__(self, "_unfitted", unfitted)  # no submodule: it holds no tensors
        self.feature_map = fitted.to(q.device)
        return self

    def resample_(self, generator: torch.Generator) -> RandomFeatureAttention:
        """Redraw all random directions in place; fitted and learned parts stay."""
        self.feature_map.resample_(generator)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        if isinstance(self.feature_map, UnfittedMap) and any(
            name.startswith(f"{prefix}feature_map.") for name in state_dict
        ):
            raise ValueError(
                f"the state_dict holds a fitted {self.feature_map.name!r}, this module an unfitted one;"
                " call fit on any inputs first, so that its tensors exist, or torch.save the module."
            )
        super()._load_from_state_dict(state_dict, prefix, *others, **named)

    def extra_repr(self) -> str:
        """Sizes and what is exact."""
        kv = f", num_kv_heads={self.num_kv_heads}" if self.num_kv_heads != self.num_heads else ""
        exact = "" if self.exact is None else f", exact={self.exact}"
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}{kv}, causal={self.causal}{exact}"


def _linear(inputs: int, outputs: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """A linear layer, Glorot-uniform from `generator`, its bias 0."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        reach = (6 / (inputs + outputs)) ** 0.5  # Glorot and Bengio 2010, eq. (16)
        uniform = torch.rand(outputs, inputs, generator=generator, device=generator.device)
        layer.weight.copy_((2 * uniform - 1) * reach)
        if bias:
            layer.bias.zero_()
    return layer


def _masks(key_padding_mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """key_mask or key_bias [b, 1, s] (or [s]) of torch's key_padding_mask."""
    if not isinstance(key_padding_mask, Tensor) or tuple(key_padding_mask.shape) != shape:
        found = (
            list(key_padding_mask.shape)
            if isinstance(key_padding_mask, Tensor)
            else type(key_padding_mask).__name__
        )
        raise ValueError(
            f"key_padding_mask is {found}; expected a tensor of shape {list(shape)}, [batch, keys]."
        )
    mask = key_padding_mask.unsqueeze(-2)
    if key_padding_mask.dtype == torch.bool:
        return {"key_mask": ~mask}
    if not key_padding_mask.is_floating_point():
        raise TypeError(
            f"key_padding_mask has dtype {key_padding_mask.dtype}; expected torch.bool, True where a"
            " key is ignored, or a floating one that is added to the logits."
        )
    return {"key_bias": mask}


def _check_causal_mask(
    attn_mask: Tensor | None, query: Tensor, key: Tensor, batch_first: bool
) -> None:
    """Raise ValueError unless attn_mask is None or hides exactly what lies ahead."""
    if attn_mask is None:
        return
    check_points("query", query, last_dimension(query))
    check_points("key", key, last_dimension(key))
    along = 1 if batch_first and query.ndim == 3 else 0
    n, s = query.shape[along], key.shape[along]
    ahead = torch.ones(n, s, dtype=torch.bool, device=attn_mask.device).triu(1)
    boolean = attn_mask.dtype == torch.bool
    hidden = attn_mask if boolean else attn_mask == -torch.inf
    shown_are_0 = boolean or not attn_mask[~hidden].any()
    if hidden.shape == ahead.shape and torch.equal(hidden, ahead) and shown_are_0:
        return
    raise ValueError(
        f"attn_mask of shape {list(attn_mask.shape)} is not the causal one for {n} queries and {s} keys:"
        " linear attention hides keys from all rows (key_padding_mask) or what lies ahead (is_causal);"
        " it has no mask of single pairs."
    )
