"""Grouped queries: several query heads read one key-value head.

Either the heads of a group become rows of one sequence of queries, so that a key's features and the
state exist once per key head, or a block of keys is repeated, where every query head has its own
feature map or mask.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Heads(NamedTuple):
    """How blocks of queries and of keys come to one number of heads.

    Arguments:  group: query heads per key head, 1 = as many of either; folded: the group's heads become
                rows of the queries; else keys are repeated; kv_heads: Hkv where group > 1.
    """

    group: int = 1
    folded: bool = True
    kv_heads: int = 1

    @property
    def rows(self) -> int:
        """Rows of the folded queries per position."""
        return self.group if self.folded else 1

    def queries(self, q: Tensor) -> Tensor:
        """[*b, H, n, d] -> [*b, Hkv, group * n, d], head after head; as it came unless folded."""
        if self.rows == 1:
            return q
        return q.unflatten(-3, (-1, self.group)).flatten(-3, -2)

    def outputs(self, rows: Tensor) -> Tensor:
        """[*b, Hkv, group * n, d] -> [*b, H, n, d], the inverse of `queries`."""
        if self.rows == 1:
            return rows
        return rows.unflatten(-2, (self.group, -1)).flatten(-4, -3)

    def keys(self, x: Tensor) -> Tensor:
        """[*b, Hkv, n, d] of keys or values -> [*b, H, n, d] if keys are repeated."""
        if self.folded or x.ndim < 3 or x.shape[-3] == 1 or x.shape[-3] != self.kv_heads:
            return x
        return x.repeat_interleave(self.group, dim=-3)

    def per_key(self, x: Tensor) -> Tensor:
        """`keys` for what is one number a key: [*b, Hkv, n] or what broadcasts to it."""
        return self.keys(x.unsqueeze(-1)).squeeze(-1)

    def any_of_group(self, visible: Tensor) -> Tensor:
        """[*b, H, n] -> [*b, Hkv, n], True where any query head of the group sees the key."""
        if self.folded or visible.ndim < 2 or visible.shape[-2] in (1, self.kv_heads):
            return visible
        return visible.unflatten(-2, (self.kv_heads, self.group)).any(dim=-2)
