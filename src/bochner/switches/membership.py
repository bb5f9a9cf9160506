"""Hard weights: whether a query and a key belong to a pair of clusters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features
from bochner.request import Request
from bochner.switches.switch import Switch, check_rows


class MembershipSwitch(Switch):
    """lambda = 1 where query_centres[i] is nearest to x and key_centres[j] to y, else 0; nothing is random.

    Over all (i, j) the weights add up to 1, and exactly one of them is 1.

    Shapes:     query_centres [*batch, p, d], key_centres [*batch, p', d]; num_features = 1.
    Raises:     ValueError for centres of another shape or with NaN, or indices out of range.
    Reference:  Choromanski et al., Hybrid Random Features, 2022 (clustered hybrids with known labels).
    Example:
        >>> centres = torch.tensor([[0.0], [4.0]])
        >>> lam = MembershipSwitch(Request(dim=1, num_features=1), centres, centres, index=(1, 0))
        >>> lam.estimate(torch.tensor([[3.0], [1.0]]), torch.tensor([[0.5]])).tolist()
        [[1.0], [0.0]]
    """

    query_centres: Tensor
    key_centres: Tensor

    def __init__(
        self,
        request: Request,
        query_centres: Tensor,
        key_centres: Tensor,
        *,
        index: tuple[int, int],
    ) -> None:
        super().__init__()
        self.kernel, self.dim, self.batch_shape = request.kernel, request.dim, request.batch_shape
        for name, centres, i in (
            ("query_centres", query_centres, index[0]),
            ("key_centres", key_centres, index[1]),
        ):
            check_rows(name, centres, request)
            if not 0 <= i < centres.shape[-2]:
                raise ValueError(f"index={index} is out of range for {centres.shape[-2]} {name}.")
            self.register_buffer(name, centres.detach().double().clone())
        self.index = index
        self.num_features = 1

    def _member(self, x: Tensor, centres: Tensor, i: int) -> Tensor:
        """[*b, n, 1], True for points of cluster i."""
        nearest = torch.cdist(x, centres.to(x.dtype)).argmin(-1, keepdim=True)
        return nearest == i

    def _features(self, member: Tensor, x: Tensor) -> Features:
        logs = torch.where(member, 0.0, -math.inf).to(x.dtype)
        return Features.from_logs(logs)

    def _query(self, x: Tensor) -> Features:
        return self._features(self._member(x, self.query_centres, self.index[0]), x)

    def _key(self, y: Tensor) -> Features:
        return self._features(self._member(y, self.key_centres, self.index[1]), y)

    def mean(self, x: Tensor, y: Tensor) -> Tensor:
        """0 or 1."""
        queries = self._member(x, self.query_centres, self.index[0])
        keys = self._member(y, self.key_centres, self.index[1])
        return (queries & keys.transpose(-1, -2)).to(x.dtype)

    def _covariance(self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
        """Zero: nothing is random."""
        zero = torch.zeros_like(self.mean(x, y))
        return zero.unsqueeze(-1) * zero.unsqueeze(-2) if grid else zero

    def resample_(self, generator: torch.Generator) -> MembershipSwitch:
        """Nothing is random."""
        return self

    @property
    def positive(self) -> bool:
        """True in that no feature is negative; the weight of one pair of clusters is 0 outside it."""
        return True

    unbiased = True
    symmetric = False
    num_projections = 0

    def draws(self) -> list[Tensor]:
        """None."""
        return []

    def extra_repr(self) -> str:
        """The pair of clusters."""
        return f"index={self.index}, dim={self.dim}"
