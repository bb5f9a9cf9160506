"""The pointwise experiment: sizes, its fourth moments, one small cell, and what is made of rows."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import checked_cells
from bochner.worst_case import angle_sweep
from experiments.hybrid_random_features import pointwise, pointwise_report, surfaces
from experiments.hybrid_random_features.sphere_maps import ACCOUNTINGS, DIM, MAPS, Weight
from experiments.hybrid_random_features.tails import (
    error_moments,
    excess,
    raw_moments,
    weight_moments,
)

CLAIMS = Path(pointwise.__file__).parent / "claims"
GENERATOR = torch.Generator()


# -- sizes --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("label", MAPS)
def test_sizes(label: str) -> None:
    made = MAPS[label]
    n = made.weight.n if made.weight else 1
    assert made.size("projections") == 128 // n
    for accounting, length in (("length64", 64), ("length256", 256)):
        phi = made.made(accounting, (1.0,), GENERATOR)
        assert phi.num_features == made.size(accounting) * made.columns
        assert abs(phi.num_features - length) <= made.columns / 2
        assert abs(phi.num_features - length) <= 8
        assert phi.unbiased


def test_hybrids_draw_what_they_say() -> None:
    phi = MAPS["angular n=8"].made("projections", (1.0,), GENERATOR)
    assert (phi.num_projections, phi.num_features) == (2 * 16 + 8, 4 * 16 * 9)


def test_cells_are_all_pairs_and_different() -> None:
    for quick in (True, False):
        cells = checked_cells(pointwise.EXPERIMENT, quick)
        sampled = [cell for cell in cells if cell["accounting"] != "fitted"]
        assert len(sampled) == len(ACCOUNTINGS) * len(MAPS)
        assert len({cell["seed"] for cell in sampled}) == len(sampled)
        assert all(cell["replicates"] % pointwise.CHUNK == 0 for cell in sampled)


# -- fourth moments -----------------------------------------------------------------------------------
IID_MAPS = [
    label
    for label, made in MAPS.items()
    if "iid" in made.first.projection.__repr__().lower() and made.weight is None
]


@pytest.mark.parametrize("label", IID_MAPS)
def test_second_moments_are_the_librarys(label: str) -> None:
    made = MAPS[label]
    for radius, angle in product((0.5, 1.5), (0.3, 1.5, 2.8)):
        phi = made.made("length64", (radius,), GENERATOR)
        variance = (
            float(angle_sweep(phi, radius, torch.tensor([angle], dtype=torch.float64))[0]) ** 2
        )
        second, _ = error_moments(made.first, made.size("length64"), radius, angle)
        assert second == pytest.approx(variance, rel=1e-9)


def test_second_moments_of_a_hybrid_are_the_librarys() -> None:
    made, angle = MAPS["angular n=8, iid bases"], 0.75
    phi = made.made("length64", (1.0,), GENERATOR)
    first, second = (error_moments(b, 2, 1.0, angle)[0] for b in (made.first, made.second))
    a = weight_moments(made.weight, 1.0, angle)
    variance = float(angle_sweep(phi, 1.0, torch.tensor([angle], dtype=torch.float64))[0]) ** 2
    assert a[2, 0] * first + a[0, 2] * second == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize(
    "label",
    ["positive iid", "hyperbolic iid", "trigonometric iid", "FAVOR++ iid", "FAVOR++ ± orthogonal"],
)
def test_raw_moments_by_quadrature(label: str) -> None:
    """E Z^k = (integral across s)^(d-1) times the integral along s, one dimension each."""
    base, radius, angle = MAPS[label].first, 0.6, 1.0
    oscillating, even = base.nonlinearity.oscillating, base.nonlinearity.even or base.paired
    length = radius * math.sqrt(2 + (-2 if oscillating else 2) * math.cos(angle))
    phi = -(length**2) if oscillating else length**2
    variance = 1.0
    if base.fitted:
        phi_map = MAPS[label].made("length64", (radius,), GENERATOR)
        variance = float(phi_map.proposal.variances[0])

    def density(w: float) -> float:
        return math.exp(-w * w / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    def ratio(w: float) -> float:
        return math.sqrt(variance) * math.exp(0.5 * w * w * (1 / variance - 1))

    def along(w: float) -> float:
        u = w * length
        if oscillating:
            return math.cos(u)
        return math.cosh(u) if even else math.exp(u)

    for k, found in enumerate(raw_moments(base, radius, angle), start=1):
        across = quad(lambda w, k=k: density(w) * ratio(w) ** k, -12, 12)[0]
        line = quad(lambda w, k=k: density(w) * (ratio(w) * along(w)) ** k, -14, 14, limit=200)[0]
        want = across ** (DIM - 1) * line * math.exp(-k * phi / 2)
        assert found == pytest.approx(want, rel=1e-6)


def test_moments_of_sign_weights_by_enumeration() -> None:
    angle = 0.9
    lam = angle / math.pi
    for weight, chance in (
        (Weight("angular", 3), lam),
        (Weight("majority", 3), 3 * lam**2 * (1 - lam) + lam**3),
    ):
        for (i, j), found in weight_moments(weight, 1.0, angle).items():
            want = 0.0
            for bits in product((0, 1), repeat=3):
                p = math.prod(chance if b else 1 - chance for b in bits)
                a = sum(bits) / 3
                want += p * a**i * (1 - a) ** j
            assert found == pytest.approx(want, rel=1e-12)


def test_moments_of_a_gaussian_weight_by_quadrature() -> None:
    angle, radius = 1.1, 0.7
    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    mass = mass / mass.sum()
    length = radius * math.sqrt(2 - 2 * math.cos(angle))
    a = 0.5 * (np.cos(length * nodes)[:, None] + np.cos(length * nodes)[None, :])
    p = mass[:, None] * mass[None, :]
    for (i, j), found in weight_moments(Weight("gaussian", 2), radius, angle).items():
        assert found == pytest.approx(float((p * a**i * (1 - a) ** j).sum()), rel=1e-9)


@pytest.mark.parametrize("claim", pointwise.MEASURED_POINTS)
def test_claimed_points_are_resolved_and_theory_says_what_is_claimed(claim: str) -> None:
    accounting, label, radius, angle = pointwise.MEASURED_POINTS[claim]
    made, theta = MAPS[label], torch.tensor([math.pi * angle], dtype=torch.float64)
    predicted = float(angle_sweep(made.made(accounting, (radius,), GENERATOR), radius, theta)[0])
    tail = excess(made, made.size(accounting), radius, float(theta[0]))
    kurtosis = 3 + max(tail, 0.0) / predicted**4
    assert 0.5 * math.sqrt((kurtosis - 1) / pointwise.REPLICATES) <= pointwise.RESOLVED
    stated = {c.id: c.value for c in read_claims(CLAIMS / "pointwise.toml", "hrf-pointwise").claims}
    assert predicted == pytest.approx(stated[claim], abs=1.1e-3)


def test_excess_vanishes_for_many_projections() -> None:
    made = MAPS["trigonometric iid"]
    few, many = (excess(made, m, 1.0, 1.0) * m**2 for m in (10, 1000))
    assert many == pytest.approx(few / 100, rel=1e-6)


# -- one cell -----------------------------------------------------------------------------------------
def test_points_have_the_norms_and_angles() -> None:
    x, y = pointwise.points()
    radii = torch.tensor(pointwise.RADII, dtype=torch.float64)
    assert torch.allclose(y.norm(dim=-1), radii[:, None].expand(-1, 33))
    cosines = (x * y).sum(-1) / radii[:, None].square()
    angles = math.pi * torch.tensor(pointwise.ANGLES, dtype=torch.float64)
    assert torch.allclose(cosines, torch.cos(angles).expand(5, -1))
    assert len(pointwise.ANGLES) == 33
    assert {0.0, 1.0, *pointwise.SHOWN} <= set(pointwise.ANGLES)


@pytest.mark.parametrize(
    "label", ["trigonometric iid", "angular n=8, iid bases", "FAVOR++ orthogonal"]
)
def test_a_cell(label: str, tmp_path: Path) -> None:
    cell = {"accounting": "length64", "map": label, "replicates": 200, "seed": 7}
    rows = pointwise.run(cell, tmp_path)
    assert rows == pointwise.run(cell, tmp_path)
    swept = [row for row in rows if "angle" in row]
    assert len(swept) == 33 * 5
    assert len(rows) - len(swept) == 5
    resolved = [row for row in swept if row["resolved"]]
    # Chebyshev would allow more at 200 replicates; |z| <= 6.47 is the suite's critical value
    for row in resolved:
        assert abs(row["z"]) < 6.47
        assert abs(row["rmse"] - row["predicted"]) < 6.47 * row["rmse_stderr"]
    if label == "trigonometric iid":
        assert len(resolved) > 100
        exact = [row for row in swept if row["angle"] == 0.0]
        assert all(row["z"] is None and row["rmse"] < 1e-5 for row in exact)
    for row in rows:
        if "worst" in row:
            mine = [r["predicted"] for r in swept if r["radius"] == row["radius"]]
            assert max(mine) <= row["worst"] * (1 + 1e-4)


def test_on_a_sphere_fitted_maps_coincide(tmp_path: Path) -> None:
    found = {}
    for name in pointwise.FITTED:
        rows = pointwise.run({"accounting": "fitted", "map": name}, tmp_path)
        assert len(rows) == 5 * (len(pointwise.SHOWN) + 1)
        found[name] = [row.get("predicted", row.get("worst")) for row in rows]
    for name in ("sderf", "aderf"):
        assert found[name] == pytest.approx(found["gerf"], rel=1e-4)
    assert found["balanced-exponential"] == pytest.approx(found["positive"], rel=1e-4)
    # two columns a projection, and a complex matrix that gains nothing
    longer = [v * math.sqrt(2) for v in found["positive"]]
    assert found["complex-exponential"] == pytest.approx(longer, rel=1e-3)
    made = MAPS["FAVOR++ iid"].made("length64", (2.0,), GENERATOR)
    angles = math.pi * torch.tensor(pointwise.SHOWN, dtype=torch.float64)
    same = angle_sweep(made, 2.0, angles).tolist()
    assert found["gerf"][-6:-1] == pytest.approx(same, rel=1e-4)


# -- what is made of rows -------------------------------------------------------------------------------
def invented_rows() -> list[dict]:
    rows = []
    for i, (accounting, label) in enumerate(product(ACCOUNTINGS, MAPS)):
        sizes = {"accounting": accounting, "map": label, "m": 8, "projections": 9, "features": 64}
        for radius in pointwise.RADII:
            for angle in pointwise.ANGLES:
                exact = angle == 0.0
                error = 1e-9 if exact else 0.1 + 0.001 * i
                found = {"mean": 1.0, "std": error, "rmse": error, "predicted": error}
                tests = {"z": None if exact else 0.5, "rmse_stderr": None if exact else 0.01}
                shown = {"resolved": not exact and i % 2 == 0, "negative": 0.0}
                rows.append({**sizes, "radius": radius, "angle": angle, **found, **tests, **shown})
            rows.append({**sizes, "radius": radius, "worst": 0.2 + 0.001 * i, "worst_angle": 0.5})
    fitted = {"accounting": "fitted", "map": "gerf", "radius": 1.0, "features": 64}
    rows += [{**fitted, "angle": angle, "predicted": 0.3} for angle in pointwise.SHOWN]
    return [*rows, {**fitted, "worst": 0.4}]


def test_every_claim_is_measured_and_the_report_is_made_of_rows(tmp_path: Path) -> None:
    rows = invented_rows()
    claims = read_claims(CLAIMS / "pointwise.toml", "hrf-pointwise")
    assert len(claim_rows(claims, pointwise.EXPERIMENT.measured(rows))) == len(claims.claims)
    assert {claim.source for claim in claims.claims} == {"closed form"}
    text = pointwise.EXPERIMENT.summary(rows)
    for title in pointwise_report.TITLES.values():
        assert f"## {title}" in text
    assert "1.000 to 1.000 times the closed form" in text
    assert "{" not in text
    assert "beats the best single map at no radius" in text
    assert "| r = 1, gerf |" in text
    assert text.count("| angular n=3 |") == 2 * len(ACCOUNTINGS)
    pointwise.EXPERIMENT.draw([row for row in rows if row["radius"] == 1.0], tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "errors.png",
        "worst_case.png",
        "estimates.png",
    }


def test_surfaces(tmp_path: Path) -> None:
    cells = checked_cells(surfaces.EXPERIMENT, True)
    rows = [row for cell in cells for row in surfaces.run(cell, tmp_path)]
    claims = read_claims(CLAIMS / "surfaces.toml", "hrf-surfaces")
    found = surfaces.EXPERIMENT.measured(rows)
    assert set(found) == {claim.id for claim in claims.claims}
    for claim in claims.claims:
        assert found[claim.id] == pytest.approx(claim.value, rel=5e-3, abs=1e-12)
    assert "below that of the better one at 0" in surfaces.EXPERIMENT.summary(rows)
    surfaces.EXPERIMENT.draw(rows, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"surfaces.png", "heat.png"}
