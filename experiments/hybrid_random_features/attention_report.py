"""What is made of the rows of `attention`: our values of the claims, tables, sentences, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bochner.catalog import spec
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.hybrid_random_features.attention_inputs import AVERAGING, GAUSSIANS

HYBRIDS = ("angular", "angular-majority", "gaussian-hybrid", "cluster", "gaussian-mixture")
SIGNED_PARTS = ("trigonometric", "complex-exponential")
CLAIMED_VARIATION = ("isotropic (2, 2)", "isotropic (4, 4)")
LARGE = 5.0  # beyond it decimals are not worth printing


def select(rows: Sequence[Row], **fields: object) -> list[Row]:
    """The rows with these fields."""
    return [r for r in rows if all(r.get(name) == value for name, value in fields.items())]


def slug(text: str) -> str:
    """Words joined by hyphens, for ids of claims."""
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())


def measured(rows: list[Row]) -> Measured:
    """Output errors on Gaussian points; row variation of the positive maps."""
    values: Measured = {}
    for row in select(rows, part="gaussian"):
        label, law = str(row["map"]), str(row["law"])
        if label == "data-aware" or (
            law not in CLAIMED_VARIATION and "simplex" in label and "gerf" in label
        ):
            continue  # not measured before
        values[f"output-{slug(law)}-{slug(label)}"] = float(row["output"])
        if law in CLAIMED_VARIATION and positive(label):
            values[f"variation-{slug(law)}-{slug(label)}"] = float(row["variation"])
    return values


def positive(label: str) -> bool:
    """Whether a map's estimates cannot be negative, and it is a map at all."""
    name = label.split(",")[0]
    return name != AVERAGING and spec(name).positive and name != "angular"


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Tables on text and on Gaussian points, and what they say of hybrids."""
    budgets = sorted({int(r["budget"]) for r in select(rows, part="text") if r["map"] != AVERAGING})
    largest = budgets[-1]
    how = select(rows, part="text", map=AVERAGING, group="all")[0]
    parts = [
        f"{how['heads']} heads of a pretrained encoder on {how['texts']} windows of 512 tokens of real text,"
        f" every {how['stride']}th query and all keys; data-aware maps are fitted to {how['calibration']}"
        f" windows of other documents. Median over heads and texts, mean over {how['redraws']} redraws, ±"
        " its 95 % interval; 0 is exact attention."
        f" Hybrids are set in bold; {AVERAGING} needs no features and is what a map has to beat.",
        "### Output error |Ô - O| / |O|, by columns",
        _by_budget(rows, budgets),
        f"### What goes wrong, {largest} columns",
        _failures(rows, largest),
        f"### Output error by how steep a head is, {largest} columns",
        _by_group(rows, largest),
        "### Gaussian queries and keys",
        _gaussians(rows),
        "### Read from the tables",
        _findings(rows, largest),
    ]
    return "\n\n".join(parts)


def _text(row: Row | None, metric: str = "output") -> str:
    """Value and half-width of its interval; few digits where the value is large."""
    if row is None or metric not in row or row[metric] is None:
        return "–"
    value, half = float(row[metric]), float(row[f"{metric}_high"]) - float(row[metric])
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.2g} ± {half:.1g}" if value >= LARGE else f"{value:.2f} ± {half:.2f}"


def _share(row: Row, metric: str) -> str:
    half = float(row[f"{metric}_high"]) - float(row[metric])
    return f"{float(row[metric]):.1%} ± {half:.1%}" if float(row[metric]) else "0"


def _order(rows: list[Row], budget: int) -> list[str]:
    """Maps by their error over all heads, the best first; those that do not fit last."""
    found = {str(r["map"]): r for r in select(rows, part="text", budget=budget, group="all")}
    for row in select(rows, part="text", map=AVERAGING, group="all"):
        found[AVERAGING] = row
    names = dict.fromkeys(str(r["map"]) for r in select(rows, part="text"))
    return sorted(names, key=lambda n: float(found[n]["output"]) if n in found else math.inf)


def _row(rows: list[Row], name: str, budget: int, group: str = "all") -> Row | None:
    fields = {} if name == AVERAGING else {"budget": budget}
    found = select(rows, part="text", map=name, group=group, **fields)
    return found[0] if found else None


def _by_budget(rows: list[Row], budgets: list[int]) -> str:
    header = ["map", *(f"m = {m}" for m in budgets), "columns used"]
    lines = []
    for name in _order(rows, budgets[-1]):
        found = [_row(rows, name, m) for m in budgets]
        used = (
            "1" if name == AVERAGING else ", ".join(str(r["columns"]) if r else "–" for r in found)
        )
        lines.append([_mark(name), *map(_text, found), used])
    table = markdown_table(header, lines)
    skipped = [f"{r['map']} at {r['budget']} ({r['skipped']})" for r in rows if r.get("skipped")]
    said = "; ".join(skipped) if skipped else "none: every map fits every budget"
    return f"{table}\n\nLeft out: {said}."


def _mark(name: str) -> str:
    """Hybrids stand out, and so does what needs no features."""
    return f"**{name}**" if name in HYBRIDS else f"({name})" if name == AVERAGING else name


def _failures(rows: list[Row], budget: int) -> str:
    header = ["map", "row variation", "kernel error", "entries < 0", "denominators ≤ 0"]
    header.append("better than averaging")
    lines = []
    for name in _order(rows, budget):
        if (row := _row(rows, name, budget)) is not None:
            metrics = ("negative_entries", "nonpositive_denominators")
            shares = [_share(row, metric) for metric in metrics]
            lines.append([_mark(name), _text(row, "variation"), _text(row, "kernel"), *shares])
            lines[-1].append("–" if name == AVERAGING else f"{float(row['better']):.0%}")
    return (
        "The last column is the share of heads, texts and redraws with a smaller output error than"
        f" {AVERAGING}.\n\n{markdown_table(header, lines)}"
    )


def _groups(rows: list[Row]) -> list[Row]:
    return [r for r in select(rows, part="text", map=AVERAGING) if r["group"] != "all"]


def _by_group(rows: list[Row], budget: int) -> str:
    groups = _groups(rows)
    header = ["map"]
    header += [
        f"logits ± {r['flattest']:.2g} to {r['steepest']:.2g} ({r['heads']})" for r in groups
    ]
    lines = [
        [_mark(name), *(_text(_row(rows, name, budget, str(g["group"]))) for g in groups)]
        for name in _order(rows, budget)
    ]
    return "Deviation of the logits within a row, and the number of heads.\n\n" + markdown_table(
        header, lines
    )


def _gaussians(rows: list[Row]) -> str:
    found = select(rows, part="gaussian")
    header = ["map", "columns", *GAUSSIANS]
    lines = []
    for label in dict.fromkeys(str(r["map"]) for r in found):
        texts = [_text(select(found, map=label, law=law)[0]) for law in GAUSSIANS]
        columns = str(select(found, map=label)[0]["columns"])
        lines.append([_mark(label), columns, *texts])
    return (
        "Output error, d = 64, 512 tokens; E|q|² and E|k|² in brackets, otherwise 2 about means of"
        f" length 1.5. Median over draws of the points.\n\n{markdown_table(header, lines)}"
    )


def _findings(rows: list[Row], budget: int) -> str:
    lines = [_beating(rows, budget, "all", "All heads")]
    for group in _groups(rows):
        where = f"Logits ± {group['flattest']:.2g} to {group['steepest']:.2g}"
        lines.append(_beating(rows, budget, str(group["group"]), where))
    signed = [n for n in (*HYBRIDS, *SIGNED_PARTS) if not spec(n).positive]
    shares = [
        (float(row["nonpositive_denominators"]), float(row["negative_entries"]))
        for name in signed
        if (row := _row(rows, name, budget)) is not None
    ]
    lines.append(
        f"- Signed maps ({', '.join(signed)}): {min(s[0] for s in shares):.0%} to"
        f" {max(s[0] for s in shares):.0%} of the denominators are not positive, and"
        f" {min(s[1] for s in shares):.0%} to {max(s[1] for s in shares):.0%} of the kernel entries are"
        " negative. One denominator near zero is enough to spoil a head's output: unbiased kernels do"
        " not make an unbiased, or even a finite-variance, attention."
    )
    lines += [_hybrids_on_text(rows, budget), _hybrids_on_gaussians(rows)]
    return "\n".join(lines)


def _beating(rows: list[Row], budget: int, group: str, where: str) -> str:
    """Which maps have their whole interval below that of averaging, hybrids and others apart."""
    floor = float((_row(rows, AVERAGING, budget, group) or {})["output"])
    below = []
    for name in _order(rows, budget):
        row = _row(rows, name, budget, group)
        if name != AVERAGING and row is not None and float(row["output_high"]) < floor:
            below.append(name)
    hybrids = ", ".join(name for name in below if name in HYBRIDS) or "none"
    others = ", ".join(name for name in below if name not in HYBRIDS) or "none"
    return (
        f"- {where}, m = {budget}: the whole interval lies below averaging ({floor:.2f}) for the hybrids:"
        f" {hybrids}; for other maps: {others}."
    )


def _hybrids_on_text(rows: list[Row], budget: int) -> str:
    """Hybrids over the maps that they are made of, at equal length, over the groups of heads."""
    texts = []
    for hybrid, part in (
        ("angular", "trigonometric"),
        ("angular", "hyperbolic"),
        ("cluster", "balanced-exponential"),
    ):
        ratios = []
        for group in _groups(rows):
            found = [_row(rows, name, budget, str(group["group"])) for name in (hybrid, part)]
            ratios.append(float((found[0] or {})["output"]) / float((found[1] or {})["output"]))
        texts.append(f"{hybrid} over {part} {min(ratios):.2g} to {max(ratios):.2g}")
    return (
        f"- Text, m = {budget}, error over that of what a hybrid is made of, smallest and largest of"
        f" the groups of heads: {', '.join(texts)}."
    )


def _hybrids_on_gaussians(rows: list[Row]) -> str:
    texts = []
    for law in GAUSSIANS:
        found = {str(r["map"]): float(r["output"]) for r in select(rows, part="gaussian", law=law)}
        parts = min(found["trigonometric"], found["hyperbolic"])
        texts.append(f"{law} {found['angular'] / parts:.2g} times")
    return (
        "- Gaussian points, angular hybrid at the same number of columns: its error over that of the"
        f" better of its two parts: {', '.join(texts)}."
    )


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """Output error against columns, for each group of heads; hybrids drawn through."""
    from matplotlib.figure import Figure

    groups = _groups(rows)
    budgets = sorted({int(r["budget"]) for r in select(rows, part="text") if r["map"] != AVERAGING})
    figure = Figure(figsize=(15.0, 5.0), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True)
    names = [name for name in _order(rows, budgets[-1]) if name != AVERAGING]
    for panel, group in zip(panels, groups, strict=True):
        for index, name in enumerate(names):
            found = [r for m in budgets if (r := _row(rows, name, m, str(group["group"])))]
            found = [r for r in found if math.isfinite(float(r["output"]))]
            values = [float(r["output"]) for r in found]
            half = [
                max(0.0, v - max(float(r["output_low"]), 1e-3))
                for v, r in zip(values, found, strict=True)
            ]
            style = "-" if name in HYBRIDS else "--"
            color = f"C{index % 10}" if index < 10 else f"{0.12 * (index - 9):.2f}"
            panel.errorbar(
                [int(r["columns"]) for r in found],
                values,
                [half, half],
                linestyle=style,
                marker=".",
                color=color,
                label=name,
                linewidth=1.2,
            )
        panel.axhline(float(group["output"]), color="k", linestyle=":", label=AVERAGING)
        title = f"logits ± {group['flattest']:.2g} to {group['steepest']:.2g}"
        panel.set(xscale="log", yscale="log", title=title, xlabel="columns", ylim=(0.3, 40.0))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative output error")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle("heads of a pretrained encoder; hybrids drawn through, other maps dashed")
    figure.savefig(folder / "errors.png", dpi=100)
