"""Sign random features: weights that are functions of the angle between x and y.

A random hyperplane separates x and y with probability theta / pi. A group of p independent hyperplanes
votes: `table[c]` is the weight where c of the p bits differ, and n groups are averaged.

    angular      table (0, 1)         lambda = theta/pi
    agreement    table (0, .., 0, 1)  lambda = (theta/pi)^p               sharper towards theta = pi
    majority     table (0, 0, 1, 1)   lambda = 3 l^2 (1 - l) + l^3        a switch about theta = pi/2

Reference:  Choromanski et al., Hybrid Random Features, 2022 (angular hybrids); Charikar, 2002.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from bochner.directions import Directions
from bochner.feature_map import FeatureMap
from bochner.features import Features
from bochner.projections import IID
from bochner.request import Request
from bochner.switches.switch import Switch
from bochner.validation import check_count


class SignSwitch(Switch):
    """A weight lambda(theta) from the signs of n p projections, in the dense layout of parities.

    With a_i = ±1 for an equal or a different bit, a table on p bits is a polynomial in products of the a_i;
    every product is one column, a sign on either side:

        angular:  lambda = 1/2 - 1/(2n) sum_j sgn(tau_j.x) sgn(tau_j.y)     [1, sgn/sqrt(n)] / sqrt(2)

    Shapes:     num_features = 1 + n (number of products with a weight); n + 1 for angular.
    Error:      Var = lambda (1 - lambda) / n for 0/1 tables and independent hyperplanes; None for several
                coupled ones (orthogonal hyperplanes measured 3 to 39 % below it).
    Arguments:  request: dim, kernel, projection, generator, batch_shape; its num_features is not used.
                table: p + 1 weights in [0, 1]; num_groups: n. Groups of several bits are drawn
                independently whatever the projection, since their votes assume it.
    Raises:     ValueError for a table that is too short or leaves [0, 1].
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> lam = SignSwitch.angular(Request(dim=2, num_features=1, generator=g), num_signs=8)
        >>> float(lam.mean(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])))    # theta = pi/2
        0.5
    """

    def __init__(
        self,
        request: Request,
        table: tuple[float, ...],
        num_groups: int,
        *,
        directions: Directions | None = None,
    ) -> None:
        super().__init__()
        check_count("num_groups", num_groups)
        if len(table) < 2 or not all(0.0 <= t <= 1.0 for t in table):
            raise ValueError(
                f"table={table} must hold p + 1 >= 2 weights in [0, 1]: one for each number of"
                " differing bits."
            )
        self.kernel, self.dim, self.batch_shape = request.kernel, request.dim, request.batch_shape
        self.table, self.num_groups, self.bits = tuple(table), num_groups, len(table) - 1
        count = self.bits * num_groups
        if directions is None:
            base = request.projection.antithetic_base or request.projection
            coupling = base if self.bits == 1 else IID()
            directions = Directions(replace(request, projection=coupling), count)
        self.directions = directions.checked(request, count)
        self._request = request
        self.num_features = self._columns()

    @classmethod
    def angular(cls, request: Request, num_signs: int = 1) -> Self:
        """lambda = theta / pi."""
        return cls(request, (0.0, 1.0), num_signs)

    @classmethod
    def agreement(cls, request: Request, bits: int, num_groups: int = 1) -> Self:
        """lambda = (theta / pi)^bits: all bits of a group differ."""
        check_count("bits", bits)
        return cls(request, (0.0,) * bits + (1.0,), num_groups)

    @classmethod
    def majority(cls, request: Request, num_groups: int = 1) -> Self:
        """lambda = 3 l^2 (1 - l) + l^3 with l = theta / pi: two or three of three bits differ."""
        return cls(request, (0.0, 0.0, 1.0, 1.0), num_groups)

    def complement(self) -> Self:
        """1 - lambda: the same hyperplanes, the table taken off 1."""
        table = tuple(1.0 - t for t in self.table)
        return type(self)(self._request, table, self.num_groups, directions=self.directions)

    # -- features ----------------------------------------------------------------------------------------
    def _columns(self) -> int:
        products = sum(
            math.comb(self.bits, k) for k, weight in enumerate(self._parities) if k and weight
        )
        return 1 + self.num_groups * products

    @property
    def _parities(self) -> tuple[float, ...]:
        """The table as a polynomial: the weight of every product of k of the a_i, for k = 0..p."""
        p = self.bits
        return tuple(
            sum(
                t * (-1.0) ** j * math.comb(k, j) * math.comb(p - k, c - j)
                for c, t in enumerate(self.table)
                for j in range(min(k, c) + 1)
                if c - j <= p - k
            )
            / 2.0**p
            for k in range(p + 1)
        )

    def _signs(self, x: Tensor) -> Tensor:
        """Signs ±1 [*b, n, groups, bits]; 0 counts as positive."""
        projected = x @ self.directions.omega.to(x.dtype).transpose(-1, -2)
        signs = torch.where(projected >= 0, 1.0, -1.0).to(x.dtype)
        return signs.unflatten(-1, (self.num_groups, self.bits))

    def _query(self, x: Tensor) -> Features:
        return self._products(x, signed=True)

    def _key(self, y: Tensor) -> Features:
        return self._products(y, signed=False)

    def _products(self, x: Tensor, *, signed: bool) -> Features:
        signs = self._signs(x)
        constant = math.sqrt(self._parities[0]) * torch.ones_like(signs[..., 0, :1])
        columns = [constant]
        for k, weight in enumerate(self._parities):
            if k == 0 or weight == 0.0:
                continue
            size = math.sqrt(abs(weight) / self.num_groups)
            size = math.copysign(size, weight) if signed else size
            for chosen in itertools.combinations(range(self.bits), k):
                columns.append(size * signs[..., list(chosen)].prod(dim=-1))
        return Features(torch.cat(columns, dim=-1), torch.zeros_like(constant))

    # -- moments -----------------------------------------------------------------------------------------
    def mean(self, x: Tensor, y: Tensor) -> Tensor:
        """The table's mean for bits that differ with probability theta / pi."""
        share = angle_share(x, y)
        return _expected_table(self.table, share)

    def _covariance(self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
        """With a sign switch on the same hyperplanes, by enumerating what two bits can do."""
        if not isinstance(other, SignSwitch) or not self._has_closed_form(other):
            return None
        share = angle_share(x, y)
        first, second = (_expected_table(s.table, share) for s in (self, other))
        if grid:
            left, right = share.unsqueeze(-1), share.unsqueeze(-2)
            between = angle_share(y, y).unsqueeze(-3)
            both = 0.5 * (left + right - between).clamp_min(0.0)
            means = first.unsqueeze(-1) * second.unsqueeze(-2)
        else:
            left = right = both = share
            means = first * second
        joint = _joint_tables(self.table, other.table, left - both, right - both, both)
        return (joint - means) / self.num_groups

    def _has_closed_form(self, other: SignSwitch) -> bool:
        same = self.directions is other.directions or torch.equal(
            self.directions.omega, other.directions.omega
        )
        same = same and (self.bits, self.num_groups) == (other.bits, other.num_groups)
        projection = self.directions.projection
        single = self.directions.count == 1 and projection.unbiased
        return same and (single or isinstance(projection, IID))

    # -- properties --------------------------------------------------------------------------------------
    def resample_(self, generator: torch.Generator) -> SignSwitch:
        """Redraw the hyperplanes."""
        self.directions.resample_(generator)
        return self

    @property
    def unbiased(self) -> bool:
        """As the projection."""
        return self.directions.projection.unbiased

    @property
    def symmetric(self) -> bool:
        """If no product has a negative weight."""
        return all(weight >= 0 for weight in self._parities)

    @property
    def num_projections(self) -> int:
        """Hyperplanes."""
        return self.directions.count

    def draws(self) -> list[Tensor]:
        """The hyperplanes."""
        return [self.directions.omega]

    def extra_repr(self) -> str:
        """Table and groups."""
        return f"table={self.table}, num_groups={self.num_groups}, dim={self.dim}"


class BucketedSignSwitch(SignSwitch):
    """The same weights in the layout of buckets: one-hot columns, made for gather and segment sums.

        query  one-hot(bits of x) / sqrt(n),      key  table[number of bits that differ] / sqrt(n)

    Shapes:     num_features = n 2^p, of which the query fills n. Never negative.
    """

    def _columns(self) -> int:
        return self.num_groups * 2**self.bits

    def _bucket(self, x: Tensor) -> Tensor:
        """The number [*b, n, groups] that the bits of a group spell."""
        place = 2 ** torch.arange(self.bits, device=x.device)
        return ((self._signs(x) < 0).long() * place).sum(-1)

    def _query(self, x: Tensor) -> Features:
        one_hot = torch.nn.functional.one_hot(self._bucket(x), 2**self.bits).to(x.dtype)
        return self._scaled(one_hot)

    def _key(self, y: Tensor) -> Features:
        codes = torch.arange(2**self.bits, device=y.device)
        differing = codes.unsqueeze(-1) ^ codes
        ones = sum((differing >> bit) & 1 for bit in range(self.bits))
        table = torch.tensor(self.table, dtype=y.dtype, device=y.device)[ones]
        return self._scaled(table[self._bucket(y)])

    def _scaled(self, values: Tensor) -> Features:
        values = values.flatten(-2) / math.sqrt(self.num_groups)
        return Features(values, torch.zeros_like(values[..., :1]))

    symmetric = False


def angle_share(x: Tensor, y: Tensor) -> Tensor:
    """theta / pi for all pairs, [*b, n, n']; exact at 0 and pi; pi/2 for one zero vector, 0 for two.

    By 2 atan2(|u - v|, |u + v|) on unit vectors, which loses no digits where arccos does.
    """
    u, v = (torch.nn.functional.normalize(p, dim=-1, eps=torch.finfo(p.dtype).tiny) for p in (x, y))
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(u, v, compute_mode=exact)
    along = torch.cdist(u, -v, compute_mode=exact)
    return 2.0 / math.pi * torch.atan2(apart, along)


def _expected_table(table: tuple[float, ...], share: Tensor) -> Tensor:
    p = len(table) - 1
    return sum(
        (
            t * math.comb(p, c) * share**c * (1.0 - share) ** (p - c)
            for c, t in enumerate(table)
            if t
        ),
        start=torch.zeros_like(share),
    )


def _joint_tables(
    first: tuple[float, ...], second: tuple[float, ...], left: Tensor, right: Tensor, both: Tensor
) -> Tensor:
    """E[first(c) second(c')] where every bit differs for the first pair only with probability `left`, for
    the second only with `right`, and for both with `both`."""
    none = 1.0 - left - right - both
    law: dict[tuple[int, int], Tensor] = {(0, 0): torch.ones_like(both)}
    for _ in range(len(first) - 1):
        following: dict[tuple[int, int], Tensor] = {}
        for (c, d), probability in law.items():
            for step, chance in (((0, 0), none), ((1, 0), left), ((0, 1), right), ((1, 1), both)):
                key = (c + step[0], d + step[1])
                following[key] = following.get(key, 0.0) + probability * chance
        law = following
    return sum(
        (first[c] * second[d] * probability for (c, d), probability in law.items()),
        start=torch.zeros_like(both),
    )
