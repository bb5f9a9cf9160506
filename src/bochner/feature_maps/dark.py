"""DARKFormer's trained kernel: positive features of exp(q^T Sigma k), Sigma = M^T M.

    phi(x) = exp(w.Mx - |Mx|^2/2) / sqrt(r),   w ~ N(0, I)       (eq. 3: omega = M^T w ~ N(0, Sigma))

M [*batch, rank, d] is an nn.Parameter, one per head. It changes the *function*: only finetuning makes
up for that. Initialised by the identity (exact softmax kernel), by whitening (another kernel), or by
balancing: exact softmax kernel in balanced coordinates, where M = I starts and learns.

Error:      unbiased for the trained kernel: (e^{|M(x+y)|^2} - 1) / r for iid directions.
Raises:     ValueError for a rank outside 1..d, NotFittedError if a start that needs data has none.
Reference:  Farzam et al., DARKFormer, 2026, eq. (3) and Proposition 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bochner.balanced import balanced_coordinates
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.nonlinearities import Positive
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import Moments
from bochner.transformed import TransformedFeatures
from bochner.transforms import SharedLinear, Transform

Start = Callable[[Request, int, Tensor | None, Tensor | None], tuple[Transform | None, Tensor]]
"""(request, rank, queries, keys) -> exact coordinates to start from (or None) and M [*b, rank, d]."""


def identity_start(
    request: Request, rank: int, queries: Tensor | None, keys: Tensor | None
) -> tuple[Transform | None, Tensor]:
    """M = the first `rank` rows of I; the softmax kernel itself at full rank."""
    eye = torch.eye(rank, request.dim, dtype=request.dtype)
    return None, eye.expand(*request.batch_shape, rank, request.dim)


def whitening_start(
    request: Request, rank: int, queries: Tensor | None, keys: Tensor | None
) -> tuple[Transform | None, Tensor]:
    """M = the pooled covariance's inverse root on its top directions."""
    assert queries is not None
    assert keys is not None
    moments = Moments.of(queries, keys, batch_shape=request.batch_shape)
    return None, SharedLinear.whitening(moments, rank).to(request.dtype)


def balancing_start(
    request: Request, rank: int, queries: Tensor | None, keys: Tensor | None
) -> tuple[Transform | None, Tensor]:
    """Exact centred, balanced coordinates first; M picks the `rank` largest of them."""
    assert queries is not None
    assert keys is not None
    view = balanced_coordinates(queries, keys, request.batch_shape)
    top = view.spread.topk(rank, dim=-1).indices
    rows = torch.nn.functional.one_hot(top, request.dim).to(request.dtype)
    return view.transform, rows


def trained_kernel(
    request: Request,
    *,
    rank: int | None = None,
    start: Start = identity_start,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
) -> FeatureMap:
    """Positive features of the trained kernel.

    Arguments:  rank: rows of M, dim unless given; start: identity_start, whitening_start or
                balancing_start; queries, keys: calibration data for the last two.
    Raises:     ValueError for a rank outside 1..dim or for missing calibration data.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = trained_kernel(Request(dim=4, num_features=16, generator=g), rank=2)
        >>> [tuple(p.shape) for p in phi.parameters()]
        [(2, 4)]
    """
    rank = request.dim if rank is None else rank
    if not 1 <= rank <= request.dim:
        raise ValueError(f"rank={rank} must lie between 1 and dim={request.dim}.")
    if start is not identity_start and (queries is None or keys is None):
        raise ValueError(f"{start.__name__} needs calibration data: pass queries= and keys=.")
    coordinates, matrix = start(request, rank, queries, keys)
    inner = RandomFeatures(request.with_dim(rank), Positive())
    trained = TransformedFeatures(inner, SharedLinear(matrix))
    return trained if coordinates is None else TransformedFeatures(trained, coordinates)


def fit(request: Request, queries: Tensor, keys: Tensor, *, start: Start) -> FeatureMap:
    """The trained kernel, started from data at full rank."""
    return trained_kernel(request, start=start, queries=queries, keys=keys)


def build(request: Request) -> FeatureMap:
    """An unfitted map that starts balanced: the softmax kernel in its best coordinates."""
    return UnfittedMap("dark", request, partial(fit, start=balancing_start))


SPEC = FeatureMapSpec(
    name="dark",
    summary="DARKFormer's trained kernel exp(q^T Sigma k); starts as the balanced softmax kernel.",
    reference="Farzam et al. 2026, eq. (3)",
    build=build,
    needs_data=True,
    changes_kernel=True,
)
