"""Expected log-weights of one chain under another, through K in blocks of rows.

    sum_t E_p[v_t(x_t)] + sum_t E_p[G_t(x_t, x_{t+1})],      G = log K_q, or log K_p - log K_q

    E_p[G_t] = sum_x  left_t(x) / c_t  [ (K_p o G) right_t ](x)

A block of K_p o G is one matrix product with the `right` of all edges that share it.

Numerics:   float64. Where the left side of an edge would leave its range (two sides that barely meet
            through K) that edge is summed from logarithms instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bochner.structured.arguments import check_possible
from bochner.structured.chains.messages import both_messages
from bochner.structured.edges.transitions import Transitions
from bochner.structured.matrix import finite_maximum

if TYPE_CHECKING:
    from bochner.structured.chains.chain import Chain

_ELEMENTS = 1 << 20  # of a dense block: 8 MB in float64
_SAFE = 300.0  # the logarithm of what float64 is asked to hold, half of its range


def expected_log_weight(chain: Chain, other: Chain) -> Tensor:
    """E_p[score of q], [*b], float64: -inf where q forbids what p allows."""
    q = other.transitions.flattened(other.batch_shape)
    return _expected(chain, other.unaries, (q,))


def expected_log_ratio(chain: Chain, other: Chain) -> Tensor:
    """E_p[score of p - score of q], [*b], float64: inf where q forbids what p allows."""
    q = other.transitions.flattened(other.batch_shape)
    p = chain.transitions.flattened(chain.batch_shape)
    allowed = torch.where(chain.unaries == -torch.inf, 0.0, chain.unaries)  # p = 0 there
    return _expected(chain, allowed.double() - other.unaries.double(), (p, q))


class _Edges(NamedTuple):
    """Edges that share their matrices: left, right [N, E, X], the logarithm [N, E] to be added."""

    left: Tensor
    right: Tensor
    rest: Tensor


def _expected(chain: Chain, values: Tensor, of: tuple[Transitions, ...]) -> Tensor:
    """E[values_t(x_t)] + E[log of[0]] (- E[log of[1]]) under the chain."""
    transitions, unaries, lengths = chain.flat()
    bare, unaries = transitions.double(), unaries.double()
    of = tuple(bare if k is transitions else k.double() for k in of)
    m = both_messages(bare, unaries, lengths)
    check_possible(m.log_partition)
    there = chain.there.reshape(unaries.shape[:2])
    scale = m.alpha_scale + m.beta_scale - m.log_partition.unsqueeze(-1)
    probs = torch.exp(m.alpha + m.beta + scale.unsqueeze(-1)) * there.unsqueeze(-1)
    nodes = values.reshape(unaries.shape).double()
    total = torch.where(probs > 0, probs * nodes, 0.0).sum(dim=(-1, -2))
    right = torch.where(there[:, 1:].unsqueeze(-1), unaries[:, 1:] + m.beta[:, 1:], 0.0)
    top = finite_maximum(right, -1)
    rest = m.alpha_scale[:, :-1] + m.beta_scale[:, 1:] - m.log_partition.unsqueeze(-1)
    rest = torch.where(there[:, 1:], rest + top.squeeze(-1), -torch.inf)
    right = right - top
    groups: dict[tuple[int, ...], list[int]] = {}
    for edge in range(unaries.shape[1] - 1):
        groups.setdefault(tuple(edge % k.num_blocks for k in (bare, *of)), []).append(edge)
    for edges in groups.values():
        group = _Edges(m.alpha[:, edges], right[:, edges], rest[:, edges])
        total = total + _group(bare, of, edges[0], group)
    return total.view(chain.batch_shape)


def _group(p: Transitions, of: tuple[Transitions, ...], edge: int, edges: _Edges) -> Tensor:
    """The sum [N] over edges that share the matrices of `edge`."""
    size = p.num_states
    batch = max(math.prod(k.batch_shape) for k in (p, *of))
    step = max(1, _ELEMENTS // (size * batch))
    total = edges.rest.new_zeros(len(edges.rest))
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        log = p.log_block(edge, rows)
        possible = log > -torch.inf
        integrand = torch.where(possible, of[0].log_block(edge, rows), 0.0)
        for k in of[1:]:
            integrand = torch.where(possible, integrand - k.log_block(edge, rows), 0.0)
        part = edges._replace(left=edges.left[..., rows])
        total = total + _block(log, integrand, part)
    return total


def _block(log: Tensor, integrand: Tensor, edges: _Edges) -> Tensor:
    """sum_e sum_xy p_e(x, y) integrand(x, y), [N], over a block [*N, r, X]; 0 * inf = 0."""
    top = finite_maximum(log, -1)
    left = edges.left + top.transpose(-1, -2) + edges.rest.unsqueeze(-1)
    held = left.amax(dim=-1) < _SAFE
    kernel = torch.exp(log - top)
    finite = torch.isfinite(integrand)
    weights = torch.exp(left.masked_fill(~held.unsqueeze(-1), -torch.inf)).transpose(-1, -2)
    columns = torch.exp(edges.right).transpose(-1, -2)
    seen = (kernel * torch.where(finite, integrand, 0.0)) @ columns
    total = torch.where(weights > 0, weights * seen, 0.0).sum(dim=(-1, -2))
    if not bool(finite.all()):
        for sign in (torch.inf, -torch.inf):
            mass = (kernel * (integrand == sign)) @ columns
            total = total + torch.where((weights * mass).sum(dim=(-1, -2)) > 0, sign, 0.0)
    for element, edge in (~held).nonzero().tolist():
        total[element] += _from_logs(log, integrand, edges, element, edge)
    return total


def _from_logs(log: Tensor, integrand: Tensor, edges: _Edges, element: int, edge: int) -> Tensor:
    """The same for one edge of one element."""
    log = log[element] if log.ndim == 3 else log
    integrand = integrand[element] if integrand.ndim == 3 else integrand
    sides = edges.left[element, edge, :, None] + edges.right[element, edge]
    probs = torch.exp(sides + log + edges.rest[element, edge])
    return torch.where(probs > 0, probs * integrand, 0.0).sum()
