"""Fitting landmark features: k-means landmarks, ridge least squares for the core matrix, its best rank m.

    A_ij = exp(q_i.k_j) / Z_i ~ F_i W G_j^T,   F_il = exp(q_i.u_l) / Z_i,   G_jl = exp(k_j.w_l)
    W = (F^T F/N + lambda)^-1 (F^T A G/N^2) (G^T G/N + lambda)^-1       columns of F, G of unit mean square

A_ij pools queries and keys of several sequences. Written in the eigenvectors of F^T F and G^T G the
same W for every lambda costs one product, and its m largest singular values give features of rank m.
lambda and the rank in use are chosen, per head, by the error of attention on sequences held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.landmark_data import ExactPairs, Sequences, spaced
from bochner.landmark_points import landmark_points
from bochner.landmarks import LandmarkFeatures, LandmarkSide
from bochner.request import Request

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
CAUSAL_RIDGES = (0.1, 0.01)
"""Fewer, since each wants a solve of its own."""
_TOKENS = 3072  # queries and keys of the least squares; more of them change little
_CAUSAL_TOKENS = 2048  # fewer, since every step of its solve goes over all pairs
_HELD_OUT = 4  # sequences that choose lambda
_HELD_OUT_ROWS = 256  # queries of each
_ENTRIES = 1 << 24  # of A for as many heads as are fitted together
_CG_STEPS = 12


@dataclass(frozen=True)
class System:
    """The least squares of one set of landmarks, in eigenvectors of both Gram matrices.

    Shapes:     queries [heads, N, p], keys [heads, N', p]: features in eigenvectors, mean squares
                `query_spread`, `key_spread` [heads, p]; target [heads, N, N'], 0 on what is excluded;
                cross [heads, p, p] = F^T A G / N^2; query_map, key_map [heads, p, p] from raw
                features (offsets [heads, p] added to their logarithms) to these.
    """

    queries: Tensor
    keys: Tensor
    query_spread: Tensor
    key_spread: Tensor
    cross: Tensor
    excluded: Tensor | None
    query_map: Tensor
    key_map: Tensor
    query_offsets: Tensor
    key_offsets: Tensor

    @classmethod
    def of(
        cls, data: Sequences, query_points: Tensor, key_points: Tensor, exact: ExactPairs
    ) -> System:
        """Gram matrices, their eigenvectors, and the product with the target."""
        count = data.queries.shape[1]
        queries, keys = data.queries.flatten(1, 2), data.keys.flatten(1, 2)
        factor = data.key_factor.flatten(1)
        logits = queries @ keys.transpose(1, 2) + factor.unsqueeze(1)
        visible = exact.visible(data.rows, data.columns)
        if exact.causal:
            logits = logits.masked_fill(~visible.repeat(count, count), -torch.inf)
        normaliser = logits.logsumexp(-1, keepdim=True)
        target = logits.sub_(normaliser).exp_()
        near = torch.block_diag(*[exact.near(data.rows, data.columns)] * count)
        target.masked_fill_(near, 0.0)
        excluded = (near | ~visible.repeat(count, count)) if exact.causal else None
        left_logs = queries @ query_points.transpose(1, 2) - normaliser
        right_logs = keys @ key_points.transpose(1, 2) + factor.unsqueeze(-1)
        right_logs.masked_fill_(data.sinks.flatten(1).unsqueeze(-1), -torch.inf)
        if excluded is not None:  # rows that the features never serve
            left_logs.masked_fill_(excluded.all(1)[:, None], -torch.inf)
        (left, left_offsets), (right, right_offsets) = _unit(left_logs), _unit(right_logs)
        left_spread, left_axes = _eigen(left)
        right_spread, right_axes = _eigen(right)
        left, right = left @ left_axes, right @ right_axes
        cross = left.transpose(1, 2) @ (target @ right) / (left.shape[1] * right.shape[1])
        return cls(
            left, right, left_spread, right_spread, cross, excluded,
            left_axes, right_axes, left_offsets, right_offsets,
        )  # fmt: skip

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Core matrix in whitened features, and the scales [heads, p] that whiten the eigenvectors."""
        left, right = (self.query_spread + ridge).rsqrt(), (self.key_spread + ridge).rsqrt()
        start = left.unsqueeze(-1) * self.cross * right.unsqueeze(-2)
        if self.excluded is None:
            return start, left, right
        # float32: the system is whitened, its condition at most 1 / ridge
        queries = (self.queries * left.unsqueeze(1)).float()
        keys = (self.keys * right.unsqueeze(1)).float()
        excluded, count = self.excluded, queries.shape[1] * keys.shape[1]

        def normal(core: Tensor) -> Tensor:
            lost = (queries @ core @ keys.transpose(1, 2)).masked_fill_(~excluded, 0.0)
            return core - queries.transpose(1, 2) @ (lost @ keys) / count

        return _conjugate_gradients(normal, start.float()).double(), left, right


@dataclass(frozen=True)
class Fitted:
    """Features of rank at most m for every head, and the ridge and rank that each one has.

    Shapes:     query, key: sides with a leading dimension of heads; ridge, rank [heads].
    """

    query: LandmarkSide
    key: LandmarkSide
    ridge: Tensor
    rank: Tensor


def fit_landmarks(
    request: Request, data: Sequences, exact: ExactPairs, landmarks: int, group: int = 1
) -> LandmarkFeatures:
    """Landmarks, core matrix and compression for heads in one leading dimension, a few at a time.

    Shapes:     data as in `Sequences`, heads = prod(request.batch_shape); each `group` of its sequences in
                turn has the same keys, and is judged on or fitted to as a whole.
    """
    used, held = _split(data, _CAUSAL_TOKENS if exact.causal else _TOKENS, group)
    tokens = max(used.queries.shape[1] * x.shape[2] for x in (used.queries, used.keys))
    step = max(1, _ENTRIES // tokens**2)
    parts = []
    for start in range(0, data.queries.shape[0], step):
        heads = slice(start, start + step)
        everything, one, other = (_heads(x, heads) for x in (data, used, held))
        points = landmark_points(everything, landmarks, request.generator)
        found = _fit(one, other, points, exact, request.num_features)
        parts.append(found)

    def joined(side: str) -> LandmarkSide:
        found = [getattr(part, side) for part in parts]
        whole = (torch.cat([getattr(x, n) for x in found]) for n in ("points", "offsets", "matrix"))
        points, offsets, matrix = _of_unit_size(*whole)
        return LandmarkSide(
            *(x.reshape(*request.batch_shape, *x.shape[1:]) for x in (points, offsets, matrix))
        )

    return LandmarkFeatures(request, joined("query"), joined("key"))


def _of_unit_size(points: Tensor, offsets: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same features with the matrix [heads, p, m] of mean square 1, its size in the offsets: so a
    step of an optimiser means the same on every head."""
    size = matrix.square().mean((1, 2), keepdim=True).sqrt()
    size = torch.where(size > 0, size, 1.0)
    return points, offsets + size.squeeze(-1).log(), matrix / size


def _heads(data: Sequences, heads: slice) -> Sequences:
    values = None if data.values is None else data.values[heads]
    return Sequences(
        data.queries[heads], data.keys[heads], values, data.key_factor[heads], data.sinks[heads],
        data.rows, data.columns,
    )  # fmt: skip


def _split(data: Sequences, tokens: int, group: int) -> tuple[Sequences, Sequences]:
    """Sequences of about so many tokens for the least squares, and others (or, of a single one, other
    rows) that judge it."""
    count, length, width = *data.queries.shape[1:3], data.keys.shape[2]
    device = data.rows.device
    columns = spaced(width, tokens, device)
    judging = spaced(length, _HELD_OUT_ROWS, device)
    if count == group:
        every = torch.arange(length, device=device)
        held = every % 4 == 3 if length > 4 else every >= 0
        fitted = every[~held] if length > 4 else every
        fitted = fitted[spaced(len(fitted), tokens, device)]
        return data.take(slice_of(count, device), fitted, columns), data.take(
            slice_of(count, device), every[held][spaced(int(held.sum()), _HELD_OUT_ROWS, device)],
            torch.arange(width, device=device),
        )  # fmt: skip
    kept = group * min(_HELD_OUT, max(1, count // group // 4))
    order = spaced(count, count, device)
    fitted = order[: count - kept]
    fitted = fitted[spaced(len(fitted), max(1, tokens // max(length, width)), device)]
    rows = spaced(length, tokens, device)
    return data.take(fitted, rows, columns), data.take(
        order[count - kept :], judging, torch.arange(width, device=device)
    )


def slice_of(count: int, device: torch.device) -> Tensor:
    """0, ..., count - 1."""
    return torch.arange(count, device=device)


def _fit(
    data: Sequences,
    held: Sequences,
    points: tuple[Tensor, Tensor],
    exact: ExactPairs,
    rank: int,
) -> Fitted:
    """The best of all ridges and of a few ranks, head by head."""
    system = System.of(data, *points, exact)
    best: Fitted | None = None
    lowest = torch.full((len(points[0]),), torch.inf, dtype=torch.float64, device=points[0].device)
    judge = Judge.of(held, points, system, exact)
    for ridge in CAUSAL_RIDGES if exact.causal else RIDGES:
        core, left, right = system.solve(ridge)
        u, s, vh = torch.linalg.svd(core)
        root = s[:, :rank].sqrt().unsqueeze(1)
        query = system.query_map @ (left.unsqueeze(-1) * (u[..., :rank] * root))
        key = system.key_map @ (right.unsqueeze(-1) * (vh.transpose(1, 2)[..., :rank] * root))
        fewer = (0,) if exact.window else ()  # no features at all: the window is better alone
        for columns in dict.fromkeys((rank, max(1, rank // 4), 1, *fewer)):
            error = judge.error(query[..., :columns], key[..., :columns])
            better = error < lowest
            lowest = torch.where(better, error, lowest)
            seen = torch.arange(rank, device=query.device) < columns
            found = Fitted(
                LandmarkSide(points[0], system.query_offsets, query * seen),
                LandmarkSide(points[1], system.key_offsets, key * seen),
                torch.full_like(lowest, ridge),
                torch.full_like(lowest, columns),
            )
            best = found if best is None else _where(better, found, best)
    assert best is not None
    return best


def _where(chosen: Tensor, one: Fitted, other: Fitted) -> Fitted:
    def side(a: LandmarkSide, b: LandmarkSide) -> LandmarkSide:
        matrix = torch.where(chosen[:, None, None], a.matrix, b.matrix)
        return LandmarkSide(a.points, a.offsets, matrix)

    return Fitted(
        side(one.query, other.query),
        side(one.key, other.key),
        torch.where(chosen, one.ridge, other.ridge),
        torch.where(chosen, one.rank, other.rank),
    )


@dataclass(frozen=True)
class Judge:
    """Held-out queries and keys: how far attention with given matrices is from exact attention.

    Shapes:     queries [heads, s, n, p] and keys [heads, s, n', p]: raw features; attention
                [heads, s, n, n'] exact; known: where it is used as it is; visible [n, n'];
                outputs [heads, s, n, dv] exact.
    """

    queries: Tensor
    keys: Tensor
    attention: Tensor
    known: Tensor
    visible: Tensor
    values: Tensor | None

    @classmethod
    def of(
        cls, held: Sequences, points: tuple[Tensor, Tensor], system: System, exact: ExactPairs
    ) -> Judge:
        """Exact attention and raw features of held-out sequences."""
        logits = held.queries @ held.keys.transpose(-1, -2) + held.key_factor.unsqueeze(-2)
        visible = exact.visible(held.rows, held.columns)
        logits = logits.masked_fill(~visible, -torch.inf)
        normaliser = logits.logsumexp(-1, keepdim=True)
        near = exact.near(held.rows, held.columns)
        left = held.queries @ points[0].transpose(1, 2).unsqueeze(1) - normaliser
        right = held.keys @ points[1].transpose(1, 2).unsqueeze(1) + held.key_factor.unsqueeze(-1)
        return cls(
            torch.exp(left + system.query_offsets[:, None, None]),
            torch.exp(right + system.key_offsets[:, None, None]),
            torch.exp(logits - normaliser),
            near | held.sinks.unsqueeze(-2),
            visible,
            held.values,
        )

    def error(self, query_matrix: Tensor, key_matrix: Tensor) -> Tensor:
        """Relative error of the output (of attention itself without values) per head; inf for NaN."""
        queries, keys = (
            self.queries @ query_matrix.unsqueeze(1),
            self.keys @ key_matrix.unsqueeze(1),
        )
        found = queries @ keys.transpose(-1, -2)
        found = torch.where(self.known, self.attention, found).masked_fill_(~self.visible, 0.0)
        found = found / found.sum(-1, keepdim=True)
        exact = self.attention
        if self.values is not None:
            found, exact = found @ self.values, exact @ self.values
        gap = (found - exact).square().sum((1, 2, 3)) / exact.square().sum((1, 2, 3))
        return gap.sqrt().nan_to_num(nan=torch.inf)


def _unit(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Features [heads, N, p] of unit mean square from logarithms, and the offsets [heads, p] used.

    A column that is 0 everywhere stays 0.
    """
    mean_log = torch.logsumexp(2.0 * logs, dim=1) - math.log(logs.shape[1])
    offsets = -0.5 * torch.where(mean_log == -torch.inf, 0.0, mean_log)
    return torch.exp(logs + offsets.unsqueeze(1)), offsets


def _eigen(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares along, and the eigenvectors of, F^T F / N."""
    gram = features.transpose(1, 2) @ features / features.shape[1]
    spread, axes = torch.linalg.eigh(gram)
    return spread.clamp_min(0.0), axes


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """X with normal(X) = right [heads, p, p], `normal` positive definite, in a fixed number of steps."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2), keepdim=True)

    found, residual = torch.zeros_like(right), right
    direction, size = right, inner(right, right)
    for _ in range(_CG_STEPS):
        image = normal(direction)
        curvature = inner(direction, image)
        step = torch.where(curvature > 0, size / curvature, 0.0)  # 0 where the residual is
        found, residual = found + step * direction, residual - step * image
        new = inner(residual, residual)
        direction = residual + torch.where(size > 0, new / size, 0.0) * direction
        size = new
    return found
