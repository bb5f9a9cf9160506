"""Handwritten words with a CRF over 26 letters: does a cheaper matrix of transitions cost accuracy?

    p(letters | images) = exp(sum_t (W image_t + c)[letter_t]) prod_t K(letter_t, letter_{t+1}) / Z

The emissions are linear in the 128 pixels; what is compared is K. 26 letters need no approximation, which is
why they serve here: the exact CRF is there to be compared with. As in the set's first use, a model is trained
on one fold (about 690 words) and tested on the nine others. All models share the optimiser, its
steps and the penalty on W, chosen with the exact CRF, fold 0 to train with and fold 1 to judge by.

Two kinds of rows: `trained` is a CRF trained with these transitions; `replaced` is the exact CRF over
embeddings, whose transitions are replaced after training by features of the embeddings (judged on one fold,
for its time).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bochner.data import Letters, ocr_letters
from bochner.reproduce import Cell, Experiment, Row
from bochner.structured import (
    CRF,
    Chain,
    EmbeddingTransitions,
    HybridChain,
    HybridTransitions,
    LearnedTransitions,
    LowRankChain,
    LowRankTransitions,
    RandomFeatureTransitions,
)
from experiments.structured.letters_report import draw, measured, summary

LETTERS = 26
DIM = 16  # of the embeddings of letters
FEATURES, BEAM = 32, 8  # of a transition that is trained through its features
RANKS = (4, 8, 16, LETTERS)
REPLACED = ((64, 0), (256, 0), (1024, 0), (64, 8), (64, 16), (64, LETTERS))  # (m, beam)
DIAGNOSED = 8  # words
FOLDS = 5  # that are trained on, one after the other
STEPS, BATCH, RATE, PENALTY = 400, 64, 0.1, 1e-3
SEEDS = 1000  # between the seeds of two folds


def some(words: Letters, count: int) -> Letters:
    """Random words: the published order is that of the vocabulary."""
    order = torch.randperm(len(words.labels), generator=torch.Generator().manual_seed(0))
    return Letters(*(part[order[:count]] for part in words))


class NoTransitions(LearnedTransitions):
    """K = 1: every letter by itself."""

    def chain(self, unaries: Tensor, *, lengths: Tensor | None = None) -> Chain:
        one = unaries.new_zeros(self.num_states, 1)
        return LowRankChain(one, one, unaries, lengths=lengths)


Make = Callable[[torch.Generator], LearnedTransitions | None]
KINDS: dict[str, Make] = {
    "none": lambda g: NoTransitions(LETTERS),
    "table": lambda g: None,
    "embeddings": lambda g: EmbeddingTransitions(LETTERS, DIM, generator=g),
    **{f"low rank {m}": lambda g, m=m: LowRankTransitions(LETTERS, m, generator=g) for m in RANKS},
    "random features": lambda g: RandomFeatureTransitions(
        LETTERS, DIM, num_features=FEATURES, generator=g
    ),
    "hybrid": lambda g: HybridTransitions(
        LETTERS, DIM, num_features=FEATURES, beam=BEAM, generator=g
    ),
}


class Tagger(nn.Module):
    """Linear emissions and a CRF."""

    def __init__(self, make: Make, generator: torch.Generator) -> None:
        super().__init__()
        self.emissions = nn.Linear(128, LETTERS)
        nn.init.zeros_(self.emissions.weight)  # convex but for K: no symmetry to break
        nn.init.zeros_(self.emissions.bias)
        transitions = make(generator)
        self.crf = CRF(LETTERS, batch_first=True, transitions=transitions, generator=generator)

    def chain(self, words: Letters) -> Chain:
        return self.crf.chain(self.emissions(words.pixels.float()), words.mask)

    def log_likelihood(self, words: Letters) -> Tensor:
        """For each letter."""
        inputs = self.emissions(words.pixels.float()), words.labels, words.mask
        return self.crf(*inputs, reduction="token_mean")


def trained(make: Make, words: Letters, steps: int, generator: torch.Generator) -> Tagger:
    """Adam with a rate that falls to zero, on random words."""
    tagger = Tagger(make, generator)
    optimiser = torch.optim.Adam(tagger.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        rows = torch.randint(len(words.labels), (BATCH,), generator=generator)
        batch = Letters(*(part[rows] for part in words))
        optimiser.zero_grad()
        loss = PENALTY * tagger.emissions.weight.square().sum() - tagger.log_likelihood(batch)
        loss.backward()
        optimiser.step()
        schedule.step()
    return tagger


class Judged(NamedTuple):
    """What a chain says of the test words."""

    accuracy: float  # of letters, by posterior decoding
    words: float  # right from the first letter to the last, by the best path
    viterbi: float  # of letters, by the best path
    log_likelihood: float  # for each letter, in nats
    log_z: Tensor  # for each word


def judged(chain: Chain, words: Letters) -> Judged:
    shown = words.mask
    best, likely = chain.mode().states, chain.posterior_decode().states
    log_z = chain.log_partition
    return Judged(
        float((likely == words.labels)[shown].double().mean()),
        float(((best == words.labels) | ~shown).all(-1).double().mean()),
        float((best == words.labels)[shown].double().mean()),
        float((chain.score(words.labels) - log_z).sum() / shown.sum()),
        log_z,
    )


def row_of(found: Judged) -> Row:
    names = ("accuracy", "words", "viterbi", "log_likelihood")
    return {name: round(float(getattr(found, name)), 6) for name in names}


def replacements(tagger: Tagger, words: Letters, seed: int) -> list[Row]:
    """The exact CRF over embeddings, its transitions replaced by features and hybrids."""
    transitions = tagger.crf.transitions
    a, b = transitions.before.detach(), transitions.after.detach()
    exact = tagger.chain(words)
    truth = judged(exact, words)
    rows: list[Row] = [
        {"transitions": "embeddings", "how": "replaced", "log_z_error": 0.0, **row_of(truth)}
    ]
    for at, (features, beam) in enumerate(REPLACED):
        generator = torch.Generator().manual_seed(seed + at)
        given = {"num_features": features, "lengths": exact.lengths, "generator": generator}
        if beam:
            chain = HybridChain.from_embeddings(a, b, exact.unaries, beam=beam, **given)
        else:
            chain = LowRankChain.from_embeddings(a, b, exact.unaries, **given)
        found = judged(chain, words)
        error = ((found.log_z - truth.log_z).abs().sum() / words.lengths.sum()).item()
        row: Row = {"transitions": "hybrid" if beam else "random features", "features": features}
        row |= {"beam": beam, "how": "replaced", "log_z_error": float(f"{error:.4g}")}
        rows.append(row | row_of(found))
        if not beam:
            few = exact.unaries[:DIAGNOSED], exact.lengths[:DIAGNOSED]
            given = {"num_features": features, "generator": generator}
            found = LowRankChain.from_embeddings(a, b, few[0], lengths=few[1], **given)
            diagnosis = found.diagnose(generator=generator)
            rows[-1] |= {
                "chi": float(f"{diagnosis.chi.median().item():.3g}"),
                "eta": float(f"{diagnosis.eta.median().item():.3g}"),
                "verdict": diagnosis.verdict,
            }
    return rows


def identities(tagger: Tagger, words: Letters) -> float:
    """Largest change of a word's log Z if the trained table is written as K = 1 K, of rank 26."""
    exact = tagger.chain(words)
    table = tagger.crf.transitions.detach()
    one = torch.eye(LETTERS).log()
    low_rank = LowRankChain(one, table.T, exact.unaries, lengths=exact.lengths)
    return float((low_rank.log_partition - exact.log_partition).abs().max())


def cells(quick: bool) -> list[Cell]:
    """One for each transition and fold."""
    kinds = ["none", "table", "embeddings", "low rank 26", "hybrid"] if quick else list(KINDS)
    folds, steps = (range(1), 60) if quick else (range(FOLDS), STEPS)
    return [
        {"transitions": kind, "fold": fold, "steps": steps, "test": 300 if quick else 10_000}
        for fold in folds
        for kind in kinds
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Train on one fold, test on the others."""
    letters = ocr_letters()
    kind, fold = str(cell["transitions"]), int(cell["fold"])
    test = some(letters.fold([n for n in range(10) if n != fold]), int(cell["test"]))
    generator = torch.Generator().manual_seed(SEEDS * fold)
    start = time.process_time()
    tagger = trained(KINDS[kind], letters.fold([fold]), int(cell["steps"]), generator)
    seconds = time.process_time() - start
    with torch.no_grad():
        chain = tagger.chain(test)
        row: Row = {
            "transitions": kind,
            "fold": fold,
            "how": "trained",
            **row_of(judged(chain, test)),
        }
        row["parameters"] = sum(p.numel() for p in tagger.crf.parameters()) - 2 * LETTERS
        row["seconds"] = round(seconds, 2)
        row["train_log_likelihood"] = round(tagger.log_likelihood(letters.fold([fold])).item(), 6)
        if kind == "table":
            row["rank_26_error"] = float(f"{identities(tagger, test):.3g}")
        rows = [row]
        if kind == "embeddings":
            one = some(letters.fold([fold + 1]), int(cell["test"]))
            rows += [r | {"fold": fold} for r in replacements(tagger, one, SEEDS * fold)]
    return rows


EXPERIMENT = Experiment(
    name="structured-letters",
    title="OCR letters: CRFs with exact, low-rank and hybrid transitions",
    paper="Chiu, Deng and Rush, Low-Rank Constraints for Fast Inference in Structured Models, 2021",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
