"""Draws from rows of weights."""

import pytest
import torch
from scipy.stats import chi2

from bochner.structured import draws
from bochner.structured.draws import draw, draw_by_key


def misfit(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Pearson's statistic over its critical value at a false-alarm rate of 1e-7; every cell needs mass."""
    expected = probs * counts.sum()
    statistic = ((counts - expected).square() / expected).sum()
    return float(statistic) / float(chi2.ppf(1 - 1e-7, len(probs) - 1))


def test_every_row_has_its_own_law(generator: torch.Generator) -> None:
    """20,000 draws a row: a law that is wrong by 3 % in total variation is seen."""
    logs = torch.randn(3, 7, generator=generator)
    group = torch.arange(3).repeat_interleave(20_000)
    found = draw(logs, group, generator=generator).view(3, -1)
    for row in range(3):
        counts = torch.bincount(found[row], minlength=7).double()
        assert misfit(counts, logs[row].double().softmax(0)) < 1
        assert misfit(counts, logs[(row + 1) % 3].double().softmax(0)) > 1  # the test can fail


@pytest.mark.parametrize("size", [1, 2, 3, 8, 1000])
def test_weight_zero_is_never_drawn(size: int, generator: torch.Generator) -> None:
    logs = torch.full((size, size), -torch.inf).fill_diagonal_(
        -5000.0
    )  # one state a row, at any scale
    group = torch.arange(size).repeat(20)
    assert torch.equal(draw(logs, group, generator=generator), group)


def test_the_last_place_before_one_is_not_beyond_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """u = 1 - 2^-53 is drawn: no state of weight 0 behind the last possible one."""
    almost = 1.0 - 2.0**-53
    monkeypatch.setattr(
        torch, "rand", lambda shape, **kw: torch.full(tuple(shape), almost, dtype=torch.float64)
    )
    logs = torch.tensor([[0.3, 0.1, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    found = draw(logs, torch.tensor([0, 1]), generator=torch.Generator())
    assert found.tolist() == [1, 0]


def test_keys_share_distributions_made_once(generator: torch.Generator) -> None:
    made = []

    def weights(keys: torch.Tensor) -> torch.Tensor:
        made.extend(keys.tolist())
        return torch.nn.functional.one_hot(keys % 5, 5).double().log()

    keys = torch.tensor([7, 3, 7, 12, 3])
    assert draw_by_key(keys, weights, 5, generator=generator).tolist() == [2, 3, 2, 2, 3]
    assert made == [3, 7, 12]


def test_distributions_are_made_in_pieces(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    monkeypatch.setattr(draws, "_ELEMENTS", 10)
    sizes = []

    def weights(keys: torch.Tensor) -> torch.Tensor:
        sizes.append(len(keys))
        return torch.nn.functional.one_hot(keys % 5, 5).double().log()

    keys = torch.arange(9).repeat(3)
    assert torch.equal(draw_by_key(keys, weights, 5, generator=generator), keys % 5)
    assert sizes == [2, 2, 2, 2, 1]
