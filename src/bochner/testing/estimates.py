"""The statistical half of the contract: unbiasedness, and the closed-form variance against the empirical."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.projections import IID
from bochner.testing.plan import Plan, Points, points
from bochner.testing.report import Comparison, ContractError
from bochner.testing.significance import (
    Deviation,
    covariance_deviation,
    critical_z,
    mean_deviation,
    variance_deviation,
)
from bochner.testing.subject import Subject, ratios

_CHUNK = 5_000  # replicates per call: bounds memory
_NO_VARIANCE = 1e-20
_LARGEST_VARIANCE_STDERR = 0.05


def replicate(subject: Subject, plan: Plan, dim: int, pairs: Points) -> Tensor:
    """estimate / exact on the grid of all pairs, every replicate a fresh draw of all randomness.

    Data-aware maps are fitted once, to fixed data, and redrawn from then on. Shapes: -> [R, n, n].
    """
    count = min(_CHUNK, plan.replicates)
    feature_map = subject.build(dim, plan.num_features, batch_shape=(count,))
    generator = subject.generator(1)
    parts = []
    for start in range(0, plan.replicates, count):
        if start:
            feature_map.resample_(generator)
        parts.append(ratios(feature_map, pairs.x, pairs.y))
    return torch.cat(parts)[: plan.replicates]


def check_estimates(subject: Subject, plan: Plan) -> tuple[list[Comparison], list[str]]:
    """All statistical comparisons, and the reasons for those that were not possible.

    Raises:     ContractError naming `unbiased`, `relative_variance`, `relative_covariance`, or `power`
                if the plan could not have shown a fault.
    """
    comparisons: list[Comparison] = []
    skipped: list[str] = []
    for dim in plan.dims:
        pairs = points(dim, plan.seed)
        samples = replicate(subject, plan, dim, pairs)
        single = subject.build(dim, plan.num_features)
        comparisons += _unbiased(subject, plan, dim, pairs, samples, single.unbiased)
        found, reason = _variances(
            subject, dim, pairs, samples, single.relative_variance(pairs.x, pairs.y)
        )
        comparisons += found
        skipped += reason
        found, reason = _covariances(
            subject, dim, pairs, samples, single.relative_covariance(pairs.x, pairs.y)
        )
        comparisons += found
        skipped += reason
    return comparisons, list(dict.fromkeys(skipped))


def _unbiased(
    subject: Subject, plan: Plan, dim: int, pairs: Points, samples: Tensor, declared: bool
) -> list[Comparison]:
    found = []
    for i, label in enumerate(pairs.labels):
        deviation = mean_deviation(samples[:, i, i])
        if deviation.underpowered:
            raise ContractError(
                "power",
                f"unbiased of {subject} is underpowered at {label} (d={dim}): standard error"
                f" {100 * deviation.stderr:.2g} % of the kernel, at most 2 % is required; its variance"
                " is infinite or the plan too small: use Plan(replicates=...) with more.",
            )
        tolerance = 0.0 if declared else plan.bias_tolerance
        comparison = Comparison("unbiased", dim, label, deviation, tolerance)
        if comparison.rejected:
            what = "declared unbiased" if declared else f"bias_tolerance={tolerance}"
            raise ContractError(
                "unbiased",
                f"{subject}, {what}: the mean estimate at {label} (d={dim}) is"
                f" {1 + deviation.value:.6g} ± {deviation.stderr:.2g} of the exact value,"
                f" z={comparison.z:.1f} (critical {critical_z():.2f}, {plan.replicates} replicates).",
            )
        found.append(comparison)
    return found


def _variances(
    subject: Subject, dim: int, pairs: Points, samples: Tensor, declared: Tensor | None
) -> tuple[list[Comparison], list[str]]:
    if declared is None:
        return [], [f"relative_variance: {subject.projection!r} has no closed form here"]
    found = []
    for i in pairs.moderate:
        label, truth = pairs.labels[i], float(declared[..., i, i])
        if truth < _NO_VARIANCE or not truth < float("inf"):
            empirical = float(samples[:, i, i].var())
            if not (truth < _NO_VARIANCE and empirical < _NO_VARIANCE):
                raise ContractError(
                    "relative_variance",
                    f"{subject} declares {truth:.3g} at {label} (d={dim}); sampled {empirical:.3g}.",
                )
            continue
        deviation = variance_deviation(samples[:, i, i], truth)
        found.append(_judged(subject, "relative_variance", dim, label, deviation, truth))
    return found, []


def _covariances(
    subject: Subject, dim: int, pairs: Points, samples: Tensor, declared: Tensor | None
) -> tuple[list[Comparison], list[str]]:
    base = subject.projection.antithetic_base or subject.projection
    if declared is None or not isinstance(base, IID):
        return [], ["relative_covariance: exact only for independent directions"]
    found = []
    first = pairs.moderate[0]
    for other in pairs.moderate[1:]:
        truth = float(declared[..., first, first, other])
        label = f"{pairs.labels[first]} and {pairs.labels[other]}"
        a, b = samples[:, first, first], samples[:, first, other]
        if min(float(a.var()), float(b.var())) < _NO_VARIANCE:
            continue
        deviation = covariance_deviation(a, b, truth)
        found.append(_judged(subject, "relative_covariance", dim, label, deviation, truth))
    return found, []


def _judged(
    subject: Subject, failing: str, dim: int, label: str, deviation: Deviation, truth: float
) -> Comparison:
    comparison = Comparison(failing, dim, label, deviation)
    if not deviation.stderr <= _LARGEST_VARIANCE_STDERR:
        raise ContractError(
            "power",
            f"{failing} of {subject} is underpowered at {label} (d={dim}): standard error"
            f" {100 * deviation.stderr:.2g} % where at most {100 * _LARGEST_VARIANCE_STDERR:g} % is"
            " required; use Plan(replicates=...) with more.",
        )
    if comparison.rejected:
        raise ContractError(
            failing,
            f"{subject} declares {truth:.6g} at {label} (d={dim}); the sample is off by (log-ratio,"
            " or correlation)"
            f" {deviation.value:+.4f} ± {deviation.stderr:.4f}, z={deviation.z:.1f}"
            f" (critical {critical_z():.2f}).",
        )
    return comparison
