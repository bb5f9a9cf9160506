"""Logistic losses of one block of rows: value, slope and curvature at given margins.

    two classes    l = log(1 + exp(f)) - t f,            dl/df = p - t,       d2l/df2 = p (1 - p)
    K classes      l = log sum_c exp(f_c) - f_t,         dl/df_c = p_c - [t = c]

Margins are float64. No exponential of a positive number is formed, so none overflows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax

Float64 = NDArray[np.float64]
Codes = NDArray[np.integer[Any]]


class Terms(NamedTuple):
    """Loss [b], slope dl/df [b, k] and, of two classes, curvature d2l/df2 [b] of every row."""

    loss: Float64
    slope: Float64
    curvature: Float64 | None


class Likelihood(Protocol):
    """What a pass over the rows asks of a loss."""

    num_outputs: int
    """k: columns of the coefficients."""

    def terms(self, margins: Float64, codes: Codes) -> Terms:
        """Of margins [b, k] and classes [b] in 0..K-1."""
        ...


class Binary:
    """log(1 + exp(f)) - t f for classes t = 0 and 1.

    Example:
        >>> terms = Binary().terms(np.array([[0.0], [800.0]]), np.array([1, 0]))
        >>> terms.loss.tolist(), terms.slope.ravel().tolist(), terms.curvature.tolist()
        ([0.6931471805599453, 800.0], [-0.5, 1.0], [0.25, 0.0])
    """

    num_outputs = 1

    def terms(self, margins: Float64, codes: Codes) -> Terms:
        """See the class."""
        f = margins[:, 0]
        signed = np.where(codes == 1, -f, f)  # l = log(1 + exp(signed))
        loss = np.logaddexp(0.0, signed)
        slope = np.where(codes == 1, -expit(-f), expit(f))
        return Terms(loss, slope[:, None], expit(f) * expit(-f))


class Multinomial:
    """log sum_c exp(f_c) - f_t for K classes, over-parametrised: k = K columns.

    Raises:     ValueError for fewer than two classes.
    Example:
        >>> terms = Multinomial(3).terms(np.zeros((1, 3)), np.array([2]))
        >>> round(float(terms.loss[0]), 6), terms.slope.round(3).tolist()
        (1.098612, [[0.333, 0.333, -0.667]])
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        self.num_outputs = num_classes

    def terms(self, margins: Float64, codes: Codes) -> Terms:
        """See the class; no curvature, which would be a matrix for every row."""
        logs = log_softmax(margins, axis=1)
        rows = np.arange(len(codes))
        loss = -logs[rows, codes]
        slope = np.exp(logs)
        slope[rows, codes] = np.expm1(logs[rows, codes])  # p - 1 without cancellation
        return Terms(loss, slope, None)
