"""Hyperbolic random features: positive features averaged over +omega and -omega.

    phi(x) = exp(-|x|^2/2) [exp(omega.x), exp(-omega.x)] / sqrt(2r)

Error:      relative variance 2 sinh^2(|x+y|^2/2) / r for iid directions; zero at x = -y; never worse
            than positive features of the same length.
Reference:  Choromanski et al., Rethinking Attention with Performers, 2021, Lemma 1 (SM^hyp+).
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """Hyperbolic features with N(0, I) directions."""
    return RandomFeatures(request, Hyperbolic())


SPEC = FeatureMapSpec(
    name="hyperbolic",
    summary="Positive features in +- pairs: exact at x = -y, never worse than `positive`.",
    reference="Choromanski et al. 2021, Lemma 1",
    build=build,
    columns=2,
)
