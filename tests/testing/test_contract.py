"""Every registered map, with every projection and kernel, keeps the public contract.

A new map is covered by being registered. Each case makes at most COMPARISONS_PER_CASE statistical
comparisons; all of them, with those of the other tests, share alpha = 1e-6 (see `significance`).
"""

import pytest
import torch

from bochner.catalog import make, spec, specs
from bochner.kernels import Gaussian, Kernel, Softmax
from bochner.projections import PROJECTIONS, projection_from_name
from bochner.testing import Plan, check_feature_map
from bochner.testing.declarations import check_declarations
from bochner.testing.plan import points
from bochner.testing.significance import COMPARISONS
from bochner.testing.subject import Subject, ratios
from tests.naive import RESERVED

COMPARISONS_PER_CASE = 30
SMALLEST_BIAS = 0.05
"""Pinned: a relative bias of 5 % is rejected with probability 99 % at every point of every case."""
SMALLEST_VARIANCE_ERROR = 0.30
"""Pinned: so is a variance formula that is wrong by 30 %."""

DRAWN = [
    (n, p, k)
    for n, s in specs().items()
    if s.random
    for p in (PROJECTIONS if s.projected else (None,))
    for k in s.kernels
]
SCALED = [(n, p) for n, p, k in DRAWN if k == Gaussian() and Softmax() in spec(n).kernels]
"""Maps of both exponential kernels: with equal draws they err by equal factors, and that is tested."""
CASES = [(n, p, k) for n, p, k in DRAWN if (n, p) not in SCALED or k != Gaussian()]
FITS = [(n, k) for n, s in specs().items() if not s.random for k in s.kernels]


@pytest.mark.parametrize(("name", "projection", "kernel"), CASES)
def test_contract(name: str, projection: str | None, kernel: Kernel) -> None:
    report = check_feature_map(name, projection=projection, kernel=kernel)
    print(report)
    unbiased = projection is None or PROJECTIONS[projection].unbiased
    allowed = 0.0 if unbiased else max(c.tolerance for c in report.of("unbiased"))
    assert report.smallest_bias <= allowed + SMALLEST_BIAS
    assert len(report.of("unbiased")) == 18
    if report.of("relative_variance"):
        assert report.smallest_variance_error <= SMALLEST_VARIANCE_ERROR
    assert len(report.comparisons) <= COMPARISONS_PER_CASE


@pytest.mark.parametrize(("name", "projection"), SCALED)
def test_the_gaussian_kernel_errs_as_softmax_does(name: str, projection: str | None) -> None:
    """Estimate over exact, its declared variance and covariance: equal draw by draw, so that whatever
    `test_contract` says of softmax holds for both. All that is not statistics is checked with both."""
    drawn = (
        spec(name).default_projection if projection is None else projection_from_name(projection)
    )
    subjects = [
        Subject(spec(name), drawn, kernel, Plan().seed) for kernel in (Softmax(), Gaussian())
    ]
    with torch.no_grad():
        check_declarations(subjects[1])
        for dim in Plan().dims:
            for softmax, gaussian in zip(*(_errors(s, dim) for s in subjects), strict=True):
                assert (softmax is None) == (gaussian is None)
                if softmax is not None:
                    torch.testing.assert_close(gaussian, softmax, rtol=1e-9, atol=1e-12)


def _errors(subject: Subject, dim: int) -> list[torch.Tensor | None]:
    pairs, plan = points(dim, Plan().seed), Plan.of(subject.projection, subject.spec.columns)
    many = subject.build(dim, plan.num_features, batch_shape=(20,))
    found = [ratios(many, pairs.x, pairs.y), torch.tensor(float(many.unbiased))]
    many.resample_(subject.generator(1))
    one = subject.build(dim, plan.num_features)
    declared = one.relative_variance(pairs.x, pairs.y), one.relative_covariance(pairs.x, pairs.y)
    return [*found, ratios(many, pairs.x, pairs.y), *declared]


@pytest.mark.parametrize(("name", "kernel"), FITS)
def test_contract_of_maps_without_randomness(name: str, kernel: Kernel) -> None:
    report = check_feature_map(name, kernel=kernel)
    print(report)
    assert "fit" in report.checked
    assert not report.comparisons
    assert {f.dim for f in report.fits} == set(Plan().dims)
    assert all(0 < f.error < 0.5 * f.constant for f in report.fits)
    assert "biased" in str(report)


@pytest.mark.parametrize("name", [n for n, s in specs().items() if not s.takes_projection])
def test_a_projection_for_a_map_that_draws_nothing_is_refused(name: str) -> None:
    for use in (
        lambda: check_feature_map(name, projection="iid"),
        lambda: make(name, dim=3, num_features=4, projection="orthogonal"),
    ):
        with pytest.raises(ValueError, match="draws no random directions"):
            use()


def test_the_suite_makes_fewer_comparisons_than_it_pays_for() -> None:
    assert len(CASES) * COMPARISONS_PER_CASE + RESERVED <= COMPARISONS


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric", "gerf"])
@pytest.mark.parametrize("projection", ["iid", "orthogonal", "simplex", "antithetic-orthogonal"])
def test_the_closed_form_variance_is_checked_wherever_the_docs_promise_one(
    name: str, projection: str
) -> None:
    report = check_feature_map(
        name, projection=projection, plan=Plan(dims=(3,), replicates=8_000, num_features=16)
    )
    assert report.of("relative_variance")
    assert bool(report.of("relative_covariance")) == (projection == "iid")


def test_a_report_says_what_it_could_have_seen() -> None:
    report = check_feature_map("positive", projection="iid", plan=Plan(dims=(2,), replicates=8_000))
    text = str(report)
    assert "would have been seen" in text
    assert "the all-ones direction" in text
    assert all(f"z={c.z:+.2f}" in text for c in report.comparisons)
    assert report.worst_z == max(abs(c.z) for c in report.comparisons)
