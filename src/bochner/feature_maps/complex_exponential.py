"""Complex exponential features: one diagonal A, each coordinate real or imaginary as its means say.

    a_k = (E k_k^2 / E q_k^2)^(1/4), times i where E q_k E k_k > 0;   s = A q + A^-T k

A coordinate whose means have equal signs is treated as trigonometric features treat it, one with
opposite signs as positive features do.

Error:      relative variance (e^{s^H s} / 2 + Re e^{s^T s} / 2 - 1) / r, r = m/2, for iid directions;
            signed features, so that denominators of attention can vanish or turn negative.
Reference:  Choromanski et al., Hybrid Random Features, 2022; docs/theory.md 8.
Differs:    second moments of the data instead of the ratio of two centres, and a bound on tiny
            coordinates (`bochner.pair_matrices`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.pair_matrices import from_moments
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import Moments


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """The diagonal from means and second moments; complex columns whatever the signs turn out to be."""
    m = Moments.of(queries, keys, batch_shape=request.batch_shape, ridge=0.0)
    query_squares = m.query_covariance.diagonal(dim1=-2, dim2=-1) + m.query_mean.square()
    key_squares = m.key_covariance.diagonal(dim1=-2, dim2=-1) + m.key_mean.square()
    matrix = from_moments(m.query_mean, m.key_mean, query_squares, key_squares)
    matrix = matrix.to(torch.complex128)
    query_part, key_part = matrix.real, matrix.reciprocal().real
    offset = 0.5 * (query_part * m.query_mean - key_part * m.key_mean)
    return ComplexExponential(request, matrix, offset=offset)


def build(request: Request) -> FeatureMap:
    """An unfitted complex exponential map."""
    count = request.num_projections(2, "complex exponential features")
    return UnfittedMap("complex-exponential", request, fit, positive=False, num_projections=count)


SPEC = FeatureMapSpec(
    name="complex-exponential",
    summary="One complex diagonal matrix: trigonometric where means agree, positive where they oppose.",
    reference="Choromanski et al. 2022; theory 8",
    build=build,
    needs_data=True,
    positive=False,
    columns=2,
)
