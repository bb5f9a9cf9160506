"""The random directions of a feature map: one draw, which several maps may share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bochner.proposals import Proposal, StandardNormal
from bochner.request import Request


class Directions(nn.Module):
    """omega [*batch_shape, r, d] drawn from a proposal, with the logarithm of its importance weights.

    Two maps that hold the same `Directions` share their projections: one redraw moves both, also
    after a copy, a pickle or a move to another device.

    Arguments:  request: dimension, coupling, generator and dtype; count: r, the number of rows;
                proposal: their law, N(0, I) unless given.
    Raises:     ValueError if the proposal has another dimension than the request.
    Cost:       O(r d) memory.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> Directions(Request(dim=3, num_features=4, generator=g), 4).omega.shape
        torch.Size([4, 3])
    """

    omega: Tensor
    log_weight: Tensor | None

    def __init__(self, request: Request, count: int, proposal: Proposal | None = None) -> None:
        super().__init__()
        self.dim, self.count, self.batch_shape = request.dim, count, request.batch_shape
        self.projection = request.projection
        self.proposal = StandardNormal(request.dim) if proposal is None else proposal
        if self.proposal.dim != self.dim:
            raise ValueError(
                f"proposal has dim={self.proposal.dim}; the request has dim={self.dim}."
            )
        self._dtype = request.dtype
        omega, log_weight = self._shaped(request.draw(count))
        self.register_buffer("omega", omega)
        self.register_buffer("log_weight", log_weight)

    def _shaped(self, normals: Tensor) -> tuple[Tensor, Tensor | None]:
        normals = normals.to(self.proposal.variances.device)
        omega, log_weight = self.proposal.shape(normals)
        return omega.to(self._dtype), None if log_weight is None else log_weight.to(self._dtype)

    def resample_(self, generator: torch.Generator) -> Directions:
        """Redraw in place and return self; the proposal stays."""
        normals = self.projection.draw(
            self.count, self.dim, generator=generator, batch_shape=self.batch_shape
        )
        omega, log_weight = self._shaped(normals.to(self.omega.device))
        self.omega.copy_(omega)
        if self.log_weight is not None and log_weight is not None:
            self.log_weight.copy_(log_weight)
        return self

    def checked(self, request: Request, count: int) -> Directions:
        """Self, if these directions can serve a request for `count` rows; ValueError otherwise."""
        have = (self.count, self.dim, self.batch_shape)
        want = (count, request.dim, request.batch_shape)
        if have != want:
            raise ValueError(
                f"directions have (count, dim, batch_shape)={have}; this map needs {want}."
            )
        return self

    @property
    def independent(self) -> tuple[int, bool]:
        """Rows up to sign, and whether each comes with its negative."""
        if self.projection.antithetic_base is None:
            return self.count, False
        return self.count // 2, True

    def extra_repr(self) -> str:
        """Sizes and coupling."""
        return f"count={self.count}, dim={self.dim}, {self.projection!r}"
