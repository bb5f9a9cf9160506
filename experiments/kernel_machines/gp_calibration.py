"""Do the intervals of a Gaussian process on features cover what they say?

Each cell takes one set, finds the hyper-parameters by the evidence of m random features, and conditions
three posteriors with them: exact (all rows), nystrom (landmarks) and features (regression on the m features
alone). scikit-learn's exact process with hyper-parameters of its own is the reference for few rows.

Coverage is that of central 95 % intervals for new observations. `coverage_unsure` counts only the tenth of
the test points where the exact posterior is least sure: there a starved deviation shows, which an average
over all points hides behind the noise. `coverage_noisy` counts the tenth with the largest true noise
(made sets).

Made sets, of the Gaussian kernel if nothing else is said:
    draw        a draw of the process: the model is right
    hole        a draw, trained on rows outside a square and tested on rows everywhere: still right
    rough       a draw of Matérn-3/2: the model is too smooth
    unequal     a draw whose noise grows from 0.1 to 0.9 along the first column: the model has one noise
    friedman    Friedman's function of ten columns, five of which do nothing
"""

from __future__ import annotations

import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bochner.kernels import Gaussian, Kernel, Matern
from bochner.reproduce import Cell, Experiment, Row
from experiments.kernel_machines.gp_calibration_report import RIGHT, draw, measured, summary

TESTED = 1000
LANDMARKS = 256
POSTERIORS = ("exact", "nystrom", "features")
MADE = ("draw", "hole", "rough", "unequal", "friedman")
REAL = ("diabetes", "diamonds", "flights")
SMALL, LARGE = 400, 3000
FEATURES = {SMALL: (128, 512), LARGE: (256, 1024)}
SEEDS = {SMALL: 10, LARGE: 2}
SEEDS_OF_RIGHT = {SMALL: 20, LARGE: 4}
LENGTHSCALES = (0.6, 1.0, 2.0)


class Split(NamedTuple):
    """Rows to train on and to test with; the deviation of the noise at the latter, if it is known."""

    x: np.ndarray
    y: np.ndarray
    new: np.ndarray
    truth: np.ndarray
    noise: np.ndarray | None


def draw_of(kernel: Kernel, x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One draw of the process at x / LENGTHSCALES."""
    z = torch.from_numpy(x / np.array(LENGTHSCALES[: x.shape[1]]))
    covariance = kernel(z, z) + 1e-8 * torch.eye(len(z), dtype=torch.float64)
    return torch.linalg.cholesky(covariance).numpy() @ random.normal(size=len(x))


def made(name: str, n: int, seed: int) -> Split:
    """n rows and TESTED new ones."""
    random = np.random.default_rng(seed)
    dim = {"hole": 2, "friedman": 10}.get(name, 3)
    x = random.uniform(-2, 2, size=(n + TESTED, dim))
    if name == "hole":
        outside = random.uniform(-2, 2, size=(4 * n, dim))
        x[:n] = outside[np.abs(outside).max(1) > 1][:n]
    noise = np.full(len(x), 0.3)
    if name == "unequal":
        noise = 0.1 + 0.2 * (x[:, 0] + 2)
    if name == "friedman":
        u, noise = (x + 2) / 4, np.full(len(x), 1.0)
        f = 10 * np.sin(np.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2
        f = f + 10 * u[:, 3] + 5 * u[:, 4]
    else:
        f = draw_of(Matern(1.5) if name == "rough" else Gaussian(), x, random)
    y = f + noise * random.normal(size=len(x))
    return Split(x[:n], y[:n], x[n:], y[n:], noise[n:])


@lru_cache(maxsize=1)
def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A published set as numbers [n, d] and targets [n]; kept, because cells come set by set."""
    from sklearn.datasets import load_diabetes

    from bochner.data import diamonds, nyc_flights

    if name == "diabetes":
        return load_diabetes(return_X_y=True)
    data = diamonds() if name == "diamonds" else nyc_flights()
    targets = data.targets.numpy()
    return data.features.numpy(), np.log(targets) if name == "diamonds" else targets


def real(name: str, n: int, seed: int) -> Split:
    """Random rows, columns and targets in units of their deviation on those trained on."""
    x, y = table(name)
    tested = min(TESTED, len(x) - min(n, len(x) - 100))
    n = min(n, len(x) - tested)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:n], order[n : n + tested]
    varying = x[train].std(0) > 0
    centre, scale = x[train].mean(0)[varying], x[train].std(0)[varying]
    x = (x[:, varying] - centre) / scale
    y = (y - y[train].mean()) / y[train].std()
    return Split(x[train], y[train], x[test], y[test], None)


def cells(quick: bool) -> list[Cell]:
    """One for each set, number of rows, features (0: scikit-learn) and seed."""
    sets = (*MADE, "diabetes") if quick else (*MADE, *REAL)
    sizes = (SMALL,) if quick else (SMALL, LARGE)
    return [
        {"data": name, "rows": n, "features": m, "seed": seed}
        for name in sets
        for n in sizes
        if not (name == "diabetes" and n > SMALL)
        for m in ((64, 0)[: 1 + (name == "draw")] if quick else FEATURES[n] + (0,) * (n == SMALL))
        for seed in range(1 if quick else (SEEDS_OF_RIGHT if name in RIGHT else SEEDS)[n])
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """All posteriors of one cell."""
    name, n, seed = str(cell["data"]), int(cell["rows"]), int(cell["seed"])
    split = made(name, n, seed) if name in MADE else real(name, n, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they would say is in the rows: dof, gap
        if not cell["features"]:
            return [cell | reference(split)]
        return [cell | row for row in ours(split, int(cell["features"]), seed)]


def reference(split: Split) -> Row:
    """scikit-learn's exact process."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    dim, unit = split.x.shape[1], float(np.var(split.y))
    start = (0.5 * dim * float(np.var(split.x))) ** 0.5  # as ours
    kernel = ConstantKernel(unit, (1e-4 * unit, 1e4 * unit)) * RBF(
        np.full(dim, start), (1e-4 * start, 1e4 * start)
    ) + WhiteKernel(0.1 * unit, (1e-6 * unit, 1e2 * unit))
    began = time.process_time()
    mean_y = split.y.mean()
    model = GaussianProcessRegressor(kernel).fit(split.x, split.y - mean_y)
    seconds = time.process_time() - began
    mean, std = model.predict(split.new, return_std=True)  # WhiteKernel: of an observation
    row = scores(split, mean + mean_y, std, std)
    found = {"noise": float(model.kernel_.k2.noise_level), "dof": None, "gap": None}
    return {"posterior": "scikit-learn", **row, **found, "cpu_seconds": seconds}


def ours(split: Split, m: int, seed: int) -> list[Row]:
    """The three posteriors with the hyper-parameters of one search."""
    from bochner.sklearn import GaussianProcess

    began = time.process_time()
    found = GaussianProcess(n_components=m, posterior="exact", random_state=seed)
    found.fit(split.x, split.y)
    searched = time.process_time() - began
    unsure = found.predict(split.new, return_std=True)[1]
    rows: list[Row] = []
    for posterior in POSTERIORS:
        began = time.process_time()
        model = GaussianProcess(
            n_components=m,
            gamma=0.5 / found.lengthscales_**2,
            outputscale=found.outputscale_,
            noise=found.noise_,
            hyperparameters="fixed",
            posterior=posterior,
            n_landmarks=LANDMARKS,
            random_state=seed,
        ).fit(split.x, split.y)
        mean, std = model.predict(split.new, return_std=True)
        row = scores(split, mean, np.sqrt(std**2 + model.noise_), unsure)
        row |= {"noise": found.noise_, "dof": model.effective_dof_, "gap": found.evidence_gap_}
        seconds = searched + time.process_time() - began
        rows.append({"posterior": posterior, **row, "cpu_seconds": seconds})
    return rows


def scores(split: Split, mean: np.ndarray, std: np.ndarray, unsure: np.ndarray) -> Row:
    """Error, density and coverage at the tested rows, targets in units of their deviation."""
    unit = split.y.std()
    errors = split.truth - mean
    density = 0.5 * np.log(2 * np.pi * (std / unit) ** 2) + 0.5 * (errors / std) ** 2
    covered = np.abs(errors) < 1.959964 * std  # the 97.5 % quantile of a standard normal
    row: Row = {
        "tested": len(errors),
        "rmse": float(np.sqrt(np.mean(errors**2)) / unit),
        "nlpd": float(density.mean()),
        "coverage": float(covered.mean()),
        "coverage_unsure": float(covered[_top(unsure)].mean()),
        "coverage_noisy": None,
        "width": float(2 * 1.959964 * std.mean() / unit),
    }
    if split.noise is not None and np.ptp(split.noise) > 0:
        row["coverage_noisy"] = float(covered[_top(split.noise)].mean())
    return row


def _top(values: np.ndarray) -> np.ndarray:
    """The indices of the largest tenth."""
    return np.argsort(values, kind="stable")[-max(1, len(values) // 10) :]


EXPERIMENT = Experiment(
    name="kernel-gp-calibration",
    title="Gaussian processes on random features: calibration against exact ones",
    paper="Wilson et al., Efficiently Sampling Functions from Gaussian Process Posteriors, 2020 (starvation)",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn"),
)
