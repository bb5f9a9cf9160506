"""Mean field for pairwise models whose log-potentials are bilinear: no features, and a bound on log Z.

    p(x) = exp(sum_i u_i(x_i) + sum_(i,j) a_{x_i} . b_{x_j}) / Z,       q(x) = prod_i q_i(x_i)
    log Z >= sum_i E_q[u_i] + sum_(i,j) E_q[a]_i . E_q[b]_j + sum_i H(q_i)

Reference:  docs/theory.md 16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bochner.structured.graphs.pairwise_graph import PairwiseGraph
from bochner.structured.graphs.sweeps import Sweeps


class MeanField(NamedTuple):
    """What mean field found.

    Shapes:     marginals [*b, N, X], the q_i; log_partition_bound [*b] <= log Z (to rounding), whether
                or not it converged; converged [*b], residual [*b] (the largest total variation of a q_i
                in the last sweep); iterations: sweeps done.
    """

    marginals: Tensor
    log_partition_bound: Tensor
    converged: Tensor
    residual: Tensor
    iterations: int


def mean_field(
    graph: PairwiseGraph,
    unaries: Tensor,
    *,
    embeddings: tuple[Tensor, Tensor],
    start: Tensor | None = None,
    sweeps: Sweeps | None = None,
) -> MeanField:
    """The best product of independent nodes that coordinate ascent finds from a start.

    Nodes without an edge between them are updated together, q_i ~ exp(u_i + a_x . sum_j E_q[b]_j), so
    that no sweep lowers the bound. With damping the old logits stay in part, and it still rises.

    Shapes:     unaries [*b, N, X], -inf forbids; embeddings (a, b), each [*b, X, n]: edge (i, j) has
                a_{x_i} . b_{x_j}; start [*b, N, X]: probabilities (softmax of the unaries by default,
                a saddle point if the model is symmetric: then pass one that is not).
    Autograd:   the q_i are constants; the bound's gradient by unaries and embeddings is that at fixed q,
                which at a stationary point is the whole gradient.
    Error:      the bound is below log Z by KL(q | p), which nothing here reports; other starts may find
                better q_i. Never silently unconverged: `NotConvergedWarning`, `converged`, `residual`.
    Cost:       O(N X n + E n) time a sweep, O(N X) memory.
    Raises:     ValueError for shapes that do not fit, or a node whose states are all forbidden.
    Example:
        >>> grid, u = PairwiseGraph.grid(2, 2), torch.zeros(4, 2)
        >>> a = 0.1 * torch.tensor([[1.0], [-1.0]])                 # log-potential +-0.01
        >>> found = mean_field(grid, u, embeddings=(a, a))
        >>> round(float(found.log_partition_bound), 4), bool(found.converged)   # log Z: 4 log 2 + 2e-4
        (2.7726, True)
    """
    sweeps = sweeps or Sweeps()
    a, b = _checked(graph, unaries, embeddings)
    with torch.no_grad():
        q = _start(unaries, start, a, b)
        colours = [_Colour(graph, nodes, q.device) for nodes in graph.colours]
        iterations = 0
        residual = torch.full(q.shape[:-2], torch.inf, dtype=q.dtype, device=q.device)
        while iterations < sweeps.limit and bool((residual > sweeps.tolerance).any()):
            residual = torch.zeros_like(residual)
            for colour in colours:
                new = colour.updated(q, unaries, a, b)
                # of the whole update: a damped one is small wherever it is
                moved = (new - q[..., colour.nodes, :]).abs().sum(dim=-1) / 2
                residual = torch.maximum(residual, moved.amax(dim=-1))
                if sweeps.damping:
                    new = _damped(q[..., colour.nodes, :], new, sweeps.damping)
                q = q.index_copy(-2, colour.nodes, new)
            iterations += 1
    converged = residual <= sweeps.tolerance
    sweeps.report(converged, residual, "mean field")
    return MeanField(q, _bound(graph, unaries, a, b, q), converged, residual, iterations)


class _Colour:
    """The nodes of one colour, with the edges that leave them as first or as second node."""

    def __init__(self, graph: PairwiseGraph, nodes: Tensor, device: torch.device) -> None:
        self.nodes = nodes.to(device)
        position = torch.full((graph.num_nodes,), -1)
        position[nodes] = torch.arange(len(nodes))
        first, second = graph.edges[:, 0], graph.edges[:, 1]
        ahead, behind = position[first] >= 0, position[second] >= 0
        # (ours, theirs)
        self._ahead = position[first[ahead]].to(device), second[ahead].to(device)
        self._behind = position[second[behind]].to(device), first[behind].to(device)

    def updated(self, q: Tensor, unaries: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The new q of these nodes, given the others."""
        logits = unaries[..., self.nodes, :]
        for (ours, theirs), mine, other in ((self._ahead, a, b), (self._behind, b, a)):
            if len(ours) == 0:
                continue
            means = q[..., theirs, :] @ other  # [*b, edges, n]
            total = means.new_zeros(*means.shape[:-2], len(self.nodes), means.shape[-1])
            logits = logits + total.index_add(-2, ours, means) @ mine.transpose(-1, -2)
        return torch.softmax(logits, dim=-1)


def _damped(old: Tensor, new: Tensor, damping: float) -> Tensor:
    """The normalised old^damping new^(1-damping)."""
    return torch.softmax(damping * old.log() + (1 - damping) * new.log(), dim=-1)


def _bound(graph: PairwiseGraph, unaries: Tensor, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """E_q[score] + H(q): nodes in the dtype of the unaries, their sum in float64."""
    allowed = torch.where(q > 0, unaries, 0.0)  # 0 * -inf is 0 here, with gradient 0
    nodes = (q * allowed + torch.special.entr(q)).sum(dim=-1)
    first, second = graph.edges.to(q.device).unbind(dim=-1)
    pairs = ((q @ a)[..., first, :] * (q @ b)[..., second, :]).sum(dim=-1)
    bound = nodes.double().sum(dim=-1) + pairs.double().sum(dim=-1)
    return bound.to(unaries.dtype)


def _start(unaries: Tensor, start: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    if start is None:
        q = torch.softmax(unaries, dim=-1)
    elif start.shape[-2:] != unaries.shape[-2:]:
        raise ValueError(
            f"start has shape {list(start.shape)}; expected [*b, N, X] = [..., {unaries.shape[-2]},"
            f" {unaries.shape[-1]}]."
        )
    elif bool((start < 0).any()) or not torch.allclose(
        start.sum(dim=-1), start.new_ones(()), atol=1e-4
    ):
        raise ValueError("start must hold probabilities: rows >= 0 with sum 1 (torch.softmax).")
    else:
        q = start.to(unaries.dtype)
    batch = torch.broadcast_shapes(unaries.shape[:-2], q.shape[:-2], a.shape[:-2], b.shape[:-2])
    return q.expand(*batch, *q.shape[-2:])


def _checked(
    graph: PairwiseGraph, unaries: Tensor, embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    a, b = embeddings
    for name, values in (("unaries", unaries), ("embeddings: a", a), ("embeddings: b", b)):
        if values.dtype != unaries.dtype or values.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name} has dtype {values.dtype}; expected float32, or float64, for unaries, a and b."
            )
        if not bool((values.detach() < torch.inf).all()):
            raise ValueError(f"{name} holds NaN or +inf; expected finite numbers.")
    if unaries.ndim < 2 or unaries.shape[-2] != graph.num_nodes:
        raise ValueError(
            f"unaries has shape {list(unaries.shape)}; expected [*b, {graph.num_nodes}, X], a row for"
            " every node of the graph."
        )
    for name, table in (("a", a), ("b", b)):
        if table.ndim < 2 or table.shape[-2] != unaries.shape[-1]:
            raise ValueError(
                f"embeddings: {name} has shape {list(table.shape)}; expected [*b, X, n] with"
                f" X={unaries.shape[-1]}, a row for every state of the unaries."
            )
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"embeddings: a has {a.shape[-1]} columns, b has {b.shape[-1]}; expected the same number."
        )
    forbidden = (unaries == -torch.inf).all(dim=-1)
    if bool(forbidden.any()):
        node = int(forbidden.nonzero()[0, -1])
        raise ValueError(
            f"unaries forbids every state of node {node} (-inf throughout): Z = 0, and no product of"
            " independent nodes has a bound above -inf; allow at least one state."
        )
    return a, b
