"""Which experiments there are, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bochner.reproduce import ExperimentError, discover, experiments_folder, select
from bochner.reproduce.discovery import load
from tests.reproduce.toy import SCRIPT, write_toy

pytestmark = pytest.mark.usefixtures("experiments_restored")


def test_scripts_with_an_experiment_are_found_and_others_not_even_imported(tmp_path: Path) -> None:
    folder = write_toy(tmp_path)
    (folder / "squares" / "part.py").write_text("raise RuntimeError('imported')")
    assert [entry.experiment.name for entry in discover(folder)] == ["toy"]


def test_a_script_imports_its_neighbours_by_their_full_name(tmp_path: Path) -> None:
    folder = write_toy(tmp_path, SCRIPT + "\nfrom experiments.squares.part import TITLE\n")
    (folder / "squares" / "part.py").write_text("TITLE = 'of this folder'")
    load(folder / "squares" / "toy.py")
    other = write_toy(tmp_path / "other", SCRIPT + "\nfrom experiments.squares.part import TWO\n")
    (other / "squares" / "part.py").write_text("TWO = 2")  # the same names in another folder
    assert discover(other)[0].script.is_relative_to(other.resolve())


def test_the_folder_is_found_above_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_toy(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert experiments_folder() == folder
    assert experiments_folder(folder) == folder.resolve()
    with pytest.raises(ExperimentError, match="has no script"):
        experiments_folder(below)


def test_without_a_source_checkout_the_error_says_where_experiments_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bochner.reproduce.discovery.__file__", str(tmp_path / "a/b/c/d.py"))
    with pytest.raises(ExperimentError, match="come with the source"):
        experiments_folder()


def test_two_experiments_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = write_toy(tmp_path)
    (folder / "cubes").mkdir()
    (folder / "cubes" / "toy.py").write_text(SCRIPT)
    with pytest.raises(ExperimentError, match=r"two experiments are called 'toy'.*rename one"):
        discover(folder)


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    found = discover(write_toy(tmp_path))
    assert select(found, []) == select(found, ["toy", "toy"]) == found
    with pytest.raises(ExperimentError, match="did you mean toy"):
        select(found, ["tyo"])
    with pytest.raises(ExperimentError, match="known: toy"):
        select(found, ["pointwise"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import no_such_module\nEXPERIMENT = 1", "imported inside its functions"),
        ("EXPERIMENT = 1", "EXPERIMENT is of type int"),
        (SCRIPT.replace('name="toy"', 'name="My Toy"'), "lower-case words"),
    ],
)
def test_a_script_that_is_none_is_named(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        discover(write_toy(tmp_path, script))


def test_full_results_lie_beside_the_script_and_quick_ones_below_build(tmp_path: Path) -> None:
    entry = discover(write_toy(tmp_path))[0]
    root = tmp_path.resolve()
    assert entry.folder(quick=False) == root / "experiments/squares/results/toy"
    assert entry.folder(quick=True) == root / "build/reproduce/toy-quick"
    assert entry.folder(quick=True, out=Path("here")) == Path("here/toy-quick")
