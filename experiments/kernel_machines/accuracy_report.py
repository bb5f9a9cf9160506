"""What `accuracy` says: scores, differences from RBFSampler by seed, the picture (see accuracy.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

RBF_SAMPLER = "RBFSampler"
NYSTROEM = "Nystroem"
COSINE = "cosine"  # orthogonal directions with offsets, as many as features
LINEAR = "linear"
EXACT = "exact kernel"
WITHOUT = (LINEAR, EXACT)  # without features
SAMPLERS = ("iid", "orthogonal", "sobol", COSINE)
COLOURS = ("#999999", "#000000", "#56B4E9", "#D55E00", "#CC79A7", "#009E73")


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows))


def sizes(rows: Sequence[Row]) -> list[int]:
    return sorted(m for m in distinct(rows, "features") if m)


def scores(rows: Sequence[Row]) -> torch.Tensor:
    return torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)


def difference(rows: Sequence[Row], name: str, m: int, contestant: str) -> Interval:
    """Points (100 times the score) above RBFSampler with as many features, paired by seed."""
    base = {row["seed"]: row for row in pick(rows, set=name, features=m, contestant=RBF_SAMPLER)}
    own = [
        row
        for row in pick(rows, set=name, features=m, contestant=contestant)
        if row["seed"] in base
    ]
    pairs = scores(own) - scores([base[row["seed"]] for row in own])
    return Interval.over(100 * pairs)


def differences(rows: Sequence[Row], contestant: str) -> list[Interval]:
    """On every set and for every m."""
    return [
        difference(rows, name, m, contestant) for name in distinct(rows, "set") for m in sizes(rows)
    ]


def measured(rows: list[Row]) -> Measured:
    """Smallest and largest mean difference from RBFSampler, in points."""
    values: Measured = {}
    for contestant in (*SAMPLERS, NYSTROEM):
        found = [d.value for d in differences(rows, contestant)]
        values[f"{contestant.lower()}-points"] = min(found), max(found)
    return values


def summary(rows: list[Row]) -> str:
    """What moves the score and what does not, then every number."""
    parts = [
        "Accuracy in percent (R² times 100 for diamonds and flights) on test rows, mean ± standard deviation"
        " over seeds; gamma and penalty chosen on validation rows by each contestant for itself."
        f" `{EXACT}`: kernel ridge regression without approximation, where at most 5,500 rows are to be"
        f" solved for; `{LINEAR}`: ridge regression on the columns themselves.",
        verdict(rows),
    ]
    for m in sizes(rows):
        parts += [
            f"### m = {m:,}",
            score_table(rows, m),
            f"Points above RBFSampler with m = {m:,}, paired by seed, with 95 % intervals:",
            difference_table(rows, m),
        ]
    parts += ["### What was chosen most often, and CPU seconds of a cell", chosen_table(rows)]
    return "\n\n".join(parts)


def verdict(rows: Sequence[Row]) -> str:
    """Counts, for each contestant."""
    lines = []
    for contestant in (*SAMPLERS, NYSTROEM):
        found = differences(rows, contestant)
        above, below = sum(d.low > 0 for d in found), sum(d.high < 0 for d in found)
        lines.append(
            f"- `{contestant}` against RBFSampler: {min(d.value for d in found):+.2f} to"
            f" {max(d.value for d in found):+.2f} points; its whole interval above 0 in {above} of"
            f" {len(found)} settings, below 0 in {below}."
        )
    more = []
    for name in distinct(rows, "set"):
        low, high = (
            scores(pick(rows, set=name, features=m, contestant=RBF_SAMPLER)).mean().item()
            for m in (sizes(rows)[0], sizes(rows)[-1])
        )
        more.append(100 * (high - low))
    if len(sizes(rows)) > 1:
        lines.append(
            f"- RBFSampler with m = {sizes(rows)[-1]:,} instead of {sizes(rows)[0]:,}: {min(more):+.2f} to"
            f" {max(more):+.2f} points."
        )
    return "\n".join(lines)


def score_table(rows: Sequence[Row], m: int) -> str:
    names = [n for n in distinct(rows, "contestant") if pick(rows, contestant=n)]
    lines = []
    for name in distinct(rows, "set"):
        own = pick(rows, set=name)
        cells = []
        for contestant in names:
            found = scores(
                pick(own, contestant=contestant, features=0 if contestant in WITHOUT else m)
            )
            cells.append(
                f"{100 * found.mean():.2f} ± {100 * found.std():.2f}" if len(found) else "–"
            )
        lines.append([f"{name}, {own[0]['train']:,} × {own[0]['dim']}", *cells])
    return markdown_table(["set", *names], lines)


def difference_table(rows: Sequence[Row], m: int) -> str:
    names = (*SAMPLERS, NYSTROEM)
    lines = [
        [name, *(_text(difference(rows, name, m, contestant)) for contestant in names)]
        for name in distinct(rows, "set")
    ]
    return markdown_table(["set", *names], lines)


def _text(found: Interval) -> str:
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def chosen_table(rows: Sequence[Row]) -> str:
    """The most frequent gamma and penalty of each set at the largest m."""
    names = [n for n in distinct(rows, "contestant") if n != LINEAR]
    lines = []
    for name in distinct(rows, "set"):
        cells = []
        for contestant in names:
            m = 0 if contestant in WITHOUT else sizes(rows)[-1]
            own = pick(rows, set=name, contestant=contestant, features=m)
            pairs = [(float(r["multiple"]), float(r["alpha"])) for r in own]
            if not own:
                cells.append("–")
                continue
            multiple, alpha = max(pairs, key=pairs.count)
            seconds = sum(float(r["seconds"]) for r in own) / len(own)
            cells.append(f"{multiple:g} × scale, {alpha:g}; {seconds:.1f} s")
        lines.append([name, *cells])
    return markdown_table(["set", *names], lines)


def draw(rows: list[Row], folder: Path) -> None:
    """Points above RBFSampler, with intervals."""
    from matplotlib.figure import Figure

    counts, names = sizes(rows), distinct(rows, "set")
    figure = Figure(figsize=(5.5 * len(counts), 0.42 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    shown = (NYSTROEM, *SAMPLERS)
    for axis, m in zip(axes, counts, strict=True):
        for offset, contestant in enumerate(shown):
            found = [difference(rows, name, m, contestant) for name in names]
            axis.errorbar(
                [d.value for d in found],
                [at + 0.16 * (offset - 2) for at in range(len(names))],
                xerr=[[d.value - d.low for d in found], [d.high - d.value for d in found]],
                fmt="o",
                markersize=3,
                color=COLOURS[offset + 1],
                label=contestant,
            )
        axis.axvline(0, color=COLOURS[0], linewidth=1)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"m = {m:,}")
        axis.set_xlabel("points above RBFSampler")
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7)
    figure.savefig(folder / "accuracy.png", dpi=110)
