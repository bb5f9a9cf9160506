"""The deterministic half of the contract: what a map declares is true."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bochner.projections import IID
from bochner.testing.edges import LARGE_NORM, errors, inputs_untouched, large_norms, use_before_fit
from bochner.testing.lifecycle import resample, round_trips, seeded
from bochner.testing.report import ContractError
from bochner.testing.requirement import NUM_FEATURES, points, require
from bochner.testing.subject import Subject


def check_declarations(subject: Subject) -> tuple[list[str], list[str]]:
    """Names of the properties found true, and what could not be checked.

    Dimensions: 1; 3 and 5 (no power of two; m = 8 is a multiple of neither); 8.
    Raises:     ContractError naming the property that fails.
    """
    checked: list[str] = []
    skipped: list[str] = []
    for dim in (1, 3, 5, 8):
        for name, check in CHECKS.items():
            try:
                reason = check(subject, dim)
            except ContractError:
                raise
            except Exception as error:
                raise ContractError(
                    name, f"{subject} raised {type(error).__name__} at d={dim}: {error}"
                ) from error
            (checked if reason is None else skipped).append(reason or name)
    return list(dict.fromkeys(checked)), list(dict.fromkeys(skipped))


def sizes(subject: Subject, dim: int) -> str | None:
    """num_features, dim and batch_shape are those that were asked for, and those that come out."""
    budget = subject.budget(NUM_FEATURES)
    x, y = points(dim)
    for batch in ((), (2, 3)):
        phi = subject.build(dim, NUM_FEATURES, batch_shape=batch)
        declared = (phi.dim, phi.num_features, tuple(phi.batch_shape))
        require(
            declared == (dim, budget, batch),
            "num_features",
            f"{subject}: asked for dim={dim}, num_features={budget}, batch_shape={batch};"
            f" the map declares {declared}.",
        )
        for side, function, p in (("query", phi.query, x), ("key", phi.key, y)):
            for points_in in (p, p.expand(*batch, *p.shape), p.expand(2, *batch, *p.shape)):
                features = function(points_in)
                lead = torch.broadcast_shapes(tuple(points_in.shape[:-2]), batch)
                expected = ((*lead, len(p), budget), (*lead, len(p), 1))
                found = (tuple(features.values.shape), tuple(features.log_scale.shape))
                require(
                    found == expected,
                    "num_features" if found[0][-1] != budget else "batch_shape",
                    f"{subject}: {side}({list(points_in.shape)}) with batch_shape={batch} gives values"
                    f" and log_scale of shapes {found}; expected {expected}.",
                )
    if phi.draws() and dim > 1:  # in one dimension an even map of ±sqrt(d) has no randomness
        estimates = phi.estimate(x, y).flatten(0, -3)
        require(
            not bool(torch.isclose(estimates[0, 0], estimates[1, 0], rtol=1e-9, atol=0).all()),
            "batch_shape",
            f"{subject}: two elements of batch_shape={batch} hold the same random draw.",
        )
    return None


def dtypes(subject: Subject, dim: int) -> str | None:
    """Features are float32 for every input but float64; the directions may be stored in either."""
    phi = subject.build(dim, NUM_FEATURES)
    x, _ = points(dim)
    for given, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        for side in (phi.query, phi.key):
            features = side(x.to(given))
            found = {features.values.dtype, features.log_scale.dtype}
            require(
                found == {expected},
                "dtype",
                f"{subject}: {given} points give features in {found}; expected {expected}.",
            )
    return None


def positive(subject: Subject, dim: int) -> str | None:
    """A map that declares itself positive has positive estimates and no negative feature."""
    phi = subject.build(dim, NUM_FEATURES)
    x, y = points(dim)
    require(
        phi.positive == subject.spec.positive,
        "positive",
        f"{subject}: the SPEC says positive={subject.spec.positive}, the map {phi.positive}.",
    )
    before = subject.unfitted(dim, NUM_FEATURES)
    for name in ("positive", "unbiased"):
        require(
            getattr(before, name) == getattr(phi, name),
            name,
            f"{subject}: {name} is {getattr(before, name)} before fit, {getattr(phi, name)} after.",
        )
    if not phi.positive:
        return None
    lowest = min(float(f.materialise().min()) for f in (phi.query(x), phi.key(y)))
    require(lowest >= 0, "positive", f"{subject} declares positive; a feature is {lowest}.")
    lowest = float(phi.estimate(x, y).min())
    require(lowest > 0, "positive", f"{subject} declares positive; an estimate is {lowest}.")
    log_values = (phi.query(x).log_values, phi.key(y).log_values)
    require(
        None not in log_values,
        "positive",
        f"{subject} declares positive; make its features by Features.from_logs, which keeps the"
        " logarithms that stable consumers need.",
    )
    return None


def symmetric(subject: Subject, dim: int) -> str | None:
    """A map that declares itself symmetric has one function for queries and keys."""
    phi = subject.build(dim, NUM_FEATURES)
    if not phi.symmetric:
        return None
    x, _ = points(dim)
    gap = float((phi.query(x).materialise() - phi.key(x).materialise()).abs().max())
    require(
        gap <= 1e-12, "symmetric", f"{subject} declares symmetric; query and key differ by {gap}."
    )
    return None


def log_exact(subject: Subject, dim: int) -> str | None:
    """The exact value is the kernel, sign and all, unless the map says that it changes it."""
    if subject.spec.changes_kernel:
        return "log_exact: the specification changes the kernel"
    x, y = points(dim)
    log_abs, sign = subject.build(dim, NUM_FEATURES).log_exact(x, y)
    truth = subject.kernel.signed_log(x, y)
    gap = float((log_abs - truth.log_abs).abs().max())
    require(
        gap <= 1e-9 and torch.equal(sign, truth.sign),
        "log_exact",
        f"{subject}: log_exact is off the kernel's logarithm by {gap} (d={dim}); set"
        " changes_kernel=True if that is meant.",
    )
    return None


def log_estimate(subject: Subject, dim: int) -> str | None:
    """log_estimate, estimate and the inner product of the features are one number."""
    phi = subject.build(dim, NUM_FEATURES)
    x, y = points(dim)
    plain = phi.query(x).materialise() @ phi.key(y).materialise().transpose(-1, -2)
    exact = phi.log_exact(x, y).value()
    for name, value in (
        ("log_estimate", phi.log_estimate(x, y).value()),
        ("estimate", phi.estimate(x, y)),
        ("forward", phi(x, y)),
    ):
        gap = float(((value - plain) / exact).abs().max())
        require(
            gap <= 1e-10,
            "log_estimate",
            f"{subject}: {name} is off query . key by {gap} of the kernel (d={dim}).",
        )
    return None


def variances_agree(subject: Subject, dim: int) -> str | None:
    """Closed forms are not negative, and the diagonal of the covariance is the variance (iid)."""
    phi = subject.build(dim, NUM_FEATURES)
    x, y = points(dim)
    variance, covariance = phi.relative_variance(x, y), phi.relative_covariance(x, y)
    if variance is None:
        return "relative_variance: no closed form"
    require(
        bool((variance >= 0).all()) and variance.dtype == torch.float64,
        "relative_variance",
        f"{subject}: the variance is negative, NaN or not float64: {variance}.",
    )
    far = LARGE_NORM * torch.nn.functional.normalize(torch.cat((x, -x)), dim=-1)
    beyond = phi.relative_variance(far, far)
    require(
        beyond is not None and bool((beyond >= 0).all()),
        "relative_variance",
        f"{subject}: the variance at norm {LARGE_NORM:g} is NaN, negative or None; inf is fine.",
    )
    base = subject.projection.antithetic_base or subject.projection
    if covariance is None or not isinstance(base, IID):
        return None
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    gap = float((diagonal - variance).abs().max())
    require(
        gap <= 1e-9 * (1 + float(variance.max())),
        "relative_covariance",
        f"{subject}: the diagonal of relative_covariance is off relative_variance by {gap}.",
    )
    return None


CHECKS: dict[str, Callable[[Subject, int], str | None]] = {
    "inputs untouched": inputs_untouched,
    "sizes and batch_shape": sizes,
    "dtypes": dtypes,
    "positive": positive,
    "symmetric": symmetric,
    "log_exact": log_exact,
    "log_estimate": log_estimate,
    "closed forms agree": variances_agree,
    "same seed, same map": seeded,
    "resample_": resample,
    "deepcopy, pickle, state_dict": round_trips,
    "finite at norm 80": large_norms,
    "errors": errors,
    "NotFittedError": use_before_fit,
}
