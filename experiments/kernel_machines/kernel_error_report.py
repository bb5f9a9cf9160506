"""What `kernel_error` says: ratios of RMSE with intervals, tables, the picture (see kernel_error.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import scipy.stats

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

RBF_SAMPLER = "RBFSampler"
NYSTROEM = "Nystroem"
COUPLED = ("orthogonal", "simplex", "hadamard", "sobol")
PREDICTED = ("iid", "orthogonal", "simplex", RBF_SAMPLER)
BANDWIDTHS = ("median", "scale", "narrow")
LEVEL = 0.95
COLOURS = {
    RBF_SAMPLER: "#999999",
    NYSTROEM: "#000000",
    "iid": "#56B4E9",
    "orthogonal": "#D55E00",
    "simplex": "#E69F00",
    "hadamard": "#CC79A7",
    "sobol": "#009E73",
}


class Ratio(NamedTuple):
    """A ratio of two RMSE with the ends of its interval."""

    value: float
    low: float
    high: float


def rmse(row: Row) -> float:
    return math.sqrt(float(row["mean_square"]))


def log_variance(row: Row) -> float:
    """Variance of log RMSE by the delta method: a quarter of that of the logarithm of the mean square."""
    return (float(row["spread"]) / float(row["mean_square"])) ** 2 / (4 * int(row["draws"]))


def ratio(row: Row, base: Row, level: float = LEVEL) -> Ratio:
    """RMSE of one over the other's, independent draws; Student's t with the fewer draws.

    Example:
        >>> one = {"mean_square": 1.0, "spread": 0.2, "draws": 25}
        >>> [round(v, 3) for v in ratio({**one, "mean_square": 4.0}, one)]
        [2.0, 1.909, 2.095]
    """
    log = math.log(rmse(row) / rmse(base))
    error = math.sqrt(log_variance(row) + log_variance(base))
    degrees = min(int(row["draws"]), int(base["draws"])) - 1
    half = float(scipy.stats.t.ppf(0.5 + level / 2, degrees)) * error
    return Ratio(math.exp(log), math.exp(log - half), math.exp(log + half))


def place(row: Row) -> tuple[str, int, str]:
    return str(row["set"]), int(row["features"]), str(row["bandwidth"])


def bases(rows: Sequence[Row]) -> dict[tuple[str, int, str], Row]:
    return {place(row): row for row in rows if row["contestant"] == RBF_SAMPLER}


def ratios(
    rows: Sequence[Row],
    contestant: str,
    bandwidth: str | None = None,
    *,
    simultaneous: bool = False,
) -> list[Ratio]:
    """Of one contestant to RBFSampler, at all sets and numbers of features.

    `simultaneous`: intervals that hold together with probability LEVEL (Bonferroni).
    """
    base = bases(rows)
    chosen = [
        row
        for row in rows
        if row["contestant"] == contestant and bandwidth in (None, row["bandwidth"])
    ]
    level = 1 - (1 - LEVEL) / len(chosen) if simultaneous else LEVEL
    return [ratio(row, base[place(row)], level) for row in chosen]


def measured(rows: list[Row]) -> Measured:
    """Measured over predicted RMSE; the ratios to RBFSampler."""
    values: Measured = {}
    for name in PREDICTED:
        found = [
            rmse(row) / math.sqrt(float(row["predicted"]))
            for row in rows
            if row["contestant"] == name and row["predicted"] is not None
        ]
        values[f"predicted-{name.lower()}"] = min(found), max(found)
    for name in ("orthogonal", "sobol"):
        for bandwidth in BANDWIDTHS:
            found = [r.value for r in ratios(rows, name, bandwidth)]
            values[f"{name}-{bandwidth}"] = min(found), max(found)
            together = ratios(rows, name, bandwidth, simultaneous=True)
            values[f"{name}-{bandwidth}-upper"] = max(r.high for r in together)
    return values


def contestants(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["contestant"]) for row in rows))


def sets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["set"]) for row in rows))


def summary(rows: list[Row]) -> str:
    """The answer, then the ratios by bandwidth."""
    counts = sorted({int(row["features"]) for row in rows})
    middle = counts[len(counts) // 2]
    parts = [
        f"RMSE of K over random pairs, divided by that of scikit-learn's RBFSampler with as many components"
        f" (below 1: better), {len(sets(rows))} sets, with 95 % intervals over draws of the features. The"
        " kernel's mean over the pairs of each set is given in brackets.",
        verdict(rows),
    ]
    for bandwidth in BANDWIDTHS:
        parts += [
            f"### {middle} components, bandwidth `{bandwidth}`",
            table(rows, middle, bandwidth),
        ]
    parts += ["### Smallest and largest ratio over the sets", range_table(rows, counts)]
    return "\n\n".join(parts)


def verdict(rows: Sequence[Row]) -> str:
    """Whether coupled directions beat RBFSampler everywhere, by bandwidth."""
    lines = []
    for name in COUPLED:
        for bandwidth in BANDWIDTHS:
            together = ratios(rows, name, bandwidth, simultaneous=True)
            lines.append(
                [
                    name,
                    bandwidth,
                    f"{min(together).value:.2f} to {max(together).value:.2f}",
                    f"{sum(r.high < 1 for r in together)} of {len(together)}",
                    str(sum(r.low > 1 for r in together)),
                    f"{max(r.high for r in together):.3f}",
                ]
            )
    header = ["directions", "bandwidth", "ratio", "surely below 1", "surely above 1"]
    return (
        "Over all sets and numbers of components; `surely`: with the whole of intervals that hold together at"
        " 95 %.\n\n" + markdown_table([*header, "largest upper end"], lines)
    )


def table(rows: Sequence[Row], features: int, bandwidth: str) -> str:
    """Sets by contestants."""
    chosen = [r for r in rows if (r["features"], r["bandwidth"]) == (features, bandwidth)]
    names = [name for name in contestants(chosen) if name != RBF_SAMPLER]
    base = bases(chosen)
    lines = []
    for name in sets(chosen):
        own = {str(row["contestant"]): row for row in chosen if row["set"] == name}
        truth = base[name, features, bandwidth]
        cells = [
            _text(ratio(own[n], truth)) if n in own else "–"  # too few rows for Nystroem
            for n in names
        ]
        head = f"{name}, d = {truth['dim']} ({float(truth['mean_kernel']):.2g})"
        lines.append([head, f"{rmse(truth):.4f}", *cells])
    return markdown_table(["set", "RBFSampler's RMSE", *names], lines)


def range_table(rows: Sequence[Row], counts: Sequence[int]) -> str:
    names = [name for name in contestants(rows) if name != RBF_SAMPLER]
    lines = []
    for bandwidth in BANDWIDTHS:
        for m in counts:
            chosen = [r for r in rows if (r["features"], r["bandwidth"]) == (m, bandwidth)]
            cells = []
            for name in names:
                found = [r.value for r in ratios(chosen, name)]
                cells.append(f"{min(found):.2f} to {max(found):.2f}" if found else "–")
            lines.append([bandwidth, str(m), *cells])
    return markdown_table(["bandwidth", "components", *names], lines)


def _text(found: Ratio) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def draw(rows: list[Row], folder: Path) -> None:
    """RMSE against the number of components, a panel for each set."""
    from matplotlib.figure import Figure

    names, bandwidth = sets(rows), "scale"
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.6 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, name in zip(axes, names, strict=False):
        for contestant, colour in COLOURS.items():
            own = [
                r
                for r in rows
                if (r["set"], r["contestant"], r["bandwidth"]) == (name, contestant, bandwidth)
            ]
            own.sort(key=lambda r: int(r["features"]))
            if own:
                panel.loglog(
                    [int(r["features"]) for r in own],
                    [rmse(r) for r in own],
                    "o-",
                    color=colour,
                    label=contestant,
                    markersize=3,
                )
                dim = own[0]["dim"]
        panel.set_title(f"{name}, d = {dim}", fontsize=9)
        panel.grid(alpha=0.3)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    axes[0].legend(fontsize=6)
    figure.supxlabel("components")
    figure.supylabel("RMSE of K, gamma = 'scale'")
    figure.savefig(folder / "kernel_error.png", dpi=110)
