"""The Gaussian hybrid: trigonometric features weighed by exp(-|x-y|^2/2), hyperbolic ones by the rest.

    K^ = lambda^ K_trig + (1 - lambda^) K_hyp,   lambda^ = cos(tau.(x - y))

Error:      zero at x = y only; docs/theory.md 9. The estimated weight can leave [0, 1].
Reference:  Choromanski et al., Hybrid Random Features, 2022 (Gaussian lambda-coefficients).
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.hybrids import gaussian
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """Lengthscale 1, one frequency."""
    return gaussian(request)


SPEC = FeatureMapSpec(
    name="gaussian-hybrid",
    summary="Hybrid: trigonometric features where x is close to y, hyperbolic elsewhere; signed.",
    reference="Choromanski et al. 2022",
    build=build,
    positive=False,
    columns=10,
)
