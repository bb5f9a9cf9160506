"""TensorSketch: features of the polynomial kernel by hashing, without its d^p monomials.

    phi(x) = F^-1( prod_{j<p} F(C_j z) ),   z = (x, sqrt(c)),   (C_j z)_h = sum_{i: h_j(i) = h} s_j(i) z_i

F is the discrete Fourier transform of length m: the product of p count sketches is the count sketch of the
p-fold tensor product of z. Hashes h_j and signs s_j are independent.

Error:      unbiased; with a = (z.z')^2, b = |z|^2 |z'|^2 - sum z_i^2 z'_i^2, c = a - sum z_i^2 z'_i^2 about
            ((1 + b/a)^p + (1 + c/a)^p - 2) / m relative to K^2, exactly so in docs/theory.md 20: it grows
            like (|z|^2 |z'|^2 / a)^p, hence low degrees.
Cost:       O(n p (d + m log m)) time, O(p d) memory for the sketch.
Reference:  Pham and Pagh, Fast and scalable polynomial kernels via explicit feature maps, 2013.
Differs:    independent hash tables instead of a hash family (exact second moment); points are normalised, and
            their lengths travel in the log-scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import Polynomial
from bochner.projections import IID
from bochner.request import Request
from bochner.specification import FeatureMapSpec


class TensorSketch(FeatureMap):
    """Features of (x.y + c)^p by count sketches and fast Fourier transforms.

    Shapes:     x [*b, n, d] -> values [*b, n, m], log_scale [*b, n, 1] = p log |(x, sqrt(c))|.
    Raises:     TypeError for another kernel than `Polynomial`.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = TensorSketch(Request(dim=3, num_features=4096, kernel=Polynomial(2), generator=g))
        >>> x, y = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.5, 0.5, 0.5]])
        >>> gap = float(phi.estimate(x, y) / phi.kernel(x, y) - 1)
        >>> abs(gap) < 3 * float(phi.relative_variance(x, y)) ** 0.5 < 0.1
        True
    """

    kernel: Polynomial
    buckets: Tensor
    signs: Tensor

    def __init__(self, request: Request) -> None:
        super().__init__()
        if not isinstance(request.kernel, Polynomial):
            raise TypeError(f"kernel={request.kernel!r} must be a Polynomial for a TensorSketch.")
        self.kernel = request.kernel
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        buckets, signs = self._drawn(request.generator)
        self.register_buffer("buckets", buckets)
        self.register_buffer("signs", signs.to(request.dtype))

    def _drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Hashes and signs of every factor, [*batch_shape, p, d + 1]."""
        shape = (*self.batch_shape, self.kernel.degree, self.dim + 1)
        device = generator.device
        buckets = torch.randint(self.num_features, shape, generator=generator, device=device)
        signs = torch.randint(2, shape, generator=generator, device=device)
        return buckets, 2.0 * signs.double() - 1.0

    def _query(self, x: Tensor) -> Features:
        constant = x.new_full((*x.shape[:-1], 1), self.kernel.offset**0.5)
        points = torch.cat((x, constant), dim=-1)
        norms = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        norms = torch.where(norms == 0, 1.0, norms)  # a point that is 0 keeps values 0
        points = points / norms
        lead = torch.broadcast_shapes(points.shape[:-2], self.batch_shape)
        shape = (*lead, *points.shape[-2:])
        product: Tensor | None = None
        for j in range(self.kernel.degree):
            buckets = self.buckets[..., j, :].unsqueeze(-2).expand(shape)
            signed = points * self.signs[..., j, :].unsqueeze(-2).to(x.dtype)
            sketch = x.new_zeros(*shape[:-1], self.num_features)
            transform = torch.fft.rfft(sketch.scatter_add(-1, buckets, signed.expand(shape)))
            product = transform if product is None else product * transform
        values = torch.fft.irfft(product, n=self.num_features)
        log_scale = self.kernel.degree * torch.log(norms)
        return Features(values, log_scale.expand(*shape[:-1], 1))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel, sign and all."""
        return self.kernel.signed_log(x, y)

    def resample_(self, generator: torch.Generator) -> TensorSketch:
        """Redraw hashes and signs."""
        buckets, signs = self._drawn(generator)
        self.buckets.copy_(buckets)
        self.signs.copy_(signs)
        return self

    @property
    def positive(self) -> bool:
        """False."""
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
        """m: every feature is a sum of signed monomials."""
        return self.num_features

    def draws(self) -> list[Tensor]:
        """Hashes and signs."""
        return [self.buckets, self.signs]

    # -- closed forms -------------------------------------------------------------------------------
    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor:
        """docs/theory.md 20; inf where the kernel is 0."""
        x, y = self._augmented(x), self._augmented(y)
        products = x @ y.transpose(-1, -2)
        equal = x.square() @ y.square().transpose(-1, -2)
        norms = x.square().sum(-1).unsqueeze(-1) * y.square().sum(-1).unsqueeze(-2)
        found = self._moment(products.square(), norms - equal, products.square() - equal)
        return found.clamp_min(0.0)  # below 0 by rounding alone: one monomial is exact

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor:
        """docs/theory.md 20, of the estimates of (i, j) and (i, k)."""
        x, y = self._augmented(x), self._augmented(y)
        products = x @ y.transpose(-1, -2)
        pairs = products.unsqueeze(-1) * products.unsqueeze(-2)
        equal = torch.einsum("...il,...jl,...kl->...ijk", x.square(), y, y)
        norms = x.square().sum(-1)[..., None, None] * (y @ y.transpose(-1, -2)).unsqueeze(-3)
        return self._moment(pairs, norms - equal, pairs - equal)

    def _augmented(self, x: Tensor) -> Tensor:
        """(x, sqrt(c)) in float64."""
        x = x.detach().double()
        return torch.cat((x, x.new_full((*x.shape[:-1], 1), self.kernel.offset**0.5)), dim=-1)

    def _moment(self, a: Tensor, straight: Tensor, crossed: Tensor) -> Tensor:
        """E[Z Z'] / (K K') - 1 from the three ways in which the signs of one factor pair up."""
        p, m = self.kernel.degree, self.num_features
        b, c = straight / a, crossed / a
        one, other = (1.0 + b) ** p - 1.0, (1.0 + c) ** p - 1.0
        both = (1.0 + b + c) ** p - 1.0 - one - other
        found = (one + other) / m + both * (
            1.0 + (m + 1) % 2
        ) / m**2  # 2 u = 0 mod m: twice if even
        return torch.where(a == 0, torch.inf, found)


def build(request: Request) -> FeatureMap:
    """A TensorSketch."""
    return TensorSketch(request)


SPEC = FeatureMapSpec(
    name="tensor-sketch",
    summary="Polynomial kernels by hashing and fast Fourier transforms; any number of features.",
    reference="Pham and Pagh 2013",
    build=build,
    positive=False,
    default_projection=IID(),
    projected=False,
    kernels=(Polynomial(2), Polynomial(3)),
)
