"""Classes of rows wherever they are: their codes, the targets of least squares, and their weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram.rows import is_dask, sum_over_groups

Matrix = NDArray[np.float64]


def class_codes(y: Any, classes: NDArray[Any]) -> Any:
    """Codes [n] in 0..K-1 of classes y [n], lazily of a Dask array.

    Raises:     ValueError for a class that is not one of the sorted `classes`.
    Example:
        >>> class_codes(np.array(["b", "a"]), np.array(["a", "b"])).tolist()
        [1, 0]
    """
    if is_dask(y):
        return y.map_blocks(_codes, classes=classes, dtype=np.intp)
    return _codes(np.asarray(y), classes)


def _codes(y: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    unknown = np.unique(y[classes[codes] != y])
    if len(unknown):
        raise ValueError(f"y has classes {unknown} beyond those of the first call: {classes}.")
    return codes


def signed_targets(codes: Any, num_classes: int) -> Any:
    """+1 for the class and -1 for the others: [n, 1] of two classes, [n, K] of more.

    Example:
        >>> signed_targets(np.array([1, 0]), 2).tolist(), signed_targets(np.array([1]), 3).tolist()
        ([[1.0], [-1.0]], [[-1.0, 1.0, -1.0]])
    """
    if num_classes == 2:
        return 2.0 * codes[:, None] - 1.0
    return 2.0 * (codes[:, None] == np.arange(num_classes)) - 1.0


def class_totals(rows: Any, codes: Any, num_classes: int, sample_weight: Any = None) -> Matrix:
    """The weight [K] of the rows of every class, over all rows."""
    work = partial(_totals, num_classes=num_classes)
    totals: Matrix = sum_over_groups(work, rows, codes, sample_weight)
    return totals


def _totals(rows: Any, codes: Any, sample_weight: Any, *, num_classes: int) -> Matrix:
    return np.bincount(codes, weights=sample_weight, minlength=num_classes).astype(np.float64)


def class_weighted(
    class_weight: Any, classes: NDArray[Any], rows: Any, codes: Any, sample_weight: Any
) -> Any:
    """Sample weights [n] times the weights of their classes; None if there are neither.

    Arguments:  class_weight: None, "balanced" (n / (K n_c), with weighted counts, as scikit-learn's
                LogisticRegression) or {class: weight}, 1 for a class that is not in it.
    Raises:     ValueError for another string or a class that is not there.
    """
    if class_weight is None:
        return sample_weight
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight={class_weight!r} must be 'balanced', a dict or None.")
        counts = class_totals(rows, codes, len(classes), sample_weight)
        carried = np.where(counts > 0, counts, np.inf)  # a class without weight keeps none
        of_class = counts.sum() / (len(classes) * carried)
    else:
        unknown = [key for key in class_weight if key not in classes]
        if unknown:
            raise ValueError(
                f"class_weight has {unknown}, which are not among the classes {classes}."
            )
        of_class = np.array([float(class_weight.get(c, 1.0)) for c in classes.tolist()])
    if is_dask(codes):
        of_row = codes.map_blocks(partial(np.take, of_class), dtype=np.float64)
    else:
        of_row = of_class[codes]
    return of_row if sample_weight is None else of_row * sample_weight
