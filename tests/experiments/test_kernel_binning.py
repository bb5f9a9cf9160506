"""The binning experiment, its quick form made smaller."""

from pathlib import Path

import numpy as np
import pytest

from bochner.kernels import Gaussian, kernel_from_name
from bochner.reproduce.claims import read_claims
from experiments.kernel_machines import binning, binning_report

CLAIMS = Path(binning.__file__).parent / "claims" / "binning.toml"


def test_functions_have_the_covariance_that_they_are_drawn_with(monkeypatch):
    monkeypatch.setattr(binning, "TRUTH", 256)
    X = np.array([[0.1, 0.2], [0.15, 0.25]])
    values = np.stack([binning.function("gaussian", 2, 0.1, seed)(X) for seed in range(3000)])
    expected = float(Gaussian()(*(kernel_points(x) for x in X / 0.1)))
    assert np.mean(values[:, 0] * values[:, 1]) == pytest.approx(
        expected, abs=0.1
    )  # 4.5 deviations
    assert np.mean(values[:, 0] ** 2) == pytest.approx(1.0, abs=0.13)


def kernel_points(row):
    import torch

    return torch.from_numpy(row[None])


def test_a_cell_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(binning, "TRUTH", 512)
    names = ["smooth binning, R = 64", "random features, m = 512"]
    monkeypatch.setattr(binning, "MODELS", {name: binning.MODELS[name] for name in names})
    (cell,) = binning.cells(True)
    rows = binning.run(cell, tmp_path)
    again = binning.run(cell, tmp_path)
    for first, second in zip(rows, again, strict=True):
        assert {k: v for k, v in first.items() if k != "seconds"} == {
            k: v for k, v in second.items() if k != "seconds"
        }
    some = binning_report.models(rows)
    assert [row["model"] for row in some] == names
    assert 0 < some[0]["missed"] < some[1]["missed"] < 1
    ratio = binning_report.ratio(some, names[0], names[1], cell["problem"])
    assert ratio.value == pytest.approx(some[0]["missed"] / some[1]["missed"])
    found = binning_report.measured(rows)
    assert set(found) == {c.id for c in read_claims(CLAIMS, "kernel-binning").claims}
    assert found["variance"] == pytest.approx(1.0, abs=0.15)
    text = binning_report.summary(rows)
    assert f"{names[0]} misses least" in text
    binning_report.draw(rows, tmp_path)
    assert (tmp_path / "binning.png").exists()


def test_cells_of_the_full_form():
    cells = binning.cells(False)
    assert len(cells) == 3 * len(binning.PROBLEMS)
    for kernel, _, lengthscale in binning.PROBLEMS.values():
        kernel_from_name(kernel)
        assert binning.gamma(kernel, lengthscale) > 0
    assert binning.gamma("gaussian", 0.5) == 2.0
    assert binning.gamma("laplacian", 0.5) == 2.0
