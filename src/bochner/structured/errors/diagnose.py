"""Whether a chain through random features can be trusted, before anything is compared.

Two numbers decide (docs/theory.md 17), both per edge:

    (chi - 1) / r     variance of log Z^ per edge squared: the typical paths
    eta               growth of the relative variance per edge: the rare, extreme paths

and both must be small. Beyond, no first-order prediction holds, and the remedy is another method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.request import fresh_generator
from bochner.structured.edges.source import EmbeddingSource
from bochner.structured.errors.alternatives import Alternative, Sizes, alternatives
from bochner.structured.errors.edge_laws import EdgeLaw, closed_form
from bochner.structured.errors.error_laws import EdgeRatios, sampled_ratios
from bochner.structured.errors.noise_growth import noise_ratio
from bochner.structured.errors.path_law import PathLaw
from bochner.structured.errors.redrawn_law import RedrawnLaw
from bochner.validation import check_count

if TYPE_CHECKING:
    from bochner.structured.chains.chain import Chain

EXACT_STATES = 1024
"""Up to here paths and eta come from the exact model; beyond, paths come from the chain itself and
eta from as many states, a lower bound."""
SMALL_VARIANCE, SMALL_ETA = 0.1, 0.25
"""Valid: (chi - 1)/r and eta both up to these. Hopeless: one of them above 1."""
_REDRAWS = 32  # of a map without a closed form
_RESCUED = 64.0  # times as many features are still advised
_STORED = 2e9  # bytes of K below which keeping it, or its SVD, is recommended


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found.

    Shapes:     chi, chi_stderr, eta, std, bias [*b], float64: `std` of log Z^ and `bias` =
                E log Z^ - log Z as first-order theory predicts them over redraws of the features.
    Arguments:  verdict: "exact", "valid", "underpowered" or "hopeless", of the worst sequence; advice:
                what to do; basis: where paths and eta come from; alternatives: costs.
    """

    chi: Tensor
    chi_stderr: Tensor
    eta: Tensor
    std: Tensor
    bias: Tensor
    verdict: str
    advice: str
    basis: str
    alternatives: tuple[Alternative, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the predicted error may be believed."""
        return self.verdict in ("exact", "valid")

    def __str__(self) -> str:
        if self.verdict == "exact":
            return f"exact: {self.advice}"
        trust = "" if self.valid else "   (first order; not to be believed here)"
        lines = [
            f"{self.verdict}: {self.advice}",
            f"  chi {_range(self.chi)} ± {_range(self.chi_stderr)}, eta {_range(self.eta)}",
            f"  log Z^ over redraws: std {_range(self.std)}, bias {_range(self.bias)}{trust}",
            f"  {self.basis}",
            *(f"  {line}" for line in self.alternatives),
        ]
        return "\n".join(lines)


def diagnose(
    chain: Chain, *, num_paths: int = 64, generator: torch.Generator | None = None
) -> Diagnosis:
    """The predicted error of a chain's log Z, and what else could be done.

    Arguments:  chain: one of `from_embeddings` (low-rank, hybrid, signed), or one with features of its
                own, which has no error; num_paths: paths drawn to estimate chi, at least 2; generator:
                of the paths; None takes a fresh one.
    Error:      chi is an average over sampled paths: of the exact model for |X| <= 1024, of the
                approximate chain beyond (where that is badly wrong its own paths may not show it, eta
                does), of 1024 states of the exact model for signed maps. eta is exact for |X| <= 1024,
                else a lower bound from 1024 states.
    Cost:       for each sequence, about 2^24 d for chi and T |X|^2 for eta, |X| counted up to 1024.
    Raises:     ValueError for a feature map that is biased (and has no closed form) or draws nothing, or
                with a batch of its own.
    Example:
        >>> from bochner.structured import LowRankChain
        >>> g = torch.Generator().manual_seed(0)
        >>> a, b = 0.3 * torch.randn(2, 100, 8, generator=g)
        >>> u = torch.zeros(20, 100)
        >>> chain = LowRankChain.from_embeddings(
        ...     a, b, u, feature_map="positive", num_features=256, generator=g)
        >>> found = diagnose(chain, generator=g)
        >>> found.verdict, round(float(found.std), 1)
        ('valid', 0.5)
    """
    check_count("num_paths", num_paths, at_least=2)
    source = getattr(chain, "source", None)
    if source is None:
        return _no_error(chain)
    if source.feature_maps[0].batch_shape:
        raise ValueError(
            f"feature_map has batch_shape={source.feature_maps[0].batch_shape}; diagnose reads maps"
            " without a batch: make one chain for each of its elements."
        )
    generator = fresh_generator() if generator is None else generator
    law = closed_form(source.feature_maps[0])
    origin = "rho in closed form"
    if law is None:
        law = RedrawnLaw(source.feature_maps[0], count=_REDRAWS, generator=generator)
        origin = f"rho, which has no closed form here, from {_REDRAWS} redraws"
    with torch.no_grad():
        one = [
            _Element(chain, source, law, index).errors(num_paths, generator)
            for index in range(math.prod(chain.batch_shape))
        ]
    columns = torch.tensor(one, dtype=torch.float64).T.reshape(5, *chain.batch_shape)
    chi, stderr, eta, std, bias = columns
    variance_an_edge = (chi - 1.0) / law.directions
    worst = float(torch.maximum(variance_an_edge.amax(), eta.amax()))
    times_too_few = float(
        torch.maximum(variance_an_edge.amax() / SMALL_VARIANCE, eta.amax() / SMALL_ETA)
    )
    sizes = Sizes(
        chain.num_steps,
        chain.num_states,
        source.a.shape[-1],
        source.num_features,
        source.blocks,
    )
    verdict = "valid" if times_too_few <= 1.0 else "underpowered" if worst <= 1.0 else "hopeless"
    return Diagnosis(
        chi,
        stderr,
        eta,
        std,
        bias,
        verdict,
        _advice(verdict, times_too_few, sizes, hybrid=source.beam is not None),
        f"{_basis(chain.num_states, num_paths, positive=source.feature_maps[0].positive)}; {origin}",
        alternatives(sizes),
    )


class _Element:
    """One sequence of a batch: its exact model, and the edges that its paths take."""

    def __init__(self, chain: Chain, source: EmbeddingSource, law: EdgeLaw, index: int) -> None:
        batch = chain.batch_shape
        self.chain, self.law, self.index = chain, law, index
        self.blocks, self.longest = source.blocks, chain.num_steps
        self.positive = source.feature_maps[0].positive
        self.steps = int(chain.lengths.reshape(-1)[index])

        def own(x: Tensor) -> Tensor:
            return x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])[index]

        self.a, self.b = own(source.a).double(), own(source.b).double()
        self.left, self.right = own(source.left_points), own(source.right_points)
        self.unaries = own(source.unaries)[: self.steps].double()
        self.beam = None if source.beam is None else own(source.beam)[: self.steps]

    def errors(self, num_paths: int, generator: torch.Generator) -> tuple[float, ...]:
        """chi, its standard error, eta, standard deviation and bias of log Z^."""
        if self.steps < 2:
            return 1.0, 0.0, 0.0, 0.0, 0.0
        paths, log_partition = self._paths(num_paths, generator)
        outside = None if self.beam is None else ~self._inside(paths)
        ratios = sampled_ratios(self.law, self.left, self.right, paths, outside=outside)
        eta = self._eta(self._states(paths), log_partition)
        std, bias = self._first_order(ratios)
        return ratios.chi, ratios.chi_stderr, eta, std, bias

    def _first_order(self, ratios: EdgeRatios) -> tuple[float, float]:
        blocks = min(self.blocks, self.steps - 1)
        variance = ratios.variance(self.law.directions, blocks=blocks)
        return math.sqrt(max(variance, 0.0)), ratios.bias(self.law.directions, blocks=blocks)

    def _paths(self, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
        """Paths [N, T] and log Z: exact for few states, else the chain's own."""
        if len(self.a) <= EXACT_STATES:
            exact = PathLaw(self.a @ self.b.transpose(-1, -2), self.unaries)
            return exact.sample(count, generator), exact.log_partition
        value = self.chain.log_partition
        if not self.positive:  # a signed chain has no paths of its own
            shares = torch.softmax(self.unaries, dim=-1).mean(0)
            possible = min(EXACT_STATES, int((shares > 0).sum()))
            states = torch.multinomial(shares, possible, generator=generator)
            potential = self.a[states] @ self.b[states].transpose(-1, -2)
            part = PathLaw(potential, self.unaries[:, states])
            log_abs = getattr(value, "log_abs", value)
            found = states[part.sample(count, generator)]
            return found, float(log_abs.reshape(-1)[self.index])
        paths = self.chain.sample((count,), generator=generator).reshape(count, -1, self.longest)
        return paths[:, self.index, : self.steps], float(value.reshape(-1)[self.index])

    def _inside(self, paths: Tensor) -> Tensor:
        """Whether an edge of a path runs from beam to beam, [N, T-1]."""
        assert self.beam is not None
        on = (paths.unsqueeze(-1) == self.beam).any(-1)
        return on[:, :-1] & on[:, 1:]

    def _states(self, paths: Tensor) -> Tensor:
        """All states, or those that paths visit most and those of the largest embeddings."""
        count = len(self.a)
        if count <= EXACT_STATES:
            return torch.arange(count, device=paths.device)
        visited = torch.bincount(paths.flatten(), minlength=count).argsort(descending=True)
        sizes = self.left.double().square().sum(-1) + self.right.double().square().sum(-1)
        largest = sizes.argsort(descending=True)
        half = EXACT_STATES // 2
        return torch.cat((visited[:half], largest[:half])).unique()

    def _eta(self, states: Tensor, log_partition: float) -> float:
        a, b = self.a[states], self.b[states]
        left, right = self.left[states], self.right[states]

        def rows(which: Tensor) -> Tensor:
            potential = 2.0 * a[which] @ b.transpose(-1, -2)
            return potential + self.law.own_excess(left[which], right).log()

        beam = None
        if self.beam is not None:
            beam = (states.unsqueeze(0).unsqueeze(-1) == self.beam.unsqueeze(-2)).any(-1)
        return noise_ratio(
            rows,
            self.unaries[:, states],
            log_partition=log_partition,
            directions=self.law.directions,
            beam=beam,
        )


def _no_error(chain: Chain) -> Diagnosis:
    zero = torch.zeros(chain.batch_shape, dtype=torch.float64)
    return Diagnosis(
        zero + 1.0,
        zero,
        zero,
        zero,
        zero,
        "exact",
        "the transitions are the model by construction; nothing is approximated, log Z has no error"
        " beyond rounding.",
        "no embeddings behind this chain",
    )


def _advice(verdict: str, times_too_few: float, sizes: Sizes, *, hybrid: bool) -> str:
    """What to do, in words."""
    if verdict == "valid":
        return "the predicted standard deviation and bias of log Z^ may be believed."
    stored = 4.0 * sizes.states**2 <= _STORED
    exact = (
        "exact inference (K fits in memory), or a truncated SVD where K stays fixed"
        if stored
        else "exact inference blockwise (|X|^2 time, little memory), a beam where the unaries are sharp"
    )
    if times_too_few > _RESCUED and hybrid:
        return (
            "outside the beams the features are far off. Paths that leave the beams weigh little where the"
            " unaries are sharp, and log Z^ is then often better than this (chi says how much of the law"
            " leaves them; eta counts rare draws, whatever they weigh): compare a few draws, widen the"
            f" beam, or use {exact}."
        )
    if times_too_few > _RESCUED:
        return (
            "random features do not rescue potentials as peaked as these, and no affordable number of"
            f" them will: use {exact}, or train through the features (LowRankChain), where they are the"
            " model."
        )
    more = 2 ** math.ceil(math.log2(sizes.num_features * times_too_few))
    beam = "" if hybrid else " or a HybridChain,"
    return (
        f"about m={more} features an edge would do,{beam} or features fitted to the data (gerf,"
        f" data-aware); else {exact}."
    )


def _basis(states: int, num_paths: int, *, positive: bool) -> str:
    if states <= EXACT_STATES:
        return f"chi over {num_paths} paths of the exact model; eta exact"
    origin = (
        "the approximate chain"
        if positive
        else f"the exact model on {EXACT_STATES} states drawn by the unaries"
    )
    return (
        f"chi over {num_paths} paths of {origin}; eta a lower bound, from the states that they visit"
        " and those with the largest embeddings"
    )


def _range(values: Tensor) -> str:
    if bool(values.isnan().any()):
        return "unknown (beyond float64)"
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
