"""What changes the rows changes the fingerprint; what does not, does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bochner.reproduce.fingerprint import fingerprint
from tests.reproduce.toy import SCRIPT, write_toy


def of(folder: Path, script: str, part: str = "") -> str:
    written = write_toy(folder, script) / "squares"
    (written / "part.py").write_text(part)
    return fingerprint(written / "toy.py")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('squares."', 'squares of numbers."'),  # the summary
        ("a picture of", "the picture of"),
        ("max(squares)", "sorted(squares)[-1]"),
        ("def noise(seed):", "# noise\ndef noise(seed):\n    '''Noise.'''"),
        ("A toy", "An example"),
    ],
)
def test_presentation_does_not_count(tmp_path: Path, before: str, after: str) -> None:
    assert before in SCRIPT
    assert of(tmp_path, SCRIPT.replace(before, after)) == of(tmp_path, SCRIPT)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"seed": 7', '"seed": 8'),  # in cells
        ('cell["n"] ** 2', 'cell["n"] ** 3'),  # in run
        ("torch.rand(", "torch.randn("),  # in what run calls
        ("import os", "from pathlib import os"),
        ("def cells", "torch.set_num_threads(1)\ndef cells"),  # what happens at import
        ("run=run", "run=noise"),
        ("run=run", "run=lambda cell, folder: run(cell, folder)"),
    ],
)
def test_what_makes_the_rows_counts(tmp_path: Path, before: str, after: str) -> None:
    assert before in SCRIPT
    assert of(tmp_path, SCRIPT.replace(before, after)) != of(tmp_path, SCRIPT)


@pytest.mark.parametrize(
    "importing",
    [
        "from experiments.squares.part import two",
        "from experiments.squares import part as two",
        "import experiments.squares.part as two",
        "from .part import two",
        "from . import part as two",
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_neighbours_count_where_run_uses_them(tmp_path: Path, importing: str, inside: bool) -> None:
    if inside:
        script = SCRIPT.replace(
            "def run(cell, folder):", f"def run(cell, folder):\n    {importing}"
        )
    else:
        script = SCRIPT.replace("import os", f"import os\n{importing}").replace("** 2", "** two")
    assert of(tmp_path, script, "two = 2") != of(tmp_path, script, "two = 3")
    assert of(tmp_path, script, "two = 2") == of(tmp_path, script, "two = 2  # of course")


def test_what_only_starts_the_experiment_does_not_make_all_of_it_count(tmp_path: Path) -> None:
    script = SCRIPT + "\nif __name__ == '__main__':\n    print(EXPERIMENT.cells(True))\n"
    assert of(tmp_path, script.replace("a picture", "the picture")) == of(tmp_path, script)


def test_a_bound_run_is_followed(tmp_path: Path) -> None:
    bound = SCRIPT.replace("run=run", "run=partial(run, size=1)")
    presented = bound.replace("a picture", "the picture")
    assert of(tmp_path, bound) == of(tmp_path, presented)
    assert of(tmp_path, bound) != of(tmp_path, bound.replace("size=1", "size=2"))
    assert of(tmp_path, bound) != of(tmp_path, bound.replace("torch.rand(", "torch.randn("))


def test_an_experiment_made_elsewhere_counts_whole(tmp_path: Path) -> None:
    script = SCRIPT.replace(
        "EXPERIMENT = Experiment(", "EXPERIMENT = (lambda **k: 1)(**{}) or dict("
    )
    assert of(tmp_path, script.replace("a picture", "the picture")) != of(tmp_path, script)


def test_a_neighbour_that_only_the_picture_uses_does_not_count(tmp_path: Path) -> None:
    script = SCRIPT.replace(
        "def draw(rows, folder):",
        "def draw(rows, folder):\n    from experiments.squares.part import two",
    )
    assert of(tmp_path, script, "two = 2") == of(tmp_path, script, "two = 3")
