"""What is made of the rows of `language_model`: our values of the claims, tables, sentences, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

# Okabe and Ito's colours: told apart with every kind of colour vision; each has a marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
FEWEST = 3  # seeds that an interval takes
SVD = "truncated SVD"


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def models(rows: Sequence[Row]) -> list[Row]:
    """Trained models; exact ones first, then by rank and states."""
    found = pick(rows, kind="model")
    return sorted(found, key=lambda r: (r["rank"] or 0, r["states"], r["seed"]))


def kinds(rows: Sequence[Row]) -> list[tuple[int | None, int]]:
    """(rank, states) of the models, in that order."""
    return list(dict.fromkeys((row["rank"], int(row["states"])) for row in models(rows)))


def over(rows: Sequence[Row], name: str) -> Interval:
    """Mean and 95 % interval of a field."""
    values = [float(row[name] or 0.0) for row in rows]
    return Interval.over(torch.tensor(values, dtype=torch.float64))


def text(found: Interval, digits: int = 1) -> str:
    """Mean and half-width; the mean alone for fewer than three seeds."""
    mean = f"{found.value:.{digits}f}"
    return mean if found.redraws < FEWEST else f"{mean} ± {found.high - found.value:.{digits}f}"


def perplexity(rows: Sequence[Row], rank: int | None, states: int) -> float:
    """Of a model, the mean of its seeds."""
    return over(pick(models(rows), rank=rank, states=states), "perplexity").value


def base_states(rows: Sequence[Row]) -> int:
    """States of the exact model that the others are compared with, and that is approximated."""
    return int(pick(rows, kind="posthoc")[0]["states"] or 0)


def best_low_rank(rows: Sequence[Row]) -> tuple[int, int]:
    """(rank, states) of the low-rank model with the smallest perplexity."""
    low = [(rank, states) for rank, states in kinds(rows) if rank is not None]
    return min(low, key=lambda kind: perplexity(rows, *kind))


def measured(rows: list[Row]) -> Measured:
    """Perplexities, and quotients of perplexities; four times the states at a quarter of them in rank."""
    states = base_states(rows)
    exact = perplexity(rows, None, states)
    plain = [row for row in pick(rows, kind="posthoc") if row["method"] == "positive"]
    most = max(int(row["size"] or 0) for row in plain)
    svd = pick(rows, kind="posthoc", method=SVD)
    largest = max(svd, key=lambda row: int(row["size"] or 0))
    return {
        "unigram": float(models(rows)[0]["unigram"] or 0.0),
        "exact": exact,
        "low-rank-ratio": perplexity(rows, states // 4, 4 * states) / exact,
        "best-low-rank-ratio": perplexity(rows, *best_low_rank(rows)) / exact,
        "posthoc-positive": over(pick(plain, size=most), "perplexity").value,
        "posthoc-svd-ratio": float(largest["perplexity"] or 0.0)
        / float(pick(models(rows), rank=None, states=states, seed=0)[0]["perplexity"] or 0.0),
    }


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Models, approximations of one of them after training, and what follows."""
    some = models(rows)[0]
    return "\n\n".join(
        [
            f"{some['train_verses']:,} verses of the King James Bible train ({some['train_tokens']:,}"
            f" words, marks and ends of verses), {some['test_verses']:,} others test"
            f" ({some['test_tokens']:,}); {some['words']:,} different words. Perplexity per test word;"
            f" {float(some['unigram'] or 0):.1f} for the frequencies of the words alone. Means over the"
            " seeds, with 95 % intervals from three seeds on. CPU time is that of the updates on one"
            " thread, on a machine that may have been shared.",
            "### Models, by states and rank",
            _model_table(rows),
            _growth(rows),
            "### The exact model, its transitions replaced after training",
            _posthoc_table(rows),
            _verdict(rows),
        ]
    )


def label(rank: int | None) -> str:
    """exact softmax, rank 64."""
    return "exact softmax" if rank is None else f"rank {rank}"


def _model_table(rows: Sequence[Row]) -> str:
    exact = perplexity(rows, None, base_states(rows))
    lines = []
    for rank, states in kinds(rows):
        some = pick(models(rows), rank=rank, states=states)
        found = over(some, "perplexity")
        lines.append(
            [
                label(rank),
                f"{states:,}",
                str(len(some)),
                f"{float(some[0]['passes'] or 0):g}",
                f"{int(some[0]['parameters'] or 0):,}",
                text(found),
                f"{100 * (found.value / exact - 1):+.1f} %",
                f"{over(some, 'seconds').value:.0f}",
            ]
        )
    against = f"against exact {base_states(rows)}"
    header = ["transitions", "states", "seeds", "passes over the text", "parameters", "perplexity"]
    return markdown_table([*header, against, "CPU-s"], lines)


def _growth(rows: Sequence[Row]) -> str:
    grown = [r for r in models(rows) if float(r["passes"] or 0) > float(r["epochs"] or 0)]
    sizes = sorted({int(r["states"] or 0) for r in grown})
    names = ", ".join(f"{size:,}" for size in sizes)
    return (
        f"The models of {names} states start from the trained model of a quarter of their states, every"
        " state becoming four with a little noise; their passes over the text include those of the model"
        " they start from, their CPU time does not. All others start from random parameters."
    )


def _posthoc_table(rows: Sequence[Row]) -> str:
    found = pick(rows, kind="posthoc")
    lines = []
    for method, size in dict.fromkeys((str(r["method"]), int(r["size"] or 0)) for r in found):
        some = pick(found, method=method, size=size)
        lines.append(
            [
                method,
                str(size),
                text(over(some, "perplexity")),
                text(over(some, "row_kl"), 3),
                f"{100 * over(some, 'replaced').value:.0f} %",
            ]
        )
    header = ["approximation", "features or rank", "perplexity", "KL of a row, nats", "floored"]
    return markdown_table(header, lines)


def _verdict(rows: Sequence[Row]) -> str:
    states = base_states(rows)
    exact = pick(models(rows), rank=None, states=states, seed=0)[0]
    posthoc = pick(rows, kind="posthoc")
    random = min((r for r in posthoc if r["method"] != SVD), key=_perplexity)
    svd = min((r for r in posthoc if r["method"] == SVD), key=_perplexity)
    small = min(r for r, s in kinds(rows) if r is not None and s == states)
    trained = perplexity(rows, small, states)
    rank, many = best_low_rank(rows)
    fails = _perplexity(random) > trained
    return (
        f"Trained through its features, {4 * states:,} states of rank {states // 4} are at"
        f" {_against(rows, states // 4, 4 * states)} of the exact model of {states} states in"
        f" perplexity; {many:,} states of rank {rank}, the best of low rank, at"
        f" {_against(rows, rank, many)}."
        f" Random features {'do not rescue' if fails else 'can stand for'} the trained table, whose rows"
        f" have an entropy of {float(exact['row_entropy'] or 0):.2f} nats: the best draw of all gives"
        f" {_perplexity(random):.1f} ({random['method']}, {random['size']} features), {states} states"
        f" trained at rank {small} give {trained:.1f}. The truncated SVD of the same table, which needs"
        f" the table and is not positive, gives {_perplexity(svd):.1f} at rank {svd['size']}, where exact"
        f" is {_perplexity(exact):.1f}."
    )


def _perplexity(row: Row) -> float:
    return float(row["perplexity"] or 0.0)


def _against(rows: Sequence[Row], rank: int, states: int) -> str:
    """Difference in percent from the exact model of the base states."""
    ratio = perplexity(rows, rank, states) / perplexity(rows, None, base_states(rows))
    return f"{100 * (ratio - 1):+.1f} %"


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """Perplexity by states; and by features where the transitions are replaced after training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for index, rank in enumerate(dict.fromkeys(rank for rank, _ in kinds(rows))):
        states = [s for r, s in kinds(rows) if r == rank]
        found = [over(pick(models(rows), rank=rank, states=s), "perplexity") for s in states]
        _curve(axes, states, found, label(rank), index)
    axes.set(xscale="log", yscale="log", xlabel="states", ylabel="test perplexity")
    _plain(axes, sorted({states for _, states in kinds(rows)}))
    axes.legend()
    figure.savefig(folder / "states.png", dpi=150)

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    posthoc = pick(rows, kind="posthoc")
    methods = list(dict.fromkeys(str(row["method"]) for row in posthoc))
    for index, method in enumerate(methods):
        sizes = sorted({int(r["size"] or 0) for r in posthoc if r["method"] == method})
        found = [over(pick(posthoc, method=method, size=s), "perplexity") for s in sizes]
        _curve(axes, sizes, found, method, index)
    base = base_states(rows)
    ranks = [r for r, s in kinds(rows) if s == base and r is not None]
    found = [over(pick(models(rows), rank=r, states=base), "perplexity") for r in ranks]
    _curve(axes, ranks, found, "trained at this rank", len(methods))
    axes.axhline(perplexity(rows, None, base), color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="features, or rank", ylabel="test perplexity")
    _plain(axes, sorted({int(row["size"] or 0) for row in posthoc}))
    axes.set_title(f"{base} states; dotted: exact softmax", fontsize="medium")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small"
    )
    figure.savefig(folder / "replaced.png", dpi=150)


def _plain(axes, places) -> None:  # type: ignore[no-untyped-def]
    """Logarithmic axes with numbers written out."""
    axes.set_xticks(places, [str(place) for place in places])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _curve(axes, places, found, name: str, index: int) -> None:  # type: ignore[no-untyped-def]
    """Means with their intervals, from three seeds on."""
    axes.errorbar(
        places,
        [f.value for f in found],
        yerr=[f.high - f.value if f.redraws >= FEWEST else 0.0 for f in found],
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linewidth=1.3,
        capsize=2,
        label=name,
    )
