"""Time, memory and error of a chain's log Z against the number of states, beside the exact ways to it.

T = 256 steps, m = 256 features, one sequence, float32, one thread: 128 to 65,536 states. Parts:

    race     low-rank chain, hybrid, exact recursions, torch-struct, pytorch-crf, hmmlearn at one size and for
             one form (log Z; with the marginals; with the gradient): CPU seconds, peak memory, and the
             difference from the dense recursion in float64. Who would take or ask for too much is left
             out with the reason; who does a part of the chain says which
    error    log Z of random features of given embeddings minus the exact one, over draws: what an
             approximation costs in accuracy (a low-rank chain of its own has no such error)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bochner.reproduce import Cell, Experiment, Row
from bochner.structured import HybridChain, LowRankChain
from bochner.structured.errors.diagnose import diagnose
from experiments.structured import scaling_report as report
from experiments.structured.chain_contestants import FORMS, MARGINALS, PARTITION, TRAINING
from experiments.structured.chain_problems import Problem, Setting, forward
from experiments.structured.chain_race import one_thread, race

SIZES = {
    PARTITION: (128, 512, 1024, 2048, 4096, 16384, 65536),
    MARGINALS: (128, 1024, 4096, 16384),
    TRAINING: (128, 1024, 4096, 16384),
}
MEMORY_SIZES = SIZES[MARGINALS] + SIZES[PARTITION][-1:]  # not at every size: a process each
ERROR_SIZES, DRAWS = (1024, 4096), 8
STEPS, FEATURES, BEAM = 256, 256, 64
QUICK_STEPS, QUICK_FEATURES, QUICK_SIZES = 16, 32, (32, 96)


def cells(quick: bool) -> list[Cell]:
    """A form and a size; sizes at which the error is measured."""
    found: list[Cell] = []
    for form in FORMS:
        for states in QUICK_SIZES if quick else SIZES[form]:
            sizes = {"steps": QUICK_STEPS if quick else STEPS}
            sizes["num_features"] = QUICK_FEATURES if quick else FEATURES
            found.append({"part": "race", "form": form, "states": states, **sizes, "quick": quick})
    for states in QUICK_SIZES[-1:] if quick else ERROR_SIZES:
        for std in (0.5, 1.0):
            sizes = {"steps": QUICK_STEPS if quick else STEPS, "num_features": FEATURES}
            found.append(
                {"part": "error", "states": states, "logit_std": std, **sizes}
                | {"draws": 3 if quick else DRAWS}
            )
    return found


def run(cell: Cell, folder: Path) -> list[Row]:
    """Rows of one cell."""
    if cell["part"] == "error":
        return error_rows(cell)
    setting = Setting(steps=int(cell["steps"] or 0), num_features=int(cell["num_features"] or 0))
    quick = bool(cell["quick"])
    rows = race(
        setting,
        int(cell["states"] or 0),
        str(cell["form"]),
        budget=0.02 if quick else 0.6,
        memory=cell["states"] in MEMORY_SIZES,
    )
    return [{**cell, **row} for row in rows]


def error_rows(cell: Cell) -> list[Row]:
    """(log Z^ - log Z) / T over draws: features shared by all edges, 8 blocks in turn, and the hybrid."""
    setting = Setting(
        steps=int(cell["steps"] or 0),
        num_features=int(cell["num_features"] or 0),
        logit_std=float(cell["logit_std"] or 0),
    )
    made = Problem(setting, int(cell["states"] or 0))
    a, b = made.embeddings
    u = made.unaries
    with torch.no_grad(), one_thread():
        exact, _ = forward((a @ b.T).exp_().double(), u.double())
        rows: list[Row] = []
        for way in ("shared", "8 blocks", "hybrid"):
            errors = torch.tensor(
                [drawn(way, made, seed) - exact for seed in range(int(cell["draws"] or 0))]
            )
            errors = errors.double() / setting.steps
            found = diagnosis(made) if way == "shared" else {}
            rows.append(
                {**cell, "way": way, "exact": exact, "mean": float(errors.mean())}
                | {"rms": float(errors.square().mean().sqrt()), "worst": float(errors.abs().max())}
                | found
            )
    return rows


def drawn(way: str, made: Problem, seed: int) -> float:
    """log Z of one draw of features, m = 256 an edge."""
    a, b = made.embeddings
    generator = torch.Generator().manual_seed(seed)
    count = made.setting.num_features
    value: Tensor
    if way == "hybrid":
        value = HybridChain.from_embeddings(
            a, b, made.unaries, num_features=count, beam=BEAM, generator=generator
        ).log_partition
    else:
        value = LowRankChain.from_embeddings(
            a,
            b,
            made.unaries,
            num_features=count,
            blocks=8 if way == "8 blocks" else 1,
            generator=generator,
        ).log_partition
    return float(value)


def diagnosis(made: Problem) -> Row:
    """What diagnose() foresees, for each word of the sequence."""
    generator = torch.Generator().manual_seed(0)
    count = made.setting.num_features
    chain = LowRankChain.from_embeddings(
        *made.embeddings, made.unaries, num_features=count, generator=generator
    )
    found = diagnose(chain, num_paths=16, generator=generator)
    return {
        "verdict": found.verdict,
        "chi": float(found.chi),
        "eta": float(found.eta),
        "predicted_std": float(found.std) / made.setting.steps,
    }


EXPERIMENT = Experiment(
    name="structured-scaling",
    title="A chain's log Z with 128 to 65,536 states",
    paper="After Chiu, Deng and Rush, Low-Rank Constraints for Fast Inference in Structured Models, 2021;"
    " measurements are ours",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=report.measured,
    summary=report.summary,
    requires=("matplotlib",),
)
