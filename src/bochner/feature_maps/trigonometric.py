"""Trigonometric random features: exact where x = y, signed elsewhere.

    phi(x) = exp(|x|^2/2) [cos(omega.x), sin(omega.x)] / sqrt(r)      (other kernels: without the factor)

omega ~ N(0, I) for the softmax and Gaussian kernels, else the spectrum of the kernel.

Error:      relative variance 2 sinh^2(|x-y|^2/2) / r for iid directions: e^{|x-y|^2}/(2r) far apart; for
            kernels with another spectrum ((1 + K(2(x-y))) / (2 K(x-y)^2) - 1) / r.
            Estimates and attention denominators can be negative.
Reference:  Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007.
"""

from __future__ import annotations

from bochner.feature_map import FeatureMap
from bochner.kernels import (
    Gaussian,
    Laplacian,
    Matern,
    RationalQuadratic,
    Softmax,
    SpectralKernel,
)
from bochner.nonlinearities import Trigonometric
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.spectral_features import SpectralFeatures


def build(request: Request) -> FeatureMap:
    """Trigonometric features with N(0, I) directions, or with the kernel's own frequencies."""
    if isinstance(request.kernel, SpectralKernel):
        return SpectralFeatures(request)
    return RandomFeatures(request, Trigonometric())


SPEC = FeatureMapSpec(
    name="trigonometric",
    summary="Cosines and sines: exact at x = y, the best choice for the Gaussian kernel; signed.",
    reference="Rahimi and Recht 2007; Choromanski et al. 2022, Lemma 1.4",
    build=build,
    positive=False,
    columns=2,
    kernels=(Softmax(), Gaussian(), Matern(1.5), RationalQuadratic(), Laplacian()),
)
