"""Keys as attention sees them: a key, its value, and the bias of its logit, -inf where it is hidden."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.inputs import AttentionInputs
from bochner.feature_map import compute_dtype
from bochner.features import fits


def common_lead(*shapes: torch.Size) -> torch.Size:
    """What leading dimensions broadcast to, at a tenth of the time of torch.broadcast_shapes."""
    longest = max(shapes, key=len)
    return longest if all(fits(s, longest) for s in shapes) else torch.broadcast_shapes(*shapes)


class Keys(NamedTuple):
    """Keys with their values; one tensor says both what is hidden and what is added to the logits.

    Shapes:     k [*b, s, d], v [*b, s, dv], bias [*b, s], all with the same leading dimensions, in the
                dtype that attention is computed in.
    """

    k: Tensor
    v: Tensor
    bias: Tensor

    @classmethod
    def of(cls, inputs: AttentionInputs, start: int, stop: int) -> Keys:
        """Keys start..stop-1 of checked inputs, of those that there are; repeated for heads of queries
        where the heads ask for it. What else broadcasts is expanded, not copied."""
        part, heads = slice(max(start, 0), max(stop, 0)), inputs.heads
        k, v = (heads.keys(x[..., part, :]) for x in (inputs.k, inputs.v))
        bias = cls.bias_of(inputs, part)
        lead = common_lead(k.shape[:-2], v.shape[:-2], bias.shape[:-1])
        return cls(k, v, bias).to(bias.dtype).at(lead)

    @staticmethod
    def bias_of(inputs: AttentionInputs, part: slice) -> Tensor:
        """The bias alone, of some of the keys; [s] if nothing is said about them."""
        k, heads = inputs.k[..., part, :], inputs.heads
        bias = torch.zeros(k.shape[-2], dtype=compute_dtype(k), device=k.device)
        if inputs.key_bias is not None:
            bias = bias + heads.per_key(inputs.key_bias[..., part]).to(bias.dtype)
        if inputs.key_mask is not None:
            bias = bias.masked_fill(~heads.per_key(inputs.key_mask[..., part]), -math.inf)
        return bias

    @property
    def lead(self) -> torch.Size:
        """The leading dimensions."""
        return self.bias.shape[:-1]

    @property
    def number(self) -> int:
        """How many keys there are, hidden ones included."""
        return self.bias.shape[-1]

    @property
    def visible(self) -> Tensor:
        """True where a key takes part, [*b, s]."""
        return self.bias > -math.inf

    @property
    def shift(self) -> Tensor:
        """What is added to the logits of visible keys, [*b, s]; 0 where hidden."""
        return self.bias.masked_fill(~self.visible, 0.0)

    def at(self, lead: torch.Size | tuple[int, ...]) -> Keys:
        """Expanded to these leading dimensions."""
        if self.k.shape[:-2] == self.v.shape[:-2] == self.lead == lead:
            return self
        k, v, bias = self
        return Keys(
            k.expand(*lead, *k.shape[-2:]),
            v.expand(*lead, *v.shape[-2:]),
            bias.expand(*lead, bias.shape[-1]),
        )

    def to(self, dtype: torch.dtype) -> Keys:
        """In another dtype."""
        if all(x.dtype == dtype for x in self):
            return self
        return Keys(*(x.to(dtype) for x in self))

    def rows(self, start: int, stop: int) -> Keys:
        """Keys start..stop-1, of those that there are."""
        part = slice(max(start, 0), max(stop, 0))
        return Keys(self.k[..., part, :], self.v[..., part, :], self.bias[..., part])

    def hide(self, which: Tensor) -> Keys:
        """With the keys of `which` [*b, s] hidden."""
        return self._replace(bias=self.bias.masked_fill(which, -math.inf))

    def take(self, index: Tensor) -> Keys:
        """Those at index [*b, s']."""
        column = index.unsqueeze(-1)
        return Keys(
            self.k.gather(-2, column.expand(*index.shape, self.k.shape[-1])),
            self.v.gather(-2, column.expand(*index.shape, self.v.shape[-1])),
            self.bias.gather(-1, index),
        )

    def or_else(self, which: Tensor, other: Keys) -> Keys:
        """These where `which` [*b, s], the others elsewhere."""
        column = which.unsqueeze(-1)
        return Keys(
            torch.where(column, self.k, other.k),
            torch.where(column, self.v, other.v),
            torch.where(which, self.bias, other.bias),
        )

    def copies(self) -> Keys:
        """In memory of their own, if they are part of something more than twice as large."""
        if self.k.untyped_storage().nbytes() <= 2 * self.k.nbytes:
            return self
        return Keys(*(x.clone(memory_format=torch.contiguous_format) for x in self))

    @classmethod
    def none_of(cls, like: Keys, count: int) -> Keys:
        """`count` hidden keys, with the leading dimensions of others."""
        return cls(
            like.k.new_zeros(*like.lead, count, like.k.shape[-1]),
            like.v.new_zeros(*like.lead, count, like.v.shape[-1]),
            like.bias.new_full((*like.lead, count), -math.inf),
        )


def joined(*parts: Keys) -> Keys:
    """One after another; of the same leading dimensions."""
    k, v, bias = zip(*parts, strict=True)
    return Keys(torch.cat(k, dim=-2), torch.cat(v, dim=-2), torch.cat(bias, dim=-1))
