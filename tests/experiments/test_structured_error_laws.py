"""The error laws' experiment: its cells, its rows, the claims and the report made of them."""

import math
from pathlib import Path

import pytest
import torch

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import checked_cells
from experiments.structured import error_laws, error_laws_report

CLAIMS = Path(error_laws.__file__).parent / "claims" / "error_laws.toml"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    found = []
    for cell in checked_cells(error_laws.EXPERIMENT, True):
        if cell["kind"] == "methods":
            cell = {**cell, "states": 96, "steps": 12, "m": 64, "redraws": 2}
        found += error_laws.run(cell, Path())
    return found


def test_cells_are_different_and_of_every_kind() -> None:
    for quick in (True, False):
        cells = checked_cells(error_laws.EXPERIMENT, quick)
        assert {c["kind"] for c in cells} == {"chains", "blocks", "methods", "attention"}
        assert len({c["seed"] for c in cells}) == len(cells)
        totals = {c["r"] * c["blocks"] for c in cells if c["kind"] == "blocks"}
        assert all(
            error_laws.BLOCK_TOTAL - 24 < total <= error_laws.BLOCK_TOTAL for total in totals
        )


def test_a_cell_repeats_itself() -> None:
    cell = next(c for c in error_laws.cells(True) if c["kind"] == "chains")
    assert error_laws.run(cell, Path()) == error_laws.run(cell, Path())


def test_the_laws_hold_in_the_quick_rows(rows: list[dict]) -> None:
    """|z| <= 5.5 throughout: false alarms below 1e-6; the seeds are fixed."""
    chains = [row for row in rows if row["kind"] == "chains"]
    for row in chains:
        if row["blocks"] in (row["steps"] - 1, 1) and (row["steps"] == 3 or row["blocks"] > 1):
            assert abs(row["mean"] - row["mean_predicted"]) < 5.5 * row["mean_stderr"]
        if row["square_predicted"] is not None:
            assert abs(row["square"] - row["square_predicted"]) < 5.5 * row["square_stderr"]
    shared = [row for row in chains if row["blocks"] == 1 and row["steps"] == 8]
    assert any(
        row["mean"] > 5.5 * row["mean_stderr"] for row in shared
    )  # what would be refused above


def test_svd_and_beam_are_what_they_say() -> None:
    a, b = (x.float() for x in error_laws.embeddings(40, 8, 0.5, torch.Generator().manual_seed(0)))
    u = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    exact = float(error_laws.ExactChain.from_embeddings(a, b, u).log_partition)
    assert abs(error_laws.beam_error(a, b, u, exact)) < 1e-4  # a beam of 64 holds all 40 states
    assert (
        error_laws.beam_error(a, b, 20 * u, exact) > 0
    )  # another model: the exact value is not its own
    assert abs(error_laws.svd_error(a, b, u, exact)) < 0.02


def test_every_claim_is_measured_and_the_report_is_made_of_rows(
    rows: list[dict], tmp_path: Path
) -> None:
    claims = read_claims(CLAIMS, "structured-error-laws")
    measured = error_laws.EXPERIMENT.measured(rows)
    assert len(claim_rows(claims, measured)) == len(claims.claims)
    assert 0.85 < measured["block-law"][0] <= measured["block-law"][1] < 1.1
    assert measured["attention-cosine"] > 0.8
    assert all(math.isfinite(v) for value in measured.values() for v in error_laws_ends(value))
    text = error_laws_report.summary(rows)
    for title in ("The formulas", "Chains of 12 states", "The block law", "The ratio of attention"):
        assert f"## {title}" in text
    assert "do not rescue peaked" in text
    error_laws.EXPERIMENT.draw(rows, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"laws.png", "blocks.png", "methods.png"}


def error_laws_ends(value: float | tuple[float, float]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
