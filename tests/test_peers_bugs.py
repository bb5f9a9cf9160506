"""Five mistakes that published packages make with random features: ours passes, a planted copy fails.

Each test is one property. It is asserted of ours, and the mistake, written out as `Planted...`, must break it
by the same verdict: z beyond the critical value of the contract (bochner.testing.significance), with a sample
that would have shown the bias asked for with probability 99 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import bochner
from bochner.features import Features
from bochner.kernels import Gaussian, Laplacian, Matern, RationalQuadratic, SpectralKernel
from bochner.nonlinearities import Trigonometric
from bochner.projections import IID, Hadamard, Orthogonal, Projection, Sobol, haar_orthogonal
from bochner.projections.hadamard import hadamard_transform
from bochner.projections.orthogonal import blocks_of
from bochner.projections.projection import standard_normal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.sklearn import GaussianProcess
from bochner.spectral_features import SpectralFeatures
from bochner.testing.significance import Deviation, mean_deviation

FEATURES, REPLICATES = 16, 20_000


def diagonal(dim: int, length: float) -> Tensor:
    """A point at this distance from 0, on the all-ones direction."""
    return torch.full((1, dim), length / dim**0.5, dtype=torch.float64)


def bias(draw: Callable[[torch.Generator], Tensor], t: Tensor, truth: float) -> Deviation:
    """Of the mean of cos(omega.t) over frequencies [R, r, d], against K(t), relative to it."""
    omega = draw(torch.Generator().manual_seed(20_240_301))
    return mean_deviation(torch.cos(omega @ t[0]).mean(-1), truth)


def of(projection: Projection, dim: int) -> Callable[[torch.Generator], Tensor]:
    """Frequencies of the Gaussian kernel, [R, r, d]."""
    return lambda g: projection.draw(FEATURES, dim, generator=g, batch_shape=(REPLICATES,))


def passes(deviation: Deviation, *, see: float) -> bool:
    """Whether the mean is right; the sample must be able to show a relative bias of `see`."""
    assert deviation.smallest <= see, f"underpowered: {deviation.smallest:.3g} against {see}"
    return not deviation.rejected


# -- 1. orthogonal directions: which side the norms go ------------------------------------------------
@dataclass(frozen=True)
class PlantedRowScaling(Projection):
    """diag(s) Q for X @ W, where W [d, r] holds one direction in each column: the norms go to the
    coordinates, and every direction keeps length near 1 times a common distortion."""

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        blocks = -(-num_projections // dim)
        directions = haar_orthogonal((*shape, blocks), dim, generator)
        norms = standard_normal((*shape, blocks, 1, dim, dim), generator).norm(dim=-1)
        return blocks_of(directions * norms, num_projections)


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_orthogonal_directions_scaled_by_rows_of_the_wrong_matrix(length: float) -> None:
    t, truth = diagonal(8, length), math.exp(-0.5 * length**2)
    ours = bias(of(Orthogonal(), 8), t, truth)
    planted = bias(of(PlantedRowScaling(), 8), t, truth)
    assert passes(ours, see=0.07)
    assert not passes(planted, see=0.07)


# -- 2. quasi-Monte Carlo by successive points ---------------------------------------------------------
@dataclass(frozen=True)
class PlantedSuccessivePoints(Projection):
    """Box-Muller over successive points of one Sobol sequence: radius from a point, angle from the next,
    which is not independent of it."""

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        draws = []
        for _ in range(math.prod(shape)):
            seed = int(torch.randint(2**62, (), generator=generator))
            engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
            engine.fast_forward(1000)
            u = engine.draw(num_projections + num_projections % 2, dtype=torch.float64) + 2.0**-31
            radius, angle = torch.sqrt(-2.0 * torch.log(u[0::2])), 2.0 * math.pi * u[1::2]
            pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
            draws.append(pairs.flatten(0, 1)[:num_projections])
        return torch.stack(draws).reshape(*shape, num_projections, dim)


def off_axis_error(projection: Projection, *, dim: int = 4, count: int = 64) -> float:
    """Root mean square error of K over 200 draws, at points off the axes at distance 1."""
    g = torch.Generator().manual_seed(5)
    points = torch.nn.functional.normalize(standard_normal((40, dim), g), dim=-1)
    omega = projection.draw(count, dim, generator=g, batch_shape=(200,))
    return float((torch.cos(omega @ points.T).mean(1) - math.exp(-0.5)).square().mean().sqrt())


def test_quasi_monte_carlo_pays_off_the_axes() -> None:
    """Beyond chance: an error of 8,000 estimates is known to a few per cent."""
    plain = off_axis_error(IID())
    assert off_axis_error(Sobol()) < 0.75 * plain
    assert not off_axis_error(PlantedSuccessivePoints()) < 0.75 * plain


# -- 3. deviations that grow with the number of features ----------------------------------------------
class PlantedWithoutNormalisation(SpectralFeatures):
    """Cosines and sines without 1/sqrt(r)."""

    def _query(self, x: Tensor) -> Features:
        return super()._query(x).scaled(0.5 * math.log(self.num_projections))


def prior_deviations(build: Callable[[int], bochner.FeatureMap]) -> list[float]:
    """sqrt(phi(x).phi(x)), the prior deviation of f = phi.w with w ~ N(0, I), for m = 64 to 4096."""
    x = diagonal(3, 100.0)
    return [float(build(m).query(x).materialise().norm()) for m in (64, 512, 4096)]


def is_constant(found: list[float]) -> bool:
    return max(abs(value - 1.0) for value in found) < 1e-6


def requested(m: int, kernel: SpectralKernel) -> Request:
    return Request(dim=3, num_features=m, kernel=kernel, dtype=torch.float64)


@pytest.mark.parametrize("kernel", [Matern(1.5), RationalQuadratic(), Laplacian()], ids=repr)
def test_the_prior_deviation_does_not_grow_with_the_number_of_features(kernel) -> None:
    assert is_constant(prior_deviations(lambda m: SpectralFeatures(requested(m, kernel))))
    planted = prior_deviations(lambda m: PlantedWithoutNormalisation(requested(m, kernel)))
    assert not is_constant(planted)
    assert planted == pytest.approx([math.sqrt(m / 2) for m in (64, 512, 4096)])


def test_nor_does_it_for_the_gaussian_kernel() -> None:
    def build(m: int) -> bochner.FeatureMap:
        return bochner.make(
            "trigonometric", dim=3, num_features=m, kernel="gaussian", dtype=torch.float64
        )

    assert is_constant(prior_deviations(build))


class PlantedMap(RandomFeatures):
    """The Gaussian kernel's features without 1/sqrt(r)."""

    def _query(self, x: Tensor) -> Features:
        return super()._query(x).scaled(0.5 * math.log(self.num_projections))


def far_deviations(build: Callable[[Request], bochner.FeatureMap]) -> list[float]:
    """Deviations of a fitted Gaussian process far from its data, by two numbers of features."""
    rows = standard_normal((40, 2), torch.Generator().manual_seed(0))
    return [
        float(
            GaussianProcess(
                features=build(
                    Request(dim=2, num_features=m, kernel=Gaussian(), dtype=torch.float64)
                ),
                n_components=m,
                gamma=0.5,
                outputscale=1.0,
                noise=0.01,
                hyperparameters="fixed",
                posterior="features",
                random_state=0,
            )
            .fit(rows.numpy(), rows[:, 0].numpy())
            .predict([[30.0, 30.0]], return_std=True)[1][0]
        )
        for m in (256, 4096)
    ]


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_nor_does_the_deviation_of_a_fitted_gaussian_process() -> None:
    """1 far from the data for any m that the data do not exhaust; the mistake gives sqrt(m/2)."""
    ours = far_deviations(lambda request: RandomFeatures(request, Trigonometric()))
    planted = far_deviations(lambda request: PlantedMap(request, Trigonometric()))
    assert all(0.85 < deviation <= 1.0 for deviation in ours)
    assert not any(0.85 < deviation <= 1.0 for deviation in planted)
    assert planted[1] > 3.5 * planted[0]


# -- 4. Matern by another t distribution ----------------------------------------------------------------
class PlantedHalfTheFreedom(Matern):
    """Independent t coordinates with nu degrees of freedom: in one dimension the kernel of nu/2."""

    freedom = 1.0

    def frequencies(self, normals: Tensor, uniforms: Tensor) -> Tensor:
        from scipy.stats import t

        law = t(self.freedom * self.nu)
        return torch.from_numpy(law.ppf(torch.special.ndtr(normals).numpy()))


class PlantedIndependentCoordinates(PlantedHalfTheFreedom):
    """Independent t coordinates with 2 nu degrees of freedom: right in one dimension only."""

    freedom = 2.0


def spectral(kernel: SpectralKernel, dim: int) -> Callable[[torch.Generator], Tensor]:
    """Frequencies of a kernel, [R, r, d]."""

    def draw(g: torch.Generator) -> Tensor:
        normals = standard_normal((REPLICATES // 8, FEATURES, dim), g)
        uniforms = torch.rand(normals.shape[:-1], generator=g, dtype=torch.float64)
        return kernel.frequencies(normals, uniforms.unsqueeze(-1))

    return draw


@pytest.mark.parametrize(
    ("planted", "dim"), [(PlantedHalfTheFreedom, 1), (PlantedIndependentCoordinates, 3)]
)
def test_matern_has_the_multivariate_t_of_twice_nu(planted: type[Matern], dim: int) -> None:
    t = diagonal(dim, 1.0)
    truth = float(Matern(2.5)(torch.zeros_like(t), t))
    assert truth == pytest.approx(0.52399, abs=1e-5)
    assert passes(bias(spectral(Matern(2.5), dim), t, truth), see=0.07)
    assert not passes(bias(spectral(planted(2.5), dim), t, truth), see=0.07)


# -- 5. structured rows of one length ---------------------------------------------------------------------
@dataclass(frozen=True)
class PlantedConstantNorms(Projection):
    """sqrt(d) H D3 H D2 H D1, every row of length sqrt(d)."""

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        rows = torch.eye(dim, dtype=torch.float64).expand(*shape, dim, dim)
        for _ in range(3):
            signs = torch.randint(0, 2, (*shape, 1, dim), generator=generator)
            rows = hadamard_transform(rows * (2.0 * signs - 1.0))
        return dim**0.5 * rows[..., :num_projections, :]


def test_structured_rows_have_chi_norms() -> None:
    """At d = 16 and distance 2, over random directions (towards which our rows are exactly normal): constant
    norms are off by 28 % of K."""

    def deviation(projection: Projection) -> Deviation:
        g = torch.Generator().manual_seed(11)
        omega = projection.draw(FEATURES, 16, generator=g, batch_shape=(6_000,))
        t = 2.0 * torch.nn.functional.normalize(standard_normal((6_000, 16, 1), g), dim=1)
        return mean_deviation(torch.cos(omega @ t).mean((-1, -2)), math.exp(-2.0))

    assert passes(deviation(Hadamard()), see=0.15)
    assert not passes(deviation(PlantedConstantNorms()), see=0.15)
