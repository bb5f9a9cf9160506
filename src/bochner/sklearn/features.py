"""From scikit-learn's parameters to features of rows: the edge where strings become parts."""

from __future__ import annotations

import copy
import numbers
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.distance import pdist
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.utils import check_random_state

from bochner.catalog import maps_of, spec
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.gram import BlockFeatures
from bochner.gram.rows import ColumnMoments, DistantRows, is_dask, take_rows
from bochner.kernels import (
    Gaussian,
    Kernel,
    Laplacian,
    Matern,
    RationalQuadratic,
    kernel_from_name,
)
from bochner.projections import Projection, projection_from_name
from bochner.request import Request

FIT_ROWS = 4_000
"""Rows, drawn at random, that data-aware maps are fitted to."""
MEDIAN_ROWS = 1_000
"""Rows, drawn at random, whose distances `gamma='median'` looks at."""
NAMES = {"rbf": "gaussian", "laplace": "laplacian"}
"""scikit-learn's names of kernels that are called otherwise here."""
FOURIER = ("rff", "orf", "fourier", "random-fourier", "rbfsampler", "rbf-sampler")
"""What others call features="trigonometric"."""


def build_features(
    X: Any,
    *,
    kernel: str | Kernel | sklearn_kernels.Kernel = "gaussian",
    features: str | FeatureMap = "trigonometric",
    projection: str | Projection | None = None,
    n_components: int = 256,
    gamma: str | float | NDArray[np.floating[Any]] = "scale",
    random_state: Any = None,
    dtype: Any = np.float32,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> BlockFeatures:
    """Features that suit the rows of X [n, d], dense or CSR and checked.

    Arguments:
        kernel: a name, a Kernel, or scikit-learn's RBF, Matern or RationalQuadratic, whose length_scale is
            then taken over (ARD too) instead of gamma's.
        features: a name of the catalogue, or a symmetric FeatureMap, taken as it is with its own kernel.
        projection: None takes the map's own default.
        n_components: m; where the map spends several columns at a time (trigonometric: 2), the next
            number that it can be made with.
        gamma: "scale", "median", a number, or [d] for automatic relevance determination:
            exp(-gamma |x-y|^2) for the Gaussian kernel, exp(-gamma |x-y|_1) for the Laplacian,
            lengthscale 1/sqrt(2 gamma) for all others.
        random_state: as everywhere in scikit-learn.
        sample_weight: [n]; weighs the centre and the variance of gamma="scale", so that weights count as
            repetitions.
    Numerics:   for a stationary kernel, dense float64 rows are centred before they become `dtype`.
    Raises:     ValueError or TypeError, naming the parameter.
    """
    random = check_random_state(random_state)
    chosen, lengthscales = _kernel(kernel, X.shape[1])
    if isinstance(features, FeatureMap):  # which estimates what it estimates
        if kernel != "gaussian" and chosen != features.kernel:
            raise ValueError(
                f"kernel={kernel!r} is not that of features={type(features).__name__}, which estimates"
                f" {features.kernel!r}; leave kernel out."
            )
        chosen = features.kernel
    centre = chosen.stationary and not sparse.issparse(X)
    by_scale = lengthscales is None and isinstance(gamma, str) and gamma == "scale"
    moments = ColumnMoments.over(X, sample_weight) if centre or by_scale else None
    if lengthscales is None:
        lengthscales = _lengthscales(X, chosen, gamma, random, moments)
    elif not (isinstance(gamma, str) and gamma == "scale"):
        raise ValueError(
            f"gamma={gamma!r} and the length_scale of kernel={kernel!r} say two things; leave gamma at"
            " 'scale' or give the kernel by name."
        )
    generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
    offset = moments.mean if centre and moments is not None else None
    if not (np.isfinite(lengthscales).all() and (offset is None or np.isfinite(offset).all())):
        raise ValueError(
            "the mean or variance of X is beyond float64; divide X by a power of ten first (squares of"
            " entries above 1e154 have no float64)."
        )
    feature_map = _made(X.shape[1], chosen, features, projection, n_components, generator)
    scale = 1.0 / lengthscales
    if isinstance(feature_map, UnfittedMap):
        picked = _fit_rows(X, sample_weight, random)
        if offset is not None:
            picked = picked - offset
        points = torch.from_numpy(np.ascontiguousarray(picked * scale))
        feature_map = feature_map.fit(points, points)
    return BlockFeatures(feature_map, inverse_lengthscales=scale, offset=offset, dtype=dtype)


def _made(
    dim: int,
    kernel: Kernel,
    features: str | FeatureMap,
    projection: str | Projection | None,
    n_components: int,
    generator: torch.Generator,
) -> FeatureMap:
    """The feature map by name, for a kernel that it supports; another's map is copied."""
    if isinstance(features, FeatureMap):
        if features.dim != dim:
            raise ValueError(f"features has dim={features.dim}; X has {dim} columns.")
        return copy.deepcopy(features)
    if not isinstance(features, str):
        raise TypeError(
            f"features must be a name of the catalogue or a FeatureMap, got {type(features).__name__}."
        )
    if features.lower() in FOURIER:
        raise ValueError(
            f"features={features!r}: random Fourier features are 'trigonometric' (cosines and sines) or"
            " 'cosine' (with random offsets), with projection='orthogonal' or 'iid'."
        )
    chosen = spec(features)
    if not chosen.supports(kernel):
        raise ValueError(
            f"kernel={kernel!r}: features={features!r} do not estimate it; these do:"
            f" {', '.join(maps_of(kernel)) or 'none'}."
        )
    coupling = chosen.default_projection
    if projection is not None:
        if not chosen.takes_projection:
            raise ValueError(
                f"projection={projection!r}: features={features!r} draw no directions; leave it None."
            )
        coupling = projection_from_name(projection)
    if not isinstance(n_components, numbers.Integral) or n_components < 1:
        raise ValueError(f"n_components={n_components!r} must be an integer of at least 1.")
    unit = chosen.smallest_budget(coupling)
    request = Request(
        dim=dim,
        num_features=-(-int(n_components) // unit) * unit,
        kernel=kernel,
        projection=coupling,
        generator=generator,
        dtype=torch.float64,
    )
    return chosen.build(request)


def _kernel(kernel: Any, dim: int) -> tuple[Kernel, NDArray[np.float64] | None]:
    """The kernel, and the lengthscales [d] that it brings, if any."""
    if isinstance(kernel, str):
        return kernel_from_name(NAMES.get(kernel, kernel)), None
    if isinstance(kernel, Kernel):
        return kernel, None
    known: dict[type, Any] = {  # Matern is a subclass of RBF there: the exact type decides
        sklearn_kernels.RBF: lambda k: Gaussian(),
        sklearn_kernels.Matern: lambda k: Gaussian() if np.isinf(k.nu) else Matern(k.nu),
        sklearn_kernels.RationalQuadratic: lambda k: RationalQuadratic(k.alpha),
    }
    if type(kernel) not in known:
        raise TypeError(
            f"kernel={kernel!r} must be a name, a bochner Kernel, or scikit-learn's RBF, Matern or"
            " RationalQuadratic, alone: a factor is outputscale and white noise is noise or alpha."
        )
    scales = np.asarray(kernel.length_scale, dtype=np.float64)
    if scales.size not in (1, dim):
        raise ValueError(f"kernel={kernel!r} has {scales.size} length scales; X has {dim} columns.")
    return known[type(kernel)](kernel), np.broadcast_to(scales.ravel(), (dim,)).copy()


def _lengthscales(
    X: Any, kernel: Kernel, gamma: Any, random: Any, moments: ColumnMoments | None
) -> NDArray[np.float64]:
    """Lengthscales [d] for a gamma."""
    dim, first = X.shape[1], isinstance(kernel, Laplacian)
    if isinstance(gamma, str):
        if gamma == "scale":
            assert moments is not None
            variance = moments.variance_of_entries()  # as scikit-learn's gamma="scale" takes it
            if first:
                found = dim * (variance or 1.0) ** 0.5
            else:
                found = (0.5 * dim * (variance or 1.0)) ** 0.5  # gamma = 1 / (d Var X)
            return np.full(dim, found)
        if gamma == "median":
            rows = _some_rows(X, MEDIAN_ROWS, random)
            distances = pdist(rows, "cityblock" if first else "euclidean")
            median = float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
            return np.full(dim, median)
        raise ValueError(f"gamma={gamma!r} must be 'scale', 'median', a positive number or [d].")
    if gamma is None:
        raise ValueError("gamma=None must be 'scale', 'median', a positive number or [d].")
    values = np.asarray(gamma, dtype=np.float64)
    if values.shape not in ((), (dim,)):
        raise ValueError(
            f"gamma has shape {list(values.shape)}; expected a number or [{dim}], one for each column."
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"gamma={gamma!r} must be positive and finite.")
    return np.broadcast_to(1.0 / values if first else (2.0 * values) ** -0.5, (dim,)).copy()


def _fit_rows(X: Any, sample_weight: Any, random: Any) -> NDArray[np.float64]:
    """Different rows for data-aware maps, sorted: a row twice tells them nothing new, and a weight of 2 is
    then a repetition."""
    rows = _picked(X.shape[0], FIT_ROWS, random)
    if sample_weight is not None and not is_dask(X) and not isinstance(X, DistantRows):
        rows = rows[np.asarray(sample_weight)[rows] > 0]
    return np.unique(take_rows(X, rows).astype(np.float64), axis=0)


def _some_rows(X: Any, count: int, random: Any) -> NDArray[np.float64]:
    """At most `count` rows without replacement, dense float64."""
    return take_rows(X, _picked(X.shape[0], count, random)).astype(np.float64)


def _picked(num_rows: int, count: int, random: Any) -> NDArray[np.intp]:
    """The numbers of at most `count` rows, sorted."""
    if num_rows <= count:
        return np.arange(num_rows)
    return np.sort(random.permutation(num_rows)[:count])
