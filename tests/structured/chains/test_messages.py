"""Both messages of every step, kept together."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bochner.structured import Chain, Semiring, Sum, Transitions
from bochner.structured.chains import messages
from bochner.structured.chains.messages import both_messages
from tests.structured.chain_cases import Case, cases, close, make_case, possible


def node_marginals(case: Case) -> torch.Tensor:
    found = both_messages(*case.chain.flat())
    scale = found.alpha_scale + found.beta_scale - found.log_partition.unsqueeze(-1)
    logs = found.alpha.double() + found.beta + scale.unsqueeze(-1)
    return torch.exp(logs).view(case.unaries.shape)


@settings(max_examples=60, deadline=None)
@given(case=cases(sizes=(0.0, 1.0, 30.0, 1000.0)))
def test_they_agree_with_all_paths_in_both_precisions(case: Case) -> None:
    if not possible(case):
        return
    there = case.chain.there.unsqueeze(-1)
    close(torch.where(there, node_marginals(case), 0.0), case.of("marginals"))
    single = case.to(torch.float32)
    size = float(case.unaries[torch.isfinite(case.unaries)].abs().max())
    found = torch.where(there, node_marginals(single), 0.0)
    close(found, single.of("marginals"), tolerance=1e-4 + 1e-6 * size)


def test_only_what_disagrees_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of two needs float64; none needs the log domain."""
    table = torch.tensor([[[0.0, -150.0], [-150.0, 0.0]], [[0.0, 0.0], [450.0, 450.0]]])
    hard = torch.tensor([[0.0, -300.0], [0.0, 0.0], [0.0, 0.0]])
    case = Case((table,), torch.stack([torch.zeros(3, 2), hard]), None)
    runs, given_messages = [], messages._messages

    def watched(
        semiring: Semiring, transitions: Transitions, unaries: Tensor, lengths: Tensor
    ) -> tuple[messages.Messages, Tensor]:
        runs.append((type(semiring), len(unaries), unaries.dtype))
        return given_messages(semiring, transitions, unaries, lengths)

    monkeypatch.setattr(messages, "_messages", watched)
    close(node_marginals(case), case.of("marginals"), tolerance=1e-4)
    assert runs == [(Sum, 2, torch.float32), (Sum, 1, torch.float64)]


def test_they_are_constants() -> None:
    chain: Chain = make_case(3, shape=(3, 3, 2, 1)).detached().chain
    assert not any(part.requires_grad for part in both_messages(*chain.flat()))
