"""Data and models of the local and wavelet features' experiment (see local_wavelet.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from bochner import make
from bochner.feature_map import FeatureMap
from bochner.kernels import Gaussian, Kernel, Wavelet

Array = NDArray[np.float64]
JITTER = 1e-9  # of prior draws only
SIZES = {1: 160.0, 2: 16.0, 3: 7.0}  # of the box, in lengthscales
ALPHAS = np.logspace(-6, 1, 29)  # noise variance / outputscale


class Split(NamedTuple):
    """Noisy training rows, and test rows with the function's own values."""

    x: Array
    y: Array
    x_test: Array
    f_test: Array
    noise: float  # variance


def field(dim: int, rows: int, tests: int, noise: float, seed: int) -> Split:
    """A draw of the Gaussian process with lengthscale 1 on a large box."""
    random = np.random.default_rng(seed)
    x = random.uniform(-0.5, 0.5, (rows + tests, dim)) * SIZES[dim]
    gram = kernel_matrix(Gaussian(), x, x)
    gram[np.diag_indices_from(gram)] += JITTER
    f = np.linalg.cholesky(gram) @ random.normal(size=len(x))
    y = f[:rows] + math.sqrt(noise) * random.normal(size=rows)
    return Split(x[:rows], y, x[rows:], f[rows:], noise)


def doppler(t: Array) -> Array:
    return np.sqrt(t * (1 - t)) * np.sin(2.1 * np.pi / (t + 0.05))


def bumps(t: Array) -> Array:
    places = (0.1, 0.13, 0.15, 0.23, 0.25, 0.40, 0.44, 0.65, 0.76, 0.78, 0.81)
    heights = (4, 5, 3, 4, 5, 4.2, 2.1, 4.3, 3.1, 5.1, 4.2)
    widths = (0.005, 0.005, 0.006, 0.01, 0.01, 0.03, 0.01, 0.01, 0.005, 0.008, 0.005)
    parts = zip(places, heights, widths, strict=True)
    return sum(h * (1 + np.abs((t - p) / w)) ** -4.0 for p, h, w in parts)


def heavisine(t: Array) -> Array:
    return 4 * np.sin(4 * np.pi * t) - np.sign(t - 0.3) - np.sign(0.72 - t)


def chirp(t: Array) -> Array:
    return np.sin(2 * np.pi * (2 * t + 14 * t**3))


def burst(t: Array) -> Array:
    return np.sin(2 * np.pi * t) + np.exp(-(((t - 0.5) / 0.06) ** 2)) * np.sin(100 * t)


def smooth(t: Array) -> Array:
    """Where the stationary kernel should do best: a sum of waves of one length."""
    return np.sin(12 * t + 1) + np.cos(17 * t) + np.sin(15 * t)


SIGNALS: dict[str, Callable[[Array], Array]] = {
    "doppler": doppler,
    "bumps": bumps,
    "heavisine": heavisine,
    "chirp": chirp,
    "burst": burst,
    "smooth": smooth,
}


def signal(name: str, rows: int, tests: int, ratio: float, seed: int) -> Split:
    """A signal on [0, 1], moved to [-1.5, 1.5], its deviation `ratio` times that of the noise (1)."""
    random = np.random.default_rng(seed)
    t = np.concatenate((random.uniform(size=rows), (np.arange(tests) + 0.5) / tests))
    grid = SIGNALS[name]((np.arange(20_000) + 0.5) / 20_000)
    f = ratio * (SIGNALS[name](t) - grid.mean()) / grid.std()
    y = f[:rows] + random.normal(size=rows)
    x = 3.0 * (t - 0.5)[:, None]
    return Split(x[:rows], y, x[rows:], f[rows:], 1.0)


class Prediction(NamedTuple):
    """Means and variances of the function, without noise, and the noise that the model believes in."""

    mean: Array
    variance: Array
    noise: float
    seconds: float  # of one thread, fit and prediction
    choice: str = ""

    def scores(self, data: Split) -> dict[str, float]:
        """Error of the mean against the function; density and coverage of noisy test rows, in expectation
        over their noise."""
        errors = data.f_test - self.mean
        total = self.variance + self.noise
        nlpd = 0.5 * (np.log(2 * np.pi * total) + (errors**2 + data.noise) / total)
        half, deviation = 1.959964 * np.sqrt(total), math.sqrt(data.noise)
        inside = normal_cdf((half - errors) / deviation) - normal_cdf((-half - errors) / deviation)
        return {
            "rmse": float(np.sqrt(np.mean(errors**2))),
            "nlpd": float(nlpd.mean()),
            "coverage": float(inside.mean()),
            "seconds": round(self.seconds, 3),
        }


def normal_cdf(z: Array) -> Array:
    return torch.special.ndtr(torch.from_numpy(z)).numpy()


def kernel_matrix(kernel: Kernel, x: Array, y: Array) -> Array:
    return kernel(torch.from_numpy(x), torch.from_numpy(y)).numpy()


def features_of(phi: FeatureMap, x: Array) -> Array:
    with torch.no_grad():
        return phi.query(torch.from_numpy(x)).materialise().numpy()


def waves(dim: int, num_features: int, projection: str, seed: int) -> FeatureMap:
    """Trigonometric features of the Gaussian kernel."""
    return make(
        "trigonometric",
        dim=dim,
        num_features=num_features,
        kernel="gaussian",
        projection=projection,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


def wavelets(num_features: int, kernel: Wavelet, seed: int) -> FeatureMap:
    return make(
        "wavelet",
        dim=1,
        num_features=num_features,
        kernel=kernel,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


def regression(
    phi: Callable[[Array], Array], data: Split, outputscale: float, noise: float
) -> Prediction:
    """Bayesian linear regression on features."""
    start = time.process_time()
    train, test = phi(data.x), phi(data.x_test)
    alpha = noise / outputscale
    gram = train.T @ train
    gram[np.diag_indices_from(gram)] += alpha
    factor = cho_factor(gram, lower=True)
    mean = test @ cho_solve(factor, train.T @ data.y)
    left = solve_triangular(factor[0], test.T, lower=True)
    variance = noise * np.square(left).sum(axis=0)
    return Prediction(mean, variance, noise, time.process_time() - start)


def exact(kernel: Kernel, data: Split, outputscale: float, noise: float) -> Prediction:
    """The exact Gaussian process."""
    start = time.process_time()
    gram = outputscale * kernel_matrix(kernel, data.x, data.x)
    gram[np.diag_indices_from(gram)] += noise
    factor = cho_factor(gram, lower=True, overwrite_a=True)
    cross = outputscale * kernel_matrix(kernel, data.x_test, data.x)
    mean = cross @ cho_solve(factor, data.y)
    left = solve_triangular(factor[0], cross.T, lower=True)
    points = torch.from_numpy(data.x_test).unsqueeze(1)
    prior = outputscale * kernel(points, points).numpy().ravel()
    variance = np.maximum(prior - np.square(left).sum(axis=0), 0.0)
    return Prediction(mean, variance, noise, time.process_time() - start)


def evidence(train: Array, y: Array) -> tuple[float, float, float]:
    """(log evidence, outputscale, alpha) of the best alpha, the outputscale at its optimum.

    Shapes:     train: features [n, m].
    """
    values, vectors = np.linalg.eigh(train.T @ train)
    values = np.maximum(values, 0.0)
    projected = np.square(vectors.T @ (train.T @ y))
    explained = (projected / (values + ALPHAS[:, None])).sum(axis=1)
    outputscales = (y @ y - explained) / (ALPHAS * len(y))
    logs = np.log1p(values / ALPHAS[:, None]).sum(axis=1)
    found = -0.5 * (len(y) * (np.log(2 * np.pi * outputscales * ALPHAS) + 1.0) + logs)
    best = int(np.argmax(found))
    return float(found[best]), float(outputscales[best]), float(ALPHAS[best])
