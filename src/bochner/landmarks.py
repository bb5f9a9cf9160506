"""Landmark features: exponentials of products with a few points, mixed by a small fitted matrix.

    phi_q(x) = P_q^T exp(U x + a),   phi_k(y) = P_k^T exp(W y + c),   phi_q . phi_k ~ exp(x.y)

The rows of U are landmark keys, those of W landmark queries (p of each), P_q and P_k are [p, m]. Nothing
is random: what is left of the error is a bias, and the features are signed. `landmark_fit` fits them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import ExponentialKernel
from bochner.request import Request
from bochner.validation import check_count


@dataclass(frozen=True)
class LandmarkSide:
    """One side (queries or keys) of landmark features.

    Shapes:     points [*batch, p, d]; offsets [*batch, p], added to the logarithms; matrix
                [*batch, p, m].
    """

    points: Tensor
    offsets: Tensor
    matrix: Tensor


class LandmarkFeatures(FeatureMap):
    """phi_q(x) . phi_k(y) = exp(U x + a)^T P_q P_k^T exp(W y + c), an approximation of the kernel.

    The scale is absolute: the product approximates exp(x.y) itself, so that exact values can stand beside
    it in one sum. The Gaussian kernel's factors exp(-|x|^2/2) are exact.

    Shapes:     x [*b, n, d] -> values [*b, n, m].
    Arguments:  request: sizes, kernel, dtype; query_side, key_side: see `LandmarkSide`.
    Numerics:   the row maximum of the logarithms is the log-scale, so that no finite input overflows;
                p products of size at most 1 are summed in the compute dtype.
    Error:      a bias, small near the data that the sides were fitted to and not bounded far from them;
                `unbiased` and `positive` are False, there is no variance, and `resample_` changes nothing.
    Cost:       O(n p (d + m)) time, O(n p) memory; the state of attention has m rows.
    Raises:     ValueError if the sides do not fit the request.
    Example:
        >>> one = torch.ones(1, 1)
        >>> side = LandmarkSide(points=one, offsets=torch.zeros(1), matrix=one)
        >>> phi = LandmarkFeatures(Request(dim=1, num_features=1), side, side)
        >>> round(float(phi.estimate(one, 2 * one)), 2)          # exp(1) exp(2)
        20.09
    """

    query_points: Tensor
    query_offsets: Tensor
    query_matrix: Tensor
    kernel: ExponentialKernel
    key_points: Tensor
    key_offsets: Tensor
    key_matrix: Tensor

    def __init__(self, request: Request, query_side: LandmarkSide, key_side: LandmarkSide) -> None:
        super().__init__()
        self.kernel = ExponentialKernel.of(request.kernel, "LandmarkFeatures")
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        for name, side in (("query", query_side), ("key", key_side)):
            count = side.points.shape[-2]
            for part, tail in (
                ("points", (count, request.dim)),
                ("offsets", (count,)),
                ("matrix", (count, request.num_features)),
            ):
                tensor, shape = getattr(side, part), (*request.batch_shape, *tail)
                if tuple(tensor.shape) != shape:
                    raise ValueError(
                        f"{name}_side.{part} has shape {list(tensor.shape)}; expected {list(shape)}."
                    )
                stored = tensor.detach().to(request.dtype).clone()
                self.register_buffer(f"{name}_{part}", stored)

    @classmethod
    def blank(cls, request: Request, landmarks: int) -> LandmarkFeatures:
        """The same map before anything is known of it, all zeros: to load a saved state into."""
        check_count("landmarks", landmarks)

        def side() -> LandmarkSide:
            zeros = torch.zeros(*request.batch_shape, landmarks, request.dim + request.num_features)
            points, matrix = zeros.split((request.dim, request.num_features), dim=-1)
            return LandmarkSide(points, points[..., 0], matrix)

        return cls(request, side(), side())

    @property
    def landmarks(self) -> int:
        """p, the number of landmarks of either side."""
        return self.query_points.shape[-2]

    def trainable_(self) -> LandmarkFeatures:
        """Make landmarks and matrices parameters, in place, and return self: for finetuning.

        Names in the state dictionary stay. The offsets, which only scale rows of the matrices, stay
        buffers.
        """
        for name in ("query_points", "query_matrix", "key_points", "key_matrix"):
            tensor = getattr(self, name)
            if not isinstance(tensor, nn.Parameter):
                del self._buffers[name]
                self.register_parameter(name, nn.Parameter(tensor))
        return self

    def _features(self, x: Tensor, points: Tensor, offsets: Tensor, matrix: Tensor) -> Features:
        logs = x @ points.to(x.dtype).transpose(-1, -2)
        logs.add_(offsets.to(x.dtype).unsqueeze(-2))  # a product's derivative needs no result
        scale = logs.detach().amax(dim=-1, keepdim=True)
        values = logs.sub_(scale).exp_() @ matrix.to(x.dtype)
        factor = self.kernel.log_point_factor(x)
        return Features(values, scale if factor is None else scale + factor)

    def _query(self, x: Tensor) -> Features:
        return self._features(x, self.query_points, self.query_offsets, self.query_matrix)

    def _key(self, y: Tensor) -> Features:
        return self._features(y, self.key_points, self.key_offsets, self.key_matrix)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel's logarithm, which these features approximate; the sign is 1."""
        log = self.kernel.log(x, y)
        return SignedLog(log, torch.ones_like(log))

    def resample_(self, generator: torch.Generator) -> LandmarkFeatures:
        """Return self as it is: there are no directions to redraw, and what is fitted stays."""
        return self

    @property
    def positive(self) -> bool:
        """False: the matrices are signed."""
        return False

    @property
    def unbiased(self) -> bool:
        """False: the error is a bias."""
        return False

    @property
    def symmetric(self) -> bool:
        """False: queries and keys have landmarks of their own."""
        return False

    @property
    def num_projections(self) -> int:
        """0: nothing is drawn."""
        return 0

    def draws(self) -> list[Tensor]:
        """None: nothing is random after the fit."""
        return []

    def extra_repr(self) -> str:
        """Landmarks and properties."""
        return f"landmarks={self.landmarks}, {super().extra_repr()}"
