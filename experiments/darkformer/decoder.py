"""A pretrained language model with linear attention: its perplexity on held-out text, by context length.

SmolLM2-135M (30 layers of 9 query and 3 key/value heads) reads the beginning of documents, one window of
2,048 tokens each. The loss of a token is kept by its position, so one pass shows every context length:
`loss_256` is the mean over the first 256 predictions, `late` over those that have 1,024 tokens or more
behind them. Rivals that use no features stand beside the maps: the window and the sinks alone (the rest of
the context is cut off), and a window with averaging outside.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bochner.data import load_smollm2
from bochner.reproduce import Cell, Experiment, Row
from experiments.darkformer import decoder_report as report
from experiments.darkformer.contestants import (
    AVERAGING,
    CALIBRATED,
    CONTESTANTS,
    EXACT,
    SMOLLM2_LAYERS,
    TRUNCATED,
    Conversion,
    without_denominator_warnings,
)
from experiments.darkformer.next_token import band, token_losses
from experiments.darkformer.texts import FIT, HELD_OUT, smollm2_windows, source

COLUMNS = (64,)
MORE_COLUMNS = (32, 256)
BEST = ("data-aware",)
WINDOW, SINKS = 32, 8
LENGTHS = (256, 512, 1024, 2048)
FULL: Cell = {
    "layers": SMOLLM2_LAYERS,
    "length": 2048,
    "documents": 4,
    "fitted": 6,
    "fit_length": 512,
}
QUICK: Cell = {"layers": 2, "length": 64, "documents": 1, "fitted": 2, "fit_length": 32}
QUICK_MAPS = (AVERAGING, "positive", "data-aware-absolute", "dark", CALIBRATED)
FIGURES = 6


def cells(quick: bool) -> list[Cell]:
    """Exact attention, the window alone, and each map with and without it.

    The quick version converts the first two layers only.
    """
    texts = QUICK if quick else FULL
    found = [cell(EXACT, 0, False, texts), cell(TRUNCATED, 0, True, texts)]
    for name in QUICK_MAPS if quick else CONTESTANTS:
        sizes = (1,) if name == AVERAGING else (16,) if quick else COLUMNS
        if name in BEST and not quick:
            sizes = tuple(sorted((*sizes, *MORE_COLUMNS)))
        found += [cell(name, m, exact, texts) for m in sizes for exact in (False, True)]
    return found


def cell(name: str, columns: int, exact: bool, texts: Cell) -> Cell:
    window, sinks = (WINDOW, SINKS) if exact else (0, 0)
    size: Cell = {"map": name, "columns": columns, "window": window, "sinks": sinks}
    return {**size, "exact_heads": 0.0, "seed": 0, **texts}


def run(cell: Cell, folder: Path) -> list[Row]:
    """One row: the mean loss up to each length."""
    with without_denominator_warnings():
        return [model_row(cell)]


def model_row(cell: Cell) -> Row:
    """Convert the model as the cell says, and read the held-out windows."""
    from bochner.transformers import restore

    name = str(cell["map"])
    documents, length = int(cell["documents"]), int(cell["length"])
    held_out = smollm2_windows(HELD_OUT, documents, length)
    model = language_model()
    sizes = [int(cell[field]) for field in ("columns", "window", "sinks", "seed")]
    mask = band(length, *sizes[1:3]) if name == TRUNCATED else None
    try:
        if name not in (EXACT, TRUNCATED):
            fitted = smollm2_windows(FIT, int(cell["fitted"]), int(cell["fit_length"]))
            how = Conversion(name, *sizes, float(cell["exact_heads"]), int(cell["layers"]))
            how.apply(model, fitted.split(1))
        losses = torch.stack([token_losses(model, window, mask) for window in held_out])
    finally:
        restore(model)
    return {**cell, **by_length(losses), "source": source()}


@functools.cache
def language_model() -> Any:
    """SmolLM2, one for all cells of a process: it is converted and restored, never trained."""
    return load_smollm2()[0]


def by_length(losses: Tensor) -> Row:
    """Mean losses [documents, n - 1] over the first so many positions, and over the last half.

    `spread` is the standard error over documents of the mean over all positions.
    """
    n = losses.shape[1] + 1
    lengths = [length for length in LENGTHS if length < n] + [n]
    row: Row = {f"loss_{x}": rounded(float(losses[:, : x - 1].mean())) for x in lengths}
    row["late"] = rounded(float(losses[:, n // 2 :].mean()))
    means = losses.mean(1)
    error = float(means.std()) / len(means) ** 0.5 if len(means) > 1 else 0.0
    return {**row, "spread": rounded(error)}


def rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


EXPERIMENT = Experiment(
    name="darkformer-decoder",
    title="A pretrained language model with linear attention",
    paper="Farzam et al., DARKFormer, 2026, and the random features before it; measurements are ours",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=report.measured,
    summary=report.summary,
    requires=("matplotlib", "transformers", "gguf", "accelerate"),
)
