"""A CRF tagger with 14,057 labels: for every word of the King James Bible, which word it translates.

    p(labels | verse) = exp(sum_t u_t(l_t)) prod_t K(l_t, l_{t+1}) / Z,       K of low rank, learned

All 14,057 labels stand at every word. The exact table K has 198 million entries; what exact programs would
need for it is in the part `costs`. Parts:

    training    after a first pass without transitions: a second pass with K of low rank, learned together
                with the emissions, beside the same pass without transitions
    replaced    another K, given: exp(a_x . b_y) with embeddings fitted to the bigrams of labels; exact, and
                approximated by random features, hybrid, beam and truncated SVD; with diagnose()
    costs       one verse's log Z and gradient by exact programs at small numbers of labels, and what
                follows for all of them
"""

from __future__ import annotations

from pathlib import Path

from bochner.reproduce import Cell, Experiment, Row
from experiments.structured import tagger_report as report
from experiments.structured.tagger_corpus import bible
from experiments.structured.tagger_costs import cost_rows
from experiments.structured.tagger_replaced import replaced_rows
from experiments.structured.tagger_training import (
    Tagger,
    first_pass,
    judged,
    low_rank_transitions,
    second_pass,
)

SEEDS = 3
RANKS = (16, 64)
MAIN_RANK = 64  # with all seeds
FULL: Cell = {"verses": 0, "tested": 0, "dim": 32}
QUICK: Cell = {"verses": 320, "tested": 0, "dim": 8}


def cells(quick: bool) -> list[Cell]:
    """Ranks and seeds (rank 0: no transitions); the given potentials; the costs."""
    sizes = QUICK if quick else FULL
    ranks = (0, 4) if quick else (0, *RANKS)
    found: list[Cell] = [
        {"part": "training", "rank": rank, "seed": seed, **sizes}
        for rank in ranks
        for seed in range(1 if quick else SEEDS)
        if quick or seed == 0 or rank in (0, MAIN_RANK)
    ]
    found.append({"part": "replaced", "rank": 0, "seed": 0, **sizes, "tested": 8 if quick else 96})
    found.append({"part": "costs", "rank": 0, "seed": 0, **sizes})
    return found


def run(cell: Cell, folder: Path) -> list[Row]:
    """Rows of one cell."""
    if cell["part"] == "costs":
        return cost_rows(cell)
    folder.mkdir(parents=True, exist_ok=True)
    return (
        training_rows(cell, folder) if cell["part"] == "training" else replaced_rows(cell, folder)
    )


def training_rows(cell: Cell, folder: Path) -> list[Row]:
    """Before the second pass (transitions as they were counted) and after it."""
    made, seed, rank = bible(int(cell["verses"])), int(cell["seed"]), int(cell["rank"])
    tagger = Tagger(made, low_rank_transitions(made, rank, seed) if rank else None, seed)
    tagger.emissions.load_state_dict(first_pass(made, seed, folder)["emissions"])
    rows = []
    for stage in ("one pass", "two passes"):
        spent = 0.0
        if stage == "two passes":
            name = f"tagger-{made.num_labels}-{rank}-{seed}.pt"
            spent = second_pass(tagger, seed, folder / name)
        found = judged(tagger, made.test)
        rows.append(
            {
                **cell,
                "stage": stage,
                "labels": made.num_labels,
                "training_words": int(made.lengths[made.train].sum()),
                "test_words": int(made.lengths[made.test].sum()),
                "accuracy": found.accuracy,
                "testament": found.testament,
                "nll": found.nll,
                "cpu_seconds": spent,
            }
        )
    return rows


EXPERIMENT = Experiment(
    name="structured-tagger",
    title="A CRF tagger with 14,057 labels",
    paper="After Chiu, Deng and Rush, Low-Rank Constraints for Fast Inference in Structured Models, 2021",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=report.measured,
    summary=report.summary,
    requires=("matplotlib",),
)
