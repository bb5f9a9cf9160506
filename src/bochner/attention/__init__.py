"""Attention in linear time from any feature map: whole sequences, causal, cross, or token by token."""

from bochner.attention.distributed import sequence_parallel_attention
from bochner.attention.linear import linear_attention
from bochner.attention.module import RandomFeatureAttention
from bochner.attention.state import AttentionState, DenominatorWarning
from bochner.attention.streaming import step
from bochner.attention.window import ExactWindow

__all__ = [
    "AttentionState",
    "DenominatorWarning",
    "ExactWindow",
    "RandomFeatureAttention",
    "linear_attention",
    "sequence_parallel_attention",
    "step",
]
