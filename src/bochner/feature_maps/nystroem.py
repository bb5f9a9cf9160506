"""Nystroem features of points drawn from the data.

    phi(x) = Lambda^{-1/2} V^T K(Z, x),   K(Z, Z) = V Lambda V^T,   phi(x).phi(y) = K(x, Z) K(Z, Z)^+ K(Z, y)

Error:      biased, nothing random after the fit: exact on landmarks, small where data lie near them.
            Often ahead of random features on clustered data, behind them where data fill their space.
Reference:  Williams and Seeger 2001. For any kernel but softmax; landmarks of one's own: `bochner.nystroem`.
"""

from __future__ import annotations

from functools import partial

from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.kernels import KERNELS, Matern, Softmax
from bochner.nystroem import fit_nystroem
from bochner.nystroem_landmarks import UniformLandmarks
from bochner.request import Request
from bochner.specification import FeatureMapSpec

TESTED = tuple(k for k in KERNELS.values() if k not in (Softmax(), Matern(0.5)))
"""Any kernel whose values stay in range, which exp(x.y) does not; 8 landmarks in five dimensions are too few
to show what they can do for one as rough as Matern(0.5)."""


def build(request: Request) -> FeatureMap:
    """An unfitted map with landmarks to be drawn uniformly."""
    fit = partial(fit_nystroem, rule=UniformLandmarks())
    return UnfittedMap("nystroem", request, fit, positive=False, num_projections=0, unbiased=False)


SPEC = FeatureMapSpec(
    name="nystroem",
    summary="Nystroem features with landmarks drawn uniformly from the data; biased.",
    reference="Williams and Seeger 2001",
    build=build,
    needs_data=True,
    positive=False,
    random=False,
    projected=False,
    kernels=TESTED,
)
