"""Queries, keys and values: heads of a pretrained encoder on real text, and Gaussian ones.

Queries and keys are already divided by the temperature: the logit is q.k.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.data import demo_texts, token_windows
from bochner.data.minilm import load_minilm

AVERAGING = "averaging the values"  # the map that estimates 1
LENGTH = 512
DIM = 64  # of Gaussian points


@dataclass(frozen=True)
class Inputs:
    """What is measured on, and what data-aware maps are fitted to; q, k, v [*b, heads, n, d].

    `steepness` [heads] is the deviation of a row's logits, root mean square over rows; `averaging`
    [*b, heads] the relative output error of averaging the values.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    fit_q: Tensor
    fit_k: Tensor
    source: str

    @property
    def heads(self) -> int:
        return self.q.shape[-3]

    @functools.cached_property
    def steepness(self) -> Tensor:
        variances = (self.q @ self.k.transpose(-1, -2)).var(-1, correction=0)
        return variances.movedim(-2, 0).flatten(1).mean(1).sqrt()

    @functools.cached_property
    def averaging(self) -> Tensor:
        exact = torch.softmax(self.q @ self.k.transpose(-1, -2), dim=-1) @ self.v
        gap = self.v.mean(-2, keepdim=True) - exact
        return gap.flatten(-2).norm(dim=-1) / exact.flatten(-2).norm(dim=-1)


@functools.cache
def text_heads(texts: int, calibration: int, stride: int) -> Inputs:
    """All heads of all layers of MiniLM on windows of 512 tokens, one behind another [texts, 72, n, 32].

    Arguments:  texts: windows measured on, with every `stride`-th query and all keys; calibration:
                windows of other documents.
    """
    from bochner.transformers import collect_qkv

    model, tokenizer = load_minilm()
    documents = demo_texts()
    sides = []
    for part, count in ((documents.calibration, calibration), (documents.evaluation, texts)):
        windows = token_windows(tokenizer, part, length=LENGTH, count=count)
        layers = collect_qkv(model, windows)
        sides.append([torch.cat([getattr(x, name) for x in layers], dim=1) for name in "qkv"])
    (fit_q, fit_k, _), (q, k, v) = sides
    return Inputs(q[..., ::stride, :].contiguous(), k, v, fit_q, fit_k, documents.source)


@dataclass(frozen=True)
class Gaussians:
    """q and k of N(±mean, square/d I) with E|q - mean|^2 = square, |mean| = `shift`, values N(0, I).

    `alignment` is the cosine of the two means: 1 the same, -1 opposite.
    """

    square: float
    shift: float = 0.0
    alignment: float = 1.0

    def draw(self, heads: int, seed: int) -> Inputs:
        """Heads of 512 points, and as many to fit to, about the same means."""
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(heads, 1, DIM, generator=generator)
        mean = self.shift * direction / direction.norm(dim=-1, keepdim=True)
        points = [torch.randn(heads, LENGTH, DIM, generator=generator) for _ in range(5)]
        scale = math.sqrt(self.square / DIM)
        q, fit_q = (mean + scale * x for x in points[:2])
        k, fit_k = (self.alignment * mean + scale * x for x in points[2:4])
        return Inputs(q, k, points[4], fit_q, fit_k, "Gaussian points")


GAUSSIANS = {
    "isotropic (2, 2)": Gaussians(2.0),
    "isotropic (4, 4)": Gaussians(4.0),
    "opposite means": Gaussians(2.0, shift=1.5, alignment=-1.0),
    "same means": Gaussians(2.0, shift=1.5),
}
