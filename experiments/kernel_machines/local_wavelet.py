"""Features that are not global waves: local ones where the kernel varies quickly, wavelets where the data do.

`kernel`: the error of one estimate of the Gaussian kernel between points at a distance from the centre that
local features are made at; waves have one error everywhere.

`field`: a draw of a Gaussian process of lengthscale 1 on a box of many lengthscales (160, 16^2, 7^3). All
models know the kernel and the noise, so that what differs is the approximation: waves (iid, orthogonal),
local features about farthest-point centres, the exact process.

`signal`: functions on an interval whose smoothness changes from place to place (those of Donoho and Johnstone
among them), and one that does not change. Every model chooses its lengthscale, or smallest scale, and its
noise by its own evidence, on as many features as it predicts with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bochner.degree_plan import DegreePlan
from bochner.kernels import Gaussian, Kernel, Matern, Wavelet
from bochner.maclaurin import LocalFeatures
from bochner.reproduce import Cell, Experiment, Row
from bochner.request import Request
from experiments.kernel_machines.local_wavelet_problems import (
    SIGNALS,
    SIZES,
    Prediction,
    Split,
    evidence,
    exact,
    features_of,
    field,
    kernel_matrix,
    regression,
    signal,
    wavelets,
    waves,
)
from experiments.kernel_machines.local_wavelet_report import draw, measured, summary

NOISE = 0.01  # variance, of fields of variance 1
RADII = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
REDRAWS, CHUNKS = 20, 5  # waves: REDRAWS; local features: REDRAWS * CHUNKS
LENGTHSCALES = tuple(0.01 * 2.0 ** (0.5 * k) for k in range(15))  # of the interval's 3
SMALLEST = tuple(0.01 * 2.0 ** (0.5 * k) for k in range(10))  # scales of wavelets
LARGEST, SPREAD = 1.0, 1.5
RATIO = 7.0  # deviation of a signal / deviation of its noise, Donoho and Johnstone's


def kernel_rows(dim: int, num_features: int, seed: int) -> list[Row]:
    """Root mean square errors of the kernel at pairs of points on spheres about the centre."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for radius in RADII:
        directions = torch.randn(2, 60, dim, generator=generator, dtype=torch.float64)
        x, y = radius * directions / directions.norm(dim=-1, keepdim=True)
        truth = Gaussian()(x, y)
        plan = DegreePlan.optimal(x, y, num_features)
        request = Request(
            dim=dim,
            num_features=num_features,
            kernel=Gaussian(),
            batch_shape=(REDRAWS,),
            generator=generator,
            dtype=torch.float64,
        )
        local = LocalFeatures(request, torch.zeros(REDRAWS, dim, dtype=torch.float64), plan)
        errors = [(local.estimate(x, y) - truth).square().mean()]
        for _ in range(CHUNKS - 1):  # a rare degree of the tail has a large share of the error
            local.resample_(generator)
            errors.append((local.estimate(x, y) - truth).square().mean())
        squares = {"local": torch.stack(errors).mean()}
        predicted = (local.relative_variance(x, y) * truth**2)[0].mean().sqrt()
        for projection in ("iid", "orthogonal"):
            phis = [waves(dim, num_features, projection, 1000 * seed + k) for k in range(REDRAWS)]
            errors = [(phi.estimate(x, y) - truth).square().mean() for phi in phis]
            squares[projection] = torch.stack(errors).mean()
        for features, square in squares.items():
            row: Row = {"kind": "kernel", "features": features, "radius": radius}
            row["rmse"] = float(f"{float(square) ** 0.5:.4g}")
            if features == "local":
                row |= {"predicted": float(f"{float(predicted):.4g}"), "exact_degrees": plan.exact}
            rows.append(row)
    return rows


def field_rows(cell: Cell) -> list[Row]:
    """Every model on one draw of the process."""
    from bochner.sklearn import LocalGaussianProcess

    dim, seed = int(cell["dim"]), int(cell["seed"])
    data = field(dim, int(cell["rows"]), int(cell["tests"]), NOISE, seed)
    budgets = [int(m) for m in str(cell["features"]).split()]
    rows: list[Row] = []

    def keep(features: str, m: int, found: Prediction, **more: object) -> None:
        rows.append({"kind": "field", "model": features, "m": m, **found.scores(data), **more})

    keep("exact", 0, exact(Gaussian(), data, 1.0, NOISE))
    for m in budgets:
        for projection in ("iid", "orthogonal"):
            phi = waves(dim, m, projection, 10 * seed + m)
            keep(f"waves, {projection}", m, regression(partial(features_of, phi), data, 1.0, NOISE))
    for m in (m for m in budgets if m <= 512):
        start = time.process_time()
        model = LocalGaussianProcess(
            n_components=m, gamma=0.5, alpha=NOISE, max_centers=4000, random_state=seed
        ).fit(data.x, data.y)
        mean, deviation = model.predict(data.x_test, return_std=True)
        seconds = time.process_time() - start
        known = (
            deviation / model.outputscale_**0.5
        ) ** 2  # the outputscale is known here, as the noise
        keep("local", m, Prediction(mean, known, NOISE, seconds), centres=len(model.centers_))
    return rows


def chosen_waves(data: Split, m: int, projection: str, seed: int) -> Prediction:
    """Waves with the lengthscale, outputscale and noise of the highest evidence."""
    start = time.process_time()
    phi = waves(1, m, projection, seed)

    def at(lengthscale: float, x: np.ndarray) -> np.ndarray:
        return features_of(phi, x / lengthscale)

    return _chosen(data, {f"{ell:.3g}": partial(at, ell) for ell in LENGTHSCALES}, start)


def chosen_wavelets(data: Split, m: int, seed: int) -> Prediction:
    """Wavelets with the smallest scale, outputscale and noise of the highest evidence."""
    start = time.process_time()
    maps = {s: wavelets(m, Wavelet(s, LARGEST, SPREAD), seed) for s in SMALLEST}
    phis = {f"{s:.3g}": partial(features_of, phi) for s, phi in maps.items()}
    return _chosen(data, phis, start)


def _chosen(data: Split, phis: dict[str, Callable], start: float) -> Prediction:
    found = {name: evidence(phi(data.x), data.y) for name, phi in phis.items()}
    best = max(found, key=lambda name: found[name][0])
    _, outputscale, alpha = found[best]
    prediction = regression(phis[best], data, outputscale, alpha * outputscale)
    return prediction._replace(seconds=time.process_time() - start, choice=best)


def chosen_exact(data: Split, kernels: dict[str, tuple[Kernel, float]]) -> Prediction:
    """The exact process with the kernel, outputscale and noise of the highest evidence."""
    start = time.process_time()
    found = {}
    for name, (kernel, ell) in kernels.items():
        values, vectors = np.linalg.eigh(kernel_matrix(kernel, data.x / ell, data.x / ell))
        found[name] = evidence(vectors * np.sqrt(np.maximum(values, 0.0)), data.y)
    best = max(found, key=lambda name: found[name][0])
    (kernel, ell), (_, outputscale, alpha) = kernels[best], found[best]
    scaled = data._replace(x=data.x / ell, x_test=data.x_test / ell)
    prediction = exact(kernel, scaled, outputscale, alpha * outputscale)
    return prediction._replace(seconds=time.process_time() - start, choice=best)


def signal_rows(cell: Cell) -> list[Row]:
    """Every model on one sample of a signal."""
    seed = int(cell["seed"])
    data = signal(str(cell["signal"]), int(cell["rows"]), int(cell["tests"]), RATIO, seed)
    stationary = {"gaussian": Gaussian(), "matern-3/2": Matern(1.5)}
    models: dict[tuple[str, int], Prediction] = {
        (f"exact, {name}", 0): chosen_exact(
            data, {f"{ell:.3g}": (kernel, ell) for ell in LENGTHSCALES}
        )
        for name, kernel in stationary.items()
    }
    scales = {f"{s:.3g}": (Wavelet(s, LARGEST, SPREAD), 1.0) for s in SMALLEST}
    models["exact, wavelet", 0] = chosen_exact(data, scales)
    for m in (int(m) for m in str(cell["features"]).split()):
        for projection in ("iid", "orthogonal"):
            models[f"waves, {projection}", m] = chosen_waves(data, m, projection, 10 * seed + m)
        models["wavelets", m] = chosen_wavelets(data, m, 10 * seed + m)
    return [
        {"kind": "signal", "model": name, "m": m, "choice": found.choice, **found.scores(data)}
        for (name, m), found in models.items()
    ]


def cells(quick: bool) -> list[Cell]:
    """Kernel errors, fields, signals."""
    dims, budgets = ((2, 5), (64,)) if quick else ((1, 2, 3, 5, 10), (64, 256, 1024))
    found: list[Cell] = [
        {"kind": "kernel", "dim": dim, "m": m, "seed": 0} for dim in dims for m in budgets
    ]
    rows, tests = (400, 200) if quick else (4000, 1000)
    for dim in (2,) if quick else SIZES:
        found += [
            {"kind": "field", "dim": dim, "rows": rows, "tests": tests, "seed": seed}
            | {"features": "64" if quick else "64 256 1024 2048"}
            for seed in range(1 if quick else 3)
        ]
    rows, tests = (200, 200) if quick else (512, 1000)
    for name in ("doppler", "smooth") if quick else SIGNALS:
        found += [
            {"kind": "signal", "signal": name, "rows": rows, "tests": tests, "seed": seed}
            | {"features": "64" if quick else "64 128 256 512"}
            for seed in range(2 if quick else 5)
        ]
    return found


def run(cell: Cell, folder: Path) -> list[Row]:
    """One cell of any kind."""
    if cell["kind"] == "kernel":
        rows = kernel_rows(int(cell["dim"]), int(cell["m"]), int(cell["seed"]))
        return [{**row, "dim": cell["dim"], "m": cell["m"]} for row in rows]
    rows = field_rows(cell) if cell["kind"] == "field" else signal_rows(cell)
    shared = {name: cell[name] for name in ("dim", "signal", "seed") if name in cell}
    return [{**row, **shared} for row in rows]


EXPERIMENT = Experiment(
    name="kernel-local-wavelet",
    title="Local features for high frequencies, wavelets for signals that change",
    paper="Wacker and Filippone, Local Random Feature Approximations of the Gaussian Kernel, 2022; Kumar and"
    " Chakraborty, Random Wavelet Features, 2026",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn"),
)
