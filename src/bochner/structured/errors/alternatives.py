"""What log Z costs in other ways: multiply-adds and memory of a chain's alternatives, side by side."""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT = 4
"""Bytes of a number: float32."""


@dataclass(frozen=True)
class Alternative:
    """One way to log Z: multiply-adds of one forward pass (an exponential counts as one), and bytes beyond
    the inputs."""

    name: str
    multiply_adds: float
    bytes: float
    error: str

    def __str__(self) -> str:
        return f"{self.name:<28} {self.multiply_adds:8.1e} multiply-adds {_size(self.bytes):>8}  {self.error}"


@dataclass(frozen=True)
class Sizes:
    """T steps, X states, dimension n of the embeddings, m columns a block, B blocks."""

    steps: int
    states: int
    dim: int
    num_features: int
    blocks: int = 1


def alternatives(sizes: Sizes, *, beam: int = 64, rank: int = 64) -> tuple[Alternative, ...]:
    """The ways to log Z of a chain of this size, the chain's own first.

    Example:
        >>> sizes = Sizes(steps=256, states=16384, dim=64, num_features=256)
        >>> own, *_, exact, stored = alternatives(sizes)[:4]
        >>> round(exact.multiply_adds / own.multiply_adds), round(stored.bytes / own.bytes)
        (1683, 32)
    """
    t, x, n, m, blocks = sizes.steps, sizes.states, sizes.dim, sizes.num_features, sizes.blocks
    beam, rank = min(beam, x), min(rank, x)
    edges = max(t - 1, 1)
    features = 2.0 * blocks * x * m
    own = features * (n + 1) + 2.0 * edges * x * m
    messages = 2.0 * x
    beams = edges * beam * beam * (n + 1.0)
    found = (
        Alternative(
            f"features, m={m}, B={blocks}", own, _FLOAT * (features + messages), "as above"
        ),
        Alternative(
            f"hybrid, beam {beam}",
            own + beams + 2.0 * edges * beam * m,
            _FLOAT * (features + messages + beam**2),
            "that of the features, off the beam only; positive",
        ),
        Alternative(
            "exact, blockwise",
            edges * float(x) * x * (n + 2.0),
            _FLOAT * (messages + 1024.0 * min(x, 1024)),
            "none",
        ),
        Alternative(
            "exact, K stored",
            float(x) * x * (n + 1.0) + edges * float(x) * x,
            _FLOAT * float(x) * x,
            "none; one K for all edges",
        ),
        Alternative(
            f"truncated SVD, rank {rank}",
            float(x) * x * (n + 1.0 + 4.0 * (rank + 10)) + 2.0 * edges * x * rank,
            _FLOAT * (float(x) * x + 2.0 * x * (rank + 10)),
            "the next singular value; signed; fixed K",
        ),
        Alternative(
            f"beam {beam}",
            beams,
            _FLOAT * (t * beam + beam**2),
            "log Z too small by the mass off the beam",
        ),
        Alternative(
            f"learned features, m={m}",
            2.0 * edges * x * m,
            _FLOAT * (2.0 * x * m + messages),
            "none: another model, trained as it is",
        ),
    )
    return found


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
