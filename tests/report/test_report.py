"""Tables and JSON: what was measured arrives unchanged, and nothing is half written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from bochner.diagnostics import Comparison, Data, Interval, compare
from bochner.report.plot import draw_errors
from bochner.report.results import comparison_dict, to_json, write_text
from bochner.report.table import details_table, error_text, markdown_table, rich_table, rows_of


@pytest.fixture(scope="module")
def table() -> Comparison:
    g = torch.Generator().manual_seed(0)
    q, k, v = (0.5 * torch.randn(2, 40, 4, generator=g) for _ in range(3))
    return compare(Data.of(q, k, v), ["positive", "data-aware"], [8, 16], generator=g)


def test_rows_hold_the_measured_figures(table: Comparison) -> None:
    header, rows = rows_of(table)
    assert header == ["feature map", "m = 8", "m = 16"]
    by_name = {row[0]: row[1:] for row in rows}
    for candidate in table.candidates:
        cell = by_name[candidate.name][[8, 16].index(candidate.num_features)]
        assert cell.startswith(f"{candidate.output_error:.2f}")
    assert by_name["(averaging the values)"] == [f"{table.trivial_output_error:.2f}"] * 2


def test_averaging_stands_where_it_belongs(table: Comparison) -> None:
    _, rows = rows_of(table)
    place = [row[0] for row in rows].index("(averaging the values)")
    last = {c.name: c.output_error for c in table.candidates if c.num_features == 16}
    assert all(last[row[0]] <= table.trivial_output_error for row in rows[:place])
    assert all(last[row[0]] >= table.trivial_output_error for row in rows[place + 1 :])


def test_biased_maps_are_marked_in_tables_and_pictures() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (0.5 * torch.randn(2, 40, 4, generator=g) for _ in range(3))
    mixed = compare(
        Data.of(q, k, v), ["positive", "calibrated"], [8], predict_queries=2, generator=g
    )
    cells = {row[0]: row[1] for row in rows_of(mixed)[1]}
    assert set(cells) == {"positive", "calibrated (biased)", "(averaging the values)"}
    assert "±" in cells["positive"]
    assert "±" not in cells["calibrated (biased)"]
    assert "(biased): its error does not average out" in str(rich_table(mixed, "errors").caption)
    figure = Figure()
    draw_errors(figure.subplots(), mixed)
    assert "calibrated (biased)" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    rows = comparison_dict(mixed)["rows"]
    assert {r["map"]: r["unbiased"] for r in rows} == {"positive": True, "calibrated": False}


def test_where_theory_predicts_nothing_the_table_says_so(table: Comparison) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (0.5 * torch.randn(2, 40, 4, generator=g) for _ in range(3))
    labels = ["positive", "calibrated"]
    asked = compare(Data.of(q, k, v), labels, [8], predict_queries=2, generator=g)
    predicted = dict(zip(labels, details_table(asked).columns[-1].cells, strict=True))
    assert predicted["calibrated"] == "no theory"
    assert float(predicted["positive"].split()[0]) > 0
    assert "no closed form" in str(details_table(asked).caption)
    assert set(details_table(table).columns[-1].cells) == {"–"}
    assert details_table(table).caption is None


def test_json_is_strict_and_round_trips(table: Comparison) -> None:
    found = json.loads(to_json(comparison_dict(table)))
    assert [r["map"] for r in found["rows"]] == [c.name for c in table.candidates]
    assert json.loads(to_json({"a": math.inf, "b": [math.nan, 1.5]})) == {
        "a": None,
        "b": [None, 1.5],
    }


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")

    def fail(*_: object, **__: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_error_text() -> None:
    assert error_text(Interval(0.5, 0.4, 0.6, 4)) == "0.50 ± 0.10"
    assert error_text(Interval(0.5, 0.5, 0.5, 1)) == "0.50"
    assert error_text(Interval.fixed(0.5)) == "0.50"
    assert error_text(Interval(41.2, 30.0, 52.0, 4)) == "41.2"
    assert error_text(None) == "–"


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_a_map_that_uses_less_than_its_budget_says_so(table: Comparison) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (0.5 * torch.randn(2, 40, 4, generator=g) for _ in range(3))
    partly = compare(Data.of(q, k, v), ["positive", "gaussian-hybrid"], [16], generator=g)
    cells = {row[0]: row[1] for row in rows_of(partly)[1]}
    assert cells["gaussian-hybrid"].endswith(" [10]")
    assert "[" not in cells["positive"]
    assert "uses n columns" in str(rich_table(partly, "errors").caption)
    assert rich_table(table, "errors").caption is None
    row = next(r for r in comparison_dict(partly)["rows"] if r["map"] == "gaussian-hybrid")
    assert (row["num_features"], row["columns"], row["num_projections"]) == (16, 10, 3)
