"""Tables, sentences and pictures of the error laws, all from the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from bochner.report.table import markdown_table
from bochner.reproduce import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_STD = 0.5
"""Predicted standard deviations of log Z^ up to here count as first order."""
FORMULAS = """With p the exact law of paths, r independent directions a draw, e and f edges that share a
draw, and rho(e, f) = exp(s.s') for positive features, s = a_x + b_y (cosh(s.s') for hyperbolic,
cosh(t.t') for trigonometric ones, t = a_x - b_y):

    independent draws:  E Z^ = Z,   E Z^^2 / Z^2 = E_{p x p} prod_t (1 + (rho_t - 1)/r)        exactly
    shared draws:       E Z^ / Z - 1 = sum_{e<f} (E_p rho(e, f) - 1) / r       exactly for T = 3
    Var log Z^       ~  sum_{e,f} (chi_ef - 1) / r,                            chi_ef = E_{p x p} rho(e, f)
    E log Z^ - log Z ~  { sum_{e<f} (E_p rho(e, f) - chi_ef) - 1/2 sum_e (chi_ee - 1) } / r"""


def in_first_order(row: Row) -> bool:
    """Whether a small chain's error is small enough for a first-order law."""
    return row["log_std_predicted"] <= LARGEST_STD and row["negative"] == 0


def number(value: float | None) -> str:
    """Three digits."""
    return "–" if value is None else f"{value:.3g}"


def summary(rows: list[Row]) -> str:
    """What was found, in Markdown."""
    chains = [row for row in rows if row["kind"] == "chains"]
    blocks = [row for row in rows if row["kind"] == "blocks"]
    methods = [row for row in rows if row["kind"] == "methods"]
    attention = [row for row in rows if row["kind"] == "attention"]
    return "\n\n".join(
        [
            "## The formulas",
            FORMULAS,
            "## Chains of 12 states",
            "Independent draws for each edge: deviation of the mean of Z^/Z from 1 in standard errors, and"
            " the relative variance, measured and exact. Where the tails are heavy the redraws do not"
            " resolve it: the standard error says so.",
            independent_table(chains),
            "One shared draw: bias of Z^ (exact for T = 3), and mean and standard deviation of log Z^,"
            " measured (predicted). The bias of Z^ grows like T^2 and is then an average over rare, huge"
            " values; that of log Z^ does not.",
            shared_table(chains),
            verdict(chains),
            "## The block law",
            f"T = {blocks[0]['steps']}, no unaries, one total of directions, split into B cycled blocks: the"
            " standard deviation of log Z^ hardly moves, the time of a step falls as 1/B, the bias grows"
            " with B. Unaries that pin states down make an edge more like itself than like others"
            " (chi_ee > chi_ef): then more blocks cost some accuracy, as the formula says.",
            blocks_table(blocks),
            "## Methods side by side",
            f"{methods[0]['states']} states, T = {methods[0]['steps']}, embeddings of dimension 64; errors of"
            " log Z in nats a step. Scale is the standard deviation of a_x.b_y, peak that of the"
            " unaries. Exact inference has no error and, at this size, K fits in memory.",
            methods_table(methods),
            methods_sentence(methods),
            "## The ratio of attention",
            "One query, 32 keys, all of the same norm: variance and bias of the output, measured over"
            " predicted. cv2 is the relative variance of the denominator, which first order needs small.",
            attention_table(attention),
        ]
    )


def independent_table(chains: list[Row]) -> str:
    lines = [
        [
            f"{r['map']}, T = {r['steps']}, r = {r['r']}",
            f"{r['mean'] / r['mean_stderr']:+.1f}",
            f"{number(r['square'])} ± {number(r['square_stderr'])}",
            number(r["square_predicted"]),
        ]
        for r in chains
        if r["blocks"] == r["steps"] - 1 and r["square_predicted"] is not None
    ]
    return markdown_table(["chain", "z of the mean", "relative variance", "exact"], lines)


def shared_table(chains: list[Row]) -> str:
    lines = [
        [
            f"{r['map']}, T = {r['steps']}, r = {r['r']}",
            f"{number(r['mean'])} ({number(r['mean_predicted'])})",
            f"{number(r['log_mean'])} ({number(r['log_mean_predicted'])})",
            f"{number(r['log_std'])} ({number(r['log_std_predicted'])})",
        ]
        for r in chains
        if r["blocks"] == 1 and r["steps"] > 2
    ]
    return markdown_table(["chain", "bias of Z^", "bias of log Z^", "std of log Z^"], lines)


def verdict(chains: list[Row]) -> str:
    """Where the first-order law of the standard deviation holds, and where not."""
    inside = [r["log_std"] / r["log_std_predicted"] for r in chains if in_first_order(r)]
    outside = [r["log_std"] / r["log_std_predicted"] for r in chains if not in_first_order(r)]
    text = (
        f"Where the predicted standard deviation of log Z^ is at most {LARGEST_STD}, measured over"
        f" predicted is {min(inside):.2f} to {max(inside):.2f} ({len(inside)} chains)."
    )
    if outside:
        text += (
            f" Beyond, or where Z^ came out negative, it is {min(outside):.2f} to {max(outside):.2f}"
            f" ({len(outside)} chains)."
        )
    return text


def blocks_table(blocks: list[Row]) -> str:
    lines = [
        [
            f"{r['map']}, B = {r['blocks']}, r = {r['r']}",
            f"{number(r['log_std'])} ± {number(r['log_std_stderr'])} ({number(r['log_std_predicted'])})",
            f"{number(r['log_mean'])} ± {number(r['log_mean_stderr'])} ({number(r['log_mean_predicted'])})",
        ]
        for r in blocks
    ]
    return markdown_table(["chain", "std of log Z^", "bias of log Z^"], lines)


def methods_table(methods: list[Row]) -> str:
    lines = []
    for r in methods:
        if "verdict" in r:
            theory = [
                f"{number(r['log_std'])} ({number(r['log_std_predicted'])})",
                number(None if r["chi"] is None else r["chi"] - 1.0),
                number(r["eta"]),
                r["verdict"],
            ]
            label = f"{r['map']} {r['method']}, B = {r['blocks']}"
        else:
            theory, label = ["–", "–", "–", "–"], r["method"]
        lines.append(
            [f"scale {r['scale']:g}, peak {r['peak']:g}: {label}", number(r["rms"]), *theory]
        )
    header = ["model and method", "rms error", "std (predicted)", "chi - 1", "eta", "verdict"]
    return markdown_table(header, lines)


def methods_sentence(methods: list[Row]) -> str:
    """Whether the verdicts separate what works from what does not."""
    groups = {}
    for r in methods:
        if "verdict" in r:
            groups.setdefault(r["verdict"], []).append(r)
    parts = []
    for name, group in groups.items():
        errors = [r["rms"] for r in group if r["rms"] is not None]
        ratios = [
            r["log_std"] / r["log_std_predicted"]
            for r in group
            if r["log_std"] and r["log_std_predicted"]
        ]
        text = (
            f"{name} ({len(group)}): rms error {min(errors):.2g} to {max(errors):.2g} nats a step"
        )
        if ratios:
            text += f", std over predicted {min(ratios):.2g} to {max(ratios):.2g}"
        parts.append(text)
    return (
        "By verdict of `diagnose`: " + "; ".join(parts) + ". Random features do not rescue peaked"
        " potentials, and no number of them does: there the answer is exact inference, the hybrid or the"
        " beam where unaries are sharp, and the SVD as far as its rank suffices. The verdict on a hybrid can"
        " be too pessimistic: first order does not know that Z^ is never below the beam's own Z."
    )


def attention_table(attention: list[Row]) -> str:
    lines = [
        [
            f"{r['map']}, norm {r['norm']:g}, r = {r['r']}",
            number(r["cv2"]),
            f"{number(r['variance'])} ({number(r['variance_predicted'])})",
            f"{number(r['bias'])} ± {number(r['bias_stderr'])} ({number(r['bias_predicted'])})",
        ]
        for r in attention
    ]
    return markdown_table(["attention", "cv2", "variance (predicted)", "bias (predicted)"], lines)


# -- pictures -------------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """laws.png: predicted against measured; blocks.png: the block law; methods.png: errors by scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    small = [row for row in rows if row["kind"] in ("chains", "blocks")]
    _against(panels[0], small, "log_std_predicted", "log_std", "standard deviation of log Z^")
    exact = [r for r in small if r.get("square_predicted") is not None]
    _against(panels[1], exact, "square_predicted", "square", "relative variance, independent draws")
    attention = [row for row in rows if row["kind"] == "attention"]
    _against(
        panels[2], attention, "variance_predicted", "variance", "variance of attention's output"
    )
    figure.savefig(folder / "laws.png", dpi=110)

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    blocks = [row for row in rows if row["kind"] == "blocks"]
    for index, name in enumerate(_distinct(blocks, "map")):
        mine = sorted((r for r in blocks if r["map"] == name), key=lambda r: r["blocks"])
        for axes, key in ((left, "log_std"), (right, "log_mean")):
            counts = [r["blocks"] for r in mine]
            error = [2 * r[f"{key}_stderr"] for r in mine]
            axes.errorbar(
                counts, [r[key] for r in mine], yerr=error, fmt="o", color=f"C{index}", capsize=3
            )
            predicted = [r[f"{key}_predicted"] for r in mine]
            axes.plot(counts, predicted, "-", color=f"C{index}", label=name)
    for axes, label in ((left, "standard deviation of log Z^"), (right, "bias of log Z^")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("cycled blocks B, r = total / B (lines: predicted)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    figure.savefig(folder / "blocks.png", dpi=110)

    methods = [row for row in rows if row["kind"] == "methods"]
    peaks = _distinct(methods, "peak")
    figure = Figure(figsize=(4.6 * len(peaks), 4.4), layout="constrained")
    for axes, peak in zip(figure.subplots(1, len(peaks), squeeze=False)[0], peaks, strict=True):
        mine = [r for r in methods if r["peak"] == peak and r.get("blocks", 1) == 1]
        labels = dict.fromkeys(_label(r) for r in mine)
        for index, label in enumerate(labels):
            line = [r for r in mine if _label(r) == label and r["rms"]]
            style = "--" if "verdict" not in line[0] else "-"
            axes.plot(
                [r["scale"] for r in line],
                [max(r["rms"], 1e-7) for r in line],
                marker="osD^vP*X"[index % 8],
                linestyle=style,
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"unaries' standard deviation {peak:g}", fontsize=10)
        axes.set_xlabel("standard deviation of a_x.b_y")
        axes.set_ylabel("rms error of log Z, nats a step")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(folder / "methods.png", dpi=110)


def _label(row: Row) -> str:
    return f"{row['map']} {row['method']}" if "verdict" in row else str(row["method"])


def _distinct(rows: list[Row], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows))


def _against(axes: Axes, rows: list[Row], x: str, y: str, title: str) -> None:
    seen = [r for r in rows if r[x] and r[y] and math.isfinite(r[x]) and math.isfinite(r[y])]
    for index, name in enumerate(_distinct(seen, "map")):
        mine = [r for r in seen if r["map"] == name]
        axes.plot(
            [r[x] for r in mine], [r[y] for r in mine], "o", ms=4, color=f"C{index}", label=name
        )
    low = min(min(r[x], r[y]) for r in seen)
    high = max(max(r[x], r[y]) for r in seen)
    axes.plot([low, high], [low, high], "k:", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("predicted")
    axes.set_ylabel("measured")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
