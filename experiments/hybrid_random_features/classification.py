"""Nonparametric classification with one linear pass: do coupled directions classify better?

    p(class | x) proportional to sum_j K(x, x_j) [class of x_j],     K(x, y) = exp(-|x - y|^2 / (2 h^2))

The training set is read once into a state [m, classes], whatever its size. Inputs are standardised on the
training set. Two bandwidths h: "exact", the best for the exact kernel on validation data, and "features",
the best for independent positive features with m = 2 d on the same data (draws of their own). All of
features, directions and m then use these two.

Each set is split once. Intervals are over redraws of the directions, given the split. Orthogonal and
simplex directions are drawn from the same rotation and norms, hence their differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.state import AttentionState, absorb, read
from bochner.data.tabular import Tabular, keel_dataset, sklearn_dataset
from bochner.diagnostics import Interval
from bochner.feature_map import FeatureMap
from bochner.feature_maps.gerf import isotropic_proposal
from bochner.kernels import Gaussian
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.projections import IID, Orthogonal, Projection, Simplex
from bochner.random_features import RandomFeatures
from bochner.reproduce import Cell, Experiment, Row
from bochner.request import Request
from experiments.hybrid_random_features.classification_report import draw, measured, summary

KEEL = (
    "chess",
    "contraceptive",
    "letter",
    "magic",
    "phoneme",
    "satimage",
    "segment",
    "spambase",
    "vehicle",
)
SKLEARN = ("breast-cancer", "digits", "wine")
MOST = (2000, 500, 1000)  # examples to train on, to validate and to test with, at most
BANDWIDTHS = tuple(0.25 * 2 ** (k / 2) for k in range(13))  # 1/4 to 16
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # m / d
FAMILIES = ("positive", "gerf", "hyperbolic", "trigonometric")
COUPLINGS: dict[str, Projection] = {
    "iid": IID(),
    "orthogonal": Orthogonal(),
    "simplex": Simplex(),
}
REDRAWS = 64
BLOCK = 500  # examples whose features exist at one time


class Split(NamedTuple):
    """Standardised inputs [n, d] and one-hot classes [n, c] to train with, and two sets to judge by."""

    train: Tensor
    onehot: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(data: Tabular, most: Sequence[int] = MOST) -> Split:
    """Half of the examples at least to train with; columns that are constant there are dropped."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    count = len(order)
    sizes = [min(most[2], count // 4), min(most[1], count // 4)]
    test, validation, rest = order.split([*sizes, count - sum(sizes)])
    train = rest[: most[0]]
    mean, scale = data.features[train].mean(0), data.features[train].std(0)
    x = ((data.features - mean) / scale)[:, scale > 0].float()
    onehot = torch.nn.functional.one_hot(data.labels, len(data.class_names)).float()
    judges = [(x[rows], data.labels[rows]) for rows in (validation, test)]
    return Split(x[train], onehot[train], *judges)


def exact_scores(x: Tensor, train: Tensor, onehot: Tensor) -> Tensor:
    """p(class | x) with the exact kernel; inputs are divided by h already."""
    return torch.softmax(Gaussian().log(x, train), dim=-1) @ onehot


def class_sums(phi: FeatureMap, x: Tensor, train: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
    """Estimated sums of K over each class and over all, up to a positive factor for each x.

    Shapes:     [draws, n, classes] and [draws, n, 1]. The argument that is largest is the class also where
                a signed map gives a total that is not positive.
    """
    state = AttentionState(phi)
    for rows in torch.arange(len(train)).split(BLOCK):
        keys = phi.key(train[rows].expand(*phi.batch_shape, -1, -1))
        state = absorb(state, keys, onehot[rows], None)
    parts = [
        read(state, phi.query(block.expand(*phi.batch_shape, -1, -1)))[:2]
        for block in x.split(BLOCK)
    ]
    return torch.cat([p[0] for p in parts], dim=-2), torch.cat([p[1] for p in parts], dim=-2)


def feature_map(family: str, request: Request, train: Tensor) -> FeatureMap:
    """The family's map; GERF's A suits the mean |x+y|^2 over pairs of training examples."""
    if family == "gerf":
        mean_square = 2.0 * train.double().square().sum(-1).mean()  # inputs have mean zero
        return RandomFeatures(request, Positive(), isotropic_proposal(mean_square, request.dim))
    shapes = {
        "positive": Positive(),
        "hyperbolic": Hyperbolic(),
        "trigonometric": Trigonometric(),
    }
    return RandomFeatures(request, shapes[family])


def num_features(multiple: float, dim: int) -> int:
    """The even number next to multiple * dim (two columns a direction), at least 2."""
    return 2 * max(1, round(multiple * dim / 2))


def request_for(dim: int, features: int, coupling: str, draws: int, seed: int) -> Request:
    """`draws` independent maps at one time."""
    return Request(
        dim,
        features,
        kernel=Gaussian(),
        projection=COUPLINGS[coupling],
        batch_shape=(draws,),
        generator=torch.Generator().manual_seed(seed),
    )


def best_bandwidth(accuracies: Iterable[float]) -> float:
    """The largest of BANDWIDTHS whose accuracy is the best."""
    return max(zip(accuracies, BANDWIDTHS, strict=True))[1]


def tuned(parts: Split, seed: int) -> dict[str, float]:
    """The two bandwidths of the module's docstring."""
    x, labels = parts.validation
    dim = x.shape[-1]
    exact, features = [], []
    for h in BANDWIDTHS:
        train = parts.train / h
        scores = exact_scores(x / h, train, parts.onehot)
        exact.append(float((scores.argmax(-1) == labels).double().mean()))
        request = request_for(dim, num_features(2.0, dim), "iid", 8, seed)
        phi = feature_map("positive", request, train)
        sums = class_sums(phi, x / h, train, parts.onehot)[0]
        features.append(float((sums.argmax(-1) == labels).double().mean()))
    return {"exact": best_bandwidth(exact), "features": best_bandwidth(features)}


def cells(quick: bool) -> list[Cell]:
    """One for each set."""
    if quick:
        names = [("sklearn", "wine"), ("sklearn", "breast-cancer")]
    else:
        names = [("keel", name) for name in KEEL] + [("sklearn", name) for name in SKLEARN]
    redraws = 4 if quick else REDRAWS
    return [
        {"origin": origin, "set": name, "redraws": redraws, "seed": seed}
        for seed, (origin, name) in enumerate(names)
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Accuracy of all features, directions, numbers of features and both bandwidths on one set."""
    load = keel_dataset if cell["origin"] == "keel" else sklearn_dataset
    parts = split(load(str(cell["set"])))
    x, labels = parts.test
    majority = int(parts.onehot.sum(0).argmax())
    seed = 100 * int(
        cell["seed"]
    )  # the bandwidth is tuned with this one, the tests have the next ones
    rows: list[Row] = []
    for rule, h in tuned(parts, seed).items():
        exact = exact_scores(x / h, parts.train / h, parts.onehot).argmax(-1)
        shared: Row = {
            "set": cell["set"],
            "dim": x.shape[-1],
            "classes": parts.onehot.shape[-1],
            "train": len(parts.train),
            "majority": _share(labels == majority),
            "bandwidth": rule,
            "h": h,
            "exact": _share(exact == labels),
            "phi": float(f"{_median_phi(x / h, parts.train / h):.4g}"),
        }
        for family in FAMILIES:
            rows += _rows(shared, family, parts, exact, (int(cell["redraws"]), seed))
    return rows


def _rows(
    shared: Row, family: str, parts: Split, exact: Tensor, redraws_and_seed: tuple[int, int]
) -> list[Row]:
    """Rows of one family, for all directions and numbers of features."""
    redraws, seed = redraws_and_seed
    h, dim = float(shared["h"]), int(shared["dim"])
    train, (x, labels) = parts.train / h, parts.test
    rows: list[Row] = []
    for offset, multiple in enumerate(MULTIPLES, start=1):
        before = None
        for coupling in COUPLINGS:
            features = num_features(multiple, dim)
            request = request_for(dim, features, coupling, redraws, seed + offset)
            phi = feature_map(family, request, train)
            sums, totals = class_sums(phi, x / h, train, parts.onehot)
            found = sums.argmax(-1)
            accuracy = (found == labels).double().mean(-1)
            row = shared | {"family": family, "coupling": coupling, "multiple": multiple}
            row |= {"features": features, "projections": phi.num_projections}
            row |= _interval("accuracy", accuracy)
            row |= _interval("agreement", (found == exact).double().mean(-1))
            row["nonpositive"] = _share(totals <= 0)
            change = {"change": None, "change_low": None, "change_high": None}
            row |= change if before is None else _interval("change", accuracy - before)
            rows.append(row)
            before = accuracy
    return rows


def _median_phi(x: Tensor, train: Tensor) -> float:
    """Median of |x + y|^2 over pairs: positive features have the relative variance e^that / m."""
    return float((-2.0 * Gaussian().log(x[:500], -train[:500])).median())


def _share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 5)


def _interval(name: str, samples: Tensor) -> Row:
    found = Interval.over(samples)
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: round(value, 5) for key, value in values.items()}


EXPERIMENT = Experiment(
    name="hrf-classification",
    title="Nonparametric classification: independent, orthogonal and simplex directions",
    paper="Reid, Choromanski, Likhosherstov and Weller, Simplex Random Features, 2023",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn"),
)
