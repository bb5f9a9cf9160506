"""`bochner demo`: what it prints and writes, step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bochner.cli.console import output, tracked
from bochner.cli.sources import WINDOW, run_minilm
from bochner.data import QKV
from bochner.demonstration import (
    Swap,
    averaging_maps,
    layer_maps,
    median_seconds,
    swap_cosines,
    time_attention,
)
from bochner.diagnostics import Comparison, Recommendation, choose, compare
from bochner.report.results import (
    comparison_dict,
    environment,
    recommendation_dict,
    to_json,
    write_text,
)
from bochner.report.table import markdown_table, rich_grid, rich_table, rows_of

QUERY_STRIDE = 4
"""Errors are averaged over every 4th query of a window, each attending to all its keys."""

SWAP_TITLE = "Sentence embeddings with linear attention in all layers, no training after the swap"
TIME_TITLE = "Median milliseconds at each number of tokens"

LABELS = [
    "positive@iid",
    "positive",
    "hyperbolic",
    "trigonometric",
    "angular",
    "cluster",
    "gerf",
    "sderf",
    "aderf",
    "data-aware-absolute",
    "data-aware-relative",
    "data-aware",
]


def run_demo(out: Path, budgets: list[int], seeds: int, *, quick: bool) -> None:
    """Compare, choose, swap, time; print all of it and write it below `out`."""
    began = time.perf_counter()
    console = output()
    lengths = [512, 1024, 2048] if quick else [512, 1024, 2048, 4096, 8192]
    threads = torch.get_num_threads()

    console.rule("1. queries, keys and values of a pretrained model")
    run = run_minilm(calibration_windows=2 if quick else 8, evaluation_windows=1 if quick else 4)
    layers, data = run.layers, run.data(query_stride=QUERY_STRIDE)
    source = f"{run.label} (every {QUERY_STRIDE}th query, all keys)"
    console.print(f"{source}.\nText: {run.text}.", highlight=False)

    console.rule("2. how wrong each estimator is")
    table = compare(
        data,
        LABELS,
        budgets,
        num_redraws=seeds,
        generator=torch.Generator().manual_seed(0),
        progress=lambda steps, total: iter(tracked(steps, "measuring", total)),
    )
    title = "Relative error of the attention output, exact softmax attention = 0"
    console.print(rich_table(table, title))

    console.rule("3. what bochner would choose, and why")
    budget = budgets[-1]
    recommendation = choose(table, data, budget)
    for reason in recommendation.reasons:
        console.print("- " + reason, highlight=False)

    console.rule("4. the model with linear attention")
    swaps = _swaps(
        run.model, run.windows["evaluation"], layers["calibration"], table, budgets, seeds
    )
    console.print(rich_grid(SWAP_TITLE, *_swap_rows(swaps)))
    seconds = _model_seconds(run.model, run.windows["evaluation"][:1], layers["calibration"], swaps)
    for name, value in seconds.items():
        console.print(f"whole model, {WINDOW} tokens, {name}: {1000 * value:.0f} ms")

    console.rule("5. time")
    best = recommendation.candidates[0].name.partition("@")[0]
    layer = layers["evaluation"][3]
    timed = {
        f"{best}, m = {m}": layer_maps(
            best, m, [layers["calibration"][3]], torch.Generator().manual_seed(0)
        )[0]
        for m in sorted({budgets[0], budgets[-1]})
    }
    times = time_attention(layer, timed, lengths, repeats=3 if quick else 5)
    console.print(
        rich_grid(f"{TIME_TITLE} ({threads} threads, float32)", *_time_rows(lengths, times))
    )

    files = _write_all(
        out,
        Results(table, recommendation, swaps, seconds, lengths, times, source, run.text),
        title,
    )
    console.rule()
    console.print(f"done in {time.perf_counter() - began:.0f} s on {threads} threads; written to:")
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Results:
    """All that the demo found, for its files."""

    table: Comparison
    recommendation: Recommendation
    swaps: list[Swap]
    model_seconds: dict[str, float]
    lengths: list[int]
    times: dict[str, list[float]]
    source: str
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        return {
            "environment": environment(),
            "source": self.source,
            "text": self.text,
            "comparison": comparison_dict(self.table),
            "recommendation": recommendation_dict(self.recommendation),
            "swaps": [
                {
                    "attention": s.label,
                    "num_features": s.num_features,
                    "mean_cosine": s.mean,
                    "worst_cosine": s.worst,
                }
                for s in self.swaps
            ],
            "model_seconds": self.model_seconds,
            "lengths": self.lengths,
            "attention_seconds": self.times,
        }


def _swaps(
    model: Any,
    windows: torch.Tensor,
    calibration: list[QKV],
    table: Comparison,
    budgets: list[int],
    seeds: int,
) -> list[Swap]:
    """The chosen map at each budget, Performer's at the largest, and averaging."""
    from bochner.transformers import sentence_embeddings

    with torch.no_grad():
        exact = sentence_embeddings(model, windows, torch.ones_like(windows))
    best = table.at(budgets[-1])[0].name.partition("@")[0]
    wanted = [(best, m) for m in budgets] + [("positive", budgets[-1])]
    swaps = []
    for name, budget in tracked(wanted, "swapping in"):
        cosines = [
            swap_cosines(
                model,
                windows,
                exact,
                layer_maps(name, budget, calibration, torch.Generator().manual_seed(seed)),
            )
            for seed in range(seeds)
        ]
        swaps.append(Swap(name, budget, torch.cat(cosines)))
    trivial = swap_cosines(model, windows, exact, averaging_maps(calibration))
    swaps.append(Swap("(averaging the values)", 1, trivial))
    return swaps


def _model_seconds(
    model: Any, window: torch.Tensor, calibration: list[QKV], swaps: list[Swap]
) -> dict[str, float]:
    """Median seconds of one forward pass, exact and with the best map at its largest budget."""
    from bochner.transformers import linear_attention_swapped

    chosen = max((s for s in swaps if s.label == swaps[0].label), key=lambda s: s.num_features)
    maps = layer_maps(
        chosen.label, chosen.num_features, calibration, torch.Generator().manual_seed(0)
    )

    def linear() -> None:
        with linear_attention_swapped(model, maps):
            model(window)

    with torch.no_grad():
        return median_seconds(
            {
                "exact attention": lambda: model(window),
                f"{chosen.label}, m = {chosen.num_features}": linear,
            },
            repeats=5,
        )


def _swap_rows(swaps: list[Swap]) -> tuple[list[str], list[list[str]]]:
    header = ["attention in all layers", "m", "mean cosine to exact", "worst"]
    rows = [["exact", "–", "1.000", "1.000"]]
    rows += [[s.label, str(s.num_features), f"{s.mean:.3f}", f"{s.worst:.3f}"] for s in swaps]
    return header, rows


def _time_rows(
    lengths: list[int], times: dict[str, list[float]]
) -> tuple[list[str], list[list[str]]]:
    header = ["attention of one layer", *(f"{n:,}" for n in lengths)]
    return header, [[name, *(f"{1000 * s:.1f}" for s in row)] for name, row in times.items()]


def _write_all(out: Path, results: Results, title: str) -> list[Path]:
    """results.json, tables.md and errors.png, each written whole."""
    from bochner.report.plot import save_picture

    found = environment()
    provenance = (
        f"{results.source}. Text: {results.text}. Median over heads, mean over redraws ± half of a"
        f" 95 % interval. torch {found['torch']}, {found['threads']} threads, {found['time'][:10]}."
    )
    tables = [
        f"{title}:",
        markdown_table(*rows_of(results.table)),
        provenance,
        f"{SWAP_TITLE}:",
        markdown_table(*_swap_rows(results.swaps)),
        f"{TIME_TITLE} ({found['threads']} threads, float32):",
        markdown_table(*_time_rows(results.lengths, results.times)),
        "Reasons given for the choice:",
        "\n".join("- " + reason for reason in results.recommendation.reasons),
    ]
    write_text(out / "results.json", to_json(results.as_dict()) + "\n")
    write_text(out / "tables.md", "\n\n".join(tables) + "\n")
    save_picture(out / "errors.png", results.table, title, results.times, results.lengths)
    return [out / "results.json", out / "tables.md", out / "errors.png"]
