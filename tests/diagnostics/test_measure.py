"""Measured errors against loops over pairs; always beside the trivial baseline."""

import copy
import math
from importlib import import_module

import pytest
import torch

from bochner import Constant, linear_attention, make, measure
from tests.diagnostics.naive import errors
from tests.maps import NAMES, RANDOM, fitted, normal, on_sphere, seeded

METRICS = ("kernel", "output", "variation", "negative_entries", "nonpositive_denominators")


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definitions(name: str, causal: bool, kernel: str) -> None:
    """Every metric of every redraw of every head, 1e-9."""
    phi = fitted(name, dim=3, num_features=4, kernel=kernel)
    q, k = (normal(2, 7, 3, seed=s, scale=0.6) for s in (1, 2))
    v = normal(2, 7, 2, seed=3)
    report = measure(phi, q, k, v, causal=causal, num_redraws=3, generator=seeded(5))
    generator, twin = seeded(5), copy.deepcopy(phi)
    for redraw in range(3 if name in RANDOM else 1):
        twin.resample_(generator)
        for head in range(2):
            truth = errors(twin, q[head], k[head], v[head], causal=causal)
            for metric in METRICS:
                value = float(report.per_head[metric][redraw, head])
                assert value == pytest.approx(truth[metric], rel=1e-9, abs=1e-12), metric
    truths = [errors(phi, *(x[head] for x in (q, k, v)), causal=causal) for head in range(2)]
    for ours, theirs in (
        (report.trivial_output_error, "trivial_output"),
        (report.trivial_row_variation, "trivial_variation"),
    ):
        assert ours == pytest.approx(sum(t[theirs] for t in truths) / 2, rel=1e-9)


def test_summaries_are_medians_over_heads_then_means_over_redraws() -> None:
    phi = fitted("positive", dim=3, num_features=8)
    q, k, v = (normal(2, 2, 9, 3, seed=s) for s in (1, 2, 3))
    report = measure(phi, q, k, v, num_redraws=5, generator=seeded(1))
    raw = report.per_head["output"]
    assert raw.shape == (5, 2, 2)
    ordered = raw.flatten(1).sort(dim=1).values
    medians = 0.5 * (ordered[:, 1] + ordered[:, 2])
    assert report.output_error.value == pytest.approx(float(medians.mean()))
    assert report.output_error.low < report.output_error.value < report.output_error.high
    assert report.output_error.redraws == 5


def test_output_error_is_that_of_linear_attention() -> None:
    """The diagnostic and the product agree: same redraw, same error."""
    phi = fitted("positive", dim=4, num_features=16)
    q, k, v = (normal(40, 4, seed=s) for s in (1, 2, 3))
    for causal in (False, True):
        report = measure(phi, q, k, v, causal=causal, num_redraws=1, generator=seeded(8))
        out = linear_attention(copy.deepcopy(phi).resample_(seeded(8)), q, k, v, causal=causal)
        logits = q @ k.mT
        if causal:
            logits = logits.masked_fill(~torch.ones(40, 40, dtype=torch.bool).tril(), -torch.inf)
        exact = torch.softmax(logits, dim=-1) @ v
        error = float((out - exact).norm() / exact.norm())
        assert report.output_error.value == pytest.approx(error, rel=1e-9)


def test_averaging_the_values_is_the_baseline() -> None:
    """A map of one feature has constant weights up to the keys' norms: equal norms give the baseline."""
    phi = make("trigonometric", dim=3, num_features=2, kernel="gaussian", generator=seeded(0))
    q, k, v = torch.zeros(5, 3), torch.zeros(9, 3), normal(9, 2, seed=1).float()
    report = measure(phi, q, k, v, generator=seeded(0))
    assert report.trivial_output_error == pytest.approx(0.0, abs=1e-6)  # exact attention is uniform
    assert report.trivial_row_variation == pytest.approx(0.0, abs=1e-6)
    one_hot = torch.eye(8)
    sharp = measure(
        make("positive", dim=8, num_features=4, generator=seeded(0)),
        30 * one_hot,
        30 * one_hot,
        one_hot,
        generator=seeded(0),
    )
    assert sharp.trivial_output_error == pytest.approx(math.sqrt(7 / 8), rel=1e-6)
    assert sharp.trivial_row_variation == pytest.approx(7 / 8, rel=1e-6)


@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("name", ["calibrated", "constant"])
def test_a_map_that_draws_nothing_is_measured_once_and_has_no_interval(name: str) -> None:
    phi = Constant(3) if name == "constant" else fitted(name, dim=3, num_features=8)
    q, k, v = (normal(2, 20, 3, seed=s, scale=0.6) for s in (1, 2, 3))
    generator = seeded(5)
    before = generator.get_state()
    report = measure(phi, q, k, v, num_redraws=6, generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert all(values.shape == (1, 2) for values in report.per_head.values())
    for interval in (report.output_error, report.kernel_error, report.negative_entries):
        assert interval.low == interval.value == interval.high
        assert interval.redraws == 0
    out = linear_attention(phi, q, k, v)
    exact = torch.softmax(q @ k.mT, dim=-1) @ v
    errors = (out - exact).norm(dim=(-1, -2)) / exact.norm(dim=(-1, -2))
    torch.testing.assert_close(report.per_head["output"][0], errors)
    assert "num_features" in str(report)
    assert "nothing is drawn, median over heads" in str(report)
    assert f"{report.output_error.value:.3f} (nothing is drawn)" in str(report)


def test_what_draws_in_part_is_redrawn() -> None:
    """A fitted part without draws beside one with draws: redrawn as a whole."""
    phi = fitted("calibrated", dim=3, num_features=8) + fitted("positive", dim=3, num_features=8)
    q, k = (normal(20, 3, seed=s, scale=0.6) for s in (1, 2))
    report = measure(phi, q, k, num_redraws=3, generator=seeded(5))
    assert report.kernel_error.redraws == 3
    assert report.kernel_error.low < report.kernel_error.high


def test_beats_trivial_needs_the_whole_interval() -> None:
    phi = fitted("positive", dim=3, num_features=1024)
    q, k, v = (normal(30, 3, seed=s) for s in (1, 2, 3))
    good = measure(phi, q, k, v, generator=seeded(1))
    assert good.output_error.high < good.trivial_output_error
    assert good.beats_trivial is True
    bad = measure(fitted("positive", dim=3, num_features=2), 4 * q, 4 * k, v, generator=seeded(1))
    assert bad.output_error.high >= bad.trivial_output_error
    assert bad.beats_trivial is False
    assert measure(phi, q, k, generator=seeded(1)).beats_trivial is None


def test_without_values() -> None:
    phi = fitted("trigonometric", dim=3, num_features=8)
    q, k, v = (normal(20, 3, seed=s) for s in (1, 2, 3))
    report = measure(phi, q, k, generator=seeded(1))
    whole = measure(phi, q, k, v, generator=seeded(1))
    assert report.output_error is None
    assert report.trivial_output_error is None
    assert "output" not in report.per_head
    assert report.kernel_error == whole.kernel_error
    assert report.row_variation == whole.row_variation
    assert "averaging the values" not in str(report)
    assert "averaging the values" in str(whole)


def test_negative_estimates_are_counted_for_signed_maps_only() -> None:
    q, k = (on_sphere(30, 4, norm=2.5, seed=s) for s in (1, 2))
    signed = measure(fitted("trigonometric", dim=4, num_features=8), q, k, generator=seeded(1))
    assert signed.negative_entries.value > 0.1
    assert signed.nonpositive_denominators.value > 0
    for name in ("positive", "hyperbolic"):
        report = measure(fitted(name, dim=4, num_features=8), q, k, generator=seeded(1))
        assert report.negative_entries.value == 0
        assert report.nonpositive_denominators.value == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_not_changed(name: str) -> None:
    phi = fitted(name, dim=3, num_features=8, dtype=torch.float32)
    before = {key: x.clone() for key, x in phi.state_dict().items()}
    q, k, v = (normal(20, 3, seed=s).requires_grad_() for s in (1, 2, 3))
    report = measure(phi, q, k, v)
    for key, x in phi.state_dict().items():
        assert torch.equal(x, before[key])
    assert not any(x.requires_grad for x in report.per_head.values())
    assert q.grad is None
    assert q.requires_grad


def test_the_generator_decides() -> None:
    phi = fitted("positive", dim=3, num_features=8)
    q, k = (normal(20, 3, seed=s) for s in (1, 2))
    first, again, other = (measure(phi, q, k, generator=seeded(s)) for s in (1, 1, 2))
    assert first.kernel_error == again.kernel_error
    assert first.kernel_error != other.kernel_error
    state = torch.get_rng_state()
    measure(phi, q, k)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone


def test_one_map_per_head_and_cross_attention() -> None:
    phi = fitted("data-aware", dim=3, num_features=8, batch_shape=(2,))
    q, k, v = normal(4, 2, 9, 3, seed=1), normal(4, 2, 15, 3, seed=2), normal(4, 2, 15, 5, seed=3)
    report = measure(phi, q, k, v, num_redraws=2, generator=seeded(1))
    assert report.per_head["output"].shape == (2, 4, 2)
    # one sequence under many maps: the heads are the map's
    assert measure(phi, q[0, 0], k[0, 0], num_redraws=2).per_head["kernel"].shape == (2, 2)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    phi = fitted("trigonometric", dim=3, num_features=8)
    q, k, v = (normal(2, 33, 3, seed=s) for s in (1, 2, 3))
    for causal in (False, True):
        whole = measure(phi, q, k, v, causal=causal, generator=seeded(1)).per_head
        with monkeypatch.context() as patched:
            patched.setattr("bochner.diagnostics.exact._BLOCK_ELEMENTS", 200)
            patched.setattr(import_module("bochner.diagnostics.measure"), "_KEPT_ELEMENTS", 0)
            blocks = measure(phi, q, k, v, causal=causal, generator=seeded(1)).per_head
        for metric, value in whole.items():
            torch.testing.assert_close(blocks[metric], value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "data-aware"])
def test_single_precision_is_enough(name: str, dtype: torch.dtype) -> None:
    """float32 inside; against float64 on the same rounded inputs."""
    phi = fitted(name, dim=3, num_features=16, dtype=torch.float32)
    q, k, v = (normal(30, 3, seed=s, scale=0.7).to(dtype) for s in (1, 2, 3))
    single = measure(phi, q, k, v, generator=seeded(1)).per_head
    double = measure(phi, q.double(), k.double(), v.double(), generator=seeded(1)).per_head
    for metric, value in single.items():
        torch.testing.assert_close(value, double[metric], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 30.0, 80.0])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_norms(name: str, norm: float) -> None:
    """No NaN; kernel errors of signed maps may be infinite, positive outputs stay among the values."""
    phi = fitted(name, dim=4, num_features=8, dtype=torch.float32)
    q, k = (on_sphere(30, 4, norm=norm, seed=s).float() for s in (1, 2))
    v = normal(30, 2, seed=3, dtype=torch.float32)
    report = measure(phi, q, k, v, num_redraws=2, generator=seeded(1))
    for metric, value in report.per_head.items():
        assert not value.isnan().any(), metric
    if phi.positive:
        assert report.output_error.value < 20
        assert report.row_variation.value <= 1 + 1e-5
    if norm <= 1e-4:
        assert report.output_error.value < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_single_points(shape: tuple[int, int]) -> None:
    phi = fitted("positive", dim=1, num_features=3)
    q, k, v = normal(shape[0], 1, seed=1), normal(shape[1], 1, seed=2), normal(shape[1], 2, seed=3)
    report = measure(phi, q, k, v, generator=seeded(1))
    if shape[1] == 1:
        assert report.output_error.value == pytest.approx(0.0, abs=1e-12)
        assert report.trivial_output_error == pytest.approx(0.0, abs=1e-12)


def test_the_report_reads_well() -> None:
    phi = fitted("positive", dim=3, num_features=8)
    q, k, v = (normal(20, 3, seed=s) for s in (1, 2, 3))
    text = str(measure(phi, q, k, v, num_redraws=4, generator=seeded(1)))
    for part in ("num_features 8, 4 redraws (95% intervals)", "averaging the values", "uniform:"):
        assert part in text
