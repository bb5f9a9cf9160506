"""Local random features: the Maclaurin series about the centre of the data; signed.

    exp(u.w) = sum_p (u.w)^p / p!,   u = x - c,  w = y - c,  c the mean of all calibration points

Low degrees exact by monomials, higher ones by products of Rademacher projections, the rest of the series
by columns of a random degree: how many columns go where is optimised on the calibration points.

Error:      docs/theory.md, Local features; tiny within about a lengthscale of the centre and in few
            dimensions, useless far away: exp(2 sqrt(3) |u| |w|) bounds the relative second moment.
Reference:  Wacker and Filippone, Local Random Feature Approximations of the Gaussian Kernel, 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.degree_plan import DegreePlan
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.maclaurin import LocalFeatures
from bochner.projections import IID
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import pooled

_REFERENCES, _ELEMENTS = 64, 8
"""Points of either side and batch elements, evenly spaced, whose pairs the plan is optimised on."""


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre at the mean of all points of a batch element; one plan for all elements."""
    x = pooled("queries", queries, request.batch_shape).double()
    y = pooled("keys", keys, request.batch_shape).double()
    centre = torch.cat((x, y), dim=-2).mean(-2)
    u, w = (_some(points - centre.unsqueeze(-2)) for points in (x, y))
    plan = DegreePlan.optimal(u, w, request.num_features)
    return LocalFeatures(request, centre.expand(*request.batch_shape, request.dim), plan)


def _some(points: Tensor) -> Tensor:
    """[*batch, n, d] -> at most [8, 64, d], evenly spaced: a function of the data alone."""
    points = points.reshape(-1, *points.shape[-2:])
    for dim, most in ((0, _ELEMENTS), (1, _REFERENCES)):
        size = points.shape[dim]
        kept = torch.linspace(0, size - 1, min(size, most), device=points.device).round().long()
        points = points.index_select(dim, kept)
    return points


def build(request: Request) -> FeatureMap:
    """An unfitted local map."""
    return UnfittedMap("local", request, fit, positive=False, unbiased=True)


SPEC = FeatureMapSpec(
    name="local",
    summary="Maclaurin series about the data's centre, low degrees exact: for points close together; signed.",
    reference="Wacker and Filippone 2022",
    build=build,
    needs_data=True,
    positive=False,
    projected=False,
    default_projection=IID(),
)
