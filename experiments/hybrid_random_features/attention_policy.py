"""A policy whose observation reaches its actions through attention only, for a population at once.

    token i      e_i = index_i + z_i w             z_i: coordinate i of the observation, normalised
    queries      q_i = r unit(e_i W_q), k_i = r unit(e_i W_k):         logits q_i.k_j in [-r^2, r^2]
    values       v_i = tanh(z_i slope + offset), the same slope and offset for all tokens
    actions      a = tanh(R [tanh(out_1), ..., tanh(out_n)] + b),      out = attention(q, k, v)

Which coordinate a value came from is known to queries and keys alone: with uniform weights every token
holds the same average, and the policy sees no more than that. The tanh after the attention bounds what
a row with a denominator near zero, or below it, can do; nothing is clamped or replaced inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [*b, n, d], k [*b, n, d], v [*b, n, dv]) -> [*b, n, dv], bidirectional."""

WIDTH = 8  # of a token
HEAD_DIM = 8
VALUES = 4
SQUARED_NORM = 2.0  # r^2 of queries and keys


@dataclass(frozen=True)
class Policy:
    """The shapes of a policy for n observed coordinates and a number of actions."""

    observed: int
    actions: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters, in the order in which they lie in one vector."""
        return {
            "index": (self.observed, WIDTH),
            "w": (1, WIDTH),
            "query": (WIDTH, HEAD_DIM),
            "key": (WIDTH, HEAD_DIM),
            "slope": (1, VALUES),
            "offset": (1, VALUES),
            "readout": (self.observed * VALUES, self.actions),
            "bias": (1, self.actions),
        }

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, generator: torch.Generator) -> Tensor:
        """Normal parameters [num_parameters]; the readout starts at zero, so that all actions do."""
        scales = {"w": 0.5, "offset": 0.5, "readout": 0.0, "bias": 0.0}
        parts = [
            scales.get(name, 1.0) * torch.randn(math.prod(shape), generator=generator)
            for name, shape in self.shapes.items()
        ]
        return torch.cat(parts)

    def parts(self, parameters: Tensor) -> dict[str, Tensor]:
        """Named parameters [p, *shape] of parameter vectors [p, num_parameters]."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        pieces = parameters.split(sizes, dim=-1)
        return {
            name: piece.unflatten(-1, shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def attended(
        self, parts: dict[str, Tensor], observations: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [p, n, HEAD_DIM] and v [p, n, VALUES] for observations [p, n]."""
        z = observations.unsqueeze(-1)
        tokens = parts["index"] + z * parts["w"]
        radius = math.sqrt(SQUARED_NORM)
        q, k = (
            radius * torch.nn.functional.normalize(tokens @ parts[side], dim=-1)
            for side in ("query", "key")
        )
        return q, k, torch.tanh(z * parts["slope"] + parts["offset"])

    def act(self, parts: dict[str, Tensor], observations: Tensor, attend: Attend) -> Tensor:
        """Actions [p, actions] in (-1, 1), one policy for one observation [p, n]."""
        rows = torch.tanh(attend(*self.attended(parts, observations))).flatten(-2).unsqueeze(-2)
        return torch.tanh(rows @ parts["readout"] + parts["bias"]).squeeze(-2)
