"""Prices of 53,940 diamonds: the regression set of ggplot2, from the package plotnine.

The wheel is fetched through pip without being installed; only the table inside is read.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from bochner.data.fetching import cached_file, fetched
from bochner.data.tabular import Regression, encoded

PLOTNINE_PACKAGE = "plotnine==0.15.9"
PLOTNINE_WHEEL = "plotnine-0.15.9-py3-none-any.whl"
PLOTNINE_SHA256 = "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd"
DIAMONDS_MEMBER = "plotnine/data/diamonds.csv"
COLUMNS = ("carat", "depth", "table", "x", "y", "z", "cut", "color", "clarity")


def diamonds() -> Regression:
    """Price in US dollars from weight, measures and grades, 53,940 rows.

    26 columns: carat, depth, table, x, y, z; cut, color and clarity as 0/1 columns. The published order
    is nearly that of the price: shuffle before splitting.

    Cost:       half a second; the first call fetches 2 MB through pip into `cache_directory()`.
    Raises:     MissingDataError if the package is neither in the cache nor to be had through pip, or
                is not the published one.
    Reference:  Wickham, ggplot2: Elegant Graphics for Data Analysis, 2016.
    """
    with (
        zipfile.ZipFile(_plotnine_wheel()) as archive,
        archive.open(DIAMONDS_MEMBER) as member,
        io.TextIOWrapper(member, encoding="utf-8", newline="") as text,
    ):
        return diamonds_in(csv.DictReader(text))


def diamonds_in(rows: Iterable[Mapping[str, str]]) -> Regression:
    """The published rows as numbers.

    Example:
        >>> row = dict(carat="0.23", cut="Ideal", color="E", clarity="SI2", depth="61.5", table="55",
        ...            price="326", x="3.95", y="3.98", z="2.43")
        >>> data = diamonds_in([row, {**row, "cut": "Premium"}])
        >>> data.features.tolist()[1], data.targets.tolist()
        ([0.23, 61.5, 55.0, 3.95, 3.98, 2.43, 1.0, 1.0, 1.0], [326.0, 326.0])
    """
    table = list(rows)
    blocks = [encoded(name, [row[name] for row in table]) for name in COLUMNS]
    return Regression(
        torch.from_numpy(np.concatenate([values for values, _ in blocks], axis=1)),
        torch.tensor([float(row["price"]) for row in table], dtype=torch.float64),
        tuple(name for _, names in blocks for name in names),
        "price",
        f"diamonds of ggplot2 (PyPI {PLOTNINE_PACKAGE})",
    )


def _plotnine_wheel() -> Path:
    """The wheel in the cache, verified; fetched by pip first if it is not there."""
    cached = cached_file(PLOTNINE_WHEEL, PLOTNINE_SHA256)
    if cached is not None:
        return cached
    download = ["pip", "download", "--no-deps", "--only-binary=:all:", PLOTNINE_PACKAGE]
    return fetched(
        PLOTNINE_WHEEL,
        PLOTNINE_SHA256,
        [sys.executable, "-m", *download, "--disable-pip-version-check"],
        tool="pip",
        by_hand=" ".join(download),
    )
