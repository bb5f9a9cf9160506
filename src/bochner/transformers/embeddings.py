"""Sentence embeddings from a model's last hidden states."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel


def sentence_embeddings(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "b n"],
    attention_mask: Int[Tensor, "b n"] | Bool[Tensor, "b n"],
    **inputs: Tensor,
) -> Float[Tensor, "b d"]:
    """The mean of the last hidden states over the attended tokens, scaled to length 1.

    This is the recipe of MiniLM and most sentence encoders; inner products are cosine similarities.

    Shapes:     input_ids, attention_mask [b, n] -> [b, d]; `inputs` go to the model as they are.
    Raises:     ValueError for a row of `attention_mask` that attends to nothing.
    Example:
        >>> import torch
        >>> from bochner.data import load_minilm
        >>> model, tokenizer = load_minilm()
        >>> texts = ["A cat sits outside.", "A kitten is in the garden.", "Stocks fell sharply."]
        >>> with torch.no_grad():
        ...     tokens = tokenizer(texts, padding=True, return_tensors="pt")
        ...     e = sentence_embeddings(model, **tokens)
        >>> [round(float(e[0] @ other), 2) for other in e]
        [1.0, 0.56, 0.15]
    """
    counts = attention_mask.sum(dim=1)
    if bool((counts == 0).any()):
        rows = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"attention_mask attends to nothing in rows {rows}; expected at least one token in"
            " each. Leave these rows out."
        )
    output = model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
    hidden = output.last_hidden_state
    # No eps: the count is at least 1, and dividing by it would only be undone by the next line.
    pooled = (hidden * attention_mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1)
    return pooled / pooled.norm(dim=-1, keepdim=True)
