"""Data-aware maps fitted to data that no theory was made for: still exact, still finite."""

import pytest
import torch
from torch import Tensor

import bochner
from bochner import linear_attention, make
from tests.maps import FITTED, budget, normal, on_sphere, seeded

FIRST = torch.arange(8) < 4
SPIKE = torch.tensor([100.0] + [0.01] * 7, dtype=torch.float64)

DATA: dict[str, tuple[Tensor, Tensor]] = {
    **{
        f"norm {norm:g}": (on_sphere(60, 8, norm=norm, seed=1), on_sphere(60, 8, norm=norm, seed=2))
        for norm in (0.0, 1e-12, 1e-4, 30.0, 80.0)
    },
    "one point": (normal(1, 8, seed=1), normal(1, 8, seed=2)),
    "fewer points than dimensions": (normal(3, 8, seed=1), normal(4, 8, seed=2)),
    "equal keys": (normal(60, 8, seed=1), normal(1, 8, seed=2).expand(60, 8)),
    "equal queries": (normal(1, 8, seed=1).expand(60, 8), normal(60, 8, seed=2)),
    "points on two lines": (
        normal(60, 1, seed=1) * normal(8, seed=3),
        normal(60, 1, seed=2) * normal(8, seed=4),
    ),
    "orthogonal subspaces": (normal(60, 8, seed=1) * FIRST, normal(60, 8, seed=2) * ~FIRST),
    "condition 1e8": (normal(60, 8, seed=1) * SPIKE, normal(60, 8, seed=2) * SPIKE.flip(0)),
    "means of 1e4": (normal(60, 8, seed=1) + 1e4, normal(60, 8, seed=2) - 1e4),
    "keys 1e6 times the queries": (1e-3 * normal(60, 8, seed=1), 1e3 * normal(60, 8, seed=2)),
}


FAR = ("norm 30", "norm 80", "condition 1e8", "means of 1e4", "keys 1e6 times the queries")
"""Many lengthscales from their centre: no series about it will do."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", FITTED)
def test_fits_anything(name: str, data: str, dtype: torch.dtype) -> None:
    """The exact kernel is kept whatever the fit; float32 features agree with float64 ones."""
    q, k = (x.to(dtype) for x in DATA[data])
    unfitted = bochner.make(name, dim=8, num_features=budget(name, 16), generator=seeded(0))
    if name == "local" and data in FAR:
        with pytest.raises(ValueError, match="so far from their centre"):
            unfitted.fit(q, k)
        return
    phi = unfitted.fit(q, k)
    x, y = q[:5], k[:5]
    wide_x, wide_y = x.double(), y.double()
    norms = wide_x.norm(dim=-1).unsqueeze(-1), wide_y.norm(dim=-1).unsqueeze(-2)
    exact, truth = phi.log_exact(wide_x, wide_y).log_abs, wide_x @ wide_y.mT
    if name == "dark":  # M is stored in float32
        assert torch.isfinite(exact).all()
    else:
        assert ((exact - truth).abs() / (1 + norms[0] * norms[1])).max() < 1e-9
    single, double = (phi.log_estimate(*p).log_abs for p in ((x, y), (wide_x, wide_y)))
    assert torch.isfinite(double).all()
    size = 1 + norms[0].square() + norms[1].square()
    # signed sums cancel; fitted ones, far outside of what they can fit, the more
    tolerance = 1e-5 if phi.positive else 1e-3 if name == "calibrated" else 1e-4
    assert ((single.double() - double).abs() / size).max() < tolerance
    assert torch.isfinite(linear_attention(phi, x, y, y)).all()


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_pools_what_is_not_a_head(name: str) -> None:
    """[batch, heads, n, d] fits one map per head, the same as the batch laid end to end."""
    q, k = (0.3 * normal(5, 2, 20, 4, seed=s) for s in (1, 2))
    size = {"dim": 4, "num_features": budget(name, 8), "batch_shape": (2,)}
    pooled = bochner.make(name, generator=seeded(0), **size).fit(q, k)
    laid = [x.transpose(0, 1).flatten(1, 2) for x in (q, k)]
    whole = bochner.make(name, generator=seeded(0), **size).fit(*laid)
    x = normal(2, 6, 4, seed=3)
    assert all(draw.shape[0] == 2 for draw in pooled.draws())
    if name != "local":  # whose draws are signs
        assert all(draw.shape[2] == 4 for draw in pooled.draws())
    if name == "calibrated" or (
        name.startswith("data-aware") and not name.endswith(("absolute", "relative"))
    ):
        return  # attention stays inside a sequence: pooling is not concatenation there
    torch.testing.assert_close(pooled.estimate(x, x), whole.estimate(x, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_leaves_its_data_alone_and_its_source_reusable(name: str) -> None:
    q, k = (0.3 * normal(20, 4, seed=s).requires_grad_() for s in (1, 2))
    kept = q.detach().clone(), k.detach().clone()
    made = bochner.make(name, dim=4, num_features=budget(name, 8), generator=seeded(0))
    first, second = made.fit(q, k), made.fit(q, k)
    assert torch.equal(q, kept[0])
    assert torch.equal(k, kept[1])
    assert q.requires_grad
    assert not any(b.requires_grad for b in first.buffers())
    for a, b in zip(first.draws(), second.draws(), strict=True):
        assert not torch.equal(a, b)  # each fit draws its own directions


@pytest.mark.parametrize(
    "name", ["cluster", "gaussian-mixture", "complex-exponential", "balanced-exponential"]
)
def test_projections_are_counted_before_fitting(name, generator) -> None:
    phi = make(name, dim=3, num_features=52, generator=generator)
    q = torch.randn(40, 3, generator=generator)
    assert phi.num_projections == phi.fit(q, q).num_projections
