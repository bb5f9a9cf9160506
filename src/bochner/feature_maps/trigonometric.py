"""Trigonometric random features: exact where x = y, signed elsewhere.

    phi(x) = exp(|x|^2/2) [cos(omega.x), sin(omega.x)] / sqrt(r)      (Gaussian: without the factor)

Error:      relative variance 2 sinh^2(|x-y|^2/2) / r for iid directions: e^{|x-y|^2}/(2r) far apart.
            Estimates and attention denominators can be negative.
Reference:  Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007.
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Trigonometric
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """Trigonometric features with N(0, I) directions."""
    return RandomFeatures(request, Trigonometric())


SPEC = FeatureMapSpec(
    name="trigonometric",
    summary="Cosines and sines: exact at x = y, the best choice for the Gaussian kernel; signed.",
    reference="Rahimi and Recht 2007; Choromanski et al. 2022, Lemma 1.4",
    build=build,
    positive=False,
    columns=2,
)
