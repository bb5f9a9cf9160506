"""Weights of rows under which features are uncorrelated, and how dependent two sets of features are.

    Cov_w(F) = sum_i p_i (f_i - f)(f_i - f)',   p_i = w_i / n,   f = sum_i p_i f_i

A learner trained with such weights cannot use one feature as a proxy for another: the weights take the
shortcut out of the sample instead of out of the features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bochner.validation import check_count


def decorrelation_weights(
    features: Any, *, penalty: float = 0.01, steps: int = 50
) -> NDArray[np.float64]:
    """Weights of mean 1 that make the columns of `features` as uncorrelated as they can be.

        minimise  |offdiag R_w|_F^2 / (m (m-1)) + penalty (mean w^2 - 1),    w = n softmax(v)

    R_w has the weighted covariances in units of the unweighted standard deviations. The penalty
    holds the effective number of rows, n / mean w^2, up.

    Shapes:     features [n, m], numpy or a tensor (on its device) -> [n].
    Arguments:  penalty: above 0; steps: iterations of L-BFGS, from equal weights: no randomness.
    Numerics:   float64.
    Cost:       O(n m^2) a step, some 1.25 steps an iteration.
    Raises:     ValueError for a column that is constant, NaN, or fewer than two columns.
    Reference:  Gao et al., Kernel-Whitening, 2022 (the loss, on Nystroem features of batches); Zhang et al.,
                Deep Stable Learning for Out-of-Distribution Generalization, 2021.
    Example:
        >>> rng = np.random.default_rng(0)
        >>> a = rng.standard_normal(500)
        >>> X = np.stack([a, a + rng.standard_normal(500)], axis=1)                 # correlation 0.7
        >>> w = decorrelation_weights(X)
        >>> bool(abs(np.cov(X.T, aweights=w)[0, 1]) < 0.1), round(float(w.mean()), 6)
        (True, 1.0)
    """
    rows = _standardised(features)
    if not penalty > 0:
        raise ValueError(f"penalty={penalty!r} must be above 0: else few rows get all the weight.")
    check_count("steps", steps)
    count, size = rows.shape
    logits = torch.zeros(count, dtype=torch.float64, device=rows.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=steps, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        p = torch.softmax(logits, dim=0)
        mean = p @ rows
        covariance = rows.T @ (p.unsqueeze(-1) * rows) - torch.outer(mean, mean)
        squares = covariance.square().sum() - covariance.diagonal().square().sum()
        value = squares / (size * (size - 1)) + penalty * (count * p.square().sum() - 1.0)
        value.backward()
        return value

    optimiser.step(loss)
    return (count * torch.softmax(logits.detach(), dim=0)).cpu().numpy()


def rf_hsic(first: Any, second: Any, sample_weight: Any = None) -> float:
    """|Cov_w(phi(x), psi(y))|_F^2, the Hilbert-Schmidt independence criterion of features of x and of y.

    0 for independent x and y (and kernels that tell distributions apart), as n and m grow.

    Shapes:     first [n, m], second [n, m'], sample_weight [n].
    Error:      biased upwards by about tr Cov(phi) tr Cov(psi) / n.
    Cost:       O(n m m').
    Reference:  Gretton et al., Measuring Statistical Dependence with Hilbert-Schmidt Norms, 2005; with random
                features: Zhang et al., Large-Scale Kernel Methods for Independence Testing, 2018.
    Example:
        >>> from bochner.sklearn import RandomFeatures
        >>> x = np.random.default_rng(0).standard_normal((1000, 1))
        >>> phi = RandomFeatures(n_components=64, random_state=0).fit_transform
        >>> rf_hsic(phi(x), phi(x**2)) > 20 * rf_hsic(phi(x), phi(x[::-1] ** 2))   # uncorrelated, dependent
        True
    """
    a, b = (np.asarray(part, dtype=np.float64) for part in (first, second))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(
            f"first and second have shapes {list(a.shape)} and {list(b.shape)}; expected [n, m] and"
            " [n, m'] of the same rows."
        )
    weight = np.ones(len(a)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    p = weight / weight.sum()
    cross = a.T @ (p[:, None] * b) - np.outer(p @ a, p @ b)
    return float(np.square(cross).sum())


def _standardised(features: Any) -> Tensor:
    rows = torch.as_tensor(features).detach().double()
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ValueError(
            f"features have shape {list(rows.shape)}; expected [n, m] with m of at least 2."
        )
    if not math.isfinite(float(rows.sum())):
        raise ValueError("features hold NaN or infinite entries; expected finite values.")
    deviation = rows.std(dim=0, correction=0)
    constant = (deviation == 0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"columns {constant} of features are constant; leave them out.")
    return (rows - rows.mean(dim=0)) / deviation
