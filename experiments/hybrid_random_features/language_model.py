"""The softmax matrix of a language model, estimated by every map of the catalogue.

Queries are outputs of an LSTM on test documents of the Brown corpus, keys the embeddings of its words
(`brown_lstm`); each map of `softmax_estimators` estimates exp(q.k), and `softmax_metrics` compares the
rows with the truth. Maps that are fitted to data see queries of the validation documents only.

Differs:    the paper's corpus (Penn Treebank) and checkpoint are not to be had; here a 2-layer LSTM of
            the same size is trained on Brown, so no number is expected to equal a published one.
            The paper normalises the input embeddings at extraction; here queries and keys are the
            model's own.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import log_inner
from bochner.fitting import UnfittedMap
from bochner.reproduce import Cell, Experiment, Row
from bochner.request import Request
from experiments.hybrid_random_features.brown_lstm import FULL, QUICK, Softmax, softmax_problem
from experiments.hybrid_random_features.language_model_pictures import draw
from experiments.hybrid_random_features.language_model_report import measured, summary
from experiments.hybrid_random_features.softmax_estimators import METHODS
from experiments.hybrid_random_features.softmax_metrics import (
    compare_distributions,
    compare_rows,
    frobenius,
)

BUDGETS = (64, 128, 256, 512)
SEEDS, QUERIES = 10, 500
QUICK_SEEDS, QUICK_QUERIES = 2, 100
BLOCK = 100  # rows compared at once: 4 MB a matrix
BINS = 36
BOUNDED = ("wasserstein", "wasserstein_shuffled", "ks", "kl", "total_variation", "top1", "negative")


def cells(quick: bool) -> list[Cell]:
    """The model, the baselines without a kernel, and method x R x accounting with all their seeds."""
    estimates = [
        {"part": "estimate", "method": name, "budget": budget, "accounting": accounting}
        for name, method in METHODS.items()
        for budget in BUDGETS
        for accounting in method.accountings(budget)
    ]
    seeds = QUICK_SEEDS if quick else SEEDS
    parts: list[Cell] = [
        {"part": "model"},
        {"part": "baselines"},
        *({**cell, "seeds": seeds} for cell in estimates),
    ]
    return [{**part, "quick": quick} for part in parts]


def run(cell: Cell, folder: Path) -> list[Row]:
    """One cell; the first to need the model trains it, the others wait."""
    quick = bool(cell["quick"])
    count = QUICK_QUERIES if quick else QUERIES
    problem = softmax_problem(QUICK if quick else FULL, folder, queries=count)
    if cell["part"] == "model":
        return [_model(problem), *_histograms(problem)]
    if cell["part"] == "baselines":
        return _baselines(problem)
    return [_estimate(cell, problem)]


# -- the model -------------------------------------------------------------------------------------
def _model(problem: Softmax) -> Row:
    logits = problem.queries @ problem.keys.t()
    squares = problem.queries.square().sum(1, keepdim=True) + problem.keys.square().sum(1)
    log_p = torch.log_softmax(logits, dim=-1)
    return {
        "kind": "model",
        "words": len(problem.keys),
        "hidden": problem.keys.shape[1],
        "queries": len(problem.queries),
        "positions": problem.positions,
        "epochs": problem.epochs,
        "unknown": problem.unknown,
        "valid_cross_entropy": problem.valid_loss,
        "test_cross_entropy": problem.test_loss,
        "test_perplexity": math.exp(problem.test_loss),
        "entropy": float(-(log_p.exp() * log_p).sum(-1).mean()),
        "sum_square": float((squares + 2 * logits).median()),
        "difference_square": float((squares - 2 * logits).median()),
    }


def _histograms(problem: Softmax) -> list[Row]:
    """Shares of angles over all pairs (degrees) and of lengths, in equal bins."""
    query_lengths, key_lengths = problem.queries.norm(dim=1), problem.keys.norm(dim=1)
    cosines = (problem.queries / query_lengths[:, None]) @ (problem.keys / key_lengths[:, None]).t()
    angles = torch.rad2deg(torch.acos(cosines.clamp(-1.0, 1.0)))
    ends = {
        "angle": (angles, 180.0),
        "query length": (query_lengths, float(query_lengths.max())),
        "key length": (key_lengths, float(key_lengths.max())),
    }
    rows: list[Row] = []
    for quantity, (values, end) in ends.items():
        counts = torch.histc(values.flatten(), BINS, 0.0, end).tolist()
        for i, number in enumerate(counts):
            rows.append(
                {
                    "kind": "histogram",
                    "quantity": quantity,
                    "left": end * i / BINS,
                    "right": end * (i + 1) / BINS,
                    "share": number / values.numel(),
                }
            )
    return rows


def _baselines(problem: Softmax) -> list[Row]:
    """Rows that no query changes: uniform, and the mean true row of the validation queries."""
    log_p = torch.log_softmax(problem.queries @ problem.keys.t(), dim=-1)
    average = torch.softmax(problem.valid_queries @ problem.keys.t(), dim=-1).mean(dim=0)
    uniform = torch.full_like(average, 1.0 / len(average))
    rows: list[Row] = []
    for method, distribution in (("uniform", uniform), ("average", average)):
        metrics = compare_distributions(log_p.exp(), log_p, distribution.expand_as(log_p))
        means = {name: float(value.mean()) for name, value in metrics.items()}
        rows.append({"kind": "baseline", "method": method, **means})
    return rows


# -- estimates -------------------------------------------------------------------------------------
def _estimate(cell: Cell, problem: Softmax) -> Row:
    """Means over rows and seeds (medians where tails are heavy: a mean would be its worst row)."""
    method = METHODS[str(cell["method"])]
    phi = method.build(
        Request(
            dim=problem.keys.shape[1],
            num_features=method.num_features(int(cell["budget"] or 0), str(cell["accounting"])),
            projection=method.projection,
            generator=torch.Generator().manual_seed(0),
        )
    )
    if isinstance(phi, UnfittedMap):
        phi = phi.fit(problem.valid_queries, problem.keys)
    draws = []
    for seed in range(int(cell["seeds"] or 0)):
        phi.resample_(torch.Generator().manual_seed(1 + seed))
        draws.append(measure(phi, problem.queries, problem.keys))
    row: Row = {
        "kind": "estimate",
        **{name: cell[name] for name in ("method", "budget", "accounting", "seeds")},
        "num_projections": phi.num_projections,
        "num_features": phi.num_features,
    }
    for name in draws[0]:
        values = [draw[name] for draw in draws]
        if name in BOUNDED:
            row[name] = statistics.fmean(values)
            row[f"{name}_sd"] = statistics.stdev(values)
        else:
            row[name] = statistics.median(values)
    return row


@torch.no_grad()
def measure(phi: FeatureMap, queries: Tensor, keys: Tensor) -> dict[str, float]:
    """All metrics of one draw; keys are mapped once, rows compared in blocks."""
    key_features = phi.key(keys)
    blocks = [
        compare_rows(block @ keys.t(), log_inner(phi.query(block), key_features))
        for block in queries.split(BLOCK)
    ]
    whole = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    return {
        **{name: float(whole[name].mean()) for name in (*BOUNDED, "empty")},
        "mass_error": float(whole["mass_error"].median()),
        "log10_mass_ratio": float(whole["log_mass_ratio"].median()) / math.log(10.0),
        "frobenius": frobenius(whole["log_error"], whole["log_norm"]),
    }


EXPERIMENT = Experiment(
    name="hrf-language-model",
    title="Estimating the softmax matrix of a language model",
    paper="Choromanski et al., Hybrid Random Features, 2022, language modelling (figures 1 to 5)",
    cells=cells,
    run=run,
    draw=partial(draw, labels={name: method.label for name, method in METHODS.items()}),
    measured=measured,
    summary=partial(summary, labels={name: method.label for name, method in METHODS.items()}),
    requires=("matplotlib",),
)
