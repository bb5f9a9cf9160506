"""The errors of a chain's log Z through random features: predicted against measured.

The 2020 note that this library completes left two sections empty: how wrong is the partition function of
a chain whose potentials exp(a_x . b_y) are replaced by random features, and how wrong is the ratio of
attention? One formula answers both (docs/theory.md 14 to 18), and this is its test:

    chains      12 states, shared, cycled and independent draws, by T and m: bias, variance, log Z
    blocks      one budget of directions, split into B cycled blocks, no unaries: the block law
    methods     1,024 states, by the scale of the potentials and the sharpness of the unaries: features,
                hybrid, beam and SVD beside the exact value, and what `diagnose` says before
    attention   the ratio of linear attention, by the norm of the points and m

Small chains have exact predictions: chi_ef and E_p rho by enumeration of edges, the second moment of
independent features by the transfer matrix over pairs of states. `z` are deviations in standard errors.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.reproduce import Cell, Experiment, Measured, Row
from bochner.request import Request
from bochner.structured import ExactChain, HybridChain, LowRankChain, SignedChain
from bochner.structured.errors.diagnose import diagnose
from bochner.structured.errors.edge_laws import edge_law
from bochner.structured.errors.error_laws import all_excess, attention_ratio_error, exact_ratios
from bochner.structured.errors.path_law import PathLaw
from experiments.structured.error_laws_report import draw, in_first_order, summary

MAPS = ("positive", "hyperbolic", "trigonometric", "gerf")
STATES, DIM, LOGIT_STD = 12, 4, 0.25
STEPS, DIRECTIONS = (3, 4, 8, 16, 32), (64, 256, 1024)
BLOCK_STEPS, BLOCK_TOTAL, BLOCKS = 25, 1024, (1, 2, 4, 8, 24)
SCALES, PEAKS = (0.25, 0.5, 1.0, 2.0), (1.0, 3.0, 6.0)
LARGE_STATES, LARGE_STEPS, LARGE_DIM, BEAM, RANK = 1024, 128, 64, 64, 16
NORMS = (0.5, 1.0, 1.5, 2.0, 3.0)
ENTRIES = 1 << 21  # features held at once
FEATURES = 1 << 26  # drawn in one cell, at most or for 500 redraws
FIGURES = 5


def cells(quick: bool) -> list[Cell]:
    """Independent of each other; seeds differ."""
    maps = ("positive", "trigonometric") if quick else MAPS
    steps = (3, 8) if quick else STEPS
    counts = (64,) if quick else DIRECTIONS
    redraws = 4000 if quick else 20_000
    found: list[Cell] = []
    for name in maps:
        for t in steps:
            for r in counts:
                for sharing in ("shared", "independent"):
                    found.append(_small(name, t, r, 1 if sharing == "shared" else t - 1, redraws))
        for blocks in (1, 4, 24) if quick else BLOCKS:
            cell = _small(name, BLOCK_STEPS, BLOCK_TOTAL // blocks, blocks, redraws // 4)
            found.append({**cell, "kind": "blocks"})
    size = 256 if quick else LARGE_STATES
    for name in (m for m in maps if m != "hyperbolic"):
        for scale in (0.5, 1.0) if quick else SCALES:
            for peak in (3.0,) if quick else PEAKS:
                draws = 3 if quick else 6
                found.append(
                    {
                        "kind": "methods",
                        "map": name,
                        "states": size,
                        "steps": 32 if quick else LARGE_STEPS,
                        "scale": scale,
                        "peak": peak,
                        "m": 256 if quick else 1024,
                        "redraws": draws,
                    }
                )
    for name in maps:
        for norm in (1.0,) if quick else NORMS:
            for r in counts:
                count = min(20_000, FEATURES // (33 * r))
                found.append(
                    {"kind": "attention", "map": name, "norm": norm, "r": r, "redraws": count}
                )
    return [{**cell, "seed": seed} for seed, cell in enumerate(found)]


def _small(name: str, steps: int, directions: int, blocks: int, redraws: int) -> Cell:
    """A chain of 12 states, with fewer redraws where one of them draws many features."""
    redraws = max(500, min(redraws, FEATURES // (blocks * STATES * directions)))
    return {
        "kind": "chains",
        "map": name,
        "steps": steps,
        "r": directions,
        "blocks": blocks,
        "redraws": redraws,
    }


def run(cell: Cell, folder: Path) -> list[Row]:
    """The rows of one cell."""
    kinds = {"chains": chain, "blocks": chain, "methods": methods, "attention": attention}
    rows = kinds[str(cell["kind"])](cell)
    return [
        {k: rounded(v) if isinstance(v, float) else v for k, v in {**cell, **row}.items()}
        for row in rows
    ]


def rounded(value: float) -> float | None:
    return float(f"{value:.{FIGURES}g}") if math.isfinite(value) else None


# -- small chains ---------------------------------------------------------------------------------------
def build(name: str, directions: int, dim: int, batch: tuple[int, ...], seed: int) -> FeatureMap:
    """A map of so many independent directions, one for each element of the batch."""
    shapes = {"hyperbolic": Hyperbolic, "trigonometric": Trigonometric}
    shape = shapes.get(name, Positive)()
    request = Request(
        dim=dim,
        num_features=shape.columns * directions,
        batch_shape=batch,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    if name != "gerf":
        return RandomFeatures(request, shape)
    wide = GaussianProposal(torch.zeros(dim), 1.2 * torch.eye(dim))  # A = -0.05
    return RandomFeatures(request, shape, wide)


def embeddings(
    states: int, dim: int, logit_std: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """a, b [X, n] with a_x . b_y of this standard deviation."""
    size = math.sqrt(logit_std) / dim**0.25
    return tuple(size * torch.randn(2, states, dim, generator=generator, dtype=torch.float64))


def chain(cell: Cell) -> list[Row]:
    """Z^ / Z over redraws, and what was predicted."""
    steps, blocks, r = int(cell["steps"]), int(cell["blocks"]), int(cell["r"])
    name, redraws = str(cell["map"]), int(cell["redraws"])
    generator = torch.Generator().manual_seed(2020)  # one model for all cells
    a, b = embeddings(STATES, DIM, LOGIT_STD, generator)
    unaries = torch.randn(max(*STEPS, BLOCK_STEPS), STATES, generator=generator).double()[:steps]
    if cell["kind"] == "blocks":  # all edges alike: chi_ef is nearly the same for all pairs of them
        unaries = torch.zeros_like(unaries)
    exact = PathLaw(a @ b.T, unaries)
    law = edge_law(build(name, 1, DIM, (), 0))
    ratios = exact_ratios(law, a, b, exact)

    samples, size = [], max(1, ENTRIES // (blocks * STATES * r))
    for start in range(0, redraws, size):
        count = min(size, redraws - start)
        phi = build(name, r, DIM, (count, blocks), 1_000_003 * int(cell["seed"]) + start)
        left, right = phi.query(a), phi.key(b)
        kernels = left.values @ right.values.mT * torch.exp(left.log_scale + right.log_scale.mT)
        message = torch.exp(unaries[0] - unaries[0].amax()).expand(count, 1, STATES)
        log = torch.full((count,), float(unaries[0].amax()), dtype=torch.float64)
        for edge in range(steps - 1):
            message = message @ kernels[:, edge % blocks] * torch.exp(unaries[edge + 1])
            total = message.abs().sum((-1, -2))
            log, message = log + total.log(), message / total[:, None, None]
        samples.append(message.sum((-1, -2)) * torch.exp(log - exact.log_partition))
    ratio = torch.cat(samples)
    logs = ratio[ratio > 0].log()
    variance = ratios.variance(r, blocks=blocks)
    moment = exact.relative_second_moment(all_excess(law, a, b), r) if blocks == steps - 1 else None
    return [
        {
            "chi": ratios.chi,
            "mean": float(ratio.mean()) - 1.0,
            "mean_stderr": stderr(ratio),
            "mean_predicted": ratios.partition_bias(r, blocks=blocks),
            "square": float((ratio - 1.0).square().mean()),
            "square_stderr": stderr((ratio - 1.0).square()),
            "square_predicted": None if moment is None else moment - 1.0,
            "log_std": float(logs.std()),
            "log_std_stderr": stderr((logs - logs.mean()).square()) / (2.0 * float(logs.std())),
            "log_std_predicted": math.sqrt(variance),
            "log_mean": float(logs.mean()),
            "log_mean_stderr": stderr(logs),
            "log_mean_predicted": ratios.bias(r, blocks=blocks),
            "negative": float((ratio <= 0).double().mean()),
        }
    ]


def stderr(samples: Tensor) -> float:
    return float(samples.std()) / math.sqrt(samples.numel())


# -- methods on a larger chain ----------------------------------------------------------------------------
def methods(cell: Cell) -> list[Row]:
    """Errors of log Z, in nats a step, of every method on one chain."""
    states, steps, m = int(cell["states"]), int(cell["steps"]), int(cell["m"])
    model = torch.Generator().manual_seed(2021)
    a, b = (x.float() for x in embeddings(states, LARGE_DIM, float(cell["scale"]), model))
    unaries = float(cell["peak"]) * torch.randn(steps, states, generator=model)
    exact = float(ExactChain.from_embeddings(a, b, unaries).log_partition)
    name, signed = str(cell["map"]), cell["map"] == "trigonometric"
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    kinds = {"features": SignedChain if signed else LowRankChain}
    if not signed:
        kinds["hybrid"] = HybridChain
    rows: list[Row] = []
    for label, kind in kinds.items():
        for blocks in (1, 8):
            errors, found = [], None
            for _ in range(int(cell["redraws"])):
                made = kind.from_embeddings(
                    a,
                    b,
                    unaries,
                    feature_map=name,
                    num_features=m // blocks,
                    blocks=blocks,
                    generator=generator,
                )
                value = made.log_partition
                errors.append(float(getattr(value, "log_abs", value)) - exact)
                found = found or diagnose(made, generator=generator)
            assert found is not None
            logs = torch.tensor(errors, dtype=torch.float64)
            rows.append(
                {
                    "method": label,
                    "blocks": blocks,
                    "rms": float(logs.square().mean().sqrt()) / steps,
                    "log_std": float(logs.std()) / steps,
                    "log_std_predicted": float(found.std) / steps,
                    "log_mean": float(logs.mean()) / steps,
                    "log_mean_predicted": float(found.bias) / steps,
                    "chi": float(found.chi),
                    "eta": float(found.eta),
                    "verdict": found.verdict,
                }
            )
    if name == "positive":
        rows.append(
            {"method": f"beam {BEAM}", "rms": abs(beam_error(a, b, unaries, exact)) / steps}
        )
        rows.append(
            {"method": f"SVD, rank {RANK}", "rms": abs(svd_error(a, b, unaries, exact)) / steps}
        )
    return rows


def beam_error(a: Tensor, b: Tensor, unaries: Tensor, exact: float) -> float:
    """Of log Z over the strongest states of each step alone: never above 0."""
    top = unaries.topk(min(BEAM, unaries.shape[-1]), dim=-1)
    message = top.values[0].double()
    for t in range(1, len(unaries)):
        scores = a[top.indices[t - 1]] @ b[top.indices[t]].T
        message = torch.logsumexp(message.unsqueeze(-1) + scores, dim=0) + top.values[t]
    return float(torch.logsumexp(message, dim=0)) - exact


def svd_error(a: Tensor, b: Tensor, unaries: Tensor, exact: float) -> float:
    """Of log |Z| through the best approximation of K of low rank; NaN where Z^ <= 0."""
    logits = (a @ b.T).double()
    shift = logits.amax()
    u, s, v = torch.linalg.svd(torch.exp(logits - shift), full_matrices=False)
    left, right = u[:, :RANK] * s[:RANK], v[:RANK]
    top = unaries.double().amax(-1, keepdim=True)
    weights = torch.exp(unaries.double() - top)
    message, log = weights[0], float(top.sum()) + (len(unaries) - 1) * float(shift)
    for t in range(1, len(unaries)):
        message = (message @ left) @ right * weights[t]
        size = float(message.abs().sum())
        message, log = message / size, log + math.log(size)
    total = float(message.sum())
    return log + math.log(total) - exact if total > 0 else math.nan


# -- attention ------------------------------------------------------------------------------------------
def attention(cell: Cell) -> list[Row]:
    """One query, 32 keys of the same norm, values ~ N(0, 1): errors of the output over redraws."""
    name, r, redraws = str(cell["map"]), int(cell["r"]), int(cell["redraws"])
    model = torch.Generator().manual_seed(2022)
    points = torch.randn(33, 8, generator=model, dtype=torch.float64)
    points = float(cell["norm"]) * points / points.norm(dim=-1, keepdim=True)
    query, keys = points[0], points[1:]
    values = torch.randn(32, 4, generator=model, dtype=torch.float64)
    weights = torch.softmax(keys @ query, dim=0)
    predicted = attention_ratio_error(
        edge_law(build(name, r, 8, (), 0)), query, keys, values, weights
    )
    errors, size = [], max(1, ENTRIES // (33 * r))
    for start in range(0, redraws, size):
        batch = (min(size, redraws - start),)
        phi = build(name, r, 8, batch, 1_000_003 * int(cell["seed"]) + start)
        left, right = phi.query(query.unsqueeze(0)), phi.key(keys)
        estimates = left.values @ right.values.mT * torch.exp(left.log_scale + right.log_scale.mT)
        outputs = (estimates @ values / estimates.sum(-1, keepdim=True)).squeeze(-2)
        errors.append(outputs - weights @ values)
    found = torch.cat(errors)
    mean, spread = found.mean(0), (found - found.mean(0)).square().sum(-1)
    return [
        {
            "cv2": predicted.relative_variance,
            "variance": float(spread.mean()),
            "variance_stderr": stderr(spread),
            "variance_predicted": float(predicted.covariance.trace()),
            "bias": float(mean.norm()),
            "bias_stderr": math.sqrt(float(spread.mean()) / redraws),
            "bias_predicted": float(predicted.bias.norm()),
            "cosine": float(torch.cosine_similarity(mean, predicted.bias, dim=0)),
        }
    ]


# -- what is claimed ------------------------------------------------------------------------------------
def measured(rows: list[Row]) -> Measured:
    """Measured over predicted, in the range where first order is claimed, and root mean squares of z."""
    small = [row for row in rows if row["kind"] in ("chains", "blocks")]
    independent = [row for row in small if row["blocks"] == row["steps"] - 1]
    seen = [row for row in independent if row["square_stderr"] < 0.1 * row["square_predicted"]]
    three = [row for row in small if row["steps"] == 3 and row["blocks"] == 1]
    first = [row for row in small if in_first_order(row)]
    blocks = [row for row in small if row["kind"] == "blocks" and row["map"] == "positive"]
    output = [row for row in rows if row["kind"] == "attention" and row["cv2"] < 0.02]
    return {
        "unbiased-z": rms([row["mean"] / row["mean_stderr"] for row in independent]),
        "second-moment-z": rms(
            [(row["square"] - row["square_predicted"]) / row["square_stderr"] for row in seen]
        ),
        "second-moment": ends([row["square"] / row["square_predicted"] for row in seen]),
        "shared-bias-z": rms(
            [(row["mean"] - row["mean_predicted"]) / row["mean_stderr"] for row in three]
        ),
        "log-std": ends([row["log_std"] / row["log_std_predicted"] for row in first]),
        "log-bias": rms(
            [(row["log_mean"] - row["log_mean_predicted"]) / row["log_std"] for row in first]
        ),
        "block-law": ends([row["log_std"] / row["log_std_predicted"] for row in blocks]),
        "block-spread": max(r["log_std"] for r in blocks) / min(r["log_std"] for r in blocks),
        "attention-variance": ends([row["variance"] / row["variance_predicted"] for row in output]),
        "attention-cosine": min(
            row["cosine"] for row in output if row["bias_predicted"] > 5 * row["bias_stderr"]
        ),
    }


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


def ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


EXPERIMENT = Experiment(
    name="structured-error-laws",
    title="How wrong log Z is through random features",
    paper="A note on structured inference with random features, 2020, sections 1.2 and 2.2 (left empty)",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
