"""Pictures: error against num_features, time against length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bochner.data import replacing
from bochner.diagnostics import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN_UP_TO = 3.0  # times the trivial error; maps that only lie above are named, not drawn


def draw_errors(axes: Axes, table: Comparison) -> None:
    """Attention output error against num_features, with intervals and the trivial baseline."""
    ceiling = _SHOWN_UP_TO * table.trivial_output_error
    budgets = sorted({c.num_features for c in table.candidates})
    last = {c.name: c.output_error for c in table.candidates if c.num_features == budgets[-1]}
    labels = sorted(
        dict.fromkeys(c.name for c in table.candidates),
        key=lambda name: last.get(name, float("inf")),
        reverse=True,
    )
    shown = {c.name: c.label for c in table.candidates}
    outside = []
    markers = "osD^vP*XhdHp<>8"
    for index, label in enumerate(labels):
        rows = sorted(
            (c for c in table.candidates if c.name == label), key=lambda c: c.num_features
        )
        if min(c.output_error for c in rows) > ceiling:
            outside.append(f"{shown[label]} ({min(c.output_error for c in rows):.3g})")
            continue
        intervals = [c.report.output_error for c in rows]
        values = [i.value for i in intervals if i is not None]
        half = [i.high - i.value for i in intervals if i is not None]
        axes.errorbar(
            # spread sideways by a few percent, so that intervals do not hide each other
            [c.num_features * 1.018 ** (index - len(labels) / 2) for c in rows],
            values,
            yerr=half,
            marker=markers[index % len(markers)],
            markersize=5,
            capsize=2,
            linewidth=1.4,
            color=f"C{index % 10}",
            linestyle="-" if index < 10 else "--",
            label=shown[label],
        )
    axes.axhline(
        table.trivial_output_error, color="black", linestyle=":", label="averaging the values"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(m) for m in budgets])
    axes.minorticks_off()
    axes.set_xlabel("num_features m")
    axes.set_ylabel("attention output error (median over heads)")
    axes.set_ylim(0, min(axes.get_ylim()[1], ceiling))
    if outside:
        axes.set_title("off the scale: " + ", ".join(outside), fontsize=9)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.grid(alpha=0.3)


def draw_times(axes: Axes, lengths: list[int], times: dict[str, list[float]]) -> None:
    """Median milliseconds against length, on logarithmic axes."""
    for name, values in times.items():
        axes.plot(lengths, [1000 * value for value in values], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [str(n) for n in lengths], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel("milliseconds (median)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def save_picture(
    path: Path,
    table: Comparison,
    title: str,
    times: dict[str, list[float]] | None = None,
    lengths: list[int] | None = None,
) -> None:
    """Draw errors, and times beside them if given; written whole, then renamed.

    Raises:     ImportError with the pip command if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f'pictures need matplotlib: pip install "bochner[plot]" ({error})'
        ) from error
    panels = 1 if times is None else 2
    figure = Figure(figsize=(7.0 * panels, 5.0), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    draw_errors(axes[0], table)
    if times is not None and lengths is not None:
        draw_times(axes[1], lengths, times)
        axes[1].set_title("attention of one layer", fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)
