"""README and the guide show what was measured, and nothing that was typed."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


TOOL = runpy.run_path(str(ROOT / "tools/readme_from_results.py"))


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, names in TOOL["PAGES"].items() for name in names]
)
def test_pages_quote_results_word_for_word(page: str, name: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert TOOL["block_of"](text, name) == TOOL["BLOCKS"][name]()


def test_demo_tables_are_those_of_its_results() -> None:
    tables = (ROOT / "docs/demo/tables.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "docs/demo/results.json").read_text(encoding="utf-8"))
    for row in results["comparison"]["rows"]:
        value = row["output_error"]["value"]
        if value < 10:
            marked = (f"| {row['map']} |", f"| {row['map']} (biased) |")
            line = next(x for x in tables.splitlines() if x.startswith(marked))
            assert re.search(rf"\b{value:.2f}\b", line), (row["map"], value, line)


def test_readme_links_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target
