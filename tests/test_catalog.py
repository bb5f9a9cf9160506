"""Names, entry points and the edge where strings become parts."""

import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

import bochner.feature_maps
from bochner import catalog
from bochner.catalog import make, spec, specs
from bochner.kernels import Gaussian
from bochner.projections import PROJECTIONS, Antithetic
from bochner.random_features import RandomFeatures
from bochner.specification import FeatureMapSpec
from bochner.testing import Plan, check_feature_map
from bochner.validation import NotFittedError, UnknownNameError

PLUGIN = """
from bochner.nonlinearities import Hyperbolic
from bochner.random_features import RandomFeatures
from bochner.specification import FeatureMapSpec

SPEC = FeatureMapSpec(
    name="{name}",
    summary="A third party's map.",
    reference="none",
    build=lambda request: RandomFeatures(request, Hyperbolic()),
    columns=2,
)
NOT_A_SPEC = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Install a distribution with one entry point: install(map name, attribute)."""

    def installed(name: str, attribute: str = "SPEC") -> None:
        (tmp_path / "their_map.py").write_text(PLUGIN.format(name=name))
        info = tmp_path / "their_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[bochner.feature_maps]\ntheirs = their_map:{attribute}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        specs.cache_clear()

    yield installed
    monkeypatch.undo()
    sys.modules.pop("their_map", None)
    importlib.invalidate_caches()
    specs.cache_clear()


def test_every_file_of_feature_maps_is_in_the_catalogue() -> None:
    files = [m.name for m in pkgutil.iter_modules(bochner.feature_maps.__path__)]
    assert {n.replace("_", "-") for n in files} <= set(specs())
    assert list(specs()) == sorted(specs())
    for name, entry in specs().items():
        assert entry.name == name == name.lower()
        assert entry.summary.endswith(".")
        assert entry.reference


def test_a_third_party_map_by_entry_point(install) -> None:
    install("theirs")
    assert specs()["theirs"].summary == "A third party's map."
    phi = make("theirs", dim=2, num_features=4)
    assert phi.num_features == 4
    report = check_feature_map("theirs", plan=Plan(dims=(2,), replicates=4_000, num_features=16))
    assert report.worst_z < 6.5


def test_a_third_party_map_with_a_taken_name(install) -> None:
    install("positive")
    with pytest.raises(ValueError, match="two feature maps are called 'positive'"):
        specs()


def test_an_entry_point_to_something_else(install) -> None:
    install("theirs", "NOT_A_SPEC")
    with pytest.raises(TypeError, match="theirs gives a int; expected a FeatureMapSpec"):
        specs()


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("positve", "positive"), ("Gerf", "gerf"), ("data_aware", "data-aware"), ("trig", None)],
)
def test_unknown_names_list_the_nearest(wrong: str, nearest: str | None) -> None:
    for lookup in (spec, lambda name: make(name, dim=2, num_features=4)):
        with pytest.raises(UnknownNameError) as caught:
            lookup(wrong)
        message = str(caught.value)
        assert f"unknown feature map {wrong!r}" in message
        assert all(name in message for name in specs())
        if nearest is not None:
            assert f"did you mean '{nearest}'" in message
    with pytest.raises(UnknownNameError, match="unknown projection 'orthagonal'"):
        make("positive", dim=2, num_features=4, projection="orthagonal")
    with pytest.raises(UnknownNameError, match="unknown kernel 'rbf'"):
        make("positive", dim=2, num_features=4, kernel="rbf")


def test_make_passes_everything_on() -> None:
    phi = make(
        "positive",
        dim=3,
        num_features=8,
        kernel="gaussian",
        projection="antithetic-orthogonal",
        batch_shape=(2, 4),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    assert phi.kernel == Gaussian()
    assert phi.projection == PROJECTIONS["antithetic-orthogonal"]
    assert phi.batch_shape == (2, 4)
    assert phi.omega.shape == (2, 4, 8, 3)
    assert phi.omega.dtype == torch.float64


def test_defaults_are_the_specification_s() -> None:
    for name, entry in specs().items():
        found = make(name, dim=3, num_features=entry.smallest_budget())
        if entry.needs_data:
            assert found.request.projection == entry.default_projection
        elif isinstance(found, RandomFeatures):
            assert found.projection == entry.default_projection
        assert found.positive == entry.positive


def test_without_a_generator_maps_differ_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    a, b = (make("positive", dim=3, num_features=4) for _ in range(2))
    assert not torch.equal(a.omega, b.omega)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(specs()))
def test_budgets(name: str) -> None:
    entry = specs()[name]

    def build(m: int, projection: object = None) -> object:
        phi = make(name, dim=3, num_features=m, projection=projection)
        if not entry.needs_data:
            return phi
        data = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
        return phi.fit(data, data.flip(0))

    for projection in PROJECTIONS.values() if entry.takes_projection else (None,):
        step = entry.smallest_budget(projection)
        assert build(step, projection).num_features == step
        if step > 1:
            with pytest.raises(ValueError, match=r"must be (even|a multiple of)"):
                build(step + 1, projection)
    assert entry.smallest_budget(Antithetic(PROJECTIONS["iid"])) == 2 * entry.columns


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim=0 must be an integer"),
        ({"num_features": 0}, ValueError, "num_features=0 must be an integer"),
        ({"num_features": 2.0}, ValueError, "num_features=2.0 must be an integer"),
        ({"batch_shape": (2, 0)}, ValueError, "batch_shape entry=0"),
        ({"generator": 0}, TypeError, "generator must be a Generator"),
        ({"dtype": torch.float16}, ValueError, "half precision bias"),
    ],
)
def test_wrong_requests(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make("positive", **{"dim": 2, "num_features": 4, **change})


@pytest.mark.parametrize("name", [n for n, entry in specs().items() if entry.needs_data])
def test_unfitted_maps_say_what_to_do(name: str) -> None:
    phi = make(name, dim=3, num_features=spec(name).smallest_budget())
    with pytest.raises(NotFittedError, match=r"call phi = phi\.fit\(queries, keys\)"):
        phi.estimate(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="expected dim=3"):
        phi.fit(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="NaN"):
        phi.fit(torch.full((5, 3), torch.nan), torch.zeros(5, 3))


def test_specifications_are_frozen() -> None:
    with pytest.raises(AttributeError):
        specs()["positive"].name = "other"  # type: ignore[misc]
    assert isinstance(catalog.spec("positive"), FeatureMapSpec)
