"""An exact kernel where it matters, features elsewhere: never a subtraction, never a negative weight.

    K_e(x, y) = exp(a_x . b_y)                      if x is in beam_e and y in beam_{e+1}
              = sum_j left_e(x, j) right_e(y, j)    otherwise

    to y outside the beam:   ((message outside) L + (message inside) L) R^T
    to y inside the beam:    ((message outside) L) R^T  +  (message inside) K

The message outside the beam goes into the rank by itself, so that nothing has to be taken out again. With
beams that do not depend on the features' draw every entry is unbiased, and positive; with beams of
all states the chain is exact.

Reference:  docs/theory.md 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from bochner.structured.edges.hybrid_draw import draw_from_beam
from bochner.structured.edges.log_bilinear import LogBilinear, added
from bochner.structured.edges.low_rank import LowRank
from bochner.structured.edges.transitions import Transitions, peaked
from bochner.structured.matrix import Matrix
from bochner.structured.semirings import Message, Semiring


class Hybrid(Transitions):
    """Transitions that are exact between the beams of neighbouring steps and of low rank elsewhere.

    Shapes:     exact: a, b [*b, X, n]; features: B blocks of [*b, X, m]; beams: [*b, T, k] states, all
                different within a step. Each of the three may have a batch or none; they broadcast.
    Cost:       O(X m + k m + k^2 n) time an edge; memory of the features and O(T k).
    Raises:     ValueError for beams that are no such states, or parts of different sizes.
    Example:
        >>> import torch
        >>> exact = LogBilinear(torch.ones(3, 1), torch.ones(3, 1))              # K = e
        >>> features = LowRank(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1))       # K^ = 1
        >>> Hybrid(exact, features, torch.tensor([[0, 1], [1, 2]])).log_block(0, slice(None))
        tensor([[0., 1., 1.],
                [0., 1., 1.],
                [0., 0., 0.]])
    """

    def __init__(self, exact: LogBilinear, features: LowRank, beams: Tensor) -> None:
        if exact.num_states != features.num_states:
            raise ValueError(
                f"exact has {exact.num_states} states, features have {features.num_states}; they must"
                " agree."
            )
        _check_beams(beams, exact.num_states)
        self._hold(exact, features, beams)

    def _hold(self, exact: LogBilinear, features: LowRank, beams: Tensor) -> None:
        batch = torch.broadcast_shapes(exact.batch_shape, features.batch_shape, beams.shape[:-2])
        if exact.batch_shape:  # `between` reads the two side by side
            beams = beams.expand(*batch, *beams.shape[-2:])
            exact = exact.with_tensors([t.expand(*batch, *t.shape[-2:]) for t in exact.tensors()])
        self.exact, self.features, self.beams = exact, features, beams
        self.num_states = exact.num_states
        self.num_blocks = max(beams.shape[-2] - 1, 1)
        self.batch_shape = tuple(batch)

    def _beam(self, step: int) -> Tensor:
        return self.beams[..., step, :]

    # -- the recursion's four ---------------------------------------------------------------------------
    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """Features from everywhere to everywhere, but for the exact block."""
        block = edge % self.features.num_blocks
        sides = self.features.left[block], self.features.right[block]
        beams = self._beam(edge), self._beam(edge + 1)
        return self._through(semiring, message, sides, beams, transposed=False)

    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """The same from the other side."""
        block = edge % self.features.num_blocks
        sides = self.features.right[block], self.features.left[block]
        beams = self._beam(edge + 1), self._beam(edge)
        return self._through(semiring, message, sides, beams, transposed=True)

    def _through(
        self,
        semiring: Semiring,
        message: Message,
        sides: tuple[Matrix, Matrix],
        beams: tuple[Tensor, Tensor],
        *,
        transposed: bool,
    ) -> Message:
        (source, target), (leaving, arriving) = sides, beams
        inside = semiring.gather(message, leaving)
        outside = semiring.through(_without(message, leaving), source)
        ranked = semiring.plus(outside, semiring.through(inside, source.rows(leaving)))
        everywhere = semiring.through(ranked, target.T)
        block = self.exact.between(*((arriving, leaving) if transposed else (leaving, arriving)))
        kernel = Matrix(block).T if transposed else Matrix(block)
        tail = semiring.through(outside, target.rows(arriving).T)
        return semiring.put(
            everywhere, arriving, semiring.plus(tail, semiring.through(inside, kernel))
        )

    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """Outside x everywhere and beam x outside through the features, beam x beam by the kernel."""
        edges = left.shape[-2]
        before = self._wide(self.beams[..., first : first + edges, :], left)
        after = self._wide(self.beams[..., first + 1 : first + 1 + edges, :], right)
        left_inside = left.gather(-1, before)
        alone = torch.full_like(left, -torch.inf).scatter(-1, before, left_inside)
        outside = left.scatter(-1, before, -torch.inf)
        right_outside = right.scatter(-1, after, -torch.inf)
        return added(
            [
                self.features.bilinear(outside, right, first=first),
                self.features.bilinear(alone, right_outside, first=first),
                self._block_bilinear(left_inside, right.gather(-1, after), first),
            ]
        )

    def _block_bilinear(self, left: Tensor, right: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Beam x beam: left, right [*b, E, k]."""
        beams = self.beams[..., first : first + left.shape[-2] + 1, :]
        block = Matrix(self.exact.between(beams[..., :-1, :], beams[..., 1:, :]))
        p, p_top = peaked(left + block.row_scale)
        q, q_top = peaked(right + block.column_scale)
        values = (p.unsqueeze(-2) @ block.values @ q.unsqueeze(-1)).squeeze(-1).squeeze(-1)
        return values, p_top + q_top

    # -- single entries -------------------------------------------------------------------------------
    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """The exact kernel if both states are in their beams, else the features."""
        edges = before.shape[-1]
        exact = self._holds(before, slice(0, edges)) & self._holds(after, slice(1, edges + 1))
        estimated = self.features.log_potential(before, after)
        return torch.where(exact, self.exact.log_potential(before, after), estimated)

    def _holds(self, states: Tensor, steps: slice) -> Tensor:
        """Whether states [*s, *b, E] are in the beams of these steps."""
        return (self.beams[..., steps, :] == states.unsqueeze(-1)).any(dim=-1)

    def log_block(self, edge: int, rows: slice) -> Tensor:
        """Rows of the features with the exact block laid over them."""
        features = self.features.log_block(edge, rows)
        inside = self._mask(self._beam(edge))[..., rows].unsqueeze(-1)
        inside = inside & self._mask(self._beam(edge + 1)).unsqueeze(-2)
        return torch.where(inside, self.exact.log_block(edge, rows), features)

    @property
    def num_terms(self) -> int:
        """The features' rank; between beams there is one term."""
        return self.features.num_terms

    def log_rows(self, edge: int, states: Tensor, elements: Tensor) -> Tensor:
        """Rows of the features; what they hold between the beams is replaced."""
        rows = self.features.log_rows(edge, states, elements)
        leaving, arriving = (self.beam_of(step, elements) for step in (edge, edge + 1))
        inside = (leaving == states.unsqueeze(-1)).any(dim=-1)
        if not bool(inside.any()):
            return rows
        arriving = arriving[inside]
        exact = self.exact.log_rows(edge, states[inside], elements[inside]).gather(-1, arriving)
        return rows.index_put((inside,), rows[inside].scatter(-1, arriving, exact))

    def log_between(self, edge: int, before: Tensor, after: Tensor) -> Tensor:
        """Small products of features and of embeddings."""
        elements = torch.arange(len(before), device=before.device)
        leaving, arriving = (self.beam_of(step, elements) for step in (edge, edge + 1))
        rows = (leaving.unsqueeze(-2) == before.unsqueeze(-1)).any(dim=-1)
        columns = (arriving.unsqueeze(-2) == after.unsqueeze(-1)).any(dim=-1)
        exact = self.exact.log_between(edge, before, after)
        features = self.features.log_between(edge, before, after)
        return torch.where(rows.unsqueeze(-1) & columns.unsqueeze(-2), exact, features)

    def draw(
        self, edge: int, states: Tensor, log_weights: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """From outside the beam through the features, from inside see `draw_from_beam`."""
        drawn = self.features.draw(edge, states, log_weights, generator=generator)
        elements = torch.arange(states.shape[-1], device=states.device)
        inside = (self.beam_of(edge, elements) == states.unsqueeze(-1)).any(dim=-1)
        if not bool(inside.any()):
            return drawn
        from_beam = draw_from_beam(self, edge, states, log_weights, generator=generator)
        return torch.where(inside, from_beam, drawn)

    def beam_of(self, step: int, elements: Tensor) -> Tensor:
        """The beam of elements [k] of a flattened batch, [k, width]."""
        beam = self._beam(step)
        return beam.expand(len(elements), -1) if beam.ndim == 1 else beam[elements]

    def _mask(self, beam: Tensor) -> Tensor:
        """Which states are in a beam, bool [*b, X]."""
        empty = torch.zeros(*beam.shape[:-1], self.num_states, dtype=torch.bool, device=beam.device)
        return empty.scatter(-1, beam, True)

    def _wide(self, beams: Tensor, like: Tensor) -> Tensor:
        return beams.expand(*like.shape[:-1], beams.shape[-1])

    # -- parts: each keeps its own batch, so that sentences share one set of features --------------------
    def tensors(self) -> tuple[Tensor, ...]:
        """Embeddings, features, beams."""
        return *self.exact.tensors(), *self.features.tensors(), self.beams

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Other parameters; beams as given."""
        a, b, *features, beams = tensors
        return self._of(
            self.exact.with_tensors((a, b)), self.features.with_tensors(features), beams
        )

    def flattened(self, batch: torch.Size) -> Self:
        """Every part that has a batch of its own, flattened."""
        beams = self.beams
        if beams.ndim > 2:
            beams = beams.expand(*batch, *beams.shape[-2:]).flatten(0, len(batch) - 1)
        return self._of(self.exact.flattened(batch), self.features.flattened(batch), beams)

    def selected(self, index: Tensor) -> Self:
        """The elements that every part with a batch has."""
        beams = self.beams[index] if self.beams.ndim > 2 else self.beams
        return self._of(self.exact.selected(index), self.features.selected(index), beams)

    def _of(self, exact: LogBilinear, features: LowRank, beams: Tensor) -> Self:
        """Parts that have been checked."""
        other = type(self).__new__(type(self))
        other._hold(exact, features, beams)
        return other


def _without(message: Message, index: Tensor) -> Message:
    """The message with the weight 0 at some states [*b, k]."""
    wide = index.expand(*message.log.shape[:-1], index.shape[-1])
    doubt = None if message.doubt is None else message.doubt.scatter(-1, wide, -torch.inf)
    return replace(message, log=message.log.scatter(-1, wide, -torch.inf), doubt=doubt)


def _check_beams(beams: Tensor, num_states: int) -> None:
    if not isinstance(beams, Tensor) or beams.dtype != torch.long or beams.ndim < 2:
        got = (
            f"{beams.dtype} {list(beams.shape)}"
            if isinstance(beams, Tensor)
            else type(beams).__name__
        )
        raise ValueError(f"beams is {got}; expected states as torch.long, [*batch, T, k].")
    ordered = beams.sort(dim=-1).values
    if beams.numel() == 0 or int(ordered.min()) < 0 or int(ordered.max()) >= num_states:
        raise ValueError(f"beams must hold states in 0..{num_states - 1}, at least one a step.")
    if bool((ordered.diff(dim=-1) == 0).any()):
        raise ValueError("beams holds a state twice at one step; its weight would count double.")
