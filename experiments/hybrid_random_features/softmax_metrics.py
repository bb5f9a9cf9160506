"""How far an estimated softmax matrix is from the true one: one number per row (per query).

A row of estimates of exp(q.k) over the vocabulary has a sign, a size and a shape. Its size against the
true sum is `mass_error`; its shape is compared after what the paper's code does: estimates below 0
become 0, and the row is divided by its sum. A row without a positive estimate becomes uniform, and is
counted in `empty`.

Published metrics: `wasserstein`, `ks`, `kl` and the share of `negative` entries. The first two read the
index of a word as a place on a line, an order without meaning; `wasserstein_shuffled` is the same
distance after one fixed random renumbering of the words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.features import SignedLog

SHUFFLE_SEED = 2022


def compare_rows(log_truth: Tensor, estimate: SignedLog) -> dict[str, Tensor]:
    """All metrics of each row, [n] in float64.

    Shapes:     log_truth [n, words], q.k; estimate [n, words], of exp(q.k).
    Returns:    of normalised rows p (true) and r (estimated), with C the running sum over indices:
                wasserstein             sum |C_p - C_r|, the 1-Wasserstein distance on the line 0, 1, ...
                wasserstein_shuffled    the same after a fixed permutation of the words
                ks                      max |C_p - C_r|
                kl                      sum r log(r / p); the other direction is inf at a clamped entry
                total_variation         sum |p - r| / 2
                top1                    whether the largest entries agree (1 or 0)
                of the estimates as they are:
                negative                share of entries below 0
                empty                   whether none is above 0 (1 or 0)
                log_mass_ratio          log of |estimated sum / true sum|
                mass_error              |estimated sum / true sum - 1|; inf beyond the range
                log_error, log_norm     log sum (estimate - truth)^2 and log sum truth^2, which
                                        `frobenius` puts together
    """
    log_total = torch.logsumexp(log_truth, dim=-1, keepdim=True)
    log_p = log_truth - log_total
    p = torch.exp(log_p)
    signed, shift = _scaled(estimate)
    sums = signed.sum(dim=-1, dtype=torch.float64)
    log_scale = (shift - log_total).squeeze(-1).double()
    ratio = sums * torch.exp(log_scale)
    error, norm = _squares(log_truth, signed, shift)

    kept = signed.clamp_min(0.0)
    total = kept.sum(dim=-1, keepdim=True)
    empty = total == 0
    r = torch.where(empty, 1.0 / p.shape[-1], kept / torch.where(empty, 1.0, total))
    return {
        **compare_distributions(p, log_p, r),
        "negative": (signed < 0).double().mean(dim=-1),
        "empty": empty.squeeze(-1).double(),
        "log_mass_ratio": torch.log(sums.abs()) + log_scale,
        "mass_error": (ratio - 1.0).abs(),
        "log_error": error,
        "log_norm": norm,
    }


def compare_distributions(p: Tensor, log_p: Tensor, r: Tensor) -> dict[str, Tensor]:
    """The metrics of normalised rows p (true, with its logarithm) and r, all [n, words]."""
    difference = r - p
    gap = difference.cumsum(dim=-1).abs_()
    shuffle = torch.randperm(
        p.shape[-1], generator=torch.Generator().manual_seed(SHUFFLE_SEED), device="cpu"
    )
    shuffled_gap = difference[:, shuffle].cumsum(dim=-1).abs_()
    divergence = torch.special.xlogy(r, r) - r * log_p
    return {
        "wasserstein": gap.sum(dim=-1, dtype=torch.float64),
        "wasserstein_shuffled": shuffled_gap.sum(dim=-1, dtype=torch.float64),
        "ks": gap.amax(dim=-1).double(),
        "kl": divergence.sum(dim=-1, dtype=torch.float64),
        "total_variation": 0.5 * difference.abs().sum(dim=-1, dtype=torch.float64),
        "top1": (r.argmax(dim=-1) == p.argmax(dim=-1)).double(),
    }


def frobenius(log_error: Tensor, log_norm: Tensor) -> float:
    """|K_hat - K| / |K| of the whole matrix from its rows' logarithms; inf beyond the range."""
    log_ratio = torch.logsumexp(log_error, dim=0) - torch.logsumexp(log_norm, dim=0)
    return math.exp(min(0.5 * float(log_ratio), 709.0)) if float(log_ratio) < 1418 else math.inf


def _scaled(estimate: SignedLog) -> tuple[Tensor, Tensor]:
    """Entries in [-1, 1] and the logarithm [n, 1] of the factor taken out; 0 for a row of zeros."""
    shift = estimate.log_abs.amax(dim=-1, keepdim=True)
    shift = torch.where(torch.isinf(shift), 0.0, shift)
    return estimate.sign * torch.exp(estimate.log_abs - shift), shift


def _squares(log_truth: Tensor, signed: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of each row's sum of squared errors and of squared true values."""
    top = torch.maximum(shift, log_truth.amax(dim=-1, keepdim=True))
    difference = signed * torch.exp(shift - top) - torch.exp(log_truth - top)
    error = difference.square_().sum(dim=-1, dtype=torch.float64)
    log_error = torch.log(error) + 2.0 * top.squeeze(-1).double()
    return log_error, torch.logsumexp(2.0 * log_truth, dim=-1).double()
