"""Benchmarks: gates that refuse, turns, predictions, floors, tables, and a page that was not typed."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click", reason="the benchmarks' command line")

from benchmarks.attention import FORMAT, Race, pass_gates
from benchmarks.measuring import contestants as entered
from benchmarks.measuring.contestants import CONTESTANTS, Contestant, Missing, Setting
from benchmarks.measuring.gates import GateFailed, check
from benchmarks.measuring.machine import Rates
from benchmarks.measuring.tables import (
    attention_tables,
    crossover,
    decoding_table,
    memory_table,
    readme_table,
)
from benchmarks.measuring.turns import Predictor, time_in_turn, too_much
from benchmarks.report import page

ROOT = Path(__file__).resolve().parents[2]
SMALL = Setting(heads=2, dim=8, num_features=16)
RATES = Rates(gemm={"float32": 1e9, "bfloat16": 4e9}, copy=1e9)


def contestant(label: str) -> Contestant:
    return next(c for c in CONTESTANTS if c.label == label)


# -- gates ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("number", [i for i, c in enumerate(CONTESTANTS) if c.ours])
def test_ours_pass_their_gate(number: int, causal: bool) -> None:
    assert check(CONTESTANTS[number], SMALL, causal=causal) < 0.03


@pytest.mark.parametrize("causal", [False, True])
def test_a_wrong_output_is_not_timed(causal: bool) -> None:
    """The causal form in place of the other one, and a scale of 1.01."""
    honest = contestant("bochner positive float32")
    swapped = replace(honest, build=lambda s, c: honest.build(s, not c))
    scaled = replace(honest, build=lambda s, c: lambda *x: 1.01 * honest.build(s, c)(*x))
    for wrong in (swapped, scaled):
        with pytest.raises(GateFailed, match="relative error"):
            check(wrong, SMALL, causal=causal)
        with pytest.raises(SystemExit, match="nothing is timed"):
            pass_gates([wrong], SMALL)


def test_peers_compute_the_same_thing() -> None:
    """Many features of a peer come near exact attention if the temperature is undone, and only then."""
    pytest.importorskip("darkformer_pytorch", reason="peers come with the extra `bench`")
    setting = replace(SMALL, num_features=4096)
    exact = contestant("SDPA float32").build(setting, False)(*setting.points(64, torch.float32))

    def error(peer: Contestant) -> float:
        out = peer.build(setting, False)(*peer.points(setting, 64))
        return float((out - exact).norm() / exact.norm())

    for label in ("performer-pytorch float32", "darkformer-pytorch float32"):
        peer = contestant(label)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # performer-pytorch draws from the global generator
            assert error(peer) < 0.1, label
            assert error(replace(peer, peer=False)) > 0.12, label


def test_a_missing_peer_is_a_row_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("performer_pytorch", "darkformer_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    peers = [c for c in CONTESTANTS if c.peer]
    assert len(peers) == 4
    with pytest.raises(Missing, match="not installed"):
        peers[0].build(SMALL, False)
    rows = Race(SMALL, RATES, peers, causal=True, training=False).at(16)
    assert [r["contestant"] for r in rows] == [c.name for c in peers]
    for row in rows:
        assert row["seconds"] is None
        assert row["reason"].startswith("missing: not installed")


# -- turns ----------------------------------------------------------------------------------------------
def test_contestants_take_turns() -> None:
    calls: list[str] = []
    timings = time_in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=1.0, most=4
    )
    assert "".join(calls) == "ab" + 4 * "ab"
    assert timings["a"].runs == 4
    assert timings["a"].seconds is not None


def test_a_prediction_follows_the_last_two_lengths() -> None:
    known = Predictor()
    assert known.predict("x", 1000) is None
    known.learn("x", 1000, 2.0)
    assert known.predict("x", 4000) == pytest.approx(8.0)  # linear, until more is known
    known.learn("x", 2000, 8.0)
    assert known.predict("x", 4000) == pytest.approx(32.0)
    known.learn("x", 4000, 1000.0)
    assert known.predict("x", 8000) == pytest.approx(4000.0)  # never worse than quadratic


def test_what_is_not_started() -> None:
    assert too_much(None, None) is None
    assert too_much(59.0, 5e9) is None
    assert too_much(61.0, None) == "would take about 61 s"
    assert too_much(1.0, 13e9) == "would need about 13 GB"


def test_a_race_leaves_out_what_takes_too_long() -> None:
    race = Race(SMALL, RATES, [contestant("SDPA float32")], causal=False, training=False)
    race.predictor.learn("SDPA float32", 16, 1e6)
    (row,) = race.at(32)
    assert row["seconds"] is None
    assert row["reason"] == "would take about 2000000 s"


def test_performers_causal_training_needs_gigabytes() -> None:
    race = Race(Setting(), RATES, [], causal=True, training=True)
    performer = contestant("performer-pytorch float32")
    assert race.training_bytes(performer, 4096) == pytest.approx(3.2e9, rel=0.01)
    assert too_much(None, race.training_bytes(performer, 16384)) is not None


# -- floors and tables ----------------------------------------------------------------------------------
def test_floor() -> None:
    """By hand: 8 heads, L = 1000, m = 128, d = 64: 8 (8 L m d + 4 L m) = 528.4 MFLOP."""
    floor = RATES.floor(Setting(), 1000, torch.float32)
    assert floor == pytest.approx(8 * 1000 * (8 * 128 * 64 + 4 * 128) / 1e9)
    assert RATES.floor(Setting(), 1000, torch.float32, training=True) == pytest.approx(3 * floor)
    slow_memory = replace(RATES, copy=1e6)
    assert slow_memory.floor(Setting(), 1000, torch.bfloat16) == pytest.approx(
        4 * 8 * 1000 * 64 * 2 / 1e6
    )


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.5, 2.0, 8.0], "512"),
        ([1.5, 2.0, 8.0], "<= 256"),
        ([0.1, 0.2, 0.3], "> 4,096"),
        ([1.5, 0.5, 2.0], "2,048"),  # the last time that it becomes faster counts
        ([], "–"),
    ],
)
def test_crossover(ratios: list[float], said: str) -> None:
    assert crossover([256, 1024, 4096][: len(ratios)], ratios) == said


def rows() -> list[dict[str, Any]]:
    """SDPA quadratic, ours linear, a peer that is missing."""
    found = []
    for training in (False, True):
        for causal in (False, True):
            for length in (512, 1024, 4096):
                times = {
                    "SDPA": 1e-9 * length**2,
                    "bochner positive": 1e-6 * length,
                    "performer-pytorch": None,
                }
                found += [
                    {
                        "contestant": name,
                        "dtype": "float32",
                        "length": length,
                        "causal": causal,
                        "training": training,
                        "seconds": seconds,
                        "runs": 3,
                        "reason": None if seconds else "missing: not installed",
                        "floor_seconds": 0.5e-6 * length,
                    }
                    for name, seconds in times.items()
                ]
    return found


def test_tables() -> None:
    result = {
        "environment": {"threads": 2, "torch": "2", "peers": {"performer-pytorch": None}},
        "heads": 8,
        "dim": 64,
        "num_features": 128,
        "rates": RATES.as_dict(),
        "rows": rows(),
    }
    tables = attention_tables(result)
    assert "performer-pytorch not installed" in tables["What was measured"]
    assert "| bochner positive, float32 | 1,000 | 1,000 | 1,000 | 1,000 |" in tables["Crossover"]
    assert "| bochner positive, float32 | 0.51 | 1.02 | 4.10 |" in tables["Causal, forward"]
    assert "| bochner positive, float32 | 2.0 | 2.0 | 2.0 |" in tables["Causal, forward: floor"]
    assert tables["Left out"].count("performer-pytorch: missing: not installed.") == 1
    short = readme_table(result)
    assert "| 4,096 causal, forward | 16.8 | – | 4.10 | – | 4.10 | – | – |" in short


def test_decoding_and_memory_tables() -> None:
    decoding = [
        {"contestant": "a", "dtype": "float32", "context": n, "seconds": s}
        for n, s in ((256, 3.456e-6), (1024, 1.2e-3))
    ]
    assert "| a, float32 | 3.5 | 1,200 |" in decoding_table({"rows": decoding})
    memory = [
        {
            "contestant": "a",
            "dtype": "float32",
            "length": 8,
            "causal": causal,
            "training": training,
            "one_tensor": 10_000_000,
            "bytes": None if training else 15_000_000,
        }
        for causal in (False, True)
        for training in (False, True)
    ]
    assert "| a, float32 | 15 (1.5) | 15 (1.5) | – | – |" in memory_table({"rows": memory})


def test_the_page_is_what_was_measured() -> None:
    measured = ROOT / "benchmarks/attention.json"
    if json.loads(measured.read_text(encoding="utf-8")).get("format") != FORMAT:
        pytest.skip("benchmarks/attention.json is of an older version: run `make bench`")
    written = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert written == page(ROOT / "benchmarks")


def test_setting() -> None:
    q, k, v = SMALL.points(10, torch.bfloat16)
    assert q.shape == k.shape == v.shape == (1, 2, 10, 8)
    assert SMALL.one_tensor(10, torch.bfloat16) == q.nbytes
    assert not torch.equal(q, k)
    peer = contestant("darkformer-pytorch float32")
    scaled, _, _ = peer.points(SMALL, 10)
    assert torch.allclose(scaled, SMALL.points(10, torch.float32)[0] * math.sqrt(math.sqrt(8)))
    assert entered.WINDOW.window == 32
