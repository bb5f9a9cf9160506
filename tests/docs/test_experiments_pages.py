"""The site's page of a paper shows what its results folders hold, word for word."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from bochner.reproduce import Settings, discover, reproduce
from tests.reproduce.toy import write_toy

pytestmark = pytest.mark.usefixtures("experiments_restored")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    file = ROOT / "docs" / "hooks" / "experiments_pages.py"
    spec = importlib.util.spec_from_file_location("experiments_pages", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_section_shows_summary_pictures_claims_and_the_command(
    hook: ModuleType, tmp_path: Path
) -> None:
    entry = discover(write_toy(tmp_path))[0]
    folder = entry.folder(quick=False)
    reproduce(entry, folder, Settings())
    assert hook.result_folders(entry.script.parent) == [folder]
    page = hook.paper_page("squares", [folder])
    assert page.startswith("# Squares\n\n## toy\n\n**Squares** (Euclid, section 1).")
    assert "\n    bochner reproduce toy\n" in page
    assert "\n### Squares\n\n4 squares.\n" in page  # the summary's headline, two levels down
    assert "![squares](squares/toy/squares.png)" in page
    assert (folder / "claims.md").read_text().strip() in page
    assert "[results.csv](squares/toy/results.csv)" in page
    index = hook.index_page({"squares": [folder]})
    assert "| [`toy`](squares.md#toy) | Squares | Euclid, section 1 |" in index


def test_without_results_there_is_only_the_introduction(hook: ModuleType, tmp_path: Path) -> None:
    write_toy(tmp_path)
    assert hook.result_folders(tmp_path / "experiments" / "squares") == []
    assert hook.index_page({}) == hook.INTRODUCTION + "\n"


def test_headings_in_code_are_left_alone(hook: ModuleType) -> None:
    text = "# A\n\n```\n# no heading\n```\n\n## B"
    assert hook.demoted(text) == "### A\n\n```\n# no heading\n```\n\n#### B"
    assert hook.demoted("### A\n\n#### B") == "### A\n\n#### B"
    assert hook.demoted("no heading") == "no heading"
