"""Posterior draws of a fitted BoTorch model as functions, by Matheron's rule with our features as prior."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import gpytorch
import torch
from botorch.sampling.pathwise.utils import get_train_inputs, get_train_targets
from torch import Tensor, nn

from bochner.catalog import make
from bochner.feature_map import FeatureMap
from bochner.gp.paths import PosteriorPaths
from bochner.gpytorch.kernel import RandomFeatureKernel
from bochner.kernels import Gaussian, Kernel, Matern
from bochner.projections import Orthogonal, Projection


class ModelPaths(nn.Module):
    """S draws of a model's function, in the units of its own inputs and outcomes; differentiable.

    Shapes:     X [*b, n, d] -> [*b, S, n]; `each`: X [*b, S, n, d] -> [*b, S, n], path i at its points.
    """

    mean_module: nn.Module
    input_transform: Any
    outcome_transform: Any

    def __init__(self, model: Any, paths: PosteriorPaths) -> None:
        super().__init__()
        self.paths = paths
        self.mean_module = copy.deepcopy(model.mean_module).requires_grad_(False)
        for name in ("input_transform", "outcome_transform"):
            transform = copy.deepcopy(getattr(model, name, None))
            setattr(self, name, None if transform is None else transform.requires_grad_(False))
        self.eval()

    @property
    def num_paths(self) -> int:
        """S."""
        return self.paths.num_paths

    def forward(self, X: Tensor) -> Tensor:
        """All paths at all points."""
        x = self._inputs(X)
        return self._outcomes(self.paths(x) + self.mean_module(x).unsqueeze(-2))

    def each(self, X: Tensor) -> Tensor:
        """Path i at points of its own."""
        x = self._inputs(X)
        return self._outcomes(self.paths.each(x) + self.mean_module(x))

    def _inputs(self, X: Tensor) -> Tensor:
        return X if self.input_transform is None else self.input_transform(X)

    def _outcomes(self, values: Tensor) -> Tensor:
        if self.outcome_transform is None:
            return values
        return self.outcome_transform.untransform(values.unsqueeze(-1))[0].squeeze(-1)


def draw_paths(
    model: Any,
    num_paths: int,
    *,
    num_features: int = 1024,
    projection: Projection | None = None,
    generator: torch.Generator,
) -> ModelPaths:
    """Draws from the posterior of a fitted single-output model with the exact update.

        f = f_p + k(., X) (k(X, X) + noise)^-1 (y - f_p(X) - e)

    f_p comes from features of the model's kernel, everything else is the model's own and exact: far from the
    data the draws vary as the prior does, however few features there are.

    Arguments:  model: SingleTaskGP or a like GPyTorch model whose kernel is RBFKernel, MaternKernel or our
                RandomFeatureKernel, in a ScaleKernel or not, ARD or not; its input and outcome transforms are
                taken over. projection: the coupling of the directions, orthogonal by default.
    Error:      the mean over draws is the model's; their covariance has the features' error.
    Cost:       O(n^3 + n m S) once; O(t (m + n)) for t points of S paths each.
    Raises:     TypeError for another kernel; ValueError for several outputs or active_dims.
    Reference:  Wilson et al., Efficiently Sampling Functions from Gaussian Process Posteriors, 2020.
    Differs:    botorch.sampling.pathwise.draw_matheron_paths draws its directions from torch's global
                generator, with Sobol points.
    Example:
        >>> from botorch.models import SingleTaskGP
        >>> X = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
        >>> model = SingleTaskGP(X, torch.sin(6 * X), torch.full_like(X, 1e-4))
        >>> paths = draw_paths(model, 3, generator=torch.Generator().manual_seed(0))
        >>> bool((paths(X) - torch.sin(6 * X[:, 0])).abs().max() < 0.06)      # through the data
        True
    """
    (x,), y = get_train_inputs(model, transformed=True), get_train_targets(model, transformed=True)
    if x.ndim != 2 or y.ndim != 1:
        raise ValueError(
            f"the model has training inputs {list(x.shape)} and targets {list(y.shape)}: several outputs or"
            " a batch of models; draw the paths of one output at a time (model.subset_output([i]))."
        )
    with torch.no_grad():
        parts = _parts(model.covar_module, x.shape[-1])
        phi = parts.feature_map or make(
            "trigonometric",
            dim=x.shape[-1],
            num_features=num_features,
            kernel=parts.kernel,
            projection=Orthogonal() if projection is None else projection,
            generator=generator,
            dtype=torch.float64,
        )
        noise = model.likelihood.noise.detach().double().expand(len(y))
        residual = (y - model.mean_module(x)).double().unsqueeze(-1)
        covariance = model.covar_module(x).to_dense().double() + torch.diag(noise)
        weights = math.sqrt(parts.outputscale) * _normals(phi.num_features, num_paths, generator)
        errors = noise.sqrt().unsqueeze(-1) * _normals(len(y), num_paths, generator)
        z = x.double() * parts.inverse_lengthscales
        prior = phi.query(z).materialise() @ weights
        factor = torch.linalg.cholesky(covariance)
        update = parts.outputscale * torch.cholesky_solve(residual - prior - errors, factor)
        if parts.feature_map is not None:  # the kernel is phi.phi: the update is one of the weights
            weights = weights + phi.query(z).materialise().transpose(-1, -2) @ update
            paths = PosteriorPaths(phi, weights)
        else:
            paths = PosteriorPaths(phi, weights, centres=z, coefficients=update)
        zero = torch.zeros_like(parts.inverse_lengthscales)
        paths.in_units(offset=zero, inverse_lengthscales=parts.inverse_lengthscales, mean=0.0)
    return ModelPaths(model, paths)


def _normals(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


class _Parts(NamedTuple):
    kernel: Kernel
    outputscale: float
    inverse_lengthscales: Tensor
    feature_map: FeatureMap | None


def _parts(covariance: Any, dim: int) -> _Parts:
    """The kernel of a covariance module, its scales, and its own feature map if it has one."""
    scale, base = 1.0, covariance
    if isinstance(covariance, gpytorch.kernels.ScaleKernel):
        scale, base = float(covariance.outputscale), covariance.base_kernel
    feature_map = None
    kernel: Kernel
    if type(base) is gpytorch.kernels.RBFKernel:
        kernel = Gaussian()
    elif type(base) is gpytorch.kernels.MaternKernel:
        kernel = Matern(float(base.nu))
    elif isinstance(base, RandomFeatureKernel):
        kernel, feature_map = base.feature_map.kernel, base.feature_map
    else:
        raise TypeError(
            f"the model's kernel is {type(base).__name__}; paths are drawn for RBFKernel, MaternKernel and"
            " RandomFeatureKernel, each in a ScaleKernel or not."
        )
    if base.active_dims is not None or covariance.active_dims is not None:
        raise ValueError(
            "the model's kernel has active_dims; select the columns in the model's inputs instead."
        )
    inverse = base.lengthscale.detach().double().reciprocal().flatten()
    return _Parts(kernel, scale, inverse.expand(dim), feature_map)
