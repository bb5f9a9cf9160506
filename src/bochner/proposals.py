"""Where the random directions come from: N(0, I), a Gaussian that suits the data, or several.

    exp(x.y) = E_{w ~ N(mean, S)} [ p(w)/psi(w) exp(w.(x+y) - (|x|^2+|y|^2)/2) ],   p = N(0, I)

The density ratio p/psi is split evenly between query and key. FAVOR++ (S a multiple of I), FAVOR#
(S diagonal in the data's eigenbasis) and DARKFormer's Theorem 3.2 are members of this one family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Proposal(nn.Module, ABC):
    """A law for the directions, in the form that features and variances need."""

    dim: int
    gaussian: bool = True
    """Whether the law is one Gaussian, for which variances have closed forms."""

    @abstractmethod
    def shape(self, normals: Tensor) -> tuple[Tensor, Tensor | None]:
        """omega and log sqrt(p/psi) from standard normals g [*b, r, d]: -> [*b, r, d], [*b, r] or None."""

    @abstractmethod
    def coordinates(self, x: Tensor) -> Tensor:
        """x [*b, n, d] in the eigenbasis of the covariance."""

    @property
    @abstractmethod
    def variances(self) -> Tensor:
        """Eigenvalues of the covariance, [*batch, d]."""

    @property
    @abstractmethod
    def centre(self) -> Tensor:
        """The mean in eigen-coordinates, [*batch, d]."""

    @property
    def isotropic(self) -> bool:
        """Whether the covariance is a multiple of the identity."""
        spread = self.variances.amax(-1) - self.variances.amin(-1)
        return bool((spread <= 1e-12 * self.variances.amax(-1)).all())

    @property
    def centred(self) -> bool:
        """Whether the mean is zero."""
        return not bool(self.centre.any())


class StandardNormal(Proposal):
    """omega ~ N(0, I), the proposal of every isotropic map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def shape(self, normals: Tensor) -> tuple[Tensor, Tensor | None]:
        """The normals themselves; no weight."""
        return normals, None

    def coordinates(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    @property
    def variances(self) -> Tensor:
        """Ones."""
        return torch.ones(self.dim, dtype=torch.float64)

    @property
    def centre(self) -> Tensor:
        """Zeros."""
        return torch.zeros(self.dim, dtype=torch.float64)

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"


class GaussianProposal(Proposal):
    """omega ~ N(mean, covariance), with its importance weights.

        omega = mean + U sqrt(s) g,   log p/psi = (log det S + |g|^2 - |omega|^2) / 2

    Shapes:     mean [*batch, d], covariance [*batch, d, d] symmetric positive definite, float64.
    Error:      unbiased for any positive definite S; the variance is finite iff every eigenvalue of
                S exceeds 1/2 (an infinite one is reported as inf by `relative_variance`).
    Raises:     ValueError if the covariance is not symmetric positive definite, or shapes differ.
    Reference:  docs/theory.md 3; Likhosherstov et al., FAVOR#, 2023; Farzam et al., 2026.
    Presets:    `bochner.feature_maps.data_aware` and its neighbours fit mean and covariance to data.
    Example:
        >>> p = GaussianProposal(torch.zeros(2), 2 * torch.eye(2))
        >>> omega, log_weight = p.shape(torch.ones(1, 2, dtype=torch.float64))
        >>> [round(float(v), 4) for v in (omega[0, 0], log_weight[0])]
        [1.4142, -0.1534]
    """

    _mean: Tensor
    _variances: Tensor
    _axes: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        mean, covariance = mean.detach().double(), covariance.detach().double()
        if mean.shape != covariance.shape[:-1] or covariance.shape[-1] != covariance.shape[-2]:
            raise ValueError(
                f"mean {list(mean.shape)} and covariance {list(covariance.shape)} must have shapes"
                " [*batch, d] and [*batch, d, d]."
            )
        asymmetry = (covariance - covariance.transpose(-1, -2)).abs().amax()
        if not bool(asymmetry <= 1e-6 * covariance.abs().amax()):
            raise ValueError(
                f"covariance must be symmetric and finite; asymmetry {float(asymmetry)}."
            )
        variances, axes = torch.linalg.eigh(covariance)
        if not bool((variances > 0).all()):
            raise ValueError(
                f"covariance must be positive definite; smallest eigenvalue {float(variances.min()):.3g}."
            )
        self.dim = mean.shape[-1]
        self.register_buffer("_mean", mean.clone())
        self.register_buffer("_variances", variances)
        self.register_buffer("_axes", axes)

    @property
    def mean(self) -> Tensor:
        """The mean in the original coordinates, [*batch, d]."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """The covariance, [*batch, d, d]."""
        return (self._axes * self._variances.unsqueeze(-2)) @ self._axes.transpose(-1, -2)

    @property
    def variances(self) -> Tensor:
        """Eigenvalues, [*batch, d]."""
        return self._variances

    @property
    def centre(self) -> Tensor:
        """The mean in eigen-coordinates, [*batch, d]."""
        return self.coordinates(self._mean.unsqueeze(-2)).squeeze(-2)

    def coordinates(self, x: Tensor) -> Tensor:
        """x @ U."""
        return x @ self._axes.to(x.dtype)

    def shape(self, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and the log of the square root of their density ratio."""
        stretched = normals * self._variances.sqrt().unsqueeze(-2)
        omega = self._mean.unsqueeze(-2) + stretched @ self._axes.transpose(-1, -2)
        log_det = self._variances.log().sum(-1, keepdim=True)
        log_ratio = 0.5 * (log_det + normals.square().sum(-1) - omega.square().sum(-1))
        return omega, 0.5 * log_ratio  # half to the query, half to the key

    def extra_repr(self) -> str:
        """Dimension, batch and the range of the eigenvalues."""
        low, high = float(self._variances.min()), float(self._variances.max())
        batch = list(self._mean.shape[:-1])
        return f"dim={self.dim}, batch={batch}, variances=[{low:.3g}, {high:.3g}]"


class MixtureProposal(Proposal):
    """omega ~ sum_c a_c N(z_c, I), rows dealt to the components in turn, weighed by the whole mixture.

        omega_r = z_{r mod C} + g_r,   log p/psi = -log sum_c a_c exp(omega.z_c - |z_c|^2 / 2)

    a_c is the share of the rows that component c gets: with these weights (the balance heuristic) the
    sum over the rows is unbiased although no single row is drawn from the mixture.

    Shapes:     centres [*batch, C, d], float64.
    Error:      unbiased; no closed form for the variance, which is finite for any centres.
    Reference:  Veach and Guibas, Optimally combining sampling techniques, 1995.
    Example:
        >>> p = MixtureProposal(torch.tensor([[1.0], [-1.0]]))
        >>> omega, log_weight = p.shape(torch.zeros(2, 1, dtype=torch.float64))
        >>> omega.flatten().tolist(), [round(float(w), 4) for w in log_weight]
        ([1.0, -1.0], [0.0331, 0.0331])
    """

    gaussian = False
    centres: Tensor

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        centres = centres.detach().double()
        if centres.ndim < 2 or not bool(torch.isfinite(centres).all()):
            raise ValueError(
                f"centres has shape {list(centres.shape)}; expected finite values [*batch, C, d]."
            )
        self.dim = centres.shape[-1]
        self.register_buffer("centres", centres.clone())

    @property
    def components(self) -> int:
        """C."""
        return self.centres.shape[-2]

    @property
    def variances(self) -> Tensor:
        """Of every component: ones."""
        return torch.ones_like(self.centres[..., 0, :])

    @property
    def centre(self) -> Tensor:
        """The mean of the centres, [*batch, d]."""
        return self.centres.mean(dim=-2)

    def coordinates(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def shape(self, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and the log of the square root of their density ratio."""
        count = normals.shape[-2]
        dealt = torch.arange(count, device=normals.device) % self.components
        share = torch.bincount(dealt, minlength=self.components).double() / count
        omega = normals + self.centres[..., dealt, :]
        logs = omega @ self.centres.transpose(-1, -2)
        logs = logs + (share.log() - 0.5 * self.centres.square().sum(-1)).unsqueeze(-2)
        return omega, -0.5 * torch.logsumexp(logs, dim=-1)  # half to the query, half to the key

    def extra_repr(self) -> str:
        """Dimension, batch and number of components."""
        batch = list(self.centres.shape[:-2])
        return f"dim={self.dim}, batch={batch}, components={self.components}"
