"""Quality against finetuning steps: a learned covariance against fixed isotropic features, at equal cost.

DARKFormer's kernel exp(q^T M^T M k) is learned; its claim is that this narrows the gap to exact attention,
mostly in finetuning, where queries and keys are anisotropic. Four methods, all of the same columns:

    positive         Performer's features: isotropic, nothing to learn in the map
    dark, identity   M = I at first: the same features at the same start, M learned
    dark             M = I in centred, balanced coordinates (exact for the kernel), then learned
    calibrated       landmark features fitted in closed form, then learned; projections stay

Part `encoder`: MiniLM, attention distillation (distillation.py); trained are the maps alone, or the maps
with the projections W_q, W_k. Part `decoder`: SmolLM2, the language-model loss end to end; exact attention,
trained on the same text, shows what is adaptation to the text and not to the features.

Without rotary positions M is no new function once W_q and W_k are trained: (M W_q h).(M W_k h) is what
projections M W_q and M W_k compute. There it can only change the path of the optimiser.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bochner.catalog import spec
from bochner.data import load_minilm, load_smollm2
from bochner.feature_maps.dark import trained_kernel
from bochner.reproduce import Cell, Experiment, Row
from bochner.request import Request
from experiments.darkformer import finetuning_report as report
from experiments.darkformer.contestants import (
    EXACT,
    MINILM_LAYERS,
    SMOLLM2_LAYERS,
    Conversion,
    head_dim,
    without_denominator_warnings,
)
from experiments.darkformer.distillation import (
    ALL,
    MAPS,
    Optimiser,
    distil,
    layer_outputs,
    minilm_targets,
    numbers,
    trained_parameters,
)
from experiments.darkformer.next_token import token_losses
from experiments.darkformer.similarity import compare_embeddings, embeddings, head_errors
from experiments.darkformer.texts import FIT, HELD_OUT, minilm_windows, smollm2_windows, source

IDENTITY = "dark, identity"
METHODS = ("positive", IDENTITY, "dark", "calibrated")
ENCODER: Cell = {
    "layers": MINILM_LAYERS,
    "columns": 64,
    "length": 512,
    "pool": 24,
    "held_out": 8,
    "batch": 2,
    "steps": 48,
}
DECODER: Cell = {
    "layers": SMOLLM2_LAYERS,
    "columns": 64,
    "length": 256,
    "pool": 64,
    "held_out": 8,
    "batch": 1,
    "steps": 24,
}
SMALL: Cell = {
    "layers": 1,
    "columns": 16,
    "length": 48,
    "pool": 4,
    "held_out": 2,
    "batch": 1,
    "steps": 1,
}
SEEDS = {"calibrated": 2}  # of the other methods 3
# Nothing to train; and landmarks, which are fitted to the projections that they find.
LEFT_OUT = ((MAPS, "positive"), (ALL, "calibrated"))
LOOKS = 6  # at the held-out text, besides the one before the first step
FIGURES = 6


def cells(quick: bool) -> list[Cell]:
    """Model, method, what is trained, seed.

    The quick version converts the first layer only.
    """
    sizes = SMALL if quick else ENCODER
    found: list[Cell] = [
        {"part": "encoder", "method": method, "trained": what, "window": 0, "sinks": 0}
        | {"seed": seed, **sizes}
        for what in (MAPS, ALL)
        for method in METHODS
        for seed in range(1 if quick else SEEDS.get(method, 3))
        if (what, method) not in LEFT_OUT
    ]
    sizes = SMALL if quick else DECODER
    found += [
        {"part": "decoder", "method": method, "window": 0, "sinks": 0, "seed": 0}
        | {"trained": ALL, **sizes}
        for method in (EXACT, "positive", IDENTITY)
    ]
    return found


def run(cell: Cell, folder: Path) -> list[Row]:
    """One row for each look at the held-out text."""
    with without_denominator_warnings():
        return encoder_rows(cell) if cell["part"] == "encoder" else decoder_rows(cell)


def looks(steps: int) -> set[int]:
    """The steps after which held-out text is read: few at first, then doubling up to the last.

    Example:
        >>> sorted(looks(200))
        [0, 6, 12, 25, 50, 100, 200]
    """
    return {0} | {steps >> halvings for halvings in range(LOOKS)}


def convert(model: Any, cell: Cell, batches: Sequence[Tensor]) -> None:
    """The model with the features of the cell's method, before its first step."""
    from bochner.transformers import linearize

    sizes = [int(cell[name]) for name in ("columns", "window", "sinks", "seed")]
    if cell["method"] != IDENTITY:
        how = Conversion(str(cell["method"]), *sizes, layers=int(cell["layers"]))
        how.apply(model, batches)
        return
    columns, window, sinks, seed = sizes
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    projection = spec("positive").default_projection
    size = {"projection": projection, "batch_shape": (heads,), "generator": generator}
    layers = list(range(int(cell["layers"])))
    maps = [trained_kernel(Request(head_dim(config), columns, **size)) for _ in layers]
    linearize(model, maps, window=window, sinks=sinks, layers=layers)


# -- encoder --------------------------------------------------------------------------------------------
def encoder_rows(cell: Cell) -> list[Row]:
    """Held-out output error of the heads, and the embeddings of the whole model."""
    length, seed = int(cell["length"]), int(cell["seed"])
    windows = minilm_windows(FIT, int(cell["pool"]), 1, length)
    model, _ = load_minilm()
    convert(model, cell, windows.split(2))
    layers = slice(int(cell["layers"]))
    pool = minilm_targets(FIT, int(cell["pool"]), 1, length)[layers]
    held_out = minilm_targets(HELD_OUT, int(cell["held_out"]), 2, length, 2)[layers]
    texts = minilm_windows(HELD_OUT, int(cell["held_out"]), 2, length)
    generator = torch.Generator().manual_seed(1000 + seed)
    steps, what = int(cell["steps"]), str(cell["trained"])
    wanted = looks(steps)
    trained = numbers(trained_parameters(model, what))
    rows: list[Row] = []
    for step in distil(model, pool, what, steps, int(cell["batch"]), generator):
        if step in wanted:
            with torch.no_grad():
                outputs = layer_outputs(model, held_out)
                errors = torch.cat(
                    [head_errors(t.outputs, o) for t, o in zip(held_out, outputs, strict=True)], -1
                )
                original = original_embeddings(int(cell["held_out"]), length)
                found = compare_embeddings(original, embeddings(model, texts))
            row: Row = {**cell, "step": step, "parameters": trained, "source": source()}
            row |= {"error": rounded(float(errors.median()))}
            row |= {"error_mean": rounded(float(errors.mean()))}
            rows.append(row | {name: rounded(value) for name, value in found.items()})
    return rows


@functools.cache
def original_embeddings(held_out: int, length: int) -> Tensor:
    """Of the exact model, for two windows of each document."""
    return embeddings(load_minilm()[0], minilm_windows(HELD_OUT, held_out, 2, length))


# -- decoder --------------------------------------------------------------------------------------------
def decoder_rows(cell: Cell) -> list[Row]:
    """Held-out loss of the language model."""
    length, steps, seed = int(cell["length"]), int(cell["steps"]), int(cell["seed"])
    pool = smollm2_windows(FIT, int(cell["pool"]), length)
    held_out = smollm2_windows(HELD_OUT, int(cell["held_out"]), length)
    model, _ = load_smollm2()
    if cell["method"] != EXACT:
        convert(model, cell, pool[:8].split(2))
    generator = torch.Generator().manual_seed(1000 + seed)
    rows: list[Row] = []
    look = looks(steps)
    for step in train_language_model(model, cell, pool, generator):
        if step in look:
            losses = torch.stack([token_losses(model, window) for window in held_out])
            rows.append({**cell, "step": step, "loss": rounded(float(losses.mean()))})
    return rows


def train_language_model(
    model: Any, cell: Cell, pool: Tensor, generator: torch.Generator
) -> Iterator[int]:
    """Steps of Adam on the next-token loss; gives the number of steps taken so far, 0 first."""
    steps, batch = int(cell["steps"]), int(cell["batch"])
    optimiser = Optimiser(model, trained_parameters(model, str(cell["trained"])), steps)
    order = torch.randperm(len(pool), generator=generator)
    yield 0
    for step in range(1, steps + 1):
        chosen = order[torch.arange((step - 1) * batch, step * batch) % len(pool)]
        ids = pool[chosen]
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        yield step


def rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


EXPERIMENT = Experiment(
    name="darkformer-finetuning",
    title="Quality against finetuning steps: learned covariance, fixed features, calibrated ones",
    paper="Farzam et al., DARKFormer, 2026: the finetuning claim; models, text and measurements are ours",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=report.measured,
    summary=report.summary,
    requires=("matplotlib", "transformers", "gguf", "accelerate"),
)
