"""The distance between the outputs of a model and of its converted self."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from bochner.transformers.calibrate_sample import Inputs


@dataclass(frozen=True)
class OutputDistance:
    """How far outputs moved; what does not apply to the model is None.

    mean_cosine, worst_cosine:  between mean-pooled last hidden states, over sequences (encoders).
    kl:                         KL(exact | converted) of the distributions over classes or next tokens,
                                in nats, mean over tokens (or sequences).
    agreement:                  share of tokens with the same most likely class.
    perplexity_exact, perplexity_converted:     of the labels or the tokens themselves (language models).
    """

    mean_cosine: float | None = None
    worst_cosine: float | None = None
    kl: float | None = None
    agreement: float | None = None
    perplexity_exact: float | None = None
    perplexity_converted: float | None = None

    def __str__(self) -> str:
        lines = []
        if self.mean_cosine is not None:
            lines.append(
                f"Cosine of mean-pooled hidden states: mean {self.mean_cosine:.3f}, worst"
                f" {self.worst_cosine:.3f}."
            )
        if self.kl is not None:
            lines.append(
                f"KL divergence from the exact model: {self.kl:.4f} nats; same most likely class:"
                f" {self.agreement:.1%}."
            )
        if self.perplexity_exact is not None:
            lines.append(
                f"Perplexity: {self.perplexity_exact:.2f} exact, {self.perplexity_converted:.2f}"
                " converted."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The figures that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}


class OutputTotals:
    """Sums over batches of what OutputDistance reports."""

    def __init__(self) -> None:
        self.cosines: list[float] = []
        self.kl = self.agreements = self.loss_exact = self.loss_converted = 0.0
        self.predictions = self.labels = 0

    def add(self, inputs: Inputs, exact: Any, converted: Any, *, causal: bool) -> None:
        """Add the outputs of one batch; of a causal model the next tokens are labels."""
        logits = getattr(exact, "logits", None)
        if logits is None:
            before, after = (pooled_states(inputs, output) for output in (exact, converted))
            self.cosines += cosine_similarity(before, after, dim=-1).tolist()
            return
        where = positions(inputs, logits)
        before, after = (
            torch.log_softmax(x.logits.float(), dim=-1)[where] for x in (exact, converted)
        )
        self.predictions += len(before)
        self.kl += float((before.exp() * (before - after)).sum())
        self.agreements += int((before.argmax(-1) == after.argmax(-1)).sum())
        labels = None
        if causal:
            both = getattr(exact, "encoder_last_hidden_state", None) is not None
            labels = next_tokens(inputs, logits, encoder_decoder=both)
        if labels is not None:
            self.labels += int((labels != -100).sum())
            self.loss_exact += _total_loss(logits, labels)
            self.loss_converted += _total_loss(converted.logits, labels)

    def distance(self) -> OutputDistance:
        """The means."""
        if self.cosines:
            return OutputDistance(sum(self.cosines) / len(self.cosines), min(self.cosines))
        some = self.labels > 0
        return OutputDistance(
            kl=self.kl / self.predictions,
            agreement=self.agreements / self.predictions,
            perplexity_exact=math.exp(self.loss_exact / self.labels) if some else None,
            perplexity_converted=math.exp(self.loss_converted / self.labels) if some else None,
        )


def positions(inputs: Inputs, x: Tensor) -> Tensor:
    """Where an output [b, n, c] belongs to a token, bool [b, n]; True throughout without a mask for it."""
    decodes = any(name.startswith("decoder_") for name in inputs)
    mask = inputs.get("decoder_attention_mask" if decodes else "attention_mask")
    if x.ndim == 3 and mask is not None and mask.shape == x.shape[:-1]:
        return mask.bool()
    return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)


def pooled_states(inputs: Inputs, output: Any) -> Tensor:
    """Mean of the last hidden states over tokens, [b, d]."""
    hidden = output.last_hidden_state
    where = positions(inputs, hidden).unsqueeze(-1)
    return (hidden * where).sum(1) / where.sum(1)


def next_tokens(inputs: Inputs, logits: Tensor, *, encoder_decoder: bool) -> Tensor | None:
    """The labels of logits [b, n, classes], shifted for next tokens, -100 where there is none.

    `labels` in the way of transformers (a decoder alone shifts them inside, an encoder-decoder gets them
    shifted), else the tokens themselves; None where there are neither, or no logits per token.
    """
    own = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    tokens = inputs.get("labels", own)
    if tokens is None or logits.ndim != 3 or tokens.shape != logits.shape[:-1]:
        return None
    where = positions(inputs, logits)
    tokens = tokens.masked_fill(~where, -100)
    if encoder_decoder and "labels" in inputs:
        return tokens
    shifted = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], dim=1)
    return shifted.masked_fill(~where, -100)  # padding before a sequence predicts nothing


def _total_loss(logits: Tensor, labels: Tensor) -> float:
    flat = logits.float().flatten(0, 1)
    return float(cross_entropy(flat, labels.flatten(), ignore_index=-100, reduction="sum"))
