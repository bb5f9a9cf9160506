"""The GPyTorch kernel: phi.phi' with a lengthscale, and the model that GPyTorch makes of it."""

import pytest
import torch

import bochner

gpytorch = pytest.importorskip("gpytorch")
pytest.importorskip("botorch")

from bochner.gp.evidence import WeightPosterior  # noqa: E402
from bochner.gpytorch import RandomFeatureKernel  # noqa: E402
from tests.gp.problems import problem, sums_of  # noqa: E402


def kernel_of(p, **kwargs):
    return RandomFeatureKernel(p.feature_map, **kwargs).double()


def exact_model(p, kernel, noise=0.3):
    y = torch.from_numpy(p.y[:, 0])

    class Model(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(p.x, y, gpytorch.likelihoods.GaussianLikelihood().double())
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel).double()

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    model = Model()
    model.covar_module.outputscale, model.likelihood.noise = 1.7, noise
    return model, y


def test_matrices_are_those_of_the_features():
    p = problem()
    kernel = kernel_of(p, ard_num_dims=3)
    scales = torch.tensor([[0.5, 1.0, 2.0]]).double()
    kernel.lengthscale = scales
    x, y = p.x[:30], p.x[20:24]
    phi_x, phi_y = (p.feature_map.query(v / scales).materialise() for v in (x, y))
    assert torch.allclose(kernel(x, x).to_dense(), phi_x @ phi_x.T)
    assert torch.allclose(kernel(y, y).to_dense(), phi_y @ phi_y.T)  # fewer rows than features
    assert torch.allclose(kernel(x, y).to_dense(), phi_x @ phi_y.T)
    assert torch.allclose(kernel(x, diag=True), torch.ones(30).double())
    batch = x.reshape(2, 15, 3)
    assert torch.allclose(kernel(batch, batch).to_dense()[1], kernel(batch[1], batch[1]).to_dense())


def test_marginal_likelihood_and_its_gradient():
    p = problem()
    model, y = exact_model(p, kernel_of(p))
    model.covar_module.base_kernel.lengthscale = 1.0
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with gpytorch.settings.fast_computations(log_prob=False):  # constraints round scales to 1e-7
        value = mll(model(p.x), y) * len(y)
    ours = WeightPosterior(sums_of(p.phi, p.y), outputscale=1.7, noise=0.3)
    assert value.item() == pytest.approx(ours.log_evidence, rel=1e-6)
    (value / len(y)).backward()
    assert model.covar_module.base_kernel.raw_lengthscale.grad.abs() > 1e-3


@pytest.mark.parametrize("n", [60, 10], ids=["more rows than features", "fewer"])
def test_predictions_are_those_of_the_weights(n):
    p = problem(n=n)
    model, _ = exact_model(p, kernel_of(p))
    model.covar_module.base_kernel.lengthscale = 1.0
    model.eval()
    ours = WeightPosterior(sums_of(p.phi, p.y), outputscale=1.7, noise=0.3)
    z = p.x[:5] + 0.4
    phi = p.feature_map.query(z).materialise().numpy()
    with torch.no_grad():
        found = model(z)
    assert torch.allclose(found.mean, torch.from_numpy(phi @ ours.mean)[:, 0], atol=1e-6)
    assert torch.allclose(
        found.covariance_matrix, torch.from_numpy(ours.covariance(phi)), atol=1e-6
    )


@pytest.mark.parametrize("projection", ["iid", "orthogonal", "sobol", "simplex"])
def test_any_projection_serves(projection):
    g = torch.Generator().manual_seed(0)
    phi = bochner.make(
        "trigonometric", dim=3, num_features=4096, kernel="gaussian", projection=projection,
        generator=g,
    )  # fmt: skip
    x = torch.randn(5, 3, generator=g)
    kernel = RandomFeatureKernel(phi)
    kernel.lengthscale = 2.0
    assert torch.allclose(kernel(x, x).to_dense(), phi.kernel(x / 2, x / 2), atol=0.1)


def test_what_does_not_fit_is_refused():
    p = problem()
    with pytest.raises(ValueError, match="one function for both"):
        RandomFeatureKernel(bochner.make("dark", dim=3, num_features=8))
    with pytest.raises(ValueError, match="ard_num_dims=2"):
        RandomFeatureKernel(p.feature_map, ard_num_dims=2)
    with pytest.raises(NotImplementedError, match="active_dims"):
        kernel_of(p).forward(p.x, p.x, last_dim_is_batch=True)
