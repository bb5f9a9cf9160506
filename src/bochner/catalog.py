"""The catalogue: every SPEC of `bochner.feature_maps`, and third parties' by entry point."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

import torch

import bochner.feature_maps
from bochner.feature_map import FeatureMap
from bochner.kernels import Kernel, kernel_from_name
from bochner.projections import Projection, projection_from_name
from bochner.request import Request, fresh_generator
from bochner.specification import FeatureMapSpec
from bochner.validation import check_count, unknown_name

ENTRY_POINT_GROUP = "bochner.feature_maps"


@cache
def specs() -> dict[str, FeatureMapSpec]:
    """All specifications by name, sorted.

    Raises:     ValueError if two share a name, TypeError if an entry point is not a FeatureMapSpec.
    Example:
        >>> "positive" in specs()
        True
    """
    package = bochner.feature_maps
    found = [
        (module.name, import_module(f"{package.__name__}.{module.name}").SPEC)
        for module in pkgutil.iter_modules(package.__path__)
    ]
    found += [(point.name, point.load()) for point in entry_points(group=ENTRY_POINT_GROUP)]
    by_name: dict[str, FeatureMapSpec] = {}
    for source, spec in found:
        if not isinstance(spec, FeatureMapSpec):
            raise TypeError(f"{source} gives a {type(spec).__name__}; expected a FeatureMapSpec.")
        if spec.name in by_name:
            raise ValueError(f"two feature maps are called {spec.name!r}; rename one.")
        by_name[spec.name] = spec
    return dict(sorted(by_name.items()))


def spec(name: str) -> FeatureMapSpec:
    """One specification; UnknownNameError lists the nearest names."""
    if name not in specs():
        raise unknown_name("feature map", str(name), specs())
    return specs()[name]


def maps_of(kernel: Kernel) -> list[str]:
    """Names of the maps that estimate this kernel, in alphabetical order; trained kernels left out.

    Example:
        >>> from bochner.kernels import Softmax
        >>> "positive" in maps_of(Softmax())
        True
    """
    return [
        name
        for name, entry in specs().items()
        if entry.supports(kernel) and not entry.changes_kernel
    ]


def make(
    name: str,
    *,
    dim: int,
    num_features: int,
    kernel: str | Kernel | None = None,
    projection: str | Projection | None = None,
    batch_shape: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> FeatureMap:
    """A feature map by name: the edge where strings are welcome.

    Arguments:
        name: one of `bochner.catalog.specs()`.
        dim: dimension d of the inputs, which are already divided by the temperature.
        num_features: m, the columns that a consumer pays for.
        kernel: a name of `bochner.kernels.KERNELS`, such as "softmax" exp(x.y) or "gaussian"
            exp(-|x-y|^2/2), or a Kernel; None takes the map's own default.
        projection: a name or a Projection; None takes the map's own default. Maps without random
            directions (`SPEC.takes_projection` is False) take none.
        batch_shape: one independent map per element, for example (heads,).
        generator: the source of randomness; None takes a fresh one seeded by the system.
        dtype: of the stored directions, float32 or float64.
    Returns:    a FeatureMap; a data-aware one still wants `.fit(queries, keys)`.
    Raises:     UnknownNameError with the nearest names; ValueError for sizes that do not fit.
    Example:
        >>> phi = make("positive", dim=8, num_features=64, generator=torch.Generator().manual_seed(0))
        >>> phi.num_features, phi.positive, phi.unbiased
        (64, True, True)
    """
    chosen = spec(name)
    coupling = chosen.default_projection if projection is None else projection_from_name(projection)
    if projection is not None and not chosen.takes_projection:
        raise ValueError(
            f"projection={projection!r}: {chosen.name!r} draws no random directions, so that a projection"
            " would change nothing; leave it out."
        )
    wanted = chosen.kernels[0] if kernel is None else kernel_from_name(kernel)
    if not chosen.supports(wanted):
        raise ValueError(
            f"kernel={wanted!r}: {chosen.name!r} has features of"
            f" {', '.join(known.name for known in chosen.kernels)}; others of this kernel:"
            f" {', '.join(maps_of(wanted)) or 'none'}."
        )
    _check_budget(chosen, num_features, coupling)
    request = Request(
        dim=dim,
        num_features=num_features,
        kernel=wanted,
        projection=coupling,
        batch_shape=batch_shape,
        generator=fresh_generator() if generator is None else generator,
        dtype=dtype,
    )
    return chosen.build(request)


def _check_budget(chosen: FeatureMapSpec, num_features: int, projection: Projection) -> None:
    """Raise ValueError unless num_features is a multiple of what the map and its pairs need."""
    check_count("num_features", num_features)
    unit = chosen.smallest_budget(projection)
    if num_features % unit:
        low = num_features // unit * unit
        options = f"{low} or {low + unit}" if low else f"{unit}"
        raise ValueError(
            f"num_features={num_features} must be a multiple of {unit} for {chosen.name!r} with"
            f" {projection!r}, which spends {unit} columns at a time; use {options}."
        )
