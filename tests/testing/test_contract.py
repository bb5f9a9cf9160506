"""Every registered map, with every projection and kernel, keeps the public contract.

A new map is covered by being registered. Each case makes at most COMPARISONS_PER_CASE statistical
comparisons; all of them, with those of the other tests, share alpha = 1e-6 (see `significance`).
"""

import pytest

from bochner.catalog import make, specs
from bochner.kernels import Kernel
from bochner.projections import PROJECTIONS
from bochner.testing import Plan, check_feature_map
from bochner.testing.significance import COMPARISONS
from tests.naive import RESERVED

COMPARISONS_PER_CASE = 30
SMALLEST_BIAS = 0.05
"""Pinned: a relative bias of 5 % is rejected with probability 99 % at every point of every case."""
SMALLEST_VARIANCE_ERROR = 0.30
"""Pinned: so is a variance formula that is wrong by 30 %."""

CASES = [
    (n, p, k)
    for n, s in specs().items()
    if s.random
    for p in (PROJECTIONS if s.projected else (None,))
    for k in s.kernels
]
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
