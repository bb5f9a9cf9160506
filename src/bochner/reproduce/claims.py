"""What was published beside what was measured, with the gap: a table that nobody types.

A claim is written once in claims/<script>.toml, with its place:

    [[claim]]
    id = "rmse-angular"
    statement = "RMSE of the angular hybrid at r = 1, 8 projections"
    source = "paper"          # or "public code", "closed form", "our earlier measurement"
    where = "Table 1"
    value = 0.25              # or [low, high], or absent where nothing was published

    [[note]]
    text = "The corpus of the paper is not to be had; ours is another."
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bochner.reproduce.experiment import ExperimentError, Measured

SOURCES = ("paper", "public code", "closed form", "our earlier measurement")
HEADER = ["statement", "source", "where", "published", "ours", "gap"]
_ALIGNMENT = "|---|---|---|---:|---:|---|"
NOTHING = "–"

Figure = float | tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """One published statement; `value` is None where it has no figure."""

    id: str
    statement: str
    source: str
    where: str
    value: Figure | None = None


@dataclass(frozen=True)
class Claims:
    """The claims of one experiment, and what is to be said below their table."""

    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


def read_claims(path: Path, experiment: str) -> Claims:
    """The claims of a file; none if there is no file.

    Raises:     ExperimentError that names the file, the entry and what was expected.
    """
    if not path.exists():
        return Claims()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path} is no TOML: {error}") from error
    _only(content, {"claim", "note"}, str(path))
    claims = tuple(_claim(entry, path, experiment) for entry in content.get("claim", []))
    ids = [claim.id for claim in claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ExperimentError(f"{path}: claim ids used twice: {', '.join(twice)}.")
    notes = content.get("note", [])
    for note in notes:
        _only(note, {"text"}, f"{path}: a note")
    return Claims(claims, tuple(_text(note, "text", f"{path}: a note") for note in notes))


def claim_rows(claims: Claims, measured: Measured) -> list[list[str]]:
    """One row of text for each claim, under HEADER.

    Raises:     ExperimentError if a claim is not measured, or something measured is no claim.

    Example:
        >>> claim = Claim("pi", "half a turn", "closed form", "Euclid", 3.14)
        >>> claim_rows(Claims((claim,)), {"pi": 3.0})
        [['half a turn', 'closed form', 'Euclid', '3.14', '3', '-0.14 (ratio 0.955)']]
    """
    stated = [claim.id for claim in claims.claims]
    if missing := [i for i in stated if i not in measured]:
        raise ExperimentError(f"`measured` gives no value for the claims {', '.join(missing)}.")
    if extra := [i for i in measured if i not in stated]:
        raise ExperimentError(
            f"`measured` gives {', '.join(extra)}, which no claim of the claims file is called."
        )
    return [
        [
            claim.statement,
            claim.source,
            claim.where,
            figure_text(claim.value),
            figure_text(measured[claim.id]),
            gap_text(claim.value, measured[claim.id]),
        ]
        for claim in claims.claims
    ]


def claims_markdown(claims: Claims, rows: list[list[str]]) -> str:
    """The table and the notes below it."""
    lines = [HEADER, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    texts = ["| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines]
    table = "\n".join([texts[0], _ALIGNMENT, *texts[1:]]) if rows else "Nothing was published."
    notes = "\n".join("- " + " ".join(note.split()) for note in claims.notes)
    return "\n\n".join(filter(None, [table, notes])) + "\n"


def figure_text(value: Figure | None) -> str:
    """A figure, or a range, with at most four digits.

    Example:
        >>> figure_text(0.123456), figure_text((1, 2.5)), figure_text(None)
        ('0.1235', '1 to 2.5', '–')
    """
    if value is None:
        return NOTHING
    if isinstance(value, tuple):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return f"{value:.4g}"


def gap_text(published: Figure | None, ours: Figure) -> str:
    """Ours against what was published, in words and figures.

    Example:
        >>> gap_text(2.0, 3.0)
        '+1 (ratio 1.5)'
        >>> gap_text((1.0, 2.0), 3.0), gap_text((1.0, 2.0), 1.5)
        ('above by 1 (ratio to the nearer end 1.5)', 'inside')
        >>> gap_text((1.0, 2.0), (1.5, 3.0))
        'overlap 1.5 to 2: 33% of ours, 50% of the published range'
    """
    if published is None:
        return NOTHING
    if not all(map(math.isfinite, (*_ends(published), *_ends(ours)))):
        return "not finite"
    if not isinstance(published, tuple) and not isinstance(ours, tuple):
        return f"{ours - published:+.3g}{_ratio(ours, published, 'ratio')}"
    low, high = _ends(published)
    least, most = _ends(ours)
    if least > high:
        return f"above by {least - high:.3g}{_ratio(least, high, 'ratio to the nearer end')}"
    if most < low:
        return f"below by {low - most:.3g}{_ratio(most, low, 'ratio to the nearer end')}"
    if low <= least and most <= high:
        return "inside"
    if not isinstance(published, tuple):
        return "published value inside ours"
    start, end = max(low, least), min(high, most)
    parts = [f"{(end - start) / (most - least):.0%} of ours"]
    if high > low:
        parts.append(f"{(end - start) / (high - low):.0%} of the published range")
    return f"overlap {start:.3g} to {end:.3g}: {', '.join(parts)}"


def _ends(value: Figure) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _ratio(ours: float, published: float, label: str) -> str:
    return f" ({label} {ours / published:.3g})" if ours * published > 0 else ""


def _claim(entry: Mapping[str, Any], path: Path, experiment: str) -> Claim:
    owner = f"{path}: the claim {entry.get('id', 'without id')!r}"
    _only(entry, {"id", "experiment", "statement", "source", "where", "value"}, owner)
    if entry.get("experiment", experiment) != experiment:
        raise ExperimentError(f"{owner} is of {entry['experiment']!r}; expected {experiment!r}.")
    texts = {name: _text(entry, name, owner) for name in ("id", "statement", "source", "where")}
    if texts["source"] not in SOURCES:
        raise ExperimentError(f"{owner} has source {texts['source']!r}; expected one of {SOURCES}.")
    return Claim(**texts, value=_value(entry.get("value"), owner))


def _value(value: Any, owner: str) -> Figure | None:
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not plain or (isinstance(value, list) and (len(value) != 2 or value[0] > value[1])):
        raise ExperimentError(
            f"{owner} has value {value!r}; expected a number, [low, high], or none at all."
        )
    if isinstance(value, list):
        return float(value[0]), float(value[1])
    return None if value is None else float(value)


def _text(entry: Mapping[str, Any], name: str, owner: str) -> str:
    if not isinstance(value := entry.get(name), str) or not value.strip():
        raise ExperimentError(f"{owner} has {name} = {value!r}; expected a text.")
    return value


def _only(entry: Mapping[str, Any], known: set[str], owner: str) -> None:
    if unknown := sorted(set(entry) - known):
        raise ExperimentError(f"{owner} has unknown fields {unknown}; known are {sorted(known)}.")
