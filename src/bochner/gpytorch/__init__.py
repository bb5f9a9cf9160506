"""For GPyTorch and BoTorch: a kernel of random features, and posterior draws that can be maximised.

Needs the extra: pip install 'bochner[gpytorch]'.
"""

try:
    import botorch as _botorch  # noqa: F401
    import gpytorch as _gpytorch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"bochner.gpytorch needs GPyTorch and BoTorch: pip install 'bochner[gpytorch]' ({error})"
    ) from error

from bochner.gpytorch.kernel import RandomFeatureKernel
from bochner.gpytorch.paths import ModelPaths, draw_paths
from bochner.gpytorch.thompson import PathwiseThompson

__all__ = ["ModelPaths", "PathwiseThompson", "RandomFeatureKernel", "draw_paths"]
