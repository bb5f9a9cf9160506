"""Tables of a race, shared by the experiment's page and by the benchmarks': times, ratios, memory, dashes."""

from __future__ import annotations

from collections.abc import Sequence

from bochner.report.table import markdown_table
from bochner.reproduce import Row
from experiments.structured.chain_contestants import EXACT, FORMS

OURS = "bochner LowRankChain"
TITLES = {
    "partition": "log Z",
    "marginals": "log Z and the marginals of all states",
    "training": "log Z and its gradient by the unaries and all features",
}


def of_form(rows: Sequence[Row], form: str) -> dict[tuple[str, int], Row]:
    """(contestant, states) -> row."""
    return {(str(r["contestant"]), int(r["states"] or 0)): r for r in rows if r["form"] == form}


def names_and_sizes(found: dict[tuple[str, int], Row]) -> tuple[list[str], list[int]]:
    """Contestants in the order in which they ran; numbers of states."""
    return list(dict.fromkeys(n for n, _ in found)), sorted({s for _, s in found})


def number(row: Row | None, field: str) -> float | None:
    """A measured value, or None."""
    if row is None or row[field] is None:
        return None
    return float(row[field] or 0.0)


def seconds_text(row: Row | None) -> str:
    """CPU seconds to three digits, ~ before what was scaled from a part."""
    value = number(row, "seconds")
    if value is None or row is None:
        return "–"
    scaled = "~" if float(row["share"] or 1.0) < 1.0 else ""
    return f"{scaled}{value:,.0f}" if value >= 100 else f"{scaled}{value:.3g}"


def table(rows: Sequence[Row], form: str, what: str) -> str:
    """CPU seconds, megabytes, or how many times ours are faster, by contestant and states."""
    found = of_form(rows, form)
    names, sizes = names_and_sizes(found)

    def text(name: str, states: int) -> str:
        row = found.get((name, states))
        if what == "seconds":
            return seconds_text(row)
        if what == "bytes":
            value = number(row, "bytes")
            return "–" if value is None else f"{value / 1e6:,.0f}" if value >= 1e6 else "< 1"
        theirs, own = number(row, "seconds"), number(found.get((OURS, states)), "seconds")
        if theirs is None or not own:
            return "–"
        return f"{theirs / own:,.0f}" if theirs >= 10 * own else f"{theirs / own:.2g}"

    header = {"seconds": "CPU seconds", "bytes": "MB", "ratio": f"times {OURS}'s"}[what]
    lines = [
        [name, *(text(name, n) for n in sizes)] for name in names if what != "ratio" or name != OURS
    ]
    return markdown_table([header, *(f"{n:,}" for n in sizes)], lines)


def reasons(rows: Sequence[Row]) -> str:
    """Why there are dashes and tildes: a bullet for each contestant, form and reason."""
    found = []
    for row in rows:
        share = float(row["share"] or 1.0)
        where = (
            f"{row['contestant']}, {TITLES[str(row['form'])]}, {int(row['states'] or 0):,} states"
        )
        if row["reason"] is not None:
            found.append(f"- {where}: {row['reason']}.")
        elif share < 1.0:
            found.append(f"- {where}: {share:.2g} of the chain was run, and scaled.")
    return "\n".join(["Left out (–) or scaled (~):", "", *found]) if found else ""


def ratio(
    rows: Sequence[Row], form: str, states: int, field: str, name: str, own: str
) -> float | None:
    """How many times as much one contestant takes as another."""
    found = of_form(rows, form)
    theirs, ours = number(found.get((name, states)), field), number(found.get((own, states)), field)
    return None if theirs is None or not ours else theirs / ours


def crossover(rows: Sequence[Row]) -> tuple[float, float]:
    """Where the low-rank chain becomes the faster one: (last size that is slower, first that is faster)."""
    _, sizes = names_and_sizes(of_form(rows, FORMS[0]))
    ratios = {n: ratio(rows, FORMS[0], n, "seconds", EXACT, OURS) for n in sizes}
    slower = [n for n in sizes if (r := ratios[n]) is not None and r < 1.0]
    faster = [n for n in sizes if n > max(slower, default=0) and ratios[n] is not None]
    return float(max(slower, default=0)), float(min(faster, default=float("inf")))


def all_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Title -> tables, for every form that was run."""
    found = {}
    for form in FORMS:
        if not of_form(rows, form):
            continue
        title = TITLES[form][0].upper() + TITLES[form][1:] if form != FORMS[0] else TITLES[form]
        measured = any(r["bytes"] is not None for r in of_form(rows, form).values())
        fields = ("seconds", "ratio", "bytes") if measured else ("seconds", "ratio")
        found[title] = "\n\n".join(table(rows, form, what) for what in fields)
    said = reasons(rows)
    return {**found, "Left out or scaled": said} if said else found
