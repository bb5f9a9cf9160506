"""Nystroem features of the centres of k-means.

    phi(x) = Lambda^{-1/2} V^T K(Z, x),   Z the centres of clusters of the data

Error:      biased, nothing random after the fit. Kernels of bounded slope have an error of the order of the
            squared distance between points and their centres, which is what k-means minimises.
Cost:       O(n m d) for each of 12 steps, n at most 12,288.
Reference:  Zhang, Tsang and Kwok, Improved Nystroem Low-Rank Approximation and Error Analysis, 2008.
"""

from __future__ import annotations

from functools import partial

from bochner.feature_map import FeatureMap
from bochner.feature_maps.nystroem import TESTED
from bochner.fitting import UnfittedMap
from bochner.nystroem import fit_nystroem
from bochner.nystroem_landmarks import KMeansLandmarks
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """An unfitted map with centres of k-means as landmarks."""
    fit = partial(fit_nystroem, rule=KMeansLandmarks())
    return UnfittedMap(
        "nystroem-k-means", request, fit, positive=False, num_projections=0, unbiased=False
    )


SPEC = FeatureMapSpec(
    name="nystroem-k-means",
    summary="Nystroem features with centres of k-means as landmarks; biased, for any kernel.",
    reference="Zhang, Tsang and Kwok 2008",
    build=build,
    needs_data=True,
    positive=False,
    random=False,
    projected=False,
    kernels=TESTED,
)
