"""The choice, and what is said about it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bochner
from bochner import UnknownNameError, recommend
from bochner.catalog import maps_of
from bochner.diagnostics import Interval, compare, measure
from bochner.diagnostics.compare import Candidate, Comparison, Data
from bochner.diagnostics.recommend import choose
from tests.maps import normal, seeded

NAN = torch.tensor([math.nan, 1.0])


def _anisotropic(heads: int = 2, length: int = 160, dim: int = 16) -> tuple[Tensor, ...]:
    """Queries and keys as in real heads: a few directions carry the energy, means far from zero."""
    spread = torch.logspace(0.4, -1.2, dim)
    q, k = (
        normal(heads, length, dim, seed=s, dtype=torch.float32) * spread
        + 1.5 * normal(heads, 1, dim, seed=s + 1, dtype=torch.float32)
        for s in (1, 3)
    )
    return q, k, normal(heads, length, 8, seed=5, dtype=torch.float32)


def test_data_aware_wins_on_anisotropic_data_with_means() -> None:
    q, k, v = _anisotropic()
    choice = recommend(q, k, v, 64, unbiased_only=True, generator=seeded(0))
    assert choice.choice == "data-aware"
    errors = {c.name: c.output_error for c in choice.candidates}
    assert errors["data-aware"] < 0.8 * errors["positive"]
    assert errors["data-aware"] < choice.trivial_output_error < errors["positive"]
    assert choice.reasons[0].startswith("data-aware has the lowest attention output error at 64")
    assert (
        f"against {choice.trivial_output_error:.3f} for averaging the values" in choice.reasons[0]
    )
    losers = next(r for r in choice.reasons if r.startswith("No better than averaging the values"))
    assert "positive" in losers
    assert choice.feature_map.batch_shape == (2,)
    assert choice.feature_map.num_features == 64
    assert choice.feature_map.estimate(q, k).shape == (2, 160, 160)


def test_says_so_when_nothing_beats_averaging() -> None:
    """Isotropic, large norms: every estimator is worse than the mean of the values."""
    q, k, v = (normal(2, 80, 32, seed=s, scale=1.5, dtype=torch.float32) for s in (1, 2, 3))
    choice = recommend(q, k, v, 32, generator=seeded(0))
    assert choice.choice is None
    assert choice.feature_map is None
    assert choice.reasons[0].startswith("Nothing ")
    assert f"averaging the values ({choice.trivial_output_error:.3f}) at 32" in choice.reasons[0]
    assert not any(c.report.beats_trivial for c in choice.candidates)
    assert str(choice).startswith("choice: None")


def test_the_table_is_sorted_and_complete() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    choice = recommend(q, k, v, 32, num_redraws=2, generator=seeded(0))
    errors = [c.output_error for c in choice.candidates]
    assert errors == sorted(errors)
    names = set(maps_of(bochner.Softmax()))
    tried = {c.name for c in choice.candidates}
    assert tried == names - {"local"}  # a series about one centre: these points are too far apart
    assert set(choice.skipped) == {"local, num_features=32"}
    assert "so far from their centre" in choice.skipped["local, num_features=32"]
    text = str(choice)
    for name in (*tried, "(averaging the values)"):
        assert name in text
    assert all(reason in text for reason in choice.reasons)


def test_outputs_that_are_not_finite_come_last() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    table = compare(Data.of(q, k, v), ["positive", "hyperbolic", "gerf"], [16], num_redraws=2)
    first, *others = table.candidates
    worst = replace(first, report=replace(first.report, output_error=Interval.over(NAN)))
    for order in ([worst, *others], [others[0], worst, others[1]]):
        ranked = replace(table, candidates=order)
        assert [c.name for c in ranked.at(16)][-1] == first.name
        choice = choose(ranked, Data.of(q, k, v), 16)
        assert choice.choice != first.name


def test_maps_that_cannot_be_tried_are_listed_with_the_reason() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    choice = recommend(q, k, v, 1, num_redraws=2, generator=seeded(0))
    assert "trigonometric, num_features=1" in choice.skipped
    assert "must be a multiple of 2" in choice.skipped["trigonometric, num_features=1"]
    assert "Antithetic" in choice.skipped["data-aware, num_features=1"]
    single = {n for n in maps_of(bochner.Softmax()) if bochner.spec(n).smallest_budget() == 1}
    assert {"positive", "gerf", "sderf", "aderf", "balanced-exponential", "calibrated"} < single
    assert {c.name for c in choice.candidates} == single - {"local"}  # as above
    with pytest.raises(ValueError, match="no feature map could be tried: .*multiple of 2"):
        recommend(q, k, v, 1, candidates=["trigonometric"])


def test_a_map_that_cannot_use_the_whole_budget_uses_what_it_can() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    choice = recommend(
        q, k, v, 15, candidates=["positive", "trigonometric", "gaussian-hybrid"], num_redraws=2
    )
    used = {c.name: (c.num_features, c.columns) for c in choice.candidates}
    assert used == {"positive": (15, 15), "trigonometric": (15, 14), "gaussian-hybrid": (15, 10)}
    assert "[10]" in str(choice)
    assert "[14]" in str(choice)


def test_candidates_may_name_a_projection() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    choice = recommend(q, k, v, 16, candidates=["positive@iid", "positive", "dark"], num_redraws=2)
    maps = {c.name: c.feature_map for c in choice.candidates}
    assert set(maps) == {"positive@iid", "positive", "dark"}
    assert repr(maps["positive@iid"].projection) == "IID()"
    assert repr(maps["positive"].projection) == "Orthogonal()"


def test_unknown_names_fail_before_any_work() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    with pytest.raises(
        UnknownNameError, match="unknown feature map 'postive'; did you mean 'positive'"
    ):
        recommend(q, k, v, 16, candidates=["positive", "postive"])
    with pytest.raises(UnknownNameError, match="unknown projection 'idd'; did you mean 'iid'"):
        recommend(q, k, v, 16, candidates=["positive@idd"])


def test_fits_on_even_positions_and_measures_on_odd_ones() -> None:
    """No map is measured on what it was fitted to."""
    q, k, v = _anisotropic(heads=1, length=60)
    implicit = recommend(q, k, v, 16, num_redraws=2, generator=seeded(0))
    odd = [x[..., 1::2, :] for x in (q, k, v)]
    explicit = recommend(
        *odd,
        16,
        calibration=(q[..., ::2, :], k[..., ::2, :]),
        num_redraws=2,
        generator=seeded(0),
    )
    errors = [[c.output_error for c in r.candidates] for r in (implicit, explicit)]
    assert errors[0] == pytest.approx(errors[1], rel=0, abs=0, nan_ok=True)
    other = recommend(*odd, 16, calibration=(q + 5.0, k), num_redraws=2, generator=seeded(0))
    assert other.candidates[0].output_error != explicit.candidates[0].output_error


def test_data_are_not_changed() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    kept = [x.clone() for x in (q, k, v)]
    inputs = [x.requires_grad_() for x in (q, k, v)]
    recommend(*inputs, 8, candidates=["data-aware"], num_redraws=2)
    for x, before in zip(inputs, kept, strict=True):
        assert torch.equal(x, before)
        assert x.grad is None


BIAS = (
    "calibrated is biased: fitted to calibration data; its error does not average out, and is not bounded"
    " on other data."
)


def test_a_biased_map_is_chosen_by_its_error_and_the_bias_is_named() -> None:
    q, k, v = _anisotropic()
    q, k = 0.4 * q, 0.4 * k
    names = ["data-aware", "calibrated", "positive"]
    choice = recommend(q, k, v, 16, candidates=names, num_redraws=2, generator=seeded(0))
    assert choice.choice == "calibrated"
    assert choice.reasons[0].startswith("calibrated has the lowest attention output error at 16")
    best = next(c for c in choice.candidates if c.name == "data-aware")
    assert (
        f"{BIAS} The best unbiased map is data-aware: {best.report.output_error}." in choice.reasons
    )
    assert "calibrated (biased)" in str(choice)
    assert "data-aware (biased)" not in str(choice)
    alone = recommend(q, k, v, 16, candidates=["calibrated"], generator=seeded(0))
    assert BIAS in alone.reasons


def test_unbiased_only_leaves_biased_maps_out_and_says_so() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    names = ["calibrated", "positive", "positive@hadamard", "data-aware"]
    options = {"candidates": names, "num_redraws": 2, "unbiased_only": True}
    choice = recommend(q, k, v, 16, **options, generator=seeded(0))
    assert {c.name for c in choice.candidates} == {"positive", "data-aware"}
    assert set(choice.skipped) == {
        "calibrated, num_features=16",
        "positive@hadamard, num_features=16",
    }
    assert "unbiased_only=True" in choice.skipped["calibrated, num_features=16"]
    assert not any("biased" in reason for reason in choice.reasons)
    with pytest.raises(ValueError, match="no feature map could be tried: .*biased"):
        recommend(q, k, v, 16, candidates=["calibrated"], unbiased_only=True)


def test_a_slight_bias_of_drawn_directions_is_called_that() -> None:
    q, k, v = _anisotropic(heads=1, length=60)
    names = ["positive@hadamard"]
    choice = recommend(q, k, v, 16, candidates=names, num_redraws=2, generator=seeded(0))
    assert (
        "positive@hadamard is slightly biased: a small part of its error does not average out."
        in choice.reasons
    )


# -- the verdict, on reports made up for the purpose -------------------------------------------------------
def _choice(*errors: tuple[float, float]) -> bochner.diagnostics.Recommendation:
    """`choose` on candidates a, b, ... with these (value, half width); averaging the values: 0.8."""
    q, k, v = _anisotropic(heads=1, length=12)
    phi = bochner.make("positive", dim=16, num_features=4, generator=seeded(0))
    report = measure(phi, q, k, v, num_redraws=2, generator=seeded(0))
    made = []
    for name, (value, half) in zip("abc", errors, strict=False):
        fields = dict(report.__dict__)
        fields |= {
            "output_error": Interval(value, value - half, value + half, 4),
            "trivial_output_error": 0.8,
        }
        made.append(Candidate(name, phi, type(report)(**fields), None, 4))
    return choose(Comparison(made, {}, 0.8), Data.of(q, k, v), 4)


def test_the_best_that_is_shown_to_beat_averaging_is_chosen() -> None:
    """b has the lower mean, but its interval reaches above 0.8; a is shown to be below."""
    verdict = _choice((0.70, 0.02), (0.65, 0.3))
    assert verdict.choice == "a"
    assert [c.name for c in verdict.candidates] == ["b", "a"]
    assert verdict.reasons[0].startswith("a is the best that is shown to beat averaging the values")
    assert (
        "b measures 0.650 [0.350, 0.950], an interval that reaches above it" in verdict.reasons[0]
    )


def test_an_interval_that_reaches_above_averaging_does_not_win() -> None:
    verdict = _choice((0.75, 0.1))
    assert verdict.choice is None
    assert verdict.reasons[0].startswith("Nothing is shown to beat averaging the values (0.800)")


def test_a_tie_is_called_a_tie() -> None:
    verdict = _choice((0.50, 0.05), (0.52, 0.05), (0.9, 0.01))
    assert verdict.choice == "a"
    assert (
        "b (0.520) is within the intervals: the order of the two is not certain." in verdict.reasons
    )
    assert "No better than averaging the values: c." in verdict.reasons
    clear = _choice((0.50, 0.01), (0.60, 0.01))
    assert not any("not certain" in r for r in clear.reasons)


def test_a_map_that_fails_is_last() -> None:
    verdict = _choice((math.inf, 0.0), (0.5, 0.1))
    assert verdict.choice == "b"
    assert [c.name for c in verdict.candidates] == ["b", "a"]


def test_a_comparison_without_that_budget() -> None:
    q, k, v = _anisotropic(heads=1, length=12)
    data = Data.of(q, k, v)
    table = compare(data, ["positive"], [4], num_redraws=2)
    with pytest.raises(ValueError, match="no row with num_features=8"):
        choose(table, data, 8)
