"""Worst case over angles: closed forms in naive float64, tables, limits, and the bound with its proof."""

import math

import numpy as np
import pytest
import torch

from bochner import Constant, FeatureMap, make
from bochner.feature_maps.gerf import isotropic_proposal
from bochner.nonlinearities import Positive
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.worst_case import (
    angle_sweep,
    angular_bound,
    angular_error,
    hyperbolic_error,
    largest_base_error,
    polar_limit,
    trigonometric_error,
    worst_case,
)

INF = math.inf
SIGNS = (1, 2, 3, 4, 8, 16, 64, 1_000, 1_000_000, INF)
RADII = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)


def naive_angular(r: float, theta: float, m: int, n: float) -> float:
    """Relative error of the angular hybrid from exponentials, as the theorem prints it."""
    xy = r * r * math.cos(theta)
    sm, lam = math.exp(xy), theta / math.pi
    plus, minus = 2 * r * r + 2 * xy, 2 * r * r - 2 * xy  # |x+y|^2, |x-y|^2
    hyp = math.exp(plus) * sm**2 * (1 - math.exp(-plus)) ** 2 / (2 * m)
    trig = math.exp(plus) * sm**-2 * (1 - math.exp(-minus)) ** 2 / (2 * m)
    mse = lam * (lam - lam / n + 1 / n) * hyp + (1 - lam) * (1 - lam + lam / n) * trig
    return math.sqrt(mse) / sm


def largest_angular(r: float, n: float, angles: int = 20_001) -> float:
    """max over theta of eps / W."""
    theta = torch.linspace(0, math.pi, angles, dtype=torch.float64)
    return float((angular_error(r, theta, 1, n) / largest_base_error(r, 1)).max())


# -- the closed forms ---------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 3, 8, 1e9])
@pytest.mark.parametrize("r", [0.5, 1.0, 1.5, 2.0])
def test_angular_error_is_the_printed_theorem(r: float, n: float) -> None:
    for theta in (0.3, 1.0, math.pi / 2, 2.5):
        want = naive_angular(r, theta, 10, n)
        assert float(angular_error(r, theta, 10, n)) == pytest.approx(want, rel=1e-11)


def test_figure_of_the_squared_error_at_radius_one() -> None:
    # m = 10, n = 1: squared errors of exp(x.y), not relative ones
    angle = math.pi * torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    kernel = torch.exp(torch.cos(angle))
    for errors, printed in (
        (trigonometric_error(1.0, angle, 10), [0, 0.0726, 0.276, 0.346, 0.356]),
        (hyperbolic_error(1.0, angle, 10), [19.4, 5.85, 0.276, 0.0043, 0]),
        (angular_error(1.0, angle, 10, 1), [0, 1.52, 0.276, 0.0896, 0]),
    ):
        found = (errors * kernel).square()
        for value, want in zip(found.tolist(), printed, strict=True):
            assert value == pytest.approx(want, rel=5e-3, abs=1e-12)


@pytest.mark.parametrize("r", RADII)
def test_the_bases_are_mirror_images_and_at_worst_w(r: float) -> None:
    w = math.sqrt(1 / 20) * math.exp(2 * r * r) * (1 - math.exp(-4 * r * r))
    assert float(largest_base_error(r, 10)) == pytest.approx(w, rel=1e-12)
    theta = torch.linspace(0, math.pi, 101, dtype=torch.float64)
    trig, hyp = trigonometric_error(r, theta, 10), hyperbolic_error(r, theta, 10)
    assert float(trig.max()) == pytest.approx(w, rel=1e-12)
    assert torch.allclose(trig, hyp.flip(0), rtol=1e-9, atol=1e-12)
    assert float(trig[0]) == 0.0
    assert float(hyp[-1]) == 0.0


TABLE = {  # max over theta of eps / W, by n and r
    1: {1.0: 0.374, 1.5: 0.303, 2.0: 0.262, 3.0: 0.214, 4.0: 0.185},
    8: {1.0: 0.243, 1.5: 0.160, 2.0: 0.127, 3.0: 0.095, 4.0: 0.078},
    INF: {1.0: 0.229, 1.5: 0.132, 2.0: 0.098, 3.0: 0.065, 4.0: 0.048},
}


@pytest.mark.parametrize("n", TABLE)
def test_largest_errors_over_angles(n: float) -> None:
    for r, printed in TABLE[n].items():
        assert largest_angular(r, n) == pytest.approx(printed, abs=5.5e-4)


@pytest.mark.parametrize("n", [1, 3, 8, 64])
@pytest.mark.parametrize("r", [0.5, 1.0, 2.0, 4.0])
def test_polar_limits_to_six_digits(r: float, n: int) -> None:
    m, near = 7, 1e-12 / n
    limit = float(polar_limit(r, m, n))
    printed = math.sqrt(1 / (2 * math.pi * m * n)) * math.exp(2 * r * r)
    assert limit == pytest.approx(printed * (1 - math.exp(-4 * r * r)), rel=1e-12)
    at_zero = float(angular_error(r, near, m, n)) / math.sqrt(near)
    assert at_zero == pytest.approx(limit, rel=1e-6)
    # pi - theta in float64 is good to 4e-16: 1e-8 leaves 7 digits, and n r^2 1e-8 of curvature
    theta = math.pi - 1e-8
    at_pi = float(angular_error(r, theta, m, n)) / math.sqrt(math.pi - theta)
    assert at_pi == pytest.approx(limit, rel=1e-6)


def test_only_the_product_counts_at_the_poles() -> None:
    assert float(polar_limit(1.3, 16, 8)) == pytest.approx(float(polar_limit(1.3, 128, 1)))


def test_asymptotics_in_the_radius() -> None:
    r = 12.0
    theta = torch.linspace(0, 0.5, 50_001, dtype=torch.float64)
    for n, height, place in (
        (1, math.sqrt(math.exp(-0.5) / (math.pi * math.sqrt(2) * r)), 1 / (math.sqrt(2) * r)),
        (INF, math.exp(-0.5) / (math.pi * r), 1 / r),
    ):
        ratio = angular_error(r, theta, 1, n) / largest_base_error(r, 1)
        assert float(ratio.max()) == pytest.approx(height, rel=2e-3)
        assert float(theta[ratio.argmax()]) == pytest.approx(place, rel=5e-3)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_at_equal_length_the_middle_is_at_least_twice_as_bad(n: int) -> None:
    m, r = 5, 1.2
    columns = 4 * m * (n + 1)
    base = float(trigonometric_error(r, math.pi / 2, columns // 2))
    ratio = float(angular_error(r, math.pi / 2, m, n)) / base
    assert ratio == pytest.approx((n + 1) / math.sqrt(n), rel=1e-12)
    assert ratio >= 2 * (1 - 1e-12)


# -- the bound ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", SIGNS)
def test_bound_on_a_grid(n: float) -> None:
    for r in RADII:
        bound = float(angular_bound(r, 1, n) / largest_base_error(r, 1))
        assert bound == pytest.approx(
            (2 * math.pi * r) ** -0.5 * math.sqrt(1 - 1 / math.pi + 1 / (n * math.pi))
        )
        assert largest_angular(r, n, 2_001) <= bound


def test_both_sides_are_affine_in_one_over_n() -> None:
    """So that n = 1 and n = inf suffice."""
    for r, theta in ((0.7, 0.4), (1.5, 2.0), (3.0, 0.1)):
        for function in (
            lambda n, r=r, t=theta: angular_error(r, t, 3, n) ** 2,
            lambda n, r=r: angular_bound(r, 3, n) ** 2,
        ):
            one, eight, many = (float(function(n)) for n in (1, 8, INF))
            assert eight == pytest.approx(many + (one - many) / 8, rel=1e-12)


@pytest.mark.parametrize("n", [1, INF])
def test_bound_by_a_cover(n: float) -> None:
    """0.1 <= r <= 1.75, theta <= pi/2: every cell's largest error is below its smallest bound.

    l (l + (1-l)/n) rises with l; sinh(a c)/sinh(a) falls with a and rises with c < 1.
    """
    r, theta = np.geomspace(0.1, 1.75, 401), np.linspace(0, math.pi / 2, 401)
    low, high = 2 * r[:-1, None] ** 2, r[1:, None]
    first, last = theta[None, :-1], theta[None, 1:]

    def weight(share: np.ndarray) -> np.ndarray:
        return share * (share + (1 - share) / n)

    largest = weight(last / math.pi) * (np.sinh(low * np.cos(first / 2) ** 2) / np.sinh(low)) ** 2
    largest = (
        largest
        + weight(1 - first / math.pi) * (np.sinh(low * np.sin(last / 2) ** 2) / np.sinh(low)) ** 2
    )
    smallest = (1 - 1 / math.pi + 1 / (n * math.pi)) / (2 * math.pi * high)
    assert float((largest / smallest).max()) < 0.91  # a tenth to spare, 1e-14 of rounding


def test_bound_outside_the_cover() -> None:
    """The inequalities of the proof at its ends; all are monotone from there on."""
    r = 1.7
    rest = math.exp(-2 * r * r)
    assert math.exp(-0.5) / (4 * r) + rest < 1 / (2 * math.pi * r)
    assert 1 / (8 * math.e * r * r) + rest < (1 - 1 / math.pi) / (2 * math.pi * r)
    assert (1 - 1 / math.pi) / (2 * math.pi * 0.1) > 1  # below 0.1 the bound exceeds W


def test_a_decay_of_one_over_r_would_be_false() -> None:
    r = 1.5
    faster = (2 * math.pi) ** -0.5 / r  # n = 1
    assert faster == pytest.approx(0.266, abs=5e-4)
    assert largest_angular(r, 1) == pytest.approx(0.303, abs=5e-4)
    assert largest_angular(r, 1) > faster


# -- of the library's maps ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["trigonometric", "hyperbolic"])
@pytest.mark.parametrize("r", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_worst_case_of_the_bases(name: str, r: float) -> None:
    phi = make(name, dim=64, num_features=256, projection="iid")
    worst = worst_case(phi, r)
    assert worst.error == pytest.approx(float(largest_base_error(r, 128)), rel=1e-12)
    assert worst.angle == pytest.approx(math.pi if name == "trigonometric" else 0.0)
    theta = torch.linspace(0.1, 3.1, 7, dtype=torch.float64)
    form = trigonometric_error if name == "trigonometric" else hyperbolic_error
    assert torch.allclose(angle_sweep(phi, r, theta), form(r, theta, 128), rtol=1e-9)


def test_worst_case_inside_the_interval() -> None:
    """A sum of both bases, each of weight 1/2: symmetric about pi/2, and smallest there."""
    g = torch.Generator().manual_seed(0)
    trig, hyp = (
        make(name, dim=4, num_features=20, projection="iid", generator=g)
        for name in ("trigonometric", "hyperbolic")
    )
    worst = worst_case(0.5 * trig + 0.5 * hyp, 1.0)
    assert worst.error == pytest.approx(0.5 * float(largest_base_error(1.0, 10)), rel=1e-12)
    product = worst_case(trig * hyp, 0.5)  # (1 + a)(1 + b) - 1, convex too
    assert product.error > worst_case(trig, 0.5).error
    flat = worst_case(Constant(4), 1.0)
    assert flat.error == 0.0


def test_worst_case_refines_an_interior_peak() -> None:
    class Peaked(Constant):
        def relative_variance(self, x, y):
            theta = torch.atan2(y[..., 1], y[..., 0])
            return torch.exp(-200 * (theta - 1.2345).square()).unsqueeze(-2)

    worst = worst_case(Peaked(3), 1.0)
    assert worst.error == pytest.approx(1.0, rel=1e-12)
    assert worst.angle == pytest.approx(1.2345, abs=1e-6)


def test_batched_maps_give_a_sweep_each_and_the_worst_of_all() -> None:
    proposal = isotropic_proposal(torch.tensor([0.5, 2.0]), 8)
    request = Request(dim=8, num_features=32, batch_shape=(2,))
    phi = RandomFeatures(request, Positive(), proposal)
    theta = torch.tensor([0.0, 1.0, 2.0])
    sweep = angle_sweep(phi, 1.0, theta)
    assert sweep.shape == (2, 3)
    assert sweep.dtype == torch.float64
    assert worst_case(phi, 1.0).error == pytest.approx(float(sweep.max()))


def test_infinite_variance_is_said_as_such() -> None:
    phi = make("positive", dim=4, num_features=8, projection="iid")
    assert worst_case(phi, 40.0).error == INF


def test_no_closed_form() -> None:
    phi = make("positive", dim=4, num_features=8, projection="hadamard")
    with pytest.raises(ValueError, match="RandomFeatures with 8 features has no closed-form"):
        worst_case(phi, 1.0)


@pytest.mark.parametrize("radius", [0.0, -1.0, INF, math.nan])
def test_refuses_a_radius(radius: float) -> None:
    phi: FeatureMap = make("positive", dim=4, num_features=8)
    with pytest.raises(ValueError, match=r"radius=.* must be positive and finite"):
        worst_case(phi, radius)


def test_refuses_what_has_no_angle() -> None:
    with pytest.raises(ValueError, match="dim=1; an angle needs at least 2"):
        worst_case(make("positive", dim=1, num_features=8), 1.0)
    phi = make("positive", dim=4, num_features=8)
    for angles in (torch.tensor([-0.1]), torch.tensor([3.2]), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="angles has shape"):
            angle_sweep(phi, 1.0, angles)
    with pytest.raises(ValueError, match=r"num_signs=0 must be at least 1"):
        angular_error(1.0, 1.0, 4, 0)
    with pytest.raises(ValueError, match="m=0 must be an integer of at least 1"):
        angular_error(1.0, 1.0, 0, 1)


def test_a_float32_pi_is_an_angle() -> None:
    phi = make("trigonometric", dim=4, num_features=8, projection="iid")
    angles = torch.linspace(0, math.pi, 9)  # float32: its last entry is above pi
    assert float(angles[-1]) > math.pi
    sweep = angle_sweep(phi, 1.0, angles)
    assert float(sweep[-1]) == pytest.approx(float(largest_base_error(1.0, 4)), rel=1e-12)
    with pytest.raises(ValueError, match="from 0 to pi"):
        angle_sweep(phi, 1.0, torch.tensor([3.1416]))
