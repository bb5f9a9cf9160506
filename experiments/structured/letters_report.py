"""What CRFs over letters say of their transitions: tables, pictures, claims (see letters.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

FEWEST = 3  # folds that an interval takes
EXACT = "table"


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], *names: str) -> list[tuple]:
    """The values of some fields, in the order in which they come."""
    return list(dict.fromkeys(tuple(row.get(name) for name in names) for row in rows))


def over_folds(rows: Sequence[Row], name: str) -> Interval:
    return Interval.over(torch.tensor([float(row[name]) for row in rows], dtype=torch.float64))


def differences(rows: Sequence[Row], kind: str, name: str) -> Interval | None:
    """Of the trained CRF against the exact one, fold by fold."""
    exact = {row["fold"]: float(row[name]) for row in pick(trained(rows), transitions=EXACT)}
    found = [
        float(row[name]) - exact[row["fold"]]
        for row in pick(trained(rows), transitions=kind)
        if row["fold"] in exact
    ]
    return Interval.over(torch.tensor(found, dtype=torch.float64)) if found else None


def trained(rows: Sequence[Row]) -> list[Row]:
    return pick(rows, how="trained")


def replaced(rows: Sequence[Row]) -> list[Row]:
    return pick(rows, how="replaced")


def text(found: Interval | None, scale: float = 1.0, digits: int = 1, sign: str = "") -> str:
    """Mean and half-width; the mean alone for fewer than three folds."""
    if found is None:
        return "–"
    mean = f"{scale * found.value:{sign}.{digits}f}"
    if found.redraws < FEWEST:
        return mean
    return f"{mean} ± {scale * (found.high - found.value):.{digits}f}"


def measured(rows: list[Row]) -> Measured:
    """The two identities: the worst fold."""
    values: Measured = {}
    errors = [float(row["rank_26_error"]) for row in pick(trained(rows), transitions=EXACT)]
    if errors:
        values["rank-26-identity"] = max(errors)
    whole = [float(r["log_z_error"]) for r in pick(replaced(rows), transitions="hybrid", beam=26)]
    if whole:
        values["beam-26-identity"] = max(whole)
    return values


def summary(rows: list[Row]) -> str:
    """Trained CRFs, and the exact one with its transitions replaced."""
    folds = len(distinct(trained(rows), "fold"))
    return "\n\n".join(
        [
            "Letters right in percent, by posterior decoding (`best path`: by Viterbi), words right from"
            " the first letter to the last, log-likelihood in nats a letter, on the words of the folds that"
            f" were not trained on. Means over {folds} training {'fold' if folds == 1 else 'folds'}"
            f"{', with 95 % intervals' if folds >= FEWEST else ''}. `against exact` is paired by fold."
            " CPU time is that of training, on a machine that may have been shared.",
            "### Trained with these transitions",
            _trained_table(rows),
            "### The exact CRF over embeddings, its transitions replaced after training",
            _replaced_table(rows),
            _verdict(rows),
        ]
    )


def _trained_table(rows: Sequence[Row]) -> str:
    lines = []
    for (kind,) in distinct(trained(rows), "transitions"):
        some = pick(trained(rows), transitions=kind)
        exact = "–" if kind == EXACT else text(differences(rows, kind, "accuracy"), 100, 2, "+")
        lines.append(
            [
                "table (exact)" if kind == EXACT else str(kind),
                str(some[0]["parameters"]),
                text(over_folds(some, "accuracy"), 100),
                exact,
                text(over_folds(some, "viterbi"), 100),
                text(over_folds(some, "words"), 100),
                text(over_folds(some, "log_likelihood"), digits=3),
                f"{over_folds(some, 'seconds').value:.1f}",
            ]
        )
    header = ["transitions", "parameters", "letters", "against exact", "best path", "words"]
    return markdown_table([*header, "log-likelihood", "CPU-s"], lines)


def _replaced_table(rows: Sequence[Row]) -> str:
    lines = []
    for kind, features, beam in distinct(replaced(rows), "transitions", "features", "beam"):
        some = pick(replaced(rows), transitions=kind, features=features, beam=beam)
        name = {"embeddings": "none (exact)"}.get(str(kind), str(kind))
        verdicts = distinct(some, "verdict")
        lines.append(
            [
                name + (f", beam {beam}" if beam else ""),
                "–" if features is None else str(features),
                f"{max(float(row['log_z_error']) for row in some):.2g}",
                text(over_folds(some, "accuracy"), 100),
                text(over_folds(some, "words"), 100),
                text(over_folds(some, "log_likelihood"), digits=3),
                _chi(some),
                ", ".join(str(v) for (v,) in verdicts if v) or "–",
            ]
        )
    header = ["replaced by", "m", "log Z off by, nats a letter (worst fold)", "letters", "words"]
    return markdown_table([*header, "log-likelihood", "chi", "diagnosis"], lines)


def _chi(rows: Sequence[Row]) -> str:
    found = [float(row["chi"]) for row in rows if row.get("chi") is not None]
    return f"{torch.tensor(found, dtype=torch.float64).median().item():.1g}" if found else "–"


def _verdict(rows: list[Row]) -> str:
    """One sentence for each question, from the numbers."""
    low, hybrid, none = (
        differences(rows, kind, "accuracy") for kind in ("low rank 26", "hybrid", "none")
    )
    words = []
    for name, found in (("Rank 26, learned,", low), ("The hybrid", hybrid)):
        if found is not None:
            change = text(found, 100, 2, "+")
            words.append(f"{name} is {change} points away from the exact CRF.")
    if none is not None:
        words.append(f"Without transitions {text(none, 100, 1, '+')} points.")
    ranks = [k for (k,) in distinct(trained(rows), "transitions") if str(k).startswith("low rank")]
    gaps = [(str(k), differences(rows, str(k), "accuracy")) for k in ranks]
    told = ", ".join(f"{k[9:]}: {text(found, 100, 1, '+')}" for k, found in gaps)
    if len(gaps) > 1:
        words.append(
            f"Points against exact by rank: {told}. There are 55 different words: which letter follows"
            " which is nearly a list, of full rank."
        )
    return " ".join(words)


def draw(rows: list[Row], folder: Path) -> None:
    """Accuracy of the trained CRFs, and log Z of the replaced ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = [str(kind) for (kind,) in distinct(trained(rows), "transitions")]
    found = [over_folds(pick(trained(rows), transitions=kind), "accuracy") for kind in kinds]
    half = [100 * (f.high - f.value) if f.redraws >= FEWEST else 0.0 for f in found]
    left.errorbar([100 * f.value for f in found], kinds, xerr=half, fmt="o", color="#0072B2")
    left.invert_yaxis()
    left.grid(alpha=0.3)
    left.set_xlabel("letters right, %")
    left.set_title("trained with these transitions")
    kept = [row for row in replaced(rows) if float(row["log_z_error"]) > 1e-5]
    names = [
        (f"{k}, m = {m}" + (f", beam {b}" if b else ""), (k, m, b))
        for k, m, b in distinct(kept, "transitions", "features", "beam")
    ]
    for at, (_, (kind, features, beam)) in enumerate(names):
        some = pick(kept, transitions=kind, features=features, beam=beam)
        errors = [float(row["log_z_error"]) for row in some]
        right.plot(errors, [at] * len(errors), "o", color="#D55E00" if beam else "#009E73")
    right.set_yticks(range(len(names)), [name for name, _ in names])
    right.invert_yaxis()
    right.set_xscale("log")
    right.set_xlabel("log Z off by, nats a letter (a point for each fold)")
    right.set_title("replaced after training")
    right.grid(alpha=0.3)
    figure.savefig(folder / "letters.png", dpi=110)
