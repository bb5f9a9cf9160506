"""Bidirectional attention with a band, all rows by weights: one exponential per feature and exact pair.

With the reference r, the largest log-feature of all keys that are not heavy,

    a_if = phi_f(q_i) exp(r_f - t_i),  b_jf = phi_f(k_j) exp(-r_f):   phi(q_i).phi(k_j) = a_i.b_j exp(t_i)

Rows come in tiles of TILE. A tile's pairs reach R >= reach tokens to either side, R a multiple of half a
tile, so that all other keys are whole chunks of TILE keys, on one grid for what is before and what is
after. What rows find in them are sums of chunks: added, never subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.inputs import AttentionInputs
from bochner.attention.state import finite, query_weights
from bochner.attention.window_keys import Keys
from bochner.attention.window_partials import Partial, exact_pairs, merged
from bochner.attention.window_sinks import is_among
from bochner.feature_map import FeatureMap

TILE = 32
"""Rows whose pairs are formed together, and keys per chunk."""
BLOCK = 256
"""Rows whose features exist at one time; a multiple of TILE."""


class Band(NamedTuple):
    """What tiles of rows see: `reach` exactly, `margin` tokens to either side as pairs."""

    reach: int
    margin: int

    @classmethod
    def of(cls, reach: int) -> Band:
        """With the smallest margin that is a multiple of half a tile."""
        half = TILE // 2
        return cls(reach, -(-reach // half) * half)

    @property
    def width(self) -> int:
        """Keys of a tile's pairs."""
        return TILE + 2 * self.margin

    def tiles(self, x: Tensor) -> Tensor:
        """Rows of keys [*b, tiles * TILE + 2 margin, c] -> [*b, tiles, width, c]."""
        return x.unfold(-2, self.width, TILE).mT.contiguous()  # a product would copy it transposed

    def inside(self, group: int, device: torch.device) -> Tensor:
        """Which pairs of a tile are exact, [group * TILE, width]."""
        row = torch.arange(TILE, device=device).repeat(group).unsqueeze(-1)
        place = torch.arange(self.width, device=device) - self.margin
        return (row - place).abs() <= self.reach

    def far(self, tiles: int, like: Tensor) -> Tensor:
        """[tiles, chunks]: 1 where a chunk of the block's keys is beyond a tile's pairs."""
        tile = torch.arange(tiles, device=like.device).unsqueeze(-1)
        chunk = torch.arange(tiles + 2 * self.margin // TILE, device=like.device)
        return ((chunk < tile) | (chunk > tile + 2 * self.margin // TILE)).to(like.dtype)


def lost_rows(features: Partial, exact: Partial) -> Tensor:
    """Rows [*b, n, 1] whose features' part may have lost keys that count: its largest weight is that of a
    key in the band, and what is left is as small as what underflows, yet not small beside the exact part."""
    kind = torch.finfo(features.denominator.dtype)
    small = features.denominator.abs() <= kind.tiny / kind.eps**2
    return small & (features.log_scale > exact.log_scale - math.log(kind.tiny) - 30.0)


class WeighedKeys(NamedTuple):
    """All keys, with `margin` hidden ones before them and enough of them after the last.

    Shapes:     k [*b, s', d], v [*b, s', dv + 1] (the last 1), bias [*b, s'] (-inf at hidden and heavy
                keys), weights b [*b, s', m], reference r [*b, 1, m] or [*b, 1, 1].
    """

    k: Tensor
    v: Tensor
    bias: Tensor
    weights: Tensor
    reference: Tensor

    @classmethod
    def of(
        cls, feature_map: FeatureMap, inputs: AttentionInputs, heavy: Tensor | None, band: Band
    ) -> WeighedKeys:
        """Features of all keys, computed once; `heavy` [*b, s]: positions that are no part of them."""
        count = inputs.k.shape[-2]
        keys = Keys.of(inputs, 0, count)
        if heavy is not None:
            keys = keys.hide(is_among(heavy, 0, count))
        after = band.margin + -count % BLOCK
        length, dim, values = band.margin + count + after, keys.k.shape[-1], keys.v.shape[-1]
        bias = torch.nn.functional.pad(keys.bias, (band.margin, after), value=-math.inf)
        weights: Tensor | None = None
        scales = []
        for start in range(0, count, BLOCK):
            part = keys.rows(start, start + BLOCK)
            features = feature_map.key(part.k).scaled(part.bias.unsqueeze(-1))
            found = features.log_features() if features.positive else features.values
            if weights is None:
                weights = found.new_empty(*found.shape[:-2], length, found.shape[-1])
            weights[..., band.margin + start : band.margin + start + part.number, :] = found
            scales.append(
                found.amax(dim=-2, keepdim=True) if features.positive else features.log_scale
            )
        assert weights is not None
        inner = _hemmed(weights, band.margin, count)
        scale = torch.cat(scales, dim=-2)
        reference = scale.amax(dim=-2, keepdim=True)
        if features.positive:
            inner.sub_(finite(reference)).exp_()
        else:
            inner.mul_(scale.sub_(finite(reference)).exp_())
        k, v = (
            x.new_empty(*x.shape[:-2], length, c) for x, c in ((keys.k, dim), (keys.v, values + 1))
        )
        _hemmed(k, band.margin, count).copy_(keys.k)
        _hemmed(v, band.margin, count)[..., :-1] = keys.v
        v[..., -1] = 1.0
        return cls(k, v, bias, weights, reference)

    def rows(self, start: int, stop: int) -> WeighedKeys:
        """Those of these places."""
        rows, columns = (..., slice(start, stop), slice(None)), (..., slice(start, stop))
        k, v, bias, weights, reference = self
        return WeighedKeys(k[rows], v[rows], bias[columns], weights[rows], reference)

    def sums(self) -> Tensor:
        """sum_j [v_j, 1] b_j, [*b, dv + 1, m]."""
        return self.v.mT @ self.weights


def _hemmed(x: Tensor, margin: int, count: int) -> Tensor:
    """Zeros before and after `count` rows of x, in place; the rows, a view."""
    x[..., :margin, :] = 0.0
    x[..., margin + count :, :] = 0.0
    return x[..., margin : margin + count, :]


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, before, after))


def found_by_weights(
    feature_map: FeatureMap, inputs: AttentionInputs, reach: int, heavy: tuple[Tensor, Keys] | None
) -> Iterator[tuple[Partial, Partial]]:
    """For blocks of BLOCK rows: the features' part and the exact part, the rows of a group one head after
    another."""
    heads, band, length = inputs.heads, Band.of(reach), inputs.q.shape[-2]
    keys = WeighedKeys.of(feature_map, inputs, None if heavy is None else heavy[0], band)
    starts = range(0, length, BLOCK)
    # keys of the block at `start`, those of its margins included, are at places start..start+BLOCK+2 margin
    after = _sums_after(keys, starts, band)
    before: Tensor | None = None
    for start in starts:
        stop = min(start + BLOCK, length)
        q = heads.queries(inputs.q[..., start:stop, :]).to(keys.k.dtype)
        tiles = -(-(stop - start) // TILE)
        near = keys.rows(start, start + tiles * TILE + 2 * band.margin)
        far, added = _far_sums(near, [x for x in (before, after.pop()) if x is not None], band)
        before = added if before is None else before + added
        yield _block(feature_map, q, near, far, (band, heads.rows, heavy))


def _sums_after(keys: WeighedKeys, starts: range, band: Band) -> list[Tensor | None]:
    """For every block, last block first (pop gives the first): sums of keys after its margin."""
    total: Tensor | None = None
    found: list[Tensor | None] = []
    for start in reversed(starts):
        end = start + BLOCK + 2 * band.margin
        if end < keys.k.shape[-2]:
            part = keys.rows(end, end + BLOCK).sums()
            total = part if total is None else total + part
        found.append(total)
    return found


def _block(
    feature_map: FeatureMap,
    q: Tensor,
    near: WeighedKeys,
    far: Tensor,
    how: tuple[Band, int, tuple[Tensor, Keys] | None],
) -> tuple[Partial, Partial]:
    band, group, heavy = how
    length = q.shape[-2] // group
    inside = band.inside(group, q.device)
    queries = feature_map.query(q)
    a, top = query_weights(queries, near.reference)
    top = top + (queries.log_parts()[1] if queries.positive else queries.log_scale)

    def tiled(x: Tensor) -> Tensor:
        """Rows [*b, group * length, c] -> [*b, tiles, group * TILE, c]."""
        x = x.unflatten(-2, (group, length))
        x = _padded(x, 0, -length % TILE).unflatten(-2, (-1, TILE))
        return x.transpose(-4, -3).flatten(-3, -2)

    def rows(x: Tensor) -> Tensor:
        """The inverse of `tiled`."""
        x = x.unflatten(-2, (group, TILE)).transpose(-4, -3).flatten(-3, -2)
        return x[..., :length, :].flatten(-3, -2)

    values, a = band.tiles(near.v), tiled(a)
    scores = (a @ band.tiles(near.weights).mT).masked_fill_(inside, 0.0)
    sums = scores @ values + a @ far.mT
    sums = rows(sums)
    features = Partial(sums[..., :-1], sums[..., -1:], top)

    logs = _log_kernel(feature_map, tiled(q), band.tiles(near.k))
    logs = logs + near.bias.unfold(-1, band.width, TILE).unsqueeze(-2)
    logs = logs.masked_fill_(~inside, -math.inf)
    most = logs.amax(dim=-1, keepdim=True)
    sums, most = rows(logs.sub_(finite(most)).exp_() @ values), rows(most)
    exact = Partial(sums[..., :-1], sums[..., -1:], most)
    if heavy is not None:
        exact = merged([exact, exact_pairs(feature_map, q, heavy[1], None)])
    return features, exact


def _far_sums(near: WeighedKeys, beyond: list[Tensor], band: Band) -> tuple[Tensor, Tensor]:
    """For every tile of a block, the sums of all keys that are not in its pairs, [*b, tiles, dv + 1, m];
    and those of the first BLOCK keys."""
    weights, values = (x.contiguous().unflatten(-2, (-1, TILE)) for x in (near.weights, near.v))
    chunks = values.mT @ weights
    tiles = chunks.shape[-3] - 2 * band.margin // TILE
    far = (band.far(tiles, chunks) @ chunks.flatten(-2)).unflatten(-1, chunks.shape[-2:])
    if beyond:
        far += sum(beyond[1:], beyond[0]).unsqueeze(-3)
    return far, chunks[..., :tiles, :, :].sum(dim=-3)


def _log_kernel(feature_map: FeatureMap, q: Tensor, k: Tensor) -> Tensor:
    """[*b, tiles, rows, width]; a map's own leading dimensions are those before the tiles."""
    dimensions = max(q.ndim, k.ndim)
    q, k = (x[(None,) * (dimensions - x.ndim)].movedim(-3, 0) for x in (q, k))
    return feature_map.log_kernel(q, k).movedim(0, -3)
