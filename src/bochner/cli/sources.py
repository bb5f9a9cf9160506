"""Where the command line's queries, keys and values come from: a file, or a pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bochner.cli.console import stderr
from bochner.data import demo_texts, load_minilm, load_qkv, token_windows
from bochner.diagnostics import Data, DataSummary, describe

CALIBRATION_WINDOWS = 8
EVALUATION_WINDOWS = 4
WINDOW = 512


@dataclass(frozen=True)
class Source:
    """Data with the sentence that says what they are."""

    data: Data
    label: str

    def summary(self) -> DataSummary:
        """Its description."""
        return describe(self.data.q, self.data.k, batch_shape=self.data.batch_shape)


def read_source(file: Path | None, model: str | None) -> Source:
    """A QKV file, or the named model on real text.

    Raises:     ValueError unless exactly one of the two is given.
    """
    if (file is None) == (model is None):
        raise ValueError("give either FILE or --model minilm, and not both.")
    if file is not None:
        qkv = load_qkv(file)
        return Source(Data.of(*qkv), f"{file.name} (even positions calibrate, odd ones evaluate)")
    return minilm_source(evaluation_windows=1)


def minilm_source(
    *,
    calibration_windows: int = CALIBRATION_WINDOWS,
    evaluation_windows: int = EVALUATION_WINDOWS,
) -> Source:
    """Queries, keys and values of every layer and head of MiniLM, on two sets of documents."""
    from bochner.transformers import collect_qkv

    with stderr().status("running MiniLM on real text ..."):
        model, tokenizer = load_minilm()
        texts = demo_texts()
        counts = {"calibration": calibration_windows, "evaluation": evaluation_windows}
        layers = {
            part: collect_qkv(
                model,
                token_windows(tokenizer, getattr(texts, part), length=WINDOW, count=count),
            )
            for part, count in counts.items()
        }
    stacked = {
        part: [torch.cat([getattr(layer, name) for layer in found], dim=1) for name in "qkv"]
        for part, found in layers.items()
    }
    q, k, v = stacked["evaluation"]
    heads = q.shape[1]
    if evaluation_windows == 1:
        q, k, v = q[0], k[0], v[0]
    calibration = stacked["calibration"][0], stacked["calibration"][1]
    label = (
        f"MiniLM-L6, {heads} heads, {evaluation_windows} x {WINDOW} tokens, calibrated on"
        f" {calibration_windows} others; text: {texts.source}"
    )
    return Source(Data(q, k, v, calibration, (heads,)), label)
