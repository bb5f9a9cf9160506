"""Kernel whitening of sentence embeddings: isotropy, retrieval, and a shortcut for a classifier.

Passages of the Brown corpus, embedded by MiniLM. Two questions, for the embeddings as they are, whitened
linearly, and whitened in the feature space of a Gaussian kernel:

retrieval  whitening fitted to passages of some documents; for passages of others, is the most similar
           passage (by the cosine) one of the same document?
shortcut   a logistic regression tells passages in which somebody says I, we or you from others. In 95 % of
           its training rows that is also what tells fiction from other prose; in the test rows it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bochner.reproduce import Cell, Experiment, Row
from experiments.kernel_machines.passages import Passage, embeddings, passages
from experiments.kernel_machines.whitening_report import draw, measured, summary

Matrix = NDArray[np.float64]
SHARE = 0.95  # of training rows in which the shortcut works
GAMMA = 0.5  # |x - y|^2 / 2 of unit vectors is 1 minus their cosine
SHRINKAGE = 0.1  # of every whitening
PENALTIES = (0.01, 1.0, 100.0)  # C of the logistic regression
GROUPS = [(fiction, person) for fiction in (False, True) for person in (False, True)]


def linear(train: Matrix) -> Callable[[Matrix], Matrix]:
    """Whitening of the embeddings themselves, with the same shrinkage."""
    mean, C = train.mean(axis=0), np.cov(train.T, bias=True)
    size = len(C)
    values, vectors = np.linalg.eigh(
        (1 - SHRINKAGE) * C + SHRINKAGE * np.trace(C) / size * np.eye(size)
    )
    root = vectors / np.sqrt(values) @ vectors.T
    return lambda rows: (rows - mean) @ root


def kernel(train: Matrix, features: str, size: int, seed: int, *, whiten: bool) -> Callable:
    from bochner.sklearn import KernelWhitening, RandomFeatures

    given = {"features": features, "n_components": size, "gamma": GAMMA, "random_state": seed}
    if whiten:
        return KernelWhitening(shrinkage=SHRINKAGE, **given).fit(train).transform
    return RandomFeatures(**given).fit(train).transform


def representations(train: Matrix, size: int, seed: int) -> dict[str, Callable[[Matrix], Matrix]]:
    """By name, fitted to the training rows."""
    return {
        "embeddings": lambda rows: rows,
        "whitened": linear(train),
        "Nyström": kernel(train, "nystroem", size, seed, whiten=False),
        "Nyström, whitened": kernel(train, "nystroem", size, seed, whiten=True),
        "random features": kernel(train, "trigonometric", size, seed, whiten=False),
        "random features, whitened": kernel(train, "trigonometric", size, seed, whiten=True),
    }


def retrieval(rows: Matrix, documents: NDArray[np.str_]) -> Row:
    """Of passages by the cosine, and how isotropic they are."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = documents[:, None] == documents
    different = cosines[~same]
    np.fill_diagonal(cosines, -np.inf)
    values = np.linalg.eigvalsh(np.cov(unit.T)).clip(0)
    return {
        "same_document": float((documents[cosines.argmax(axis=1)] == documents).mean()),
        "mean_cosine": float(different.mean()),
        "participation": float(values.sum() ** 2 / np.square(values).sum()),
    }


def shortcut(
    train: Matrix,
    test: Matrix,
    labels: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    groups: NDArray[np.int64],
    weight: Matrix | None = None,
) -> list[Row]:
    """Accuracy, mean and worst over the four groups of test rows, for every penalty."""
    from sklearn.linear_model import LogisticRegression

    rows = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=1000)
        right = model.fit(train, labels[0], sample_weight=weight).predict(test) == labels[1]
        shares = [float(right[groups == group].mean()) for group in np.unique(groups)]
        rows.append({"C": penalty, "accuracy": float(np.mean(shares)), "worst": min(shares)})
    return rows


def sample(
    found: Sequence[Passage], train: int, test: int, rng: np.random.Generator
) -> tuple[list[Passage], list[Passage], NDArray[np.int64]]:
    """Training passages with the shortcut, test passages without, and the groups of the latter."""
    often, seldom = round(SHARE * train / 2), round((1 - SHARE) * train / 2)
    chosen: tuple[list[Passage], list[Passage]] = ([], [])
    for group in GROUPS:
        members = [p for p in found if (p.fiction, p.person) == group]
        order = rng.permutation(len(members))
        count = often if group[0] == group[1] else seldom
        chosen[0].extend(members[i] for i in order[:count])
        chosen[1].extend(members[i] for i in order[count : count + test])
    return *chosen, np.repeat(np.arange(4), test)


def documents(found: Sequence[Passage], count: int, each: int, rng: np.random.Generator) -> list:
    """So many passages of so many documents, document by document."""
    by_name: dict[str, list[Passage]] = {}
    for passage in found:
        by_name.setdefault(passage.document, []).append(passage)
    names = [name for name, members in by_name.items() if len(members) >= each]
    return [
        by_name[names[i]][j]
        for i in rng.permutation(len(names))[:count]
        for j in rng.permutation(len(by_name[names[i]]))[:each]
    ]


def cells(quick: bool) -> list[Cell]:
    """One for each draw of passages."""
    if quick:
        return [{"seed": 0, "train": 200, "test": 15, "documents": 12, "features": 64}]
    sizes = {"train": 1000, "test": 150, "documents": 80, "features": 512}
    return [{"seed": seed, **sizes} for seed in range(5)]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Embed, whiten, judge."""
    from bochner.sklearn import KernelWhitening, RandomFeatures, decorrelation_weights

    seed, size = int(cell["seed"]), int(cell["features"])
    rng = np.random.default_rng(seed)
    found = passages()
    train, test, groups = sample(found, int(cell["train"]), int(cell["test"]), rng)
    spread = documents(found, int(cell["documents"]), 10, rng)
    points = embeddings([*train, *test, *spread]).astype(np.float64)
    a, b, c = np.split(points, [len(train), len(train) + len(test)])
    labels = np.array([p.person for p in train]), np.array([p.person for p in test])
    names = np.array([p.document for p in spread])

    rows: list[Row] = []
    half = len(c) // 2
    for name, transform in representations(c[:half], min(size, half), seed).items():
        row = retrieval(transform(c[half:]), names[half:])
        rows.append({"question": "retrieval", "rows": name, "seed": seed, **row})
    for name, transform in representations(a, size, seed).items():
        for row in shortcut(transform(a), transform(b), labels, groups):
            rows.append({"question": "shortcut", "rows": name, "seed": seed, **row})
    plain = RandomFeatures(
        features="nystroem", n_components=size // 4, gamma=GAMMA, random_state=seed
    ).fit_transform(a)
    weight = decorrelation_weights(plain, penalty=1e-3)
    told = np.array([p.fiction for p in train]) == labels[0]
    known = np.where(told, 0.5 / told.mean(), 0.5 / (1.0 - told.mean()))
    for name, w in (("decorrelation weights", weight), ("weights that know the groups", known)):
        for row in shortcut(a, b, labels, groups, w):
            rows.append({"question": "shortcut", "rows": name, "seed": seed, **row})

    exact = KernelWhitening(n_components=64, shrinkage=0.0, gamma=GAMMA, random_state=seed)
    error = np.abs(np.cov(exact.fit_transform(a).T, bias=True) - np.eye(64)).max()
    rows.append({"question": "isotropy", "rows": "training", "seed": seed, "error": float(error)})
    return rows


EXPERIMENT = Experiment(
    name="kernel-whitening",
    title="Whitening sentence embeddings, linearly and in a kernel's feature space",
    paper="Gao et al., Kernel-Whitening: Overcome Dataset Bias with Isotropic Sentence Embedding, 2022",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn", "transformers"),
)
