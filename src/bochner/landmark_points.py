"""Where landmarks come from: k-means of keys and of queries, in balanced coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.landmark_data import Sequences, spaced
from bochner.statistics import Moments
from bochner.transforms import LinearPair

_CLUSTERED = 12288  # points that k-means looks at
_LLOYD_STEPS = 12


def landmark_points(
    data: Sequences, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Landmark keys (for queries) and landmark queries (for keys), [heads, p, d]: centres of k-means in
    balanced coordinates, and the mean."""
    queries, keys = (
        x.flatten(1, 2)[:, spaced(x.shape[1] * x.shape[2], _CLUSTERED, x.device)]
        for x in (data.queries, data.keys)
    )
    moments = Moments.of(queries, keys, batch_shape=(queries.shape[0],))
    pair = LinearPair.balancing(moments)
    found = []
    for points, forward, back in (
        (keys, pair.inverse_transpose.transpose(1, 2), pair.matrix),
        (queries, pair.matrix.transpose(1, 2), pair.inverse_transpose),
    ):
        mean = points.mean(1, keepdim=True)
        centres = [mean]
        if count > 1:
            balanced = (points - mean) @ forward
            centres.append(k_means(balanced, count - 1, generator=generator) @ back + mean)
        found.append(torch.cat(centres, dim=1))
    return found[0], found[1]


def k_means(points: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Centres [heads, count, d] of points [heads, n, d]: seeds drawn by squared distance, then Lloyd.

    Fewer distinct points than centres give equal centres.

    Cost:       O(steps n count d) per head, in float32.
    """
    x = points.float()
    heads, length, dim = x.shape
    draws = torch.rand(count, heads, 1, generator=generator).to(x.device)
    batch = torch.arange(heads, device=x.device)
    centres = x.new_empty(heads, count, dim)
    nearest = torch.ones_like(x[..., 0])  # the first seed: any point
    for index in range(count):
        total = nearest.cumsum(-1)
        pick = torch.searchsorted(total, draws[index] * total[:, -1:]).clamp_max(length - 1)
        seed = x[batch, pick.squeeze(-1)]
        centres[:, index] = seed
        distance = (x - seed.unsqueeze(1)).square().sum(-1)
        nearest = distance if index == 0 else torch.minimum(nearest, distance)
    for _ in range(_LLOYD_STEPS):
        label = (centres.square().sum(-1).unsqueeze(1) - 2.0 * x @ centres.transpose(1, 2)).argmin(
            -1
        )
        sums = torch.zeros_like(centres).scatter_add_(1, label.unsqueeze(-1).expand_as(x), x)
        sizes = x.new_zeros(heads, count).scatter_add_(
            1, label, torch.ones_like(label, dtype=x.dtype)
        )
        centres = torch.where(
            (sizes > 0).unsqueeze(-1), sums / sizes.clamp_min(1.0).unsqueeze(-1), centres
        )
    return centres.to(points.dtype)
