"""The recursion of a tree, once: messages from the leaves to the roots and back.

    beta_v(x)  = w_v(x) prod_{children c} up_c(x),         up_c(x) = sum_y K_c(x, y) beta_c(y)
    left_c(x)  = down_p(x) w_p(x) prod_{siblings s} up_s(x),       p the parent of c
    down_c(y)  = sum_x left_c(x) K_c(x, y)

    Z = prod_roots sum_x beta_root(x),        p(x_v) ~ down_v beta_v,
    p(x_p, x_c) ~ left_c(x_p) K_c(x_p, x_c) beta_c(x_c)

All nodes of a level travel together, so that a bush is one thin product and a path is a chain.

Reference:  docs/theory.md 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.graphs.forest import Forest
from bochner.structured.graphs.meeting import Meeting, along, joined, rows_of
from bochner.structured.semirings import Message, Semiring, either


@dataclass(frozen=True)
class Upward:
    """Messages from the leaves up, one [L, *b, X] for the L nodes of every level (ups: not the roots')."""

    betas: list[Message]
    ups: list[Message]
    log_partitions: Tensor
    """log Z of every tree, [R, *b], float64; 0 for one that does not exist."""

    @property
    def lost(self) -> Tensor | None:
        """Elements of the batch that may have lost mass, [*b]."""
        lost = self.betas[0].lost
        return None if lost is None else lost.any(dim=0)


@dataclass(frozen=True)
class Both:
    """Messages both ways; `lefts` and `rights` [E, *b, X] in the order of the edges."""

    upward: Upward
    beliefs: Message
    """[T, *b, X], in the order of the nodes."""
    lefts: Message
    rights: Message

    @property
    def lost(self) -> Tensor | None:
        """Elements of the batch that may have lost mass, [*b]."""
        lost = self.beliefs.lost
        down = None if lost is None else lost.any(dim=0)
        return either(self.upward.lost, down)


def upward(
    semiring: Semiring,
    transitions: Transitions,
    forest: Forest,
    unaries: Tensor,
    there: Tensor,
) -> Upward:
    """From the leaves to the roots: unaries [T, *b, X], which nodes exist [T, *b]."""
    betas: list[Message] = []
    ups: list[Message] = []
    for depth in range(len(forest.levels) - 1, -1, -1):
        nodes = forest.levels[depth]
        beta = semiring.lift(_present(unaries[nodes], there[nodes]))
        if ups:
            places = forest.parent_places[depth]
            beta = semiring.product(beta, Meeting(ups[-1], places, len(nodes)).all())
        beta = semiring.settled(beta)
        betas.append(beta)
        if depth:
            moved = along(transitions.backward, semiring, beta, forest.edge_of[nodes], transitions)
            ups.append(_if_there(semiring, there[nodes], moved))
    roots = semiring.total(betas[-1])
    totals = torch.where(there[forest.levels[0]], roots, 0.0)
    return Upward(betas[::-1], ups[::-1], totals)


def both(
    semiring: Semiring,
    transitions: Transitions,
    forest: Forest,
    unaries: Tensor,
    there: Tensor,
) -> Both:
    """Up, and down again."""
    up = upward(semiring, transitions, forest, unaries, there)
    lefts: list[Message] = []
    down = semiring.lift(torch.zeros_like(up.betas[0].log))
    beliefs = [up.betas[0]]
    for depth in range(1, len(forest.levels)):
        above, nodes = forest.levels[depth - 1], forest.levels[depth]
        places = forest.parent_places[depth - 1]
        context = semiring.times(down, _present(unaries[above], there[above]))
        siblings = Meeting(up.ups[depth - 1], places, len(above)).others()
        left = semiring.settled(semiring.product(rows_of(context, places), siblings))
        lefts.append(left)
        moved = along(transitions.forward, semiring, left, forest.edge_of[nodes], transitions)
        down = _if_there(semiring, there[nodes], moved)
        # down has kept its doubts, so that two messages that meet only where it is not known are lost
        beliefs.append(semiring.settled(semiring.product(down, up.betas[depth])))
    order = torch.cat(forest.levels).argsort()
    children = order[forest.children]
    none = rows_of(up.betas[0], torch.zeros(0, dtype=torch.long))
    all_lefts = joined([none, *lefts])
    return Both(
        up,
        rows_of(joined(beliefs), order),
        rows_of(all_lefts, children - len(forest.levels[0])),
        rows_of(joined(up.betas), children),
    )


def _present(unaries: Tensor, there: Tensor) -> Tensor:
    """Weights of the nodes that exist; 1 for the others, whatever their unaries hold."""
    return torch.where(there.unsqueeze(-1), unaries, 0.0)


def _if_there(semiring: Semiring, there: Tensor, message: Message) -> Message:
    if bool(there.all()):
        return message
    one = Message(torch.zeros_like(message.log), torch.zeros_like(message.scale))
    return semiring.choose(there, message, one)
