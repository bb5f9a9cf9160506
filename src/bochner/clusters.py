"""Clusters of queries and keys, found by k-means: where clustered hybrids get their centres from.

Reference:  Choromanski et al., Hybrid Random Features, 2022 (k-means on standardised data,
            queries and keys apart).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from bochner.statistics import pooled
from bochner.validation import check_count


@dataclass(frozen=True)
class Clusters:
    """Centres of clusters, with the mean and the mean of squares of the points nearest to each.

    Shapes:     centres, means, squares [*batch, p, d], float64.
    """

    centres: Tensor
    means: Tensor
    squares: Tensor

    @classmethod
    def of(
        cls,
        name: str,
        points: Tensor,
        *,
        count: int,
        batch_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> Clusters:
        """k-means of points [*b, *batch, n, d], pooled over what is not in batch_shape.

        Coordinates are divided by their deviation first and the centres brought back. A cluster that
        has no points (there may be fewer distinct points than clusters) takes the mean and squares of
        all. Heads that are views of the same
        data (an expanded batch) are clustered once.

        Raises:     ValueError for a count below 1, NaN and wrong shapes.
        Cost:       O(iterations n p d) per head.
        """
        check_count(f"number of clusters of {name}", count)
        x = _distinct(pooled(name, points.detach(), batch_shape)).double()
        flat = x.reshape(-1, *x.shape[-2:])
        seeds = torch.randint(2**31, (len(flat),), generator=generator).tolist()
        found = [_cluster(h, count, seed) for h, seed in zip(flat, seeds, strict=True)]
        centres, means, squares = (
            torch.stack(parts).reshape(*x.shape[:-2], count, x.shape[-1])
            for parts in zip(*found, strict=True)
        )
        whole = (*batch_shape, count, x.shape[-1])
        return cls(centres.expand(whole), means.expand(whole), squares.expand(whole))

    def shifted(self, centre: Tensor) -> Clusters:
        """The clusters of points - centre, [*batch, d]."""
        shift = centre.unsqueeze(-2)
        squares = self.squares - 2.0 * shift * self.means + shift.square()
        return Clusters(self.centres - shift, self.means - shift, squares.clamp_min(0.0))

    def cluster(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, mean and mean squares of one cluster, [*batch, d] each."""
        return (
            self.centres[..., index, :],
            self.means[..., index, :],
            self.squares[..., index, :],
        )


def _distinct(x: Tensor) -> Tensor:
    """x without its repetitions along expanded leading dimensions (stride 0)."""
    for dim in range(x.ndim - 2):
        if x.stride(dim) == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _cluster(x: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, means and squares [p, d] of one head's points [n, d]."""
    deviation = x.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    data = (x / deviation).cpu().numpy()
    distinct = np.unique(data, axis=0)
    if len(distinct) <= count:  # every point its own cluster, the others empty
        scaled = np.concatenate([distinct, np.repeat(distinct[:1], count - len(distinct), axis=0)])
    else:
        with warnings.catch_warnings():  # an empty cluster is no fault here
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            scaled, _ = kmeans2(data, count, minit="++", rng=np.random.default_rng(seed))
    centres = torch.from_numpy(scaled).to(x.device) * deviation
    label = torch.cdist(x, centres).argmin(-1)
    members = torch.nn.functional.one_hot(label, count).double()
    sizes = members.sum(0).unsqueeze(-1)
    empty = sizes == 0
    means = torch.where(empty, x.mean(0), members.T @ x / sizes.clamp_min(1))
    squares = torch.where(empty, x.square().mean(0), members.T @ x.square() / sizes.clamp_min(1))
    return centres, means, squares
