"""`bochner reproduce` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bochner.cli.commands import bochner
from tests.reproduce.toy import SCRIPT, write_toy

pytestmark = pytest.mark.usefixtures("experiments_restored")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bochner, ["reproduce", *arguments])


def test_list_names_each_and_runs_nothing(tmp_path: Path) -> None:
    folder = write_toy(tmp_path)
    result = run("--list", "--experiments", str(folder))
    assert result.exit_code == 0, result.output
    assert "toy" in result.output
    assert "Squares" in result.output
    assert not (folder / "squares/results").exists()


def test_quick_writes_below_build_and_prints_claims_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = run("toy", "--quick")
    assert result.exit_code == 0, result.output
    quick = tmp_path / "build/reproduce/toy-quick"
    assert (quick / "results.csv").read_text().count("\n") == 3
    assert "published" in result.output
    assert "claims.md" in result.output
    again = run("--quick")  # no name: all of them
    assert "2 cells were done before" in again.output
    assert not (tmp_path / "experiments/squares/results").exists()


def test_out_and_fresh(tmp_path: Path) -> None:
    folder = write_toy(tmp_path)
    arguments = ["--experiments", str(folder), "--out", str(tmp_path / "there")]
    assert run(*arguments).exit_code == 0
    assert (tmp_path / "there/toy/squares.png").exists()
    (folder / "squares/toy.py").write_text(SCRIPT.replace("** 2", "** 3"))
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--fresh" in refused.output
    assert run(*arguments, "--fresh").exit_code == 0


def test_errors_of_usage_and_of_the_experiment(tmp_path: Path) -> None:
    folder = write_toy(tmp_path, SCRIPT.replace('raise RuntimeError("out', 'raise ValueError("out'))
    (folder.parent / "out/toy").mkdir(parents=True)
    (folder.parent / "out/toy/fail").touch()
    unknown = run("tyo", "--experiments", str(folder))
    assert unknown.exit_code == 2
    assert "did you mean toy?" in unknown.output
    assert run("toy", "--experiments", str(tmp_path / "none")).exit_code == 2
    assert run("toy", "--workers", "0").exit_code == 2
    # a bug of the experiment is no bad usage and keeps its traceback
    failing = run("toy", "--experiments", str(folder), "--out", str(tmp_path / "out"))
    assert isinstance(failing.exception, ValueError)
    assert (failing.exit_code, failing.exception.args) == (1, ("out of luck",))
