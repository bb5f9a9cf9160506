"""The decentralised experiment: what it compares with is right, and its quick form runs."""

from pathlib import Path

import numpy as np
import pytest

from bochner.gram.descent import GradientPath
from bochner.reproduce.claims import read_claims
from experiments.kernel_machines import decentralised, decentralised_circle, decentralised_report

CLAIMS = Path(decentralised.__file__).parent / "claims" / "decentralised.toml"


def test_excess_risk_is_the_integral():
    circle = decentralised_circle.Circle(20, np.random.default_rng(0))
    coefficients = np.random.default_rng(1).normal(size=(3, 20))
    x = np.arange(4096) / 4096  # exact for frequencies below 2048
    target = np.cos(2 * np.pi * x[:, None] * np.arange(1, 513)) @ circle.target
    assert (target**2).mean() == pytest.approx(1)
    expected = ((circle.features(x) @ coefficients.T - target[:, None]) ** 2).mean(axis=0)
    assert circle.excess_risk(coefficients) == pytest.approx(expected, rel=1e-10)
    assert (circle.features(x) ** 2).sum(axis=1) == pytest.approx(1)


def test_source_and_capacity_are_those_of_the_rate():
    """sum a_j^2 p_j^(-2r) stays finite at r = 1/2 and grows without end a little above."""
    circle = decentralised_circle.Circle(2, np.random.default_rng(0))
    law = np.arange(1, 513) ** -2.0
    half = np.cumsum(circle.target**2 / law)
    more = np.cumsum(circle.target**2 / law**1.2)
    tail = [np.diff(np.log(series))[-100:].mean() * 512 for series in (half, more)]
    assert 0 < tail[0] < 0.2 < tail[1]  # exponents of growth: 0 in the limit, and 0.3


def test_an_agent_learns_the_target():
    circle = decentralised_circle.Circle(200, np.random.default_rng(0))
    part = circle.agent(4000)
    path = GradientPath(part, step_size=1.0).coefficients([0, 200])
    risks = circle.excess_risk(path[..., 0])
    assert risks[0] == pytest.approx(1)
    assert risks[1] < 0.05


def test_a_cell_is_determined_by_its_fields():
    cell = {"part": "rate", "rows": 256, "agents": 16, "seed": 1}
    assert decentralised.run(cell, Path()) == decentralised.run(cell, Path())


def test_quick_form_end_to_end(tmp_path):
    rows = [row for cell in decentralised.cells(True) for row in decentralised.run(cell, tmp_path)]
    found = decentralised_report.measured(rows)
    claims = read_claims(CLAIMS, "kernel-decentralised").claims
    assert set(found) == {claim.id for claim in claims}
    assert found["gloo"] == 0
    assert found["complete-graph"] < 1e-9
    assert -1.2 < found["rate-all-rows"] < -0.3
    network = decentralised_report.ratios(rows, 16, "ring").value
    assert network > decentralised_report.ratios(rows, 16, "complete").value
    assert decentralised_report.ratios(rows, 16, "alone").value > network
    summary = decentralised_report.summary(rows)
    assert "Lowest along the path" in summary
    assert "| ring | 4 | 20 | 0 |" in summary
    decentralised_report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["decentralised.png"]


def test_slopes():
    rows = [
        {"part": "rate", "graph": "ring", "rows": n, "seed": s, "mean": (1 + s) * n**-0.5}
        for n in (10, 100, 1000)
        for s in range(3)
    ]
    found = decentralised_report.slope(rows, "ring")
    assert (found.low, found.high) == pytest.approx((-0.5, -0.5))


def test_cells_of_the_full_form():
    cells = decentralised.cells(False)
    parts = [cell["part"] for cell in cells]
    assert {part: parts.count(part) for part in set(parts)} == {
        "path": 5,
        "rate": 56,
        "network": 20,
        "gloo": 3,
    }
