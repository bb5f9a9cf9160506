"""For maps without randomness: the error, a bias, against that of the best constant.

A map that draws nothing has no mean to be compared with the kernel. What it can promise is to be worth its
fit: on points like those that it was fitted to, and not among them, it has to be closer to the kernel,
in absolute scale, than any single number is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.testing.plan import Plan, calibration
from bochner.testing.report import ContractError, FitError
from bochner.testing.subject import Subject

LARGEST_SHARE = 0.5
"""Of the best constant's error."""
_POINTS = 8  # times 8 d + 8 points: a fit of 8 features wants more than the calibration points


def check_fit(subject: Subject, plan: Plan) -> list[FitError]:
    """|D^-1 (K^ - K)|_F / |D^-1 K|_F, D the exact row sums, on points other than the fitted ones.

    Raises:     ContractError naming `unbiased` if the map draws nothing and says that it has no bias,
                or has random draws after all; `fit` if its error exceeds half the best constant's.
    """
    found = []
    for dim in plan.dims:
        x, y = _points(subject, dim)
        phi = subject.fitted(dim, plan.num_features, (x[0::2], y[0::2]))
        if phi.unbiased or phi.draws():
            raise ContractError(
                "unbiased",
                f"{subject}: the SPEC says random=False; the map declares unbiased={phi.unbiased}"
                f" and has {len(phi.draws())} random tensors.",
            )
        x, y = x[1::2], y[1::2]
        kernel = phi.log_exact(x, y).value()
        rows = kernel.sum(-1, keepdim=True)  # both in the scale of exact attention
        kernel, estimate = kernel / rows, phi.estimate(x, y) / rows
        result = FitError(dim, _relative(estimate, kernel), _relative(kernel.mean(), kernel))
        if not result.error <= LARGEST_SHARE * result.constant:
            raise ContractError(
                "fit",
                f"{subject}: relative error {result.error:.3g} (d={dim}) at points like those that it was"
                f" fitted to; the best constant has {result.constant:.3g}, half of that is allowed.",
            )
        found.append(result)
    return found


def _relative(estimate: Tensor, kernel: Tensor) -> float:
    return float(torch.linalg.vector_norm(estimate - kernel) / torch.linalg.vector_norm(kernel))


def _points(subject: Subject, dim: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of one law: calibration points moved by noise of their own size, in any order."""
    x, y = calibration(dim, subject.seed)
    generator = torch.Generator().manual_seed(subject.seed)
    sides = []
    for points in (x, y):
        mean = points.mean(0)
        noise = torch.randn(_POINTS, *points.shape, generator=generator, dtype=torch.float64)
        mixed = 0.8 * (points - mean) + 0.6 * (points - mean).std() * noise
        sides.append(
            (mean + mixed).flatten(0, 1)[torch.randperm(mixed[..., 0].numel(), generator=generator)]
        )
    return sides[0], sides[1]
