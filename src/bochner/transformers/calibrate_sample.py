"""The sequences that a model is calibrated on: a random sample of bounded size, and what a layer saw.

A batch is held out as a whole (neighbouring windows of a document share a batch), every fourth one. Of
the rest a random set of sequences is kept, so that a stream of any length needs memory for the sample only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bochner.data.qkv import QKV
from bochner.transformers.calibrate_report import SampleSizes
from bochner.transformers.observe import Call

Inputs = Mapping[str, Any]
"""What a model is called with."""
HELD_OUT_EVERY = 4
"""One batch in so many is held out, the second of them first."""


@dataclass(frozen=True)
class Sample:
    """Model inputs of one sequence each, to fit on and to measure on, with their numbers of tokens."""

    fit: list[Inputs]
    held_out: list[Inputs]
    fit_tokens: list[int]
    held_out_tokens: list[int]
    fit_batches: int
    held_out_batches: int

    def sizes(self) -> SampleSizes:
        """What the report says of it."""
        length = common_length(self.fit_tokens)
        used = sum(tokens >= length for tokens in self.fit_tokens)
        return SampleSizes(
            sequences=used,
            length=length,
            left_out=len(self.fit) - used,
            batches=self.fit_batches,
            held_out_sequences=len(self.held_out),
            held_out_tokens=sum(self.held_out_tokens),
            held_out_batches=self.held_out_batches,
            longest=max(self.held_out_tokens),
        )


def model_inputs(batch: Inputs | Tensor) -> Inputs:
    """A batch as keyword arguments of the model.

    Raises:     TypeError for what is neither a dictionary nor token numbers [batch, n].
    """
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, Tensor) and batch.ndim == 2 and not batch.is_floating_point():
        return {"input_ids": batch}
    what = f"a tensor of shape {list(batch.shape)}" if isinstance(batch, Tensor) else repr(batch)
    raise TypeError(
        f"batches gave {what[:200]}; expected dictionaries of model inputs, or token numbers [batch, n]"
        " (a tensor of windows [windows, n] is split by windows.split(4))."
    )


def split_rows(batch: Inputs) -> list[Inputs]:
    """One dictionary per sequence, each a batch of one."""
    size = next((len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim), 0)
    if size == 0:
        raise ValueError(f"batches gave a batch without tensors, or an empty one: {sorted(batch)}.")
    return [
        {
            name: x[i : i + 1] if isinstance(x, Tensor) and x.ndim and len(x) == size else x
            for name, x in batch.items()
        }
        for i in range(size)
    ]


def row_tokens(row: Inputs) -> int | None:
    """Tokens of a sequence that are not padding; None where the inputs do not tell (images, speech)."""
    if row.get("attention_mask") is not None and row["attention_mask"].ndim == 2:
        return int(row["attention_mask"].bool().sum())
    return row["input_ids"].shape[1] if "input_ids" in row else None


class _Reservoir:
    """A uniform random set of sequences, as many as fit into a number of tokens."""

    def __init__(self, max_tokens: int, generator: torch.Generator) -> None:
        self.max_tokens, self.generator = max_tokens, generator
        self.heap: list[tuple[float, int, int, Inputs]] = []  # the largest key leaves first
        self.tokens = self.seen = 0

    def offer(self, row: Inputs, tokens: int) -> None:
        key = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        self.seen += 1
        heapq.heappush(self.heap, (-key, self.seen, tokens, row))
        self.tokens += tokens
        while self.tokens > self.max_tokens and len(self.heap) > 1:
            self.tokens -= heapq.heappop(self.heap)[2]

    def rows(self) -> tuple[list[Inputs], list[int]]:
        """The sequences in the order in which they came, and their tokens."""
        kept = sorted(self.heap, key=lambda entry: entry[1])
        return [entry[3] for entry in kept], [entry[2] for entry in kept]


def draw_sample(
    batches: Iterable[Inputs | Tensor],
    *,
    max_tokens: int,
    count: Callable[[Inputs], int],
    generator: torch.Generator,
) -> Sample:
    """A random set of sequences of at most `max_tokens` to fit on, and a third as many held out.

    Arguments:  count: the tokens of a sequence whose inputs do not tell them; asked once.
    Raises:     TypeError for what is no batch; ValueError for fewer than two batches.
    """
    kept = _Reservoir(max_tokens, generator), _Reservoir(max(1, max_tokens // 3), generator)
    counts, size = [0, 0], 0
    for number, batch in enumerate(batches):
        part = int(number % HELD_OUT_EVERY == 1)
        counts[part] += 1
        for row in split_rows(model_inputs(batch)):
            tokens = row_tokens(row)
            if tokens is None:
                tokens = size = size or count(row)
            if tokens > 0:
                kept[part].offer(row, tokens)
    if not (kept[0].heap and kept[1].heap):
        raise ValueError(
            f"batches gave {sum(counts)} batch(es) with tokens; calibration needs at least 2, since one"
            " is held out to measure on. Pass smaller batches, for example windows.split(4)."
        )
    (fit, fit_tokens), (held_out, held_out_tokens) = kept[0].rows(), kept[1].rows()
    return Sample(fit, held_out, fit_tokens, held_out_tokens, *counts)


def on_device(model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
    """The inputs on the device of the model."""
    device = next(model.parameters()).device
    return {n: x.to(device) if isinstance(x, Tensor) else x for n, x in inputs.items()}


def common_length(lengths: Iterable[int]) -> int:
    """The length to which sequences are cut so that most tokens are kept.

    Maps are fitted to tensors [b, heads, n, d], so all sequences need one length: shorter ones are
    left out, longer ones cut at their end.

    Example:
        >>> common_length([128, 128, 100, 7])
        100
    """
    ordered = sorted(lengths, reverse=True)
    return max(enumerate(ordered, start=1), key=lambda pair: pair[0] * pair[1])[1]


def stacked(calls: Sequence[Call], batch_shape: tuple[int, ...], *, pooled: bool = True) -> QKV:
    """One tensor per kind for the `.fit` of a map with this batch_shape, in float32.

    Shapes:     calls of one sequence each, without padding. A map per query head: q [b, heads, n, d],
                keys and values repeated. Else query heads that share keys are pooled, as more
                sequences: q [b G, kv heads, n, d], k, v [b G, kv heads, s, ...] for groups of G; as they
                are, q [b, heads, n, d] and k, v [b, kv heads, s, ...], if not pooled.
    """
    s = common_length(call.k.shape[-2] for call in calls)
    rows = [call for call in calls if call.k.shape[-2] >= s]
    n = min(s if not call.cross else call.q.shape[-2] for call in rows)
    q = torch.cat([call.q[..., :n, :] for call in rows]).float()
    k = torch.cat([call.k[..., :s, :] for call in rows]).float()
    v = torch.cat([call.v[..., :s, :] for call in rows]).float()
    groups = q.shape[1] // k.shape[1]
    per_query_head = batch_shape == q.shape[1:2]
    if not (pooled or per_query_head):
        return QKV(q, k, v)
    if not per_query_head:
        q = q.unflatten(1, (-1, groups)).transpose(1, 2).flatten(0, 1)
    axis = 1 if per_query_head else 0
    return QKV(q, k.repeat_interleave(groups, dim=axis), v.repeat_interleave(groups, dim=axis))
