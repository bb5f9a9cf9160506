"""rho of two edges against the maps' own closed forms, Monte Carlo, and what refuses."""

import math

import pytest
import torch
from torch import Tensor

from bochner import make
from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.projections import IID, Antithetic
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.structured.errors.edge_laws import edge_law
from bochner.transformed import TransformedFeatures
from bochner.transforms import Centring, Composed, LinearPair

DIM, COUNT = 3, 6


def maps(batch: tuple[int, ...] = ()) -> dict[str, FeatureMap]:
    g = torch.Generator().manual_seed(5)

    def request(m: int) -> Request:
        double = torch.float64
        return Request(dim=DIM, num_features=m, batch_shape=batch, generator=g, dtype=double)

    one = (1,) * len(batch)
    wide = GaussianProposal(torch.zeros(DIM), 1.4 * torch.eye(DIM))
    square = torch.tensor([[0.4, 0.1, 0.0], [0.1, 0.2, -0.1], [0.0, -0.1, 0.3]])
    moved = GaussianProposal(torch.tensor([0.3, -0.2, 0.1]), torch.eye(DIM) + square)
    centre = torch.tensor([0.1, -0.2, 0.3])
    exact = Composed(Centring(centre, -centre), LinearPair(1.2 * torch.eye(DIM)))
    matrix = torch.tensor([1.0 + 0.5j, 1.5j, 0.7 + 0.0j], dtype=torch.complex128)
    return {
        "positive": RandomFeatures(request(COUNT), Positive()),
        "hyperbolic": RandomFeatures(request(2 * COUNT), Hyperbolic()),
        "trigonometric": RandomFeatures(request(2 * COUNT), Trigonometric()),
        "gerf": RandomFeatures(request(COUNT), Positive(), wide),
        "trigonometric, wide": RandomFeatures(request(2 * COUNT), Trigonometric(), wide),
        "shifted": RandomFeatures(request(COUNT), Positive(), moved),
        "complex": ComplexExponential(request(2 * COUNT), matrix.reshape(*one, DIM)),
        "real": ComplexExponential(
            request(COUNT), torch.tensor([1.0, 2.0, 0.5]).reshape(*one, DIM)
        ),
        "transformed": TransformedFeatures(RandomFeatures(request(COUNT), Positive()), exact),
    }


MAPS, REDRAWN = maps(), maps((100_000,))


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        0.4 * torch.randn(count, DIM, generator=g, dtype=torch.float64),
        0.4 * torch.randn(count, DIM, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", MAPS)
def test_an_edge_with_itself_varies_as_the_map_says(name: str) -> None:
    phi, law = MAPS[name], edge_law(MAPS[name])
    x, y = points(5, 1)
    variance = phi.relative_variance(x, y)
    assert variance is not None
    assert law.directions == COUNT
    assert torch.allclose(law.own_excess(x, y) / law.directions, variance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_edges_from_one_state_vary_together_as_the_map_says(name: str) -> None:
    phi, law = MAPS[name], edge_law(MAPS[name])
    x, y = points(5, 2)
    covariance = phi.relative_covariance(x[:1], y)
    assert covariance is not None
    sums = law.exponents(x[:1].expand(5, DIM), y)
    found = law.excess(sums, sums) / law.directions
    assert torch.allclose(found, covariance.squeeze(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_edges_without_a_common_state_against_redraws(name: str) -> None:
    """|z| <= 5.5 for each of 9 maps: false alarms below 1e-6 in all. The standard errors are printed by
    the assertion; rho - 1 without its last term, or with s for s', is off by ten of them and more."""
    (x, other_x), (y, other_y) = (p.chunk(2) for p in points(2, 3))
    phi, law = REDRAWN[name], edge_law(MAPS[name])
    one, two = (phi.estimate(*edge).flatten() for edge in ((x, y), (other_x, other_y)))
    exact = [float(MAPS[name].log_exact(*e).value()) for e in ((x, y), (other_x, other_y))]
    products = (one / exact[0] - 1) * (two / exact[1] - 1) * law.directions
    sums = law.exponents(x, y), law.exponents(other_x, other_y)
    stderr = float(products.std()) / math.sqrt(len(products))
    assert abs(float(products.mean()) - float(law.excess(*sums))) < 5.5 * stderr
    assert abs(float(products.mean()) - float(law.excess(sums[0], sums[0]))) > 10 * stderr


def test_two_sets_of_edges_of_different_sizes() -> None:
    for phi in MAPS.values():
        law = edge_law(phi)
        sums, others = law.exponents(*points(4, 4)), law.exponents(*points(2, 5))
        whole = law.excess(sums, others)
        assert whole.shape == (4, 2)
        assert torch.allclose(whole[:, :1], law.excess(sums, others[:1]))


def test_antithetic_directions_count_once() -> None:
    g = torch.Generator().manual_seed(0)
    pairs = make("positive", dim=DIM, num_features=8, projection=Antithetic(IID()), generator=g)
    law, hyperbolic = edge_law(pairs), edge_law(MAPS["hyperbolic"])
    sums = law.exponents(*points(3, 6))
    assert law.directions == 4
    assert torch.allclose(law.excess(sums, sums), hyperbolic.excess(sums, sums))


def test_overflow_is_infinite_and_maps_without_a_closed_form_are_refused() -> None:
    law = edge_law(MAPS["positive"])
    far = torch.full((1, DIM), 20.0)
    assert float(law.own_excess(far, far)) == math.inf
    g = torch.Generator().manual_seed(0)
    sobol = make("positive", dim=DIM, num_features=8, projection="sobol", generator=g)
    with pytest.raises(ValueError, match="has no closed form"):
        edge_law(sobol)
    with pytest.raises(ValueError, match="use positive, hyperbolic"):
        edge_law(MAPS["positive"] + MAPS["hyperbolic"])
