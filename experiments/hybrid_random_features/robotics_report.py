"""What the rows of the locomotion experiment say: intervals over seeds, tables, sentences, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.hybrid_random_features.attention_kinds import HYBRIDS, LABELS, LINEAR

LEVEL = 0.95
COLORS = dict(zip(LABELS, ("black", "0.55", "C0", "C2", "C3", "C1"), strict=True))


class Estimate(NamedTuple):
    """A mean over seeds with the half-width of its Student-t interval; nan for a single seed."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        from scipy.stats import t

        data = np.array(list(values), dtype=float)
        if len(data) < 2:
            return cls(float(data.mean()), math.nan)
        error = data.std(ddof=1) / math.sqrt(len(data))
        return cls(float(data.mean()), float(error * t.ppf(0.5 + LEVEL / 2, len(data) - 1)))

    @property
    def ends(self) -> tuple[float, float]:
        return self.mean - self.half, self.mean + self.half

    @property
    def unclear(self) -> bool:
        """Whether the interval holds 0, or there is none."""
        return math.isnan(self.half) or self.ends[0] <= 0.0 <= self.ends[1]

    def __str__(self) -> str:
        return f"{round(self.mean)}" + ("" if math.isnan(self.half) else f" ± {self.half:.0f}")


def judged(rows: Iterable[Row], kind: str, what: str) -> dict[int, float]:
    """Seed -> the mean return of a policy in episodes that it was not trained on."""
    return {
        int(row["seed"]): float(row["mean_return"])
        for row in rows
        if row["kind"] == kind and row.get("what") == what
    }


def gain(rows: list[Row], kind: str, other: str) -> Estimate:
    """Trained return of one kind minus that of another, within seeds."""
    first, second = (judged(rows, k, "trained") for k in (kind, other))
    return Estimate.of(first[seed] - second[seed] for seed in sorted(first.keys() & second.keys()))


def curve(rows: Iterable[Row], kind: str, field: str) -> dict[int, dict[int, float]]:
    """Generation -> seed -> a field of the rows of training."""
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == kind and "generation" in row and row[field] is not None:
            found.setdefault(int(row["generation"]), {})[int(row["seed"])] = float(row[field])
    return found


def measured(rows: list[Row]) -> Measured:
    """Our values of claims/robotics.toml: intervals, or the difference itself for one seed."""
    pairs = {
        "angular-over-positive": ("angular", "positive"),
        "gaussian-over-positive": ("gaussian-hybrid", "positive"),
        "angular-over-exact": ("angular", "exact"),
    }
    found = {name: gain(rows, *pair) for name, pair in pairs.items()}
    return {name: g.mean if math.isnan(g.half) else g.ends for name, g in found.items()}


# -- in words --------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Markdown: sentences, then tables."""
    return "\n\n".join(
        [
            " ".join(_sentences(rows)),
            f"## Returns of the trained policies\n\n{_finals(rows)}",
            f"## Differences within seeds\n\n{_differences(rows)}",
            f"## Attention replaced after training\n\n{_replaced(rows)}",
            f"## Denominators that are not positive\n\n{_denominators(rows)}",
        ]
    )


def _sentences(rows: list[Row]) -> list[str]:
    last = [row for row in rows if "generation" in row][-1]
    policy = next(row for row in rows if "what" in row)
    seeds = len(judged(rows, "exact", "trained"))
    cells = [
        (judged(rows, kind, "trained")[seed], judged(rows, kind, "initial")[seed], chance)
        for kind in LABELS
        for seed, chance in judged(rows, kind, "random").items()
    ]
    learned = sum(trained > max(others) for trained, *others in cells)
    sizes = {int(row["num_features"]) for row in rows if row.get("num_features") is not None}
    columns = " or ".join(map(str, sorted(sizes)))
    return [
        f"HalfCheetah-v5 in episodes of {policy['steps']} steps, policies of {policy['parameters']}"
        f" parameters, {last['generation']} generations ({int(last['env_steps']):,} environment steps)"
        f" for every policy, seeds: {seeds}. Returns are means of {policy['episodes']} fresh episodes,"
        f" intervals {LEVEL:.0%} Student-t over seeds, not corrected for their number. All linear kinds"
        f" have {columns} feature columns and a map that is drawn once for a seed.",
        f"{learned} of {len(cells)} trained policies end above their initial parameters and above"
        " random actions.",
        _compared(rows, "exact", "uniform", "The task needs attention if this is positive:"),
        *(_compared(rows, kind, "positive") for kind in HYBRIDS),
        *(_compared(rows, kind, "exact") for kind in LINEAR),
        "Denominators that are not positive are counted (table below) and left as they are; the tanh"
        " that follows the attention bounds what such a row does.",
        "An evolution strategy fits the parameters to the map that it gets, however well that map"
        " estimates softmax: returns do not measure the error of the kernel. With 17 tokens linear"
        " attention saves no time, and none is claimed.",
    ]


def _compared(rows: list[Row], kind: str, other: str, before: str = "") -> str:
    found = gain(rows, kind, other)
    names = f"{LABELS[kind]} against {LABELS[other]}"
    if math.isnan(found.half):
        verdict = f"{found.mean:+.0f} in one seed, which says nothing"
    elif found.unclear:
        verdict = f"no difference could be seen ({found.mean:+.0f} ± {found.half:.0f})"
    else:
        word = "higher" if found.mean > 0 else "lower"
        verdict = f"{word} by {abs(found.mean):.0f} ± {found.half:.0f}"
    return f"{before} {names}: {verdict}.".strip()


def _finals(rows: list[Row]) -> str:
    lines = []
    for kind, label in LABELS.items():
        own = [row for row in rows if row["kind"] == kind]
        seconds = sum(float(row["seconds"]) for row in own if "generation" in row)
        sizes = [
            "" if own[-1][n] is None else str(own[-1][n])
            for n in ("num_projections", "num_features")
        ]
        returns = [
            str(Estimate.of(judged(rows, kind, what).values()))
            for what in ("random", "initial", "trained")
        ]
        worst, best = (f(judged(rows, kind, "trained").values()) for f in (min, max))
        per_seed = seconds / len(judged(rows, kind, "trained"))
        lines.append([label, *sizes, *returns, f"{worst:.0f} to {best:.0f}", f"{per_seed:.0f}"])
    header = ["attention", "projections", "columns", "random actions", "before training", "trained"]
    return markdown_table([*header, "seeds from, to", "seconds a seed"], lines)


def _differences(rows: list[Row]) -> str:
    against = ("exact", "positive", "uniform")
    lines = [
        [label, *("" if kind == other else str(gain(rows, kind, other)) for other in against)]
        for kind, label in LABELS.items()
    ]
    return markdown_table(["", *(f"minus {LABELS[other]}" for other in against)], lines)


def _replaced(rows: list[Row]) -> str:
    lines = []
    for kind in LINEAR:
        swapped = judged(rows, "exact", f"replaced by {kind}")
        back = judged(rows, kind, "replaced by exact")
        own = [judged(rows, k, "trained") for k in ("exact", kind)]
        texts = [str(Estimate.of(d.values())) for d in (own[0], swapped, own[1], back)]
        lines.append([LABELS[kind], *texts])
    header = ["map", "trained with softmax", "... run with a fresh map", "trained with the map"]
    return markdown_table([*header, "... run with softmax"], lines)


def _denominators(rows: list[Row]) -> str:
    lines = []
    for kind in LINEAR:
        shares = curve(rows, kind, "not_positive")
        by_generation = [float(np.mean(list(shares[g].values()))) for g in sorted(shares)]
        whole = float(np.mean(by_generation))
        ends = [by_generation[0], whole, by_generation[-1]]
        lines.append([LABELS[kind], *(f"{share:.2%}" for share in ends)])
    return markdown_table(["share of rows", "first generation", "all", "last generation"], lines)


# -- pictures ----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """learning.png: returns against environment steps; returns.png: of the trained policies."""
    _learning(rows, folder / "learning.png")
    _returns(rows, folder / "returns.png")


def _learning(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.6), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    reference = curve(rows, "exact", "mean_return")
    for axes, (kind, label) in zip(grid.flat, LABELS.items(), strict=True):
        steps = {int(g): s for g, s in _steps(rows, kind).items()}
        found = curve(rows, kind, "mean_return")
        at = sorted(found)
        x = [steps[g] / 1_000 for g in at]
        estimates = [Estimate.of(found[g].values()) for g in at]
        for seed in sorted(found[at[0]]):
            axes.plot(x, [found[g][seed] for g in at], color=COLORS[kind], linewidth=0.5, alpha=0.5)
        axes.plot(x, [e.mean for e in estimates], color=COLORS[kind], linewidth=1.8)
        low, high = zip(*(e.ends for e in estimates), strict=True)
        axes.fill_between(x, low, high, color=COLORS[kind], alpha=0.2, linewidth=0)
        if kind != "exact":
            means = [float(np.mean(list(reference[g].values()))) for g in at]
            axes.plot(x, means, color="black", linestyle=":", linewidth=1.2, label=LABELS["exact"])
            axes.legend(fontsize=8, loc="upper left", frameon=False)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("environment steps (thousands)")
    for axes in grid[:, 0]:
        axes.set_ylabel("mean return of the population")
    figure.suptitle(
        f"Seeds (thin), their mean, and its {LEVEL:.0%} Student-t interval", fontsize=10
    )
    figure.savefig(path, dpi=110)


def _steps(rows: Iterable[Row], kind: str) -> dict[int, int]:
    return {
        int(row["generation"]): int(row["env_steps"])
        for row in rows
        if row["kind"] == kind and "generation" in row
    }


def _returns(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, kind in enumerate(LABELS):
        values = list(judged(rows, kind, "trained").values())
        estimate = Estimate.of(values)
        half = 0.0 if math.isnan(estimate.half) else estimate.half
        axes.plot(values, [place + 0.18] * len(values), ".", color=COLORS[kind], alpha=0.6)
        axes.errorbar(estimate.mean, place, xerr=half, fmt="o", color=COLORS[kind], capsize=4)
    for what, style in (("random", ":"), ("initial", "--")):
        level = np.mean([r for kind in LABELS for r in judged(rows, kind, what).values()])
        label = "random actions" if what == "random" else "before training"
        axes.axvline(float(level), color="0.4", linestyle=style, label=label)
    axes.set_yticks(range(len(LABELS)), list(LABELS.values()))
    axes.invert_yaxis()
    axes.set_xlabel(f"return of the trained policies: seeds, mean, {LEVEL:.0%} Student-t interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
