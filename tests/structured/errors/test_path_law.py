"""The dense law of a chain by enumeration, and eta by its definition."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from bochner.structured.errors import noise_growth as module
from bochner.structured.errors.noise_growth import noise_ratio
from bochner.structured.errors.path_law import PathLaw


def random_chain(states: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(states, states, generator=g, dtype=torch.float64),
        torch.randn(steps, states, generator=g, dtype=torch.float64),
    )


def enumerated(log_potential: Tensor, unaries: Tensor) -> dict[tuple[int, ...], float]:
    """log weight of every path."""
    steps, states = unaries.shape
    found = {}
    for path in itertools.product(range(states), repeat=steps):
        log = sum(float(unaries[t, x]) for t, x in enumerate(path))
        log += sum(float(log_potential[x, y]) for x, y in itertools.pairwise(path))
        found[path] = log
    return found


@pytest.mark.parametrize(("states", "steps"), [(1, 1), (3, 1), (1, 4), (3, 4), (2, 5)])
@pytest.mark.parametrize("forbid", [False, True])
def test_against_enumeration(states: int, steps: int, forbid: bool) -> None:
    log_potential, unaries = random_chain(states, steps, states + 10 * steps)
    if forbid and states > 1:
        unaries[0, 0] = -math.inf
        log_potential[1, 0] = -math.inf
    paths = enumerated(log_potential, unaries)
    total = math.fsum(math.exp(log) for log in paths.values())
    law = PathLaw(log_potential, unaries)
    assert law.log_partition == pytest.approx(math.log(total), abs=1e-12)
    marginals = torch.zeros(steps, states, dtype=torch.float64)
    for path, log in paths.items():
        chance = math.exp(log) / total
        product = float(law.initial[path[0]])
        for t in range(steps - 1):
            product *= float(law.transition(t)[path[t], path[t + 1]])
        assert product == pytest.approx(chance, abs=1e-13)
        for t, x in enumerate(path):
            marginals[t, x] += chance
    assert torch.allclose(law.marginals(), marginals, atol=1e-12)


def test_potentials_beyond_the_range_of_float64() -> None:
    """Every way in and out of state 1 is e^-2000 against the rest, and the unaries leave no other."""
    log_potential = torch.tensor([[0.0, -2000.0], [-2000.0, -4000.0]])
    unaries = torch.tensor([[-math.inf, 0.0], [-math.inf, 0.0], [0.0, -math.inf]])
    law = PathLaw(log_potential, unaries)
    assert law.log_partition == pytest.approx(-6000.0)
    g = torch.Generator().manual_seed(0)
    assert law.sample(3, g).tolist() == [[1, 1, 0]] * 3


def test_samples_follow_the_law() -> None:
    """Total variation of 20,000 paths over 27: below 0.045 but for a chance of 1e-6 (McDiarmid)."""
    log_potential, unaries = random_chain(3, 3, 0)
    law = PathLaw(log_potential, unaries)
    paths = law.sample(20_000, torch.Generator().manual_seed(1))
    logs = enumerated(log_potential, unaries)
    index = (paths * torch.tensor([9, 3, 1])).sum(-1)
    shares = torch.bincount(index, minlength=27).double() / len(paths)
    wanted = torch.tensor([math.exp(v - law.log_partition) for v in logs.values()])
    assert 0.5 * float((shares - wanted).abs().sum()) < 0.045


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"must be \[X, X\] and \[T, X\]"):
        PathLaw(torch.zeros(2, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="allow no path"):
        PathLaw(torch.zeros(2, 2), torch.full((3, 2), -math.inf))


# -- eta ------------------------------------------------------------------------------------------------
def eta_of(
    law: PathLaw, log_potential: Tensor, unaries: Tensor, excess: Tensor, **more: Tensor
) -> float:
    def rows(states: Tensor) -> Tensor:
        return 2 * log_potential[states] + excess[states].log()

    return noise_ratio(rows, unaries, log_partition=law.log_partition, directions=7, **more)


@pytest.mark.parametrize("cached", [True, False])
def test_eta_is_its_sum_over_paths(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setattr(module, "_CACHED_ENTRIES", 0)
        monkeypatch.setattr(module, "_BLOCK_ENTRIES", 8)  # two rows of four
    log_potential, unaries = random_chain(4, 4, 3)
    unaries[1, 2] = -math.inf
    excess = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)).double() * 3
    excess[0, 1] = 0.0  # an edge without error
    law = PathLaw(log_potential, unaries)
    wanted = 0.0
    for path, log in enumerated(log_potential, unaries).items():
        chance = math.exp(log - law.log_partition)
        wanted += chance**2 * math.prod(
            float(excess[x, y]) / 7 for x, y in itertools.pairwise(path)
        )
    assert eta_of(law, log_potential, unaries, excess) == pytest.approx(wanted ** (1 / 3), rel=1e-9)


@pytest.mark.parametrize("cached", [True, False])
def test_eta_of_potentials_beyond_float64(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only path worth counting runs through an entry that the maximum of its row flushes to 0."""
    if not cached:
        monkeypatch.setattr(module, "_CACHED_ENTRIES", 0)
        monkeypatch.setattr(module, "_BLOCK_ENTRIES", 2)
    log_potential = torch.tensor([[0.0, -500.0], [0.0, 0.0]], dtype=torch.float64)
    unaries = torch.tensor([[0.0, -5000.0], [-5000.0, 0.0]], dtype=torch.float64)
    excess = torch.full((2, 2), 3.0, dtype=torch.float64)
    law = PathLaw(log_potential, unaries)
    assert eta_of(law, log_potential, unaries, excess) == pytest.approx(3 / 7, rel=1e-9)
    excess[0, 1] = math.inf  # what leaves float64 in rho is no reason for NaN
    excess[1, 1] = 0.0
    assert eta_of(law, log_potential, unaries, excess) == math.inf


def test_eta_with_a_beam_leaves_its_edges_out() -> None:
    log_potential, unaries = random_chain(4, 4, 3)
    excess = 0.5 + torch.rand(4, 4, generator=torch.Generator().manual_seed(1)).double()
    beam = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    law = PathLaw(log_potential, unaries)
    wanted = 0.0
    for path, log in enumerated(log_potential, unaries).items():
        steps = [
            0.0
            if beam[t, path[t]] and beam[t + 1, path[t + 1]]
            else float(excess[path[t], path[t + 1]])
            for t in range(3)
        ]
        wanted += math.exp(2 * (log - law.log_partition)) * math.prod(s / 7 for s in steps)
    assert 0 < wanted < eta_of(law, log_potential, unaries, excess) ** 3
    found = eta_of(law, log_potential, unaries, excess, beam=beam)
    assert found == pytest.approx(wanted ** (1 / 3), rel=1e-9)


def test_eta_tends_to_the_ratio_of_eigenvalues() -> None:
    log_potential, _ = random_chain(5, 1, 4)
    excess = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)).double() + 0.2
    unaries = torch.zeros(4000, 5)
    law = PathLaw(log_potential, unaries)
    largest = [
        float(torch.linalg.eigvals(matrix).abs().max())
        for matrix in (torch.exp(2 * log_potential) * excess, torch.exp(log_potential))
    ]
    wanted = largest[0] / (7 * largest[1] ** 2)
    assert eta_of(law, log_potential, unaries, excess) == pytest.approx(wanted, rel=2e-3)


def test_eta_bounds_the_relative_variance_from_below() -> None:
    log_potential, unaries = random_chain(3, 4, 6)
    s = torch.randn(9, 2, generator=torch.Generator().manual_seed(3)).double()
    excess = torch.expm1(s @ s.T).reshape(3, 3, 3, 3)
    law = PathLaw(log_potential, unaries)
    own = torch.einsum("xyxy->xy", excess)
    eta = eta_of(law, log_potential, unaries, own)
    assert 0 < eta**3 < law.relative_second_moment(excess, 7)
    assert noise_ratio(lambda _: own, unaries[:1], log_partition=0.0, directions=7) == 0.0
