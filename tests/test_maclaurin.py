"""Local features: against loops, against the series itself, state, gradients, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from bochner.catalog import make, spec
from bochner.degree_plan import DegreePlan, monomials_below
from bochner.feature_maps.local import fit
from bochner.fitting import UnfittedMap
from bochner.kernels import Gaussian, Matern, Softmax
from bochner.maclaurin import LocalFeatures
from bochner.projections import IID
from bochner.request import Request
from bochner.testing import ContractError, Plan
from bochner.testing.estimates import check_estimates
from bochner.testing.subject import Subject

PLAN = DegreePlan(exact=2, sampled=(3, 2), tail=4, rate=0.9)
KERNELS = [Softmax(), Gaussian()]


def local(generator, plan=PLAN, kernel=None, dim=3, **more):
    request = Request(
        dim=dim,
        num_features=plan.num_features(dim),
        kernel=Gaussian() if kernel is None else kernel,
        generator=generator,
        dtype=torch.float64,
        **more,
    )
    centre = torch.randn(*request.batch_shape, dim, generator=generator, dtype=torch.float64)
    return LocalFeatures(request, centre, plan)


def some_points(generator, count=6, dim=3, dtype=torch.float64):
    return torch.randn(count, dim, generator=generator, dtype=dtype)


def looped(phi, x):
    """Every column by its definition."""
    u = x - phi.centre
    out = torch.zeros(len(x), phi.num_features, dtype=torch.float64)
    for i in range(len(x)):
        if isinstance(phi.kernel, Gaussian):
            factor = -0.5 * float(u[i] @ u[i])
        else:
            factor = float(u[i] @ phi.centre + 0.5 * phi.centre @ phi.centre)
        for j in range(phi.num_features):
            value = 1.0
            for k in range(int(phi.degrees[j])):
                value *= float(phi.rows[k, j] @ u[i])
            out[i, j] = value * math.exp(float(phi.log_weight[j]) + factor)
    return out


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_against_loops(generator, kernel):
    phi = local(generator, kernel=kernel)
    x = torch.cat((some_points(generator), phi.centre.unsqueeze(0)))
    assert torch.allclose(phi.query(x).materialise(), looped(phi, x), rtol=1e-11, atol=1e-13)


def test_batches_are_maps_of_their_own(generator):
    phi = local(generator, batch_shape=(2, 3))
    x = some_points(generator)
    found = phi.query(x).materialise()
    assert found.shape == (2, 3, 6, phi.num_features)
    one = local(generator)
    for index in ((0, 0), (1, 2)):
        one.centre, one.rows = phi.centre[index], phi.rows[index]
        one.degrees, one.log_weight = phi.degrees[index], phi.log_weight[index]
        assert torch.allclose(found[index], looped(one, x), rtol=1e-11, atol=1e-13)
    degrees = phi.degrees.flatten(0, 1)
    assert bool((degrees != degrees[:1]).any()), "tails that differ, or this test says nothing"


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dim", [1, 4])
def test_exact_degrees_are_the_series_itself(generator, kernel, dim):
    degree = 5
    phi = local(generator, DegreePlan(degree, (), 0, 1.0), kernel, dim)
    assert (phi.num_features, phi.draws(), phi.unbiased) == (
        monomials_below(degree, dim),
        [],
        False,
    )
    x, y = some_points(generator, dim=dim), some_points(generator, 5, dim)
    s = (x - phi.centre) @ (y - phi.centre).T
    kept = sum(s**p / math.factorial(p) for p in range(degree)) * torch.exp(-s)
    assert torch.allclose(phi.estimate(x, y), kept * kernel(x, y), rtol=1e-10, atol=1e-12)
    assert float(phi.relative_variance(x, y).max()) == 0.0


def test_the_diagonal_of_a_series_without_tail_is_what_gaussian_processes_count_on(generator):
    phi = local(generator, DegreePlan(6, (), 0, 1.0))
    x = 1.5 * some_points(generator)
    squares = (x - phi.centre).square().sum(-1)
    norms = phi.query(x).materialise().square().sum(-1)
    assert torch.allclose(1 - norms, torch.special.gammainc(torch.tensor(6.0).double(), squares))


def test_a_large_offset_in_float32(generator):
    """Differences to the centre are taken first: |x|^2 / 2 of 10^6 has no digits left in float32."""
    far = torch.tensor([1024.0, -512.0, 2048.0], dtype=torch.float64)
    x = (some_points(generator) / 2 + far).float()
    phi = local(generator, DegreePlan(14, (), 0, 1.0))
    phi.centre = far
    assert torch.allclose(phi.estimate(x, x), Gaussian()(x, x), atol=1e-4)


def test_gradients_also_at_the_centre(generator):
    phi = local(generator)
    x = torch.cat((some_points(generator, 2), phi.centre.unsqueeze(0))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: phi.query(x).materialise(), (x,))


def test_a_saved_map_of_another_depth_and_plan(generator):
    first, second = (local(generator, replace(PLAN, rate=rate)) for rate in (0.9, 6.0))
    assert first.rows.shape != second.rows.shape, "depths that differ, or this test says nothing"
    first.load_state_dict(second.state_dict())
    x = some_points(generator)
    assert torch.equal(first.estimate(x, x), second.estimate(x, x))
    assert first.plan == second.plan
    assert torch.equal(first.relative_variance(x, x), second.relative_variance(x, x))


def test_the_plan_is_a_function_of_the_data(generator):
    """A hundred heads with the same data get the plan that one gets, whatever their draws."""
    x = some_points(generator, 200)
    request = Request(dim=3, num_features=24, kernel=Gaussian(), generator=generator)
    one = fit(request, x, x)
    many = fit(replace(request, batch_shape=(100,)), *(x.expand(100, *x.shape),) * 2)
    assert (one.plan.exact, one.plan.sampled, one.plan.tail) == (
        many.plan.exact,
        many.plan.sampled,
        many.plan.tail,
    )
    assert one.plan.rate == pytest.approx(many.plan.rate)
    assert torch.allclose(many.centre, x.mean(0).expand(100, 3))


def test_near_the_centre_waves_are_far_behind(generator):
    x = 0.3 * some_points(generator, 60)
    truth = Gaussian()(x, x)
    waves = make("trigonometric", dim=3, num_features=64, kernel="gaussian", generator=generator)
    near = make("local", dim=3, num_features=64, kernel="gaussian", generator=generator).fit(x, x)
    errors = [(phi.estimate(x, x) - truth).square().mean().sqrt() for phi in (near, waves)]
    assert float(errors[0]) < 1e-3 * float(errors[1])


# -- the contract sees faults ----------------------------------------------------------------------
class WrongWeight(LocalFeatures):
    """The tail weighed as if its degree had the whole Poisson law, not the law from T on."""

    def _drawn(self, generator):
        drawn = super()._drawn(generator)
        tail = drawn["degrees"] >= self.plan.first_random
        drawn["log_weight"] = drawn["log_weight"] + 0.1 * tail
        return drawn


class GaussianSigns(LocalFeatures):
    """Normal projections, whose variance is not that of Rademacher ones."""

    def _drawn(self, generator):
        drawn = super()._drawn(generator)
        normals = torch.randn(drawn["rows"].shape, generator=generator, dtype=torch.float64)
        drawn["rows"] = torch.where(
            drawn["rows"].abs().amin(-1, keepdim=True) > 0, normals, drawn["rows"]
        )
        return drawn


@pytest.mark.parametrize(
    ("mutant", "failing"), [(WrongWeight, "unbiased"), (GaussianSigns, "relative_variance")]
)
def test_mutants_are_rejected(mutant, failing):
    def faulty(request, queries, keys):
        right = fit(request, queries, keys)
        return mutant(
            request,
            right.centre,
            replace(right.plan, exact=1, sampled=(), tail=request.num_features - 1),
        )

    found = replace(spec("local"), build=lambda r: UnfittedMap("local", r, faulty, positive=False))
    with pytest.raises(ContractError) as caught:
        check_estimates(
            Subject(found, IID(), Gaussian(), seed=0),
            Plan(dims=(3,), num_features=16, replicates=9_000),
        )
    assert caught.value.failing == failing, str(caught.value)


# -- refusals ----------------------------------------------------------------------------------------
def test_another_kernel_is_refused(generator):
    with pytest.raises(ValueError, match="the local map estimates"):
        local(generator, kernel=Matern(1.5))


def test_sizes_that_do_not_fit_are_refused(generator):
    request = Request(dim=3, num_features=12, generator=generator)
    with pytest.raises(ValueError, match=r"plan has 13 columns in dim=3; expected num_features=12"):
        LocalFeatures(request, torch.zeros(3), PLAN)
    with pytest.raises(ValueError, match=r"centre has shape \[2\]; expected \[3\]"):
        LocalFeatures(replace(request, num_features=13), torch.zeros(2), PLAN)
