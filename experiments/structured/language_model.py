"""A hidden Markov language model on the King James Bible: more states, or a higher rank?

Verses of at most 60 tokens are sequences of their own; nine of ten train, the tenth tests. The models
differ in their transitions alone: exact softmax tables of embeddings, where X^2 is affordable, and
features of rank m that are trained and *are* the model. Beside them the trained softmax table of 256
states is approximated after training, by random features and by its SVD: what training through the
features is better than.

Models of up to 1,024 states are trained from nothing for three epochs. The two larger ones start from
the trained model of a quarter of their states, each of which becomes four with a little noise, and take
one epoch, or less than one, more: so they fit a budget of minutes, and are no test of training at once.

Reference:  Chiu, Deng and Rush, Low-Rank Constraints for Fast Inference in Structured Models, 2021, who
            train such models on the Penn Treebank, with other sizes and networks in front of the features.
"""

from __future__ import annotations

from pathlib import Path

import torch

from bochner.reproduce import Cell, Experiment, Row
from experiments.structured.kjv_corpus import Corpus, read_corpus
from experiments.structured.language_posthoc import METHODS, PLAIN, SVD, approximated, row_entropy
from experiments.structured.language_report import draw, measured, summary
from experiments.structured.language_training import Recipe, trained

SEEDS, DRAWS = 3, 3
FEATURES = (16, 64, 256, 1024, 4096, 16384)
RANKS = (8, 16, 32, 64, 128)
POSTHOC_STATES = 256
EPOCHS = 3.0
GROWTH = {4096: 1.0, 16384: 0.4}  # states -> epochs after the growth from a quarter of them
GROWN_TOKENS = 3_840  # of a batch: the softmax over words costs as much for few as for many

QUICK_VERSES, QUICK_STATES = 1_200, 32
QUICK_GROWTH = {512: 1.0}


def cells(quick: bool) -> list[Cell]:
    """Models, those that another one starts from first; then the approximations of one of them."""
    if quick:
        models = [(32, None, 0), (32, 8, 0), (128, 8, 0), (512, 8, 0)]
        sizes = {PLAIN: (16, 64), SVD: (8,)}
        return [{**cell, "quick": True} for cell in (*_models(models), *_posthoc(sizes))]
    models = [
        (1024, 64, 0),
        (1024, 256, 0),
        (4096, 64, 0),
        (4096, 256, 0),
        (16384, 64, 0),
        (1024, None, 0),
        (256, None, 0),
        (512, None, 0),
        (512, 64, 0),
        (256, 16, 0),
        (256, 64, 0),
        *((256, rank, seed) for rank in (None, 64) for seed in range(1, SEEDS)),
    ]
    sizes = {method: FEATURES for method in METHODS if method != SVD}
    posthoc = _posthoc({**sizes, SVD: RANKS})
    return [{**cell, "quick": False} for cell in (*_models(models), *posthoc)]


def _models(chosen: list[tuple[int, int | None, int]]) -> list[Cell]:
    return [
        {"part": "model", "states": states, "rank": rank, "seed": seed}
        for states, rank, seed in chosen
    ]


def _posthoc(sizes: dict[str, tuple[int, ...]]) -> list[Cell]:
    return [
        {"part": "posthoc", "method": method, "size": size}
        for method, some in sizes.items()
        for size in some
    ]


def recipe(states: int, rank: int | None, seed: int, *, quick: bool) -> Recipe:
    """How a model is trained: from nothing, or from the model of a quarter of its states."""
    growth = QUICK_GROWTH if quick else GROWTH
    verses = QUICK_VERSES if quick else None
    if states not in growth:
        epochs = 1.0 if quick else EPOCHS
        return Recipe(states, rank, seed, epochs=epochs, verses=verses)
    parent = recipe(states // 4, rank, seed, quick=quick)
    return Recipe(
        states,
        rank,
        seed,
        epochs=growth[states],
        verses=verses,
        tokens=GROWN_TOKENS,
        parent=parent,
    )


def run(cell: Cell, folder: Path) -> list[Row]:
    """Train a model (or take it from the scratch folder) and measure it, or approximate one."""
    quick = bool(cell["quick"])
    corpus = read_corpus(QUICK_VERSES if quick else None)
    if cell["part"] == "model":
        states, seed = int(cell["states"] or 0), int(cell["seed"] or 0)
        rank = None if cell["rank"] is None else int(cell["rank"])
        return _model(recipe(states, rank, seed, quick=quick), corpus, folder)
    states = QUICK_STATES if quick else POSTHOC_STATES
    exact = recipe(states, None, 0, quick=quick)
    return _approximations(cell, exact, corpus, folder)


def _model(chosen: Recipe, corpus: Corpus, folder: Path) -> list[Row]:
    """A row of the trained model, with what it took, and one of each evaluation on the way."""
    found = trained(chosen, corpus, folder)
    fields: Row = {"states": chosen.states, "rank": chosen.rank, "seed": chosen.seed}
    epochs, perplexity = found.curve[-1]
    row: Row = {
        "kind": "model",
        **fields,
        "epochs": epochs,
        "passes": chosen.passes,
        "perplexity": perplexity,
        "seconds": found.seconds,
        "parameters": sum(p.numel() for p in found.hmm.parameters()),
        "unigram": corpus.unigram_perplexity,
        "words": len(corpus.words),
        "train_verses": len(corpus.train),
        "test_verses": len(corpus.test),
        "train_tokens": sum(map(len, corpus.train)),
        "test_tokens": sum(map(len, corpus.test)),
        "row_entropy": row_entropy(found.hmm) if chosen.rank is None else None,
    }
    curve: list[Row] = [
        {"kind": "curve", **fields, "epochs": at, "perplexity": value} for at, value in found.curve
    ]
    return [row, *curve]


def _approximations(cell: Cell, exact: Recipe, corpus: Corpus, folder: Path) -> list[Row]:
    """One row for every draw of the features; the SVD is drawn once, being no draw."""
    hmm = trained(exact, corpus, folder).hmm
    method, size = str(cell["method"]), int(cell["size"] or 0)
    rows: list[Row] = []
    for seed in range(1 if method == SVD or cell["quick"] else DRAWS):
        generator = torch.Generator().manual_seed(seed)
        found = approximated(hmm, corpus, method, size, generator=generator)
        fields: Row = {"method": method, "size": size, "seed": seed, "states": exact.states}
        rows.append({"kind": "posthoc", **fields, **found})
    return rows


EXPERIMENT = Experiment(
    name="structured-language-model",
    title="A hidden Markov language model with up to 16,384 states",
    paper="Chiu, Deng and Rush, Low-Rank Constraints for Fast Inference in Structured Models, 2021",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
