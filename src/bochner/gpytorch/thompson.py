"""Thompson sampling for BoTorch's optimisers: the maximum of a posterior draw is the next experiment."""

from __future__ import annotations

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from bochner.gpytorch.paths import draw_paths
from bochner.projections import Projection


class PathwiseThompson(AcquisitionFunction):
    """The sum over q of f_i(x_i), f_i draws of the posterior: its maximiser is q Thompson samples.

    Arguments:  model, num_features, projection, generator: as in `draw_paths`; q: candidates at one time,
                each with a draw of its own.
    Shapes:     X [b, q, d] -> [b].
    Raises:     ValueError for another q; see `draw_paths` for models.
    Example:
        >>> from botorch.models import SingleTaskGP
        >>> from botorch.optim import optimize_acqf
        >>> X = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
        >>> model = SingleTaskGP(X, -(X - 0.7) ** 2, torch.full_like(X, 1e-6))
        >>> sampler = PathwiseThompson(model, q=1, generator=torch.Generator().manual_seed(0))
        >>> bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> candidate, _ = optimize_acqf(sampler, bounds, q=1, num_restarts=2, raw_samples=32)
        >>> abs(candidate.item() - 0.7) < 0.1
        True
    """

    def __init__(
        self,
        model: Model,
        q: int,
        *,
        num_features: int = 1024,
        projection: Projection | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model=model)
        self.q = q
        self.paths = draw_paths(
            model, q, num_features=num_features, projection=projection, generator=generator
        )

    @t_batch_mode_transform()  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Each path at its own candidate, summed."""
        if X.shape[-2] != self.q:
            raise ValueError(
                f"X has q={X.shape[-2]} candidates; this sampler drew q={self.q} paths."
            )
        return self.paths.each(X.unsqueeze(-2)).squeeze(-1).sum(-1)
