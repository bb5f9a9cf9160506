"""A GPyTorch kernel of low rank from any symmetric feature map of the catalogue."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.models.exact_prediction_strategies import LinearPredictionStrategy
from linear_operator.operators import (
    LowRankRootLinearOperator,
    MatmulLinearOperator,
    RootLinearOperator,
)
from torch import Tensor

from bochner.feature_map import FeatureMap


class RandomFeatureKernel(Kernel):
    """k(x, y) = phi(x / l).phi(y / l), l the kernel's lengthscale; its matrices have rank m.

    Put a `ScaleKernel` around it for an outputscale. The directions are fixed, so that the marginal
    likelihood is a smooth function of l.

    Arguments:  feature_map: symmetric, on R^d, with any projection; kwargs: of `gpytorch.kernels.Kernel`:
                ard_num_dims, active_dims, lengthscale_prior, lengthscale_constraint.
    Shapes:     inputs [*b, n, d].
    Error:      that of the feature map: see its `relative_variance`. The posterior is that of regression on
                m features: it starves where the data determine most of them (`draw_paths` does not).
    Cost:       O(n m^2) for the marginal likelihood instead of O(n^3).
    Raises:     ValueError for a map that is not symmetric, or with another dimension than ard_num_dims.
    Differs:    gpytorch.kernels.RFFKernel has iid directions and the Gaussian kernel only.
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=2, num_features=64, kernel="gaussian")
        >>> kernel = RandomFeatureKernel(phi, ard_num_dims=2)
        >>> x = torch.zeros(1, 2)
        >>> round(kernel(x, x).to_dense().item(), 4)
        1.0
    """

    has_lengthscale = True

    def __init__(self, feature_map: FeatureMap, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not feature_map.symmetric:
            raise ValueError(
                f"feature_map {type(feature_map).__name__} treats queries and keys differently; a kernel"
                " needs one function for both: a symmetric map, such as 'trigonometric'."
            )
        if self.ard_num_dims not in (None, feature_map.dim):
            raise ValueError(
                f"ard_num_dims={self.ard_num_dims}, but feature_map has dim={feature_map.dim}."
            )
        self.feature_map = feature_map

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Any:
        """phi(x1) phi(x2)' as a linear operator, or its diagonal."""
        if params.pop("last_dim_is_batch", False):
            raise NotImplementedError(
                "last_dim_is_batch=True wants a kernel for each input dimension; the feature map is one"
                " function of all. Sum kernels with active_dims instead."
            )
        same = torch.equal(x1, x2)
        phi1 = self._features(x1)
        phi2 = phi1 if same else self._features(x2)
        if diag:
            return (phi1 * phi2).sum(-1)
        if not same:
            return MatmulLinearOperator(phi1, phi2.transpose(-1, -2))
        low_rank = phi1.shape[-1] < phi1.shape[-2]
        return LowRankRootLinearOperator(phi1) if low_rank else RootLinearOperator(phi1)

    def _features(self, x: Tensor) -> Tensor:
        return self.feature_map.query(x.div(self.lengthscale)).materialise()

    def prediction_strategy(
        self, train_inputs: Any, train_prior_dist: Any, train_labels: Any, likelihood: Any
    ) -> Any:
        """That of linear models: predictions in m x m matrices."""
        return LinearPredictionStrategy(train_inputs, train_prior_dist, train_labels, likelihood)
