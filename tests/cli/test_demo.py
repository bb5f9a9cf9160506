"""The demo from end to end on the real model, with fewer maps and features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import bochner.cli.demo
from bochner.cli.commands import bochner as command
from bochner.cli.sources import MiniLMRun, run_minilm
from bochner.transformers import converted_layers


def _kept(runs: list[MiniLMRun], run: MiniLMRun) -> MiniLMRun:
    runs.append(run)
    return run


def test_demo_measures_chooses_swaps_times_and_says_where_the_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["positive", "data-aware", "calibrated"]
    monkeypatch.setattr(bochner.cli.demo, "LABELS", labels)
    monkeypatch.setattr("bochner.feature_maps.calibrated.LANDMARKS", 64)  # a quicker fit
    runs: list[MiniLMRun] = []
    monkeypatch.setattr(
        bochner.cli.demo, "run_minilm", lambda **sizes: _kept(runs, run_minilm(**sizes))
    )
    out = tmp_path / "out"
    arguments = ["demo", "--quick", "--num-features", "16,64", "--seeds", "3", "--out", str(out)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    names = ["errors.png", "results.json", "tables.md"]
    assert sorted(p.name for p in out.iterdir()) == names
    for name in names:
        assert name in result.output
    found = json.loads((out / "results.json").read_text())
    errors = {
        (r["map"], r["num_features"]): r["output_error"]["value"]
        for r in found["comparison"]["rows"]
    }
    trivial = found["comparison"]["averaging_the_values"]
    assert 0.6 < trivial < 0.9
    assert errors["data-aware", 64] < trivial < errors["positive", 64]
    assert errors["calibrated", 64] < errors["data-aware", 64]
    assert found["recommendation"]["choice"] == "calibrated"
    reasons = " ".join(found["recommendation"]["reasons"])
    assert "not bounded on other data. The best unbiased map is data-aware" in reasons
    cosines = {(s["attention"], s["num_features"]): s["mean_cosine"] for s in found["swaps"]}
    assert cosines["data-aware", 64] > cosines["positive", 64]
    assert cosines["data-aware", 64] > cosines["(averaging the values)", 1]
    assert all(len(times) == len(found["lengths"]) for times in found["attention_seconds"].values())
    near = ", window 32, 8 sinks"
    calibrated = cosines["calibrated (biased)" + near, 32]
    assert calibrated > cosines["data-aware" + near, 32] > cosines["data-aware", 16]
    assert calibrated > cosines["(averaging the values)" + near, 1]
    worse = {(s["attention"], s["num_features"]): s for s in found["swaps"]}
    assert worse["positive", 64]["heads_worse_than_averaging"] > 36
    assert worse["calibrated (biased)" + near, 32]["heads_worse_than_averaging"] < 8
    assert worse["positive", 64]["heads"] == 72
    timed = [*found["model_seconds"], *found["attention_seconds"]]
    assert timed.count("calibrated (biased)" + near + ", m = 32") == 2
    assert "calibrated (biased), m = 32" in timed
    tables = (out / "tables.md").read_text()
    assert "| calibrated (biased) | – | " in tables
    assert "fits to 1 of the 2 calibration windows" in " ".join(result.output.split())
    (run,) = runs
    assert not converted_layers(run.model)  # exact again
