"""mkdocs hook: one page for each paper, from the results that `bochner reproduce` wrote.

What is shown is experiments/<paper>/results/<name>/: nothing is run, imported or typed.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

INTRODUCTION = """# Experiments

What papers report, measured again with bochner. Each page is written from the files that one command
wrote, and can be had again by it:

    make reproduce-quick           # all of them, in their small versions
    bochner reproduce --list       # in the source checkout, where the experiments are
    bochner reproduce NAME         # interrupted, it goes on where it stopped

A table of claims shows each published figure with its place, ours, and the gap.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages with their pictures and raw results, and their entries in the navigation."""
    root = Path(config.config_file_path).parent / "experiments"
    papers = {folder.name: result_folders(folder) for folder in sorted(root.glob("*/"))}
    papers = {name: folders for name, folders in papers.items() if folders}
    pages = {f"experiments/{name}.md": paper_page(name, papers[name]) for name in papers}
    pages["experiments/index.md"] = index_page(papers)
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for paper, folders in papers.items():
        for folder in folders:
            for file in [*sorted(folder.glob("*.png")), folder / "results.csv"]:
                uri = f"experiments/{paper}/{folder.name}/{file.name}"
                files.append(File.generated(config, uri, abs_src_path=str(file)))

    entries = [{"Overview": "experiments/index.md"}]
    entries += [{title(name): f"experiments/{name}.md"} for name in papers]
    for section in config.nav or []:
        if isinstance(section, dict) and "Experiments" in section:
            section["Experiments"] = entries
    return files


def result_folders(paper: Path) -> list[Path]:
    """The folders of experiments that have results."""
    return sorted(file.parent for file in paper.glob("results/*/results.json"))


def title(paper: str) -> str:
    """The name of a paper's folder as a person reads it."""
    return paper.replace("_", " ").capitalize()


def read(folder: Path, name: str) -> Any:
    """A JSON file of an experiment."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def index_page(papers: dict[str, list[Path]]) -> str:
    """A table of all experiments that have results."""
    lines = [INTRODUCTION]
    if papers:
        lines += ["| Experiment | What it is | Reproduces |", "| --- | --- | --- |"]
    for paper, folders in papers.items():
        for folder in folders:
            found = read(folder, "results.json")
            link = f"[`{folder.name}`]({paper}.md#{folder.name})"
            lines.append(f"| {link} | {found['title']} | {found['paper']} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def paper_page(paper: str, folders: list[Path]) -> str:
    """One section for each experiment of a paper."""
    return "\n\n".join([f"# {title(paper)}", *(section(paper, folder) for folder in folders)])


def section(paper: str, folder: Path) -> str:
    """Headline, command, summary, pictures, claims, and where the figures come from."""
    found, environment = read(folder, "results.json"), read(folder, "environment.json")
    name = folder.name
    files = f"{paper}/{name}"
    pictures = [f"![{file.stem}]({files}/{file.name})" for file in sorted(folder.glob("*.png"))]
    minutes = environment["cell_seconds"] / 60
    return "\n\n".join(
        [
            f"## {name}",
            f"**{found['title']}** ({found['paper']}).",
            f"    bochner reproduce {name}",
            demoted((folder / "summary.md").read_text(encoding="utf-8")),
            *pictures,
            "### Published and ours",
            (folder / "claims.md").read_text(encoding="utf-8").strip(),
            f"All {len(found['rows'])} rows: [results.csv]({files}/results.csv). {environment['cells']}"
            f" cells, {minutes:.1f} minutes of work; processes: {environment['workers']}, threads of"
            f" each: {environment['threads']}; torch {environment['torch']},"
            f" {environment['time'][:10]}.",
        ]
    )


def demoted(markdown: str) -> str:
    """Markdown whose highest heading stands just below that of its section; code is left alone."""
    parts = re.split(r"(^```.*?^```)", markdown.strip(), flags=re.MULTILINE | re.DOTALL)
    heading = re.compile(r"^(#+) ", re.MULTILINE)
    levels = [len(marks) for part in parts[::2] for marks in heading.findall(part)]
    deeper = "#" * max(0, 3 - min(levels, default=3))
    parts[::2] = [heading.sub(rf"{deeper}\1 ", part) for part in parts[::2]]
    return "".join(parts)
