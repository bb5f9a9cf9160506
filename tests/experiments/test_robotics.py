"""Locomotion with attention policies: the policy, the strategy, the episodes, and the bookkeeping."""

import math
import warnings

import numpy as np
import pytest
import torch

from bochner.attention import DenominatorWarning
from experiments.hybrid_random_features import (
    attention_kinds,
    attention_policy,
    evolution,
    locomotion,
    robotics,
    robotics_report,
)

COUNT, OBSERVED, ACTIONS = 5, 7, 2


@pytest.fixture
def policy():
    return attention_policy.Policy(OBSERVED, ACTIONS)


@pytest.fixture
def population(policy):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(COUNT, policy.num_parameters, generator=generator)


@pytest.fixture
def observations():
    return torch.randn(COUNT, OBSERVED, generator=torch.Generator().manual_seed(4))


def test_a_population_acts_as_its_members_do_alone(policy, population, observations):
    attend = attention_kinds.attention("positive", 1)
    together = policy.act(policy.parts(population), observations, attend)
    alone = [
        policy.act(policy.parts(population[i : i + 1]), observations[i : i + 1], attend)
        for i in range(COUNT)
    ]
    assert together.shape == (COUNT, ACTIONS)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_the_policy_by_hand(policy, population, observations):
    """One member, token by token, with loops."""
    p = {name: part[0].double() for name, part in policy.parts(population[:1]).items()}
    z = observations[0].double()
    tokens = [p["index"][i] + z[i] * p["w"][0] for i in range(OBSERVED)]
    radius = math.sqrt(attention_policy.SQUARED_NORM)
    q, k = (
        [radius * (e @ p[side]) / (e @ p[side]).norm() for e in tokens] for side in ("query", "key")
    )
    v = [torch.tanh(z[i] * p["slope"][0] + p["offset"][0]) for i in range(OBSERVED)]
    rows = []
    for i in range(OBSERVED):
        weights = [math.exp(float(q[i] @ k[j])) for j in range(OBSERVED)]
        mixed = sum(w * value for w, value in zip(weights, v, strict=True)) / sum(weights)
        rows.append(torch.tanh(mixed))
    expected = torch.tanh(torch.cat(rows) @ p["readout"] + p["bias"][0])
    attend = attention_kinds.attention("exact", 0)
    found = policy.act(policy.parts(population[:1]), observations[:1], attend)[0]
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_only_attention_tells_coordinates_apart(policy, population, observations):
    """With uniform weights a permuted observation gives the same actions."""
    parts, permuted = policy.parts(population), observations.roll(1, dims=-1)
    for kind, same in (("uniform", True), ("exact", False)):
        attend = attention_kinds.attention(kind, 0)
        actions = [policy.act(parts, z, attend) for z in (observations, permuted)]
        assert torch.allclose(*actions, atol=1e-5) is same


def test_the_readout_starts_at_zero(policy, observations):
    start = policy.initial(torch.Generator().manual_seed(0)).expand(COUNT, -1)
    attend = attention_kinds.attention("exact", 0)
    assert float(policy.act(policy.parts(start), observations, attend).abs().max()) == 0.0


@pytest.mark.parametrize("kind", attention_kinds.LINEAR)
def test_linear_kinds_share_their_columns_and_count_their_denominators(
    policy, population, observations, kind
):
    attend = attention_kinds.attention(kind, 1)
    assert attend.feature_map.num_features == attention_kinds.COLUMNS
    assert attend.feature_map.positive is (kind == "positive")
    q, k, v = policy.attended(policy.parts(population), observations)
    share = attend.not_positive(q, k)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attend(q, k, v)
    texts = [str(w.message) for w in caught if w.category is DenominatorWarning]
    assert (share > 0) is bool(texts)
    assert all(text.startswith(f"{share:.2%} of") for text in texts)


def test_the_strategy_climbs_a_hill():
    generator = torch.Generator().manual_seed(0)
    target = torch.linspace(-1.0, 1.0, 20)
    strategy = evolution.EvolutionStrategy(
        torch.zeros(20), pairs=16, sigma=0.1, rate=0.05, generator=generator
    )
    for _ in range(150):
        strategy.tell(-(strategy.ask() - target).square().sum(-1))
    assert float((strategy.centre - target).abs().max()) < 0.2


def test_ranks_and_pairs():
    ranks = evolution.centred_ranks(torch.tensor([3.0, -1.0, 100.0]))
    assert ranks.tolist() == [0.0, -0.5, 0.5]
    strategy = evolution.EvolutionStrategy(
        torch.ones(3), pairs=2, sigma=0.5, rate=0.1, generator=torch.Generator().manual_seed(0)
    )
    up, down = strategy.ask().split(2)
    assert torch.allclose(up + down, torch.full((2, 3), 2.0))
    with pytest.raises(ValueError, match="finite"):
        strategy.tell(torch.tensor([0.0, math.nan, 0.0, 0.0]))
    with pytest.raises(ValueError, match="expected the last"):
        strategy.tell(torch.zeros(3))


def test_the_normaliser_is_the_mean_and_variance_of_all():
    generator = np.random.default_rng(0)
    parts = [generator.normal(3.0, 2.0, (n, 4)) for n in (5, 11, 2)]
    normaliser = locomotion.Normaliser(4)
    for part in parts:
        normaliser.add(part)
    together = np.concatenate(parts)
    expected = (together - together.mean(0)) / together.std(0)
    assert np.allclose(normaliser(together), expected, atol=1e-5)


# -- what the pictures and tables are made of ----------------------------------------------------------
def judged(kind, returns, what="trained"):
    return [
        {"kind": kind, "seed": seed, "what": what, "mean_return": value}
        for seed, value in enumerate(returns)
    ]


def test_differences_are_within_seeds():
    rows = judged("angular", [10.0, 20.0, 30.0]) + judged("positive", [7.0, 18.0, 29.0])
    found = robotics_report.gain(rows, "angular", "positive")
    assert found.mean == pytest.approx(2.0)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(2), 97.5 %
    assert found.unclear
    assert not robotics_report.Estimate(3.0, 2.0).unclear
    assert robotics_report.Estimate.of([4.0]).unclear


# -- the task itself -----------------------------------------------------------------------------------
@pytest.fixture
def mujoco():
    pytest.importorskip("gymnasium")
    return pytest.importorskip("mujoco")


def test_one_cell_end_to_end(mujoco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robotics, "PAIRS", 2)
    rows = []
    for kind in attention_kinds.LABELS:
        cell = {"kind": kind, "seed": 0, "generations": 2, "steps": 6}
        rows += robotics.run(cell, tmp_path)
        if kind == "angular":
            again = robotics.run(cell, tmp_path)
            fixed = [{**row, "seconds": None} for row in rows[-len(again) :]]
            assert [{**row, "seconds": None} for row in again] == fixed
    assert not list(tmp_path.iterdir()), "MuJoCo wrote a log file"
    trained = [row for row in rows if row.get("what") == "trained"]
    assert len({row["parameters"] for row in trained}) == 1
    assert all(row["env_steps"] == row["generation"] * 5 * 6 for row in rows if "generation" in row)
    assert {row["kind"] for row in rows if row.get("what") == "replaced by exact"} == set(
        attention_kinds.LINEAR
    )
    assert set(robotics.EXPERIMENT.measured(rows)) == {
        "angular-over-positive",
        "gaussian-over-positive",
        "angular-over-exact",
    }
    text = robotics.EXPERIMENT.summary(rows)
    assert "says nothing" in text
    assert "nan" not in text
    robotics.EXPERIMENT.draw(rows, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"learning.png", "returns.png"}


def test_initial_states_follow_the_seeds_and_bad_actions_are_refused(mujoco):
    with locomotion.Arena(2, steps=3) as arena:
        act = locomotion.random_actions(arena, 0)
        first = arena.episodes(act, [5, 6]).observations
        assert first.shape == (3, 2, arena.observed)
        assert not np.allclose(first[0, 0], first[0, 1])
        assert np.array_equal(arena.episodes(act, [6, 5]).observations[0], first[0, ::-1])
        with pytest.raises(ValueError, match="not finite"):
            arena.episodes(lambda _: np.full((2, arena.actions), np.nan), [5, 6])


@pytest.mark.parametrize("quick", [True, False])
def test_cells_differ_and_cover_all_kinds(quick):
    cells = robotics.cells(quick)
    assert {cell["kind"] for cell in cells} == set(attention_kinds.LABELS)
    assert len({tuple(cell.values()) for cell in cells}) == len(cells)
