"""What is made of the rows of `tagger`: tables, sentences, the picture, our values of the claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics.interval import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

FEWEST = 3  # seeds that an interval takes
LAST = "two passes"


def select(rows: Sequence[Row], **fields: object) -> list[Row]:
    """The rows with these fields."""
    return [r for r in rows if all(r.get(name) == value for name, value in fields.items())]


def over_seeds(rows: Sequence[Row], metric: str) -> Interval:
    """Mean and 95 % interval."""
    return Interval.over(torch.tensor([float(r[metric] or 0.0) for r in rows]).double())


def text(found: Interval, digits: int, factor: float = 1.0) -> str:
    """With its interval where there are seeds enough."""
    value = f"{factor * found.value:.{digits}f}"
    if found.redraws < FEWEST:
        return value
    return f"{value} ± {factor * (found.high - found.value):.{digits}f}"


def trained(rows: Sequence[Row]) -> list[Row]:
    return select(rows, part="training")


def ranks(rows: Sequence[Row]) -> list[int]:
    return sorted({int(r["rank"] or 0) for r in trained(rows)})


def gains(rows: Sequence[Row], rank: int, metric: str, stage: str = LAST) -> Interval:
    """Seed by seed, with transitions minus without, after the same passes."""
    own = select(trained(rows), rank=rank, stage=stage)
    base = {r["seed"]: r for r in select(trained(rows), rank=0, stage=stage)}
    found = [float(r[metric] or 0.0) - float(base[r["seed"]][metric] or 0.0) for r in own]
    return Interval.over(torch.tensor(found).double())


def main_rank(rows: Sequence[Row]) -> int:
    """The one with the most seeds."""
    return max(ranks(rows)[1:], key=lambda rank: len(select(trained(rows), rank=rank, stage=LAST)))


def measured(rows: list[Row]) -> Measured:
    """Accuracies, gains, what exact programs would need, chi."""
    rank = main_rank(rows)
    replaced = {str(r["way"]): r for r in select(rows, part="replaced")}
    whole = {str(r["program"]): r for r in select(rows, part="costs", extrapolated=True)}
    last = {
        name: over_seeds(select(trained(rows), rank=at, stage=LAST), "accuracy").value
        for name, at in (("none", 0), ("crf", rank))
    }
    labels = float(trained(rows)[0]["labels"] or 0)
    return {
        "labels": labels,
        "words": sum(
            float(trained(rows)[0][f"{part}_words"] or 0) for part in ("training", "test")
        ),
        "accuracy-no-transitions": last["none"],
        "accuracy-crf": last["crf"],
        "accuracy-gain": gains(rows, rank, "accuracy").value,
        "nll-gain": gains(rows, rank, "nll").value,
        "table-gigabytes": 4e-9 * labels**2,
        "torch-struct-terabytes": 1e-12 * float(whole["torch-struct"]["laid_out"] or 0),
        "pytorch-crf-gigabytes": 1e-9 * float(whole["pytorch-crf"]["laid_out"] or 0),
        "chi": float(replaced["diagnosis"]["chi"] or 0),
    }


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """The tables with what they say."""
    some = trained(rows)[0]
    return "\n\n".join(
        [
            f"{int(some['labels'] or 0):,} labels, {int(some['training_words'] or 0):,} words to train on,"
            f" {int(some['test_words'] or 0):,} to test on (every twentieth verse). No list of candidates"
            " restricts a word's labels. The emissions see the word, two neighbours on either side and the"
            " mean of the verse, and what the training text counts for the word. Accuracy is that of the"
            " likeliest label of every word (posterior decoding); means over seeds, ± the 95 % interval.",
            "### Trained",
            _training_table(rows),
            _training_words(rows),
            "### What exact programs would need",
            _costs_table(rows),
            _costs_words(rows),
            "### Given potentials exp(a·b) instead, and ways around their table",
            _replaced_table(rows),
            _replaced_words(rows),
        ]
    )


def _training_table(rows: list[Row]) -> str:
    lines = []
    for rank in ranks(rows):
        for stage in ("one pass", LAST):
            own = select(trained(rows), rank=rank, stage=stage)
            name = f"low rank, m = {rank}" if rank else "none"
            said = ", counted" if rank and stage != LAST else ""
            lines.append(
                [
                    f"{name}{said}",
                    stage,
                    str(len(own)),
                    text(over_seeds(own, "accuracy"), 2, 100),
                    text(gains(rows, rank, "accuracy", stage), 2, 100) if rank else "–",
                    text(over_seeds(own, "testament"), 2, 100),
                    text(over_seeds(own, "nll"), 3),
                    f"{over_seeds(own, 'cpu_seconds').value:.0f}" if stage == LAST else "–",
                ]
            )
    header = ["transitions", "trained", "seeds", "accuracy %", "gain, points", "right testament %"]
    return markdown_table([*header, "-log p of all labels, nats a word", "CPU s, 2nd pass"], lines)


def _training_words(rows: list[Row]) -> str:
    rank = main_rank(rows)
    gain, nll = gains(rows, rank, "accuracy"), gains(rows, rank, "nll")
    seeds = f"{gain.redraws} seed" + ("s" if gain.redraws > 1 else "")
    if gain.redraws < FEWEST:
        verdict = "one draw, no interval"
    elif gain.low > 0:
        verdict = "more than the seeds differ"
    elif gain.high < 0:
        verdict = "a loss beyond the seeds' differences"
    else:
        verdict = "within the seeds' differences"
    return (
        f"With transitions of rank {rank} the accuracy changes by {text(gain, 2, 100)} points"
        f" ({seeds}, seed by seed; {verdict}), and the whole verse's labels are more likely by"
        f" {-nll.value:.3f} nats a word (negative: less). 'Counted' transitions come from the labels'"
        " bigrams alone, before any gradient reached them."
    )


def _costs_table(rows: list[Row]) -> str:
    lines = []
    for row in select(rows, part="costs"):
        seconds = row["seconds"]
        lines.append(
            [
                str(row["program"]) + (" (extrapolated)" if row["extrapolated"] else ""),
                f"{int(row['labels'] or 0):,}",
                "–" if seconds is None else f"{float(seconds):.3g}",
                "–" if row["bytes"] is None else size(float(row["bytes"])),
                size(float(row["laid_out"] or 0)),
                "–" if row["epoch_hours"] is None else f"{float(row['epoch_hours']):.2g}",
            ]
        )
    header = ["one verse of 12 words", "labels", "CPU s", "measured peak", "laid out, by formula"]
    return markdown_table([*header, "hours for one pass, verse by verse"], lines)


def _costs_words(rows: list[Row]) -> str:
    whole = {str(r["program"]): r for r in select(rows, part="costs", extrapolated=True)}
    struct, crf = (float(whole[n]["laid_out"] or 0) for n in ("torch-struct", "pytorch-crf"))
    return (
        f"For all labels torch-struct would lay out {size(struct)} and pytorch-crf {size(crf)} for one"
        " verse. The exact table could be kept (its gradient, and Adam's two moments, as large again, three"
        " times); what rules it out is the time. Batches would make its products faster by a small factor."
    )


def _replaced_table(rows: list[Row]) -> str:
    lines = [
        [
            str(r["way"]),
            f"{100 * float(r['accuracy'] or 0):.2f}",
            f"{100 * float(r['agreement'] or 0):.1f}",
            *(
                "–" if r[f"log_z_{what}"] is None else f"{float(r[f'log_z_{what}'] or 0):{sign}.3g}"
                for what, sign in (("bias", "+"), ("rms", ""))
            ),
            f"{100 * float(r['undefined'] or 0):.0f}",
            f"{float(r['making_seconds'] or 0):.1f} + {float(r['cpu_seconds'] or 0):.1f}",
            size(float(r["bytes"] or 0)),
        ]
        for r in select(rows, part="replaced")
        if r["way"] != "diagnosis"
    ]
    header = ["K", "accuracy %", "same label as exact %", "log Z error a word, mean", "rms"]
    header += ["Ẑ <= 0, % of verses"]
    return markdown_table([*header, "CPU s: make + run", "K takes"], lines)


def _replaced_words(rows: list[Row]) -> str:
    ways = {str(r["way"]): r for r in select(rows, part="replaced")}
    found = ways["diagnosis"]
    negative = next(float(r["negative"] or 0) for name, r in ways.items() if "SVD" in name)
    first = ways[next(iter(ways))]
    return (
        f"{int(first['test_words'] or 0):,} words of the test. `diagnose()` on the random features says"
        f" **{found['verdict']}**: chi = {float(found['chi'] or 0):.3g}, eta = {float(found['eta'] or 0):.3g}"
        f" (the worst of the verses that it was asked about).\n\n```\n{found['words']}\n```\n\n"
        + VERDICTS[str(found["verdict"])]
        + f" The truncated SVD is signed: {100 * negative:.1f} % of the words have a marginal below 0."
        " Features that are learned, as in the first table, have no such error: they are the model."
    )


VERDICTS = {
    "valid": "These potentials are flat enough for random features.",
    "underpowered": "These potentials want more features than are worth their price.",
    "hopeless": "Random features do not rescue potentials as peaked as these, and no affordable number"
    " of them would: the exact table where it fits, its truncated SVD, or a beam (with the hybrid, which"
    " loses no path) where the emissions are sharp, are the ways to take.",
}


def size(count: float) -> str:
    """Bytes with their unit.

    Example:
        >>> size(7.9e8), size(512)
        ('790 MB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB" if count >= 100 else f"{count:.3g} TB"


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """accuracy.png: by rank, before and after the second pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for panel, metric, factor, name in (
        (left, "accuracy", 100, "accuracy %, posterior decoding"),
        (right, "nll", 1, "-log p of all labels, nats a word"),
    ):
        for stage, colour, marker in (("one pass", "#56B4E9", "s"), (LAST, "#0072B2", "o")):
            found = [
                over_seeds(select(trained(rows), rank=r, stage=stage), metric) for r in ranks(rows)
            ]
            panel.errorbar(
                range(len(found)),
                [factor * f.value for f in found],
                yerr=[factor * (f.high - f.value) if f.redraws >= FEWEST else 0 for f in found],
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=3,
                label="counted / one pass" if stage != LAST else "trained together, two passes",
            )
        panel.set_xticks(
            range(len(ranks(rows))), [f"m = {r}" if r else "none" for r in ranks(rows)]
        )
        panel.set(xlabel="transitions", ylabel=name)
        panel.grid(alpha=0.3)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8
    )
    figure.savefig(folder / "accuracy.png", dpi=110)
