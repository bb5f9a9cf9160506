"""Hybrids inside normalised linear attention: output error, and how often a denominator is not positive.

    text        all 72 heads of a pretrained encoder on documents that nothing was fitted to, m columns
    gaussian    Gaussian queries and keys, 256 columns: settings that were measured before

The error of a head is |O^ - O|_F / |O|_F of its output against exact softmax attention; a cell takes the
median over heads, and its mean over redraws with a 95 % interval. Heads are also taken apart by
`steepness`, the deviation of the logits within a row. Averaging the values is the map that estimates 1.

Sizes are rounded down to what a map can use; one that cannot use any is a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bochner
from bochner.algebra import Constant
from bochner.catalog import spec
from bochner.diagnostics.interval import Interval, median
from bochner.diagnostics.measure import ErrorReport, measure
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.hybrids import angular
from bochner.projections import Orthogonal, Projection, Simplex
from bochner.reproduce import Cell, Experiment, Row
from bochner.request import Request
from experiments.hybrid_random_features import attention_report as report
from experiments.hybrid_random_features.attention_inputs import (
    AVERAGING,
    GAUSSIANS,
    Inputs,
    text_heads,
)

NAMES = (
    "positive",
    "hyperbolic",
    "trigonometric",
    "angular",
    "angular-majority",
    "gaussian-hybrid",
    "cluster",
    "gaussian-mixture",
    "complex-exponential",
    "balanced-exponential",
    "gerf",
    "sderf",
    "aderf",
    "data-aware",
)
BUDGETS = (64, 128, 256)
TEXTS, CALIBRATION, STRIDE = 4, 8, 16
GAUSSIAN_BUDGET = 256
GAUSSIAN_HEADS = 24
REDRAWS = 8
GROUPS = 4  # of heads, by steepness
FIGURES = 4  # significant digits kept


def cells(quick: bool) -> list[Cell]:
    """A map and a budget on text; a map and a law of Gaussian points."""
    redraws = 2 if quick else REDRAWS
    texts: Cell = {"texts": TEXTS, "calibration": CALIBRATION, "stride": STRIDE}
    if quick:
        texts = {"texts": 1, "calibration": 1, "stride": 64}
    budgets = BUDGETS[:1] if quick else BUDGETS
    on_text: list[Cell] = [
        {"part": "text", "map": name, "budget": budget, **texts, "redraws": redraws, "seed": seed}
        for budget in budgets
        for seed, name in enumerate((AVERAGING, *NAMES))
        if name != AVERAGING or budget == budgets[0]
    ]
    heads = 2 if quick else GAUSSIAN_HEADS
    on_gaussians: list[Cell] = [
        {
            "part": "gaussian",
            "law": law,
            "map": label,
            "heads": heads,
            "redraws": redraws,
            "seed": seed,
        }
        for law in GAUSSIANS
        for seed, label in enumerate(GAUSSIAN_MAPS)
    ]
    return on_text + on_gaussians


def run(cell: Cell, folder: Path) -> list[Row]:
    """Rows of one cell."""
    return text_rows(cell) if cell["part"] == "text" else gaussian_rows(cell)


# -- heads of a pretrained encoder ----------------------------------------------------------------------
def text_rows(cell: Cell) -> list[Row]:
    """One row for all heads and one for each group of them."""
    name, budget = str(cell["map"]), int(cell["budget"])
    row: Row = {"part": "text", "map": name, "budget": budget}
    row |= {size: cell[size] for size in ("texts", "calibration", "stride", "redraws")}
    unit = 1 if name == AVERAGING else spec(name).smallest_budget()
    columns = 1 if name == AVERAGING else budget // unit * unit
    if columns == 0:
        return [{**row, "columns": 0, "skipped": f"needs a multiple of {unit} columns"}]
    inputs = text_heads(int(cell["texts"]), int(cell["calibration"]), int(cell["stride"]))
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    size = Size(inputs.q.shape[-1], columns, (inputs.heads,), generator)
    phi = Constant(size.dim) if name == AVERAGING else fitted(named(name)(size), inputs)
    found = errors(phi, inputs, int(cell["redraws"]), generator)
    row |= {"columns": columns, "directions": phi.num_projections}
    rows = [{**row, **aggregate(found, "all", torch.arange(inputs.heads), inputs)}]
    groups = inputs.steepness.argsort().tensor_split(GROUPS)
    return rows + [
        {**row, **aggregate(found, f"{i + 1} of {GROUPS}", heads, inputs)}
        for i, heads in enumerate(groups)
    ]


def errors(
    phi: FeatureMap, inputs: Inputs, redraws: int, generator: torch.Generator
) -> ErrorReport:
    return measure(phi, inputs.q, inputs.k, inputs.v, num_redraws=redraws, generator=generator)


def aggregate(found: ErrorReport, group: str, heads: Tensor, inputs: Inputs) -> Row:
    """Median over texts and heads for errors, mean for shares; then mean and interval over redraws.

    `better` is the share of heads, texts and redraws whose output error is below that of averaging.
    """
    steepness = inputs.steepness[heads]
    row: Row = {
        "group": group,
        "heads": len(heads),
        "flattest": rounded(float(steepness.min())),
        "steepest": rounded(float(steepness.max())),
    }
    for metric, values in found.per_head.items():
        chosen = values.index_select(-1, heads).flatten(1)
        by_redraw = (
            median(chosen) if metric in ("output", "kernel", "variation") else chosen.mean(1)
        )
        row |= interval_fields(metric, Interval.over(by_redraw))
    gain = found.per_head["output"] < inputs.averaging  # of each redraw, text and head
    row["better"] = rounded(float(gain[..., heads].double().mean()))
    return row


def interval_fields(name: str, interval: Interval) -> Row:
    """Value, low and high as three fields."""
    ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
    return {f"{name}{suffix}": rounded(value) for suffix, value in ends.items()}


def rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


# -- Gaussian queries and keys --------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Dimension, columns, batch and randomness of a map to be made."""

    dim: int
    columns: int
    batch_shape: tuple[int, ...]
    generator: torch.Generator


Builder = Callable[[Size], FeatureMap]


def named(name: str, projection: Projection | None = None) -> Builder:
    """A map of the catalogue, with another coupling of its directions if one is given."""

    def build(size: Size) -> FeatureMap:
        return bochner.make(
            name,
            dim=size.dim,
            num_features=size.columns,
            projection=projection,
            batch_shape=size.batch_shape,
            generator=size.generator,
        )

    return build


def angular_of_paper(size: Size) -> FeatureMap:
    """n = 8 weights and m = columns / 8 projections: the paper's accounting, 4 m (n + 1) columns."""
    m = size.columns // 8
    request = Request(
        size.dim,
        4 * m * 9,
        projection=Orthogonal(),
        batch_shape=size.batch_shape,
        generator=size.generator,
    )
    return angular(request, num_signs=8)


def fitted(phi: FeatureMap, inputs: Inputs) -> FeatureMap:
    return phi.fit(inputs.fit_q, inputs.fit_k) if isinstance(phi, UnfittedMap) else phi


GAUSSIAN_MAPS: dict[str, Builder] = {
    AVERAGING: lambda size: Constant(size.dim),
    "trigonometric": named("trigonometric"),
    "positive": named("positive"),
    "hyperbolic": named("hyperbolic"),
    "positive, simplex": named("positive", Simplex()),
    "gerf": named("gerf"),
    "gerf, simplex": named("gerf", Simplex()),
    "sderf": named("sderf"),
    "aderf": named("aderf"),
    "data-aware": named("data-aware"),
    "angular": named("angular"),
    "angular, 8 weights": angular_of_paper,
}


def gaussian_rows(cell: Cell) -> list[Row]:
    """One row: medians over independent draws of the points, each with a map of its own."""
    heads, label, law = int(cell["heads"]), str(cell["map"]), str(cell["law"])
    inputs = GAUSSIANS[law].draw(heads, seed=1)
    generator = torch.Generator().manual_seed(100 + int(cell["seed"]))
    size = Size(inputs.q.shape[-1], GAUSSIAN_BUDGET, (heads,), generator)
    phi = fitted(GAUSSIAN_MAPS[label](size), inputs)
    found = errors(phi, inputs, int(cell["redraws"]), generator)
    row: Row = {"part": "gaussian", "law": law, "map": label, "budget": GAUSSIAN_BUDGET}
    row |= {"columns": phi.num_features, "directions": phi.num_projections}
    return [{**row, **aggregate(found, "all", torch.arange(heads), inputs)}]


EXPERIMENT = Experiment(
    name="hrf-attention",
    title="Hybrids inside linear attention: real heads and Gaussian ones",
    paper="Choromanski et al., Hybrid Random Features, 2022: use in attention; measurements are ours",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=report.measured,
    summary=report.summary,
    requires=("matplotlib", "transformers"),
)
