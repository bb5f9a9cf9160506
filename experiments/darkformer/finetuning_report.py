"""What is made of the rows of `finetuning`: our values of the claims, tables, sentences, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bochner.diagnostics.interval import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.darkformer.contestants import EXACT
from experiments.darkformer.tables import (
    COLOURS,
    MARKERS,
    counted,
    mean_of,
    over_seeds,
    select,
    text,
)

MAPS, ALL = "maps", "maps and projections"
LABELS = {
    "positive": "isotropic (Performer)",
    "dark, identity": "DARK, M = I at first",
    "dark": "DARK, balanced at first",
    "calibrated": "calibrated",
    EXACT: "exact attention",
}


def final(rows: Sequence[Row]) -> list[Row]:
    """The rows after the last step."""
    return [r for r in rows if r["step"] == r["steps"]]


def alone(rows: Sequence[Row], part: str) -> list[Row]:
    """The rows of one model, features without exact pairs."""
    return select(rows, part=part, window=0)


def measured(rows: list[Row]) -> Measured:
    """What training the map, the projections or both removes of the gap to exact attention."""
    encoder, decoder = alone(rows, "encoder"), alone(rows, "decoder")
    before = mean_of(encoder, "error", method="positive", trained=ALL, step=0)
    last = final(encoder)
    values: Measured = {
        f"encoder-removed-{name}": 1.0
        - mean_of(last, "error", method=method, trained=what) / before
        for name, method, what in (
            ("covariance", "dark, identity", MAPS),
            ("projections", "positive", ALL),
            ("both", "dark, identity", ALL),
        )
    }
    at_first = [r for r in decoder if r["step"] == 0]
    for name, found in (("before", at_first), ("after", final(decoder))):
        performer = mean_of(found, "loss", method="positive")
        exact = mean_of(found, "loss", method=EXACT)
        dark = mean_of(found, "loss", method="dark, identity")
        values[f"decoder-closed-{name}"] = (performer - dark) / (performer - exact)
    return values


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Quality before and after for each method, and what the learned covariance adds."""
    encoder, decoder = select(rows, part="encoder"), select(rows, part="decoder")
    first, other = encoder[0], decoder[0]
    seeds = len({r["seed"] for r in alone(rows, "encoder")})
    parts = [
        f"{first['columns']} columns. Methods: {'; '.join(f'{v}' for v in LABELS.values())}. What is"
        f" trained: the {MAPS} alone, or the {ALL} of queries and keys, at the same number of steps, the"
        " same batches and the same step sizes (landmarks take smaller ones, and leave the projections that"
        " they were fitted to).",
        f"### Sentence encoder: attention distillation, {counted(int(first['steps']), 'step')}",
        f"Steps of {counted(int(first['batch']), 'window')} of {first['length']} tokens out of"
        f" {first['pool']}; measured on {2 * int(first['held_out'])} windows of other documents"
        f" ({first['source']}). Up to {counted(seeds, 'seed')}, ± the 95 % interval from three on."
        " The error of a head is |Ô - O| / |O| on the original's hidden states.",
        _encoder(encoder),
        f"### Language model: end to end, {counted(int(other['steps']), 'step')}",
        f"Steps of {counted(int(other['batch']), 'window')} of {other['length']} tokens on the next-token"
        f" loss; perplexity of {other['held_out']} windows of other documents. Exact"
        " attention is trained on the same text: what it gains is adaptation to the text.",
        _decoder(decoder),
        "### Read from the tables",
        _findings(rows),
    ]
    return "\n\n".join(parts)


def _encoder(rows: list[Row]) -> str:
    lines = []
    for window, what, method in _lines(rows):
        same = {"window": window, "trained": what, "method": method}
        found = select(rows, **same)
        line = [LABELS[method], what, "yes" if window else "no", f"{found[0]['parameters']:,}"]
        for metric, digits in (("error", 3), ("cosine", 3), ("ranking", 3)):
            before = over_seeds(rows, metric, step=0, **same)
            after = over_seeds(final(rows), metric, **same)
            line.append(f"{text(before, digits)} → {text(after, digits)}")
        lines.append(line)
    header = ["method", "trained", "window", "numbers trained", "output error", "cosine", "ranking"]
    return markdown_table(header, lines)


def _lines(rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """(window, what is trained, method) of the curves, in the order of the rows."""
    return list(
        dict.fromkeys((int(r["window"] or 0), str(r["trained"]), str(r["method"])) for r in rows)
    )


def _decoder(rows: list[Row]) -> str:
    steps = sorted({int(r["step"]) for r in rows})
    lines = []
    for window, what, method in _lines(rows):
        found = [over_seeds(rows, "loss", window=window, method=method, step=s) for s in steps]
        lines.append([_named(method, window), what, *map(_perplexity, found)])
    return markdown_table(["method", "trained", *(f"step {s}" for s in steps)], lines)


def _named(method: str, window: int) -> str:
    return LABELS[method] + (", window and sinks" if window else "")


def _perplexity(found: Interval | None) -> str:
    if found is None:
        return "–"
    value = math.exp(found.value)
    return f"{value:.1f}" if value < 1000 else f"{value:.2g}"


def _findings(rows: list[Row]) -> str:
    values = measured(rows)
    share = {name: float(value) for name, value in values.items() if isinstance(value, float)}
    encoder = final(alone(rows, "encoder"))
    both = over_seeds(encoder, "error", method="dark, identity", trained=ALL)
    plain = over_seeds(encoder, "error", method="positive", trained=ALL)
    return "\n".join(
        [
            "- Encoder, of the output error of isotropic features: learning the covariance alone removes"
            f" {share['encoder-removed-covariance']:.0%}, training the projections alone"
            f" {share['encoder-removed-projections']:.0%}, both {share['encoder-removed-both']:.0%}"
            f" ({text(plain, 3)} with fixed features against {text(both, 3)} with the learned covariance,"
            " projections trained in both).",
            "- Without rotary positions the covariance is no new function once the projections are trained:"
            " M W_q and M W_k are projections themselves. What is left is the path of the optimiser.",
            "- Language model, of the loss between isotropic features and exact attention: the learned"
            f" covariance (M = I at first) closes {share['decoder-closed-before']:.0%} before training (the"
            f" start is the same) and {share['decoder-closed-after']:.0%} after it, both trained.",
        ]
    )


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """encoder.png and decoder.png: quality against steps."""
    from matplotlib.figure import Figure

    encoder = alone(rows, "encoder")
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {
        "error": "output error of a head (median)",
        "cosine": "cosine to the original embedding",
    }
    for panel, (metric, title) in zip(panels, titles.items(), strict=True):
        for window, what, method in _lines(encoder):
            name = f"{LABELS[method]}; {what}"
            _line(
                panel, encoder, metric, {"window": window, "trained": what, "method": method}, name
            )
        _finish(panel, encoder, title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle("sentence encoder, attention distillation, held-out text, features alone")
    figure.savefig(folder / "encoder.png", dpi=110)

    decoder = select(rows, part="decoder")
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    panel = figure.subplots()
    for window, what, method in _lines(decoder):
        fields = {"window": window, "trained": what, "method": method}
        _line(panel, decoder, "loss", fields, _named(method, window))
    _finish(panel, decoder, "loss (nats a token)")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle("language model, end to end, held-out text")
    figure.savefig(folder / "decoder.png", dpi=110)


def _line(
    panel: object, rows: Sequence[Row], metric: str, fields: dict[str, object], name: str
) -> None:
    """One curve with its intervals; dashed where the maps alone are trained or the window is on."""
    steps = sorted({int(r["step"]) for r in select(rows, **fields)})
    found = [over_seeds(rows, metric, step=step, **fields) for step in steps]
    points = [(s, f) for s, f in zip(steps, found, strict=True) if f is not None]
    index = list(LABELS).index(str(fields["method"]))
    panel.errorbar(  # type: ignore[attr-defined]
        [s for s, _ in points],
        [f.value for _, f in points],
        yerr=[f.high - f.value for _, f in points],
        color=COLOURS[index],
        marker=MARKERS[index],
        linestyle="--" if fields["trained"] == MAPS or fields["window"] else "-",
        markersize=4,
        linewidth=1.3,
        capsize=2,
        label=name,
    )


def _finish(panel: object, rows: Sequence[Row], title: str) -> None:
    steps = sorted({int(r["step"]) for r in rows})
    panel.set_xscale("symlog", linthresh=max(1, steps[1]))  # type: ignore[attr-defined]
    panel.set_xticks(steps, [str(s) for s in steps])  # type: ignore[attr-defined]
    panel.minorticks_off()  # type: ignore[attr-defined]
    panel.set(xlabel="steps", ylabel=title)  # type: ignore[attr-defined]
    panel.grid(alpha=0.3)  # type: ignore[attr-defined]
