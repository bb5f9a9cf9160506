"""Calibrated features: landmarks, and a small matrix fitted to attention by ridge least squares.

    phi_q(x) = P_q^T exp(U x + a),   phi_k(y) = P_k^T exp(W y + c),   phi_q . phi_k ~ exp(x.y)

U and W hold p landmark keys and queries (k-means in balanced coordinates). The p x p core matrix
P_q P_k^T minimises the squared error of exp(q_i.k_j)/Z_i over pairs of calibration data, with a ridge
chosen per head on held-out rows, and is cut to rank m: attention keeps m rows of state.

Error:      biased, not random, and signed. Where the data are like the calibration data it is several
            times smaller than that of any unbiased map; far from them nothing bounds it.
Reference:  docs/theory.md, 11. Calibrated features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.landmark_data import ExactPairs, Sequences
from bochner.landmark_fit import fit_landmarks
from bochner.landmarks import LandmarkFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import check_leading
from bochner.validation import check_count, check_finite, check_points, last_dimension

LANDMARKS = 256
"""Landmarks of either side up to m = 64: 4 m, at most this many, and never fewer than m."""


def fit_calibrated(
    request: Request,
    queries: Tensor,
    keys: Tensor,
    *,
    values: Tensor | None = None,
    causal: bool = False,
    window: int = 0,
    sinks: int = 0,
    landmarks: int | None = None,
) -> LandmarkFeatures:
    """Fit to sequences of queries and keys, for attention that may know some pairs exactly.

    Shapes:     queries [*b, *batch_shape, n, d], keys [*b, *batch_shape, n', d], values
                [*b, *batch_shape, n', dv]; every element of *b is one sequence. Grouped queries: either
                side may have G times the heads of batch_shape in its last head dimension (query head
                h belongs to h // G).
    Arguments:  values: let held-out errors be those of outputs instead of attention; causal: pairs i < j
                do not exist; window, sinks: as in `bochner.attention.ExactWindow`, pairs that will be
                exact and that the features need not serve; landmarks: p, 4 m (at most 256, at
                least m) unless given.
    Returns:    LandmarkFeatures, deterministic given the data and request.generator (k-means seeds).
    Numerics:   float64 throughout; features are stored in request.dtype.
    Cost:       per head O(N^2 p) for at most N = 3,072 tokens of calibration data (2,048 if causal, but
                for some 24 products of that size): under a second of one core at p = 256, a few if causal.
    Raises:     ValueError for wrong shapes, NaN, or fewer landmarks than features.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> q, k = (0.5 * torch.randn(4, 64, 8, generator=g) for _ in range(2))
        >>> phi = fit_calibrated(Request(dim=8, num_features=16, generator=g), q, k)
        >>> phi.num_features, phi.landmarks, phi.unbiased
        (16, 64, False)
    """
    count = _landmark_count(request, landmarks)
    for name, number in (("window", window), ("sinks", sinks)):
        check_count(name, number, at_least=0)
    given = {"queries": queries, "keys": keys} | ({} if values is None else {"values": values})
    for name, x in given.items():
        check_points(name, x, last_dimension(x) if name == "values" else request.dim)
        check_finite(name, x)
    exact = ExactPairs(causal, window, sinks)
    with torch.no_grad(), torch.autocast(device_type=queries.device.type, enabled=False):
        q, k, v, group = _by_head(given, request)
        data = Sequences.of(request.kernel, q, k, v, exact)
        return fit_landmarks(request, data, exact, count, group)


def _landmark_count(request: Request, landmarks: int | None) -> int:
    if landmarks is None:
        return max(request.num_features, min(4 * request.num_features, LANDMARKS))
    check_count("landmarks", landmarks)
    if landmarks < request.num_features:
        raise ValueError(
            f"landmarks={landmarks} must be at least num_features={request.num_features}: features of"
            " rank m come from m landmarks or more."
        )
    return landmarks


def _by_head(
    given: dict[str, Tensor], request: Request
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Queries, keys and values as [heads, sequences, n, d], and how many heads share keys: a group of
    them is so many sequences in turn."""
    batch = request.batch_shape
    groups = {name: _group(name, x, batch) for name, x in given.items()}
    group = max(groups.values())
    found = {}
    for name, x in given.items():
        if groups[name] not in (1, group):
            raise ValueError(f"queries and keys have {groups} heads a map; expected 1 or {group}.")
        if batch:
            x = x.unflatten(-3, (batch[-1], groups[name]))
            x = x.expand(*x.shape[:-3], group, *x.shape[-2:])
            x = x.movedim(-3, x.ndim - 3 - len(batch))  # [*b, group, *batch, n, d]
        lead = x.shape[: x.ndim - 2 - len(batch)]
        x = x.reshape(math.prod(lead), math.prod(batch), *x.shape[-2:])
        found[name] = x.transpose(0, 1)
    counts = {name: x.shape[1] for name, x in found.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"queries, keys and values hold {counts} sequences; expected one number.")
    lengths = {name: x.shape[2] for name, x in found.items() if name != "queries"}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"keys and values have {lengths} positions; expected one number.")
    return found["queries"], found["keys"], found.get("values"), group


def _group(name: str, x: Tensor, batch: tuple[int, ...]) -> int:
    """Heads of x that share one map."""
    if not batch:
        return 1
    have = x.shape[-3] if x.ndim > 2 else 0
    if have % batch[-1] or not have:
        check_leading(name, x, batch)
    group = have // batch[-1]
    check_leading(name, x[..., : batch[-1], :, :], batch)
    return group


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """For attention that is neither causal nor exact anywhere."""
    return fit_calibrated(request, queries, keys)


def build(request: Request) -> FeatureMap:
    """An unfitted calibrated map."""
    return UnfittedMap(
        "calibrated", request, fit, positive=False, num_projections=0, unbiased=False
    )


SPEC = FeatureMapSpec(
    name="calibrated",
    summary="Landmarks with a core matrix fitted by least squares; biased, signed, nothing random.",
    reference="theory, 11. Calibrated features",
    build=build,
    needs_data=True,
    positive=False,
    random=False,
)
