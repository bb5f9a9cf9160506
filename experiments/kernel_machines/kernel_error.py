"""Error of the Gaussian kernel on real data: every projection beside scikit-learn's RBFSampler and Nystroem.

    RMSE = sqrt(mean over draws and pairs of (phi(x) . phi(y) - K(x, y))^2),    K = exp(-gamma |x - y|^2)

Pairs of rows are drawn once a set; Nystroem takes its landmarks from other rows. At equal n_components
RBFSampler spends a column on each direction (a cosine with a random offset), bochner's trigonometric
features two (a cosine and a sine). Three bandwidths:

    median     lengthscale = median distance: half of the pairs above exp(-1/2)
    scale      gamma = 1 / (d Var X), scikit-learn's: pairs around exp(-2)
    narrow     four times that: pairs around exp(-8), nearly all estimates of 0

A ratio is that of two RMSE, its interval from the draws (delta method on the logarithm of the mean
square), given the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import pdist

import bochner
from bochner.projections import PROJECTIONS
from bochner.reproduce import Cell, Experiment, Row
from experiments.kernel_machines.datasets import LOADERS, examples, scaled
from experiments.kernel_machines.kernel_error_report import (
    NYSTROEM,
    RBF_SAMPLER,
    draw,
    measured,
    summary,
)

PAIRS = 1000
LANDMARK_ROWS = 20_000  # that Nystroem draws its landmarks from
FEATURES = (64, 256, 1024)
DRAWS, NYSTROEM_DRAWS = 30, 4
NARROW = 4.0
MEDIAN_ROWS = 1000

Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two arrays [pairs, d], already divided by the lengthscale -> estimates [pairs]."""


def gammas(x: np.ndarray) -> dict[str, float]:
    """The three bandwidths for rows x."""
    scale = 1.0 / (x.shape[1] * x.var())
    median = float(np.median(pdist(x[:MEDIAN_ROWS])))
    return {"median": 0.5 / median**2, "scale": scale, "narrow": NARROW * scale}


def projected(name: str, dim: int, features: int, seeds: range) -> Iterator[Estimate]:
    """One estimate for each seed, by bochner's trigonometric features."""
    for seed in seeds:
        phi = bochner.make(
            "trigonometric",
            dim=dim,
            num_features=features,
            kernel="gaussian",
            projection=name,
            generator=torch.Generator().manual_seed(seed),
        )

        def estimate(a: np.ndarray, b: np.ndarray, phi: bochner.FeatureMap = phi) -> np.ndarray:
            left, right = (f(torch.from_numpy(p)) for f, p in ((phi.query, a), (phi.key, b)))
            products = (left.values * right.values).sum(-1, keepdim=True)
            return (products * torch.exp(left.log_scale + right.log_scale)).squeeze(-1).numpy()

        yield estimate


def of_transformer(transformer: object, landmarks: np.ndarray) -> Estimate:
    """The estimate of a scikit-learn transformer of exp(-|x - y|^2 / 2)."""
    fitted = transformer.fit(landmarks)
    return lambda a, b: (fitted.transform(a) * fitted.transform(b)).sum(1)


def predicted_mean_square(
    name: str, dim: int, features: int, a: np.ndarray, b: np.ndarray
) -> float | None:
    """Mean over pairs of the variance in closed form; None where there is none, or where a kernel value
    is so small that the variance relative to its square leaves float64."""
    squared = ((a - b) ** 2).sum(1)
    if name == RBF_SAMPLER:  # Var 2 cos(s) cos(t): half of 1 from the offset, half of (1 - K^2)^2
        return float((0.5 + 0.5 * np.expm1(-squared) ** 2).mean() / features)
    phi = bochner.make(
        "trigonometric", dim=dim, num_features=features, kernel="gaussian", projection=name
    )
    points = (torch.from_numpy(points).unsqueeze(1) for points in (a, b))
    relative = phi.relative_variance(*points)
    if relative is None or not relative.isfinite().all():
        return None
    return float((relative.squeeze((1, 2)).numpy() * np.exp(-squared)).mean())


def cells(quick: bool) -> list[Cell]:
    """One for each set and number of features."""
    names = ["wine", "digits"] if quick else [name for name in LOADERS if name != "wine"]
    features = (32, 64) if quick else FEATURES
    return [
        {
            "set": name,
            "features": m,
            "pairs": 60 if quick else PAIRS,
            "draws": 20 if quick else DRAWS,
            "seed": 1000 * number,
        }
        for number, name in enumerate(names)
        for m in features
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Mean squares of every contestant and bandwidth on one set."""
    from sklearn.kernel_approximation import Nystroem, RBFSampler

    data = examples(str(cell["set"]))
    m, first = int(cell["features"]), int(cell["seed"])
    pairs = min(int(cell["pairs"]), len(data.y) // 4)  # half of a small set is left for landmarks
    rng = np.random.default_rng(first)
    order = rng.permutation(len(data.y))[: 2 * pairs + LANDMARK_ROWS]
    x = scaled(data.x[order], slice(None), known=data.scaled)
    a, b, rest = x[:pairs], x[pairs : 2 * pairs], x[2 * pairs :]
    dim = x.shape[1]
    seeds = range(first + 1, first + 1 + int(cell["draws"]))
    few = seeds[:NYSTROEM_DRAWS]
    roots = {name: np.sqrt(2 * gamma) for name, gamma in gammas(x).items()}
    truths = {name: np.exp(-0.5 * ((a - b) ** 2).sum(1) * r**2) for name, r in roots.items()}
    errors: dict[tuple[str, str], list[float]] = {}

    def note(contestant: str, bandwidth: str, estimate: Estimate) -> None:
        r = roots[bandwidth]
        error = estimate(a * r, b * r) - truths[bandwidth]
        errors.setdefault((contestant, bandwidth), []).append(float((error**2).mean()))

    for name in PROJECTIONS:
        for estimate in projected(name, dim, m, seeds):
            for bandwidth in roots:
                note(name, bandwidth, estimate)
    for seed in seeds:
        sampler = RBFSampler(gamma=0.5, n_components=m, random_state=seed)
        for bandwidth in roots:
            note(RBF_SAMPLER, bandwidth, of_transformer(sampler, a))
    if len(rest) >= m:
        for bandwidth, r in roots.items():
            for seed in few:
                nystroem = Nystroem(gamma=0.5, n_components=m, random_state=seed)
                note(NYSTROEM, bandwidth, of_transformer(nystroem, rest * r))
    rows: list[Row] = []
    for (contestant, bandwidth), found in errors.items():
        r = roots[bandwidth]
        predicted = (
            None
            if contestant == NYSTROEM
            else predicted_mean_square(contestant, dim, m, a * r, b * r)
        )
        row: Row = {"set": cell["set"], "dim": dim, "features": m, "bandwidth": bandwidth}
        row |= {"contestant": contestant, "draws": len(found)}
        row["mean_kernel"] = float(f"{truths[bandwidth].mean():.4g}")
        row["mean_square"] = float(f"{np.mean(found):.6g}")
        row["spread"] = float(f"{np.std(found, ddof=1):.6g}")
        row["predicted"] = None if predicted is None else float(f"{predicted:.6g}")
        rows.append(row)
    return rows


EXPERIMENT = Experiment(
    name="kernel-error",
    title="Error of the Gaussian kernel on real data, by projection",
    paper="Yu, Suresh, Choromanski, Holtmann-Rice and Kumar, Orthogonal Random Features, 2016, section 5",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn", "rdata"),
)
