"""At the edges: large norms, inputs that must stay as they are, and inputs that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bochner.testing.report import ContractError
from bochner.testing.requirement import NUM_FEATURES, points, require
from bochner.testing.subject import Subject
from bochner.validation import NotFittedError

LARGE_NORM = 80.0


def large_norms(subject: Subject, dim: int) -> str | None:
    """Finite features at norm 80, in float32 and float64; no estimate is NaN."""
    phi = subject.build(dim, NUM_FEATURES)
    x, y = points(dim)
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
            require(
                finite and not bool(torch.isnan(phi.estimate(a, b)).any()),
                "finite",
                f"{subject}: features or estimates at norm {LARGE_NORM:g} in {dtype} are not finite.",
            )
    return None


def inputs_untouched(subject: Subject, dim: int) -> str | None:
    """Inputs are never written to, nor is their requires_grad."""
    phi = subject.build(dim, NUM_FEATURES)
    x, y = points(dim)
    a, b = x.clone(), y.clone()
    phi.estimate(a, b)
    kept = torch.equal(a, x) and torch.equal(b, y) and not (a.requires_grad or b.requires_grad)
    require(kept, "inputs", f"{subject}: query or key changed its input.")
    return None


def errors(subject: Subject, dim: int) -> str | None:
    """NaN, infinity, a wrong last dimension and integers are refused."""
    phi = subject.build(dim, NUM_FEATURES)
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
            must_raise(subject, what, expected, partial(side, value))
    return None


def use_before_fit(subject: Subject, dim: int) -> str | None:
    """A data-aware map refuses to work before it has seen data."""
    if not subject.spec.needs_data:
        return None
    phi, (x, y) = subject.unfitted(dim, NUM_FEATURES), points(dim)
    for use in (
        lambda: phi.query(x),
        lambda: phi.key(y),
        lambda: phi.estimate(x, y),
        lambda: phi.log_exact(x, y),
        lambda: phi.relative_variance(x, y),
        lambda: phi.resample_(subject.generator()),
    ):
        must_raise(subject, "use before fit", NotFittedError, use)
    return None


def must_raise(
    subject: Subject, what: str, expected: type[Exception], use: Callable[[], object]
) -> None:
    """Raise ContractError unless `use` raises `expected` with a message."""
    try:
        use()
    except expected as error:
        require(bool(str(error)), "errors", f"{subject}: {what} gives an error without a message.")
        return
    except Exception as error:
        raise ContractError(
            "errors",
            f"{subject}: {what} raises {type(error).__name__}; expected {expected.__name__}.",
        ) from error
    raise ContractError("errors", f"{subject}: {what} is accepted; expected {expected.__name__}.")
