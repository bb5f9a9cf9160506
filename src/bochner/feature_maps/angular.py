"""The angular hybrid: hyperbolic features weighed by theta/pi, trigonometric ones by the rest.

    K^ = lambda^ K_hyp + (1 - lambda^) K_trig,   lambda^ = [sgn(tau.x) != sgn(tau.y)],  E = theta/pi

Error:      zero at x = y and at x = -y; docs/theory.md 9. Per column it loses to its parts at
            theta = pi/2, and its denominators in attention can be negative.
Reference:  Choromanski et al., Hybrid Random Features, 2022 `bochner.hybrids.angular` takes
            more sign projections (the paper's 8); at equal length one is best.
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.hybrids import angular
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """One sign projection, projections of its own for either estimator."""
    return angular(request)


SPEC = FeatureMapSpec(
    name="angular",
    summary="Hybrid: hyperbolic features where x opposes y, trigonometric where they agree; signed.",
    reference="Choromanski et al. 2022",
    build=build,
    positive=False,
    columns=8,
)
