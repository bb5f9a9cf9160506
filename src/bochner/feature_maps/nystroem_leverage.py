"""Nystroem features of points drawn by approximate ridge leverage scores.

    l_i = [K (K + lambda I)^{-1}]_ii:   points that others do not predict are drawn more often

Error:      biased, nothing random after the fit. The norm of the error is of the order of lambda with about
            d(lambda) log d(lambda) landmarks, d(lambda) = sum_i l_i; uniform ones need n max_i l_i of them:
            ahead where clusters are small or many points are alike.
Cost:       O(n m^2) once, recursively.
Reference:  Musco and Musco 2017, Algorithm 3.
"""

from __future__ import annotations

from functools import partial

from bochner.feature_map import FeatureMap
from bochner.feature_maps.nystroem import TESTED
from bochner.fitting import UnfittedMap
from bochner.nystroem import fit_nystroem
from bochner.nystroem_landmarks import LeverageLandmarks
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def build(request: Request) -> FeatureMap:
    """An unfitted map with landmarks of most leverage."""
    fit = partial(fit_nystroem, rule=LeverageLandmarks())
    return UnfittedMap(
        "nystroem-leverage", request, fit, positive=False, num_projections=0, unbiased=False
    )


SPEC = FeatureMapSpec(
    name="nystroem-leverage",
    summary="Nystroem features with landmarks drawn by ridge leverage scores; biased, for any kernel.",
    reference="Musco and Musco 2017, Algorithm 3",
    build=build,
    needs_data=True,
    positive=False,
    random=False,
    projected=False,
    kernels=TESTED,
)
