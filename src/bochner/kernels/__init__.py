"""The kernels, exactly: the oracle that every estimate is measured against."""

from bochner.kernels.binning import SplineBinning
from bochner.kernels.exponential import ExponentialKernel, Gaussian, Softmax
from bochner.kernels.kernel import Kernel
from bochner.kernels.polynomial import Polynomial
from bochner.kernels.spectral import Laplacian, Matern, RationalQuadratic, SpectralKernel
from bochner.kernels.wavelet import Wavelet
from bochner.validation import unknown_name

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Softmax(),
        Gaussian(),
        Matern(0.5),
        Matern(1.5),
        Matern(2.5),
        RationalQuadratic(),
        Laplacian(),
        Polynomial(),
        SplineBinning(),
        Wavelet(),
    )
}
"""By the names that users type, with their default parameters."""


def kernel_from_name(kernel: str | Kernel) -> Kernel:
    """The kernel for a name (edges only); a Kernel passes through.

    Raises:     UnknownNameError for a name that is not in KERNELS.
    Example:
        >>> kernel_from_name("gaussian")
        Gaussian()
    """
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise unknown_name("kernel", str(kernel), KERNELS)
    return KERNELS[kernel]


__all__ = [
    "KERNELS",
    "ExponentialKernel",
    "Gaussian",
    "Kernel",
    "Laplacian",
    "Matern",
    "Polynomial",
    "RationalQuadratic",
    "Softmax",
    "SpectralKernel",
    "SplineBinning",
    "Wavelet",
    "kernel_from_name",
]
