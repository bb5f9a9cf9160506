"""A run from cells to files: resumed after a crash, refused after a change, the same in parallel."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bochner.reproduce import ExperimentError, Found, Settings, discover, reproduce
from tests.reproduce.toy import SCRIPT, write_toy

pytestmark = pytest.mark.usefixtures("experiments_restored")

FILES = ["results.json", "results.csv", "claims.md", "summary.md", "environment.json"]


def toy(tmp_path: Path, script: str = SCRIPT) -> Found:
    return discover(write_toy(tmp_path, script))[0]


def ran(folder: Path) -> list[str]:
    """Which cells ran, one entry for each time."""
    return sorted(file.name.split("-")[1] for file in (folder / "scratch").iterdir())


def test_everything_is_written_from_the_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = reproduce(toy(tmp_path), out, Settings())
    assert [f.name for f in outcome.files] == [*FILES, "squares.png"]
    assert all(f.exists() for f in outcome.files)
    assert sorted(f.name for f in out.iterdir() if f not in outcome.files) == [
        "journal.jsonl",
        "scratch",
    ]
    found = json.loads((out / "results.json").read_text())
    assert found["rows"] == outcome.rows
    assert [row["n"] for row in found["rows"]] == [0, 1, 2, 3]
    assert (found["experiment"], found["quick"]) == ("toy", False)
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["square"]) for row in table] == [row["square"] for row in outcome.rows]
    assert (out / "squares.png").read_bytes() == b"a picture of 4"
    assert "4 squares." in (out / "summary.md").read_text()
    environment = json.loads((out / "environment.json").read_text())
    assert (environment["cells"], environment["workers"]) == (4, 1)
    assert "torch" in environment


def test_after_a_crash_only_what_is_missing_runs(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "fail").touch()
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        reproduce(entry, out, Settings())
    assert caught.value.__notes__ == ["in the cell n=2 seed=7 of toy"]
    assert ran(out) == ["0", "1", "2"]
    assert not any((out / name).exists() for name in FILES)
    (out / "fail").unlink()
    outcome = reproduce(entry, out, Settings())
    assert outcome.resumed == 2
    assert ran(out) == ["0", "1", "2", "2", "3"]
    whole = reproduce(entry, tmp_path / "whole", Settings())
    assert outcome.rows == whole.rows
    assert (out / "results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()


def test_a_torn_last_line_is_run_again(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    before = reproduce(entry, out, Settings()).rows
    journal = out / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    outcome = reproduce(entry, out, Settings())
    assert (outcome.resumed, outcome.rows) == (3, before)
    assert reproduce(entry, out, Settings()).resumed == 4


def test_a_journal_torn_in_its_first_line_begins_again(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "journal.jsonl").write_text('{"cells": "4')
    assert reproduce(entry, out, Settings()).resumed == 0
    assert reproduce(entry, out, Settings()).resumed == 4


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    reproduce(entry, out, Settings())
    lines = (out / "journal.jsonl").read_text().splitlines()
    (out / "journal.jsonl").write_text("\n".join([*lines[:2], "###", *lines[3:]]) + "\n")
    with pytest.raises(ExperimentError, match="damaged.*--fresh"):
        reproduce(entry, out, Settings())


def test_changed_cells_are_refused_until_fresh(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    reproduce(entry, out, Settings())
    more = replace(
        entry, experiment=replace(entry.experiment, cells=lambda quick: [{"n": 5, "seed": 0}])
    )
    with pytest.raises(ExperimentError, match="differs in its list of cells.*--fresh"):
        reproduce(more, out, Settings())
    outcome = reproduce(more, out, Settings(fresh=True))
    assert [row["n"] for row in outcome.rows] == [5]
    assert ran(out) == ["5"]  # the scratch folder begins again too


def test_changed_code_of_the_cells_is_refused_and_other_code_is_not(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    reproduce(entry, out, Settings())
    entry.script.write_text(SCRIPT.replace('squares."', 'squares found."'))
    assert reproduce(entry, out, Settings()).resumed == 4
    entry.script.write_text(SCRIPT.replace("torch.rand((", "torch.randn(("))
    with pytest.raises(ExperimentError, match="differs in the code of its cells.*--fresh"):
        reproduce(entry, out, Settings())


def test_two_workers_give_the_same_files(tmp_path: Path) -> None:
    entry = toy(tmp_path)
    one = reproduce(entry, tmp_path / "one", Settings())
    two = reproduce(entry, tmp_path / "two", Settings(workers=2))
    assert one.rows == two.rows
    for name in ("results.json", "results.csv", "claims.md", "summary.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert ran(tmp_path / "two") == ["0", "1", "2", "3"]


def test_a_failing_worker_keeps_what_others_finished(tmp_path: Path) -> None:
    entry, out = toy(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "fail").touch()
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        reproduce(entry, out, Settings(workers=2))
    assert "in the cell n=2 seed=7 of toy" in caught.value.__notes__
    (out / "fail").unlink()
    assert reproduce(entry, out, Settings()).resumed >= 2
    assert ran(out).count("2") == 2


def test_what_is_not_finite_is_null_in_json_and_stays_itself_in_the_rows(tmp_path: Path) -> None:
    entry = toy(tmp_path, SCRIPT.replace("+ noise(cell", "* float('inf') + noise(cell"))
    out = tmp_path / "out"
    first = reproduce(entry, out, Settings())
    assert str(reproduce(entry, out, Settings()).rows) == str(first.rows)  # nan is not nan
    squares = [row["square"] for row in json.loads((out / "results.json").read_text())["rows"]]
    assert squares == [None] * 4
    assert "not finite" in (out / "claims.md").read_text()


def test_old_pictures_go_when_they_are_no_longer_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.png").touch()
    reproduce(toy(tmp_path), out, Settings())
    assert [f.name for f in out.glob("*.png")] == ["squares.png"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("range(2 if quick else 4)", "range(0)", "is empty"),
        ('{"n": n, "seed": 7}', '{"seed": 7}', "twice: seed=7"),
        ('{"n": n, "seed": 7}', '{"n": [n]}', r"'n' = \[0\] of type list"),
        ('{"n": cell["n"],', '{"n": torch.ones(()),', r"a row of the cell n=0 .* type Tensor"),
        ('return [{"n": cell', 'return [] and [{"n": cell', "gave no row"),
        (
            "summary=summary,",
            "summary=summary, requires=('no_such',)",
            "needs no_such.*pip install",
        ),
        ('"new": 3.0', '"newer": 3.0', "no value for the claims new"),
        ('"new": 3.0', '"new": 3.0, "more": 1.0', "gives more, which no claim"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in SCRIPT
    with pytest.raises(ExperimentError, match=message):
        reproduce(toy(tmp_path, SCRIPT.replace(before, after)), tmp_path / "out", Settings())
