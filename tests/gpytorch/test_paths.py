"""Draws of BoTorch models: their law is the model's posterior, in the model's own units."""

import pytest
import torch

import bochner

gpytorch = pytest.importorskip("gpytorch")
pytest.importorskip("botorch")

from botorch.models import SingleTaskGP  # noqa: E402
from botorch.models.transforms import Normalize, Standardize  # noqa: E402
from botorch.optim import optimize_acqf  # noqa: E402
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel  # noqa: E402

from bochner.gpytorch import PathwiseThompson, RandomFeatureKernel, draw_paths  # noqa: E402

DRAWS = 4000


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def feature_kernel():
    phi = bochner.make(
        "trigonometric",
        dim=2,
        num_features=24,
        kernel="gaussian",
        generator=seeded(),
        dtype=torch.float64,
    )
    return RandomFeatureKernel(phi)


KERNELS = {
    "rbf": lambda: RBFKernel(ard_num_dims=2),
    "matern": lambda: ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)),
    "features": lambda: ScaleKernel(feature_kernel()),
}


def data():
    X = torch.rand(14, 2, generator=seeded(1), dtype=torch.float64) * torch.tensor([10.0, 2.0])
    Y = 50 + 20 * torch.sin(X.sum(-1, keepdim=True))
    return X, Y


def model_of(name, *, fixed_noise=False):
    X, Y = data()
    noise = torch.linspace(1.0, 20.0, 14, dtype=torch.float64)[:, None] if fixed_noise else None
    model = SingleTaskGP(
        X, Y, noise, covar_module=KERNELS[name]().double(),
        input_transform=Normalize(2), outcome_transform=Standardize(1),
    )  # fmt: skip
    base = getattr(model.covar_module, "base_kernel", model.covar_module)
    base.lengthscale = torch.tensor([0.3, 0.5]) if name != "features" else 0.4
    if base is not model.covar_module:
        model.covar_module.outputscale = 1.4
    if not fixed_noise:
        model.likelihood.noise = 0.05
    return model


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize(
    ("name", "fixed_noise"), [("rbf", False), ("matern", True), ("features", False)]
)
def test_the_law_of_paths_is_the_posterior(name, fixed_noise, training):
    """|z| < 5.5 for 5 means; variances to 15 %: sampling (2.2 % each) and 4,096 features."""
    model = model_of(name, fixed_noise=fixed_noise)
    model.train(training)
    X = torch.rand(5, 2, generator=seeded(2), dtype=torch.float64) * torch.tensor([14.0, 3.0])
    with torch.no_grad():
        drawn = draw_paths(model, DRAWS, num_features=4096, generator=seeded())(X)
        posterior = model.posterior(X)
    mean, variance = posterior.mean[:, 0], posterior.variance[:, 0]
    assert ((drawn.mean(0) - mean).abs() < 5.5 * (variance / DRAWS).sqrt()).all()
    assert torch.allclose(drawn.var(0), variance, rtol=0.15)


def test_drawing_leaves_the_model_as_it_was():
    model = model_of("rbf")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    X, _ = data()
    paths = draw_paths(model, 2, generator=seeded())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    held = paths(X)
    model.covar_module.lengthscale = 5.0
    assert torch.equal(paths(X), held)


def test_each_and_gradients():
    paths = draw_paths(model_of("matern"), 3, num_features=64, generator=seeded())
    X = torch.rand(3, 4, 2, generator=seeded(), dtype=torch.float64, requires_grad=True)
    every = paths(X)
    assert every.shape == (3, 3, 4)
    assert torch.allclose(paths.each(X), torch.stack([every[i, i] for i in range(3)]))
    assert torch.autograd.gradcheck(paths.each, (X,))


def test_a_seed_gives_the_same_paths():
    X, _ = data()
    one, same, other = (draw_paths(model_of("rbf"), 2, generator=seeded(s))(X) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_other_models_are_refused():
    X, Y = data()
    with pytest.raises(ValueError, match="several outputs"):
        draw_paths(SingleTaskGP(X, torch.cat([Y, -Y], dim=-1)), 2, generator=seeded())
    periodic = SingleTaskGP(X, Y, covar_module=gpytorch.kernels.PeriodicKernel())
    with pytest.raises(TypeError, match="PeriodicKernel"):
        draw_paths(periodic, 2, generator=seeded())
    part = SingleTaskGP(X, Y, covar_module=RBFKernel(active_dims=(0,)))
    with pytest.raises(ValueError, match="active_dims"):
        draw_paths(part, 2, generator=seeded())


def test_thompson_samples_are_the_maxima_of_two_paths():
    model = model_of("rbf").eval()
    sampler = PathwiseThompson(model, 2, generator=seeded())
    bounds = torch.tensor([[0.0, 0.0], [10.0, 2.0]]).double()
    torch.manual_seed(0)  # BoTorch's own starting points
    candidates, value = optimize_acqf(sampler, bounds, q=2, num_restarts=4, raw_samples=256)
    side = torch.linspace(0, 1, 41).double()
    grid = torch.cartesian_prod(10 * side, 2 * side)
    with torch.no_grad():
        on_grid = sampler.paths(grid).amax(-1)
        own = sampler.paths.each(candidates.unsqueeze(-2))[:, 0]
    assert value.item() == pytest.approx(own.sum().item())
    assert own.sum() >= on_grid.sum() - 0.5  # of outcomes that spread over 40
    with pytest.raises(ValueError, match="q=3 candidates"):
        sampler(torch.zeros(3, 2).double())
