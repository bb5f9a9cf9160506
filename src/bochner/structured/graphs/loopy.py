"""Loopy belief propagation: messages along the edges of any graph, through features where K is of low rank.

    m_{i->j}(y) ~ sum_x h_{i->j}(x) K_ij(x, y),      h_{i->j}(x) = w_i(x) prod_{k != j} m_{k->i}(x)

    log Z_Bethe = sum_i log z_i + sum_(ij) log z_ij - sum_(i->j) log z_{i->j}
    z_i = sum w_i prod_k m_{k->i},  z_ij = sum h_{i->j} K h_{j->i},  z_{i->j} = sum_x h_{i->j}(x) m_{j->i}(x)

At a fixed point the derivative of log Z_Bethe by every message is 0: its gradient by the unaries and by the
parameters of K needs no derivative of the messages, and is the beliefs'.

Reference:  Pearl, Probabilistic Reasoning in Intelligent Systems, 1988; Yedidia, Freeman, Weiss, Constructing
            free-energy approximations and generalized belief propagation algorithms, 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.structured.arguments import check_possible, checked_unaries
from bochner.structured.edges.transitions import Transitions
from bochner.structured.escalation import escalated, in_dtype
from bochner.structured.graphs.edge_marginal import EdgeMarginal
from bochner.structured.graphs.meeting import Meeting, along, joined, rows_of
from bochner.structured.graphs.pairwise_graph import PairwiseGraph
from bochner.structured.graphs.sweeps import Sweeps
from bochner.structured.semirings import Message, Semiring, Sum, either, known_to, log_sum


@dataclass(frozen=True, eq=False)
class Beliefs:
    """What belief propagation found.

    Shapes:     marginals [*b, N, X], the beliefs; log_partition [*b], Bethe's approximation of log Z,
                differentiable; converged [*b], residual [*b] (no belief moves by more, in total variation,
                when one message takes its next update); iterations: sweeps done.
    """

    marginals: Tensor
    log_partition: Tensor
    converged: Tensor
    residual: Tensor
    iterations: int
    _transitions: Transitions
    _lefts: Tensor
    _rights: Tensor

    def pairwise(self, edge: int) -> EdgeMarginal:
        """The belief of the two ends of an edge, p(x_i, x_j), never laid out unless asked to."""
        if not 0 <= edge < self._lefts.shape[-2]:
            raise ValueError(f"edge={edge} is none of the {self._lefts.shape[-2]} edges 0, 1, ...")
        left, right = self._lefts[..., edge, :], self._rights[..., edge, :]
        return EdgeMarginal(self._transitions, edge, left, right)


def belief_propagation(
    graph: PairwiseGraph,
    unaries: Tensor,
    transitions: Transitions,
    *,
    sweeps: Sweeps | None = None,
) -> Beliefs:
    """Beliefs and Bethe's log Z of a pairwise model, all messages updated together from uniform ones.

    Shapes:     unaries [*b, N, X], -inf forbids; edge e = (i, j) of the graph has K_e(x_i, x_j).
    Numerics:   as `Tree`: messages in the dtype of the unaries, again in float64 or by logsumexp where that
                may lose mass; messages are normalised, products taken in float64.
    Autograd:   the messages are constants; the gradient of log_partition is exact at a fixed point, which
                is what `converged` says.
    Error:      exact on trees, after as many sweeps as the longest path has edges; with cycles neither a
                bound nor always convergent. Never silently so: a `NotConvergedWarning`, and the fields
                `converged` and `residual`.
    Cost:       O(E X m) time a sweep, O(E X) memory.
    Raises:     ValueError for shapes that do not fit, or where nothing is allowed at some node.
    Example:    a circle of three; log Z is log((e + 1)^3 + (e - 1)^3) = 4.034.
        >>> from bochner.structured import Dense
        >>> ring = PairwiseGraph(3, [(0, 1), (1, 2), (2, 0)])
        >>> found = belief_propagation(ring, torch.zeros(3, 2), Dense(torch.eye(2)[None]))
        >>> round(float(found.log_partition), 3), bool(found.converged)
        (3.94, True)
    """
    sweeps = sweeps or Sweeps()
    unaries = checked_unaries(unaries, transitions)
    if unaries.shape[-2] != graph.num_nodes:
        raise ValueError(
            f"unaries has {unaries.shape[-2]} nodes, the graph {graph.num_nodes}; expected"
            " [*b, N, X] with a row for every node."
        )
    batch = unaries.shape[:-2]
    flat = unaries.reshape(-1, *unaries.shape[-2:]).movedim(-2, 0)
    bare = transitions.flattened(batch)
    bare = bare.with_tensors([t.detach() for t in bare.tensors()])
    with torch.no_grad():

        def run(
            semiring: Semiring, transitions: Transitions, weights: Tensor
        ) -> tuple[_State, Tensor | None]:
            state = _fixed_point(semiring, transitions, graph, weights, sweeps)
            return state, _lost(semiring, state)

        found = escalated(run, bare, flat.detach())
    converged = found.residual <= sweeps.tolerance
    sweeps.report(converged, found.residual, "loopy belief propagation")
    messages, cavities = found.messages.log, found.cavities.log
    ahead, behind = graph.num_edges, slice(graph.num_edges, None)
    lefts, rights = (
        c.movedim(0, -2).reshape(*batch, -1, unaries.shape[-1])
        for c in (cavities[behind], cavities[:ahead])
    )
    # with caches of its own: two results share no graph
    given = in_dtype(transitions.with_tensors(transitions.tensors()), messages.dtype)
    value = _bethe(graph, flat, found, given, (lefts, rights))
    beliefs = _at_nodes(graph, messages) + flat.detach()
    marginals = torch.softmax(beliefs, dim=-1).movedim(0, -2).reshape(unaries.shape)
    return Beliefs(
        marginals.to(unaries.dtype),
        value.reshape(batch).to(unaries.dtype),
        converged.reshape(batch),
        found.residual.reshape(batch),
        found.iterations,
        transitions,
        lefts,
        rights,
    )


@dataclass(frozen=True)
class _State:
    """Messages [2E, N, X] to the second, then to the first nodes of the edges; what else arrives there."""

    messages: Message
    cavities: Message
    residual: Tensor
    iterations: int


def _targets(graph: PairwiseGraph) -> Tensor:
    return torch.cat([graph.edges[:, 1], graph.edges[:, 0]])


def _fixed_point(
    semiring: Semiring,
    transitions: Transitions,
    graph: PairwiseGraph,
    unaries: Tensor,
    sweeps: Sweeps,
) -> _State:
    nodes, edges = _targets(graph), torch.arange(graph.num_edges)
    ahead, behind = torch.arange(graph.num_edges), torch.arange(graph.num_edges) + graph.num_edges
    messages = semiring.lift(torch.zeros_like(unaries[nodes]))
    residual = unaries.new_full(unaries.shape[1:-1], torch.inf)
    iterations = 0
    if not len(edges):
        return _State(messages, messages, torch.zeros_like(residual), 0)
    while True:
        others = Meeting(messages, nodes, graph.num_nodes).others()
        cavities = semiring.settled(semiring.times(others, unaries[nodes]))
        if iterations == sweeps.limit or not bool((residual > sweeps.tolerance).any()):
            return _State(messages, cavities, residual, iterations)
        moved = [
            along(transitions.forward, semiring, rows_of(cavities, behind), edges, transitions),
            along(transitions.backward, semiring, rows_of(cavities, ahead), edges, transitions),
        ]
        new = semiring.settled(joined(moved))
        residual = _distance(messages.log, new.log).amax(dim=0)
        messages = _mixed(semiring, messages, new, sweeps.damping)
        iterations += 1


def _lost(semiring: Semiring, state: _State) -> Tensor | None:
    """Elements whose messages may miss what counts: they meet where `Sum` does not know them."""
    lost = state.cavities.lost
    if isinstance(semiring, Sum):
        dtype = state.messages.log.dtype
        tops = (state.messages.log + state.cavities.log).amax(dim=-1)
        lost = either(lost, tops < known_to(dtype) - math.log(torch.finfo(dtype).eps))
    return None if lost is None else lost.any(dim=0)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """tanh(D / 4), D the range of log(one / other): how far a belief can move, whatever it is made of.

    The distance of the messages themselves would not do: two that are both next to certain look equal,
    and what else arrives may outweigh the one and not the other. What rounding moves counts as 0.
    """
    both = (one == -torch.inf) & (other == -torch.inf)
    apart = torch.where(both, 0.0, one - other)
    largest = torch.where(both, -torch.inf, apart).amax(dim=-1)
    smallest = torch.where(both, torch.inf, apart).amin(dim=-1)
    size = torch.where(one == -torch.inf, 0.0, one).abs().amax(dim=-1)
    rounding = 8 * torch.finfo(one.dtype).eps * (1 + size)
    return torch.tanh((largest - smallest - rounding).clamp_min(0.0).nan_to_num(nan=0.0) / 4)


def _mixed(semiring: Semiring, old: Message, new: Message, damping: float) -> Message:
    """old^damping new^(1 - damping), without its scale: only the shape of a message counts."""
    log = new.log if damping == 0 else damping * old.log + (1 - damping) * new.log
    mixed = semiring.settled(Message(log, torch.zeros_like(new.scale), new.lost))
    return Message(mixed.log, torch.zeros_like(new.scale), new.lost)


def _at_nodes(graph: PairwiseGraph, messages: Tensor) -> Tensor:
    scale = torch.zeros(messages.shape[:-1], dtype=torch.float64, device=messages.device)
    return Meeting(Message(messages, scale), _targets(graph), graph.num_nodes).all().log


def _bethe(
    graph: PairwiseGraph,
    unaries: Tensor,
    found: _State,
    transitions: Transitions,
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """Bethe's log Z of a flattened batch [N], float64; differentiable by the unaries and the parameters."""
    messages, cavities = found.messages.log, found.cavities.log
    zero = torch.zeros(messages.shape[:-1], dtype=torch.float64, device=messages.device)
    meeting = Meeting(Message(messages, zero), _targets(graph), graph.num_nodes).all()
    nodes = log_sum(unaries + meeting.log, -1).double() + meeting.scale
    check_possible(nodes.detach().amin(dim=0))
    value = nodes.sum(dim=0)
    if graph.num_edges:
        value = value - log_sum(cavities + messages, -1).double().sum(dim=0)
        values, shifts = transitions.bilinear(*ends)
        edges = values.log() + shifts
        value = value + edges.double().sum(dim=-1).reshape(-1)
    return value
