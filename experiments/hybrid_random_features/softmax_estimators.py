"""The maps that estimate the softmax matrix, and what a budget R buys of each.

Two accountings:

    paper       R projections; hybrids have m base projections and n for the weights, m n = R
    features    at most 2R feature columns, which is what trigonometric features have at R projections

In the paper's accounting a hybrid with n = 8 has 4 m (n + 1) = 4.5 R columns, more than twice those of
the maps it is compared with; the cluster hybrid has R projections for each of its four pairs of clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bochner.catalog import spec
from bochner.feature_map import FeatureMap
from bochner.hybrids import angular, gaussian
from bochner.projections import Orthogonal, Projection
from bochner.request import Request

ACCOUNTINGS = ("paper", "features")
BOTH = "both"


@dataclass(frozen=True)
class Method:
    """A map by name; `columns` are what one base projection (a pair of mirrored ones) adds."""

    label: str
    build: Callable[[Request], FeatureMap]
    columns: int
    projections: int  # of R that those columns stand for: n of a hybrid, 2 of a mirrored pair
    projection: Projection = Orthogonal()

    def num_features(self, budget: int, accounting: str) -> int:
        """Columns at budget R: whole base projections, at least one."""
        by_columns = accounting == "features"
        units = 2 * budget // self.columns if by_columns else budget // self.projections
        return self.columns * max(1, units)

    def accountings(self, budget: int) -> tuple[str, ...]:
        """Both, or BOTH where they come to the same map."""
        sizes = {self.num_features(budget, accounting) for accounting in ACCOUNTINGS}
        return ACCOUNTINGS if len(sizes) > 1 else (BOTH,)


def _listed(name: str, label: str) -> Method:
    """A map of the catalogue with its default projection: orthogonal, some in mirrored pairs."""
    chosen = spec(name)
    unit = chosen.smallest_budget()
    return Method(label, chosen.build, unit, unit // chosen.columns, chosen.default_projection)


def _angular(signs: int) -> Method:
    return Method(
        f"angular hybrid, n={signs}",
        lambda request: angular(request, num_signs=signs),
        columns=4 * (signs + 1),
        projections=signs,
    )


def _gaussian(frequencies: int) -> Method:
    return Method(
        f"Gaussian hybrid, n={frequencies}",
        lambda request: gaussian(request, 1.0, num_frequencies=frequencies),
        columns=8 * frequencies + 2,
        projections=frequencies,
    )


METHODS: dict[str, Method] = {
    "hyperbolic": _listed("hyperbolic", "FAVOR+ (hyperbolic)"),
    "positive": _listed("positive", "positive"),
    "trigonometric": _listed("trigonometric", "trigonometric"),
    "gerf": _listed("gerf", "FAVOR++"),
    "angular-8": _angular(8),
    "angular-1": _angular(1),
    "gaussian-8": _gaussian(8),
    "gaussian-1": _gaussian(1),
    "cluster": _listed("cluster", "cluster hybrid"),
    "complex-exponential": _listed("complex-exponential", "complex exponential"),
    "balanced-exponential": _listed("balanced-exponential", "balanced exponential"),
    "sderf": _listed("sderf", "SDERF"),
    "aderf": _listed("aderf", "ADERF"),
    "data-aware": _listed("data-aware", "data-aware"),
}
"""The paper's four methods are hyperbolic, trigonometric, angular-8 and gaussian-8."""
