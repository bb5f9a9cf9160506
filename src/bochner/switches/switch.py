"""Random weights lambda(x, y): what hybrids mix estimators with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bochner.dependence import count_distinct, share_draws
from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.request import Request


class Switch(FeatureMap):
    """query(x) . key(y) estimates a weight lambda(x, y) in [0, 1] instead of a kernel.

    `kernel` is that of the estimators which it weighs. Subclasses give `mean` and `_covariance`, absolute
    and not relative to the mean, which may be 0.
    """

    @abstractmethod
    def mean(self, x: Tensor, y: Tensor) -> Tensor:
        """lambda for all pairs, [*b, n, n'], in the dtype of x."""

    @abstractmethod
    def _covariance(self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
        """Absolute covariance with a dependent switch that is no complement; None without a form."""

    def covariance_with(
        self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool
    ) -> Tensor | None:
        """Absolute covariance with any switch, 0 for one that was drawn independently."""
        if isinstance(other, Complement):
            parts = [self.covariance_with(part, x, y, grid=grid) for part in other.parts]
            found = [p for p in parts if p is not None]
            return -torch.stack(found).sum(0) if len(found) == len(parts) else None
        if other is self or share_draws(self, other):
            return self._covariance(other, x, y, grid=grid)
        zero = torch.zeros_like(self.mean(x, y))
        return zero.unsqueeze(-1) * zero.unsqueeze(-2) if grid else zero

    def complement(self) -> Switch:
        """The switch 1 - lambda, on the same draw."""
        return Complement(self)

    def variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Var of the estimated weight for all pairs, [*b, n, n'] float64, or None."""
        return self.covariance_with(self, x.detach().double(), y.detach().double(), grid=False)

    def unit_mean(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Unit 1: the weight itself."""
        mean = self.mean(x, y)
        return torch.zeros_like(mean), mean

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """log lambda; -inf with sign 0 where it is 0."""
        mean = self.mean(x, y)
        return SignedLog(torch.log(mean.abs()), torch.sign(mean))

    changes_kernel = True

    def log_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """log lambda: a weight, not a kernel."""
        return self.log_exact(x, y).log_abs

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Var / lambda^2; inf where only the weight is 0."""
        x, y = x.detach().double(), y.detach().double()
        return _ratio(self.variance(x, y), self.mean(x, y).square())

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Cov / (lambda_ij lambda_ik)."""
        x, y = x.detach().double(), y.detach().double()
        mean = self.mean(x, y)
        return _ratio(
            self.covariance_with(self, x, y, grid=True), mean.unsqueeze(-1) * mean.unsqueeze(-2)
        )

    @property
    def positive(self) -> bool:
        """False: an estimated weight can be 0 or below."""
        return False


def _ratio(numerator: Tensor | None, denominator: Tensor) -> Tensor | None:
    if numerator is None:
        return None
    return torch.where(numerator == 0, 0.0, numerator / denominator)


class Complement(Switch):
    """1 - lambda_1 - ... - lambda_p on the draws of its switches: the weight of what is left.

    Shapes:     num_features = 1 + those of the switches.
    Raises:     ValueError for no switch, or switches of different dimensions or batch shapes.
    """

    def __init__(self, *switches: Switch) -> None:
        super().__init__()
        if not switches:
            raise ValueError("Complement got no switch; give at least one.")
        dims = {s.dim for s in switches}
        if len(dims) > 1:
            raise ValueError(f"switches have dimensions {sorted(dims)}; they must agree.")
        self.switches = nn.ModuleList(switches)
        self.kernel, self.dim = switches[0].kernel, switches[0].dim
        self.num_features = 1 + sum(s.num_features for s in switches)
        shapes = [s.batch_shape for s in switches]
        try:
            self.batch_shape = tuple(torch.broadcast_shapes(*shapes))
        except RuntimeError:
            raise ValueError(
                f"switches have batch shapes {shapes}, which do not broadcast."
            ) from None

    @property
    def parts(self) -> Sequence[Switch]:
        """The switches that are taken off 1."""
        return list(self.switches)  # type: ignore[arg-type]

    def complement(self) -> Switch:
        """The single switch itself; the complement of this one for several."""
        return self.parts[0] if len(self.parts) == 1 else Complement(self)

    def _query(self, x: Tensor) -> Features:
        return self._beside_one(x, [s._query(x) for s in self.parts], sign=-1.0)

    def _key(self, y: Tensor) -> Features:
        return self._beside_one(y, [s._key(y) for s in self.parts], sign=1.0)

    def _beside_one(self, x: Tensor, parts: list[Features], *, sign: float) -> Features:
        values = [sign * p.materialise() for p in parts]  # weights are of order 1: no scale needed
        lead = torch.broadcast_shapes(*(v.shape[:-1] for v in values))
        one = torch.ones(*lead, 1, dtype=x.dtype, device=x.device)
        whole = torch.cat([one, *(v.expand(*lead, -1) for v in values)], dim=-1)
        return Features(whole, torch.zeros_like(one))

    def mean(self, x: Tensor, y: Tensor) -> Tensor:
        """1 minus the sum of the weights."""
        return 1.0 - torch.stack(torch.broadcast_tensors(*(s.mean(x, y) for s in self.parts))).sum(
            0
        )

    def covariance_with(
        self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool
    ) -> Tensor | None:
        """Minus the sum of the switches' covariances with the other."""
        parts = [part.covariance_with(other, x, y, grid=grid) for part in self.parts]
        found = [p for p in parts if p is not None]
        return -torch.stack(found).sum(0) if len(found) == len(parts) else None

    def _covariance(self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
        return self.covariance_with(other, x, y, grid=grid)

    def resample_(self, generator: torch.Generator) -> Complement:
        """Redraw the switches."""
        for part in self.parts:
            part.resample_(generator)
        return self

    @property
    def unbiased(self) -> bool:
        """If all switches are."""
        return all(s.unbiased for s in self.parts)

    symmetric = False

    @property
    def num_projections(self) -> int:
        """Those of the switches, shared ones counted once."""
        return count_distinct(self.draws())

    def draws(self) -> list[Tensor]:
        """Those of the switches."""
        return [draw for s in self.parts for draw in s.draws()]


class Damped(Switch):
    """share * lambda: a switch that several must share a total of 1 with.

    Shapes:     share [*batch], in (0, 1].
    Raises:     ValueError for a share outside (0, 1] or of another shape.
    """

    share: Tensor

    def __init__(self, share: Tensor, switch: Switch) -> None:
        super().__init__()
        share = torch.as_tensor(share, dtype=torch.float64).detach()
        if not bool(((share > 0) & (share <= 1)).all()):
            raise ValueError(f"share={share} must lie in (0, 1].")
        if not fits_batch(share.shape, switch.batch_shape):
            raise ValueError(
                f"share has shape {list(share.shape)}; the switch has"
                f" batch_shape={switch.batch_shape}."
            )
        self.inner = switch
        self.kernel, self.dim = switch.kernel, switch.dim
        self.num_features, self.batch_shape = switch.num_features, switch.batch_shape
        self.register_buffer("share", share.clone())

    def _share(self, x: Tensor, dims: int) -> Tensor:
        return self.share.to(x.dtype)[(..., *[None] * dims)]

    def _query(self, x: Tensor) -> Features:
        return self.inner._query(x).scaled(torch.log(self._share(x, 2)))

    def _key(self, y: Tensor) -> Features:
        return self.inner._key(y)

    def mean(self, x: Tensor, y: Tensor) -> Tensor:
        """share * lambda."""
        return self._share(x, 2) * self.inner.mean(x, y)

    def _covariance(self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
        dims = 3 if grid else 2
        scale, partner = self._share(x, dims), other
        if isinstance(other, Damped):
            scale, partner = scale * other._share(x, dims), other.inner
        covariance = self.inner.covariance_with(partner, x, y, grid=grid)
        return None if covariance is None else scale * covariance

    def resample_(self, generator: torch.Generator) -> Damped:
        """Redraw the switch."""
        self.inner.resample_(generator)
        return self

    @property
    def unbiased(self) -> bool:
        """As the switch."""
        return self.inner.unbiased

    symmetric = False

    @property
    def num_projections(self) -> int:
        """As the switch."""
        return self.inner.num_projections

    def draws(self) -> list[Tensor]:
        """Those of the switch."""
        return self.inner.draws()


def fits_batch(lead: Sequence[int], batch_shape: Sequence[int]) -> bool:
    """Whether leading dimensions broadcast to batch_shape without enlarging it."""
    padded = (1,) * (len(batch_shape) - len(lead)) + tuple(lead)
    if len(padded) > len(batch_shape):
        return False
    return all(have in (1, want) for have, want in zip(padded, batch_shape, strict=True))


def check_rows(name: str, rows: Tensor, request: Request) -> None:
    """Raise unless `rows` are finite and [*batch, p, d] with the request's d and batch shape."""
    shape = list(rows.shape)
    fits = rows.ndim >= 2 and rows.shape[-1] == request.dim
    if not (fits and fits_batch(rows.shape[:-2], request.batch_shape)):
        batch = f" with batch_shape={request.batch_shape}" if request.batch_shape else ""
        raise ValueError(f"{name} has shape {shape}; expected [*batch, p, {request.dim}]{batch}.")
    if not rows.is_floating_point():
        raise TypeError(f"{name} has dtype {rows.dtype}; expected a real floating dtype.")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} {shape} holds NaN or infinite entries; expected finite values.")
