"""Which states a chain should treat exactly at each step: the strongest, by two passes that draw nothing.

    1. for all states         m_{t+1}(y) = E_q[a] . b_y,    q_t ~ e^{u_t + m_t}      and the same backward
    2. among the 4k best of   m_{t+1}(y) = log sum_x e^{u_t(x) + m_t(x) + a_x.b_y}   of u_t + m_t + m'_t

The first pass passes the mean of each step on, the second is exact but for what it leaves out, and the beam
is the k largest of its u_t + m_t + m'_t.

Nothing random enters: a beam that knew the features' draw would prefer states that the draw overestimates,
and the estimate of every edge would be biased (measured: worse than beams of the unaries alone).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bochner.structured.matrix import finite_maximum, row_times
from bochner.validation import check_count

CANDIDATES = 4
"""Candidates of the second pass for each state of a beam. With 4 the beams hold all but 0.2 % of the mass
that beams of the exact marginals hold at logits of standard deviation 1.3, and all but 6 % at 2.3 (beams
of the unaries alone: all but 16 % and 53 %; 400 states, beams of 20)."""

Sent = Callable[[Tensor, int], Tensor]
"""(log-weights [*b, n] of the states at one step, its number) -> log of the message to the next step."""


@torch.no_grad()
def strongest_states(
    a: Tensor, b: Tensor, unaries: Tensor, lengths: Tensor, *, beam: int
) -> Tensor:
    """The beam of every step: min(beam, X) different states, [*b, T, k].

    Shapes:     a, b [*c, X, n] with [*c] broadcasting to [*b]; unaries [*b, T, X]; lengths [*b].
    Cost:       O(T X n) time for all states and O(T k^2 n) for the candidates; O(T X) memory.
    Raises:     ValueError for a beam below 1.
    Example:
        >>> u = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
        >>> a = torch.tensor([[0.0], [0.0], [1.0]])        # state 2 prefers to be followed by state 0
        >>> b = torch.tensor([[3.0], [0.0], [0.0]])
        >>> strongest_states(a, b, u, torch.tensor(2), beam=1).tolist()
        [[2], [0]]
    """
    check_count("beam", beam)
    a, b, unaries = a.detach(), b.detach(), unaries.detach()
    states = unaries.shape[-1]
    if beam >= states:
        return torch.arange(states, device=unaries.device).expand(*unaries.shape).contiguous()
    score = _scores(
        unaries,
        lengths,
        lambda weights, _: _mean_message(weights, a, b),
        lambda weights, _: _mean_message(weights, b, a),
    )
    if CANDIDATES * beam < states:
        best = score.topk(CANDIDATES * beam, dim=-1).indices
    else:
        best = torch.arange(states, device=unaries.device).expand(*unaries.shape)

    def log_kernel(step: int) -> Tensor:
        return _rows(a, best[..., step, :]) @ _rows(b, best[..., step + 1, :]).transpose(-1, -2)

    score = _scores(
        unaries.gather(-1, best),
        lengths,
        lambda weights, step: _sum_message(weights, log_kernel(step)),
        lambda weights, step: _sum_message(weights, log_kernel(step - 1).transpose(-1, -2)),
    )
    return best.gather(-1, score.topk(beam, dim=-1).indices)


def _scores(unaries: Tensor, lengths: Tensor, ahead: Sent, back: Sent) -> Tensor:
    """Unaries and the messages from both sides, added up; lengths end the chains."""
    score, steps = unaries.clone(), unaries.shape[-2]
    message = torch.zeros_like(unaries[..., 0, :])
    for t in range(steps - 1):
        message = ahead(unaries[..., t, :] + message, t)
        score[..., t + 1, :] += message
    message = torch.zeros_like(message)
    for t in range(steps - 1, 0, -1):
        sent = back(unaries[..., t, :] + message, t)
        message = torch.where((lengths > t).unsqueeze(-1), sent, 0.0)
        score[..., t - 1, :] += message
    return score


def _mean_message(weights: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The mean row of `source` under the weights, against all rows of `target`, 0 at its largest."""
    share = torch.exp(weights - finite_maximum(weights, -1))
    total = share.sum(-1, keepdim=True)
    share = share / torch.where(total > 0, total, 1.0)
    message = row_times(row_times(share, source), target.transpose(-1, -2))
    return message - message.amax(dim=-1, keepdim=True)


def _sum_message(weights: Tensor, log_kernel: Tensor) -> Tensor:
    """log sum_x exp(weights(x) + log K(x, y)), 0 at its largest."""
    kernel = torch.exp(log_kernel - log_kernel.amax(dim=(-1, -2), keepdim=True))
    message = row_times(torch.exp(weights - finite_maximum(weights, -1)), kernel).log()
    return message - finite_maximum(message, -1)


def _rows(points: Tensor, states: Tensor) -> Tensor:
    """Rows of points [*c, X, n] for states [*b, k]: [*b, k, n]."""
    if points.ndim == 2:
        return points[states]
    points = points.expand(*states.shape[:-1], *points.shape[-2:])
    return points.gather(-2, states.unsqueeze(-1).expand(*states.shape, points.shape[-1]))
