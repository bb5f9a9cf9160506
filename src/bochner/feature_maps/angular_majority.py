"""The angular hybrid with a sharper switch: the majority of three sign bits.

    lambda = 3 l^2 (1 - l) + l^3,   l = theta / pi

Error:      docs/theory.md 9; below the plain angular hybrid's near the poles, at 20 columns a projection
            instead of 8.
Reference:  Choromanski et al., Hybrid Random Features, 2022 (compositional lambda-coefficients);
            docs/theory.md 9.
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.hybrids import switched
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.switches import SignSwitch


def build(request: Request) -> FeatureMap:
    """One group of three independent sign projections."""
    return switched(request, SignSwitch.majority(request))


SPEC = FeatureMapSpec(
    name="angular-majority",
    summary="Angular hybrid that switches on the majority of three sign bits: sharper, longer; signed.",
    reference="Choromanski et al. 2022; theory 9",
    build=build,
    positive=False,
    columns=20,
)
