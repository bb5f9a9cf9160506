"""The demo from end to end on the real model, with fewer maps and features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import bochner.cli.demo
from bochner.cli.commands import bochner as command


def test_demo_measures_chooses_swaps_times_and_says_where_the_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bochner.cli.demo, "LABELS", ["positive", "data-aware"])
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
    cosines = {(s["attention"], s["num_features"]): s["mean_cosine"] for s in found["swaps"]}
    assert cosines["data-aware", 64] > cosines["positive", 64]
    assert cosines["data-aware", 64] > cosines["(averaging the values)", 1]
    assert all(len(times) == len(found["lengths"]) for times in found["attention_seconds"].values())
