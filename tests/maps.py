"""One usable map of any SPEC, and the data to use it on."""

import torch
from torch import Tensor

import bochner
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.projections import projection_from_name

NAMES = tuple(n for n, s in bochner.specs().items() if s.supports(bochner.Softmax()))
"""Maps of the softmax kernel."""
POSITIVE = tuple(n for n in NAMES if bochner.spec(n).positive)
RANDOM = tuple(n for n in NAMES if bochner.spec(n).random)
BIASED = tuple(n for n, s in bochner.specs().items() if not s.random)
"""Of any kernel."""
WITHOUT_THEORY = (*(n for n in BIASED if n in NAMES), "data-aware-mixture")
"""No closed form for the variance: nothing random, a mixture."""
PREDICTED = tuple(n for n in NAMES if n not in WITHOUT_THEORY)
FITTED = tuple(n for n in NAMES if bochner.spec(n).needs_data)


def budget(name: str, num_features: int, projection: str | None = None) -> int:
    """The smallest num_features from here on that the map can be made with."""
    coupling = None if projection is None else projection_from_name(projection)
    unit = bochner.spec(name).smallest_budget(coupling)
    return -(-num_features // unit) * unit


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(
    *shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Independent normals; the same numbers in every dtype."""
    return (scale * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)).to(dtype)


def on_sphere(*shape: int, norm: float, seed: int = 0) -> Tensor:
    """Random directions of one length, float64."""
    return norm * torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


def fitted(
    name: str,
    *,
    dim: int,
    num_features: int,
    seed: int = 0,
    batch_shape: tuple[int, ...] = (),
    kernel: str = "softmax",
    projection: str | None = None,
    scale: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> FeatureMap:
    """The map of a SPEC; data-aware ones are fitted to anisotropic queries and keys with means.

    num_features is rounded up to what the map can be made with (`budget`).
    """
    phi = bochner.make(
        name,
        dim=dim,
        num_features=budget(name, num_features, projection),
        kernel=kernel,
        projection=projection,
        batch_shape=batch_shape,
        generator=seeded(seed),
        dtype=dtype,
    )
    if not isinstance(phi, UnfittedMap):
        return phi
    spread = torch.linspace(0.5, 1.5, dim, dtype=torch.float64)
    queries, keys = (
        scale * (normal(*batch_shape, 64, dim, seed=s) * spread + normal(dim, seed=s + 1))
        for s in (seed + 1, seed + 3)
    )
    return phi.fit(queries, keys)
