"""A sentence encoder with linear attention: what is left of its embeddings, before and after calibration.

All six layers of MiniLM are converted. Its embeddings of held-out windows (two of each document, so that
a text has a neighbour to find) are compared with those of the original model; the output of each of the
72 heads with exact attention on the same queries, keys and values. Rows have a stage:

    as drawn      maps that need no data
    calibrated    maps fitted in closed form to windows of other documents
    finetuned     the same, after some steps of attention distillation (maps that can be trained)
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bochner.balanced import balanced_coordinates
from bochner.data import load_minilm
from bochner.data.qkv import QKV
from bochner.feature_maps.data_aware_absolute import absolute_precision
from bochner.reproduce import Cell, Experiment, Row
from bochner.statistics import Moments
from experiments.darkformer import encoder_report as report
from experiments.darkformer.contestants import (
    AVERAGING,
    CALIBRATED,
    CONTESTANTS,
    MINILM_LAYERS,
    Conversion,
    needs_data,
    without_denominator_warnings,
)
from experiments.darkformer.distillation import MAPS, distil, minilm_targets
from experiments.darkformer.similarity import compare_embeddings, embeddings, head_errors
from experiments.darkformer.texts import FIT, HELD_OUT, minilm_windows, source

COLUMNS = (32, 64, 128, 256)
WINDOW, SINKS = 32, 8
SEEDS = 3
STEPS = 40
FINETUNED_COLUMNS = 64  # with all seeds; other sizes with one
ONCE = (AVERAGING, CALIBRATED, "cluster")  # nothing or little is drawn; slow to fit
FULL: Cell = {
    "layers": MINILM_LAYERS,
    "length": 512,
    "documents": 12,
    "each": 2,
    "fitted": 24,
    "heads_on": 6,
}
QUICK: Cell = {"layers": 1, "length": 64, "documents": 3, "each": 2, "fitted": 4, "heads_on": 2}
QUICK_COLUMNS = (16,)
QUICK_STEPS = 2
BATCH = 2
FIGURES = 5  # significant digits kept


def cells(quick: bool) -> list[Cell]:
    """A map, a number of columns, with or without exact pairs, and a seed; and one of covariances.

    The quick version converts the first layer only.
    """
    texts, seeds = (QUICK, 1) if quick else (FULL, SEEDS)
    sizes = QUICK_COLUMNS if quick else COLUMNS
    heads: Cell = {"part": "existence", "fitted": texts["fitted"], "length": texts["length"]}
    models: list[Cell] = [
        {"part": "model", "map": name, "columns": columns, "window": window, "sinks": sinks}
        | {"seed": seed, "steps": steps_of(name, columns, seed, quick), **texts}
        for name in CONTESTANTS
        for columns in sizes_of(name, sizes)
        for window, sinks in ((0, 0), (WINDOW, SINKS))
        for seed in range(seeds_of(name, columns, seeds))
    ]
    return [heads, *models]


def sizes_of(name: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of columns: calibrated features are slow to fit, and gain little from many."""
    if name == AVERAGING:
        return (1,)
    return sizes[:2] if name == CALIBRATED else sizes


def seeds_of(name: str, columns: int, seeds: int) -> int:
    """How many draws: all at one size; each is over 72 heads already."""
    return 1 if name in ONCE or columns != FINETUNED_COLUMNS else seeds


def steps_of(name: str, columns: int, seed: int, quick: bool) -> int:
    """How long a map is trained."""
    if not CONTESTANTS[name].trainable:
        return 0
    if quick:
        return QUICK_STEPS if columns == QUICK_COLUMNS[0] else 0
    return STEPS if columns == FINETUNED_COLUMNS and seed == 0 else 0


def run(cell: Cell, folder: Path) -> list[Row]:
    """Rows of one cell."""
    with without_denominator_warnings():
        return [existence(cell)] if cell["part"] == "existence" else model_rows(cell)


def existence(cell: Cell) -> Row:
    """On how many heads the proposal of Theorem 3.2 exists, in three forms.

    pooled      one covariance L = (Lq + Lk)/2, every eigenvalue below 1/2: the theorem's own words
    separate    (I + 2 Lq)^-1 + (I + 2 Lk)^-1 - I positive definite: each its own covariance
    balanced    both covariances diag(sigma) after an exact change of coordinates, every sigma below 1/2
    """
    from bochner.transformers import collect_qkv

    model, _ = load_minilm()
    layers = collect_qkv(model, minilm_windows(FIT, int(cell["fitted"]), 1, int(cell["length"])))
    q, k = (torch.cat([getattr(x, name) for x in layers], dim=1).double() for name in "qk")
    heads = (q.shape[1],)
    moments = Moments.of(q, k, batch_shape=heads)
    both = 0.5 * (moments.query_covariance + moments.key_covariance)
    largest = torch.linalg.eigvalsh(both)[:, -1]
    separate = torch.linalg.eigvalsh(absolute_precision(moments))[:, 0]
    balanced = balanced_coordinates(q, k, heads).spread.amax(dim=-1)
    return {
        **cell,
        "heads": q.shape[1],
        "pooled": int((largest < 0.5).sum()),
        "separate": int((separate > 0).sum()),
        "balanced": int((balanced < 0.5).sum()),
        "eigenvalue": rounded(float(largest.median())),
        "source": source(),
    }


def model_rows(cell: Cell) -> list[Row]:
    """One row for each stage that the map has."""
    name = str(cell["map"])
    sizes = (int(cell["columns"]), int(cell["window"]), int(cell["sinks"]), int(cell["seed"]))
    batches = minilm_windows(FIT, int(cell["fitted"]), 1, int(cell["length"])).split(BATCH)
    model, _ = load_minilm()
    Conversion(name, *sizes, layers=int(cell["layers"])).apply(model, batches)
    first = "calibrated" if needs_data(name) else "as drawn"
    rows: list[Row] = [{**cell, "stage": first, **measure(model, cell)}]
    if cell["steps"]:
        pool = minilm_targets(FIT, int(cell["fitted"]), 1, int(cell["length"]))
        generator = torch.Generator().manual_seed(sizes[-1])
        steps = distil(
            model, pool[: int(cell["layers"])], MAPS, int(cell["steps"]), BATCH, generator
        )
        for _ in steps:
            pass
        rows.append({**cell, "stage": "finetuned", **measure(model, cell)})
    return rows


@torch.no_grad()
def measure(model: Any, cell: Cell) -> Row:
    """Embeddings of the converted model, and each head on the original's queries, keys and values.

    `nonpositive` is the share of rows whose features alone add up to no positive normaliser, which signed
    maps allow; `better` that of heads and windows with a smaller error than averaging the values.
    """
    from bochner.transformers import converted_layers

    sizes = [int(cell[name]) for name in ("documents", "each", "length", "heads_on")]
    original = exact(*sizes)
    values = compare_embeddings(original.embeddings, embeddings(model, original.windows))
    found, failing = [], []
    for number, layer in converted_layers(model).items():
        qkv = original.layers[number]
        found.append(head_errors(attention(qkv), layer(*qkv, causal=False)))
        if layer.feature_map.positive:
            failing.append(torch.tensor(0.0))
            continue
        rows = layer.feature_map.estimate(qkv.q, qkv.k).sum(-1)
        failing.append((rows <= 0).double().mean())
    errors = torch.cat(found, dim=-1)
    values |= {"error": float(errors.median()), "error_mean": float(errors.mean())}
    values["nonpositive"] = float(torch.stack(failing).mean())
    averaging = torch.cat(
        [original.averaging[number] for number in converted_layers(model)], dim=-1
    )
    values["better"] = float((errors < averaging).double().mean())
    return {field: rounded(value) for field, value in values.items()}


def rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


class Exact:
    """The original model on held-out windows.

    `layers` are its queries, keys and values on the first windows, `averaging` the errors [windows, heads]
    of the mean of the values in each layer.
    """

    def __init__(self, windows: Tensor, heads_on: int) -> None:
        from bochner.transformers import collect_qkv

        model, _ = load_minilm()
        self.windows = windows
        self.embeddings = embeddings(model, windows)
        self.layers = collect_qkv(model, windows[:heads_on])
        self.averaging = [
            head_errors(attention(qkv), qkv.v.mean(-2, keepdim=True).expand_as(qkv.v))
            for qkv in self.layers
        ]


@functools.cache
def exact(documents: int, each: int, length: int, heads_on: int) -> Exact:
    return Exact(minilm_windows(HELD_OUT, documents, each, length), heads_on)


def attention(qkv: QKV) -> Tensor:
    """Softmax attention; the temperature is in q and k."""
    return torch.softmax(qkv.q @ qkv.k.transpose(-1, -2), dim=-1) @ qkv.v


EXPERIMENT = Experiment(
    name="darkformer-encoder",
    title="A pretrained sentence encoder with linear attention",
    paper="Farzam et al., DARKFormer, 2026, and the random features before it; measurements are ours",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=report.measured,
    summary=report.summary,
    requires=("matplotlib", "transformers"),
)
