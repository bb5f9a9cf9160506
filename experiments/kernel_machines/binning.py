"""Sparse binning features against dense ones, on functions that vary fast.

Draws of Gaussian processes on the unit cube, 20,000 noisy values each. Every contestant knows the
lengthscale and the noise; what is compared is how much of the function it finds in how much CPU time: binning
by conjugate gradients (R entries in a row, columns for free), random features and Nystroem features with a
Gram matrix, with the kernel that the function was drawn from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import bochner
from bochner.reproduce import Cell, Experiment, Row
from experiments.kernel_machines.binning_report import draw, measured, summary

Matrix = NDArray[np.float64]
PROBLEMS: dict[str, tuple[str, int, float]] = {  # kernel, dimension, lengthscale
    "Gaussian, d = 2, fast": ("gaussian", 2, 0.03),
    "Matérn 3/2, d = 2": ("matern-3/2", 2, 0.1),
    "Laplacian, d = 2": ("laplacian", 2, 0.2),
    "Gaussian, d = 4, slow": ("gaussian", 4, 0.3),
}
NOISE = 0.1  # standard deviation; functions have variance 1
TRUTH = 8192  # random features that a function is drawn with
BUCKETS = 4096
TOLERANCE = 1e-3  # of conjugate gradients
Model = Callable[[str, float, int], Any]  # (kernel, lengthscale, seed) -> estimator


def gamma(kernel: str, lengthscale: float) -> float:
    return 1.0 / lengthscale if kernel == "laplacian" else 0.5 / lengthscale**2


def by_bins(kernel: str, grids: int) -> Model:
    def make(_: str, lengthscale: float, seed: int) -> Any:
        from bochner.sklearn import BinningRidge

        return BinningRidge(
            NOISE**2,
            kernel=kernel,
            gamma=gamma(kernel, lengthscale),
            n_grids=grids,
            n_buckets=BUCKETS,
            tol=TOLERANCE,
            random_state=seed,
        )

    return make


def by_features(features: str, count: int) -> Model:
    def make(kernel: str, lengthscale: float, seed: int) -> Any:
        from bochner.sklearn import KernelRidge

        return KernelRidge(
            NOISE**2,
            kernel=kernel,
            features=features,
            gamma=gamma(kernel, lengthscale),
            n_components=count,
            random_state=seed,
        )

    return make


MODELS: dict[str, Model] = {
    "binning, R = 64": by_bins("laplacian", 64),
    "binning, R = 256": by_bins("laplacian", 256),
    "smooth binning, R = 64": by_bins("spline-binning", 64),
    "smooth binning, R = 256": by_bins("spline-binning", 256),
    "random features, m = 512": by_features("trigonometric", 512),
    "random features, m = 2048": by_features("trigonometric", 2048),
    "Nyström, m = 1024": by_features("nystroem", 1024),
}


def function(kernel: str, dim: int, lengthscale: float, seed: int) -> Callable[[Matrix], Matrix]:
    """A draw of a Gaussian process, by many independent random features."""
    generator = torch.Generator().manual_seed(seed)
    phi = bochner.make(
        "trigonometric",
        dim=dim,
        num_features=TRUTH,
        kernel=kernel,
        projection="iid",
        generator=generator,
        dtype=torch.float64,
    )
    weights = torch.randn(TRUTH, generator=generator, dtype=torch.float64)

    def values(rows: Matrix) -> Matrix:
        points = torch.from_numpy(rows / lengthscale)
        parts = [phi.query(part).materialise() @ weights for part in points.split(2048)]
        return torch.cat(parts).numpy()

    return values


def cells(quick: bool) -> list[Cell]:
    """One for each problem and seed."""
    sizes = {"rows": 1500, "test": 500} if quick else {"rows": 20_000, "test": 4000}
    names = list(PROBLEMS)[:1] if quick else list(PROBLEMS)
    return [{"problem": p, "seed": s, **sizes} for p in names for s in range(1 if quick else 3)]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Every model on one draw."""
    kernel, dim, lengthscale = PROBLEMS[str(cell["problem"])]
    seed, count = int(cell["seed"]), int(cell["rows"])
    rng = np.random.default_rng(seed)
    X = rng.uniform(0, 1, (count + int(cell["test"]), dim))
    truth = function(kernel, dim, lengthscale, seed)(X)
    y = truth[:count] + NOISE * rng.standard_normal(count)
    rows: list[Row] = []
    for name, make in MODELS.items():
        model = make(kernel, lengthscale, seed)
        start = time.process_time()
        model.fit(X[:count], y)
        seconds = time.process_time() - start
        errors = model.predict(X[count:]) - truth[count:]
        missed = float(np.square(errors).mean() / truth[count:].var())
        row: Row = {"problem": cell["problem"], "seed": seed, "model": name}
        row |= {"missed": float(f"{missed:.4g}"), "seconds": round(seconds, 2)}
        if hasattr(model, "n_iter_"):
            row["iterations"] = int(model.n_iter_[0])
        rows.append(row)
    return [*rows, *kernel_errors(seed)]


def kernel_errors(seed: int) -> list[Row]:
    """The mean squared error of the Laplacian kernel's estimates over the closed form's."""
    from bochner.binning import RandomBinning

    generator = torch.Generator().manual_seed(seed)
    request = bochner.Request(
        dim=2,
        num_features=64 * 16,
        kernel=bochner.kernels.Laplacian(),
        batch_shape=(4000,),
        generator=generator,
    )
    phi = RandomBinning(request, buckets=16)
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.3, 0.4]]).double()
    ratio = phi.estimate(x, y) / phi.log_exact(x, y).value()
    error = float((ratio - 1.0).square().mean() / phi.relative_variance(x, y))
    return [{"model": "closed form", "seed": seed, "variance_ratio": error}]


EXPERIMENT = Experiment(
    name="kernel-binning",
    title="Sparse random binning against dense features, on functions that vary fast",
    paper="Kapralov, Nouri, Razenshteyn, Velingker and Zandieh, Scaling up Kernel Ridge Regression via"
    " Locality Sensitive Hashing, 2020",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn"),
)
