"""The clustered queries and keys of the paper's synthetic experiment, in d = 50.

    centre_1 = q R_1,  q_l ~ U(3, 4)          key centre_1 = k R_1,  k_l ~ +-U(2, 5)
    centre_2 = q R_2, signs of centre_1       key centre_2 = k R_2

with R_1, R_2 Haar rotations. From coordinate `kept` on, both key centres take the sign opposite to the
query centres', so that a real diagonal A reaches s = 0 there; the first `kept` keep theirs, about half
of which agree. 1,000 points N(centre, variance I) of each, scaled to |q| = 0.1 and |k| = 1.

The published run is one instance, from seeds of NumPy's and SciPy's generators. Ours are others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.projections.orthogonal import haar_orthogonal

DIM = 50
PER_CLUSTER = 1_000
QUERY_NORM, KEY_NORM = 0.1, 1.0


@dataclass(frozen=True)
class Setting:
    """Variance of the noise and how many coordinates keep their sign; `label` as the paper's figure."""

    variance: int
    kept: int

    @property
    def label(self) -> str:
        return f"σ² = {self.variance}, k = {self.kept}"


SETTINGS = tuple(Setting(variance, kept) for variance in (1, 10) for kept in (12, 25))


@dataclass(frozen=True)
class Points:
    """Queries and keys [n, d], float64, cluster after cluster."""

    queries: Tensor
    keys: Tensor

    @property
    def kernel(self) -> Tensor:
        """exp(q.k) of all pairs."""
        return torch.exp(self.queries @ self.keys.T)


def centres(kept: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Query centres and key centres, [2, d] each, before noise and scaling."""
    uniform = torch.rand(2, DIM, generator=generator, dtype=torch.float64)
    coin = torch.randint(2, (DIM,), generator=generator) * 2 - 1
    rotations = haar_orthogonal((2,), DIM, generator)
    queries = (3.0 + uniform[0]) @ rotations
    keys = (coin * (2.0 + 3.0 * uniform[1])) @ rotations
    queries[1] = queries[1].abs() * torch.sign(queries[0])
    keys[:, kept:] = -keys[:, kept:].abs() * torch.sign(queries[:, kept:])
    return queries, keys


def points(setting: Setting, instance: int, per_cluster: int = PER_CLUSTER) -> Points:
    """One instance: the same centres (but for signs) and noise in every setting."""
    generator = torch.Generator().manual_seed(1_000 + instance)
    sides = []
    for middle, norm in zip(centres(setting.kept, generator), (QUERY_NORM, KEY_NORM), strict=True):
        noise = torch.randn(2, per_cluster, DIM, generator=generator, dtype=torch.float64)
        cloud = (middle.unsqueeze(1) + setting.variance**0.5 * noise).flatten(0, 1)
        sides.append(norm * cloud / cloud.norm(dim=-1, keepdim=True))
    return Points(*sides)
