"""Deep kernels of low rank beside Gaussian processes and a network with a Bayesian last layer.

All see the same rows, standardised on the training rows. The networks share their architecture (two hidden
layers of 64, 32 outputs), optimiser and batches; a tenth of the training rows, held out, decides how many
steps each is trained (of three numbers, by its density there), after which it is trained on all rows for so
long. What differs is what is minimised, and what gives the variance:

- `bound`        low-rank deep kernel: minibatch evidence lower bound, closed-form posterior
- `uncorrected`  the same without the white part of the kernel, which fills the prior variance
- `spectrum`     the same bound; random Fourier features of a Matern-5/2 kernel on 4 outputs of the network
- `predictive`   low-rank deep kernel: minibatch predictive density, with its own q(w)
- `last layer`   a network trained on squared errors; Bayesian linear regression on its 32 outputs
- `exact`        ARD Gaussian kernel on all rows (512 Nyström landmarks beyond 4,096 rows)
- `features`     the same prior, Bayesian linear regression on 512 random features
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bochner
from bochner.gp.deep import DeepKernelGP, Prediction, SpectrumOnTop
from bochner.gp.deep_training import (
    Elbo,
    MinibatchLoss,
    PredictiveLoss,
    WeightDistribution,
    minimise_,
)
from bochner.gp.evidence import WeightPosterior
from bochner.gram import GramStatistics
from bochner.reproduce import Cell, Experiment, Row
from experiments.kernel_machines.datasets import Examples, examples, scaled
from experiments.kernel_machines.deep_kernel_report import draw, measured, summary

WIDTH, RANK, INNER, FEATURES = 64, 32, 4, 512
BATCH, RATE = 128, 5e-3
STEPS = (300, 1000, 3000)
HELD_OUT = 0.1
TEST_ROWS = 4000
NO_WHITE_PART = 1e-20  # prior variance that every feature exceeds
SETS = (
    ("diabetes", 353),
    ("diamonds", 2000),
    ("diamonds", 20_000),
    ("flights", 2000),
    ("flights", 20_000),
)
SEEDS = 4


class Rows(NamedTuple):
    """x [n, d] and y [n], float32, standardised on training rows."""

    x: Tensor
    y: Tensor


class Normals(NamedTuple):
    """Mean and variance of the observations of test rows."""

    mean: Tensor
    variance: Tensor


Predictor = Callable[[Tensor], Normals]


def diabetes() -> Examples:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    return Examples(bunch.data, bunch.target, 0)


def split(name: str, rows: int, seed: int) -> tuple[Rows, Rows]:
    """Random training and test rows."""
    data = diabetes() if name == "diabetes" else examples(name)
    order = np.random.default_rng(seed).permutation(len(data.y))
    seen, unseen = order[:rows], order[rows : rows + TEST_ROWS]
    x = scaled(data.x, seen)
    y = (data.y - data.y[seen].mean()) / data.y[seen].std()
    return tuple(
        Rows(torch.from_numpy(x[part]).float(), torch.from_numpy(y[part]).float())
        for part in (seen, unseen)
    )


def network(dim: int, outputs: int) -> nn.Sequential:
    """Two hidden layers; torch's own initialisation."""
    layers = (nn.Linear(dim, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


class SquaredError(MinibatchLoss):
    """The plain network: its 32 outputs times trained weights against y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.model.features(x) @ self.weights.mean - y).square().mean()


def loss_of(kind: str, dim: int, num_rows: int, generator: torch.Generator) -> MinibatchLoss:
    rank = RANK
    if kind == "spectrum":
        phi = bochner.make(
            "trigonometric",
            dim=INNER,
            num_features=2 * RANK,
            kernel="matern-5/2",
            generator=generator,
        )
        inner: nn.Module = SpectrumOnTop(network(dim, INNER), phi)
        rank = 2 * RANK
    else:
        inner = network(dim, RANK)
    model = DeepKernelGP(inner)
    if kind == "uncorrected":
        model.log_prior_variance.requires_grad_(False).fill_(math.log(NO_WHITE_PART))
    weights = WeightDistribution(rank)
    made = {"predictive": PredictiveLoss, "last layer": SquaredError}.get(kind, Elbo)
    if kind == "last layer":
        nn.init.normal_(weights.mean, std=RANK**-0.5)
    return made(model, weights, num_rows=num_rows)


def observed(found: Prediction, noise: float) -> Normals:
    return Normals(found.mean.double(), found.variance.double() + noise)


def predictor(loss: MinibatchLoss, rows: Rows) -> Predictor:
    """What a trained network predicts of observations."""
    model = loss.model
    if isinstance(loss, SquaredError):
        return last_layer(model.network, rows)
    noise = float(model.log_noise.detach().exp())
    if isinstance(loss, PredictiveLoss):
        return lambda x: observed(loss.predict(x), noise)
    posterior = model.condition(*rows)
    return lambda x: observed(posterior.predict(x), noise)


@torch.no_grad()
def last_layer(phi: nn.Module, rows: Rows) -> Predictor:
    """Bayesian linear regression on what was trained; noise and prior variance by the evidence."""
    features = phi(rows.x).double().numpy()
    sums = GramStatistics.of(features, rows.y.double().unsqueeze(-1).numpy())
    grid = [
        WeightPosterior(sums, outputscale=a, noise=s)
        for a in np.geomspace(1e-3, 1e3, 13)
        for s in np.geomspace(1e-3, 2.0, 34)
    ]
    best = max(grid, key=lambda posterior: posterior.log_evidence)

    def predict(x: Tensor) -> Normals:
        with torch.no_grad():
            new = phi(x).double().numpy()
        mean = torch.from_numpy(new @ best.mean[:, 0])
        return Normals(mean, torch.from_numpy(best.variance(new)) + best.noise)

    return predict


def trained(kind: str, rows: Rows, steps: int, seed: int) -> Predictor:
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from torch's global generator
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        loss = loss_of(kind, rows.x.shape[1], len(rows.y), generator)
    minimise_(
        loss,
        TensorDataset(*rows),
        steps=steps,
        batch_rows=BATCH,
        rate=RATE,
        generator=generator,
    )
    return predictor(loss, rows)


def judged(found: Normals, y: Tensor) -> Row:
    """Root mean square error, nats a row, share of the central 95 % intervals that hold their row."""
    y, deviation = y.double(), found.variance.sqrt()
    gap = y - found.mean
    density = -0.5 * (gap / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
    return {
        "rmse": round(float(gap.square().mean().sqrt()), 6),
        "nlpd": round(-float(density.mean()), 6),
        "coverage": round(float((gap.abs() <= 1.959964 * deviation).double().mean()), 6),
        "deviation": round(float(deviation.mean()), 6),
    }


def chosen_steps(kind: str, rows: Rows, choices: tuple[int, ...], seed: int) -> int:
    """The number of steps with the best density on held-out rows."""
    held = int(HELD_OUT * len(rows.y))
    kept = Rows(rows.x[held:], rows.y[held:])
    scores = {
        steps: judged(trained(kind, kept, steps, seed)(rows.x[:held]), rows.y[:held])["nlpd"]
        for steps in choices
    }
    return min(scores, key=lambda steps: float(scores[steps]))


def gaussian_process(kind: str, rows: Rows, seed: int) -> Predictor:
    from bochner.sklearn import GaussianProcess

    gp = GaussianProcess(
        n_components=FEATURES,
        posterior="features" if kind == "features" else "auto",
        random_state=seed,
    )
    gp.fit(rows.x.double().numpy(), rows.y.double().numpy())

    def predict(x: Tensor) -> Normals:
        mean, deviation = gp.predict(x.double().numpy(), return_std=True)
        return Normals(torch.from_numpy(mean), torch.from_numpy(deviation).square() + gp.noise_)

    return predict


KINDS = ("bound", "uncorrected", "spectrum", "predictive", "last layer", "exact", "features")


def cells(quick: bool) -> list[Cell]:
    """One for each set, number of rows, kind and seed."""
    sets = (("diabetes", 353),) if quick else SETS
    kinds = ("bound", "predictive", "last layer", "features") if quick else KINDS
    return [
        {
            "set": name,
            "train": rows,
            "kind": kind,
            "seed": seed,
            "steps": 300 if quick else max(STEPS),
        }
        for name, rows in sets
        for seed in range(1 if quick else SEEDS)
        for kind in kinds
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Fit on the training rows, judge on the others."""
    import warnings

    kind, seed = str(cell["kind"]), int(cell["seed"])
    rows, test = split(str(cell["set"]), int(cell["train"]), seed)
    row: Row = {name: cell[name] for name in ("set", "train", "kind", "seed")}
    start = time.process_time()
    if kind in ("exact", "features"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few directions: that is what is measured here
            predict = gaussian_process(kind, rows, seed)
    else:
        choices = tuple(s for s in STEPS if s <= int(cell["steps"]))
        row["steps"] = chosen_steps(kind, rows, choices, seed)
        predict = trained(kind, rows, int(row["steps"]), seed)
    found = predict(test.x)
    return [row | judged(found, test.y) | {"seconds": round(time.process_time() - start, 2)}]


EXPERIMENT = Experiment(
    name="kernel-deep",
    title="Deep kernels of low rank: error, density and coverage on real data",
    paper="Zhu, Yuchi and Xie, Scalable Deep Basis Kernel Gaussian Processes, 2025",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib", "sklearn"),
)
