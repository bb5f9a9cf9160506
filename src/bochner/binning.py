"""Random binning: points that fall into one cell of a random grid are alike.

    phi_r(x) = sigma_r(c) prod_l f(u_l - c_l) e_{h_r(c)} / sqrt(R),   u = x/w_r - o_r,  c = round(u)

R grids with random widths w and offsets o; f is the indicator (Laplacian kernel) or a B-spline
(`SplineBinning`). A cell c, a vector of d integers, has no column of its own: a random hash h gives it one of
the B columns of its grid, and a random sign sigma keeps the estimate unbiased whatever collides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import scipy.sparse
import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import Kernel, Laplacian, SplineBinning
from bochner.request import Request
from bochner.validation import check_count

LARGEST_CELL = 2.0**53
"""Beyond it float64 has no room for the position in a cell, and soon int64 none for its number."""
_BLOCK = 1 << 20  # pairs of a point and a grid at a time: 8 MB for each temporary


class Window(NamedTuple):
    """A B-spline of this order, and the law of widths: scale Gamma(shape, 1)."""

    order: int
    shape: int
    scale: float

    @classmethod
    def of(cls, kernel: Kernel) -> Window:
        """That of a kernel.

        Raises:     TypeError for a kernel that no binning has.
        """
        if isinstance(kernel, Laplacian):
            return cls(order=1, shape=2, scale=1.0)
        if isinstance(kernel, SplineBinning):
            return cls(kernel.order, kernel.shape, kernel.scale)
        raise TypeError(
            f"kernel={kernel!r} is not the kernel of any random binning; use Laplacian() or SplineBinning()."
        )

    def weight(self, position: Tensor) -> Tensor:
        """f(position) for |position| <= 1/2, with int f^2 = 1; order 2 and more."""
        power, x = self.order - 1, self.order * position.abs()
        total = torch.zeros_like(x)
        for j in range((self.order + 1) // 2):
            signed = (-1) ** j * math.comb(self.order, j)
            total = total + signed * (0.5 * self.order - j - x).clamp_min(0.0) ** power
        return total * math.sqrt(self.order / self._squared_norm(power))

    def _squared_norm(self, power: int) -> float:
        """The integral of the square of that sum over x: a B-spline of order 2p at 0."""
        p = self.order
        at_zero = sum(
            (-1) ** j * math.comb(2 * p, j) * (p - j) ** (2 * p - 1) for j in range(p)
        ) / math.factorial(2 * p - 1)
        return at_zero * math.factorial(power) ** 2


class RandomBinning(FeatureMap):
    """Features of the Laplacian or of a `SplineBinning` kernel, with R = m / B nonzero columns.

    Shapes:     x [*b, n, d] -> values [*b, n, m], m = R B; `entries`: columns and values [*b, n, R].
    Arguments:  request: sizes, kernel, generator (its projection plays no part); buckets: B, the columns of
                one grid. B = 1 is the best for a consumer of dense features: signs, no zeros. One who
                multiplies sparse rows pays for R alone, and takes B as large as memory lets it be.
    Numerics:   cells are found in float64, whatever the dtype of x, and hashed in int64 modulo 2^64: one
                seed gives one map on every machine. With spline windows features are continuous in x and
                have gradients; with the indicator they are steps, without any.
    Error:      unbiased for every m. For the indicator the relative variance, over random hashes, is

                    ((1/K - 1) B + (1/K - 1)/K) / m,

                the first part for finite R, the second for collisions. Spline windows multiply: at x = y it
                is (c^d - 1)/R, c = int f^4 (1.8 for order 2): for a few dimensions, not for twenty.
    Cost:       O(n R d) time; O(n m) memory dense, O(n R) sparse.
    Raises:     ValueError if buckets does not divide num_features, and for points so far away (cells beyond
                2^53) that no cell can be told; TypeError for another kernel.
    Reference:  Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007, section 4;
                Kapralov et al., 2020 (windows); Weinberger et al., Feature Hashing, 2009 (signs).
    Differs:    cells that were not seen in training need no dictionary: they are hashed.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> request = Request(dim=2, num_features=65536, kernel=Laplacian(), generator=g)
        >>> phi = RandomBinning(request, buckets=16)
        >>> x, y = torch.zeros(1, 2), torch.full((1, 2), 0.25)
        >>> error = float(phi.estimate(x, y)) - math.exp(-0.5)
        >>> predicted = float(phi.relative_variance(x, y)) ** 0.5 * math.exp(-0.5)
        >>> abs(error) < 3 * predicted, round(predicted, 4)
        (True, 0.008)
        >>> phi.sparse_features(torch.cat((x, y))).nnz
        8192
    """

    inverse_widths: Tensor
    offsets: Tensor
    multipliers: Tensor
    salts: Tensor

    def __init__(self, request: Request, *, buckets: int) -> None:
        super().__init__()
        self.kernel = request.kernel
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        self.buckets = check_count("buckets", buckets)
        self.window = Window.of(request.kernel)
        self.num_grids = request.num_projections(buckets, "random binning")
        for name, tensor in self._drawn(request.generator).items():
            self.register_buffer(name, tensor)

    def _drawn(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Widths, offsets and hashes of all grids, [*batch_shape, R, d] and [*batch_shape, R]."""
        shape = (*self.batch_shape, self.num_grids, self.dim)
        device = generator.device
        uniform = torch.rand(
            *shape, self.window.shape, dtype=torch.float64, device=device, generator=generator
        )
        # not exponential_, whose numbers depend on the machine's libraries
        widths = self.window.scale * -torch.log1p(-uniform).sum(-1)
        offsets = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
        low, high = -(2**63), 2**63 - 1
        multipliers = torch.randint(low, high, shape, device=device, generator=generator)
        salts = torch.randint(low, high, shape[:-1], device=device, generator=generator)
        return {
            "inverse_widths": 1.0 / widths,
            "offsets": offsets,
            "multipliers": multipliers | 1,
            "salts": salts,
        }

    def entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nonzero columns of phi(x), one of every grid in ascending order, and their values.

        Shapes:     x [*b, n, d] -> columns (int64) and values [*b, n, R].
        Raises:     as `query`.
        """
        found: list[tuple[Tensor, Tensor]] = []

        def keep(points: Tensor) -> Features:
            found.append(self._entries(points))
            return Features(points, points[..., :1])

        self._checked("queries", x, keep)
        buckets, values = found[0]
        first = self.buckets * torch.arange(self.num_grids, device=buckets.device)
        return buckets + first, values

    def sparse_features(self, x: Tensor) -> scipy.sparse.csr_matrix:
        """phi(x) as a sparse matrix [n, m] with R entries in every row: the numbers of `query`.

        Shapes:     x [n, d], of a map without batch_shape.
        Raises:     ValueError for leading dimensions.
        """
        if self.batch_shape or (isinstance(x, Tensor) and x.ndim != 2):
            raise ValueError(
                f"sparse_features wants points [n, {self.dim}] and a map without batch_shape; got x of"
                f" shape {list(x.shape)}, batch_shape={list(self.batch_shape)}. Use `entries`."
            )
        columns, values = (part.detach().cpu().numpy() for part in self.entries(x))
        ends = self.num_grids * torch.arange(len(values) + 1).numpy()
        shape = (len(values), self.num_features)
        return scipy.sparse.csr_matrix((values.ravel(), columns.ravel(), ends), shape=shape)

    def _entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Buckets within each grid, and values, [*b, n, R]."""
        rows = max(1, _BLOCK // (self.num_grids * math.prod(x.shape[:-2])))
        parts = [self._block(block) for block in x.split(rows, dim=-2)]
        buckets, values = zip(*parts, strict=True)
        return torch.cat(buckets, dim=-2), torch.cat(values, dim=-2)

    def _block(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hashed = self.salts.unsqueeze(-2)
        weight: Tensor | None = None
        largest = x.new_zeros((), dtype=torch.float64)
        for axis in range(self.dim):
            inverse_width = self.inverse_widths[..., axis].unsqueeze(-2)
            position = x[..., axis, None].double() * inverse_width
            position = position - self.offsets[..., axis].unsqueeze(-2)
            cell = torch.floor(position.detach() + 0.5)
            largest = torch.maximum(largest, cell.abs().amax())
            hashed = hashed + cell.long() * self.multipliers[..., axis].unsqueeze(-2)
            if self.window.order > 1:
                factor = self.window.weight(position - cell)
                weight = factor if weight is None else weight * factor
        _check_cells(largest)
        bits = mixed(hashed)
        sign = (1 - 2 * (bits & 1)).to(x.dtype)
        sign = sign / math.sqrt(self.num_grids)
        value = sign if weight is None else sign * weight.to(x.dtype)
        return (bits >> 32 & 0x7FFFFFFF) % self.buckets, value

    def _query(self, x: Tensor) -> Features:
        buckets, values = self._entries(x)
        zeros = values.new_zeros(*values.shape, self.buckets)
        dense = zeros.scatter(-1, buckets.unsqueeze(-1), values.unsqueeze(-1)).flatten(-2)
        return Features(dense, torch.zeros_like(dense[..., :1]))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel's logarithm; the sign is 1."""
        return self.kernel.signed_log(x, y)

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Closed form for the indicator, hashes taken as random; None for spline windows."""
        if self.window.order > 1:
            return None
        odds = torch.expm1(-self.kernel.log(x.detach().double(), y.detach().double()))
        return (odds * self.buckets + odds * (odds + 1.0)) / self.num_features

    def resample_(self, generator: torch.Generator) -> RandomBinning:
        """Redraw widths, offsets and hashes."""
        for name, tensor in self._drawn(generator).items():
            getattr(self, name).copy_(tensor)
        return self

    @property
    def positive(self) -> bool:
        """False: signs make collisions harmless."""
        return False

    @property
    def unbiased(self) -> bool:
        """True."""
        return True

    @property
    def symmetric(self) -> bool:
        """True: one function for queries and keys."""
        return True

    @property
    def num_projections(self) -> int:
        """R, the number of grids."""
        return self.num_grids

    def draws(self) -> list[Tensor]:
        """Widths, offsets and hashes."""
        return [self.inverse_widths, self.offsets, self.multipliers, self.salts]

    def extra_repr(self) -> str:
        """Grids and buckets too."""
        return f"grids={self.num_grids}, buckets={self.buckets}, {super().extra_repr()}"


def _check_cells(largest: Tensor) -> None:
    """Raise ValueError if a cell's number leaves what float64 counts exactly."""
    if not torch.compiler.is_compiling() and not bool(largest < LARGEST_CELL):
        raise ValueError(
            f"a point lies {float(largest):.3g} bins from the origin; random binning can tell cells up to"
            f" {LARGEST_CELL:.3g} (float64). Centre the points and divide them by a lengthscale."
        )


def mixed(bits: Tensor) -> Tensor:
    """A bijection of int64 in which every bit of the result depends on every bit given (splitmix64).

    Products are modulo 2^64; shifts are logical.

    Reference:  Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    Example:
        >>> mixed(torch.tensor([0x9E3779B97F4A7C15 - 2**64]))[0].item() % 2**64 == 0xE220A8397B1DCDAF
        True
    """
    bits = (bits ^ _shifted(bits, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ _shifted(bits, 27)) * (0x94D049BB133111EB - 2**64)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Logical right shift: torch's is arithmetic."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
