"""Kernel ridge regression by bochner and the peers that install with pip, on one synthetic problem.

    f(x) = sqrt(2 / D) sum_i a_i cos(omega_i . x + b_i),   a ~ N(0, 1), omega ~ N(0, I / l^2), D = 2,048
    y = f(x) + 0.1 N(0, 1),    x ~ N(0, I) in 20 dimensions

f is close to a draw of the Gaussian process of lengthscale l = 4. Every contestant knows l and the penalty,
has as many features, and is judged by R2 against f on other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measuring.contestants import Missing

DIM, LENGTHSCALE, NOISE, ALPHA = 20, 4.0, 0.1, 0.01
GAMMA = 0.5 / LENGTHSCALE**2
WAVES, TEST_ROWS, BLOCK = 2048, 20_000, 8192
EPOCHS = 3

Predict = Callable[[np.ndarray], np.ndarray]


class Problem(NamedTuple):
    """Rows with noisy targets to fit, others with f itself to judge by; float32."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    f_test: np.ndarray


def make_problem(rows: int, seed: int = 0) -> Problem:
    """`rows` to fit and TEST_ROWS to judge by."""
    rng = np.random.default_rng(seed)
    omega = (rng.standard_normal((DIM, WAVES)) / LENGTHSCALE).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, WAVES).astype(np.float32)
    amplitude = (rng.standard_normal(WAVES) * (2 / WAVES) ** 0.5).astype(np.float32)
    x = rng.standard_normal((rows + TEST_ROWS, DIM), dtype=np.float32)
    f = np.empty(len(x), dtype=np.float32)
    for start in range(0, len(x), BLOCK):
        waves = x[start : start + BLOCK] @ omega + phase
        f[start : start + BLOCK] = np.cos(waves, out=waves) @ amplitude
    y = f[:rows] + NOISE * rng.standard_normal(rows, dtype=np.float32)
    return Problem(x[:rows], y, x[rows:], f[rows:])


def save(problem: Problem, folder: Path) -> None:
    """One file for each array, for the processes that are measured."""
    for name, array in problem._asdict().items():
        np.save(folder / f"{name}.npy", array)


def load(folder: Path) -> Problem:
    """What `save` wrote, in memory."""
    return Problem(*(np.load(folder / f"{name}.npy") for name in Problem._fields))


def r2(problem: Problem, predict: Predict) -> float:
    """Against f, on the rows that were not fitted; block by block."""
    predicted = np.concatenate(
        [predict(problem.x_test[i : i + BLOCK]).ravel() for i in range(0, TEST_ROWS, BLOCK)]
    ).astype(np.float64)
    truth = problem.f_test.astype(np.float64)
    return float(1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


# -- bochner -----------------------------------------------------------------------------------------
def kernel_ridge(precision: str, x: np.ndarray, y: np.ndarray, features: int) -> Predict:
    """KernelRidge as anybody would call it."""
    from bochner.sklearn import KernelRidge

    model = KernelRidge(
        alpha=ALPHA, n_components=features, gamma=GAMMA, precision=precision, random_state=0
    )
    return model.fit(x, y).predict


# -- scikit-learn ------------------------------------------------------------------------------------
def sklearn_ridge(name: str, x: np.ndarray, y: np.ndarray, features: int) -> Predict:
    """A sampler of sklearn.kernel_approximation, then Ridge; in the dtype of x."""
    from sklearn import kernel_approximation
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    sampler = getattr(kernel_approximation, name)(
        gamma=GAMMA, n_components=features, random_state=0
    )
    return make_pipeline(sampler, Ridge(alpha=ALPHA)).fit(x, y).predict


def sklearn_sgd(x: np.ndarray, y: np.ndarray, features: int) -> Predict:
    """RBFSampler and SGDRegressor.partial_fit, a block at a time: scikit-learn's way out of core."""
    from sklearn.kernel_approximation import RBFSampler
    from sklearn.linear_model import SGDRegressor

    sampler = RBFSampler(gamma=GAMMA, n_components=features, random_state=0).fit(x[:2])
    model = SGDRegressor(alpha=1e-6, eta0=0.3, random_state=0)
    for _ in range(EPOCHS):
        for start in range(0, len(x), BLOCK):
            model.partial_fit(sampler.transform(x[start : start + BLOCK]), y[start : start + BLOCK])
    return lambda rows: model.predict(sampler.transform(rows))


# -- another -----------------------------------------------------------------------------------------
def rfflearn_ridge(x: np.ndarray, y: np.ndarray, features: int) -> Predict:
    """rfflearn's RFFRegressor: least squares without a penalty, float64."""
    try:
        from rfflearn.cpu import RFFRegressor
    except ImportError as error:
        raise Missing(f"not installed ({error}); pip install rfflearn") from error
    return RFFRegressor(features // 2, 1 / LENGTHSCALE).fit(x, y).predict


# -- the floor ---------------------------------------------------------------------------------------
def products_alone(x: np.ndarray, y: np.ndarray, features: int) -> None:
    """Nothing but the n m^2 of P.T @ P in float32, a block for each thread at one time."""
    import torch

    from bochner.gram.threads import in_order

    rng = np.random.default_rng(0)
    block = rng.standard_normal((BLOCK, features), dtype=np.float32)

    def multiply(rows: int) -> float:
        return float((block[:rows].T @ block[:rows])[0, 0])

    sizes = [min(BLOCK, len(x) - start) for start in range(0, len(x), BLOCK)]
    for _ in in_order(multiply, sizes, num_threads=torch.get_num_threads()):
        pass


@dataclass(frozen=True)
class Machine:
    """One way to fit.

    Arguments:  fit(x, y, features) -> predict, or None of what predicts nothing; copies: arrays n x m
                that it is known to hold at one time.
    """

    name: str
    dtype: str
    fit: Callable[[np.ndarray, np.ndarray, int], Predict | None]
    ours: bool = False
    copies: float = 0.0

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name} {self.dtype}"

    def needed_bytes(self, rows: int, features: int) -> float:
        """Of the arrays that grow with the rows."""
        return self.copies * rows * features * np.dtype(self.dtype).itemsize


FLOOR = "SYRK alone"
OURS = "bochner KernelRidge"
RIDGE = "RBFSampler + Ridge"
MACHINES = [
    Machine(FLOOR, "float32", products_alone),
    Machine(OURS, "float32", partial(kernel_ridge, "auto"), ours=True),
    Machine(f"{OURS}, precision='double'", "float64", partial(kernel_ridge, "double"), ours=True),
    Machine(RIDGE, "float32", partial(sklearn_ridge, "RBFSampler"), copies=2),
    Machine(RIDGE, "float64", partial(sklearn_ridge, "RBFSampler"), copies=2),
    Machine("Nystroem + Ridge", "float32", partial(sklearn_ridge, "Nystroem"), copies=2),
    Machine(f"RBFSampler + SGD, {EPOCHS} epochs", "float32", sklearn_sgd),
    Machine("rfflearn RFFRegressor", "float64", rfflearn_ridge, copies=3),
]


@contextmanager
def in_file(folder: Path, rows: int) -> Iterator[None]:
    """The problem of this size, as files in the folder while the context is open."""
    save(make_problem(rows), folder)
    try:
        yield
    finally:
        for name in Problem._fields:
            (folder / f"{name}.npy").unlink(missing_ok=True)
