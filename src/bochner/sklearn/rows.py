"""What estimators are given, checked: in memory by scikit-learn itself, elsewhere without moving a row.

Dask collections and `bochner.gram.DistantRows` must not be turned into one array, which is what
scikit-learn's own checks do first. Their shapes and types are checked here, their values where they are.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_array,
    validate_data,
)

from bochner.gram.rows import DistantRows, is_dask

Method = TypeVar("Method", bound=Callable[..., Any])
FLOATS = (np.float64, np.float32)


def is_distant(X: Any) -> bool:
    """Whether rows are in a Dask collection or over a process group."""
    return is_dask(X) or isinstance(X, DistantRows)


def validated(estimator: Any, X: Any, y: Any = None, **checks: Any) -> Any:
    """scikit-learn's `validate_data`, which leaves distant rows where they are.

    Arguments:  y: None for none; checks: of `validate_data`, for rows in memory.
    Returns:    X, or (X, y) if there is one. Of Dask, arrays of known chunks; floats.
    Raises:     what `validate_data` raises; ValueError for distant rows of another shape or type.
    """
    if not is_distant(X):
        asked = not checks.keys().isdisjoint({"multi_output", "y_numeric"})
        given = {"y": y} if asked or y is not None else {}  # of a y that is missing, its own words
        return validate_data(estimator, X, **given, **checks)
    reset = checks.get("reset", True)
    if is_dask(X):
        rows = _numeric(_as_array(_one_type(X)), "X", 2)
        named = X._meta if hasattr(X, "columns") else np.zeros((0, rows.shape[1]))
        _check_feature_names(estimator, named, reset=reset)
    else:
        X.checked(_check_values)
        rows = X
    if rows.shape[0] < checks.get("ensure_min_samples", 1) or not rows.shape[1]:
        raise ValueError(f"X has {rows.shape[0]} rows and {rows.shape[1]} columns; expected some.")
    _check_n_features(estimator, rows, reset=reset)
    if y is None:
        return rows
    return rows, _targets(rows, y, multi_output=checks.get("multi_output", False))


def _targets(rows: Any, y: Any, *, multi_output: bool) -> Any:
    """Targets beside checked distant rows: of Dask if the rows are, else numpy, of as many rows; a single
    column of them stays one if there may be several."""
    if not is_dask(rows):
        return rows.checked(partial(_targets_beside, y=np.asarray(y), multi_output=multi_output))
    targets = _as_array(y) if is_dask(y) else np.asarray(y)
    return _targets_beside(rows, targets, multi_output=multi_output)


def _targets_beside(rows: Any, y: Any, *, multi_output: bool) -> Any:
    targets = y
    if targets.shape[:1] != (rows.shape[0],):
        raise ValueError(f"y has {targets.shape[0]} rows; X has {rows.shape[0]}.")
    if not is_dask(targets) and targets.dtype.kind == "f":
        assert_all_finite(targets, input_name="y")
    if targets.ndim == 2 and targets.shape[1] == 1 and not multi_output:
        targets = targets[:, 0]
    return targets


def validated_weight(rows: Any, sample_weight: Any) -> Any:
    """Sample weights beside checked distant rows, as float64; None stays."""
    if sample_weight is None:
        return None
    beside = partial(_weight_beside, sample_weight=sample_weight)
    return beside(rows) if is_dask(rows) else rows.checked(beside)


def _weight_beside(rows: Any, sample_weight: Any) -> Any:
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(rows.shape[0], float(sample_weight))
    weight = _as_array(sample_weight) if is_dask(sample_weight) else np.asarray(sample_weight)
    if weight.shape != (rows.shape[0],):
        raise ValueError(
            f"sample_weight has shape {list(weight.shape)}; expected [{rows.shape[0]}]."
        )
    if bool((weight < 0).any()):  # of Dask: one pass over the weights
        raise ValueError("sample_weight has negative values; weights count as repetitions.")
    if not is_dask(weight):
        assert_all_finite(weight, input_name="sample_weight")
    return weight.astype(np.float64)


def lazy_on_dask(method: Method) -> Method:
    """A method X -> array of rows that answers a Dask collection with a Dask array, chunk by chunk, and
    `DistantRows` with the answers for the rows that this process holds."""

    @wraps(method)
    def call(self: Any, X: Any, *args: Any, **options: Any) -> Any:
        if isinstance(X, DistantRows):
            X = X.local  # every process answers for the rows that it holds
        if not is_dask(X):
            return method(self, X, *args, **options)
        from bochner.gram.dask import map_rows

        columns = getattr(X, "columns", None)
        names = None if columns is None else list(columns)
        function = partial(
            _call, estimator=self, name=method.__name__, names=names, options=options
        )
        rows = X if columns is None else X.to_dask_array()
        if rows.ndim != 2:
            raise ValueError(f"X has {rows.ndim} dimensions; expected 2.")
        dtype = rows.dtype if rows.dtype in FLOATS else np.float64
        return map_rows(function, rows, function(np.zeros((1, rows.shape[1]), dtype=dtype)))

    return call  # type: ignore[return-value]


def _call(
    piece: Any, *, estimator: Any, name: str, names: list[Any] | None, options: dict[str, Any]
) -> NDArray[Any]:
    """The estimator's method on one chunk, under the names of its columns."""
    if names is not None:
        import pandas as pd

        piece = pd.DataFrame(piece, columns=names)
    if not piece.shape[0]:  # an empty chunk: scikit-learn wants a row
        row = np.zeros((1, piece.shape[1]))
        return _call(row, estimator=estimator, name=name, names=names, options=options)[:0]
    return getattr(estimator, name)(piece, **options)


def _as_array(collection: Any) -> Any:
    from bochner.gram.dask import as_array

    return as_array(collection)


def _one_type(collection: Any) -> Any:
    """A dataframe of bool beside float as float64, as in memory: its array would be one of objects."""
    if not hasattr(collection, "columns"):
        return collection
    from pandas.api.types import is_numeric_dtype

    mixed = collection._meta.to_numpy().dtype.kind == "O"
    numbers = all(is_numeric_dtype(dtype) for dtype in collection.dtypes)
    return collection.astype(np.float64) if mixed and numbers else collection


def _numeric(array: Any, name: str, ndim: int) -> Any:
    if array.ndim != ndim:
        raise ValueError(f"{name} has {array.ndim} dimensions; expected {ndim}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}; expected numbers (encode it first).")
    return array if array.dtype in FLOATS else array.astype(np.float64)


def _check_values(local: Any) -> None:
    """scikit-learn's own check, of what this process holds; it may be no rows."""
    if local.shape[0]:
        check_array(local, accept_sparse="csr", dtype=FLOATS)
