"""The table of claims: what was published, ours, the gap; nothing is left out in silence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bochner.reproduce import ExperimentError
from bochner.reproduce.claims import (
    Claim,
    Claims,
    claim_rows,
    claims_markdown,
    figure_text,
    gap_text,
    read_claims,
)
from tests.reproduce.toy import CLAIMS

MEASURED = {"largest": 9.9, "range": (1.0, 4.0), "new": 3.0}


def read(tmp_path: Path, text: str) -> Claims:
    path = tmp_path / "toy.toml"
    path.write_text(text, encoding="utf-8")
    return read_claims(path, "toy")


def test_the_table_in_full(tmp_path: Path) -> None:
    claims = read(tmp_path, CLAIMS)
    assert claims_markdown(claims, claim_rows(claims, MEASURED)) == (
        "| statement | source | where | published | ours | gap |\n"
        "|---|---|---|---:|---:|---|\n"
        "| the largest \\|square\\| | paper | Table 1 | 9 | 9.9 | +0.9 (ratio 1.1) |\n"
        "| all squares | public code | cell 3 | 0 to 5 | 1 to 4 | inside |\n"
        "| not measured before | closed form | – | – | 3 | – |\n"
        "\n"
        "- The numbers of the paper are not to be had.\n"
    )


def test_no_file_means_no_claims(tmp_path: Path) -> None:
    claims = read_claims(tmp_path / "none.toml", "toy")
    assert claims == Claims()
    assert claims_markdown(claims, claim_rows(claims, {})) == "Nothing was published.\n"


def test_claims_and_measurements_must_be_the_same_set() -> None:
    claims = Claims((Claim("a", "s", "paper", "w", 1.0),))
    with pytest.raises(ExperimentError, match="no value for the claims a"):
        claim_rows(claims, {})
    with pytest.raises(ExperimentError, match="gives b, which no claim"):
        claim_rows(claims, {"a": 1.0, "b": 2.0})


@pytest.mark.parametrize(
    ("published", "ours", "text"),
    [
        (None, 1.0, "–"),
        (2.0, 1.0, "-1 (ratio 0.5)"),
        (-2.0, 1.0, "+3"),
        (0.0, 1.0, "+1"),
        (1.0, (0.5, 2.0), "published value inside ours"),
        (1.0, (2.0, 3.0), "above by 1 (ratio to the nearer end 2)"),
        (1.0, (1.0, 1.0), "inside"),
        ((1.0, 2.0), 0.5, "below by 0.5 (ratio to the nearer end 0.5)"),
        ((1.0, 2.0), 2.0, "inside"),
        ((1.0, 2.0), (1.2, 1.8), "inside"),
        ((1.0, 2.0), (2.5, 3.0), "above by 0.5 (ratio to the nearer end 1.25)"),
        ((1.0, 2.0), (0.0, 4.0), "overlap 1 to 2: 25% of ours, 100% of the published range"),
        ((1.0, 1.0), (0.0, 4.0), "overlap 1 to 1: 0% of ours"),
        (1.0, math.nan, "not finite"),
        (1.0, (0.0, math.inf), "not finite"),
    ],
)
def test_gaps(published: object, ours: object, text: str) -> None:
    assert gap_text(published, ours) == text  # type: ignore[arg-type]


def test_figures() -> None:
    assert figure_text(1234567.0) == "1.235e+06"
    assert figure_text((-0.5, math.inf)) == "-0.5 to inf"


ENTRY = '[[claim]]\nid = "a"\nstatement = "s"\nsource = "paper"\nwhere = "w"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[claim", "is no TOML"),
        ("[[claims]]\n", r"unknown fields \['claims'\]"),
        (ENTRY + ENTRY, "ids used twice: a"),
        (ENTRY + "values = 1\n", r"'a' has unknown fields \['values'\]"),
        (ENTRY.replace("paper", "memory"), "source 'memory'; expected one of"),
        (ENTRY.replace('"w"', '" "'), "has where = ' '; expected a text"),
        (ENTRY.replace('id = "a"\n', ""), "'without id' has id = None"),
        (ENTRY + 'value = "1"\n', "has value '1'; expected a number"),
        (ENTRY + "value = true\n", "has value True"),
        (ENTRY + "value = [2, 1]\n", r"has value \[2, 1\]"),
        (ENTRY + "value = [1, 2, 3]\n", r"has value \[1, 2, 3\]"),
        (ENTRY + 'experiment = "other"\n', "is of 'other'; expected 'toy'"),
        ("[[note]]\ntext = 3\n", "a note has text = 3"),
    ],
)
def test_a_wrong_file_is_named_with_the_entry(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message) as caught:
        read(tmp_path, text)
    assert "toy.toml" in str(caught.value)
