"""The diagnosis of chains: what is predicted, what is said, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bochner.catalog import make
from bochner.nonlinearities import Positive
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.structured import (
    Chain,
    Dense,
    ExactChain,
    HybridChain,
    LowRankChain,
    SignedChain,
)
from bochner.structured import diagnose as front
from bochner.structured.errors.alternatives import Sizes, alternatives
from bochner.structured.errors.error_laws import exact_ratios
from bochner.structured.errors.path_law import PathLaw


def model(states: int, steps: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = scale * torch.randn(2, states, 8, generator=g)
    return a, b, torch.randn(steps, states, generator=g)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def iid(count: int) -> RandomFeatures:
    return RandomFeatures(Request(dim=8, num_features=count, generator=generator()), Positive())


@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_prediction_against_redraws(blocks: int) -> None:
    """60 redraws: the standard deviation is known to 9 %, the limit is 5 of that and 10 % of theory."""
    a, b, u = model(40, 10, 0.3)
    exact = ExactChain.from_embeddings(a, b, u).log_partition
    g, phi = generator(1), iid(192 // blocks)
    made = [
        LowRankChain.from_embeddings(
            a, b, u, feature_map=phi.resample_(g), blocks=blocks, generator=g
        )
        for _ in range(60)
    ]
    logs = torch.stack([chain.log_partition for chain in made]) - exact
    found = made[0].diagnose(generator=generator(2))
    assert found.verdict == "valid"
    assert abs(float(logs.std() / found.std) - 1) < 5 / math.sqrt(120) + 0.1
    assert abs(float(logs.mean()) - float(found.bias)) < 5.5 * float(logs.std()) / math.sqrt(60)
    # planted: the standard deviation of one block's directions, or of one edge
    assert float(found.std) < 0.6 * 9 * math.sqrt(float(found.chi - 1) / (192 / 9))


def test_chi_is_that_of_the_exact_ratios() -> None:
    from bochner.structured.errors.edge_laws import edge_law

    a, b, u = model(10, 6, 0.3)
    chain = LowRankChain.from_embeddings(a, b, u, feature_map=iid(64), generator=generator())
    found = chain.diagnose(num_paths=600, generator=generator(1))
    wanted = exact_ratios(edge_law(iid(64)), a, b, PathLaw(a.double() @ b.double().T, u))
    assert abs(float(found.chi) - wanted.chi) < 5.5 * float(found.chi_stderr)
    assert float(found.chi_stderr) < 0.1 * (wanted.chi - 1)
    assert float(found.std) == pytest.approx(math.sqrt(wanted.variance(64)), rel=0.15)


def test_verdicts_follow_the_scale() -> None:
    words, etas = [], []
    for scale in (0.2, 0.55, 1.5):
        chain = LowRankChain.from_embeddings(
            *model(60, 12, scale), num_features=64, generator=generator()
        )
        found = chain.diagnose(generator=generator(1))
        words.append(found.verdict)
        etas.append(float(found.eta))
        assert found.valid == (found.verdict == "valid")
    assert words == ["valid", "underpowered", "hopeless"]
    assert etas == sorted(etas)
    assert etas[-1] > 1
    text = str(found)
    assert text.startswith("hopeless: random features do not rescue potentials as peaked as these")
    assert "not to be believed" in text
    for line in ("exact, blockwise", "truncated SVD", "hybrid", "beam 60", "learned features"):
        assert line in text


def test_more_features_are_advised_where_they_would_do() -> None:
    a, b, u = model(60, 12, 0.55)
    few = LowRankChain.from_embeddings(a, b, u, num_features=64, generator=generator())
    advice = few.diagnose(generator=generator(1)).advice
    wanted = int(advice.split("m=")[1].split()[0])
    assert wanted > 64
    more = LowRankChain.from_embeddings(a, b, u, num_features=2 * wanted, generator=generator())
    assert more.diagnose(generator=generator(1)).verdict == "valid"


def test_exact_models_have_no_error() -> None:
    learned = LowRankChain(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(2, 3, 5))
    dense = Chain(Dense(torch.zeros(1, 5, 5)), torch.zeros(3, 5))
    for chain in (learned, dense, ExactChain.from_embeddings(*model(5, 3, 1.0))):
        found = chain.diagnose()
        assert (found.verdict, found.valid) == ("exact", True)
        assert found.std.shape == chain.batch_shape
        assert float(found.std.abs().max()) == float(found.bias.abs().max()) == 0.0
        assert "by construction" in str(found)


def test_a_hybrid_has_less_to_fear() -> None:
    a, b, _ = model(80, 12, 0.5)
    u = 4 * torch.randn(12, 80, generator=generator(3))
    low = LowRankChain.from_embeddings(a, b, u, num_features=64, generator=generator())
    mixed = HybridChain.from_embeddings(a, b, u, num_features=64, beam=20, generator=generator())
    every = HybridChain.from_embeddings(a, b, u, num_features=64, beam=80, generator=generator())
    low_found, found, nothing = (c.diagnose(generator=generator(1)) for c in (low, mixed, every))
    assert float(found.std) < 0.5 * float(low_found.std)
    assert float(found.eta) < float(low_found.eta)
    assert (float(nothing.std), float(nothing.eta), float(nothing.chi)) == (0.0, 0.0, 1.0)


def test_batches_lengths_and_single_steps() -> None:
    a, b, _ = model(30, 8, 0.3)
    u = torch.randn(3, 8, 30, generator=generator(4))
    lengths = torch.tensor([8, 1, 4])
    chain = LowRankChain.from_embeddings(
        a, b, u, feature_map=iid(64), lengths=lengths, generator=generator()
    )
    found = chain.diagnose(num_paths=400, generator=generator(1))
    assert float(found.std[1]) == float(found.eta[1]) == 0.0
    alone = LowRankChain.from_embeddings(
        a, b, u[2, :4], feature_map=iid(64), generator=generator()
    ).diagnose(num_paths=400, generator=generator(2))
    assert float(found.std[2]) == pytest.approx(float(alone.std), rel=0.15)
    assert float(found.eta[2]) == pytest.approx(float(alone.eta), rel=1e-6)
    assert " to " in str(found)


@pytest.mark.parametrize("kind", [LowRankChain, SignedChain])
def test_more_states_than_are_looked_at(kind: type[Chain], monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 states for `EXACT_STATES` of 300: the same numbers, roughly, and a lower eta."""
    import sys

    a, b, u = model(300, 9, 0.25)
    chain = kind.from_embeddings(a, b, u, num_features=256, generator=generator())
    full = chain.diagnose(num_paths=300, generator=generator(1))
    assert "exact model; eta exact" in full.basis
    monkeypatch.setattr(sys.modules["bochner.structured.errors.diagnose"], "EXACT_STATES", 64)
    part = chain.diagnose(num_paths=300, generator=generator(1))
    assert "lower bound" in part.basis
    assert float(part.std) == pytest.approx(float(full.std), rel=0.3)
    assert 0.0 < float(part.eta) < 1.1 * float(full.eta)


def test_maps_without_a_closed_form_are_redrawn() -> None:
    """Sobol rows, and the law by redraws beside the closed form of iid ones."""
    from bochner.structured.errors.edge_laws import edge_law
    from bochner.structured.errors.redrawn_law import RedrawnLaw

    a, b, u = model(30, 6, 0.3)
    rows = make("positive", dim=8, num_features=64, projection="sobol", generator=generator())
    chain = LowRankChain.from_embeddings(a, b, u, feature_map=rows, generator=generator())
    found = chain.diagnose(generator=generator(1))
    assert "from 32 redraws" in found.basis
    assert 0.0 < float(found.std) < 1.0
    exact, estimated = edge_law(iid(64)), RedrawnLaw(iid(64), count=2000, generator=generator(2))
    x, y = a[:4], b[:4]
    sums, redrawn = (law.exponents(x, y) for law in (exact, estimated))
    wanted, seen = exact.excess(sums, sums), estimated.excess(redrawn, redrawn)
    scale = wanted.diagonal().sqrt()
    assert bool(((seen - wanted).abs() < 0.3 * torch.outer(scale, scale)).all())
    assert torch.allclose(estimated.own_excess(x, y).diagonal(), seen.diagonal(), rtol=1e-3)


def test_refusals() -> None:
    a, b, u = model(10, 4, 0.3)
    fine = LowRankChain.from_embeddings(a, b, u, feature_map=iid(8), generator=generator())
    with pytest.raises(ValueError, match="num_paths=1 must be an integer of at least 2"):
        fine.diagnose(num_paths=1)
    flat = make("positive", dim=8, num_features=8, projection="hadamard", generator=generator())
    biased = LowRankChain.from_embeddings(a, b, u, feature_map=flat, generator=generator())
    with pytest.raises(ValueError, match="has no law over redraws"):
        front(biased)


def test_costs_scale_as_they_should() -> None:
    small, large = (
        {a.name.split(",")[0]: a for a in alternatives(Sizes(100, states, 64, 256))}
        for states in (4096, 65536)
    )
    assert large["features"].multiply_adds == pytest.approx(16 * small["features"].multiply_adds)
    for name in ("exact", "truncated SVD"):
        ratio = large[name].multiply_adds / small[name].multiply_adds
        assert ratio == pytest.approx(256, rel=0.02)
    assert large["exact"].bytes == 4.0 * 65536**2
    assert large["beam 64"].multiply_adds == small["beam 64"].multiply_adds


def test_what_leaves_float64_is_said_to_be_unknown() -> None:
    a, b, u = model(10, 4, 0.3)
    found = LowRankChain.from_embeddings(
        a, b, u, feature_map=iid(8), generator=generator()
    ).diagnose(generator=generator())
    lost = replace(found, chi=torch.tensor(math.inf), chi_stderr=torch.tensor(math.nan))
    assert "chi inf ± unknown (beyond float64)" in str(lost)
