"""Positive random features (Performer's FAVOR+).

    phi(x) = exp(omega.x - |x|^2/2) / sqrt(r)

Error:      relative variance (e^{|x+y|^2} - 1) / r for iid directions; of little use above
            |x+y|^2 ~ log r. On real pretrained heads attention with these features is no better than
            averaging the values (see the demo).
Reference:  Choromanski et al., Rethinking Attention with Performers, 2021, Lemma 1.
Differs:    no eps, no maximum inside the features, QR signs corrected.
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Positive
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """Positive features with N(0, I) directions."""
    return RandomFeatures(request, Positive())


SPEC = FeatureMapSpec(
    name="positive",
    summary="Performer's FAVOR+: positive, unbiased, useful only for small |x+y|.",
    reference="Choromanski et al. 2021, Lemma 1",
    build=build,
)
