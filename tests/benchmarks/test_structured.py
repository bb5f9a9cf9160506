"""The benchmark of chains: what it writes, that the page shows it, and that a gate stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the benchmarks' command line")

from click.testing import CliRunner

from benchmarks import structured
from benchmarks.report import structured_lines
from experiments.structured.chain_contestants import CONTESTANTS, EXACT
from experiments.structured.chain_race import GateFailed, race


def run(tmp_path: Path, *options: str):
    return CliRunner().invoke(structured.main, ["--quick", "--out", str(tmp_path), *options])


def test_rows_tables_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert structured_lines(tmp_path) == []  # before anything was measured
    monkeypatch.setattr(
        structured, "race", lambda *args, **options: race(*args, **{**options, "memory": False})
    )
    done = run(tmp_path, "--only", "K stored")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "structured.json").read_text(encoding="utf-8"))
    names = {c.name for c in CONTESTANTS if "K stored" in c.name}
    assert result["complete"]
    assert {row["contestant"] for row in result["rows"]} == names
    assert all(row["difference"] < 1e-4 for row in result["rows"])
    page = "\n".join(structured_lines(tmp_path))
    assert f"| {EXACT} | " in page
    assert "**one thread**" in page


def test_nothing_is_timed_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args, **options):
        raise GateFailed("someone: differs")

    monkeypatch.setattr(structured, "race", wrong)
    done = run(tmp_path)
    assert done.exit_code != 0
    assert "correctness gate: someone: differs; nothing is timed" in str(done.output)
