"""What is made of the rows of `scaling`: tables, the picture, our values of the claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.structured.chain_contestants import EXACT, MARGINALS, PARTITION, TRAINING
from experiments.structured.scaling_tables import (
    OURS,
    all_tables,
    crossover,
    names_and_sizes,
    number,
    of_form,
    ratio,
)

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#000000", "#999999", "#D55E00", "#E69F00")
STRUCT = "torch-struct"
SMALL = "bochner ExactChain, K stored"  # what one would take for 128 labels


def raced(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["part"] == "race"]


def errors(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["part"] == "error"]


def measured(rows: list[Row]) -> Measured:
    """The targets, at the sizes that were run; NaN where a contestant or its memory was not measured."""
    race = raced(rows)
    _, sizes = names_and_sizes(of_form(race, PARTITION))
    _, trained = names_and_sizes(of_form(race, TRAINING))
    most, least = sizes[-1], sizes[0]
    large = 16384 if 16384 in sizes else most
    own = of_form(race, PARTITION)[OURS, most]
    lowest, highest = crossover(race)
    found: dict[str, float | None] = {
        "seconds-65536": number(own, "seconds"),
        "megabytes-65536": _mega(number(own, "bytes")),
        "faster-16384": ratio(race, PARTITION, large, "seconds", EXACT, OURS),
        "training-megabytes-16384": _mega(
            number(of_form(race, TRAINING)[OURS, trained[-1]], "bytes")
        ),
    }
    for form in (PARTITION, MARGINALS):
        for name, field in (("faster", "seconds"), ("leaner", "bytes")):
            key = f"torch-struct-{name}-{form}"
            found[key] = ratio(race, form, least, field, STRUCT, SMALL)
    differences = [
        float(r["difference"] or 0) for r in race if r["difference"] is not None and _ours(r)
    ]
    found["largest-difference"] = max(differences, default=None)
    values: Measured = {n: math.nan if value is None else value for n, value in found.items()}
    values["crossover"] = (lowest, highest)
    return values


def _ours(row: Row) -> bool:
    return str(row["contestant"]).startswith("bochner")


def _mega(count: float | None) -> float | None:
    return None if count is None else count / 1e6


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Tables of the race, of the errors, and what they say."""
    race, some = raced(rows), raced(rows)[0]
    parts = [
        f"T = {some['steps']}, m = {some['num_features']}, one sequence, float32, one thread; CPU seconds"
        " are medians of rounds in which all contestants take turns, memory is the peak of a process of its"
        " own beyond features, embeddings and unaries (a stored K counts). All but `from_embeddings`,"
        " `HybridChain` and `K on the fly`, whose K is exp(a·b), sum over the same chain, whose K has"
        f" rank {some['num_features']}: the low-rank chain is exact for it. Up to 2,048 states each of them"
        " has passed the comparison with the dense recursion in float64.",
        *(f"### {title}\n\n{text}" for title, text in all_tables(race).items()),
        "### Read from the tables",
        _findings(rows),
        "### The error where features stand for given embeddings",
        _errors(rows),
    ]
    return "\n\n".join(parts)


def _findings(rows: list[Row]) -> str:
    lowest, highest = crossover(raced(rows))
    differences = [
        f"{r['contestant']} {float(r['difference']):.1g}"
        for r in raced(rows)
        if r["difference"] is not None and r["form"] == MARGINALS and r["states"] == _least(rows)
    ]
    where = (
        f"between {lowest:,.0f} and {highest:,.0f} states"
        if lowest
        else f"at {highest:,.0f} states already"
    )
    if highest == float("inf"):
        where = "nowhere in the table"
    return (
        f"- The low-rank chain becomes faster than scaled products with a stored K {where}.\n"
        f"- Largest difference from float64 at {_least(rows):,} states, log Z (relative) and marginals:"
        f" {', '.join(differences) or 'not measured'}."
    )


def _least(rows: Sequence[Row]) -> int:
    return names_and_sizes(of_form(raced(rows), PARTITION))[1][0]


def _errors(rows: list[Row]) -> str:
    lines = []
    for r in errors(rows):
        verdict = r.get("verdict")
        lines.append(
            [
                f"{r['way']}, {int(r['states'] or 0):,} states, std of a·b {r['logit_std']}",
                f"{float(r['mean'] or 0):+.3g}",
                f"{float(r['rms'] or 0):.3g}",
                f"{float(r['worst'] or 0):.3g}",
                "–" if verdict is None else f"{float(r['predicted_std'] or 0):.3g}",
                "–" if verdict is None else f"{float(r['chi'] or 0):.3g}",
                "–" if verdict is None else f"{float(r['eta'] or 0):.3g}",
                "–" if verdict is None else str(verdict),
            ]
        )
    header = [
        "m = 256 an edge",
        "mean error",
        "rms",
        "worst",
        "predicted std",
        "chi",
        "eta",
        "verdict",
    ]
    return (
        "(log Ẑ - log Z) / T in nats over draws of the features, and what `diagnose` foresees of the"
        f" shared draw:\n\n{markdown_table(header, lines)}"
    )


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """scaling.png: seconds and memory of log Z against the number of states, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    found = of_form(raced(rows), PARTITION)
    names, sizes = names_and_sizes(found)
    for panel, field, scale, least, title in (
        (panels[0], "seconds", 1.0, 0.0, "CPU seconds of log Z"),
        (panels[1], "bytes", 1e-6, 1.0, "peak memory, MB (1 or less: at 1)"),
    ):
        for index, name in enumerate(names):
            points = [(n, number(found.get((name, n)), field)) for n in sizes]
            known = [(n, max(scale * v, least)) for n, v in points if v is not None]
            if not known:
                continue
            panel.plot(
                *zip(*known, strict=True),
                color=COLOURS[index % len(COLOURS)],
                marker="osD^vP*X<>"[index % 10],
                linewidth=2.2 if name == OURS else 1.1,
                markersize=5,
                label=name,
            )
        panel.set(xlabel="states", title=title, xscale="log", yscale="log")
        panel.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(folder / "scaling.png", dpi=110)
