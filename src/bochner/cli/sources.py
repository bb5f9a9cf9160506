"""Where the command line's queries, keys and values come from: a file, or a pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bochner.cli.console import stderr
from bochner.data import QKV, demo_texts, load_minilm, load_qkv, token_windows
from bochner.diagnostics import Data, DataSummary, describe

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
    run = run_minilm(calibration_windows=8, evaluation_windows=1)
    return Source(run.data(), f"{run.label}; text: {run.text}")


@dataclass(frozen=True)
class MiniLMRun:
    """The unmodified model on two sets of documents: its layers' queries, keys and values.

    Shapes:     windows: part -> token ids [windows, 512]; layers: part -> per layer q, k, v
                [windows, heads, 512, dim]; the parts are "calibration" and "evaluation".
    """

    model: Any
    windows: dict[str, Tensor]
    layers: dict[str, list[QKV]]
    text: str

    @property
    def label(self) -> str:
        """The sentence that says what was run."""
        fitted, seen = (len(self.windows[part]) for part in ("calibration", "evaluation"))
        return (
            f"all-MiniLM-L6-v2, unmodified: {self.data().batch_shape[0]} heads; maps calibrated on"
            f" {fitted}, evaluated on {seen} {'window' if seen == 1 else 'windows'} of {WINDOW} tokens"
        )

    def data(self, *, query_stride: int = 1) -> Data:
        """Layers side by side as heads; every query_stride-th query is evaluated, with all keys."""
        sides = {
            part: [torch.cat([getattr(layer, name) for layer in found], dim=1) for name in "qkv"]
            for part, found in self.layers.items()
        }
        q, k, v = sides["evaluation"]
        fit_q, fit_k, _ = sides["calibration"]
        return Data(q[..., ::query_stride, :], k, v, (fit_q, fit_k), (q.shape[1],))


def run_minilm(*, calibration_windows: int, evaluation_windows: int) -> MiniLMRun:
    """Run MiniLM on real text, different documents for the two parts."""
    from bochner.transformers import collect_qkv

    with stderr().status("running MiniLM on real text ..."):
        model, tokenizer = load_minilm()
        texts = demo_texts()
        counts = {"calibration": calibration_windows, "evaluation": evaluation_windows}
        windows = {
            part: token_windows(tokenizer, getattr(texts, part), length=WINDOW, count=count)
            for part, count in counts.items()
        }
        layers = {part: collect_qkv(model, ids) for part, ids in windows.items()}
    return MiniLMRun(model, windows, layers, texts.source)
