"""What an exact CRF over all labels would ask for: measured at few labels, stated for all of them.

One verse of 12 words, log Z and its gradient, one thread. Bytes are what each program lays out, from its
source: they are measured at small sizes as the peak of a process of its own, to check the formula.

    torch-struct    T/2 products of two tables laid out as X^3 floats
    pytorch-crf     X^2 sums for every edge, two tensors of them kept for the gradient
    exact table     scaled matrix products, written out: K and its gradient, X^2 each
    low rank        ours, m = 64: two X m features and their gradients
"""

from __future__ import annotations

import math

from bochner.reproduce import Cell, Row
from experiments.structured.chain_contestants import (
    CONTESTANTS,
    EXACT,
    MARGINALS,
    TRAINING,
    pytorch_crf_bytes,
    torch_struct_bytes,
)
from experiments.structured.chain_problems import Setting
from experiments.structured.chain_race import race
from experiments.structured.tagger_corpus import bible

STEPS, RANK = 12, 64
SIZES = {  # program -> (form, small numbers of labels, large ones)
    "torch-struct": (MARGINALS, (32, 64), (128, 256)),
    "pytorch-crf": (TRAINING, (32, 64), (512, 1024)),
    EXACT: (MARGINALS, (64, 128), (2048, 4096)),
    "bochner LowRankChain": (TRAINING, (64, 128), (4096, 14057)),
}
POWER = {"torch-struct": 3, "pytorch-crf": 2, EXACT: 2, "bochner LowRankChain": 1}


def laid_out(program: str, states: int) -> float:
    """Bytes for one verse, from the program's source."""
    if program == "torch-struct":
        return torch_struct_bytes(states, STEPS, MARGINALS)
    if program == "pytorch-crf":
        return pytorch_crf_bytes(states, STEPS, TRAINING)
    if program == EXACT:
        return 8.0 * states**2
    return 16.0 * states * RANK


def cost_rows(cell: Cell) -> list[Row]:
    """A row for each program and size, and one for all labels, extrapolated by the power of X."""
    made = bible(int(cell["verses"]))
    quick = cell["verses"] != 0
    edges = int((made.lengths[made.train] - 1).sum())
    rows: list[Row] = []
    for program, (form, small, large) in SIZES.items():
        (contestant,) = (c for c in CONTESTANTS if c.name == program)
        measured = []
        for states in small if quick else large:
            setting = Setting(steps=STEPS, num_features=RANK, dim=16)
            (row,) = race(
                setting,
                states,
                form,
                budget=0.1 if quick else 0.3,
                memory=not quick,
                contestants=[contestant],
            )
            measured.append(row)
            rows.append(
                {**cell, "program": program, "labels": states, "extrapolated": False}
                | {"seconds": row["seconds"], "bytes": row["bytes"], "reason": row["reason"]}
                | {"laid_out": laid_out(program, states), "epoch_hours": None}
            )
        rows.append({**cell, **_for_all(program, made.num_labels, edges, measured)})
    return rows


def _for_all(program: str, labels: int, edges: int, measured: list[Row]) -> Row:
    """From the largest size that was measured, by the power with which the program grows."""
    known = [r for r in measured if r["seconds"] is not None]
    seconds = hours = None
    if known:
        last = known[-1]
        growth = (labels / float(last["states"] or 1)) ** POWER[program]
        seconds = float(last["seconds"] or math.nan) * growth
        hours = seconds / (STEPS - 1) * edges / 3600
    return {
        "program": program,
        "labels": labels,
        "extrapolated": True,
        "seconds": seconds,
        "bytes": None,
        "reason": None if known else (measured[-1]["reason"] if measured else None),
        "laid_out": laid_out(program, labels),
        "epoch_hours": hours,
    }
