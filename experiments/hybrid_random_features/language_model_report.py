"""What the rows of the language-model experiment say: values for the claims, tables, sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

PAPER_METHODS = ("hyperbolic", "trigonometric", "gaussian-8", "angular-8")
PUBLISHED = {"wasserstein": "Wasserstein-1", "ks": "Kolmogorov-Smirnov", "kl": "KL"}
MEANINGFUL = {
    "total_variation": "total variation",
    "top1": "top-1",
    "mass_error": "error of the sum",
    "frobenius": "Frobenius",
}
BASELINES = {"uniform": "uniform rows", "average": "the average row"}


def estimates(rows: Iterable[Row], accounting: str) -> list[Row]:
    """Rows of estimates in one accounting, those that are the same in both among them."""
    wanted = (accounting, "both")
    return [r for r in rows if r["kind"] == "estimate" and r["accounting"] in wanted]


def budgets(rows: Iterable[Row]) -> list[int]:
    """The values of R, rising."""
    return sorted({int(_number(r, "budget")) for r in rows if r["kind"] == "estimate"})


def value(rows: Iterable[Row], metric: str, method: str, budget: int) -> float:
    """A metric of one method at one R, in the paper's accounting."""
    found = [
        row
        for row in estimates(rows, "paper")
        if row["method"] == method and row["budget"] == budget
    ]
    return _number(found[0], metric)


def measured(rows: list[Row]) -> Measured:
    """Our values of claims/language_model.toml."""
    sizes = budgets(rows)
    result: Measured = {"lm-test-cross-entropy": _number(_model(rows), "test_cross_entropy")}
    for method in PAPER_METHODS:
        for budget in sizes:
            name = f"lm-wasserstein-{method}-{budget}"
            result[name] = value(rows, "wasserstein", method, budget)
        result[f"lm-wasserstein-ratio-{method}"] = 1.0 - _fall(rows, "wasserstein", method)
    result["lm-largest-improvement"] = max(_falls(rows).values())
    return result


def summary(rows: list[Row], *, labels: dict[str, str]) -> str:
    """Markdown: sentences, then tables."""
    sizes = budgets(rows)
    tables = [
        f"## R = {sizes[-1]}, {words}\n\n{_table(rows, accounting, sizes[-1], labels)}"
        for accounting, words in (
            ("paper", "the paper's accounting (projections, m n = R for hybrids)"),
            ("features", f"at most {2 * sizes[-1]} feature columns each"),
        )
    ]
    by_budget = [
        f"## {title} against R, the paper's accounting\n\n{_by_budget(rows, metric, labels)}"
        for metric, title in {**PUBLISHED, "total_variation": "Total variation"}.items()
    ]
    return "\n\n".join([" ".join(_sentences(rows, labels)), *tables, *by_budget]) + "\n"


# -- sentences -------------------------------------------------------------------------------------
def _sentences(rows: list[Row], labels: dict[str, str]) -> list[str]:
    model, sizes = _model(rows), budgets(rows)
    uniform, average = baseline(rows, "uniform"), baseline(rows, "average")
    last = [row for row in estimates(rows, "paper") if row["budget"] == sizes[-1]]
    last += [
        row
        for row in estimates(rows, "features")
        if row["budget"] == sizes[-1] and row["accounting"] != "both"
    ]
    better = [r for r in last if _number(r, "total_variation") < average["total_variation"]]
    best = min(last, key=lambda row: _number(row, "total_variation"))
    top = max(last, key=lambda row: _number(row, "top1"))
    mass = min(last, key=lambda row: _number(row, "mass_error"))
    falls = _falls(rows)
    (metric, method), fall = max(falls.items(), key=lambda item: item[1])
    rising = sum(change < 0 for change in falls.values())
    return [
        f"A 2-layer LSTM ({model['hidden']} units, tied embeddings), trained on Brown"
        f" ({model['epochs']} passes), reaches test perplexity"
        f" {_number(model, 'test_perplexity'):.1f} ({_number(model, 'test_cross_entropy'):.4f} nats;"
        f" {model['words']:,} words, {_number(model, 'unknown'):.1%} of the test text unknown);"
        f" {model['queries']} of its {model['positions']:,} test queries are estimated against all"
        " words. Another corpus than the paper's: no number here is comparable with a published one.",
        f"The median pair has |q+k|^2 = {_number(model, 'sum_square'):.1f} and"
        f" |q-k|^2 = {_number(model, 'difference_square'):.1f}: by the closed forms for independent"
        f" directions, {sizes[-1]} of them leave it a relative standard deviation of"
        f" {_deviation(_number(model, 'sum_square'), sizes[-1]):.2g} with FAVOR+ and"
        f" {_deviation(_number(model, 'difference_square'), sizes[-1]):.2g} with trigonometric"
        " features.",
        f"From R = {sizes[0]} to {sizes[-1]} the largest fall of a published metric over the paper's"
        f" four methods is {fall:.1%} ({PUBLISHED[metric]}, {labels[method]}), and {rising} of the"
        f" {len(falls)} get worse.",
        f"Two answers that ignore the query give context: uniform rows have Wasserstein-1"
        f" {uniform['wasserstein']:.0f} and total variation {uniform['total_variation']:.3f}, the"
        f" average row {average['wasserstein']:.0f} and {average['total_variation']:.3f};"
        f" {len(better)} of {len(last)} maps and accountings at R = {sizes[-1]} have a lower total"
        " variation than the average row.",
        f"Wasserstein-1 reads word indices as places on a line (here by frequency): renumbering the"
        f" words at random takes uniform rows from {uniform['wasserstein']:.0f} to"
        f" {uniform['wasserstein_shuffled']:.0f} and FAVOR+ at R = {sizes[-1]} from"
        f" {value(rows, 'wasserstein', 'hyperbolic', sizes[-1]):.0f} to"
        f" {value(rows, 'wasserstein_shuffled', 'hyperbolic', sizes[-1]):.0f}, with the estimates"
        " unchanged.",
        f"At R = {sizes[-1]} the lowest total variation is {_number(best, 'total_variation'):.3f}"
        f" ({_who(best, labels)}), the most frequent agreement on the most likely word"
        f" {_number(top, 'top1'):.1%} ({_who(top, labels)}), the lowest median error of the sum"
        f" {_number(mass, 'mass_error'):.2g} ({_who(mass, labels)}).",
    ]


def _deviation(square: float, directions: int) -> float:
    """sqrt(2 sinh^2(|x+y|^2/2) / r), Lemma 1.4 and its mirror image for |x-y|^2."""
    return math.sqrt(2.0 / directions) * math.sinh(0.5 * square)


def _who(row: Row, labels: dict[str, str]) -> str:
    return f"{labels[str(row['method'])]}, {row['num_features']} columns"


def _fall(rows: list[Row], metric: str, method: str) -> float:
    """1 - (metric at the largest R) / (metric at the smallest)."""
    sizes = budgets(rows)
    return 1.0 - value(rows, metric, method, sizes[-1]) / value(rows, metric, method, sizes[0])


def _falls(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(m, method): _fall(rows, m, method) for m in PUBLISHED for method in PAPER_METHODS}


# -- tables ----------------------------------------------------------------------------------------
def _table(rows: list[Row], accounting: str, budget: int, labels: dict[str, str]) -> str:
    metrics = {**PUBLISHED, "negative": "entries < 0", **MEANINGFUL}
    header = ["", "projections", "columns", *metrics.values()]
    lines = []
    for row in estimates(rows, accounting):
        if row["budget"] == budget:
            numbers = [f"{_number(row, metric):.3g}" for metric in metrics]
            sizes = [str(row["num_projections"]), str(row["num_features"])]
            lines.append([labels[str(row["method"])], *sizes, *numbers])
    for name, label in BASELINES.items():
        row = baseline(rows, name)
        numbers = [f"{row[metric]:.3g}" if metric in row else "" for metric in metrics]
        lines.append([label, "", "", *numbers])
    return markdown_table(header, lines)


def _by_budget(rows: list[Row], metric: str, labels: dict[str, str]) -> str:
    sizes = budgets(rows)
    lines = []
    for method, label in labels.items():
        mine = {r["budget"]: r for r in estimates(rows, "paper") if r["method"] == method}
        lines.append(
            [
                label,
                *(f"{mine[size][metric]:.4g} ± {mine[size][metric + '_sd']:.2g}" for size in sizes),
            ]
        )
    for name, label in BASELINES.items():
        lines.append([label, *(f"{baseline(rows, name)[metric]:.4g}" for _ in sizes)])
    return markdown_table(["mean ± sd over draws", *map(str, sizes)], lines)


def _model(rows: Iterable[Row]) -> Row:
    return next(row for row in rows if row["kind"] == "model")


def baseline(rows: Iterable[Row], method: str) -> dict[str, float]:
    """Metrics of a baseline; it has none that need estimates of exp(q.k) themselves."""
    row = next(r for r in rows if r["kind"] == "baseline" and r["method"] == method)
    return {name: x for name, x in row.items() if isinstance(x, float)}


def _number(row: Row, name: str) -> float:
    x = row[name]
    assert isinstance(x, int | float), (name, x)
    return float(x)
