"""mlbench: frames as numbers, frames that are none, and the published sets themselves."""

import sys

import pytest
import torch

from bochner.data import MissingDataError, mlbench
from bochner.data.mlbench import CLASS_COLUMN, classification, data_frame, mlbench_dataset
from bochner.validation import UnknownNameError

SIZES = {
    "DNA": (3186, 180, [767, 765, 1654]),
    "LetterRecognition": (20_000, 16, None),
    "Satellite": (6435, 36, [703, 626, 1358, 1533, 707, 1508]),
    "Shuttle": (58_000, 9, [10, 13, 3267, 50, 171, 8903, 45_586]),
}


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"mlbench set 'shuttle'; did you mean 'Shuttle'"):
        mlbench_dataset("shuttle")


def test_frames_that_are_none():
    pandas = pytest.importorskip("pandas", reason="comes with rdata, in the extra `experiments`")
    good = pandas.DataFrame({"a": [1.0, 2.0], "kind": ["x", "y"]})
    with pytest.raises(ValueError, match=r"here: no column 'class' among \['a', 'kind'\]"):
        classification(good, "class", source="here")
    for cell, said in ((None, "missing"), (float("nan"), "missing"), (float("inf"), "not finite")):
        frame = pandas.DataFrame({"a": [1.0, cell], "kind": ["x", "y"]})
        with pytest.raises(ValueError, match=f"here: a cell is {said}"):
            classification(frame, "kind", source="here")


def test_without_rdata(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(MissingDataError, match="pip install rdata"):
        data_frame(tmp_path / "DNA.rda", "DNA")


@pytest.fixture(scope="module")
def published():
    """Skips, aloud, only where the package is neither installed nor to be had."""
    pytest.importorskip("rdata", reason="in the extra `experiments`")
    try:
        return mlbench.debian_files(mlbench.MLBENCH)
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", SIZES)
def test_published_sets(published, name):
    rows, columns, counts = SIZES[name]
    data = mlbench_dataset(name)
    assert data.features.shape == (rows, columns)
    assert data.features.dtype == torch.float64
    assert len(data.feature_names) == columns
    assert CLASS_COLUMN[name] not in data.feature_names
    found = data.labels.bincount(minlength=len(data.class_names)).tolist()
    assert min(found) > 0
    assert counts is None or found == counts
    assert name in data.source


def test_a_published_row(published):
    data = mlbench_dataset("Shuttle")
    assert data.features[0].tolist() == [50, 21, 77, 0, 28, 0, 27, 48, 22]
    assert data.class_names[data.labels[0]] == "Fpv.Close"
    letters = mlbench_dataset("LetterRecognition")
    assert [letters.class_names[i] for i in letters.labels[:2]] == ["T", "I"]
    assert letters.features[0].tolist()[:4] == [2, 8, 3, 5]


def test_another_file_under_the_same_name(published):
    path = published[f"{mlbench.FOLDER}/DNA.rda"]
    with pytest.raises(MissingDataError, match=r"holds \['DNA'\]; expected a data frame 'Shuttle'"):
        data_frame(path, "Shuttle")
