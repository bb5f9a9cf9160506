"""Nystroem features: the kernel restricted to what a few landmarks span.

    phi(x) = Lambda^{-1/2} V^T c(Z, x),   C = c(Z, Z) = V Lambda V^T,   c(z, x) = K(z, x) / K(z, z)^{1/2}

phi(x).phi(y) is K(x, Z) K(Z, Z)^+ K(Z, y), the best approximation from the span of K(z, .): exact on
landmarks, never above K(x, x) at y = x. Scaling the landmarks' rows changes no span and keeps exp(z.z) in
range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.nystroem_landmarks import LandmarkRule, correlation, half_log_diagonal, log_cross
from bochner.request import Request
from bochner.statistics import pooled
from bochner.validation import check_finite

RELATIVE_CUTOFF = {torch.float32: 1e-10, torch.float64: 1e-12}
"""Eigenvalues of C below this part of the largest are dropped, by the dtype that features are computed in:
dividing by their roots makes rounding errors of c(Z, x) up to 1/sqrt(cutoff) times as large (1e-4 of the
kernel is seen in float32), and larger cutoffs lose accuracy between landmarks. Equal landmarks give
eigenvalues of 0, and are no error."""


class NystroemFeatures(FeatureMap):
    """phi(x) = Lambda^{-1/2} V^T c(Z, x) for landmarks Z.

    Shapes:     x [*b, n, d] -> values [*b, n, m].
    Arguments:  request: sizes, any kernel; landmarks [*batch_shape, p, d], p >= m: with more landmarks than
                features the m largest eigenvalues are kept.
    Numerics:   C and its eigenvectors in float64, from the landmarks as they are stored; eigenvalues below
                RELATIVE_CUTOFF (of the dtype of x) times the largest are dropped and leave columns of zeros
                (`rank` counts the others). Nothing is added to the diagonal. A row's largest logarithm is
                its log-scale.
    Error:      a bias, small where data are like the landmarks and not bounded far from them (features there
                go to 0 for a stationary kernel); not random: `unbiased` is False, `resample_` changes
                nothing.
    Cost:       O(p^3) once; O(n p (d + m)) time, O(n p) memory.
    Raises:     ValueError if the landmarks do not fit the request, or K(z, z) is not positive and finite.
    Reference:  Williams and Seeger, Using the Nystroem Method to Speed Up Kernel Machines, 2001.
    Differs:    scikit-learn's Nystroem clips singular values at 1e-12 whatever the dtype, and draws its
                landmarks uniformly only.
    Example:
        >>> from bochner.kernels import Gaussian
        >>> z = torch.tensor([[0.0], [0.0], [1.0]])                       # one landmark twice
        >>> phi = NystroemFeatures(Request(dim=1, num_features=3, kernel=Gaussian()), z)
        >>> x = torch.tensor([[0.5], [1.0]])
        >>> int(phi.rank(x.dtype)), [round(v, 3) for v in phi.estimate(x, x).flatten().tolist()]
        (2, [0.97, 0.882, 0.882, 1.0])
    """

    landmarks: Tensor
    half_log_diagonal: Tensor
    eigenvalues: Tensor
    vectors: Tensor

    def __init__(self, request: Request, landmarks: Tensor) -> None:
        super().__init__()
        self.kernel = request.kernel
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        count = landmarks.shape[-2] if landmarks.ndim > 1 else 0
        expected = (*request.batch_shape, max(count, request.num_features), request.dim)
        if tuple(landmarks.shape) != expected:
            raise ValueError(
                f"landmarks have shape {list(landmarks.shape)}; expected"
                f" {[*request.batch_shape, f'p >= num_features = {request.num_features}', request.dim]}."
            )
        check_finite("landmarks", landmarks)
        stored = landmarks.detach().to(request.dtype).clone()
        exact = stored.double()
        eigenvalues, vectors = torch.linalg.eigh(correlation(self.kernel, exact, exact))
        kept = slice(count - request.num_features, None)
        for name, tensor in (
            ("landmarks", stored),
            ("half_log_diagonal", half_log_diagonal(self.kernel, exact)),
            ("eigenvalues", eigenvalues[..., kept].flip(-1)),
            ("vectors", vectors[..., kept].flip(-1)),
        ):
            self.register_buffer(name, tensor)

    def rank(self, dtype: torch.dtype) -> Tensor:
        """Columns of features in this dtype that are not zero, [*batch_shape]."""
        return self._kept(dtype).sum(dim=-1)

    def _kept(self, dtype: torch.dtype) -> Tensor:
        return self.eigenvalues > RELATIVE_CUTOFF[dtype] * self.eigenvalues[..., :1]

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        """V Lambda^{-1/2}, zero where dropped, [*batch_shape, p, m]."""
        kept = self._kept(dtype)
        roots = torch.where(kept, self.eigenvalues, 1.0).rsqrt() * kept
        return (self.vectors * roots.unsqueeze(-2)).to(dtype)

    def _query(self, x: Tensor) -> Features:
        logs, sign = log_cross(self.kernel, x, self.landmarks.to(x.dtype))
        logs = logs - self.half_log_diagonal.to(logs.dtype).unsqueeze(-2)
        scale = logs.detach().amax(dim=-1, keepdim=True)
        scale = torch.where(torch.isinf(scale), 0.0, scale)  # a point that no landmark sees
        values = torch.exp((logs - scale).to(x.dtype))
        if sign is not None:
            values = values * sign
        return Features(values @ self._matrix(x.dtype), scale.to(x.dtype))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel, which these features approximate."""
        return self.kernel.signed_log(x, y)

    def resample_(self, generator: torch.Generator) -> NystroemFeatures:
        """Return self as it is: landmarks are fitted, and fitted parts stay."""
        return self

    @property
    def positive(self) -> bool:
        """False: eigenvectors are signed."""
        return False

    @property
    def unbiased(self) -> bool:
        """False: the error is a bias."""
        return False

    @property
    def symmetric(self) -> bool:
        """True: one function for queries and keys."""
        return True

    @property
    def num_projections(self) -> int:
        """0: nothing is drawn after the fit."""
        return 0

    def draws(self) -> list[Tensor]:
        """None: nothing is random after the fit."""
        return []

    def extra_repr(self) -> str:
        """Landmarks too."""
        return f"landmarks={self.landmarks.shape[-2]}, {super().extra_repr()}"


def fit_nystroem(
    request: Request, queries: Tensor, keys: Tensor, *, rule: LandmarkRule
) -> NystroemFeatures:
    """Nystroem features with m landmarks that `rule` chooses from the data, by request.generator.

    Shapes:     queries [*b, *batch_shape, n, d], keys [*b, *batch_shape, n', d]: one pool of points for each
                element of batch_shape; queries that are the keys count once.
    Raises:     ValueError for fewer points than features.
    Example:
        >>> from bochner.kernels import Gaussian
        >>> from bochner.nystroem_landmarks import UniformLandmarks
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(200, 2, generator=g)
        >>> request = Request(dim=2, num_features=50, kernel=Gaussian(), generator=g)
        >>> phi = fit_nystroem(request, x, x, rule=UniformLandmarks())
        >>> f"{float((phi.estimate(x, x) - Gaussian()(x, x)).square().mean() ** 0.5):.4f}"
        '0.0079'
    """
    same = queries.shape == keys.shape and torch.equal(queries, keys)
    parts = [pooled("queries", queries, request.batch_shape)]
    parts += [] if same else [pooled("keys", keys, request.batch_shape)]
    points = torch.cat(parts, dim=-2).double()
    if points.shape[-2] < request.num_features:
        raise ValueError(
            f"num_features={request.num_features} landmarks were asked of {points.shape[-2]} points; use"
            f" num_features of at most {points.shape[-2]}, or more points."
        )
    heads = [
        rule.choose(request.kernel, head, request.num_features, generator=request.generator)
        for head in points.reshape(-1, *points.shape[-2:])
    ]
    landmarks = torch.stack(heads).reshape(*request.batch_shape, request.num_features, request.dim)
    return NystroemFeatures(request, landmarks)
