"""The attention experiment: its inputs, aggregation and sizes, against naive figures."""

import math
from pathlib import Path

import pytest
import torch

from bochner.catalog import spec
from bochner.feature_map import FeatureMap
from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat
from experiments.hybrid_random_features import attention, attention_inputs, attention_report
from experiments.hybrid_random_features.attention_inputs import AVERAGING, GAUSSIANS, Inputs
from tests.naive import mean_is


@pytest.fixture
def heads(generator):
    """Five heads of small Gaussian points on two texts, the last the steepest."""
    scale = torch.tensor([0.5, 0.1, 0.3, 0.2, 0.9])[:, None, None]
    q, fit_q = (scale * torch.randn(2, 5, 24, 8, generator=generator) for _ in range(2))
    k, fit_k = (torch.randn(2, 5, 32, 8, generator=generator) for _ in range(2))
    v = torch.randn(2, 5, 32, 8, generator=generator)
    return Inputs(q, k, v, fit_q, fit_k, "made up")


@pytest.fixture
def text_of_heads(monkeypatch, heads):
    monkeypatch.setattr(attention, "text_heads", lambda *sizes: heads)
    return heads


def test_steepness_is_the_deviation_within_rows(heads):
    assert heads.steepness.argsort().tolist() == [1, 3, 2, 0, 4]
    q, k = heads.q[:, 3], heads.k[:, 3]
    variances = [float((k[text] @ row).var(correction=0)) for text in range(2) for row in q[text]]
    assert float(heads.steepness[3]) == pytest.approx(math.sqrt(math.fsum(variances) / 48))


@pytest.mark.parametrize("law", GAUSSIANS)
def test_gaussian_points_have_their_law(law):
    gaussians = GAUSSIANS[law]
    found = gaussians.draw(40, seed=3)
    assert found.q.shape == (40, 512, 64)
    square = gaussians.square + gaussians.shift**2
    for x in (found.q, found.k, found.fit_q, found.fit_k):
        mean_is(x.square().sum(-1).mean(-1).double(), square, see=0.05)
    between = (found.q.mean(-2) * found.k.mean(-2)).sum(-1)
    target = gaussians.alignment * gaussians.shift**2
    assert float(between.mean()) == pytest.approx(target, abs=0.05)
    apart = (found.q - found.fit_q).square().sum(-1).mean()
    assert float(apart) == pytest.approx(2 * gaussians.square, rel=0.05)


def test_averaging_is_the_naive_error(text_of_heads, tmp_path):
    cell = {"part": "text", "map": AVERAGING, "budget": 64, "texts": 2, "calibration": 1}
    rows = attention.run(cell | {"stride": 1, "redraws": 2, "seed": 0}, tmp_path)
    assert [row["group"] for row in rows] == ["all", *(f"{i} of 4" for i in range(1, 5))]
    assert [row["heads"] for row in rows] == [5, 2, 1, 1, 1]
    q, k, v = (x[:, 4].double() for x in (text_of_heads.q, text_of_heads.k, text_of_heads.v))
    exact = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    gap = (v.mean(-2, keepdim=True) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert rows[-1]["output"] == pytest.approx(float(gap.mean()), rel=1e-3)  # of two texts
    assert (
        rows[-1]["flattest"]
        == rows[-1]["steepest"]
        == pytest.approx(float(text_of_heads.steepness[4]), rel=1e-3)
    )


@pytest.mark.parametrize("name", attention.NAMES)
def test_sizes_are_rounded_down_and_misfits_said(text_of_heads, tmp_path, name):
    unit = spec(name).smallest_budget()
    cell = {"part": "text", "map": name, "texts": 2, "calibration": 1, "stride": 1}
    cell |= {"redraws": 2, "seed": 1}
    rows = attention.run(cell | {"budget": 2 * unit + unit // 2}, tmp_path)
    assert {row["columns"] for row in rows} == {2 * unit}
    if spec(name).positive or name == "hyperbolic":
        assert all(row["negative_entries"] == row["nonpositive_denominators"] == 0 for row in rows)
    if unit > 1:
        (row,) = attention.run(cell | {"budget": unit - 1}, tmp_path)
        assert row["skipped"] == f"needs a multiple of {unit} columns"


def test_the_papers_angular_hybrid_counts_projections(generator):
    phi: FeatureMap = attention.angular_of_paper(attention.Size(8, 64, (3,), generator))
    assert phi.num_features == 4 * 8 * 9
    assert phi.num_projections == 8 + 8 + 8
    assert phi.batch_shape == (3,)


@pytest.fixture
def rows(monkeypatch, text_of_heads):
    monkeypatch.setattr(attention_inputs, "LENGTH", 40)
    return [row for cell in attention.cells(True) for row in attention.run(cell, Path())]


def test_rows_give_claims_tables_and_pictures(rows, tmp_path):
    check_flat(rows, "hrf-attention")
    script = Path(attention.__file__)
    claims = read_claims(script.parent / "claims" / "attention.toml", "hrf-attention")
    table = claim_rows(claims, attention.EXPERIMENT.measured(rows))
    assert len(table) == 42 + 14
    assert all(row[1] == "our earlier measurement" for row in table)

    rows.append(
        {"part": "text", "map": "cluster", "budget": 3, "columns": 0, "skipped": "a reason"}
    )
    text = attention_report.summary(rows)
    assert "Left out: cluster at 3 (a reason)." in text
    assert all(f"| **{name}** |" in text for name in attention_report.HYBRIDS)
    attention_report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["errors.png"]


def test_whole_intervals_are_compared_with_averaging():
    row = {"part": "text", "budget": 8, "group": "all", "heads": 3}
    rows = [
        row | {"map": AVERAGING, "output": 0.5, "output_high": 0.5},
        row | {"map": "angular", "output": 0.4, "output_high": 0.6},
        row | {"map": "cluster", "output": 0.4, "output_high": 0.45},
        row | {"map": "aderf", "output": 0.3, "output_high": 0.45},
    ]
    text = attention_report._beating(rows, 8, "all", "All heads")
    assert text.endswith("(0.50) for the hybrids: cluster; for other maps: aderf.")
