"""The error laws of Z^ against redraws of the features; each test also rejects a planted wrong law.

All statistics are means over independent redraws with their standard errors. A limit of 5.5 of them keeps
false alarms below 1e-7 a comparison, 1e-6 in all; the seeds are fixed. Planted laws are 7 or more of
them away: seen in 93 of 100 runs with other seeds, or more.
"""

import math

import pytest
import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.structured.errors.edge_laws import edge_law
from bochner.structured.errors.error_laws import (
    EdgeRatios,
    all_excess,
    attention_ratio_error,
    exact_ratios,
    sampled_ratios,
)
from bochner.structured.errors.path_law import PathLaw

DIM, STATES = 2, 4
SCALES = {"positive": 0.35, "hyperbolic": 0.42, "trigonometric": 0.9, "gerf": 0.4}
NAMES = tuple(SCALES)
LIMIT, PLANTED = 5.5, 7.0


def feature_map(name: str, directions: int, batch: tuple[int, ...], seed: int = 0) -> FeatureMap:
    columns = 2 if name in ("hyperbolic", "trigonometric") else 1
    request = Request(
        dim=DIM,
        num_features=columns * directions,
        batch_shape=batch,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    if name == "gerf":
        wide = GaussianProposal(torch.zeros(DIM), 1.3 * torch.eye(DIM))
        return RandomFeatures(request, Positive(), wide)
    shape = {"positive": Positive, "hyperbolic": Hyperbolic, "trigonometric": Trigonometric}[name]
    return RandomFeatures(request, shape())


class Small:
    """A chain of four states with known embeddings (tied, so that shared draws are biased upwards), at a
    scale where its errors are seen but their tails are light, and redraws of its Z^ / Z."""

    def __init__(self, steps: int, scale: float) -> None:
        g = torch.Generator().manual_seed(3)
        self.a = self.b = scale * torch.randn(2, STATES, DIM, generator=g, dtype=torch.float64)[0]
        self.unaries = 0.5 * torch.randn(steps, STATES, generator=g, dtype=torch.float64)
        self.law = PathLaw(self.a @ self.b.T, self.unaries)
        self.edges = steps - 1

    def redrawn(self, name: str, directions: int, *, blocks: int, redraws: int) -> Tensor:
        """Z^ / Z, [redraws]: edge e uses draw e mod blocks."""
        phi = feature_map(name, directions, (redraws, blocks))
        left, right = phi.query(self.a), phi.key(self.b)
        kernels = left.values @ right.values.mT * torch.exp(left.log_scale + right.log_scale.mT)
        message = torch.exp(self.unaries[0]).expand(redraws, 1, STATES)
        for edge in range(self.edges):
            message = message @ kernels[:, edge % blocks] * torch.exp(self.unaries[edge + 1])
        return message.sum((-1, -2)) / math.exp(self.law.log_partition)

    def excess(self, name: str) -> Tensor:
        return all_excess(edge_law(feature_map(name, 1, ())), self.a, self.b)

    def ratios(self, name: str) -> EdgeRatios:
        return exact_ratios(edge_law(feature_map(name, 1, ())), self.a, self.b, self.law)


def deviation(samples: Tensor, expected: float) -> float:
    """Of the mean from what is expected, in standard errors."""
    return abs(float(samples.mean()) - expected) / (float(samples.std()) / math.sqrt(len(samples)))


# -- independent features -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_independent_features_are_unbiased(name: str) -> None:
    chain, redraws = Small(4, SCALES[name]), 150_000
    own = chain.redrawn(name, 8, blocks=3, redraws=redraws)
    assert deviation(own, 1.0) < LIMIT
    shared = chain.redrawn(name, 8, blocks=1, redraws=redraws)
    assert deviation(shared, 1.0) > PLANTED  # planted: one draw for all edges


@pytest.mark.parametrize("name", NAMES)
def test_the_second_moment_of_independent_features_is_exact(name: str) -> None:
    chain, redraws, r = Small(4, SCALES[name]), 150_000, 8
    squares = chain.redrawn(name, r, blocks=3, redraws=redraws).square()
    moment = chain.law.relative_second_moment(chain.excess(name), r)
    assert deviation(squares, moment) < LIMIT
    planted = {
        "the variance of one edge, T - 1 times": 1 + chain.ratios(name).variance(r, blocks=3) / 2,
        "r = 4": chain.law.relative_second_moment(chain.excess(name), r / 2),
    }
    for law, wrong in planted.items():
        assert deviation(squares, wrong) > PLANTED, law


def test_the_second_moment_by_enumeration() -> None:
    chain = Small(3, 0.5)
    excess = chain.excess("positive")
    steps = [chain.law.transition(t) for t in range(2)]
    total = 0.0
    for x in range(STATES**3):
        for y in range(STATES**3):
            (i, j, k), (p, q, r) = (
                (z // STATES**2, z // STATES % STATES, z % STATES) for z in (x, y)
            )
            chance = chain.law.initial[i] * steps[0][i, j] * steps[1][j, k]
            chance = chance * chain.law.initial[p] * steps[0][p, q] * steps[1][q, r]
            total += float(chance * (1 + excess[i, j, p, q] / 5) * (1 + excess[j, k, q, r] / 5))
    assert chain.law.relative_second_moment(excess, 5) == pytest.approx(total, rel=1e-12)


# -- shared features ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_bias_of_one_shared_draw_is_exact_at_three_steps(name: str) -> None:
    chain, redraws, r = Small(3, SCALES[name]), 100_000, 4
    ratios = chain.ratios(name)
    samples = chain.redrawn(name, r, blocks=1, redraws=redraws)
    bias = ratios.partition_bias(r)
    assert deviation(samples, 1 + bias) < LIMIT
    assert deviation(samples, 1.0) > PLANTED  # planted: unbiased
    if name in ("positive", "gerf"):  # planted: two paths instead of one, a third of it here
        assert deviation(samples, 1 + float(ratios.apart[0, 1]) / r) > PLANTED


# -- logarithms, to first order -------------------------------------------------------------------------
def test_the_block_law() -> None:
    """512 directions in all: shared, in 2 or 4 cycled blocks, or 64 for each of 8 edges."""
    chain, redraws, total = Small(9, 0.35), 4000, 512
    ratios = chain.ratios("positive")
    stderr = 1 / math.sqrt(2 * redraws)  # of a standard deviation, relatively, for normal samples
    for blocks in (1, 2, 4, 8):
        logs = chain.redrawn("positive", total // blocks, blocks=blocks, redraws=redraws).log()
        predicted = math.sqrt(ratios.variance(total // blocks, blocks=blocks))
        # 3 % for the next order; power: 10 % of the standard deviation
        assert abs(float(logs.std()) / predicted - 1) < LIMIT * stderr + 0.03
        bias = ratios.bias(total // blocks, blocks=blocks)
        assert abs(float(logs.mean()) - bias) < LIMIT * float(logs.std() / redraws**0.5) + 1e-3
    whole = ratios.variance(total)
    assert whole == pytest.approx(ratios.variance(total // 8, blocks=8), rel=0.35)
    # planted: 512 fresh directions for each edge, which is 8 times as many
    fresh = ratios.variance(total, blocks=8)
    assert abs(math.sqrt(fresh / ratios.variance(total // 8, blocks=8)) - 1) > 0.6


def test_the_bias_of_log_z_changes_its_sign_with_the_sharing() -> None:
    """Independent: downwards (Jensen). Shared: upwards where the same states follow each other."""
    chain, redraws, r = Small(9, 0.5), 10_000, 128
    ratios = chain.ratios("trigonometric")
    for blocks, per_block in ((1, r), (8, r // 8)):
        logs = chain.redrawn("trigonometric", per_block, blocks=blocks, redraws=redraws).log()
        bias = ratios.bias(per_block, blocks=blocks)
        second_order = ratios.variance(per_block, blocks=blocks) ** 2
        assert deviation(logs, bias) < LIMIT + second_order * redraws**0.5 / float(logs.std())
        assert deviation(logs, bias + 0.5 * ratios.variance(per_block, blocks=blocks)) > PLANTED


# -- from paths -----------------------------------------------------------------------------------------
def test_sampled_ratios_agree_with_exact_ones() -> None:
    chain = Small(5, 0.4)
    law = edge_law(feature_map("trigonometric", 1, ()))
    exact = chain.ratios("trigonometric")
    paths = chain.law.sample(800, torch.Generator().manual_seed(3))
    found = sampled_ratios(law, chain.a, chain.b, paths)
    assert found.chi_stderr < 0.1 * (exact.chi - 1)
    assert abs(found.chi - exact.chi) < LIMIT * found.chi_stderr
    assert found.variance(10, blocks=2) == pytest.approx(exact.variance(10, blocks=2), rel=0.25)
    assert found.bias(10) == pytest.approx(exact.bias(10), rel=0.25, abs=0.003)
    none = sampled_ratios(
        law, chain.a, chain.b, paths, outside=torch.zeros(800, 4, dtype=torch.bool)
    )
    assert (none.chi, none.variance(10), none.bias(10)) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        sampled_ratios(law, chain.a, chain.b, paths[:1])


def test_a_window_of_a_long_chain_stands_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from bochner.structured.errors import error_laws

    g = torch.Generator().manual_seed(0)
    a, b = 0.3 * torch.randn(2, STATES, DIM, generator=g, dtype=torch.float64)
    unaries = torch.zeros(41, STATES)  # the same everywhere
    law = edge_law(feature_map("trigonometric", 1, ()))
    path_law = PathLaw(a @ b.T, unaries)
    paths = path_law.sample(1500, g)
    whole = exact_ratios(law, a, b, path_law)
    monkeypatch.setattr(error_laws, "_LARGEST_WINDOW", 10)
    part = sampled_ratios(law, a, b, paths)
    assert part.apart.shape == (10, 10)
    for blocks in (1, 3, 40):
        wanted = whole.variance(10, blocks=blocks)
        assert part.variance(10, blocks=blocks) == pytest.approx(wanted, rel=0.1)
    assert part.bias(10, blocks=40) == pytest.approx(whole.bias(10, blocks=40), rel=0.1)


def test_blocks_beyond_the_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to the 2 edges"):
        EdgeRatios(torch.zeros(2, 2), torch.zeros(2, 2), num_edges=2).variance(10, blocks=3)


# -- attention --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_the_ratio_of_attention(name: str) -> None:
    g = torch.Generator().manual_seed(2)
    query = 0.5 * torch.randn(DIM, generator=g, dtype=torch.float64)
    keys = 0.8 * torch.randn(12, DIM, generator=g, dtype=torch.float64)
    values = torch.randn(12, 3, generator=g, dtype=torch.float64)
    weights = torch.softmax(keys @ query, dim=0)
    r, redraws = 64, 40_000
    error = attention_ratio_error(edge_law(feature_map(name, r, ())), query, keys, values, weights)
    assert error.relative_variance < 0.03
    outputs = []
    for seed in range(4):
        phi = feature_map(name, r, (redraws // 4,), seed=seed)
        left, right = phi.query(query.unsqueeze(0)), phi.key(keys)
        estimates = left.values @ right.values.mT * torch.exp(left.log_scale + right.log_scale.mT)
        outputs.append((estimates @ values / estimates.sum(-1, keepdim=True)).squeeze(-2))
    offsets = torch.cat(outputs) - weights @ values
    stderr = offsets.std(0) / redraws**0.5
    # 10 and 17 % for the next order
    assert bool(
        ((offsets.mean(0) - error.bias).abs() < LIMIT * stderr + 0.1 * error.bias.abs()).all()
    )
    assert bool((error.bias.abs() > PLANTED * stderr).any())  # planted: no bias
    found = torch.cov(offsets.T)
    sizes = error.covariance.diagonal().sqrt()
    assert bool(((found - error.covariance).abs() < 0.17 * torch.outer(sizes, sizes)).all())
    naive = (
        (weights * weights) @ (values - weights @ values).square() / r
    )  # planted: rho = 1 on i = j
    assert bool(((found.diagonal() - naive).abs() > 0.2 * found.diagonal()).any())
