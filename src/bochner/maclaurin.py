"""Local random features: the Maclaurin series of exp(x.y) about a centre, monomials and products of signs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from bochner.degree_plan import DegreePlan, degree_table
from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import ExponentialKernel, Gaussian
from bochner.request import Request


class LocalFeatures(FeatureMap):
    """A column is a product of p linear functions of x - c: coordinates, or Rademacher projections.

        K(x, y) = f(x) f(y) exp((x-c).(y-c)),    (u.w)^p / p! = E prod_{k<=p} (w_k.u)(w_k.w)

    Degrees below E are exact, with a column u^alpha / sqrt(alpha!) for every monomial; the others are
    sampled as the plan says. The error at x and y grows with |x-c| |y-c|: the map is for points near c.

    Shapes:     x [*b, n, d] -> values [*b, n, m].
    Arguments:  request: sizes, Softmax() or Gaussian(), generator (the projection is not used);
                centre: c [*batch_shape, d]; plan: columns of every degree, the same for every batch element.
    Error:      unbiased if the plan has a tail; `relative_variance` and `relative_covariance` are exact
                (docs/theory.md, Local features). Without a tail the kernel loses its degrees from T on, and
                |phi(x)| stays bounded far from c, which a Gaussian process needs.
    Numerics:   a product of |x-c| / |x-c|-normalised factors; the norms travel in the log-scale.
    Cost:       O(n m d q) time with q the mean degree, O(n m) memory; O(m d q_max) for the rows.
    Raises:     ValueError for another kernel, or a plan of other sizes than the request's.
    Reference:  Wacker and Filippone, Local Random Feature Approximations of the Gaussian Kernel, 2022;
                Kar and Karnick, Random Feature Maps for Dot Product Kernels, 2012.
    Differs:    the random degree's law is optimised for the data and covers the whole series (unbiased);
                low degrees are exact wherever their monomials are fewer than the columns that sampling takes.
    Example:
        >>> from bochner.kernels import Gaussian
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(50, 2, generator=g, dtype=torch.float64) / 2
        >>> phi = LocalFeatures(
        ...     Request(dim=2, num_features=32, kernel=Gaussian(), generator=g, dtype=torch.float64),
        ...     x.mean(0), DegreePlan.optimal(x - x.mean(0), x - x.mean(0), 32))
        >>> f"{float((phi.estimate(x, x) - phi.kernel(x, x)).square().mean().sqrt()):.0e}"
        '3e-04'
    """

    centre: Tensor
    rows: Tensor
    degrees: Tensor
    log_weight: Tensor

    def __init__(self, request: Request, centre: Tensor, plan: DegreePlan) -> None:
        super().__init__()
        self.kernel: ExponentialKernel = ExponentialKernel.of(request.kernel, "the local map")
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        self._dtype = request.dtype
        if plan.num_features(self.dim) != self.num_features:
            raise ValueError(
                f"plan has {plan.num_features(self.dim)} columns in dim={self.dim}; expected"
                f" num_features={self.num_features}: DegreePlan.optimal(x, y, num_features) makes one."
            )
        if centre.shape != (*self.batch_shape, self.dim):
            raise ValueError(
                f"centre has shape {list(centre.shape)}; expected {[*self.batch_shape, self.dim]}."
            )
        self.plan = plan
        self.register_buffer("centre", centre.detach().double().clone())
        for name, drawn in self._drawn(request.generator).items():
            self.register_buffer(name, drawn)

    # -- the draw -----------------------------------------------------------------------------------
    def _drawn(self, generator: torch.Generator) -> dict[str, Tensor]:
        """rows [*b, q, m, d], degrees [*b, m] descending, log_weight [*b, m]; q the largest degree."""
        plan, device = self.plan, generator.device
        exponents = [
            alpha
            for p in range(plan.exact)
            for alpha in itertools.combinations_with_replacement(range(self.dim), p)
        ]
        fixed = [len(alpha) for alpha in exponents]
        logs = [-0.5 * sum(_log_factorials(alpha)) for alpha in exponents]
        for p, count in enumerate(plan.sampled, start=plan.exact):
            fixed += [p] * count
            logs += [-0.5 * (math.lgamma(p + 1) + math.log(count))] * count
        shape = self.batch_shape
        degrees = torch.tensor(fixed, dtype=torch.int64, device=device).expand(*shape, len(fixed))
        log_weight = torch.tensor(logs, dtype=torch.float64, device=device).expand(
            *shape, len(logs)
        )
        if plan.tail:
            table, log_mass = degree_table(plan.first_random, plan.rate)
            uniform = torch.rand(
                *shape, plan.tail, generator=generator, dtype=torch.float64, device=device
            )
            tail = torch.searchsorted(table.to(device), uniform.contiguous()) + plan.first_random
            # 1 / (N! p_N) = e_T(lambda) / lambda^N
            logs_of_tail = 0.5 * (log_mass - tail * math.log(plan.rate) - math.log(plan.tail))
            degrees = torch.cat((degrees, tail), dim=-1)
            log_weight = torch.cat((log_weight, logs_of_tail), dim=-1)
        depth = int(degrees.max())
        signs = torch.randint(
            2, (*shape, depth, self.num_features, self.dim), generator=generator, device=device
        )
        rows = (2 * signs - 1).to(self._dtype)
        for column, alpha in enumerate(exponents):
            rows[..., : len(alpha), column, :] = 0.0
            for level, coordinate in enumerate(alpha):
                rows[..., level, column, coordinate] = 1.0
        order = degrees.argsort(dim=-1, descending=True, stable=True)
        chosen = order[..., None, :, None].expand(rows.shape)
        return {
            "rows": rows.gather(-2, chosen),
            "degrees": degrees.gather(-1, order),
            "log_weight": log_weight.gather(-1, order),
        }

    def resample_(self, generator: torch.Generator) -> LocalFeatures:
        """Redraw signs and random degrees; centre and plan stay."""
        for name, drawn in self._drawn(generator).items():
            setattr(self, name, drawn.to(self.centre.device))
        return self

    # -- features -----------------------------------------------------------------------------------
    def _query(self, x: Tensor) -> Features:
        centre = self.centre.to(x.dtype).unsqueeze(-2)
        u = x - centre
        # a constant to autograd, taken out and put back: only the size of the numbers depends on it
        norms = u.detach().norm(dim=-1, keepdim=True)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        products = self._products(u / norms)
        logs = self.degrees.unsqueeze(-2) * norms.log() + self.log_weight.to(x.dtype).unsqueeze(-2)
        shift = logs.amax(dim=-1, keepdim=True)
        return Features(products * torch.exp(logs - shift), shift + self._log_factor(x, u, centre))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def _log_factor(self, x: Tensor, u: Tensor, centre: Tensor) -> Tensor:
        """log f(x), with K(x, y) = f(x) f(y) exp(u.w) at u = x - c and w = y - c."""
        if isinstance(self.kernel, Gaussian):
            return -0.5 * u.square().sum(-1, keepdim=True)
        factor = (u * centre).sum(-1, keepdim=True) + 0.5 * centre.square().sum(-1, keepdim=True)
        own = self.kernel.log_point_factor(x)
        return factor if own is None else factor + own

    def _products(self, u: Tensor) -> Tensor:
        """Products of the rows' projections, [*b, n, m]: column j of its first degrees[j] rows."""
        even = not self.batch_shape
        counts = self._active()
        values = u.new_zeros(())
        for level in reversed(range(len(counts))):
            rows = self.rows[..., level, : counts[level], :].to(u.dtype)
            factor = u @ rows.transpose(-1, -2)
            if not even:  # batch elements differ in the degrees of their tails
                inside = (self.degrees[..., : counts[level]] > level).unsqueeze(-2)
                factor = torch.where(inside, factor, torch.ones_like(factor))
            deeper = counts[level + 1] if level + 1 < len(counts) else 0
            if deeper:
                factor = torch.cat((factor[..., :deeper] * values, factor[..., deeper:]), dim=-1)
            values = factor
        rest = self.num_features - (counts[0] if counts else 0)
        lead = torch.broadcast_shapes(u.shape[:-2], self.batch_shape)
        ones = u.new_ones(*lead, u.shape[-2], rest)
        return torch.cat((values, ones), dim=-1) if counts else ones

    def _active(self) -> list[int]:
        """Columns with more than 0, 1, 2, ... factors, in some batch element."""
        levels = torch.arange(self.rows.shape[-3], device=self.degrees.device)
        above = (self.degrees.unsqueeze(-2) > levels.unsqueeze(-1)).sum(-1)
        return [int(n) for n in above.reshape(-1, len(levels)).amax(0)] if len(levels) else []

    # -- properties ---------------------------------------------------------------------------------
    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel."""
        return self.kernel.signed_log(x, y)

    @property
    def positive(self) -> bool:
        """False: odd degrees change sign."""
        return False

    @property
    def unbiased(self) -> bool:
        """Whether every degree of the series is covered."""
        return self.plan.tail > 0

    @property
    def symmetric(self) -> bool:
        """True: one centre for queries and keys."""
        return True

    @property
    def num_projections(self) -> int:
        """Columns that are random."""
        return self.plan.random_columns

    def draws(self) -> list[Tensor]:
        """The rows, unless all are coordinates."""
        return [self.rows] if self.plan.random_columns else []

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor:
        """Closed form for this plan."""
        u, w, s = self._centred(x, y)
        squares = u.square().sum(-1).unsqueeze(-1) * w.square().sum(-1).unsqueeze(-2)
        mixed = u.square() @ w.square().transpose(-1, -2)
        return self.plan.covariance(squares + 2.0 * (s.square() - mixed), s, s).clamp_min(0.0)

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor:
        """Closed form for this plan."""
        u, w, s = self._centred(x, y)
        inner = u.square().sum(-1)[..., None, None] * (w @ w.transpose(-1, -2)).unsqueeze(-3)
        first, second = s.unsqueeze(-1), s.unsqueeze(-2)
        weighed = u.square().unsqueeze(-2) * w.unsqueeze(-3)
        mixed = weighed @ w.transpose(-1, -2).unsqueeze(-3)
        v = inner + 2.0 * (first * second - mixed)
        return self.plan.covariance(v, first.expand_as(v), second.expand_as(v))

    def _centred(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centre = self.centre.unsqueeze(-2)
        u, w = x.detach().double() - centre, y.detach().double() - centre
        return u, w, u @ w.transpose(-1, -2)

    # -- state --------------------------------------------------------------------------------------
    def get_extra_state(self) -> Tensor:
        """The plan, as a tensor."""
        plan = self.plan
        return torch.tensor([plan.exact, plan.tail, plan.rate, *plan.sampled], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """The plan of a saved map."""
        exact, tail, rate, *sampled = state.tolist()
        self.plan = DegreePlan(int(exact), tuple(int(n) for n in sampled), int(tail), rate)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}rows")
        if isinstance(
            saved, Tensor
        ):  # the largest degree is random, and with it the number of rows
            self.rows = self.rows.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The plan and properties."""
        return f"{self.plan!r}, {super().extra_repr()}"


def _log_factorials(alpha: tuple[int, ...]) -> list[float]:
    """log alpha_l! of every variable of a monomial, given as its sorted factors."""
    return [math.lgamma(len(list(group)) + 1) for _, group in itertools.groupby(alpha)]
