"""Positive features in centred and balanced coordinates, without any change of their spread.

    phi(q) = exp(w.u - |u|^2/2) / sqrt(r),   u = G (q - E q),  keys with G^-T (k - E k),   w ~ N(0, I)

with G the geometric mean of M1^-1 and M2, the covariances of queries and keys: of all real matrices, the
one of least E|G q + G^-T k|^2. It is ADERF at rho = 1, and the dense form of Hybrid Random Features'
A-matrix.

Error:      relative variance (e^{|G q + G^-T k|^2} - 1) / r for iid directions.
Reference:  Choromanski et al., Hybrid Random Features, 2022; Likhosherstov et al., FAVOR#, 2023 (ADERF);
            docs/theory.md 4, 5 and 8.
Differs:    centring; the published matrices are diagonal, from the centres of clusters.
"""

from __future__ import annotations

from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.nonlinearities import Positive
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import Moments
from bochner.transformed import TransformedFeatures
from bochner.transforms import Centring, Composed, LinearPair


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre, balance; the directions stay N(0, I)."""
    moments = Moments.of(queries, keys, batch_shape=request.batch_shape)
    transform = Composed(Centring.fit(moments), LinearPair.balancing(moments))
    inner = RandomFeatures(request, Positive())
    return TransformedFeatures(inner, transform).to(moments.query_mean.device)


def build(request: Request) -> FeatureMap:
    """An unfitted map in balanced coordinates."""
    return UnfittedMap("balanced-exponential", request, fit)


SPEC = FeatureMapSpec(
    name="balanced-exponential",
    summary="Positive features after centring and balancing queries against keys: ADERF, not spread.",
    reference="Choromanski et al. 2022; Likhosherstov et al. 2023 (ADERF at rho = 1); theory 5, 8",
    build=build,
    needs_data=True,
)
