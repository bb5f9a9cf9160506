"""Attention with an exact window the long way: one kernel matrix, float64, straight from the definition."""

import itertools

import torch
from torch import Tensor

from bochner.attention import ExactWindow
from bochner.feature_map import FeatureMap


def exact_pairs(
    exact: ExactWindow, n: int, s: int, *, causal: bool, sinks: Tensor | None = None
) -> Tensor:
    """[*b, n, s], True on the band and in the columns `sinks` [*b, s]."""
    i, j = torch.arange(n).unsqueeze(-1), torch.arange(s)
    band = (i - j >= 0) & (i - j < exact.window) if causal else (i - j).abs() <= exact.window // 2
    if exact.window == 0:
        band = torch.zeros(n, s, dtype=torch.bool)
    return band if sinks is None else band | sinks.unsqueeze(-2)


def sink_columns(
    exact: ExactWindow, logits: Tensor, visible: Tensor, *, causal: bool, probes: int = 16
) -> Tensor:
    """Which keys every row sees exactly, [*b, s], one sequence at a time.

    logits [*b, h, n, s] with the bias in them, h the query heads that share a head of keys;
    visible [*b, s].
    """
    *lead, _, n, s = logits.shape
    columns = torch.zeros(*lead, s, dtype=torch.bool)
    for place in itertools.product(*(range(size) for size in lead)):
        seen = visible[place]
        positions = seen.nonzero().flatten()
        if causal:
            chosen = positions[: exact.sinks]
        else:
            p = min(probes, n)
            if n == s and not bool(seen.all()):
                rows = torch.stack(
                    [positions[int((t + 0.5) / p * len(positions))] for t in range(p)]
                )
            else:
                rows = torch.linspace(0, n - 1, p).round().long()
            picked = logits[place][:, rows].masked_fill(~seen, -torch.inf)
            mass = torch.softmax(picked, dim=-1).sum((0, 1))
            chosen = mass.argsort(descending=True)[: min(exact.sinks, len(positions))]
        columns[(*place, chosen)] = True
    return columns


def dense_window(
    phi: FeatureMap,
    exact: ExactWindow,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """out_i = sum_j K_ij v_j / sum_j K_ij, K exact on the window and estimated elsewhere; float64.

    Shapes:     q [*b, H, n, d], k [*b, Hkv, s, d], v [*b, Hkv, s, dv] (heads may be missing if H = Hkv),
                key_mask and key_bias broadcasting to [*b, Hkv, s].
    """
    q, k, v = (x.detach().double() if not x.requires_grad else x.double() for x in (q, k, v))
    grouped = k.ndim > 2 and q.shape[-3] != k.shape[-3]
    group = q.shape[-3] // k.shape[-3] if grouped else 1
    lead = torch.broadcast_shapes(
        k.shape[:-2], v.shape[:-2], *(x.shape[:-1] for x in (key_mask, key_bias) if x is not None)
    )
    s = k.shape[-2]
    bias = torch.zeros(*lead, s, dtype=torch.float64)
    bias = bias if key_bias is None else bias + key_bias
    bias = bias if key_mask is None else bias.masked_fill(~key_mask, -torch.inf)

    def repeated(x: Tensor, dim: int) -> Tensor:
        return x.repeat_interleave(group, dim=dim) if grouped else x

    batch = phi.batch_shape
    if grouped and batch and batch[-1] == k.shape[-3]:
        rows = q.unflatten(-3, (-1, group)).flatten(-3, -2)
        estimate = phi.estimate(rows, k).unflatten(-2, (group, -1)).flatten(-4, -3)
        logs = phi.log_exact(rows, k).log_abs.unflatten(-2, (group, -1)).flatten(-4, -3)
    else:
        estimate = phi.estimate(q, repeated(k, -3))
        logs = phi.log_exact(q, repeated(k, -3)).log_abs
    visible = bias > -torch.inf
    per_key = repeated(bias, -2)
    logits = (logs + per_key.masked_fill(per_key == -torch.inf, 0.0).unsqueeze(-2)).detach()
    full = torch.broadcast_shapes(logits.shape[:-2], per_key.shape[:-1])
    logits = logits.expand(*full, *logits.shape[-2:])
    shared = logits.unflatten(-3, (-1, group)) if grouped else logits.unsqueeze(-3)
    shown = visible.expand(*shared.shape[:-3], s)
    columns = sink_columns(exact, shared, shown, causal=causal)
    pairs = exact_pairs(exact, q.shape[-2], s, causal=causal, sinks=repeated(columns, -2))
    kernel = torch.where(pairs, torch.exp(logs), estimate) * torch.exp(per_key).unsqueeze(-2)
    if causal:
        kernel = kernel.tril()
    return kernel @ repeated(v, -3) / kernel.sum(-1, keepdim=True)
