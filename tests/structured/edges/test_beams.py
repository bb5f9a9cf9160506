"""Which states a beam holds: nearly the mass that the best one could."""

import torch
from torch import Tensor

from bochner.structured import ExactChain
from bochner.structured.edges.beams import strongest_states
from tests.maps import normal
from tests.structured.embedded_problems import problem


def test_beams_hold_the_mass_that_beams_of_the_exact_marginals_hold() -> None:
    """400 states, logits of standard deviation 1.3: within 1 % of the mass, at the steps that exist; the
    beams of the unaries alone lose 12 %."""
    made = problem(400, 12, dim=16, batch=(2,), scale=0.5, seed=1)
    made.lengths[:] = torch.tensor([12, 7])
    exact = ExactChain.from_embeddings(*made.parts, lengths=made.lengths)

    def mass(beams: Tensor) -> float:
        return float(exact.marginals.gather(-1, beams).sum() / made.lengths.sum())

    best = mass(exact.marginals.topk(20, dim=-1).indices)
    found = mass(strongest_states(*made.parts, made.lengths, beam=20))
    plain = mass(made.unaries.topk(20, dim=-1).indices)
    assert best - found < 0.01 < 0.1 < best - plain


def test_beams_of_sequences_that_forbid_nearly_everything() -> None:
    """One allowed state a step: it is in the beam; a step that allows none makes no NaN."""
    unaries = torch.full((3, 5), -torch.inf)
    unaries[[0, 1, 2], [4, 1, 3]] = 0.0
    a, b = normal(2, 5, 2, seed=1).float()
    beams = strongest_states(a, b, unaries, torch.tensor(3), beam=1)
    assert beams.squeeze(-1).tolist() == [4, 1, 3]
    unaries[1] = -torch.inf
    assert strongest_states(a, b, unaries, torch.tensor(3), beam=2).shape == (3, 2)


def test_what_lies_beyond_the_lengths_chooses_no_beam() -> None:
    made = problem(60, 9, dim=4, batch=(2,))
    lengths = torch.tensor([9, 5])
    beams = strongest_states(*made.parts, lengths, beam=6)
    alone = strongest_states(made.a, made.b, made.unaries[1, :5], torch.tensor(5), beam=6)
    assert torch.equal(beams[1, :5], alone)
