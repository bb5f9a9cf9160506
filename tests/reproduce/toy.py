"""A small paper with one experiment, written into a folder of its own."""

from __future__ import annotations

from pathlib import Path

SCRIPT = '''
"""A toy: squares of numbers, with noise."""
import os
import torch
from bochner.reproduce import Experiment


def cells(quick):
    return [{"n": n, "seed": 7} for n in range(2 if quick else 4)]


def noise(seed):
    return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def run(cell, folder):
    (folder / f"ran-{cell['n']}-{os.getpid()}-{len(list(folder.iterdir()))}").touch()
    if (folder.parent / "fail").exists() and cell["n"] == 2:
        raise RuntimeError("out of luck")
    return [{"n": cell["n"], "square": cell["n"] ** 2 + noise(cell["seed"])}]


def draw(rows, folder):
    (folder / "squares.png").write_bytes(b"a picture of %d" % len(rows))


def measured(rows):
    squares = [row["square"] for row in rows]
    return {"largest": max(squares), "range": (min(squares), max(squares)), "new": 3.0}


def summary(rows):
    return f"# Squares\\n\\n{len(rows)} squares."


EXPERIMENT = Experiment(
    name="toy", title="Squares", paper="Euclid, section 1",
    cells=cells, run=run, draw=draw, measured=measured, summary=summary,
)
'''

CLAIMS = """
[[claim]]
id = "largest"
statement = "the largest |square|"
source = "paper"
where = "Table 1"
value = 9

[[claim]]
id = "range"
experiment = "toy"
statement = "all squares"
source = "public code"
where = "cell 3"
value = [0, 5]

[[claim]]
id = "new"
statement = "not measured before"
source = "closed form"
where = "–"

[[note]]
text = "The numbers of the paper are not to be had."
"""


def write_toy(folder: Path, script: str = SCRIPT, claims: str | None = CLAIMS) -> Path:
    """folder/experiments/squares/toy.py with its claims; returns folder/experiments."""
    paper = folder / "experiments" / "squares"
    (paper / "claims").mkdir(parents=True, exist_ok=True)
    (paper / "toy.py").write_text(script, encoding="utf-8")
    if claims is not None:
        (paper / "claims" / "toy.toml").write_text(claims, encoding="utf-8")
    return folder / "experiments"
