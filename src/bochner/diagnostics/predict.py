"""Predicted error of attention, in closed form, before any feature is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.diagnostics.exact import check_inputs
from bochner.diagnostics.interval import median
from bochner.feature_map import FeatureMap
from bochner.validation import check_count, check_points, last_dimension


@dataclass(frozen=True)
class Prediction:
    """First-order error of a normalised output, per head and as the median over heads.

    output_error:       predicted |O^ - O|_F / |O|_F, median over heads; inf if a variance is.
    denominator_cv2:    median relative variance of the denominators: the theory holds where it is
                        small against 1.
    per_head:           output error [*heads]; per_head_cv2: the diagnostic [*heads].
    """

    output_error: float
    denominator_cv2: float
    per_head: Tensor
    per_head_cv2: Tensor

    @property
    def reliable(self) -> bool:
        """Whether the first-order theory applies (cv2 of the denominators at most 0.25)."""
        return self.denominator_cv2 <= 0.25

    def __str__(self) -> str:
        verdict = "reliable" if self.reliable else "first-order theory overestimates here"
        return (
            f"predicted attention output error {self.output_error:.3g}"
            f" (cv2 of denominators {self.denominator_cv2:.3g}: {verdict})"
        )


def predict(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_queries: int = 16,
) -> Prediction | None:
    """The pair formula: with w = softmax(q_i . k), o = sum_j w_j v_j and c the relative covariance,

        Cov(o^) = sum_jj' w_j w_j' c_jj' (v_j - o)(v_j' - o)^T,
        bias(o^) = - sum_jj' w_j w_j' c_jj' (v_j - o)

    summed as |bias|^2 + tr Cov over a few evenly spaced queries. A map whose own kernel is another
    one (trained, or an expression) has w, o from its own, and the difference joins the bias.

    Shapes:     q [*heads, n, d], k [*heads, n', d], v [*heads, n', dv].
    Arguments:  num_queries: how many queries are looked at.
    Returns:    Prediction, or None where theory has no closed form: biased maps that draw nothing
                (`calibrated`) and mixtures (`data-aware-mixture`); `measure` them. Directions are
                taken as independent (a coupling lowers the error a little).
    Error:      first order in the relative variance of the denominators; check `reliable`. For
                positive maps it overestimates beyond that (outputs stay among the values).
    Cost:       O(num_queries n'^2 (d + dv)) time, O(n'^2) memory per head.
    Raises:     ValueError for shapes or NaN, NotFittedError for an unfitted map.
    Reference:  docs/theory.md 7.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=8, num_features=256, generator=g)
        >>> q, k, v = (0.3 * torch.randn(40, 8, generator=g) for _ in range(3))
        >>> predicted = predict(phi, q, k, v).output_error
        >>> measured = bochner.measure(phi, q, k, v, generator=g).output_error.value
        >>> abs(predicted / measured - 1) < 0.3
        True
    """
    check_count("num_queries", num_queries)
    check_points("v", v, last_dimension(v))
    check_inputs(q, k, v, feature_map.dim, causal=False)
    picks = torch.linspace(0, q.shape[-2] - 1, min(num_queries, q.shape[-2])).round().long()
    keys, values = k.double(), v.double()
    heads = q.shape[:-2]
    squared, norms, spread = (torch.zeros(heads, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for pick in picks.tolist():
            query = q[..., pick : pick + 1, :].double()
            covariance = feature_map.relative_covariance(query, keys)
            if covariance is None:
                return None
            covariance = covariance.squeeze(-3)
            exact = torch.softmax(feature_map.kernel.log(query, keys), dim=-1) @ values
            log_abs, sign = feature_map.log_exact(query, keys)
            weights = sign * torch.exp(log_abs - log_abs.amax(-1, keepdim=True))
            weights = (weights / weights.sum(-1, keepdim=True)).transpose(-1, -2)
            output = weights.transpose(-1, -2) @ values
            offsets = weights * (values - output)  # [*heads, n', dv]
            pulled = covariance @ offsets
            variance = (offsets * pulled).sum((-1, -2))
            bias = output - exact - weights.transpose(-1, -2) @ pulled
            squared = squared + (variance.clamp_min(0.0) + bias.square().sum((-1, -2))).cpu()
            norms = norms + exact.square().sum((-1, -2)).cpu()
            cv2 = weights.transpose(-1, -2) @ covariance @ weights
            spread = spread + cv2.squeeze(-1).squeeze(-1).cpu()
    per_head = (squared / norms).sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf)
    per_head_cv2 = (spread / len(picks)).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return Prediction(
        float(median(per_head.flatten())),
        float(median(per_head_cv2.flatten())),
        per_head,
        per_head_cv2,
    )
