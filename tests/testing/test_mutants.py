"""The tests, tested: maps with one known fault each, which the contract must reject.

Seeds are fixed, so that a mutant is rejected always or never; `z` in the messages tells by how much.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from bochner.algebra import Composite, Product
from bochner.catalog import spec
from bochner.feature_map import FeatureMap
from bochner.feature_maps.calibrated import fit_calibrated
from bochner.feature_maps.gerf import optimal_a
from bochner.features import Features, SignedLog
from bochner.fitting import UnfittedMap
from bochner.landmarks import LandmarkFeatures
from bochner.moments import log_c
from bochner.nonlinearities import Hyperbolic, Nonlinearity, Positive, Trigonometric
from bochner.projections import IID, Orthogonal, Projection, haar_orthogonal
from bochner.projections.orthogonal import blocks_of
from bochner.projections.projection import chi_norms, standard_normal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.testing import ContractError, Plan, check_feature_map
from bochner.transformed import TransformedFeatures
from bochner.transforms import Lengthscale

PLAN = Plan(dims=(5,), replicates=100_000)
QUICK = Plan(dims=(3,), num_features=8, replicates=10_000)


def spec_of(build: Callable[[Request], FeatureMap], **changes: object) -> FeatureMapSpec:
    """A specification of the mutant."""
    found = FeatureMapSpec(
        name="mutant", summary="", reference="", build=build, default_projection=IID()
    )
    return replace(found, **changes)


def rejected(mutant: FeatureMapSpec, failing: str, plan: Plan = PLAN, **options: object) -> str:
    """The message of the ContractError, which must name `failing`."""
    with pytest.raises(ContractError) as caught:
        check_feature_map(mutant, plan=plan, **options)
    assert caught.value.failing == failing, str(caught.value)
    return str(caught.value)


# -- biased directions ------------------------------------------------------------------------------
@dataclass(frozen=True)
class QRWithoutSigns(Projection):
    """LAPACK's Q as it comes."""

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        blocks = -(-num_projections // dim)
        q = torch.linalg.qr(standard_normal((*shape, blocks, dim, dim), generator)).Q
        return blocks_of(q, num_projections) * chi_norms((*shape, num_projections), dim, generator)


@dataclass(frozen=True)
class Stretched(Projection):
    """Directions two per cent too long."""

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        return 1.02 * standard_normal((*shape, num_projections, dim), generator)


@dataclass(frozen=True)
class FixedNorms(Projection):
    """Orthogonal rows of length sqrt(d) instead of chi_d ("regularised", SORF, ortho_scaling=1)."""

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        blocks = -(-num_projections // dim)
        return dim**0.5 * blocks_of(
            haar_orthogonal((*shape, blocks), dim, generator), num_projections
        )


def test_qr_without_the_sign_fix() -> None:
    rejected(spec("positive"), "unbiased", projection=QRWithoutSigns())


@pytest.mark.parametrize("name", ["hyperbolic", "trigonometric"])
def test_even_maps_are_immune_to_qr_signs(name: str) -> None:
    check_feature_map(name, projection=QRWithoutSigns(), plan=QUICK)


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric", "gerf"])
def test_omega_times_1_02(name: str) -> None:
    rejected(spec(name), "unbiased", projection=Stretched())


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric"])
def test_chi_norms_replaced_by_sqrt_d(name: str) -> None:
    rejected(spec(name), "unbiased", projection=FixedNorms())


# -- biased nonlinearities --------------------------------------------------------------------------
@dataclass(frozen=True, repr=False)
class WrongNorm(Nonlinearity):
    """Another nonlinearity with |x|^2/2 two per cent too large."""

    inner: Nonlinearity

    columns = property(lambda self: self.inner.columns)
    positive = property(lambda self: self.inner.positive)
    even = property(lambda self: self.inner.even)
    oscillating = property(lambda self: self.inner.oscillating)

    def features(
        self, projected: Tensor, half_norms: Tensor, log_weight: Tensor | None
    ) -> Features:
        return self.inner.features(projected, 1.02 * half_norms, log_weight)


@dataclass(frozen=True, repr=False)
class WithEps(Positive):
    """exp(...) + eps, Performer's `kernel_epsilon`."""

    eps: float = 1e-6

    def features(
        self, projected: Tensor, half_norms: Tensor, log_weight: Tensor | None
    ) -> Features:
        count = projected.shape[-1]
        raw = torch.exp(projected - half_norms) + self.eps
        return Features.from_logs(torch.log(raw / count**0.5))


@pytest.mark.parametrize(
    ("inner", "kernel"),
    [
        (Positive(), "softmax"),
        (Positive(), "gaussian"),
        (Hyperbolic(), "softmax"),
        (Hyperbolic(), "gaussian"),
        (Trigonometric(), "softmax"),  # the Gaussian's own norm term cancels this one
    ],
    ids=repr,
)
def test_norm_term_two_per_cent_too_large(inner: Nonlinearity, kernel: str) -> None:
    mutant = spec_of(
        lambda request: RandomFeatures(request, WrongNorm(inner)),
        positive=inner.positive,
        columns=inner.columns,
    )
    rejected(mutant, "unbiased", kernel=kernel)


@pytest.mark.parametrize("eps", [1e-4, 1e-6])
def test_an_eps_inside_the_features(eps: float) -> None:
    rejected(spec_of(lambda request: RandomFeatures(request, WithEps(eps))), "unbiased")


# -- dependent factors ------------------------------------------------------------------------------
class UncheckedProduct(Product):
    """A product that trusts its caller."""

    def __init__(self, *parts: FeatureMap) -> None:
        Composite.__init__(self, *parts)
        self.num_features = parts[0].num_features * parts[1].num_features


def squared_kernel(request: Request, product: type[Product], *, shared: bool) -> FeatureMap:
    """exp(x.y)^2 by two maps of 8 projections each."""
    small = replace(request, num_features=8)
    first = RandomFeatures(small, Positive())
    second = RandomFeatures(small, Positive(), directions=first.directions if shared else None)
    return product(first, second)


PRODUCT = Plan(dims=(5,), num_features=64, replicates=40_000)


def test_a_shared_omega_in_a_product_is_refused(generator: torch.Generator) -> None:
    request = Request(dim=5, num_features=64, generator=generator)
    with pytest.raises(ValueError, match="share random draws"):
        squared_kernel(request, Product, shared=True)


def test_the_bias_of_a_product_with_a_shared_omega_is_seen() -> None:
    mutant = spec_of(
        lambda request: squared_kernel(request, UncheckedProduct, shared=True),
        changes_kernel=True,
        columns=64,
    )
    # the declarations would catch the shared draw too: here it is the statistics that must
    rejected(mutant, "unbiased", PRODUCT)


def test_the_same_product_with_independent_factors_passes() -> None:
    mutant = spec_of(
        lambda request: squared_kernel(request, UncheckedProduct, shared=False),
        changes_kernel=True,
        columns=64,
    )
    check_feature_map(mutant, plan=PRODUCT)


# -- another kernel ---------------------------------------------------------------------------------
class ClaimsItsKernel(TransformedFeatures):
    """Other coordinates, and the exact value of the old ones."""

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        return self.inner.log_exact(x, y)


@pytest.mark.parametrize(
    ("wrapper", "failing"), [(TransformedFeatures, "log_exact"), (ClaimsItsKernel, "unbiased")]
)
def test_lengthscale_where_gamma_was_meant(
    wrapper: type[TransformedFeatures], failing: str
) -> None:
    # exp(-gamma |x-y|^2) with gamma = 1, the lengthscale, instead of 1/2
    mutant = spec_of(
        lambda request: wrapper(
            RandomFeatures(request, Trigonometric()), Lengthscale(0.5**0.5, request.dim)
        ),
        positive=False,
        columns=2,
    )
    rejected(mutant, failing, kernel="gaussian")


# -- a wrong optimum --------------------------------------------------------------------------------
def log_second_moment(a: Tensor, phi: float, dim: int) -> Tensor:
    """log(c(rho)^d e^{rho phi}), docs/theory.md 3."""
    rho = 1.0 / (1.0 - 8.0 * a)
    return dim * log_c(rho.unsqueeze(-1)) + rho * phi


def is_optimal(a: Tensor, phi: float, dim: int) -> bool:
    """Whether no A nearby has a lower second moment: steps of 1 % and of 10 %."""
    here = log_second_moment(a, phi, dim)
    return all(bool(log_second_moment(a * s, phi, dim) > here) for s in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("dim", [2, 6, 64])
@pytest.mark.parametrize("phi", [0.5, 4.0, 30.0])
def test_a_star_without_d_is_not_optimal(dim: int, phi: float) -> None:
    without_d = torch.tensor((1 - 2 * phi - ((2 * phi + 1) ** 2 + 8 * phi) ** 0.5) / 8).double()
    right = optimal_a(torch.tensor(phi, dtype=torch.float64), dim)
    assert is_optimal(right, phi, dim)
    assert not is_optimal(without_d, phi, dim)
    assert log_second_moment(without_d, phi, dim) > log_second_moment(right, phi, dim) + 1e-3


# -- false declarations -----------------------------------------------------------------------------
class HalfVariance(RandomFeatures):
    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        found = super().relative_variance(x, y)
        return None if found is None else 0.5 * found

    relative_covariance = FeatureMap.relative_covariance


class ForgetsCoupling(RandomFeatures):
    """The variance of independent directions for orthogonal ones."""

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        kept, self.directions.projection = self.directions.projection, IID()
        found = super().relative_variance(x, y)
        self.directions.projection = kept
        return found


class WrongCovariance(RandomFeatures):
    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        found = super().relative_covariance(x, y)
        variance = self.relative_variance(x, y)
        assert found is not None
        assert variance is not None
        return 0.7 * found + 0.3 * torch.diag_embed(variance)


class KeepsItsDraw(RandomFeatures):
    def resample_(self, generator: torch.Generator) -> RandomFeatures:
        return self


class OneDrawForAll(RandomFeatures):
    """The same directions for every element of batch_shape."""

    def __init__(self, request: Request, nonlinearity: Nonlinearity) -> None:
        super().__init__(request, nonlinearity)
        one = self.omega.reshape(-1, *self.omega.shape[-2:])[0]
        self.directions.omega = one.expand(self.omega.shape).clone()


class ForgetsItsState(RandomFeatures):
    def __init__(self, request: Request, nonlinearity: Nonlinearity) -> None:
        super().__init__(request, nonlinearity)
        omega = self.omega
        del self.directions.omega
        self.directions.register_buffer("omega", omega, persistent=False)


class HalfPrecision(RandomFeatures):
    def _query(self, x: Tensor) -> Features:
        features = super()._query(x)
        return Features(features.values.bfloat16(), features.log_scale.bfloat16())


class Unbounded(RandomFeatures):
    """exp first, scale later."""

    def _query(self, x: Tensor) -> Features:
        features = super()._query(x)
        return Features.from_logs(torch.log(features.materialise()))


class Careless(RandomFeatures):
    def query(self, x: Tensor) -> Features:
        return self._query(x.float() if x.dtype != torch.float64 else x)


class Lopsided(RandomFeatures):
    def _key(self, y: Tensor) -> Features:
        return super()._query(y).scaled(0.3)

    def _query(self, x: Tensor) -> Features:
        return super()._query(x).scaled(-0.3)


class Writes(RandomFeatures):
    def _query(self, x: Tensor) -> Features:
        found = super()._query(x)
        if x.is_contiguous():
            x.mul_(2.0)
        return found


class Ignored(RandomFeatures):
    """Its own randomness instead of the generator's."""

    def __init__(self, request: Request, nonlinearity: Nonlinearity) -> None:
        super().__init__(request, nonlinearity)
        self.directions.omega = torch.randn(self.omega.shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mutant", "failing"),
    [
        (HalfVariance, "relative_variance"),
        (WrongCovariance, "relative_covariance"),
        (KeepsItsDraw, "resample_"),
        (OneDrawForAll, "batch_shape"),
        (ForgetsItsState, "state_dict"),
        (HalfPrecision, "dtype"),
        (Unbounded, "finite"),
        (Careless, "errors"),
        (Lopsided, "symmetric"),
        (Writes, "inputs"),
        (Ignored, "generator"),
    ],
)
def test_a_false_declaration(mutant: type[RandomFeatures], failing: str) -> None:
    rejected(spec_of(lambda request: mutant(request, Positive())), failing, QUICK)


def test_the_variance_of_independent_directions_for_orthogonal_ones() -> None:
    plan = Plan(dims=(3,), num_features=24, replicates=100_000)
    mutant = spec_of(lambda request: ForgetsCoupling(request, Positive()))
    rejected(mutant, "relative_variance", plan, projection=Orthogonal())


def test_positive_is_declared_and_false() -> None:
    mutant = spec_of(lambda request: RandomFeatures(request, Trigonometric()), columns=2)
    rejected(mutant, "positive", QUICK)


def test_an_unfitted_map_that_works() -> None:
    class Eager(UnfittedMap):
        def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
            return None

    recipe = spec("gerf").build(Request(dim=1, num_features=1)).recipe  # type: ignore[attr-defined]
    mutant = spec_of(lambda request: Eager("eager", request, recipe), needs_data=True)
    rejected(mutant, "errors", QUICK)


def test_a_plan_that_sees_nothing_is_refused() -> None:
    plan = Plan(dims=(5,), num_features=2, replicates=200)
    message = rejected(spec("positive"), "power", plan)
    assert "underpowered" in message
    assert "replicates" in message


# -- maps without randomness ------------------------------------------------------------------------
def calibrated_mutant(spoil: Callable[[LandmarkFeatures], FeatureMap]) -> FeatureMapSpec:
    """The calibrated map, spoiled after its fit."""

    def build(request: Request) -> FeatureMap:
        def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
            return spoil(fit_calibrated(request, queries, keys))

        return UnfittedMap(
            "mutant", request, fit, positive=False, num_projections=0, unbiased=False
        )

    return spec_of(build, needs_data=True, positive=False, random=False)


def twice(phi: LandmarkFeatures) -> FeatureMap:
    phi.key_matrix.mul_(2.0)  # a scale that normalised attention would not see
    return phi


def only_the_mean(phi: LandmarkFeatures) -> FeatureMap:
    phi.query_points.zero_()
    return phi


def swapped(phi: LandmarkFeatures) -> FeatureMap:
    phi.query_points, phi.key_points = phi.key_points, phi.query_points
    return phi


@pytest.mark.parametrize("spoil", [twice, only_the_mean, swapped])
def test_a_fit_that_is_no_better_than_a_constant(
    spoil: Callable[[LandmarkFeatures], FeatureMap],
) -> None:
    rejected(calibrated_mutant(spoil), "fit", QUICK)


def test_the_same_fit_unspoiled_passes() -> None:
    assert "fit" in check_feature_map(calibrated_mutant(lambda phi: phi), plan=QUICK).checked


def test_random_features_that_say_they_are_not_random() -> None:
    mutant = replace(spec("positive"), random=False)
    rejected(mutant, "unbiased", QUICK)
