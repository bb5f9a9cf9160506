"""Ridge regression and classification on real data at equal m: does the sampler change what is predicted?

Every contestant turns rows into m features of the Gaussian kernel; the rest is one and the same ridge
regression on them (one-hot targets for classes, the largest score wins), so that only features are compared.
On some sets the exact kernel fits beside them, and a linear model without features always does.

Gamma and the penalty are chosen for every contestant, m and seed on validation rows that were not trained on;
the model is then fitted to training and validation rows together and judged once on test rows. A
seed draws the split (where no test rows were published) and the features; all contestants share the split,
hence their differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from bochner.gram import GramStatistics, Precision, Spectrum, accumulate, ridge
from bochner.gram.accumulate import RowFeatures
from bochner.reproduce import Cell, Experiment, Row
from bochner.sklearn.features import build_features
from experiments.kernel_machines.accuracy_report import (
    COSINE,
    EXACT,
    LINEAR,
    NYSTROEM,
    RBF_SAMPLER,
    draw,
    measured,
    summary,
)
from experiments.kernel_machines.datasets import Examples, examples, scaled

MULTIPLES = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0)  # of gamma = 1 / (d Var X)
ALPHAS = (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)
FEATURES = (256, 1024)
MOST_TEST, MOST_VALIDATION, MOST_TUNED = 10_000, 5_000, 20_000
MOST_EXACT = 5_500  # rows that the exact kernel is solved for: n^3 / 3 for each gamma and penalty
PROJECTIONS = ("iid", "orthogonal", "sobol")
SEEDS, FEW_SEEDS = 5, 3
LARGE = ("fashion", "flights")
SETS = (
    "spambase",
    "magic",
    "letter",
    "satellite",
    "dna",
    "shuttle",
    "fashion",
    "diamonds",
    "flights",
)


class Split(NamedTuple):
    """Rows x [n, d] float32 and targets y [n, k] float64, cut four ways."""

    x: np.ndarray
    y: np.ndarray
    tuned: np.ndarray
    validation: np.ndarray
    train: np.ndarray  # all that is not for testing: the validation rows too
    test: np.ndarray
    classes: int


def split(data: Examples, seed: int) -> Split:
    """A fifth to test with, or the published rows; of the others a fifth to validate; at most MOST_..."""
    count = len(data.y)
    order = np.random.default_rng(seed).permutation(count - data.test)
    if data.test:
        test = np.arange(count - data.test, count)
    else:
        test, order = np.split(order, [min(MOST_TEST, count // 5)])
    held = min(MOST_VALIDATION, len(order) // 5)
    x = scaled(data.x, order, known=data.scaled).astype(np.float32)
    y = data.y.astype(np.float64)[:, None]
    if data.classes:
        y = (data.y[:, None] == np.arange(data.classes)).astype(np.float64)
    else:
        y = (y - y[order].mean(0)) / y[order].std(0)
    tuned = order[held : held + MOST_TUNED]
    return Split(x, y, tuned, order[:held], order, test, data.classes)


def score(parts: Split, predicted: np.ndarray, rows: np.ndarray) -> float:
    """Share of classes that are right, or R2."""
    truth = parts.y[rows]
    if parts.classes:
        return float((predicted.argmax(1) == truth.argmax(1)).mean())
    return float(1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum())


@dataclass(frozen=True)
class Transformed:
    """Features of a fitted scikit-learn transformer."""

    transformer: Any
    num_features: int

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self.transformer.transform(rows)


@dataclass(frozen=True)
class Columns:
    """The columns themselves."""

    num_features: int

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows


Make = Callable[[np.ndarray, int, float, int], RowFeatures]
"""(rows to fit to, m, gamma, seed) -> features."""


def with_projection(name: str, features: str = "trigonometric") -> Make:
    def make(x: np.ndarray, m: int, gamma: float, seed: int) -> RowFeatures:
        return build_features(
            x,
            features=features,
            n_components=m,
            gamma=gamma,
            projection=name,
            random_state=seed,
        )

    return make


def of_scikit_learn(name: str) -> Make:
    def make(x: np.ndarray, m: int, gamma: float, seed: int) -> RowFeatures:
        from sklearn import kernel_approximation

        transformer = getattr(kernel_approximation, name)(
            gamma=gamma, n_components=m, random_state=seed
        )
        return Transformed(transformer.fit(x), m)

    return make


CONTESTANTS: dict[str, Make] = {
    RBF_SAMPLER: of_scikit_learn(RBF_SAMPLER),
    NYSTROEM: of_scikit_learn(NYSTROEM),
    **{name: with_projection(name) for name in PROJECTIONS},
    COSINE: with_projection("orthogonal", features="cosine"),
}


def sums(parts: Split, features: RowFeatures, rows: np.ndarray) -> GramStatistics:
    """Multiplied in float64, so that no penalty of the grid is below what the sums can bear."""
    return accumulate(features, parts.x[rows], parts.y[rows], precision=Precision.DOUBLE)


def tuned_ridge(parts: Split, features: RowFeatures) -> tuple[float, float]:
    """The best validation score of all penalties, and its penalty."""
    spectrum = Spectrum.of(sums(parts, features, parts.tuned))
    phi = features(parts.x[parts.validation]).astype(np.float64)
    weights, intercepts = spectrum.coef(ALPHAS), spectrum.intercept(ALPHAS)
    return max(
        (score(parts, phi @ w + b, parts.validation), alpha)
        for w, b, alpha in zip(weights, intercepts, ALPHAS, strict=True)
    )


def judged(parts: Split, features: RowFeatures, alpha: float) -> float:
    """Test score of the ridge regression on all rows that are not for testing."""
    solution = ridge(sums(parts, features, parts.train), alpha)
    predicted = [
        features(parts.x[rows]).astype(np.float64) @ solution.coef + solution.intercept
        for rows in np.array_split(parts.test, max(1, len(parts.test) // 4096))
    ]
    return score(parts, np.concatenate(predicted), parts.test)


def with_features(parts: Split, make: Make, m: int, seed: int) -> tuple[float, float, float]:
    """Test score, multiple of gamma and penalty."""
    scale = 1.0 / (parts.x.shape[1] * float(parts.x[parts.train].var(dtype=np.float64)))
    best = max(
        (*tuned_ridge(parts, make(parts.x[parts.tuned], m, scale * multiple, seed)), multiple)
        for multiple in MULTIPLES
    )
    _, alpha, multiple = best
    features = make(parts.x[parts.train], m, scale * multiple, seed)
    return judged(parts, features, alpha), multiple, alpha


def linear(parts: Split) -> tuple[float, float, float]:
    """The columns as they are."""
    features = Columns(parts.x.shape[1])
    _, alpha = tuned_ridge(parts, features)
    return judged(parts, features, alpha), 0.0, alpha


def exact(parts: Split) -> tuple[float, float, float]:
    """Kernel ridge regression with the kernel itself, targets centred."""
    scale = 1.0 / (parts.x.shape[1] * float(parts.x[parts.train].var(dtype=np.float64)))

    def predictions(
        seen: np.ndarray, asked: np.ndarray, multiple: float, alphas: Sequence[float]
    ) -> list[np.ndarray]:
        x, others = (parts.x[rows].astype(np.float64) for rows in (seen, asked))
        gamma = scale * multiple
        gram, cross = (np.exp(-gamma * cdist(a, x, "sqeuclidean")) for a in (x, others))
        mean, found = parts.y[seen].mean(0), []
        for alpha in alphas:
            shifted = gram + alpha * np.eye(len(x))
            factor = linalg.cho_factor(shifted, overwrite_a=True, check_finite=False)
            weights = linalg.cho_solve(factor, parts.y[seen] - mean, check_finite=False)
            found.append(cross @ weights + mean)
        return found

    best = max(
        (score(parts, predicted, parts.validation), alpha, multiple)
        for multiple in MULTIPLES
        for alpha, predicted in zip(
            ALPHAS, predictions(parts.tuned, parts.validation, multiple, ALPHAS), strict=True
        )
    )
    _, alpha, multiple = best
    (predicted,) = predictions(parts.train, parts.test, multiple, [alpha])
    return score(parts, predicted, parts.test), multiple, alpha


def cells(quick: bool) -> list[Cell]:
    """One for each set, contestant, number of features and seed."""
    sets = ("wine", "digits") if quick else SETS
    sizes = (64,) if quick else FEATURES
    return [
        {"set": name, "contestant": contestant, "features": m, "seed": seed}
        for name in sets
        for contestant, counts in (
            *((contestant, sizes) for contestant in CONTESTANTS),
            (LINEAR, (0,)),
            (EXACT, (0,)),
        )
        for m in counts
        for seed in range(2 if quick else FEW_SEEDS if name in LARGE else SEEDS)
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Tune, fit and judge one contestant; no row where the exact kernel does not fit."""
    data = examples(str(cell["set"]))
    seed, m, contestant = int(cell["seed"]), int(cell["features"]), str(cell["contestant"])
    parts = split(data, seed)
    if contestant == EXACT and len(parts.train) > MOST_EXACT:
        return []
    start = time.process_time()
    if contestant == LINEAR:
        found = linear(parts)
    elif contestant == EXACT:
        found = exact(parts)
    else:
        found = with_features(parts, CONTESTANTS[contestant], m, seed)
    row: Row = dict(cell)
    row |= {"dim": parts.x.shape[1], "classes": data.classes, "train": len(parts.train)}
    row |= {"test": len(parts.test), "score": round(found[0], 6)}
    row |= {"multiple": found[1], "alpha": found[2]}
    row["seconds"] = round(time.process_time() - start, 2)
    return [row]


EXPERIMENT = Experiment(
    name="kernel-accuracy",
    title="Ridge regression on real data at equal m: samplers, Nystroem, the exact kernel",
    paper="Yang, Li, Mahdavi, Jin and Zhou, Nystroem Method vs Random Fourier Features, 2012",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn", "rdata"),
)
