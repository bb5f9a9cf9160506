"""Random wavelet features: Mexican hats of random scales at random places; signed, non-stationary.

    phi(x) = a(s_j) sqrt(p/q)(s_j) psi((x - t_j) / s_j) / sqrt(m),   s ~ q,  t ~ N(0, spread^2 I)

The kernel's own law p of the scales is log-uniform; small wavelets cover few points, so that more of them
are drawn, each with less weight: q is p times the root of the relative second moment of a scale,
((s^2 + 2b)^2 / (s^2 (s^2 + 4b)))^(d/2), b = spread^2: the proposal of least variance at x = y, which is
what a regression feels (between points further apart than the small scales it loses a tenth).

Kernels:    `Wavelet`, by construction: unbiased for every m.
Error:      the mean of that root over the scales, squared, over m: for few dimensions (d <= 3) and scales
            not far below the spread. Sobol places halve the error of independent ones and more.
Reference:  Kumar and Chakraborty, Random Wavelet Features, 2026.
Differs:    a measure over scales and places whose kernel is known exactly; every scale of equal variance;
            (s, t) from one sequence of the projection, normal in d+1 dimensions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import Kernel, Wavelet
from bochner.projections import Projection, Sobol
from bochner.request import Request
from bochner.specification import FeatureMapSpec

_STEPS = 64


class WaveletFeatures(FeatureMap):
    """One wavelet a column.

    Shapes:     x [*b, n, d] -> values [*b, n, m].
    Arguments:  request: sizes, the `Wavelet` kernel, the projection that draws places and scales.
    Error:      unbiased.
    Cost:       O(n m d).
    Raises:     ValueError for another kernel, or a projection whose rows are not exactly normal (Hadamard):
                a wavelet depends on the whole law of its place.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = WaveletFeatures(
        ...     Request(dim=1, num_features=4096, kernel=Wavelet(), projection=Sobol(), generator=g))
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> float((phi.estimate(x, x) - phi.kernel(x, x)).abs().max()) < 0.01
        True
    """

    places: Tensor
    scales: Tensor
    log_weight: Tensor

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.kernel: Wavelet = _checked(request.kernel)
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        self.projection: Projection = request.projection
        if not self.projection.unbiased:
            raise ValueError(
                f"projection={self.projection!r}: its rows are not exactly normal, as places of wavelets"
                " must be; use Sobol(), or IID()."
            )
        self._dtype = request.dtype
        for name, drawn in self._drawn(request.generator).items():
            self.register_buffer(name, drawn)

    def _drawn(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Places [*b, m, d], scales and log-weights [*b, m] from normals in d+1 dimensions."""
        normals = self.projection.draw(
            self.num_features, self.dim + 1, generator=generator, batch_shape=self.batch_shape
        )
        places = self.kernel.spread * normals[..., :-1]
        scales, log_weight = self._proposed(torch.special.ndtr(normals[..., -1]))
        drawn = {"places": places, "scales": scales, "log_weight": log_weight}
        return {name: tensor.to(self._dtype) for name, tensor in drawn.items()}

    def _proposed(self, quantiles: Tensor) -> tuple[Tensor, Tensor]:
        """Scales from q, a step function of log s with _STEPS steps, and log sqrt(p/q)."""
        middles = (
            torch.arange(_STEPS, dtype=torch.float64, device=quantiles.device) + 0.5
        ) / _STEPS
        squares, b = self.kernel.scales(middles).square(), self.kernel.spread**2
        moment = (squares + 2.0 * b).square() / (squares * (squares + 4.0 * b))
        masses = moment ** (0.25 * self.dim)
        masses = masses / masses.sum()
        ends = masses.cumsum(0)
        step = torch.searchsorted(ends, quantiles.contiguous()).clamp_max(_STEPS - 1)
        inside = (quantiles - (ends - masses)[step]) / masses[step]
        scales = self.kernel.scales((step + inside) / _STEPS)
        return scales, -0.5 * torch.log(_STEPS * masses[step])

    def resample_(self, generator: torch.Generator) -> WaveletFeatures:
        """Redraw all wavelets."""
        for name, drawn in self._drawn(generator).items():
            getattr(self, name).copy_(drawn)
        return self

    def _query(self, x: Tensor) -> Features:
        places, scales = self.places.to(x.dtype), self.scales.to(x.dtype).unsqueeze(-2)
        # differences, not norms and products: a small scale magnifies what those would cancel
        mode = "donot_use_mm_for_euclid_dist"
        squares = (torch.cdist(x, places, compute_mode=mode) / scales).square()
        logs = self._log_factor().to(x.dtype).unsqueeze(-2) - 0.5 * squares
        height = torch.log(self.dim + squares)  # of a polynomial that may leave the dtype's range
        shift = (logs + height).detach().amax(dim=-1, keepdim=True)
        values = (self.dim - squares) / (self.dim + squares) * torch.exp(logs + height - shift)
        return Features(values, shift)

    def _log_factor(self) -> Tensor:
        """log of a(s) sqrt(p/q) / sqrt(m), [*b, m], float64."""
        amplitude = self.kernel.log_amplitude(self.scales.double(), self.dim)
        return amplitude + self.log_weight.double() - 0.5 * math.log(self.num_features)

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def sparse_features(
        self, x: NDArray[np.floating], *, radius: float = 6.0
    ) -> sparse.csr_array[np.float64]:
        """The features as a sparse matrix, wavelets further than `radius` scales away left out.

        Shapes:     x [n, d] -> [n, m], float64.
        Error:      an entry left out is below (radius^2 - d) exp(-radius^2/2) = 5e-7 (at 6), relative.
        Cost:       O(n log m + entries), by octaves of scales in k-d trees.
        Raises:     ValueError for a map with batch_shape, or a radius below sqrt(d + 2), where the
                    wavelet has its largest negative values.
        """
        if self.batch_shape:
            raise ValueError(f"batch_shape={self.batch_shape}: a sparse matrix is of a single map.")
        if not radius >= math.sqrt(self.dim + 2):
            raise ValueError(
                f"radius={radius!r} must be at least sqrt(d + 2) = {math.sqrt(self.dim + 2):.3g}."
            )
        points = KDTree(np.asarray(x, dtype=np.float64))
        places, scales = self.places.double().numpy(), self.scales.double().numpy()
        factor = torch.exp(self._log_factor()).numpy()
        octaves = np.floor(np.log2(scales / scales.min()))
        rows, columns, values = [], [], []
        for octave in np.unique(octaves):
            chosen = np.flatnonzero(octaves == octave)
            near = points.sparse_distance_matrix(
                KDTree(places[chosen]), radius * scales[chosen].max(), output_type="ndarray"
            )
            column = chosen[near["j"]]
            square = (near["v"] / scales[column]) ** 2
            kept = square <= radius**2
            rows.append(near["i"][kept])
            columns.append(column[kept])
            value = (self.dim - square) * np.exp(-0.5 * square) * factor[column]
            values.append(value[kept])
        data, at = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.csr_array((data, at), shape=(points.n, self.num_features))

    # -- properties ---------------------------------------------------------------------------------
    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel, with its sign."""
        return self.kernel.signed_log(x, y)

    @property
    def positive(self) -> bool:
        """False."""
        return False

    @property
    def unbiased(self) -> bool:
        """True, by construction."""
        return True

    @property
    def symmetric(self) -> bool:
        """True."""
        return True

    @property
    def num_projections(self) -> int:
        """Wavelets."""
        return self.num_features

    def draws(self) -> list[Tensor]:
        """Places, scales and the weights that belong to them."""
        return [self.places, self.scales, self.log_weight]


def _checked(kernel: Kernel) -> Wavelet:
    if not isinstance(kernel, Wavelet):
        raise ValueError(f"kernel={kernel!r}: wavelet features are those of Wavelet(...).")
    return kernel


def build(request: Request) -> FeatureMap:
    """Wavelets of the kernel's own measure."""
    return WaveletFeatures(request)


SPEC = FeatureMapSpec(
    name="wavelet",
    summary="Mexican hats of random scales and places: non-stationary kernel, few dimensions; signed.",
    reference="Kumar and Chakraborty 2026",
    build=build,
    positive=False,
    projected=False,  # places and scales; the rows of Sobol() that give them cannot be any projection's
    default_projection=Sobol(),
    kernels=(Wavelet(),),
)
