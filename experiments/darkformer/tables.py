"""Rows with equal fields taken together over seeds, as text and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bochner.diagnostics.interval import Interval
from bochner.reproduce import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart with every kind of colour vision; each has a marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = "osD^vP*X"


FEWEST = 3  # seeds that an interval takes


def select(rows: Sequence[Row], **fields: object) -> list[Row]:
    """The rows with these fields."""
    return [r for r in rows if all(r.get(name) == value for name, value in fields.items())]


def over_seeds(rows: Sequence[Row], metric: str, **fields: object) -> Interval | None:
    """Mean and 95 % interval of a metric over the rows with these fields; None if there are none."""
    values = [float(r[metric] or 0.0) for r in select(rows, **fields) if metric in r]
    return Interval.over(torch.tensor(values, dtype=torch.float64)) if values else None


def mean_of(rows: Sequence[Row], metric: str, **fields: object) -> float:
    """The mean alone.

    Raises:     ValueError if no row has these fields.
    """
    if (found := over_seeds(rows, metric, **fields)) is None:
        raise ValueError(f"no row has {metric} and {fields}.")
    return found.value


def text(found: Interval | None, digits: int = 2) -> str:
    """0.53 ± 0.01 over three seeds or more, 0.53 for fewer (of two, an interval says next to nothing)."""
    if found is None:
        return "–"
    if found.redraws < FEWEST:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ± {found.high - found.value:.{digits}f}"


def curve(axes: Axes, points: Sequence[tuple[float, Interval]], label: str, index: int) -> None:
    """Means with their intervals."""
    if not points:
        return
    axes.errorbar(
        [x for x, _ in points],
        [found.value for _, found in points],
        yerr=[found.high - found.value if found.redraws >= FEWEST else 0.0 for _, found in points],
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linewidth=1.3,
        capsize=2,
        label=label,
    )


def counted(number: int, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def converted(layers: int, total: int, model: str) -> str:
    """Which layers of a model are converted, to begin a sentence.

    Example:
        >>> converted(6, 6, "MiniLM")
        'All 6 layers of MiniLM are converted'
    """
    if layers == total:
        return f"All {total} layers of {model} are converted"
    return f"Of the {total} layers of {model} the first {layers} are converted (quick version)"
