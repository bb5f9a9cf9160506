"""Low-rank deep kernels: one Gaussian process, checked against its dense kernel."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data import TensorDataset

import bochner
from bochner.gp.deep import DeepKernelGP, SpectrumOnTop
from bochner.gp.deep_training import Elbo, PredictiveLoss, WeightDistribution, minimise_
from bochner.gp.evidence import WeightPosterior
from bochner.gram import GramStatistics
from tests.maps import normal, seeded

N, D, R = 30, 3, 4


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(N, D, seed=1)
    return x, torch.sin(2.0 * x[:, 0]) + 0.1 * normal(N, seed=2)


def model(prior_variance: float = 1.0, noise: float = 0.3, seed: int = 0) -> DeepKernelGP:
    """With features short of the prior variance at some rows and beyond it at others."""
    network = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, R)).double()
    with torch.no_grad():
        for at, parameter in enumerate(network.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=10 * seed + at, scale=0.6))
    return DeepKernelGP(network, prior_variance=prior_variance, noise=noise)


def dense(gp: DeepKernelGP, x: torch.Tensor) -> torch.Tensor:
    """k(x, x) by its definition; points are distinct."""
    phi = gp.features(x)
    white = (gp.log_prior_variance.exp() - phi.square().sum(-1)).clamp_min(0.0)
    return phi @ phi.T + torch.diag(white)


def test_both_sides_of_the_prior_variance_are_tested(rows) -> None:
    white = model().white_variance(model().features(rows[0]))
    assert 5 < int((white > 0).sum()) < N - 5
    assert bool((white >= 0).all())


@pytest.mark.parametrize("prior_variance", [1e-20, 1.0, 50.0])
def test_evidence_and_posterior_are_those_of_the_dense_kernel(rows, prior_variance) -> None:
    (x, y), gp = rows, model(prior_variance)
    noise = float(gp.log_noise.detach().exp())
    with torch.no_grad():
        new = normal(7, D, seed=5, scale=2.0)
        whole = dense(gp, torch.cat((x, new)))
        covariance = whole[:N, :N] + noise * torch.eye(N)
        truth = MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(y)
        solved = torch.linalg.solve(covariance, torch.cat((y.unsqueeze(-1), whole[:N, N:]), 1))
        mean = whole[N:, :N] @ solved[:, 0]
        variance = (whole[N:, N:] - whole[N:, :N] @ solved[:, 1:]).diagonal()
    posterior = gp.condition(x, y)
    found = posterior.predict(new)
    assert float(gp.log_evidence(x, y).detach()) == pytest.approx(float(truth), rel=1e-9)
    assert posterior.log_evidence == pytest.approx(float(truth), rel=1e-9)
    assert torch.allclose(found.mean, mean, atol=1e-8)
    assert torch.allclose(found.variance, variance, atol=1e-8)
    assert 0 < posterior.effective_dof < R


def test_away_from_what_the_network_knows_the_prior_variance_is_back(rows) -> None:
    gp = model(prior_variance=9.0)
    with torch.no_grad():
        gp.network[-1].weight.zero_()
        gp.network[-1].bias.zero_()
    found = gp.condition(*rows).predict(rows[0])
    assert found.variance.tolist() == pytest.approx([9.0] * N, rel=1e-6)
    assert float(found.mean.abs().max()) == 0.0


def test_blocks_of_rows_add_up(rows, monkeypatch) -> None:
    gp = model()
    whole = gp.condition(*rows)
    monkeypatch.setattr("bochner.gp.deep.BLOCK_ROWS", 7)
    parts = gp.condition(*rows)
    assert parts.log_evidence == pytest.approx(whole.log_evidence, rel=1e-12)
    assert np.allclose(parts.weights.mean, whole.weights.mean, rtol=1e-10)


def test_the_evidence_has_its_derivatives(rows) -> None:
    gp = model()
    parameters = [gp.network[-1].weight.detach().clone().requires_grad_()]

    def evidence(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(_Evidence(gp), {"gp.network.2.weight": weight}, rows)

    assert torch.autograd.gradcheck(evidence, parameters)
    gp.log_evidence(*rows).backward()
    assert all(p.grad is not None for p in (gp.log_noise, gp.log_prior_variance))


class _Evidence(nn.Module):
    def __init__(self, gp: DeepKernelGP) -> None:
        super().__init__()
        self.gp = gp

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.gp.log_evidence(x, y)


# -- the spectrum on top ------------------------------------------------------------------------------
def test_a_spectrum_on_the_identity_is_regression_on_random_features(rows) -> None:
    x, y = rows
    phi = bochner.make(
        "trigonometric", dim=D, num_features=16, kernel="matern-3/2", generator=seeded(0),
        dtype=torch.float64,
    )  # fmt: skip
    gp = DeepKernelGP(SpectrumOnTop(nn.Identity(), phi, outputscale=2.0), noise=0.1)
    features = phi.query(x).materialise().numpy()
    usual = WeightPosterior(
        GramStatistics.of(features, y[:, None].numpy()), outputscale=2.0, noise=0.1
    )
    posterior = gp.condition(x, y)
    assert posterior.log_evidence == pytest.approx(usual.log_evidence, rel=1e-5)
    found = posterior.predict(x)
    assert np.allclose(found.mean.numpy(), features @ usual.mean[:, 0], atol=1e-5)
    assert np.allclose(found.variance.numpy(), usual.variance(features), atol=1e-5)
    assert (
        float(gp.white_variance(gp.features(x)).max().detach()) == 0.0
    )  # the spectrum has all of it


def test_a_map_of_two_functions_is_refused() -> None:
    phi = bochner.make("gerf", dim=2, num_features=4)
    with pytest.raises(ValueError, match="use a symmetric map"):
        SpectrumOnTop(nn.Identity(), phi)


# -- minibatch losses -----------------------------------------------------------------------------------
def best_weights(gp: DeepKernelGP, x: torch.Tensor, y: torch.Tensor) -> WeightDistribution:
    """The exact posterior of the weights."""
    with torch.no_grad():
        features = gp.features(x)
        noise = gp.row_noise(features)
        precision = torch.eye(R) + (features / noise[:, None]).T @ features
        covariance = torch.linalg.inv(precision)
        factor = torch.linalg.cholesky(covariance)
        q = WeightDistribution(R).double()
        q.mean.copy_(covariance @ (features.T @ (y / noise)))
        q.log_diagonal.copy_(factor.diagonal().log())
        q.below.copy_(torch.tril(factor, -1))
    return q


def test_the_bound_at_the_posterior_is_the_evidence_and_less_elsewhere(rows) -> None:
    gp = model()
    evidence = float(gp.log_evidence(*rows).detach())
    loss = Elbo(gp, best_weights(gp, *rows), num_rows=N)
    assert float(-N * loss(*rows).detach()) == pytest.approx(evidence, rel=1e-9)
    found, exact = loss.predict(rows[0]), gp.condition(*rows).predict(rows[0])
    assert torch.allclose(found.mean, exact.mean, atol=1e-8)
    assert torch.allclose(found.variance, exact.variance, atol=1e-8)
    for at in range(3):
        other = best_weights(gp, *rows)
        with torch.no_grad():
            [other.mean, other.log_diagonal, other.below][at].add_(0.1)
        worse = Elbo(gp, other, num_rows=N)
        assert float(-N * worse(*rows).detach()) < evidence - 1e-3


@pytest.mark.parametrize("kind", [Elbo, PredictiveLoss])
def test_batches_average_to_the_whole(rows, kind) -> None:
    gp = model()
    loss = kind(gp, best_weights(gp, *rows), num_rows=N)
    with torch.no_grad():
        parts = [
            float(loss(x, y)) for x, y in zip(rows[0].split(10), rows[1].split(10), strict=True)
        ]
        assert sum(parts) / 3 == pytest.approx(float(loss(*rows)), rel=1e-10)


def test_the_predictive_loss_is_the_density_of_predictions(rows) -> None:
    gp = model()
    loss = PredictiveLoss(gp, best_weights(gp, *rows), num_rows=N, penalty=0.0)
    found = loss.predict(rows[0])
    deviation = (found.variance + float(gp.log_noise.detach().exp())).sqrt()
    density = torch.distributions.Normal(found.mean, deviation).log_prob(rows[1]).mean()
    assert float(loss(*rows).detach()) == pytest.approx(-float(density), rel=1e-6)
    penalised = PredictiveLoss(gp, loss.weights, num_rows=N, penalty=2.0)
    extra = 2.0 * float(loss.weights.divergence().detach()) / N
    assert float(penalised(*rows).detach()) == pytest.approx(-float(density) + extra, rel=1e-6)


def test_divergence_against_torch() -> None:
    q = WeightDistribution(R).double()
    with torch.no_grad():
        for at, parameter in enumerate(q.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=at, scale=0.5))
        ours = MultivariateNormal(q.mean, scale_tril=q.factor)
        prior = MultivariateNormal(torch.zeros(R).double(), torch.eye(R).double())
        truth = torch.distributions.kl_divergence(ours, prior)
    assert float(q.divergence().detach()) == pytest.approx(float(truth), rel=1e-9)


@pytest.mark.parametrize("kind", [Elbo, PredictiveLoss])
def test_training_is_seeded_and_finds_what_a_constant_does_not(kind) -> None:
    x = normal(400, 1, seed=1, scale=1.5).float()
    y = torch.sin(2.0 * x[:, 0]) + 0.1 * normal(400, seed=2).float()

    def fit() -> tuple:
        network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 8))
        with torch.no_grad():
            for at, parameter in enumerate(network.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=at).float())
        loss = kind(DeepKernelGP(network), WeightDistribution(8), num_rows=300)
        data = TensorDataset(x[:300], y[:300])
        minimise_(loss, data, steps=250, batch_rows=100, rate=0.05, generator=seeded(0))
        return loss, loss.predict(x[300:])

    (loss, found), (_, again) = fit(), fit()
    assert torch.equal(found.mean, again.mean)
    noise = float(loss.model.log_noise.detach().exp())
    deviation = (found.variance + noise).sqrt()
    density = torch.distributions.Normal(found.mean, deviation).log_prob(y[300:])
    constant = -0.5 * math.log(2 * math.pi * math.e * float(y.var()))
    assert float(density.mean()) > constant + 0.5
    exact = loss.model.condition(x[:300], y[:300]).predict(x[300:])
    assert float((exact.mean - y[300:]).square().mean()) < 0.1


def test_errors(rows) -> None:
    x, y = rows
    with pytest.raises(ValueError, match="noise=0 must be a positive"):
        DeepKernelGP(nn.Identity(), noise=0)
    with pytest.raises(ValueError, match=r"network gives shape \[30\].*expected \[n, r\]"):
        DeepKernelGP(nn.Flatten(0)).features(x[:, :1])
    with pytest.raises(ValueError, match="one target a row"):
        model().condition(x, y[:-1])
    loss = Elbo(model(), WeightDistribution(R), num_rows=N + 1)
    with pytest.raises(ValueError, match="a loss made for these rows"):
        minimise_(loss, TensorDataset(x, y), steps=1, batch_rows=2, generator=seeded(0))
    with pytest.raises(ValueError, match="penalty=-1"):
        PredictiveLoss(model(), WeightDistribution(R), num_rows=N, penalty=-1)
