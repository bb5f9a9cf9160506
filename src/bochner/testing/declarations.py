"""The deterministic half of the contract: what a map declares is true."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.projections import IID
from bochner.testing.plan import points
from bochner.testing.report import ContractError
from bochner.testing.subject import Subject
from bochner.validation import NotFittedError

LARGE_NORM = 80.0
_M = 8


def check_declarations(subject: Subject) -> tuple[list[str], list[str]]:
    """Names of the properties found true, and what could not be checked.

    Dimensions: 1; 3 and 5 (no power of two; m = 8 is a multiple of neither); 8.
    Raises:     ContractError naming the property that fails.
    """
    checked: list[str] = []
    skipped: list[str] = []
    for dim in (1, 3, 5, 8):
        for name, check in _CHECKS.items():
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


def _require(condition: bool, failing: str, message: str) -> None:
    if not condition:
        raise ContractError(failing, message)


def _points(dim: int, count: int = 4) -> tuple[Tensor, Tensor]:
    pairs = points(dim, seed=dim)
    return pairs.x[:count], pairs.y[:count]


def _same(a: FeatureMap, b: FeatureMap, dim: int) -> bool:
    x, y = _points(dim)
    return torch.equal(a.estimate(x, y), b.estimate(x, y))


def _sizes(subject: Subject, dim: int) -> str | None:
    """num_features, dim and batch_shape are those that were asked for, and those that come out."""
    budget = subject.budget(_M)
    x, y = _points(dim)
    for batch in ((), (2, 3)):
        phi = subject.build(dim, _M, batch_shape=batch)
        declared = (phi.dim, phi.num_features, tuple(phi.batch_shape))
        _require(
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
                _require(
                    found == expected,
                    "num_features" if found[0][-1] != budget else "batch_shape",
                    f"{subject}: {side}({list(points_in.shape)}) with batch_shape={batch} gives values"
                    f" and log_scale of shapes {found}; expected {expected}.",
                )
    if phi.draws() and dim > 1:  # in one dimension an even map of ±sqrt(d) has no randomness
        estimates = phi.estimate(x, y).flatten(0, -3)
        _require(
            not bool(torch.isclose(estimates[0, 0], estimates[1, 0], rtol=1e-9, atol=0).all()),
            "batch_shape",
            f"{subject}: two elements of batch_shape={batch} hold the same random draw.",
        )
    return None


def _dtypes(subject: Subject, dim: int) -> str | None:
    """Features are float32 for every input but float64; the directions may be stored in either."""
    phi = subject.build(dim, _M)
    x, _ = _points(dim)
    for given, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        for side in (phi.query, phi.key):
            features = side(x.to(given))
            found = {features.values.dtype, features.log_scale.dtype}
            _require(
                found == {expected},
                "dtype",
                f"{subject}: {given} points give features in {found}; expected {expected}.",
            )
    return None


def _positive(subject: Subject, dim: int) -> str | None:
    """A map that declares itself positive has positive features and estimates."""
    phi = subject.build(dim, _M)
    x, y = _points(dim)
    _require(
        phi.positive == subject.spec.positive,
        "positive",
        f"{subject}: the SPEC says positive={subject.spec.positive}, the map {phi.positive}.",
    )
    unfitted = subject.unfitted(dim, _M)
    for name in ("positive", "unbiased"):
        _require(
            getattr(unfitted, name) == getattr(phi, name),
            name,
            f"{subject}: {name} is {getattr(unfitted, name)} before fit, {getattr(phi, name)} after.",
        )
    if not phi.positive:
        return None
    lowest = min(float(f.materialise().min()) for f in (phi.query(x), phi.key(y)))
    lowest = min(lowest, float(phi.estimate(x, y).min()))
    _require(
        lowest > 0, "positive", f"{subject} declares positive; a feature or estimate is {lowest}."
    )
    log_values = (phi.query(x).log_values, phi.key(y).log_values)
    _require(
        None not in log_values,
        "positive",
        f"{subject} declares positive; make its features by Features.from_logs, which keeps the"
        " logarithms that stable consumers need.",
    )
    return None


def _symmetric(subject: Subject, dim: int) -> str | None:
    """A map that declares itself symmetric has one function for queries and keys."""
    phi = subject.build(dim, _M)
    if not phi.symmetric:
        return None
    x, _ = _points(dim)
    gap = float((phi.query(x).materialise() - phi.key(x).materialise()).abs().max())
    _require(
        gap <= 1e-12, "symmetric", f"{subject} declares symmetric; query and key differ by {gap}."
    )
    return None


def _log_exact(subject: Subject, dim: int) -> str | None:
    """The exact value is the kernel, unless the specification says that the map changes it."""
    if subject.spec.changes_kernel:
        return "log_exact: the specification changes the kernel"
    x, y = _points(dim)
    log_abs, sign = subject.build(dim, _M).log_exact(x, y)
    gap = float((log_abs - subject.kernel.log(x, y)).abs().max())
    _require(
        gap <= 1e-9 and bool((sign == 1).all()),
        "log_exact",
        f"{subject}: log_exact is off the kernel's logarithm by {gap} (d={dim}); set"
        " changes_kernel=True if that is meant.",
    )
    return None


def _log_estimate(subject: Subject, dim: int) -> str | None:
    """log_estimate, estimate and the inner product of the features are one number."""
    phi = subject.build(dim, _M)
    x, y = _points(dim)
    plain = phi.query(x).materialise() @ phi.key(y).materialise().transpose(-1, -2)
    exact = phi.log_exact(x, y).value()
    for name, value in (
        ("log_estimate", phi.log_estimate(x, y).value()),
        ("estimate", phi.estimate(x, y)),
        ("forward", phi(x, y)),
    ):
        gap = float(((value - plain) / exact).abs().max())
        _require(
            gap <= 1e-10,
            "log_estimate",
            f"{subject}: {name} is off query . key by {gap} of the kernel (d={dim}).",
        )
    return None


def _variances_agree(subject: Subject, dim: int) -> str | None:
    """Closed forms are not negative; with independent directions the covariance's diagonal is the variance."""
    phi = subject.build(dim, _M)
    x, y = _points(dim)
    variance, covariance = phi.relative_variance(x, y), phi.relative_covariance(x, y)
    if variance is None:
        return "relative_variance: no closed form"
    _require(
        bool((variance >= 0).all()) and variance.dtype == torch.float64,
        "relative_variance",
        f"{subject}: the variance is negative, NaN or not float64: {variance}.",
    )
    far = LARGE_NORM * torch.nn.functional.normalize(torch.cat((x, -x)), dim=-1)
    beyond = phi.relative_variance(far, far)
    _require(
        beyond is not None and bool((beyond >= 0).all()),
        "relative_variance",
        f"{subject}: the variance at norm {LARGE_NORM:g} is NaN, negative or None; inf is fine.",
    )
    base = subject.projection.antithetic_base or subject.projection
    if covariance is None or not isinstance(base, IID):
        return "relative_covariance: exact only for independent directions"
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    gap = float((diagonal - variance).abs().max())
    _require(
        gap <= 1e-9 * (1 + float(variance.max())),
        "relative_covariance",
        f"{subject}: the diagonal of relative_covariance is off relative_variance by {gap}.",
    )
    return None


def _seeded(subject: Subject, dim: int) -> str | None:
    """One seed gives one map."""
    a, b = subject.build(dim, _M), subject.build(dim, _M)
    _require(_same(a, b, dim), "generator", f"{subject}: one seed gave two different maps.")
    return None


def _resample(subject: Subject, dim: int) -> str | None:
    """resample_ draws anew, returns the map, leaves the exact value alone and is seeded."""
    phi, twin = subject.build(dim, _M), subject.build(dim, _M)
    if not phi.draws():
        return "resample_: the map draws nothing"
    if dim == 1:
        return None
    x, y = _points(dim)
    before, draws = phi.log_exact(x, y).log_abs, [t.clone() for t in phi.draws()]
    returned = phi.resample_(subject.generator(5))
    changed = [not torch.equal(a, b) for a, b in zip(draws, phi.draws(), strict=True)]
    _require(
        all(changed) and not _same(phi, twin, dim),
        "resample_",
        f"{subject}: resample_ left draws unchanged (changed: {changed}).",
    )
    _require(returned is phi, "resample_", f"{subject}: resample_ must return the map itself.")
    _require(
        torch.equal(before, phi.log_exact(x, y).log_abs),
        "resample_",
        f"{subject}: resample_ changed the exact value.",
    )
    _require(
        _same(phi, twin.resample_(subject.generator(5)), dim),
        "resample_",
        f"{subject}: resample_ with one seed gave two different maps.",
    )
    return None


def _round_trips(subject: Subject, dim: int) -> str | None:
    """deepcopy, pickle and state_dict keep the map; a loaded state replaces draws and fitted parts."""
    phi = subject.build(dim, _M)
    copies = {
        "deepcopy": copy.deepcopy(phi),
        "pickle": pickle.loads(pickle.dumps(phi)),
        "state_dict": subject.build(dim, _M, draw=3, data=17),
    }
    if phi.draws() and dim > 1:
        _require(
            not _same(phi, copies["state_dict"], dim),
            "generator",
            f"{subject}: two seeds gave one and the same map.",
        )
    copies["state_dict"].load_state_dict(phi.state_dict())
    for name, other in copies.items():
        _require(_same(phi, other, dim), name, f"{subject}: not the same map after {name}.")
    copies["deepcopy"].resample_(subject.generator(4))
    _require(
        dim == 1 or not phi.draws() or not _same(phi, copies["deepcopy"], dim),
        "deepcopy",
        f"{subject}: the copy shares its draws with the original.",
    )
    return None


def _large_norms(subject: Subject, dim: int) -> str | None:
    """Finite features at norm 80, in float32 and float64; no estimate is NaN."""
    phi = subject.build(dim, _M)
    x, y = _points(dim)
    for dtype in (torch.float32, torch.float64):
        far = (LARGE_NORM * x / x.norm(dim=-1, keepdim=True).clamp_min(1e-3)).to(dtype)
        for a, b in ((far, far), (far, -far), (far, y.to(dtype)), (y.to(dtype), far)):
            q, k = phi.query(a), phi.key(b)
            parts = (q.values, q.log_scale, k.values, k.log_scale)
            finite = all(bool(torch.isfinite(t).all()) for t in parts)
            log_abs, sign = phi.log_estimate(a, b)
            finite &= not bool(torch.isnan(log_abs).any()) and not bool(torch.isnan(sign).any())
            if phi.positive:
                finite &= bool(torch.isfinite(log_abs).all())
            _require(
                finite and not bool(torch.isnan(phi.estimate(a, b)).any()),
                "finite",
                f"{subject}: features or estimates at norm {LARGE_NORM:g} in {dtype} are not finite.",
            )
    return None


def _inputs_untouched(subject: Subject, dim: int) -> str | None:
    """Inputs are never written to, nor is their requires_grad."""
    phi = subject.build(dim, _M)
    x, y = _points(dim)
    a, b = x.clone(), y.clone()
    phi.estimate(a, b)
    kept = torch.equal(a, x) and torch.equal(b, y) and not (a.requires_grad or b.requires_grad)
    _require(kept, "inputs", f"{subject}: query or key changed its input.")
    return None


def _errors(subject: Subject, dim: int) -> str | None:
    """NaN, infinity, a wrong last dimension and integers are refused."""
    phi = subject.build(dim, _M)
    good = torch.zeros(2, dim, dtype=torch.float64)
    bad = {
        "a NaN": (torch.where(good == 0, torch.nan, good), ValueError),
        "an infinity": (good + torch.inf, ValueError),
        "a wrong last dimension": (torch.zeros(2, dim + 1, dtype=torch.float64), ValueError),
        "a single point without its row dimension": (good[0], ValueError),
        "integers": (good.long(), TypeError),
    }
    for what, (value, expected) in bad.items():
        for side in (phi.query, phi.key):
            _must_raise(subject, what, expected, lambda s=side, v=value: s(v))
    return None


def _unfitted(subject: Subject, dim: int) -> str | None:
    """A data-aware map refuses to work before it has seen data."""
    if not subject.spec.needs_data:
        return None
    phi, (x, y) = subject.unfitted(dim, _M), _points(dim)
    for use in (
        lambda: phi.query(x),
        lambda: phi.key(y),
        lambda: phi.estimate(x, y),
        lambda: phi.log_exact(x, y),
        lambda: phi.relative_variance(x, y),
        lambda: phi.resample_(subject.generator()),
    ):
        _must_raise(subject, "use before fit", NotFittedError, use)
    return None


def _must_raise(
    subject: Subject, what: str, expected: type[Exception], use: Callable[[], object]
) -> None:
    try:
        use()
    except expected as error:
        _require(bool(str(error)), "errors", f"{subject}: {what} gives an error without a message.")
        return
    except Exception as error:
        raise ContractError(
            "errors",
            f"{subject}: {what} raises {type(error).__name__}; expected {expected.__name__}.",
        ) from error
    raise ContractError("errors", f"{subject}: {what} is accepted; expected {expected.__name__}.")


_CHECKS: dict[str, Callable[[Subject, int], str | None]] = {
    "inputs untouched": _inputs_untouched,
    "sizes and batch_shape": _sizes,
    "dtypes": _dtypes,
    "positive": _positive,
    "symmetric": _symmetric,
    "log_exact": _log_exact,
    "log_estimate": _log_estimate,
    "closed forms agree": _variances_agree,
    "same seed, same map": _seeded,
    "resample_": _resample,
    "deepcopy, pickle, state_dict": _round_trips,
    "finite at norm 80": _large_norms,
    "errors": _errors,
    "NotFittedError": _unfitted,
}
