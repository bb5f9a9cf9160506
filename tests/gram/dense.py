"""Dense float64 oracles of linear models on features: least squares, refits, explicit hat matrices."""

import numpy as np


def ridge(phi, targets, alpha, *, weights=None, fit_intercept=True):
    """(coef [m, k], intercept [k]) by least squares on stacked rows, not by normal equations."""
    phi, targets = np.asarray(phi, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    targets = targets.reshape(len(phi), -1)
    roots = np.ones(len(phi)) if weights is None else np.sqrt(np.asarray(weights, dtype=np.float64))
    columns = phi.shape[1]
    wide = np.hstack([phi, np.ones((len(phi), 1))]) if fit_intercept else phi
    penalty = np.sqrt(alpha) * np.eye(columns, wide.shape[1])
    rows = np.vstack([wide * roots[:, None], penalty])
    right = np.vstack([targets * roots[:, None], np.zeros((columns, targets.shape[1]))])
    found = np.linalg.lstsq(rows, right, rcond=None)[0]
    if fit_intercept:
        return found[:columns], found[columns]
    return found, np.zeros(targets.shape[1])


def leave_one_out(phi, targets, alpha, *, weights=None, fit_intercept=True):
    """Squared errors [n, k] of every row's target by a fit to all other rows."""
    targets = np.asarray(targets, dtype=np.float64).reshape(len(phi), -1)
    errors = np.empty_like(targets)
    for i in range(len(phi)):
        others = np.arange(len(phi)) != i
        kept = None if weights is None else np.asarray(weights)[others]
        coef, intercept = ridge(
            phi[others], targets[others], alpha, weights=kept, fit_intercept=fit_intercept
        )
        errors[i] = (targets[i] - phi[i] @ coef - intercept) ** 2
    return errors


def generalised_cross_validation(phi, targets, alpha, *, fit_intercept=True):
    """[k]: (RSS / n) / (1 - trace(H) / n)^2 with the hat matrix written out, a column at a time."""
    targets = np.asarray(targets, dtype=np.float64).reshape(len(phi), -1)
    count = len(phi)
    coef, intercept = ridge(phi, np.eye(count), alpha, fit_intercept=fit_intercept)
    hat = phi @ coef + intercept
    residual = targets - hat @ targets
    return (residual**2).mean(axis=0) / (1 - np.trace(hat) / count) ** 2
