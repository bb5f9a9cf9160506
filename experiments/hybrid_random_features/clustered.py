"""Clustered hybrids on the paper's synthetic clusters: the mean squared error of exp(q.k) over all pairs.

    projections   m directions for each estimator: the paper's accounting, in which a map may take any
                  number of columns a projection (a clustered hybrid 4, a Gaussian mixture 26)
    columns       equally many feature columns for all

Each run redraws the directions; fitted matrices and centres stay. What the paper compares sees all pairs
of 2,000 queries and keys, other maps every second query and every second key: points of a cluster see much
the same error of a draw, so that more of them would tell little. `expected` is the library's closed form
of the same mean on every eighth query and key, exact whatever the tails.

A second part looks at the instance: the published matrices on other draws of the clusters, by closed form.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bochner.clusters import Clusters
from bochner.feature_map import FeatureMap
from bochner.feature_maps.cluster import CLUSTERS, ClusterPair
from bochner.reproduce import Cell, Experiment, Measured, Row
from experiments.hybrid_random_features import clustered_report as report
from experiments.hybrid_random_features.clustered_maps import (
    BOUNDED,
    CONSTANT,
    HYBRID,
    LINEAR,
    METHODS,
    MOMENT,
    bounded_matrix,
    moment_matrix,
    published_matrix,
)
from experiments.hybrid_random_features.clustered_points import (
    PER_CLUSTER,
    SETTINGS,
    Points,
    Setting,
    points,
)

PROJECTIONS = (20, 50, 80, 100, 120, 150, 200)
CLAIMED = (20, 100, 200)
COLUMNS = (104, 208, 416)  # multiples of 8 and of the Gaussian mixture's 26
RUNS, QUICK_RUNS = 20, 3
QUICK_PER_CLUSTER = 100
INSTANCES, QUICK_INSTANCES = 20, 3
INSTANCE_PROJECTIONS = 100
MATRICES = {HYBRID: published_matrix, BOUNDED: bounded_matrix, MOMENT: moment_matrix}
EXPECTED_POINTS = 250  # of either side, for closed forms
FIGURES = 5  # significant digits kept


def cells(quick: bool) -> list[Cell]:
    """Methods by setting and accounting; what needs no draw; other instances."""
    size: Cell = {"per_cluster": QUICK_PER_CLUSTER if quick else PER_CLUSTER, "instance": 0}
    runs = QUICK_RUNS if quick else RUNS
    found: list[Cell] = []
    for setting in SETTINGS:
        where: Cell = {"variance": setting.variance, "kept": setting.kept, **size}
        found.append({"part": "deterministic", **where})
        for accounting in ("projections", "columns"):
            for seed, label in enumerate(METHODS):
                how: Cell = {"accounting": accounting, "method": label, "runs": runs, "seed": seed}
                found.append({"part": "random", **where, **how, "thorough": not quick})
        count = QUICK_INSTANCES if quick else INSTANCES
        found.append({"part": "instances", **where, "instances": count})
    return found


def run(cell: Cell, folder: Path) -> list[Row]:
    """Rows of one cell."""
    part = {"random": random_rows, "deterministic": deterministic_rows, "instances": instance_rows}
    return part[str(cell["part"])](cell)


def where_of(cell: Cell) -> tuple[Setting, Row]:
    setting = Setting(int(cell["variance"]), int(cell["kept"]))
    return setting, {"part": cell["part"], "variance": setting.variance, "kept": setting.kept}


# -- random maps --------------------------------------------------------------------------------------
def random_rows(cell: Cell) -> list[Row]:
    """One row for each size of one method."""
    setting, where = where_of(cell)
    method, accounting = METHODS[str(cell["method"])], str(cell["accounting"])
    data = points(setting, int(cell["instance"]), int(cell["per_cluster"]))
    stride = 1 if method.published and accounting == "projections" else 2
    if accounting == "columns":
        budgets = COLUMNS if cell["thorough"] else COLUMNS[-1:]
        sizes = [columns // method.columns for columns in budgets]
    else:
        sizes = list(PROJECTIONS if cell["thorough"] and method.published else CLAIMED)
        sizes += [50] if cell["thorough"] and not method.published else []
    rows: list[Row] = []
    for m in sorted(sizes):
        generator = torch.Generator().manual_seed(1_000 * int(cell["seed"]) + m)
        phi = method.build(m * method.columns, data, generator)
        errors = squared_errors(phi, data, stride, int(cell["runs"]), generator)
        size: Row = {
            "accounting": accounting,
            "method": method.label,
            "m": m,
            "columns": phi.num_features,
            "directions": phi.num_projections,
        }
        rows.append({**where, **size, **statistics(errors), "expected": expected(phi, data)})
    return rows


def squared_errors(
    phi: FeatureMap, data: Points, stride: int, runs: int, generator: torch.Generator
) -> Tensor:
    """Mean squared error over pairs of each run, [runs]; float32, as features of |u| <= 1 allow."""
    queries, keys = data.queries[::stride].float(), data.keys[::stride].float()
    kernel = data.kernel[::stride, ::stride].float()
    errors = []
    for _ in range(runs):
        phi.resample_(generator)
        estimates = phi.query(queries).materialise() @ phi.key(keys).materialise().T
        errors.append(estimates.sub_(kernel).square_().mean())
    return torch.stack(errors).double()


def statistics(errors: Tensor) -> Row:
    """Mean over runs with its standard error, smallest and largest."""
    values = {"mse": errors.mean(), "low": errors.min(), "high": errors.max()}
    row: Row = {name: rounded(float(value)) for name, value in values.items()}
    return {**row, "stderr": rounded(float(errors.std()) / len(errors) ** 0.5)}


def expected(phi: FeatureMap, data: Points) -> float | None:
    """The mean squared error by closed form on an even part of the pairs; None where there is none."""
    stride = max(1, len(data.queries) // EXPECTED_POINTS)
    queries, keys = data.queries[::stride], data.keys[::stride]
    variance = phi.relative_variance(queries, keys)
    if variance is None:
        return None
    return rounded(float((variance * torch.exp(2.0 * queries @ keys.T)).mean()))


def rounded(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


# -- what needs no draw ---------------------------------------------------------------------------------
def deterministic_rows(cell: Cell) -> list[Row]:
    """A constant, and the first two terms of the series: what any map has to beat on these data."""
    setting, where = where_of(cell)
    data = points(setting, int(cell["instance"]), int(cell["per_cluster"]))
    kernel = data.kernel
    linear = 1.0 + data.queries @ data.keys.T
    found = {
        CONSTANT: (1, kernel.var(correction=0)),
        LINEAR: (1 + data.queries.shape[-1], (linear - kernel).square().mean()),
    }
    return [
        {**where, "method": label, "columns": columns, "mse": rounded(float(error))}
        for label, (columns, error) in found.items()
    ]


# -- other instances ------------------------------------------------------------------------------------
def instance_rows(cell: Cell) -> list[Row]:
    """The clustered hybrid with three choices of A, on several draws of the clusters."""
    setting, where = where_of(cell)
    rows: list[Row] = []
    for instance in range(int(cell["instances"])):
        data = points(setting, instance, int(cell["per_cluster"]))
        pairs = cluster_pairs(data)
        for label, matrix_of in MATRICES.items():
            matrices = torch.stack([matrix_of(pair) for pair in pairs])
            ideal = [_remainder(matrix_of(pair), pair) for pair in pairs]
            generator = torch.Generator().manual_seed(0)
            method = METHODS[label]
            phi = method.build(INSTANCE_PROJECTIONS * method.columns, data, generator)
            row: Row = {**where, "method": label, "instance": instance, "m": INSTANCE_PROJECTIONS}
            row |= {"largest_a": rounded(float(matrices.abs().max()))}
            row |= {"s_low": rounded(min(ideal)), "s_high": rounded(max(ideal))}
            rows.append({**row, "expected": expected(phi, data)})
    return rows


def cluster_pairs(data: Points) -> list[ClusterPair]:
    """Centres, means and squares of the 2 x 2 pairs of clusters that k-means finds."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (
        Clusters.of(name, side, count=CLUSTERS, batch_shape=(), generator=generator)
        for name, side in (("queries", data.queries), ("keys", data.keys))
    )
    clusters = range(CLUSTERS)
    return [ClusterPair(queries.cluster(i), keys.cluster(j)) for i in clusters for j in clusters]


def _remainder(matrix: Tensor, pair: ClusterPair) -> float:
    """|A q + A^-1 k|^2 at the two centres: the published s."""
    return float((matrix * pair.query[0] + pair.key[0] / matrix).square().sum())


def measured(rows: list[Row]) -> Measured:
    """Ranges over the runs for the paper's methods, and of s over the pairs of clusters."""
    return report.measured(rows, CLAIMED)


EXPERIMENT = Experiment(
    name="hrf-clustered",
    title="Clustered hybrids on synthetic clusters",
    paper="Choromanski et al., Hybrid Random Features, 2022, synthetic clusters (public code)",
    cells=cells,
    run=run,
    draw=report.draw,
    measured=measured,
    summary=report.summary,
    requires=("matplotlib",),
)
