"""Trees: distributions over the states of nodes that are joined to their parents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from bochner.structured.arguments import (
    check_possible,
    checked_lengths,
    checked_states,
    checked_unaries,
    log_probability,
)
from bochner.structured.chains.decoding import Decoding
from bochner.structured.chains.information import Estimate
from bochner.structured.edges.transitions import Transitions
from bochner.structured.escalation import escalated, in_dtype
from bochner.structured.graphs.blockwise import Blockwise
from bochner.structured.graphs.edge_marginal import EdgeMarginal
from bochner.structured.graphs.forest import Forest
from bochner.structured.graphs.tree_recursion import Both, both, upward
from bochner.structured.graphs.walks import Choice, Drawn, Heaviest
from bochner.structured.semirings import Max, Semiring
from bochner.validation import check_count


class Tree:
    """p(x) = exp(sum_v u_v(x_v)) prod_v K_v(x_parent(v), x_v) / Z on a rooted tree, or on several.

    The edge of node v reads K(parent's state, v's state). Edges are numbered in the order of the
    children, so that with the parents -1, 0, 1, ... this is a `Chain`.

    Shapes:     parents [T] of integers, in any order, -1 for a root (several roots: several trees side by
                side; trees of different shape are batched so, as one forest); unaries [*b, T, X], -inf
                forbids; lengths [*b]: nodes at and after them do not exist, 1 <= lengths <= T.
    Numerics:   messages in the dtype of the unaries; a batch in which that may lose mass is run again in
                float64, and at last by logsumexp. log Z is a sum in float64.
    Error:      none, for transitions that are the model.
    Cost:       log Z and all marginals in O(E X m) time, O(T X) memory: all nodes of one depth are one
                product. A gradient is recorded level by level and keeps about five tensors
                of [*b, T, X].
    Raises:     TypeError or ValueError for wrong types and shapes, a circle, or lengths that cut a parent
                off from its child.
    Reference:  docs/theory.md 16.
    Example:    a root with two leaves that like to agree with it.
        >>> from bochner.structured import Dense, Tree
        >>> tree = Tree(Dense(torch.eye(2)[None]), torch.zeros(3, 2), parents=[-1, 0, 0])
        >>> round(float(tree.log_partition), 4)                           # log(2 (1 + e)^2)
        3.3197
        >>> round(float(tree.log_prob(torch.tensor([0, 0, 0])).exp()), 4)  # (e / (1 + e))^2 / 2
        0.2672
    """

    def __init__(
        self,
        transitions: Transitions,
        unaries: Tensor,
        *,
        parents: Tensor | Sequence[int],
        lengths: Tensor | None = None,
    ) -> None:
        self.transitions = transitions
        self.unaries = checked_unaries(unaries, transitions)
        self.forest = Forest(parents)
        nodes = self.unaries.shape[-2]
        if self.forest.num_nodes != nodes:
            raise ValueError(
                f"parents has {self.forest.num_nodes} nodes, unaries has {nodes}; expected one parent"
                " (-1 for a root) for every node."
            )
        self.lengths = checked_lengths(lengths, self.unaries)
        self._check_cut()

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions [*b]."""
        return self.unaries.shape[:-2]

    @property
    def num_states(self) -> int:
        """|X|."""
        return self.unaries.shape[-1]

    @cached_property
    def there(self) -> Tensor:
        """Which nodes exist, bool [*b, T]."""
        nodes = torch.arange(self.forest.num_nodes, device=self.unaries.device)
        return nodes < self.lengths.unsqueeze(-1)

    # -- sums over all configurations -----------------------------------------------------------------
    @property
    def log_partitions(self) -> Tensor:
        """log Z of every tree of the forest, [*b, R], in the order of the roots; 0 for one that does not
        exist. Differentiable, twice; computed anew each time it is asked for."""

        def run(
            semiring: Semiring, transitions: Transitions, unaries: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            found = upward(semiring, transitions, self.forest, unaries, self._there_by_node)
            return found.log_partitions, found.lost

        totals = escalated(run, *self._by_node())
        return totals.movedim(0, -1).reshape(*self.batch_shape, -1)

    @property
    def log_partition(self) -> Tensor:
        """log Z [*b], -inf where nothing is allowed; see `log_partitions`."""
        return self.log_partitions.sum(dim=-1).to(self.unaries.dtype)

    @property
    def marginals(self) -> Tensor:
        """p(x_v = x) [*b, T, X], 0 for nodes that do not exist; constants to autograd.

        Differentiate `log_partition` by the unaries with create_graph=True for marginals with a gradient.

        Raises:     ValueError if no configuration of some element is allowed.
        """
        logs = torch.log_softmax(self._messages.beliefs.log.double(), dim=-1)
        marginals = torch.exp(logs).movedim(0, -2).reshape(self.unaries.shape)
        return torch.where(self.there.unsqueeze(-1), marginals, 0.0).to(self.unaries.dtype)

    def pairwise(self, child: int) -> EdgeMarginal:
        """p(x_parent, x_child) of one edge, never laid out unless asked to."""
        edge = self._edge(child)
        found = self._messages
        shape = (*self.batch_shape, self.num_states)
        return EdgeMarginal(
            self.transitions,
            edge,
            found.lefts.log[edge].reshape(shape),
            found.rights.log[edge].reshape(shape),
        )

    def entropy(self) -> Tensor:
        """-E log p [*b], exactly: log Z - E[score], dense blocks of K made one after another.

        Numerics:   in float64: log Z and the expected score are large and nearly equal.
        Cost:       O(E X^2 m) time, O(T X) memory.
        """
        if self.unaries.dtype != torch.float64:
            return self._double().entropy().to(self.unaries.dtype)
        allowed = torch.where(self.marginals > 0, self.unaries, 0.0)
        expected = (self.marginals * allowed).double().sum(dim=(-1, -2))
        for child in self.forest.children.tolist():
            there = self.there[..., child]
            expected = expected + torch.where(
                there, self.pairwise(child).expected_log_potential(), 0
            )
        return self.log_partition.detach() - expected

    def entropy_sampled(self, num_samples: int, *, generator: torch.Generator) -> Estimate:
        """-E log p from exact samples, unbiased, with a 95 % interval: [*b]."""
        states = self.sample((check_count("num_samples", num_samples),), generator=generator)
        with torch.no_grad():
            return Estimate.over(-self.log_prob(states))

    # -- single configurations ------------------------------------------------------------------------
    def score(self, states: Tensor) -> Tensor:
        """Logarithm of the weight before normalisation: states [*s, *b, T] -> [*s, *b], float64."""
        states = checked_states(states, self.there, self.num_states)
        weights = self.unaries.expand(*states.shape, self.num_states)
        found = weights.gather(-1, states.unsqueeze(-1)).squeeze(-1)
        total = torch.where(self.there, found, 0.0).double().sum(dim=-1)
        children = self.forest.children
        if len(children):
            before = states[..., self.forest.parents[children]]
            pairs = self.transitions.log_potential(before, states[..., children])
            total = total + torch.where(self.there[..., children], pairs, 0.0).double().sum(dim=-1)
        return total

    def log_prob(self, states: Tensor) -> Tensor:
        """log p(states) <= 0: states [*s, *b, T] -> [*s, *b].

        Raises:     ValueError if no configuration of some element is allowed.
        """
        value = self.log_partitions.sum(dim=-1)
        check_possible(value)
        return log_probability(self.score(states), value).to(self.unaries.dtype)

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Exact draws, the roots first: states [*sample_shape, *b, T], 0 for nodes that do not exist.

        Cost:       one pass of messages, and O(T (m + X)) a draw (less where draws share states).
        """
        with torch.no_grad():
            return self._walk(Drawn(generator), self._beta_by_node(), torch.Size(sample_shape))

    def posterior_decode(self) -> Decoding:
        """The likeliest state of every node by itself: the most nodes right in expectation.

        The gap comes from p(x) <= max_x p(x_v = x) for every node v.
        """
        top = self.marginals.max(dim=-1)
        states = torch.where(self.there, top.indices, 0)
        rarest = torch.where(self.there, top.values, 1.0).amin(dim=-1).double().log()
        with torch.no_grad():
            score = self.score(states)
            # the bound can only fall below the score by rounding
            gap = (self.log_partitions.sum(dim=-1) + rarest - score).clamp_min(0.0)
        return Decoding(states, score.to(self.unaries.dtype), gap.to(self.unaries.dtype))

    @torch.no_grad()
    def mode(self) -> Decoding:
        """A heaviest configuration, exactly: a maximum does not pass through features, so that K is read in
        dense blocks.

        Cost:       O(E X^2 m) time, O(T X) memory.
        """
        transitions, unaries = self._by_node(detached=True)
        found = upward(Max(), Blockwise(transitions), self.forest, unaries, self._there_by_node)
        order = torch.cat(self.forest.levels).argsort()
        betas = torch.cat([beta.log for beta in found.betas])[order]
        check_possible(found.log_partitions.sum(dim=0))
        states = self._walk(Heaviest(), betas, torch.Size())
        score = self.score(states).to(self.unaries.dtype)
        return Decoding(states, score, torch.zeros_like(score))

    # -- behind them ----------------------------------------------------------------------------------
    def _double(self) -> Tree:
        unaries = self.unaries.detach().double()
        forest, lengths = self.forest.parents, self.lengths
        return Tree(self.transitions.double(), unaries, parents=forest, lengths=lengths)

    def _by_node(self, *, detached: bool = False) -> tuple[Transitions, Tensor]:
        """Transitions of a flattened batch, unaries [T, N, X]."""
        unaries = self.unaries.reshape(-1, *self.unaries.shape[-2:]).movedim(-2, 0)
        transitions = self.transitions.flattened(self.batch_shape)
        if not detached:
            return transitions, unaries
        bare = transitions.with_tensors([t.detach() for t in transitions.tensors()])
        return bare, unaries.detach()

    @cached_property
    def _there_by_node(self) -> Tensor:
        return self.there.reshape(-1, self.there.shape[-1]).movedim(-1, 0)

    @cached_property
    def _messages(self) -> Both:
        def run(
            semiring: Semiring, transitions: Transitions, unaries: Tensor
        ) -> tuple[Both, Tensor | None]:
            found = both(semiring, transitions, self.forest, unaries, self._there_by_node)
            return found, found.lost

        with torch.no_grad():
            found = escalated(run, *self._by_node(detached=True))
        check_possible(found.upward.log_partitions.sum(dim=0))
        return found

    def _beta_by_node(self) -> Tensor:
        """What everything below and at a node says of its state, logarithms [T, N, X]."""
        order = torch.cat(self.forest.levels).argsort()
        return torch.cat([beta.log for beta in self._messages.upward.betas])[order]

    def _walk(self, choice: Choice, betas: Tensor, sample_shape: torch.Size) -> Tensor:
        """States chosen from the roots down, [*s, *b, T]."""
        transitions = in_dtype(self._by_node(detached=True)[0], betas.dtype)
        count = sample_shape.numel()
        states = torch.zeros(
            self.forest.num_nodes, count, betas.shape[1], dtype=torch.long, device=betas.device
        )
        there = self._there_by_node
        element = torch.arange(betas.shape[1], device=betas.device).expand(count, -1)
        for node in torch.cat(self.forest.levels).tolist():
            weights = torch.where(there[node].unsqueeze(-1), betas[node], 0.0)
            edge = int(self.forest.edge_of[node])
            if edge < 0:
                found = choice.among(weights, element.reshape(-1)).reshape(element.shape)
            else:
                before = states[self.forest.parents[node]]
                found = choice.after(transitions, edge, before, weights)
            states[node] = torch.where(there[node], found, 0)
        return states.movedim(0, -1).reshape(*sample_shape, *self.batch_shape, -1)

    def _edge(self, child: int) -> int:
        nodes = self.forest.num_nodes
        if not 0 <= child < nodes or int(self.forest.parents[child]) < 0:
            raise ValueError(
                f"child={child} has no edge to a parent; expected a node from 0 to {nodes - 1} that is"
                f" no root (roots: {self.forest.levels[0].tolist()})."
            )
        return int(self.forest.edge_of[child])

    def _check_cut(self) -> None:
        children = self.forest.children
        if not len(children) or bool(self.there.all()):
            return
        cut = self.there[..., children] & ~self.there[..., self.forest.parents[children]]
        if bool(cut.any()):
            child = int(children[cut.reshape(-1, len(children)).any(dim=0).nonzero()[0, 0]])
            raise ValueError(
                f"lengths keeps node {child} and drops its parent {int(self.forest.parents[child])};"
                " number parents before their children where lengths are used."
            )
