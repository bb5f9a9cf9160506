"""Random features from parts: a nonlinearity of projections drawn from a proposal.

phi(x) = nonlinearity(x . omega),   omega = proposal(g),   g = projection's standard normals
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.directional import DirectionalMap
from bochner.directions import Directions
from bochner.features import Features
from bochner.kernels import ExponentialKernel, Gaussian
from bochner.moments import log_cross_moment, log_second_moment_pairs, rho_of
from bochner.nonlinearities import Nonlinearity, Trigonometric
from bochner.projections import IID
from bochner.proposals import Proposal, StandardNormal
from bochner.request import Request


class RandomFeatures(DirectionalMap):
    """Features of the softmax or Gaussian kernel from random projections.

    Shapes:     x [*b, n, d] -> values [*b, n, m], m = columns * r.
    Arguments:  request: sizes, kernel, projection, generator; nonlinearity: positive, hyperbolic,
                trigonometric; proposal: the law of the directions, N(0, I) unless given;
                directions: those of another map, to share them (they bring their proposal).
    Error:      unbiased (if the projection is); `relative_variance` is the closed form, exact for
                iid, orthogonal and simplex couplings and their antithetic versions.
    Cost:       O(n d r) time, O(n m) memory.
    Raises:     ValueError if m does not fit the columns or the shared directions, or if the
                proposal's mean is not zero for an even or oscillating nonlinearity (centre the
                inputs instead: `Centring`).
    Example:
        >>> from bochner.nonlinearities import Positive
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = RandomFeatures(Request(dim=4, num_features=4096, generator=g), Positive())
        >>> x = torch.full((1, 4), 0.3)
        >>> est, truth = float(phi.estimate(x, x)), float(phi.kernel(x, x))
        >>> predicted = float(phi.relative_variance(x, x)) ** 0.5
        >>> abs(est / truth - 1) < 3 * predicted < 0.15
        True
    """

    kernel: ExponentialKernel

    def __init__(
        self,
        request: Request,
        nonlinearity: Nonlinearity,
        proposal: Proposal | None = None,
        *,
        directions: Directions | None = None,
    ) -> None:
        super().__init__(request)
        self.kernel = ExponentialKernel.of(request.kernel, "RandomFeatures")
        self.nonlinearity = nonlinearity
        count = request.num_projections(nonlinearity.columns, repr(nonlinearity))
        if directions is None:
            directions = Directions(request, count, proposal)
        elif proposal is not None:
            raise ValueError("give a proposal or directions, which bring their own; not both.")
        self.directions = directions.checked(request, count)
        if nonlinearity.even and not self.proposal.centred:
            raise ValueError(
                f"{nonlinearity!r} needs a proposal of mean zero; centre the inputs (Centring) or use"
                " Positive() with an Antithetic projection, which mirrors about the mean."
            )

    @property
    def proposal(self) -> Proposal:
        """The law of the directions."""
        return self.directions.proposal

    @property
    def frequencies(self) -> Tensor | None:
        """omega [*batch_shape, r, d] of features that are [cos(omega x), sin(omega x)] / sqrt(r) and nothing
        else; None otherwise."""
        plain = isinstance(self.nonlinearity, Trigonometric) and self.directions.log_weight is None
        return self.omega if plain and isinstance(self.kernel, Gaussian) else None

    def _query(self, x: Tensor) -> Features:
        omega = self.omega.to(x.dtype)
        log_weight = self.directions.log_weight
        log_weight = None if log_weight is None else log_weight.to(x.dtype)
        half_norms = 0.5 * x.square().sum(dim=-1, keepdim=True)
        point_factor = self.kernel.log_point_factor(x)
        if point_factor is not None:  # summed with ±|x|^2/2 first: the Gaussian's cancels exactly
            half_norms = half_norms + (
                point_factor if self.nonlinearity.oscillating else -point_factor
            )
        return self.nonlinearity.features(x @ omega.transpose(-1, -2), half_norms, log_weight)

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    @property
    def positive(self) -> bool:
        """As the nonlinearity."""
        return self.nonlinearity.positive

    @property
    def symmetric(self) -> bool:
        """True: one function for queries and keys."""
        return True

    # -- closed forms -------------------------------------------------------------------------------
    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Closed form (docs/theory.md 1 to 3); None for Hadamard, Sobol, mixtures, and for coupled
        directions under a proposal that is not isotropic."""
        if not self.proposal.gaussian:
            return None
        directions, even = self._independent_directions()
        coupling = self.base_projection.coupling(directions, self.dim)
        if coupling is None or (coupling.share and not self.proposal.isotropic):
            return None
        x, y, rho = self._coordinates(x, y)
        oscillating = self.nonlinearity.oscillating
        log_moment = log_second_moment_pairs(x, y, rho, oscillating=oscillating, even=even)
        variance = torch.expm1(log_moment) / directions
        return self.with_coupling(variance, x, y, oscillating=oscillating, even=even)

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """docs/theory.md 3, for any Gaussian proposal; directions taken as independent."""
        if not self.proposal.gaussian:
            return None
        base = self.base_projection
        if base.coupling(1, self.dim) is None and not isinstance(base, IID) and not base.unbiased:
            return None  # rows that are not normal have no closed form at all
        directions, even = self._independent_directions()
        x, y, rho = self._coordinates(x, y)
        oscillating = self.nonlinearity.oscillating
        sums = (
            x.unsqueeze(-2) - y.unsqueeze(-3) if oscillating else x.unsqueeze(-2) + y.unsqueeze(-3)
        )
        log_moment = log_cross_moment(
            sums, sums, rho.unsqueeze(-2), oscillating=oscillating, even=even
        )
        return torch.expm1(log_moment) / directions

    def exponents(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool] | None:
        """s = x + y, or i (x - y) if oscillating; None for another proposal than N(0, I)."""
        if not isinstance(self.proposal, StandardNormal):
            return None
        unit = 1j if self.nonlinearity.oscillating else 1.0
        key = -unit if self.nonlinearity.oscillating else unit
        _, even = self._independent_directions()
        return unit * x.to(torch.complex128), key * y.to(torch.complex128), even

    def _independent_directions(self) -> tuple[int, bool]:
        """Directions up to sign, and whether each is averaged with its negative."""
        count, mirrored = self.directions.independent
        return count, mirrored or self.nonlinearity.even

    def _coordinates(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points in the proposal's eigenbasis, its mean taken off the queries, and rho; float64."""
        x = self.proposal.coordinates(x.detach().double())
        y = self.proposal.coordinates(y.detach().double())
        if not self.proposal.centred:
            x = x - self.proposal.centre.to(x.device).unsqueeze(-2)
        return x, y, rho_of(self.proposal.variances.to(x.device))

    def extra_repr(self) -> str:
        """Parts and properties."""
        return f"{self.nonlinearity!r}, {self.projection!r}, {super().extra_repr()}"
