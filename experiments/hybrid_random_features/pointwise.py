"""Pointwise estimation of exp(x.y) on spheres: every map, by the angle between x and y.

|x| = |y| = r in d = 64, one x against 33 y in a random plane. Each replicate is a fresh map; a cell draws
all replicates of one map under one accounting (`sphere_maps`) and shares them between the radii, so that
figures of different angles and radii of one cell are dependent, and those of different cells are not.

Estimates are divided by the exact value. `predicted` is the library's closed form
sqrt(relative_variance), and z the deviation of the mean in its standard errors.

Heavy tails: for large |x + y| the squared error of positive features is an average over rare large
values that thousands of replicates do not see, and a hybrid may be wrong in one replicate of a thousand. The
fourth moments (`tails`) say where: a point is `resolved` if the standard error of its RMSE is at most
RESOLVED of it. Elsewhere the closed form stands alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from bochner.catalog import make
from bochner.fitting import UnfittedMap
from bochner.reproduce import Cell, Experiment, Measured, Row
from bochner.worst_case import angle_sweep, angular_bound, largest_base_error, worst_case
from experiments.hybrid_random_features.pointwise_report import draw, summary, value_at, worst_of
from experiments.hybrid_random_features.sphere_maps import ACCOUNTINGS, DIM, MAPS, SHOWN
from experiments.hybrid_random_features.tails import excess

RADII = (0.5, 1.0, 1.25, 1.5, 2.0)
ANGLES = sorted({k / 28 for k in range(29)} | {0.01, 0.02, 0.98, 0.99})  # in units of pi
REPLICATES, QUICK_REPLICATES = 4_000, 100
CHUNK = 50  # maps drawn at once: features of all radii and angles stay in a few MB
PLANE_SEED = 64
FITTED = (
    "gerf",
    "sderf",
    "aderf",
    "data-aware-relative",
    "data-aware-absolute",
    "positive",
    "balanced-exponential",
    "complex-exponential",
)
"""Closed forms only. The rest of the catalogue wants clusters, attention or training: a sphere has none."""
RESOLVED = 0.1  # largest standard error of an RMSE, relatively, that counts as a measurement
EXACT = 1e-5  # a relative error below this is rounding of float32
FIGURES = 5  # significant digits kept in the results


def cells(quick: bool) -> list[Cell]:
    """One for each map and accounting, and one for each map that the catalogue fits to data."""
    replicates = QUICK_REPLICATES if quick else REPLICATES
    pairs = [(accounting, label) for accounting in ACCOUNTINGS for label in MAPS]
    return [
        {"accounting": accounting, "map": label, "replicates": replicates, "seed": seed}
        for seed, (accounting, label) in enumerate(pairs)
    ] + [{"accounting": "fitted", "map": name} for name in FITTED]


# -- one cell -----------------------------------------------------------------------------------------
def points() -> tuple[Tensor, Tensor]:
    """x [radii, 1, d] and y [radii, angles, d] in one random plane, float64."""
    generator = torch.Generator().manual_seed(PLANE_SEED)
    normals = torch.randn(DIM, 2, dtype=torch.float64, generator=generator)
    first, second = torch.linalg.qr(normals).Q.T
    angle = math.pi * torch.tensor(ANGLES, dtype=torch.float64).unsqueeze(-1)
    circle = torch.cos(angle) * first + torch.sin(angle) * second
    radius = torch.tensor(RADII, dtype=torch.float64)[:, None, None]
    return radius * first, radius * circle


def run(cell: Cell, folder: Path) -> list[Row]:
    """One row for each radius and angle, and one for the worst case at each radius."""
    if cell["accounting"] == "fitted":
        return fitted(str(cell["map"]))
    made, accounting = MAPS[str(cell["map"])], str(cell["accounting"])
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    feature_map = made.made(accounting, RADII, generator, (CHUNK, 1))
    x, y = points()
    exact = torch.exp(x @ y.transpose(-1, -2))
    chunks = []
    for start in range(0, int(cell["replicates"]), CHUNK):
        if start:
            feature_map.resample_(generator)
        estimates = feature_map.estimate(x.float(), y.float()).double()
        chunks.append((estimates / exact - 1.0).squeeze(-2))
    errors = torch.cat(chunks)  # [replicates, radii, angles]
    variance = feature_map.relative_variance(x, y)
    assert variance is not None
    predicted = variance.reshape(-1, len(RADII), len(ANGLES))[0].sqrt()

    whole: Row = {
        "accounting": accounting,
        "map": made.label,
        "m": made.size(accounting),
        "projections": feature_map.num_projections,
        "features": feature_map.num_features,
    }
    rows: list[Row] = []
    for i, radius in enumerate(RADII):
        for j, angle in enumerate(ANGLES):
            tail = excess(made, made.size(accounting), radius, math.pi * angle)
            found = statistics(errors[:, i, j], float(predicted[i, j]), tail)
            rows.append({**whole, "radius": radius, "angle": rounded(angle), **found})
        worst = worst_case(made.made(accounting, (radius,), generator), radius)
        peak: Row = {"worst": rounded(worst.error), "worst_angle": rounded(worst.angle / math.pi)}
        rows.append({**whole, "radius": radius, **peak})
    return rows


def fitted(name: str) -> list[Row]:
    """The closed form of a map of the catalogue, 64 columns, iid, fitted to ± r times the unit vectors.

    These points have the mean and the covariance of the uniform law on the sphere, exactly.
    """
    rows: list[Row] = []
    eye = torch.eye(DIM, dtype=torch.float64)
    angles = math.pi * torch.tensor(SHOWN, dtype=torch.float64)
    for radius in RADII:
        generator = torch.Generator().manual_seed(0)
        unfitted = make(
            name,
            dim=DIM,
            num_features=64,
            projection="iid",
            generator=generator,
            dtype=torch.float64,
        )
        data = radius * torch.cat((eye, -eye))
        feature_map = unfitted.fit(data, data) if isinstance(unfitted, UnfittedMap) else unfitted
        errors = angle_sweep(feature_map, radius, angles)
        whole: Row = {
            "accounting": "fitted",
            "map": name,
            "projections": feature_map.num_projections,
            "features": feature_map.num_features,
            "radius": radius,
        }
        for angle, error in zip(SHOWN, errors.tolist(), strict=True):
            rows.append({**whole, "angle": angle, "predicted": rounded(error)})
        rows.append({**whole, "worst": rounded(worst_case(feature_map, radius).error)})
    return rows


def statistics(errors: Tensor, predicted: float, tail: float) -> Row:
    """Of relative errors [replicates] with this RMSE and excess fourth moment in theory.

    rmse_stderr is the theory's too; None, like z, where the map is exact.
    """
    count = errors.numel()
    row: Row = {
        "mean": rounded(1.0 + float(errors.mean())),
        "std": rounded(float(errors.std())),
        "rmse": rounded(float(errors.square().mean().sqrt())),
        "predicted": rounded(predicted),
        "negative": rounded(float((errors < -1.0).double().mean())),
    }
    if predicted < EXACT:
        return {**row, "z": None, "rmse_stderr": None, "resolved": False}
    kurtosis = 3.0 + max(tail, 0.0) / predicted**4
    spread = 0.5 * math.sqrt((kurtosis - 1.0) / count)
    z = float(errors.mean()) * count**0.5 / predicted
    seen: Row = {"rmse_stderr": rounded(spread * predicted), "resolved": spread <= RESOLVED}
    return {**row, "z": round(z, 3), **seen}


def rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


# -- what is claimed ------------------------------------------------------------------------------------
MEASURED_POINTS = {  # claim -> accounting, map, radius, angle: points that 4,000 replicates resolve
    "rmse-trig-iid": ("length64", "trigonometric iid", 1.0, 0.5),
    "rmse-trig-iid-far": ("length64", "trigonometric iid", 1.0, 0.98),
    "rmse-trig-orthogonal": ("length64", "trigonometric orthogonal", 1.0, 0.5),
    "rmse-favor++-iid": ("length64", "FAVOR++ iid", 1.0, 0.5),
    "rmse-favor++-orthogonal": ("length64", "FAVOR++ orthogonal", 1.0, 0.5),
    "rmse-favor++-simplex": ("length64", "FAVOR++ simplex", 1.0, 0.5),
    "rmse-angular-1": ("length64", "angular n=1", 1.0, 0.75),
    "rmse-angular-3": ("length64", "angular n=3", 1.0, 0.75),
    "rmse-angular-1-long": ("length256", "angular n=1", 1.0, 0.75),
}
IID_HYBRID, LONG = "angular n=8, iid bases", "projections"


def measured(rows: list[Row]) -> Measured:
    """Sample RMSEs at single points, and worst cases of the library's closed forms."""
    swept = [row for row in rows if "rmse" in row]
    resolved = [row for row in swept if row["resolved"]]
    ratios = [row["rmse"] / row["predicted"] for row in resolved]
    squares = [row["z"] ** 2 for row in resolved]
    found: Measured = {
        "rmse-over-closed-form-low": min(ratios),
        "rmse-over-closed-form-high": max(ratios),
        "z-rms": math.sqrt(sum(squares) / len(squares)),
    }
    for claim, (accounting, label, radius, angle) in MEASURED_POINTS.items():
        found[claim] = value_at(swept, accounting, label, radius, angle)["rmse"]
    for radius in (1.0, 1.5, 2.0):
        hybrid = worst_of(rows, LONG, IID_HYBRID, radius)
        base = float(largest_base_error(radius, int(hybrid["m"])))
        found[f"worst-angular-8-r{radius:g}"] = hybrid["worst"] / base
        found[f"bound-angular-8-r{radius:g}"] = hybrid["worst"] / float(
            angular_bound(radius, int(hybrid["m"]), 8)
        )
    trig = "trigonometric iid"
    hybrid, other = (worst_of(rows, LONG, label, 1.0)["worst"] for label in (IID_HYBRID, trig))
    found["paper-worst"] = hybrid / other
    found["paper-middle"] = (
        value_at(swept, LONG, IID_HYBRID, 1.0, 0.5)["predicted"]
        / value_at(swept, LONG, trig, 1.0, 0.5)["predicted"]
    )
    pair = ("angular n=1", "trigonometric orthogonal")
    hybrid, other = (worst_of(rows, "length64", label, 1.0)["worst"] for label in pair)
    found["equal-worst"] = hybrid / other
    hybrid, other = (value_at(swept, "length64", p, 1.0, 0.5)["predicted"] for p in pair)
    found["equal-middle"] = hybrid / other
    return found


EXPERIMENT = Experiment(
    name="hrf-pointwise",
    title="Pointwise estimation of the softmax kernel",
    paper="Choromanski et al., Hybrid Random Features, 2022, pointwise softmax kernel estimation",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
