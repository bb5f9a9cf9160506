"""Checks of what grammars are given: log-weights of rules, words and spans."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.validation import check_points

if TYPE_CHECKING:
    from bochner.structured.grammars.rules import LowRankRules


def check_log_weights(name: str, log: Tensor) -> None:
    """Raise unless `log` [*b, n, k] is float32 or float64 and below +inf everywhere (-inf is a zero)."""
    check_points(name, log, log.shape[-1] if log.ndim else 0)
    if log.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {log.dtype}; expected float32 or float64.")
    bad = int((~(log.detach() < math.inf)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} entries that are NaN or +inf out of {log.numel()}; expected"
            " log-weights below +inf (-inf is a weight of zero)."
        )


def check_sizes(rules: LowRankRules, log_root: Tensor, unaries: Tensor) -> None:
    """Raise unless root [*b, S] and unaries [*b, n, P] are log-weights that fit the rules."""
    check_log_weights("unaries", unaries)
    check_log_weights("log_root", log_root.unsqueeze(-2))
    if log_root.shape[-1] != rules.num_symbols:
        raise ValueError(
            f"log_root has {log_root.shape[-1]} entries; expected one for each of {rules.num_symbols}"
            f" symbols: {rules.num_nonterminals} nonterminals, then {rules.num_preterminals} preterminals"
            " (-inf for symbols that no sentence has at its top)."
        )
    if unaries.shape[-1] != rules.num_preterminals:
        raise ValueError(
            f"unaries has last dimension {unaries.shape[-1]}; expected one for each of"
            f" {rules.num_preterminals} preterminals, [*b, n, {rules.num_preterminals}]."
        )
    for name, tensor in (("log_root", log_root), ("unaries", unaries)):
        if tensor.dtype != rules.log_head.dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, the rules have {rules.log_head.dtype}; cast one."
            )


def check_spans(log_spans: Tensor, unaries: Tensor) -> None:
    """Raise unless log_spans [*b, n, n] are log-weights that fit the unaries."""
    size = unaries.shape[-2]
    check_log_weights("log_spans", log_spans)
    if log_spans.shape[-2:] != (size, size) or log_spans.dtype != unaries.dtype:
        raise ValueError(
            f"log_spans has shape {list(log_spans.shape)} and dtype {log_spans.dtype}; expected"
            f" [*b, {size}, {size}] in {unaries.dtype}: an entry for every first and last word."
        )
