"""What the catalogue knows of a feature map: the frozen SPEC that ends its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bochner.feature_map import FeatureMap
from bochner.kernels import Gaussian, Kernel, Softmax
from bochner.projections import Orthogonal, Projection
from bochner.request import Request


@dataclass(frozen=True)
class FeatureMapSpec:
    """Name, description and constructor of one feature map.

    Arguments:
        name: what users type, in lower case with hyphens.
        summary: one sentence, for the catalogue page and `bochner list`.
        reference: paper and equation.
        build: Request -> FeatureMap (a data-aware one returns an `UnfittedMap`).
        needs_data: whether `.fit(queries, keys)` must be called before use.
        changes_kernel: whether the exact value differs from the kernel (trained kernels).
        positive: whether all features are positive.
        columns: columns per projection, so that num_features must be a multiple of it.
        default_projection: used unless the caller names one.
        random: whether anything is drawn. A map that draws nothing is fitted to data: its error is a bias,
            and the contract compares it with the best constant.
        projected: whether what is drawn are directions of a projection. `make` refuses a projection for a
            map that draws nothing, or something else (hashes, signs).
        kernels: what it is tested with, the first the default. Kernels of these types can be built, with
            any parameters.
    """

    name: str
    summary: str
    reference: str
    build: Callable[[Request], FeatureMap]
    needs_data: bool = False
    changes_kernel: bool = False
    positive: bool = True
    columns: int = 1
    default_projection: Projection = Orthogonal()
    random: bool = True
    projected: bool = True
    kernels: tuple[Kernel, ...] = (Softmax(), Gaussian())

    def supports(self, kernel: Kernel) -> bool:
        """Whether a map of this kernel can be built."""
        return any(type(kernel) is type(known) for known in self.kernels)

    @property
    def takes_projection(self) -> bool:
        """Whether a projection makes a difference."""
        return self.random and self.projected

    @property
    def unbiased(self) -> bool:
        """Whether E[estimate] = exact over draws, with the default projection."""
        return self.random and self.default_projection.unbiased

    def smallest_budget(self, projection: Projection | None = None) -> int:
        """The smallest num_features that works with a projection."""
        antithetic = (projection or self.default_projection).antithetic_base is not None
        return self.columns * (2 if antithetic else 1)
