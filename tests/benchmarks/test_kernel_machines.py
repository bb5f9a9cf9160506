"""The benchmark of kernel machines: gates that refuse, contestants that compute the same, tables, targets."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("click", reason="the benchmarks' command line")
pytest.importorskip("sklearn", reason="comes with the extra `bench`")

from benchmarks import kernel_machines
from benchmarks.attention import FORMAT
from benchmarks.kernel_machines import Size, agreement, in_child, race
from benchmarks.measuring.contestants import Missing
from benchmarks.measuring.machine_tables import gates, machine_caption, machine_tables
from benchmarks.measuring.machines import (
    FLOOR,
    MACHINES,
    NOISE,
    OURS,
    RIDGE,
    TEST_ROWS,
    in_file,
    make_problem,
    r2,
    rfflearn_ridge,
)
from benchmarks.measuring.turns import Predictor
from benchmarks.report import kernel_machine_lines


@pytest.fixture(scope="module")
def problem():
    return make_problem(12_000)


def test_the_problem(problem):
    assert problem.x.shape == (12_000, 20)
    assert len(problem.x_test) == len(problem.f_test) == TEST_ROWS
    again = make_problem(12_000)
    assert (again.y == problem.y).all()
    # E var = 1 - E K(x, x') = 1 - (1 + 2 / l^2)^(-d/2), x and x' N(0, I); the mean of f is taken off
    assert problem.f_test.var() == pytest.approx(1 - (1 + 2 / 16) ** -10, abs=0.15)
    assert r2(problem, lambda rows: np.zeros(len(rows))) < 0.01


@pytest.mark.parametrize("number", [i for i, m in enumerate(MACHINES) if m.name != FLOOR])
def test_contestants_learn_the_same_function(number, problem):
    """128 features explain about half of it; a wrong bandwidth, gamma for its root, or noise none."""
    machine = MACHINES[number]
    x, y = problem.x.astype(machine.dtype), problem.y.astype(machine.dtype)
    try:
        predict = machine.fit(x, y, 128)
    except Missing as missing:
        pytest.skip(str(missing))
    assert 0.3 < r2(problem, predict) < 0.8


def test_the_gate(monkeypatch):
    checked = agreement(9_000, 64)
    assert checked["weights"] < checked["allowed"]
    from bochner.gram import GramStatistics

    honest = GramStatistics.of

    def wrong(*args, **kwargs):
        found = honest(*args, **kwargs)
        found.gram[0, 0] *= 1.001
        return found

    monkeypatch.setattr(GramStatistics, "of", wrong)
    spoiled = agreement(9_000, 64)
    assert spoiled["weights"] > spoiled["allowed"]


def test_a_child_measures(tmp_path, monkeypatch):
    (tmp_path / "x").touch()
    order = {"label": f"{OURS} float32", "folder": str(tmp_path), "features": 32, "threads": 1}
    with in_file(tmp_path, 2_000):
        found = in_child(order)
    assert found["reason"] is None
    assert found["wall"] > 0
    assert found["r2"] > 0.1
    assert [file.name for file in tmp_path.iterdir()] == ["x"], "the problem's files are gone"


def test_what_is_left_out_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_machines, "measure", lambda order: {"reason": "no such thing"})
    rows = race(Size(10_000_000, 4096, 1, 2), list(MACHINES), Predictor(), tmp_path)
    reasons = {row["contestant"] + row["dtype"]: row["reason"] for row in rows}
    assert reasons[RIDGE + "float64"].startswith("would need about 655 GB")
    assert reasons[OURS + "float32"] == "no such thing"
    assert all(row["wall"] is None for row in rows)


def test_a_missing_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "rfflearn.cpu", None)
    with pytest.raises(Missing, match="pip install rfflearn"):
        rfflearn_ridge(np.zeros((2, 20)), np.zeros(2), 8)


def result(ours=1.0):
    sizes = ((100_000, 1024), (1_000_000, 2048))
    shared = {"threads": 2, "rounds": 1, "reason": None, "r2": 0.8}

    def row(name, dtype, size, wall, megabytes):
        place = {"contestant": name, "dtype": dtype, "rows": size[0], "features": size[1]}
        return shared | place | {"cpu": 2 * wall, "wall": wall, "bytes": 1e6 * megabytes}

    rows = [
        row(name, dtype, size, wall, megabytes)
        for size in sizes
        for name, dtype, wall, megabytes in (
            (FLOOR, "float32", 1.0, 10),
            (OURS, "float32", 1.2 * ours, 100 * ours),
            (RIDGE, "float32", 1.3, 800),
            (RIDGE, "float64", 4.0, 1600),
        )
    ]
    agreed = {"rows": 20_000, "features": 2048, "condition": 1e4, "allowed": 5e-3}
    found = {
        "format": FORMAT,
        "complete": True,
        "rows": rows,
        "agreement": agreed | {"weights": 1e-4, "predictions": 1e-5},
        "environment": {"torch": "2", "peers": {"rfflearn": None}},
        "problem": {"dim": 20, "lengthscale": 4.0, "noise": NOISE, "alpha": 0.01},
    }
    found["gates"] = gates(found)
    return found


def test_targets_are_met_or_not():
    met = result()["gates"]
    assert len(met) == 5
    assert all(gate["met"] for gate in met)
    worse = result(ours=8.0)["gates"]
    assert not any(gate["met"] for gate in worse)
    half = {gate["statement"]: gate["met"] for gate in result(ours=1.2)["gates"]}
    assert sum(half.values()) == 2, half  # memory alone


def test_tables_and_the_page(tmp_path):
    found = result()
    found["tables"] = machine_tables(found)
    assert (
        "| bochner KernelRidge, float32 | 2.40 | 1.20 | 1.20 | 100 | 0.8000 |"
        in (found["tables"]["100,000 rows × 20, m = 1,024, 2 threads"])
    )
    assert "**no**" not in found["tables"]["Targets"]
    spoiled = result(ours=8.0)
    assert machine_tables(spoiled)["Targets"].count("**no**") == 5
    assert kernel_machine_lines(tmp_path) == []
    (tmp_path / "kernel_machines.json").write_text(json.dumps(found))
    lines = kernel_machine_lines(tmp_path)
    assert machine_caption(found) in lines
    assert "rfflearn not installed" in machine_caption(found)
