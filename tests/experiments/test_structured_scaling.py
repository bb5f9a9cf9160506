"""The scaling experiment: contestants agree or are refused, times and memory, its tables and claims."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat, checked_cells
from experiments.structured import chain_race, scaling, scaling_report, scaling_tables
from experiments.structured.chain_contestants import (
    CONTESTANTS,
    EXACT,
    PARTITION,
    TRAINING,
    Missing,
    Prepared,
    Result,
    pytorch_crf_bytes,
    torch_struct_bytes,
)
from experiments.structured.chain_problems import Problem, Setting, forward_backward, truth
from experiments.structured.chain_race import GateFailed, check, in_turn, race, too_much

SMALL = Setting(steps=6, num_features=5, dim=4)


def contestant(name):
    return next(c for c in CONTESTANTS if c.name == name)


def prepared(name, form, states=7):
    try:
        return contestant(name).prepare(Problem(SMALL, states), form)
    except Missing as missing:
        pytest.skip(str(missing))


def test_rows_of_the_problem_are_transition_probabilities():
    matrix = Problem(SMALL, 9).matrix()
    assert torch.allclose(matrix.sum(1), torch.ones(9))
    assert float(matrix.min()) > 0


def test_the_dense_recursion_is_the_sum_over_all_paths():
    made = Problem(replace(SMALL, steps=4), 3)
    matrix, u = made.matrix().double(), made.unaries.double()
    paths = torch.cartesian_prod(*[torch.arange(3)] * 4)
    weights = u.gather(1, paths.T).sum(0) + matrix.log()[paths[:, :-1], paths[:, 1:]].sum(1)
    found, marginals = forward_backward(matrix, u)
    assert found == pytest.approx(float(weights.logsumexp(0)), abs=1e-9)
    p = weights.softmax(0)
    for step in range(4):
        expected = torch.zeros(3).double().index_add(0, paths[:, step], p)
        assert torch.allclose(marginals[step], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "form"), [(c.name, form) for c in CONTESTANTS if c.same for form in c.forms]
)
def test_contestants_compute_the_same_chain(name, form):
    known = truth(Problem(SMALL, 7))
    found = prepared(name, form).run()
    assert check(name, found, known) < 1e-5
    assert (found.marginals is None) == (form == PARTITION)


@pytest.mark.parametrize("wrong", ["log Z", "marginals"])
def test_a_wrong_contestant_is_refused(wrong):
    known = truth(Problem(SMALL, 7))
    value = known.log_partition * (1.001 if wrong == "log Z" else 1)
    marginals = known.marginals.roll(1, 0) if wrong == "marginals" else known.marginals
    with pytest.raises(GateFailed, match="differs from the dense recursion"):
        check("someone", Result(value, marginals), known)


def test_on_the_fly_is_the_kernel_of_the_embeddings():
    made = Problem(SMALL, 7)
    a, b = made.embeddings
    expected, _ = forward_backward((a @ b.T).exp().double(), made.unaries.double())
    found = prepared("exact, K on the fly", PARTITION)
    first = made.unaries[0].double().logsumexp(0)  # what the run leaves out
    top = made.unaries[1:].amax(-1).double().sum()
    assert found.share == 1.0
    assert found.run().log_partition + float(first + top) == pytest.approx(expected, abs=1e-4)


def test_what_asks_for_too_much_is_not_started():
    reason = too_much(contestant("torch-struct"), Setting(), 256, PARTITION)
    assert reason == "would ask for 9 GB"
    assert torch_struct_bytes(1024, 256, PARTITION) == pytest.approx(550e9, rel=0.01)
    assert pytorch_crf_bytes(14057, 12, TRAINING) == pytest.approx(19e9, rel=0.01)
    assert too_much(contestant(EXACT), Setting(), 65536, PARTITION) == "would ask for 17 GB"
    assert "CPU seconds" in too_much(contestant("hmmlearn, log"), Setting(), 4096, PARTITION)
    assert too_much(contestant("bochner LowRankChain"), Setting(), 65536, PARTITION) is None


def test_times_are_medians_of_turns_and_scaled_to_the_whole(monkeypatch):
    clock = iter(float(x) for x in range(1000))
    monkeypatch.setattr(chain_race.time, "process_time", lambda: next(clock))
    runs = {name: Prepared(lambda: Result(0.0)) for name in "ab"}
    seconds, _ = in_turn(runs, budget=5.0)
    assert seconds == {"a": [1.0] * 5, "b": [1.0] * 5}
    half = replace(contestant(EXACT), prepare=lambda *_: Prepared(lambda: Result(0.0), 0.5))
    (row,) = race(SMALL, 7, PARTITION, budget=5.0, memory=False, contestants=[half])
    assert (row["seconds"], row["share"], row["difference"]) == (2.0, 0.5, None)


def test_a_missing_peer_is_a_row_with_a_reason():
    def absent(made, form):
        raise Missing("not installed")

    some = [replace(contestant("torch-struct"), prepare=absent), contestant(EXACT)]
    first, second = race(SMALL, 7, PARTITION, budget=0.01, memory=False, contestants=some)
    assert (first["reason"], first["seconds"]) == ("not installed", None)
    assert second["difference"] < 1e-5


def test_a_child_measures_the_peak():
    """A stored K of 4,000 states is 64 MB; the low-rank chain holds a tenth of it."""
    setting = Setting(steps=3, num_features=4, dim=4)
    stored = chain_race.peak_of(setting, 4000, PARTITION, EXACT)
    assert 60e6 < stored < 220e6


@pytest.mark.parametrize("quick", [True, False])
def test_cells(quick):
    cells = checked_cells(scaling.EXPERIMENT, quick)
    assert {c["part"] for c in cells} == {"race", "error"}
    if not quick:
        assert max(c["states"] for c in cells) == 65536
        assert {c["steps"] for c in cells} == {256}


def test_errors_of_an_approximation():
    cell = {"part": "error", "states": 40, "logit_std": 0.3, "steps": 5, "num_features": 64}
    rows = scaling.run({**cell, "draws": 4}, Path())
    assert [r["way"] for r in rows] == ["shared", "8 blocks", "hybrid"]
    assert all(0 < r["rms"] < 0.1 for r in rows[:2])
    assert rows[2]["rms"] < 1e-5  # the beam of 64 holds all 40 states
    assert rows[0]["verdict"] == "valid"


@pytest.fixture
def rows():
    """Figures in place of measurements: exact grows with the square, ours with the states."""
    found = []
    for cell in scaling.cells(False):
        if cell["part"] == "error":
            found.append({**cell, "way": "shared", "mean": -0.01, "rms": 0.02, "worst": 0.03})
            found[-1] |= {"verdict": "valid", "chi": 2.0, "eta": 0.1, "predicted_std": 0.02}
            continue
        n = cell["states"]
        for c in CONTESTANTS:
            if cell["form"] not in c.forms:
                continue
            row = {**cell, "contestant": c.name, "runs": 3, "share": 1.0, "difference": 1e-6}
            row |= {"seconds": n * 1e-5, "bytes": 100 * n, "reason": None}
            if c.name == EXACT:
                row |= {"seconds": n**2 * 1.25e-8, "share": 0.5 if n > 9999 else 1.0}
            if c.name == "torch-struct":
                row |= {"seconds": 60.0, "bytes": 10**9}
            if c.name == "hmmlearn, log" and n > 2000:
                row |= {"seconds": None, "bytes": None, "reason": "would take about 99 CPU seconds"}
            found.append(row)
    return found


def test_rows_give_claims_tables_and_a_picture(rows, tmp_path):
    check_flat(rows, "structured-scaling")
    values = scaling_report.measured(rows)
    assert values["crossover"] == (512.0, 1024.0)
    assert values["faster-16384"] == pytest.approx(20.48)
    assert values["torch-struct-faster-marginals"] == pytest.approx(60 / 1.28e-3)
    assert values["seconds-65536"] == pytest.approx(0.65536)
    file = Path(scaling.__file__).parent / "claims" / "scaling.toml"
    assert claim_rows(read_claims(file, "structured-scaling"), values)
    text = scaling_report.summary(rows)
    assert "between 512 and 1,024 states" in text
    assert "| bochner LowRankChain | 0.00128 | 0.00512 | 0.0102 |" in text
    assert f"{EXACT}, log Z, 16,384 states: 0.5 of the chain was run, and scaled." in text
    assert "hmmlearn, log, log Z, 4,096 states: would take about 99 CPU seconds." in text
    assert "~3.36" in text
    scaling_report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["scaling.png"]


def test_figures_that_were_not_measured_are_no_figures(rows):
    for row in rows:
        row["bytes"] = None
    assert scaling_report.measured(rows)["megabytes-65536"] != 0
    assert "| MB |" not in "".join(scaling_tables.all_tables(scaling_report.raced(rows)).values())
