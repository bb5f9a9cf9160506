"""The linear pair that balances queries against keys, then one optimal spread (FAVOR#, ADERF).

    exp(q.k) = exp((G q).(G^-T k)),   G^T G = M1^{-1/2} (M1^{1/2} M2 M1^{1/2})^{1/2} M1^{-1/2}

with M1, M2 the second moments of centred queries and keys; the proposal is FAVOR++'s isotropic one.

Error:      relative variance (c(rho)^d e^{rho |G q + G^-T k|^2} - 1) / r.
Reference:  Likhosherstov et al., FAVOR#, 2023 (ADERF); Hybrid Random Features' A-matrix is its G at
            rho = 1 (docs/theory.md 5); mean shift: 4.
Differs:    the published form does not centre.
"""

from __future__ import annotations

from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.feature_maps.gerf import isotropic_proposal
from bochner.fitting import UnfittedMap, positive_features
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import Moments
from bochner.transforms import Centring, Composed, LinearPair


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre, balance, then A* at phi = E|G q + G^-T k|^2 = 2 tr(sigma)."""
    moments = Moments.of(queries, keys, batch_shape=request.batch_shape)
    pair = LinearPair.balancing(moments)
    balanced = pair.matrix @ moments.query_covariance @ pair.matrix.transpose(-1, -2)
    phi = 2.0 * balanced.diagonal(dim1=-2, dim2=-1).sum(-1)
    transform = Composed(Centring.fit(moments), pair)
    return positive_features(request, isotropic_proposal(phi, request.dim), transform)


def build(request: Request) -> FeatureMap:
    """An unfitted ADERF map."""
    return UnfittedMap("aderf", request, fit)


SPEC = FeatureMapSpec(
    name="aderf",
    summary="FAVOR#: queries balanced against keys by a linear pair, then FAVOR++'s spread.",
    reference="Likhosherstov et al. 2023 (ADERF); theory 4, 5",
    build=build,
    needs_data=True,
)
