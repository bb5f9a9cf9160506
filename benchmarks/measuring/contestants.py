"""Who takes part: exact attention, the peers that install with pip, and bochner.

All compute softmax(q k^T) v of the same q, k, v [1, heads, L, d], q and k already divided by the
temperature. The peers divide by it inside, so that they are handed q and k times d^1/4, made outside the
timing. All linear ones have the same number of features.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import bochner
from bochner.attention import ExactWindow

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
WINDOW = ExactWindow(window=32, sinks=8)


@dataclass(frozen=True)
class Setting:
    """Sizes that all contestants share."""

    heads: int = 8
    dim: int = 64
    num_features: int = 128
    value_scale: float = 0.3

    def points(self, length: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
        """q, k, v [1, heads, length, dim]."""
        g = torch.Generator().manual_seed(seed)
        shape = (1, self.heads, length, self.dim)
        return tuple((self.value_scale * torch.randn(shape, generator=g)).to(dtype) for _ in "qkv")

    def one_tensor(self, length: int, dtype: torch.dtype) -> int:
        """Bytes of q."""
        return self.heads * self.dim * length * dtype.itemsize


class Missing(Exception):
    """A contestant that cannot take part here, and why."""


@dataclass(frozen=True)
class Contestant:
    """One way to compute attention.

    Arguments:  build(setting, causal) -> attend(q, k, v); peer: gets q and k times d^1/4;
                training_bytes(setting, length): what it is known to keep for a causal backward pass.
    """

    name: str
    dtype: torch.dtype
    build: Callable[[Setting, bool], Attend]
    peer: bool = False
    quadratic: bool = False
    training_bytes: Callable[[Setting, int], float] | None = None

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}"

    @property
    def ours(self) -> bool:
        """Whether it has to pass the gates."""
        return not (self.peer or self.quadratic)

    def points(self, setting: Setting, length: int) -> tuple[Tensor, ...]:
        """q, k, v as this contestant wants them."""
        q, k, v = setting.points(length, self.dtype)
        if self.peer:
            temperature = setting.dim**0.25
            q, k = q * temperature, k * temperature
        return q, k, v


# -- exact -----------------------------------------------------------------------------------------
def build_sdpa(setting: Setting, causal: bool) -> Attend:
    """torch's fused exact attention."""
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda q, k, v: attention(q, k, v, scale=1.0, is_causal=causal)


# -- peers, by their README ------------------------------------------------------------------------
def build_performer(setting: Setting, causal: bool) -> Attend:
    """performer-pytorch's FastAttention; causal without its CUDA package, as a CPU user gets it."""
    try:
        from performer_pytorch import FastAttention
    except ImportError as error:
        raise Missing(f"not installed ({error}); pip install performer-pytorch") from error
    with contextlib.redirect_stdout(io.StringIO()):  # prints that its CUDA package is not there
        attention = FastAttention(
            dim_heads=setting.dim, nb_features=setting.num_features, causal=causal
        )
    return lambda q, k, v: attention(q, k, v)


def performer_training_bytes(setting: Setting, length: int) -> float:
    """Its causal form keeps, for every token, key x value products, their running sum and a product."""
    return 3 * length * setting.heads * setting.num_features * setting.dim * 4


def build_darkformer(dtype: torch.dtype) -> Callable[[Setting, bool], Attend]:
    """darkformer-pytorch's DarkformerKernelAttention, its geometry frozen at the identity."""

    def build(setting: Setting, causal: bool) -> Attend:
        try:
            from darkformer_pytorch import DarkformerKernelAttention
        except ImportError as error:
            raise Missing(f"not installed ({error}); pip install darkformer-pytorch") from error
        attention = DarkformerKernelAttention(
            setting.dim,
            setting.heads,
            num_features=setting.num_features,
            causal=causal,
            projection_seed=0,
        )
        attention = attention.to(dtype).eval().requires_grad_(False)
        return lambda q, k, v: attention(q, k, v)

    return build


# -- bochner ---------------------------------------------------------------------------------------
@cache
def positive_map(setting: Setting) -> bochner.FeatureMap:
    """FAVOR+'s features, one draw for all heads, as performer-pytorch."""
    g = torch.Generator().manual_seed(0)
    return bochner.make("positive", dim=setting.dim, num_features=setting.num_features, generator=g)


@cache
def calibrated_map(setting: Setting) -> bochner.FeatureMap:
    """The default of converted models, fitted per head to 512 tokens of the same distribution."""
    g = torch.Generator().manual_seed(0)
    try:
        phi = bochner.make(
            "calibrated",
            dim=setting.dim,
            num_features=setting.num_features,
            batch_shape=(setting.heads,),
            generator=g,
        )
    except bochner.UnknownNameError as error:
        raise Missing(str(error)) from error
    q, k, _ = setting.points(512, torch.float32, seed=1)
    return phi.fit(q, k)


def build_bochner(
    make_map: Callable[[Setting], bochner.FeatureMap], exact: ExactWindow | None = None
) -> Callable[[Setting, bool], Attend]:
    """linear_attention with a feature map and perhaps exact pairs."""

    def build(setting: Setting, causal: bool) -> Attend:
        phi = make_map(setting)
        return lambda q, k, v: bochner.linear_attention(phi, q, k, v, causal=causal, exact=exact)

    return build


WINDOWED = f"bochner calibrated + window {WINDOW.window}, {WINDOW.sinks} sinks"
FLOAT, HALF = torch.float32, torch.bfloat16
CONTESTANTS = [
    Contestant("SDPA", FLOAT, build_sdpa, quadratic=True),
    Contestant("SDPA", HALF, build_sdpa, quadratic=True),
    Contestant(
        "performer-pytorch",
        FLOAT,
        build_performer,
        peer=True,
        training_bytes=performer_training_bytes,
    ),
    Contestant(
        "performer-pytorch",
        HALF,
        build_performer,
        peer=True,
        training_bytes=performer_training_bytes,
    ),
    Contestant("darkformer-pytorch", FLOAT, build_darkformer(FLOAT), peer=True),
    Contestant("darkformer-pytorch", HALF, build_darkformer(HALF), peer=True),
    Contestant("bochner positive", FLOAT, build_bochner(positive_map)),
    Contestant("bochner positive", HALF, build_bochner(positive_map)),
    Contestant("bochner calibrated", FLOAT, build_bochner(calibrated_map)),
    Contestant("bochner calibrated", HALF, build_bochner(calibrated_map)),
    Contestant(WINDOWED, FLOAT, build_bochner(calibrated_map, WINDOW)),
    Contestant(WINDOWED, HALF, build_bochner(calibrated_map, WINDOW)),
]
