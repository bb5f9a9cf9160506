"""Nothing of ours is timed before its output is right: the dense sum over all pairs, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import bochner
from benchmarks.measuring.contestants import (
    WINDOW,
    Contestant,
    Setting,
    calibrated_map,
    positive_map,
)
from bochner.attention import ExactWindow

LENGTH = 300
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""Relative to the output's norm: float32 sums, and one rounding of inputs and output to bfloat16."""


class GateFailed(Exception):
    """A contestant whose output is wrong."""


def dense_output(
    phi: bochner.FeatureMap, points: tuple[Tensor, ...], *, causal: bool, exact: ExactWindow | None
) -> Tensor:
    """The same features, every pair formed; exp(q.k) for the pairs that `exact` names."""
    q, k, v = (x.double() for x in points)
    kernel = phi.estimate(q, k)
    if exact is not None:
        logits = q @ k.mT
        kernel = torch.where(exact_pairs(logits, exact, causal=causal), torch.exp(logits), kernel)
    kernel = kernel.tril() if causal else kernel
    return (kernel @ v) / kernel.sum(-1, keepdim=True)


def exact_pairs(logits: Tensor, exact: ExactWindow, *, causal: bool) -> Tensor:
    """The window's definition, [*b, n, n]: a band and the first keys, or those with most attention from 16
    evenly spaced rows."""
    n = logits.shape[-1]
    i, j = torch.arange(n).unsqueeze(-1), torch.arange(n)
    if causal:
        return ((i - j >= 0) & (i - j < exact.window)) | (j < exact.sinks)
    rows = torch.linspace(0, n - 1, 16).round().long()
    mass = torch.softmax(logits[..., rows, :], dim=-1).sum(dim=-2)
    heavy = torch.zeros_like(mass, dtype=torch.bool)
    heavy.scatter_(-1, mass.topk(exact.sinks, dim=-1).indices, True)
    return ((i - j).abs() <= exact.window // 2) | heavy.unsqueeze(-2)


def check(contestant: Contestant, setting: Setting, *, causal: bool) -> float:
    """The relative error of the contestant's output; GateFailed if it is too large."""
    points = contestant.points(setting, LENGTH)
    with torch.no_grad():
        out = contestant.build(setting, causal)(*points).double()
        phi = positive_map(setting) if "positive" in contestant.name else calibrated_map(setting)
        exact = WINDOW if "window" in contestant.name else None
        truth = dense_output(phi, points, causal=causal, exact=exact)
    error = float((out - truth).norm() / truth.norm())
    if not error < TOLERANCE[contestant.dtype]:
        raise GateFailed(f"{contestant.label}, causal={causal}: relative error {error:.2g}")
    return error
