"""Hybrid random features: estimators mixed by weights that know where each is accurate.

    K^ = lambda^_1 K^_1 + ... + lambda^_p K^_p + (1 - sum lambda^_k) K^_{p+1}

Unbiased whatever the weights estimate, because the weights are drawn independently of the K^_k (products
refuse anything else) and add up to 1. All are expressions of the algebra, so that their error is closed
form wherever their parts' is (docs/theory.md 9).

Reference:  Choromanski et al., Hybrid Random Features, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bochner.algebra import Composite, Product, Sum
from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic, Nonlinearity, Trigonometric
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.switches import (
    BucketedSignSwitch,
    Complement,
    GaussianSwitch,
    SignSwitch,
    Switch,
)


def bipolar(weight: Switch, first: FeatureMap, second: FeatureMap) -> FeatureMap:
    """weight * first + (1 - weight) * second.

    Error:      MSE = E[lam^2] MSE_1 + E[(1-lam)^2] MSE_2 + 2 E[lam (1-lam)] Cov_12.
    Shapes:     num_features = lam.num_features * first's + that of 1 - lam * second's.
    Raises:     ValueError if the weight shares draws with either: that would bias the estimate.
    Reference:  Choromanski et al., 2022 (bipolar estimators).
    Example:
        >>> import torch
        >>> from bochner.nonlinearities import Positive
        >>> g = torch.Generator().manual_seed(0)
        >>> request = Request(dim=2, num_features=8, generator=g)
        >>> far, near = RandomFeatures(request, Positive()), RandomFeatures(request, Trigonometric())
        >>> bipolar(SignSwitch.angular(request, num_signs=3), far, near).num_features
        64
    """
    return _of_one_kernel(Sum(weight * first, (1.0 - weight) * second), (first, second))


def mixture(weights: Sequence[Switch], maps: Sequence[FeatureMap], base: FeatureMap) -> FeatureMap:
    """sum_k weights[k] * maps[k] + (1 - sum_k weights[k]) * base.

    Error:      sum over k, l of E[lam_k lam_l] Cov(K_k, K_l), K_0 = base with lam_0 = 1 - sum.
    Raises:     ValueError for lists of unlike length, none at all, or weights that share draws with
                what they weigh.
    """
    if not weights or len(weights) != len(maps):
        raise ValueError(
            f"got {len(weights)} weights and {len(maps)} maps; give one weight for each map, and"
            " at least one."
        )
    parts = [w * m for w, m in zip(weights, maps, strict=True)]
    return _of_one_kernel(Sum(*parts, Complement(*weights) * base), (*maps, base))


def partition(weights: Sequence[Switch], maps: Sequence[FeatureMap]) -> FeatureMap:
    """sum_k weights[k] * maps[k], for weights that add up to 1 by themselves (clusters)."""
    if not weights or len(weights) != len(maps):
        raise ValueError(f"got {len(weights)} weights and {len(maps)} maps; give one for each.")
    parts = [Product(w, m) for w, m in zip(weights, maps, strict=True)]
    return _of_one_kernel(parts[0] if len(parts) == 1 else Sum(*parts), maps)


def _of_one_kernel(hybrid: Composite, maps: Sequence[FeatureMap]) -> FeatureMap:
    """The hybrid, which estimates the kernel of its maps since its weights add up to 1."""
    hybrid.estimates_kernel = not any(part.changes_kernel for part in maps)
    return hybrid


def switched(
    request: Request,
    weight: Switch,
    *,
    first: Nonlinearity | None = None,
    second: Nonlinearity | None = None,
    shared: bool = False,
) -> FeatureMap:
    """A bipolar hybrid of two random-feature maps with equally many projections, filling a budget.

    Arguments:  request.num_features: the columns of the whole; first: the nonlinearity weighed by
                `weight`, Hyperbolic unless given; second: by 1 - weight, Trigonometric unless given;
                shared: one draw of projections for both. For independent directions that never adds
                error and halves the draws; coupled ones then have no closed form.
    Raises:     ValueError if the budget is no multiple of the columns that a projection spends.
    """
    first = Hyperbolic() if first is None else first
    second = Trigonometric() if second is None else second
    rest = 1.0 - weight
    columns = weight.num_features * first.columns + rest.num_features * second.columns
    count = request.num_projections(columns, f"this hybrid of {first!r} and {second!r}")
    far = RandomFeatures(replace(request, num_features=count * first.columns), first)
    near = RandomFeatures(
        replace(request, num_features=count * second.columns),
        second,
        directions=far.directions if shared else None,
    )
    return bipolar(weight, far, near)


def angular(request: Request, *, num_signs: int = 1, shared: bool = False) -> FeatureMap:
    """theta/pi of hyperbolic features, the rest of trigonometric ones: exact at x = y and x = -y.

    Shapes:     num_features = 4 m (num_signs + 1) for m projections on either side.
    Numerics:   one sign is laid out in buckets, where the part that is not meant has the weight 0. With
                several, the dense columns subtract e^{r^2} from itself: at x = -y they leave errors of
                about 1e-7 e^{2 r^2} in float32. `switched` with a BucketedSignSwitch does not, at
                8 m num_signs columns.
    Error:      on |x| = |y| = r at most W(r) (2 pi r)^-1/2 sqrt(1 - 1/pi + 1/(num_signs pi)),
                W(r) = sqrt(1/2m) e^{2 r^2} (1 - e^{-4 r^2}) (docs/theory.md 10).
    Reference:  Choromanski et al., 2022 (angular hybrids).
    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = angular(Request(dim=2, num_features=32, generator=g), num_signs=3)
        >>> x = torch.tensor([[0.6, 0.8]])
        >>> [round(float(v), 8) for v in (phi.relative_variance(x, x), phi.relative_variance(x, -x))]
        [0.0, 0.0]
    """
    layout = BucketedSignSwitch if num_signs == 1 else SignSwitch  # equally long for one sign
    return switched(request, layout.angular(request, num_signs), shared=shared)


def gaussian(
    request: Request,
    lengthscale: float = 1.0,
    *,
    num_frequencies: int = 1,
    shared: bool = False,
) -> FeatureMap:
    """exp(-|x-y|^2 / (2 lengthscale^2)) of trigonometric features, the rest of hyperbolic ones.

    Shapes:     num_features = 2 m (4 num_frequencies + 1) for m projections on either side.
    Error:      exact at x = y only; the estimated weight can leave [0, 1].
    Reference:  Choromanski et al., 2022 (Gaussian lambda-coefficients).
    """
    weight = GaussianSwitch(request, lengthscale, num_frequencies=num_frequencies)
    return switched(request, weight, first=Trigonometric(), second=Hyperbolic(), shared=shared)
