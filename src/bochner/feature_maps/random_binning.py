"""Random binning features: one signed, hashed column for every random grid.

    phi_r(x) = sigma_r(c) prod_l f(u_l - c_l) e_{h_r(c)} / sqrt(R),   u = x/w_r - o_r,  c = round(u)

Kernels:    f the indicator, widths Gamma(2): exp(-|x-y|_1); f a B-spline: `SplineBinning`, smooth.
Error:      unbiased; relative variance (Laplacian) ((1/K - 1) B + (1/K - 1)/K) / m, B = 16 columns a grid.
            At m columns, B = 1 has the least: `bochner.binning.RandomBinning(request, buckets=1)`, dense.
            A larger B is for sparse rows (`sparse_features`), whose cost is R = m/B.
Reference:  Rahimi and Recht 2007, section 4; Kapralov et al. 2020.
"""

from __future__ import annotations

from bochner.binning import RandomBinning
from bochner.feature_map import FeatureMap
from bochner.kernels import Laplacian, SplineBinning
from bochner.request import Request
from bochner.specification import FeatureMapSpec

BUCKETS = 16
"""Columns of one grid."""


def build(request: Request) -> FeatureMap:
    """Random binning with 16 columns a grid."""
    return RandomBinning(request, buckets=BUCKETS)


SPEC = FeatureMapSpec(
    name="random-binning",
    summary="Hashed cells of random grids, sparse: the Laplacian kernel, or a smooth one by spline windows.",
    reference="Rahimi and Recht 2007, section 4; Kapralov et al. 2020",
    build=build,
    positive=False,
    columns=BUCKETS,
    projected=False,
    kernels=(Laplacian(), SplineBinning()),
)
