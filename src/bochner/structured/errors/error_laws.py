"""The errors of Z^, a chain's partition function through random features: one formula for all of them.

With p the exact law of paths, rho of `edge_laws` and r independent directions a draw, to first order in
1/r, sums running over pairs of edges that share their directions (e = f mod B for B cycled blocks),

    Var log Z^       = (1/r) sum_{e, f} (chi_ef - 1)                       chi_ef = E_{p x p} rho(e, f)
    E log Z^ - log Z = (1/r) { sum_{e < f} (E_p rho(e, f) - chi_ef) - 1/2 sum_e (chi_ee - 1) }
    E Z^ / Z - 1     = (1/r) sum_{e < f} (E_p rho(e, f) - 1)               exact for one such pair

B = 1: one draw for all edges; B = T - 1: a draw for each. With chi the mean of chi_ef the first line is
(T - 1)^2 (chi - 1) / (r B), whatever B: the block law.

Reference:  docs/theory.md 14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.structured.errors.edge_laws import EdgeLaw
from bochner.structured.errors.path_law import PathLaw

_LARGEST_WINDOW = 512
"""Edges compared with each other; of longer chains a window in the middle stands for the rest."""
_PAIRS_OF_EDGES = 1 << 24
"""Pairs of edges that `sampled_ratios` looks at, at most and roughly, for up to `_MOST_SHIFTS`."""
_MOST_SHIFTS = 16
_ENTRIES = 1 << 20  # of rho held at once


@dataclass(frozen=True, eq=False)
class EdgeRatios:
    """How much the estimates of two edges of one chain move together, on average over its paths.

    Shapes:     apart [E, E]: chi_ef - 1, the mean of rho - 1 over two independent paths;
                together [E, E]: E_p rho(e, f) - 1, over one path. E edges, or a window of them.
    Arguments:  num_edges: T - 1; chi_stderr: standard error of `chi`, 0 where it is exact.
    Example:
        >>> ratios = EdgeRatios(torch.full((8, 8), 0.5), torch.full((8, 8), 0.5), num_edges=8)
        >>> ratios.chi, ratios.variance(100), ratios.variance(25, blocks=4)      # the block law
        (1.5, 0.32, 0.32)
    """

    apart: Tensor
    together: Tensor
    num_edges: int
    chi_stderr: float = 0.0

    @property
    def chi(self) -> float:
        """The mean of chi_ef over all pairs of edges; 1 means no error."""
        return 1.0 + float(self.apart.mean())

    def variance(self, directions: float, *, blocks: int = 1) -> float:
        """Var log Z^ to first order; `directions` of one block."""
        same = self._sharing(blocks)
        sizes = torch.bincount(torch.arange(self.num_edges) % blocks).double()
        return float(self.apart[same].mean() * sizes.square().sum() / directions)

    def bias(self, directions: float, *, blocks: int = 1) -> float:
        """E log Z^ - log Z to first order."""
        later = torch.triu(self._sharing(blocks), diagonal=1)
        connected = (self.together - self.apart)[later].sum() - 0.5 * self.apart.diagonal().sum()
        return float(connected * self._scale / directions)

    def partition_bias(self, directions: float, *, blocks: int = 1) -> float:
        """E Z^ / Z - 1 to first order; exact where one draw serves two edges at most; 0 for B = T - 1.

        Beyond (T - 1)^2 (chi - 1) ~ r it says little: Z^ has heavy tails, log Z^ has not.
        """
        later = torch.triu(self._sharing(blocks), diagonal=1)
        pairs = float(sum(n * (n - 1) / 2 for n in self._sizes(blocks)))
        return pairs * float(self.together[later].mean()) / directions if pairs else 0.0

    def _sizes(self, blocks: int) -> list[int]:
        return [len(range(block, self.num_edges, blocks)) for block in range(blocks)]

    @property
    def _scale(self) -> float:
        return self.num_edges / self.apart.shape[-1]

    def _sharing(self, blocks: int) -> Tensor:
        """Whether two edges share their directions, [E, E]."""
        if not 1 <= blocks <= max(self.num_edges, 1):
            raise ValueError(f"blocks={blocks} must be from 1 to the {self.num_edges} edges.")
        block = torch.arange(self.apart.shape[-1]) % blocks
        return block.unsqueeze(-1) == block


def exact_ratios(law: EdgeLaw, left: Tensor, right: Tensor, path_law: PathLaw) -> EdgeRatios:
    """The ratios of a chain with few states, by enumeration of its edges.

    Shapes:     left, right [X, d]: what the feature map is evaluated on.
    Cost:       O(X^4 (d + T^2)) time, O(X^4) memory: tens of states.
    """
    excess = all_excess(law, left, right)
    states, edges = path_law.num_states, path_law.num_steps - 1
    steps = [path_law.transition(edge) for edge in range(edges)]
    marginals = path_law.marginals()
    weights = torch.stack([m.unsqueeze(-1) * s for m, s in zip(marginals, steps, strict=False)])
    flat = weights.reshape(edges, -1)
    apart = flat @ excess.reshape(states**2, -1) @ flat.transpose(-1, -2)
    together = torch.zeros_like(apart)
    for e in range(edges):
        own = weights[e] * torch.einsum("xyxy->xy", excess)
        together[e, e] = own.sum()
        between = torch.eye(states, dtype=torch.float64)
        carried = torch.einsum("ax,axbc->xbc", weights[e], excess)  # x: where edge e ends
        for f in range(e + 1, edges):
            together[e, f] = together[f, e] = torch.einsum(
                "xb,bc,xbc->", between, steps[f], carried
            )
            between = between @ steps[f]
    return EdgeRatios(apart, together, edges)


def all_excess(law: EdgeLaw, left: Tensor, right: Tensor) -> Tensor:
    """rho((x, y), (x', y')) - 1 for all states, [X, X, X, X]; O(X^4 d)."""
    states = left.shape[-2]
    shape = (states, states, left.shape[-1])
    sums = law.exponents(left.unsqueeze(1).expand(shape), right.unsqueeze(0).expand(shape))
    flat = sums.reshape(states**2, -1)
    return law.excess(flat, flat).reshape(states, states, states, states)


def sampled_ratios(
    law: EdgeLaw, left: Tensor, right: Tensor, paths: Tensor, *, outside: Tensor | None = None
) -> EdgeRatios:
    """The ratios of a chain from paths drawn from it.

    Path i is compared with itself and with the next few, all around the circle of paths: what all
    paths have in common cancels in `together` - `apart` without noise.

    Shapes:     left, right [X, d]; paths [N, T] states, N >= 2; outside [N, T-1], False where an edge is
                exact and has no error.
    Error:      unbiased; `chi_stderr` is from the spread over paths, and misses tails that no path saw.
    Cost:       about 2^24 pairs of edges, O(d) each; O(T^2) memory, T <= 512 counted.
    Raises:     ValueError for fewer than two paths.
    """
    count, steps = paths.shape
    if count < 2:
        raise ValueError(f"paths has {count} path(s); expected at least 2 independent ones.")
    edges = min(steps - 1, _LARGEST_WINDOW)
    first = (steps - 1 - edges) // 2
    paths = paths[:, first : first + edges + 1]
    sums = law.exponents(left[paths[:, :-1]], right[paths[:, 1:]])  # [N, E, d]
    seen = torch.ones(count, edges, dtype=torch.bool, device=sums.device)
    if outside is not None:
        seen = outside[:, first : first + edges]
    shifts = min(count - 1, _MOST_SHIFTS, max(1, _PAIRS_OF_EDGES // (count * edges**2) - 1))
    together = _mean_excess(law, sums, seen, 0)[0]
    apart = torch.zeros_like(together)
    means = torch.zeros_like(seen[:, 0])
    for shift in range(1, shifts + 1):
        found, each = _mean_excess(law, sums, seen, shift)
        apart, means = apart + found / shifts, means + each / shifts
    return EdgeRatios(
        0.5 * (apart + apart.transpose(-1, -2)),
        together,
        steps - 1,
        # a mean over pairs of paths varies as 2 / sqrt(N) times the spread of its halves
        chi_stderr=float(2.0 * means.std() / count**0.5),
    )


def _mean_excess(law: EdgeLaw, sums: Tensor, seen: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """rho - 1 of path i with path i + shift: the mean over i [E, E], and over the edges [N]."""
    count, edges = seen.shape
    others, theirs = sums.roll(-shift, 0), seen.roll(-shift, 0)
    total = torch.zeros(edges, edges, dtype=torch.float64, device=sums.device)
    means = []
    for part in torch.arange(count, device=sums.device).split(max(1, _ENTRIES // edges**2)):
        found = law.excess(sums[part], others[part])
        mask = seen[part].unsqueeze(-1) & theirs[part].unsqueeze(-2)
        found = torch.where(mask, found, 0.0)
        total += found.sum(0)
        means.append(found.mean((-1, -2)))
    return total / count, torch.cat(means)


# -- the simplest structured model ----------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class RatioError:
    """First-order error of o^ = sum_i K^(q, k_i) v_i / sum_i K^(q, k_i).

    Shapes:     covariance [dv, dv], bias [dv]; relative_variance: that of the denominator, which has to
                be small against 1 for the other two to hold.
    """

    covariance: Tensor
    bias: Tensor
    relative_variance: float


def attention_ratio_error(
    law: EdgeLaw, query: Tensor, keys: Tensor, values: Tensor, weights: Tensor
) -> RatioError:
    """Covariance and bias of one row of linear attention: a chain of two nodes whose first is known.

        Cov(o^) = (1/r) sum_ij w_i w_j rho_ij (v_i - o)(v_j - o)^T
        bias(o^) = -(1/r) sum_ij w_i w_j rho_ij (v_i - o)

    Shapes:     query [d], keys [n, d] as the feature map sees them; values [n, dv]; weights [n], the
                exact attention.
    Reference:  docs/theory.md 7, 18.
    """
    sums = law.exponents(query.expand(keys.shape), keys)
    excess = law.excess(sums, sums) / law.directions
    weights = weights.double()
    offsets = weights.unsqueeze(-1) * (values.double() - weights @ values.double())
    return RatioError(
        offsets.transpose(-1, -2) @ excess @ offsets,
        -(weights @ excess @ offsets),
        float(weights @ excess @ weights),
    )
