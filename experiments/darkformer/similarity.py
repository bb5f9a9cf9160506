"""What a conversion does to sentence embeddings, and to the output of each attention head."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor


def embeddings(model: Any, windows: Tensor) -> Tensor:
    """Of each window, [windows, d]."""
    from bochner.transformers import sentence_embeddings

    with torch.no_grad():
        parts = [sentence_embeddings(model, x, torch.ones_like(x)) for x in windows.split(8)]
    return torch.cat(parts)


def compare_embeddings(exact: Tensor, found: Tensor) -> dict[str, float]:
    """Embeddings [n, d] of unit length against those of the original model.

    cosine      mean cosine of an embedding with its original
    worst       the smallest of these
    ranking     Spearman correlation of the cosines of all pairs of texts
    neighbour   share of texts whose nearest other text is the same
    """
    same = (exact * found).sum(-1)
    pairs = torch.triu_indices(len(exact), len(exact), offset=1)
    similarities = [(x @ x.T) for x in (exact, found)]
    above = [s[pairs[0], pairs[1]].numpy() for s in similarities]
    nearest = [s.fill_diagonal_(-2.0).argmax(-1) for s in similarities]
    return {
        "cosine": float(same.mean()),
        "worst": float(same.min()),
        "ranking": float(spearmanr(*above).statistic),
        "neighbour": float((nearest[0] == nearest[1]).double().mean()),
    }


def head_errors(exact: Tensor, found: Tensor) -> Tensor:
    """|O^ - O|_F / |O|_F over tokens, [*b, heads] from outputs [*b, heads, n, dv]."""
    return (found - exact).flatten(-2).norm(dim=-1) / exact.flatten(-2).norm(dim=-1)
