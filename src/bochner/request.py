"""What is asked of a feature map, in one value: the arguments of `bochner.make`, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bochner.kernels import Kernel, Softmax
from bochner.projections import IID, Projection
from bochner.validation import check_count


def fresh_generator() -> torch.Generator:
    """A CPU generator seeded by the operating system; torch's global one is left alone."""
    generator = torch.Generator()
    generator.seed()
    return generator


@dataclass(frozen=True)
class Request:
    """dim, num_features and the parts that every feature map is built from.

    Arguments:  dim: d of the inputs; num_features: m, the columns that a consumer pays for;
                batch_shape: one independent map per element (per head, per replicate);
                generator: the source of all randomness; dtype: that of the stored directions.
    Raises:     ValueError for a count below 1, TypeError for a part of the wrong type.
    """

    dim: int
    num_features: int
    kernel: Kernel = field(default_factory=Softmax)
    projection: Projection = field(default_factory=IID)
    batch_shape: tuple[int, ...] = ()
    generator: torch.Generator = field(default_factory=fresh_generator)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_count("dim", self.dim)
        check_count("num_features", self.num_features)
        if not isinstance(self.batch_shape, tuple | list):
            raise TypeError(
                f"batch_shape={self.batch_shape!r} must be a tuple of sizes, for example (heads,)."
            )
        for size in self.batch_shape:
            check_count("batch_shape entry", size)
        object.__setattr__(self, "batch_shape", tuple(self.batch_shape))
        for name, expected in (
            ("kernel", Kernel),
            ("projection", Projection),
            ("generator", torch.Generator),
        ):
            value = getattr(self, name)
            if not isinstance(value, expected):
                raise TypeError(
                    f"{name} must be a {expected.__name__}, got {type(value).__name__}."
                    " Names as strings are for bochner.make and the command line."
                )
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype={self.dtype} must be torch.float32 or torch.float64: directions in half"
                " precision bias the estimate; half-precision inputs are fine."
            )

    def with_dim(self, dim: int) -> Request:
        """The same request for inputs of another dimension."""
        return replace(self, dim=dim)

    def with_features(self, num_features: int) -> Request:
        """The same request for another budget."""
        return replace(self, num_features=num_features)

    def num_projections(self, columns: int, what: str) -> int:
        """num_features / columns, or an error that says which budgets work."""
        if self.num_features % columns:
            low = self.num_features - self.num_features % columns or columns
            raise ValueError(
                f"num_features={self.num_features} must be a multiple of {columns} for {what}"
                f" ({columns} columns a projection); use {low} or {low + columns}."
            )
        return self.num_features // columns

    def draw(self, num_projections: int) -> Tensor:
        """Standard normals [*batch_shape, num_projections, dim] in float64."""
        return self.projection.draw(
            num_projections, self.dim, generator=self.generator, batch_shape=self.batch_shape
        )
