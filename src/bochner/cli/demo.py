"""`bochner demo`: what it prints and writes, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bochner.attention import ExactWindow
from bochner.cli.console import output, tracked
from bochner.cli.sources import WINDOW, MiniLMRun, run_minilm
from bochner.demonstration import (
    NEAR,
    Conversion,
    Swap,
    averaging_maps,
    calibrated_maps,
    converted,
    denominator_warnings,
    layer_maps,
    median_seconds,
    swap,
    swap_cosines,
    time_attention,
)
from bochner.diagnostics import Comparison, Data, Recommendation, choose, compare
from bochner.feature_map import FeatureMap
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

AVERAGING = "(averaging the values)"
CALIBRATED = "calibrated"
CONVERTED = [32, 64]
"""Features of the models that are converted as a user would do it, by `linearize` and `calibrate`."""

LABELS = [
    CALIBRATED,
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
    budgets = sorted(set(budgets))
    lengths = [512, 1024, 2048] if quick else [512, 1024, 2048, 4096, 8192]
    threads = torch.get_num_threads()

    console.rule("1. queries, keys and values of a pretrained model")
    run = run_minilm(calibration_windows=2 if quick else 8, evaluation_windows=1 if quick else 4)
    layers, data = run.layers, run.data(query_stride=QUERY_STRIDE)
    source = f"{run.label} (every {QUERY_STRIDE}th query, all keys)"
    console.print(f"{source}.\nText: {run.text}.", highlight=False)

    console.rule("2. how wrong each estimator is")
    some = budgets[-1:] if quick else budgets[::-2][::-1]
    table = _comparison(data, budgets, some, seeds)
    title = "Relative error of the attention output, exact softmax attention = 0"
    console.print(rich_table(table, title))

    console.rule("3. what bochner would choose, and why")
    recommendation = choose(table, data, budgets[-1])
    for reason in recommendation.reasons:
        console.print("- " + reason, highlight=False)

    console.rule("4. the model with linear attention")
    best = next(c.name for c in table.at(budgets[-1]) if c.unbiased).partition("@")[0]
    models = _conversions(run, CONVERTED[:1] if quick else CONVERTED)
    swaps = _swaps(run, models, [(best, m) for m in budgets], seeds)
    console.print(rich_grid(SWAP_TITLE, *_swap_rows(swaps)))
    console.print(_swap_notes(run, models, seeds), highlight=False)
    for row in swaps:
        if row.guarded is not None:
            console.print(f"{row.label}, m = {row.num_features}: {row.guarded}", highlight=False)
    seconds = _model_seconds(run, models[-1], (best, budgets[-1]))
    for name, value in seconds.items():
        console.print(f"whole model, {WINDOW} tokens, {name}: {1000 * value:.0f} ms")

    console.rule("5. time")
    last = models[-1]
    timed: dict[str, tuple[FeatureMap, ExactWindow | None]] = {}
    for m in sorted({budgets[0], budgets[-1]}):
        maps = layer_maps(best, m, [layers["calibration"][3]], torch.Generator().manual_seed(0))
        timed[f"{best}, m = {m}"] = (maps[0], None)
    for exact in (None, last.exact):
        alone = replace(last, exact=exact)
        timed[f"{alone.title}, m = {last.num_features}"] = (last.maps[3], exact)
    times = time_attention(layers["evaluation"][3], timed, lengths, repeats=3 if quick else 5)
    console.print(
        rich_grid(f"{TIME_TITLE} ({threads} threads, float32)", *_time_rows(lengths, times))
    )

    results = Results(table, recommendation, swaps, seconds, lengths, times, source, run.text)
    files = _write_all(out, results, title, _swap_notes(run, models, seeds))
    console.rule()
    console.print(f"done in {time.perf_counter() - began:.0f} s on {threads} threads; written to:")
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)


def _comparison(data: Data, budgets: list[int], some: list[int], seeds: int) -> Comparison:
    """All maps at all budgets; the calibrated one, whose fit takes longest, at some."""
    found = [
        compare(
            data,
            labels,
            chosen,
            num_redraws=seeds,
            generator=torch.Generator().manual_seed(0),
            progress=lambda steps, total: iter(tracked(steps, "measuring", total)),
        )
        for labels, chosen in (
            ([x for x in LABELS if x != CALIBRATED], budgets),
            ([x for x in LABELS if x == CALIBRATED], some),
        )
        if labels
    ]
    return replace(
        found[0],
        candidates=[c for table in found for c in table.candidates],
        skipped={label: why for table in found for label, why in table.skipped.items()},
    )


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
                    "heads": s.heads,
                    "heads_worse_than_averaging": s.worse_heads,
                    "guarded": s.guarded,
                }
                for s in self.swaps
            ],
            "model_seconds": self.model_seconds,
            "lengths": self.lengths,
            "attention_seconds": self.times,
        }


def _conversions(run: MiniLMRun, budgets: list[int]) -> list[Conversion]:
    """The model as a user converts it, at each budget, fitted to the calibration windows."""
    windows = run.windows["calibration"]
    batches = windows.split(max(1, len(windows) // 4))
    label = f"{CALIBRATED} (biased)"
    return [
        Conversion(
            label,
            m,
            calibrated_maps(run.model, CALIBRATED, m, batches, torch.Generator().manual_seed(0)),
            NEAR,
        )
        for m in tracked(budgets, "calibrating, m =")
    ]


def _swaps(
    run: MiniLMRun, models: Sequence[Conversion], best: list[tuple[str, int]], seeds: int
) -> list[Swap]:
    """The best unbiased map at each budget, Performer's at the largest, averaging; and with exact pairs the
    calibrated models and their rivals."""
    from bochner.transformers import sentence_embeddings

    windows, calibration = run.windows["evaluation"], run.layers["calibration"]
    with torch.no_grad():
        exact = sentence_embeddings(run.model, windows, torch.ones_like(windows))

    def drawn(name: str, budget: int, near: ExactWindow | None, seed: int) -> Conversion:
        maps = layer_maps(name, budget, calibration, torch.Generator().manual_seed(seed))
        return Conversion(name, budget, maps, near)

    def draws(
        name: str, budget: int, near: ExactWindow | None = None
    ) -> list[Callable[[], Conversion]]:
        return [partial(drawn, name, budget, near, seed) for seed in range(seeds)]

    flat = Conversion(AVERAGING, 1, averaging_maps(calibration))
    last = models[-1].num_features
    wanted = [draws(name, m) for name, m in [*best, ("positive", best[-1][1])]]
    wanted += [draws(best[0][0], last, NEAR), [lambda: replace(flat, exact=NEAR)]]
    wanted += [[lambda model=model: model] for model in models]  # type: ignore[misc]
    swaps = [swap(run.model, windows, exact, some) for some in tracked(wanted, "swapping in")]
    trivial = Swap(AVERAGING, 1, swap_cosines(run.model, windows, exact, flat))
    swaps.insert(len(best) + 1, trivial)
    return swaps


def _swap_notes(run: MiniLMRun, models: Sequence[Conversion], seeds: int) -> str:
    """What the rows of the table are."""
    fitted, seen = (len(run.windows[part]) for part in ("calibration", "evaluation"))
    batches = min(4, fitted)
    used = fitted - fitted // batches
    return (
        f"Mean and worst over {seeds} redraws on {'one window' if seen == 1 else f'{seen} windows'};"
        f" {CALIBRATED} models are made once, by `linearize` and `calibrate`, which fits to {used} of"
        f" the {fitted} calibration windows. Heads worse than averaging: of the first redraw, on the"
        " same windows. Window and sinks: keys that each query sees exactly."
    )


def _model_seconds(run: MiniLMRun, model: Conversion, best: tuple[str, int]) -> dict[str, float]:
    """Median seconds of one forward pass: exact, the best unbiased map at its largest budget, converted."""
    name, budget = best
    maps = layer_maps(name, budget, run.layers["calibration"], torch.Generator().manual_seed(0))
    window = run.windows["evaluation"][:1]

    def linear(conversion: Conversion) -> None:
        with converted(run.model, conversion):
            run.model(window)

    with torch.no_grad(), denominator_warnings():
        return median_seconds(
            {
                "exact attention": lambda: run.model(window),
                f"{name}, m = {budget}": partial(linear, Conversion(name, budget, maps)),
                f"{model.title}, m = {model.num_features}": partial(linear, model),
            },
            repeats=5,
        )


def _swap_rows(swaps: list[Swap]) -> tuple[list[str], list[list[str]]]:
    heads = max(s.heads for s in swaps)
    header = ["attention in all layers", "m", "mean cosine to exact", "worst"]
    header.append(f"heads (of {heads}) worse than averaging")
    rows = [["exact", "–", "1.000", "1.000", "–"]]
    for s in swaps:
        worse = "–" if s.worse_heads is None else str(s.worse_heads)
        rows.append([s.label, str(s.num_features), f"{s.mean:.3f}", f"{s.worst:.3f}", worse])
    return header, rows


def _time_rows(
    lengths: list[int], times: dict[str, list[float]]
) -> tuple[list[str], list[list[str]]]:
    header = ["attention of one layer", *(f"{n:,}" for n in lengths)]
    return header, [[name, *(f"{1000 * s:.1f}" for s in row)] for name, row in times.items()]


def _write_all(out: Path, results: Results, title: str, swap_notes: str) -> list[Path]:
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
        swap_notes,
        f"{TIME_TITLE} ({found['threads']} threads, float32):",
        markdown_table(*_time_rows(results.lengths, results.times)),
        "Reasons given for the choice:",
        "\n".join("- " + reason for reason in results.recommendation.reasons),
    ]
    write_text(out / "results.json", to_json(results.as_dict()) + "\n")
    write_text(out / "tables.md", "\n\n".join(tables) + "\n")
    save_picture(out / "errors.png", results.table, title, results.times, results.lengths)
    return [out / "results.json", out / "tables.md", out / "errors.png"]
