"""One path for every sequence: the heaviest, exactly or within a bound, or the likeliest state of every step.

    mode              argmax_x p(x), through K in blocks of rows: O(T X^2)
    mode_pruned       the same among the k likeliest states of every step: O(T (X m + k^2 m))
    mode_augmented    argmax_{x, j} p(x, j), j the hidden indices: O(T X m), within (T-1) log m of the mode
    posterior_decode  argmax p(x_t) for every t: the most states right in expectation, not a likely path

A maximum does not distribute over the sum over j, so that the exact mode has to read every K(x, y). Every
result carries a bound on what it may miss; 0 says that it is a mode.

Reference:  docs/theory.md 15.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bochner.structured.arguments import check_possible
from bochner.structured.chains.recursion import Part, backward_messages
from bochner.structured.matrix import finite_maximum
from bochner.structured.semirings import Max
from bochner.validation import check_count

if TYPE_CHECKING:
    from bochner.structured.chains.chain import Chain

_ELEMENTS = 1 << 21  # of a dense block, with the batch: 8 MB in float32
_KEPT = 1 << 24  # of log K: tables up to this size are made once, not at every step


class Decoding(NamedTuple):
    """A path for every sequence, and how far it may be from the heaviest.

    Shapes:     states [*b, T] int64, 0 at steps that do not exist; log_score [*b], the log-weight of the
                path before normalisation (`Chain.score`; minus log Z it is the log-probability);
                gap [*b]: the log-weight of a mode exceeds log_score by at most this (0: it is a mode,
                up to rounding; inf: nothing is known).
    """

    states: Tensor
    log_score: Tensor
    gap: Tensor


@torch.no_grad()
def posterior_decode(chain: Chain) -> Decoding:
    """The likeliest state of every step: the most states right in expectation.

    The states need not be a likely path, nor an allowed one (log_score is then -inf, and gap inf). The
    bound is p(x) <= max_y p(x_t = y) for every t.

    Cost:       as the marginals, O(T X m).
    """
    top = chain.marginals.max(dim=-1)
    states = torch.where(chain.there, top.indices, 0)
    rarest = torch.where(chain.there, top.values, 1.0).amin(dim=-1).double().log()
    return _decoded(chain, states, chain.log_partition + rarest)


@torch.no_grad()
def mode(chain: Chain) -> Decoding:
    """A heaviest path: Viterbi through K in blocks of rows.

    Cost:       O(T X^2) time (times m for low-rank transitions beyond 4,096 states, whose K is made anew at
                every step); memory of a block, and O(T X).
    """
    transitions, unaries, lengths = chain.flat()
    check_possible(chain.log_partition)
    kept: dict[int, Tensor] = {}
    size = chain.num_states
    fits = transitions.num_blocks * size * size * math.prod(transitions.batch_shape) <= _KEPT
    rows = _row_slices(size, max(len(unaries), math.prod(transitions.batch_shape)))

    def block(edge: int, at: slice) -> Tensor:
        if not fits:
            return transitions.log_block(edge, at)
        number = edge % transitions.num_blocks
        if number not in kept:
            kept[number] = transitions.log_block(edge, slice(None))
        return kept[number][..., at, :]

    every = torch.arange(size, device=unaries.device).expand(len(unaries), size)
    space = unaries.new_empty(len(unaries), rows[0].stop, size)
    best = [_levelled(unaries[:, 0])]
    for step in range(1, unaries.shape[1]):
        arriving = torch.full_like(best[-1], -torch.inf)
        for at in rows:
            sums = space[:, : at.stop - at.start]
            torch.add(best[-1][:, at].unsqueeze(-1), block(step - 1, at), out=sums)
            arriving = torch.maximum(arriving, sums.amax(dim=-2))
        moved = _levelled(arriving + unaries[:, step])
        best.append(torch.where((lengths > step).unsqueeze(-1), moved, best[-1]))
    # where a maximum came from is asked along the path alone: O(X m) a step
    state = best[-1].argmax(dim=-1)
    path = [state]
    for step in range(len(best) - 2, -1, -1):
        column = transitions.log_between(step, every, state.unsqueeze(-1)).squeeze(-1)
        state = torch.where(lengths > step + 1, (best[step] + column).argmax(dim=-1), state)
        path.append(state)
    states = torch.stack(path[::-1], dim=-1).view(*chain.batch_shape, -1)
    states = torch.where(chain.there, states, 0)
    score = chain.score(states)
    return Decoding(states, score.to(unaries.dtype), torch.zeros_like(score, dtype=unaries.dtype))


@torch.no_grad()
def mode_pruned(chain: Chain, beam: int) -> Decoding:
    """A heaviest path among the `beam` likeliest states of every step.

    A path that leaves the beams at step t has p(x) <= p(x_t), at most the largest marginal left out: where
    that is below the probability of what was found, the gap is 0 and the mode is certain.

    Cost:       as the marginals, O(T X m), and O(T k^2 m) for k = beam.
    """
    size = min(check_count("beam", beam), chain.num_states)
    transitions, unaries, lengths = chain.flat()
    marginals = chain.marginals.reshape(unaries.shape)
    top = marginals.topk(min(size + 1, chain.num_states), dim=-1)
    beams = top.indices[..., :size]
    local = unaries.gather(-1, beams)
    best, predecessors = local[:, 0], []
    for step in range(1, unaries.shape[1]):
        block = transitions.log_between(step - 1, beams[:, step - 1], beams[:, step])
        found = (best.unsqueeze(-1) + block).max(dim=-2)
        moved = _levelled(found.values + local[:, step])
        best = torch.where((lengths > step).unsqueeze(-1), moved, best)
        predecessors.append(found.indices.int())
    places = _followed(best, predecessors, lengths)
    states = beams.gather(-1, places.unsqueeze(-1)).squeeze(-1).view(*chain.batch_shape, -1)
    states = torch.where(chain.there, states, 0)
    if size == chain.num_states:
        left_out = torch.zeros_like(marginals[..., 0])
    else:
        left_out = top.values[..., size]
    left_out = torch.where(chain.there, left_out.view(chain.there.shape), 0.0).amax(dim=-1)
    return _decoded(chain, states, chain.log_partition + left_out.double().log())


@torch.no_grad()
def mode_augmented(chain: Chain) -> Decoding:
    """The states of a heaviest (states, hidden indices), and how much heavier a mode can be.

        max_x,j w(x, j) <= max_x w(x) <= max_x,j w(x, j) m^(T-1)

    For dense transitions, which have one index, it is a mode.

    Cost:       O(T X m) time by max-products, about those of the log domain; O(T X) memory.
    """
    transitions, unaries, lengths = chain.flat()
    semiring = Max()
    backward = backward_messages(semiring, transitions, Part.whole(unaries, lengths))
    kept = list(backward)[::-1]
    first = semiring.times(kept[0], unaries[:, 0])
    heaviest = semiring.total(first)
    check_possible(heaviest)
    state = first.log.argmax(dim=-1)
    path = [state]
    for step in range(1, unaries.shape[1]):
        alone = torch.full_like(unaries[:, 0], -torch.inf).scatter(-1, state.unsqueeze(-1), 0.0)
        moved = transitions.forward(semiring, semiring.lift(alone), step - 1)
        state = (moved.log + unaries[:, step] + kept[step].log).argmax(dim=-1)
        path.append(state)
    states = torch.stack(path, dim=-1).view(*chain.batch_shape, -1)
    states = torch.where(chain.there, states, 0)
    width = (chain.lengths - 1) * math.log(transitions.num_terms)
    return _decoded(chain, states, heaviest.view(chain.batch_shape) + width)


def _decoded(chain: Chain, states: Tensor, bound: Tensor) -> Decoding:
    """With the score of the states, and a bound [*b] on the log-weight of all paths not beaten by it."""
    score = chain.score(states)
    gap = torch.where(score > -torch.inf, (bound - score).clamp(min=0.0), torch.inf)
    dtype = chain.unaries.dtype
    return Decoding(states, score.to(dtype), gap.to(dtype))


def _levelled(log: Tensor) -> Tensor:
    """The same logarithms [N, n] with 0 as the largest."""
    return log - finite_maximum(log, -1)


def _followed(best: Tensor, predecessors: list[Tensor], lengths: Tensor) -> Tensor:
    """The path [N, T] back from the best last state; 0 beyond the lengths."""
    state = best.argmax(dim=-1)
    path = [torch.where(lengths > len(predecessors), state, 0)]
    for step in range(len(predecessors) - 1, -1, -1):
        there = lengths > step + 1
        before = predecessors[step].gather(-1, state.unsqueeze(-1)).squeeze(-1).long()
        state = torch.where(there, before, state)
        path.append(torch.where(lengths > step, state, 0))
    return torch.stack(path[::-1], dim=-1)


def _row_slices(num_states: int, batch: int) -> list[slice]:
    step = max(1, _ELEMENTS // (batch * num_states))
    return [slice(at, min(at + step, num_states)) for at in range(0, num_states, step)]
