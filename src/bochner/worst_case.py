"""The error of a feature map over the angles between two points of one norm, and its worst case.

For |x| = |y| = r at an angle theta, with m projections and n signs, relative errors are

    trigonometric   sqrt(2/m) sinh(2 r^2 sin^2(theta/2))                         largest at pi
    hyperbolic      sqrt(2/m) sinh(2 r^2 cos^2(theta/2))                         largest at 0
    angular hybrid  eps^2 = A(lam) hyp^2 + A(1 - lam) trig^2,   A(l) = l (l + (1 - l)/n),   lam = theta/pi

Both bases are at worst W(r) = sqrt(1/(2m)) e^{2r^2} (1 - e^{-4r^2}). The hybrid has no error at either pole,
and, for every r and n (`angular_bound`),

    eps <= W(r) (2 pi r)^{-1/2} sqrt(1 - 1/pi + 1/(n pi)).

For large r its worst case is W sqrt(e^{-1/2} / (pi sqrt2 r)) near theta = 1/(sqrt2 r) and pi minus that
for n = 1, and W e^{-1/2} / (pi r) near 1/r for n = inf.

Shapes:     the closed forms take numbers or tensors that broadcast, and give float64 tensors.
Reference:  docs/theory.md 10; Choromanski et al., Hybrid Random Features, 2022, sections 3 and 5.1.
Differs:    the bound has r^{-1/2} where the decay of n = inf, 1/r, would be false for n = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.validation import check_count

_GRID = 257  # angles of the first look; a peak of the hybrids is about 1/r wide
_REFINED = 33  # angles between the neighbours of the best one, each time 16 times closer
_ROUNDS = 5


@dataclass(frozen=True)
class WorstCase:
    """The largest relative error over all angles, and an angle that has it (radians)."""

    error: float
    angle: float


# -- of any map -------------------------------------------------------------------------------------
def angle_sweep(feature_map: FeatureMap, radius: float, angles: Tensor) -> Tensor:
    """sqrt(relative variance) of a map for two points of norm `radius`, by their angle.

    The points lie in the plane of the first two coordinates, which matters only to maps that are not
    rotation invariant (those fitted to data).

    Shapes:     angles [k] -> [*batch, k], float64; inf where the variance leaves float64. A float32 pi,
                which is 9e-8 above pi, counts as pi.
    Raises:     ValueError if the map has fewer than two dimensions or no closed form, or for a radius
                or angles out of range.
    Cost:       one call of `relative_variance` for k pairs.
    Example:
        >>> import bochner
        >>> phi = bochner.make("hyperbolic", dim=8, num_features=256, projection="iid")
        >>> [round(float(e), 4) for e in angle_sweep(phi, 1.0, torch.tensor([0.0, 1.5708, 3.14159]))]
        [0.4534, 0.1469, 0.0]
    """
    if feature_map.dim < 2:
        raise ValueError(f"feature_map has dim={feature_map.dim}; an angle needs at least 2.")
    radius = _checked_radius(radius)
    angles = torch.as_tensor(angles, dtype=torch.float64)
    largest = float(torch.tensor(math.pi, dtype=torch.float32))
    if angles.ndim != 1 or not bool(((angles >= 0) & (angles <= largest)).all()):
        raise ValueError(
            f"angles has shape {list(angles.shape)}; expected [k] with values from 0 to pi (radians)."
        )
    angles = angles.clamp_max(math.pi)
    x = torch.zeros(1, feature_map.dim, dtype=torch.float64)
    x[0, 0] = radius
    y = torch.zeros(angles.numel(), feature_map.dim, dtype=torch.float64)
    y[:, 0], y[:, 1] = radius * torch.cos(angles), radius * torch.sin(angles)
    device = next((t.device for t in feature_map.draws()), x.device)
    variance = feature_map.relative_variance(x.to(device), y.to(device))
    if variance is None:
        raise ValueError(
            f"{type(feature_map).__name__} with {feature_map.num_features} features has no closed-form"
            " variance (relative_variance gives None): measure its error over redraws instead, or make"
            " it with iid projections."
        )
    return variance.squeeze(-2).sqrt()


def worst_case(feature_map: FeatureMap, radius: float) -> WorstCase:
    """The largest relative error of a map over all angles between two points of norm `radius`.

    257 angles, then five rounds of 33 between the neighbours of the best one: exact to about 1e-12,
    relatively, for sweeps whose peaks are wider than pi/256. Over a batch of maps, the worst.

    Raises:     ValueError, as `angle_sweep`.
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=8, num_features=256, projection="iid")
        >>> worst = worst_case(phi, 1.0)
        >>> round(worst.error, 4), round(worst.angle, 4)
        (0.4534, 3.1416)
    """
    low, high = 0.0, math.pi
    error, angle = -1.0, 0.0
    for count in (_GRID, *([_REFINED] * _ROUNDS)):
        angles = torch.linspace(low, high, count, dtype=torch.float64).clamp(0.0, math.pi)
        found = angle_sweep(feature_map, radius, angles).reshape(-1, count).amax(0)
        best = int(found.argmax())
        if float(found[best]) > error:
            error, angle = float(found[best]), float(angles[best])
        low, high = float(angles[max(best - 1, 0)]), float(angles[min(best + 1, count - 1)])
    return WorstCase(error, angle)


# -- closed forms -----------------------------------------------------------------------------------
def trigonometric_error(radius: Tensor | float, angle: Tensor | float, m: int) -> Tensor:
    """Relative error of m iid trigonometric projections: zero at theta = 0.

    Example:
        >>> round(float(trigonometric_error(1.0, math.pi / 2, 128)), 4)
        0.1469
    """
    check_count("m", m)
    half = 2.0 * _squared(radius) * torch.sin(0.5 * _angle(angle)).square()  # |x-y|^2 / 2
    return math.sqrt(2.0 / m) * torch.sinh(half)


def hyperbolic_error(radius: Tensor | float, angle: Tensor | float, m: int) -> Tensor:
    """Relative error of m iid hyperbolic projections: zero at theta = pi.

    Example:
        >>> round(float(hyperbolic_error(1.0, math.pi / 2, 128)), 4)
        0.1469
    """
    return trigonometric_error(radius, math.pi - _angle(angle), m)


def largest_base_error(radius: Tensor | float, m: int) -> Tensor:
    """W(r) = sqrt(1/(2m)) e^{2r^2} (1 - e^{-4r^2}), the worst case of both bases.

    Example:
        >>> round(float(largest_base_error(1.0, 128)), 4)
        0.4534
    """
    return trigonometric_error(radius, math.pi, m)


def angular_error(
    radius: Tensor | float, angle: Tensor | float, m: int, num_signs: float
) -> Tensor:
    """Relative error of the angular hybrid: m base projections, num_signs iid signs (math.inf is allowed).

    The bases may share their projections or not: for points of one norm their covariance is zero.

    Example:
        >>> [round(float(angular_error(1.0, t * math.pi, 10, 1)), 4) for t in (0, 0.25, 0.5, 1)]
        [0.0, 0.6071, 0.5256, 0.0]
    """
    n = _signs(num_signs)
    theta = _angle(angle)
    lam = theta / math.pi
    from_hyperbolic = lam * (lam + (1.0 - lam) / n) * hyperbolic_error(radius, theta, m).square()
    from_trig = (1.0 - lam) * (1.0 - lam + lam / n) * trigonometric_error(radius, theta, m).square()
    return torch.sqrt(from_hyperbolic + from_trig)


def polar_limit(radius: Tensor | float, m: int, num_signs: float) -> Tensor:
    """lim eps / sqrt(theta) at 0, and lim eps / sqrt(pi - theta) at pi, of the angular hybrid.

        sqrt(1 / (2 pi m n)) e^{2r^2} (1 - e^{-4r^2})

    so that near the poles only the product of m and n counts.

    Example:
        >>> limit, near = polar_limit(1.5, 16, 8), angular_error(1.5, 1e-8, 16, 8) / 1e-4
        >>> round(float(limit), 4), round(float(near), 4)
        (3.1738, 3.1738)
    """
    return largest_base_error(radius, m) / math.sqrt(math.pi * _signs(num_signs))


def angular_bound(radius: Tensor | float, m: int, num_signs: float) -> Tensor:
    """W(r) (2 pi r)^{-1/2} sqrt(1 - 1/pi + 1/(n pi)), which the angular hybrid exceeds at no angle.

    Proof:      eps^2 and the square of the bound are both affine in 1/n, so n = 1 and n = inf suffice;
                swapping theta with pi - theta, so does theta <= pi/2. Below r = 0.1 the bound exceeds W.
                From r = 1.7 on, sinh(a)/sinh(b) <= e^{a-b} for a <= b, sin(theta/2) >= sqrt2 theta/pi and
                cos^2(theta/2) >= 1/2 give, with t = theta/pi,
                    n = 1:    eps^2/W^2 <= t e^{-8r^2t^2} + e^{-2r^2}   <= e^{-1/2}/(4r) + e^{-2r^2}
                    n = inf:  eps^2/W^2 <= t^2 e^{-8r^2t^2} + e^{-2r^2} <= 1/(8 e r^2) + e^{-2r^2}
                which are below 1/(2 pi r) and (1 - 1/pi)/(2 pi r). Between, every factor of eps/W is
                monotone in r and in theta, and a cover by 400 x 400 cells leaves a tenth to spare (the
                cover is a test). The last step is thus by computer, in float64.

    Example:
        >>> round(float(angular_bound(1.0, 128, 1) / largest_base_error(1.0, 128)), 4)
        0.3989
    """
    share = 1.0 - 1.0 / math.pi + 1.0 / (math.pi * _signs(num_signs))
    r = torch.as_tensor(radius, dtype=torch.float64)
    return largest_base_error(r, m) * torch.sqrt(share / (2.0 * math.pi * r))


def _checked_radius(radius: float) -> float:
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius={radius!r} must be positive and finite.")
    return float(radius)


def _signs(num_signs: float) -> float:
    if not num_signs >= 1:
        raise ValueError(f"num_signs={num_signs!r} must be at least 1 (math.inf for the limit).")
    return float(num_signs)


def _squared(radius: Tensor | float) -> Tensor:
    return torch.as_tensor(radius, dtype=torch.float64).square()


def _angle(angle: Tensor | float) -> Tensor:
    return torch.as_tensor(angle, dtype=torch.float64)
