"""Attention in linear time from any feature map: whole sequences, causal, cross, or token by token."""

from bochner.attention.linear import linear_attention
from bochner.attention.state import AttentionState, DenominatorWarning, step

__all__ = ["AttentionState", "DenominatorWarning", "linear_attention", "step"]
