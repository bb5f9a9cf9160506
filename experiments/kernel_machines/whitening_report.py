"""What whitening does to sentence embeddings: tables, a picture, claims (see whitening.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

FEWEST = 3  # seeds that an interval takes
PLAIN, LINEAR = "embeddings", "whitened"
KERNEL = "Nyström, whitened"


def pick(rows: Sequence[Row], /, **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows))


def over_seeds(rows: Sequence[Row], name: str) -> Interval:
    return Interval.over(torch.tensor([float(row[name]) for row in rows], dtype=torch.float64))


def text(found: Interval, scale: float = 1.0, digits: int = 1) -> str:
    mean = f"{scale * found.value:.{digits}f}"
    if found.redraws < FEWEST:
        return mean
    return f"{mean} ± {scale * (found.high - found.value):.{digits}f}"


def gain(rows: Sequence[Row], name: str, against: str, field: str, penalty: float) -> Interval:
    """Of a representation over another in the shortcut's test, seed by seed."""

    def of(which: str) -> dict[object, float]:
        some = pick(rows, question="shortcut", rows=which, C=penalty)
        return {row["seed"]: float(row[field]) for row in some}

    ours, theirs = of(name), of(against)
    return Interval.over(torch.tensor([ours[s] - theirs[s] for s in ours], dtype=torch.float64))


def measured(rows: list[Row]) -> Measured:
    """How far the covariance of whitened training rows is from I, at worst."""
    return {"isotropy": max(float(row["error"]) for row in pick(rows, question="isotropy"))}


def summary(rows: list[Row]) -> str:
    """Both questions."""
    seeds = len(distinct(rows, "seed"))
    return "\n\n".join(
        [
            f"Means over {seeds} {'draw' if seeds == 1 else 'draws'} of passages"
            f"{', with 95 % intervals' if seeds >= FEWEST else ''}.",
            "### Isotropy and retrieval, on documents that the whitening has not seen",
            _retrieval_table(rows),
            "### A shortcut that works in 95 % of training rows and in half of the test rows",
            "Percent right, mean over the four groups of test rows and in the worst of them, by the penalty"
            " C of the logistic regression.",
            _shortcut_table(rows),
            _verdict(rows),
        ]
    )


def _retrieval_table(rows: Sequence[Row]) -> str:
    some = pick(rows, question="retrieval")
    lines = []
    for name in distinct(some, "rows"):
        these = pick(some, rows=name)
        lines.append(
            [
                str(name),
                text(over_seeds(these, "same_document"), 100),
                text(over_seeds(these, "mean_cosine"), digits=3),
                text(over_seeds(these, "participation"), digits=0),
            ]
        )
    header = ["rows", "nearest is of the same document, %", "mean cosine of two documents"]
    return markdown_table([*header, "participating directions"], lines)


def _shortcut_table(rows: Sequence[Row]) -> str:
    some = pick(rows, question="shortcut")
    penalties = sorted(distinct(some, "C"))
    lines = []
    for name in distinct(some, "rows"):
        line = [str(name)]
        for penalty in penalties:
            these = pick(some, rows=name, C=penalty)
            mean, worst = (over_seeds(these, field) for field in ("accuracy", "worst"))
            line += [text(mean, 100), text(worst, 100)]
        lines.append(line)
    header = [part for c in penalties for part in (f"C = {c:g}", "worst group")]
    return markdown_table(["rows", *header], lines)


def _verdict(rows: Sequence[Row]) -> str:
    over_plain = gain(rows, KERNEL, PLAIN, "accuracy", 1.0)
    over_linear = gain(rows, KERNEL, LINEAR, "accuracy", 1.0)
    return (
        f"At C = 1, kernel whitening (Nyström) is {text(over_plain, 100)} points above the embeddings and"
        f" {text(over_linear, 100)} above their linear whitening."
    )


def draw(rows: list[Row], folder: Path) -> None:
    """Worst-group accuracy against C."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    some = pick(rows, question="shortcut")
    for name in distinct(some, "rows"):
        penalties = sorted(distinct(some, "C"))
        values = [100 * over_seeds(pick(some, rows=name, C=c), "worst").value for c in penalties]
        axes.plot(penalties, values, "o-", label=name)
    axes.set(xscale="log", xlabel="C", ylabel="right in the worst group, %")
    axes.legend(fontsize=7)
    figure.savefig(folder / "whitening.png", dpi=150)
