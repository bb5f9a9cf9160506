"""LowRankChain.from_embeddings: what the features estimate, what they cost, and what is exact in them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bochner
from bochner.features import Features, SignedLog
from bochner.kernels import Softmax
from bochner.structured import ExactChain, LowRankChain, fit_to_edges
from bochner.structured.edges.edge_fit import best_variance, log_chi
from bochner.structured.edges.embedded import DEFAULT_MAP, balancing_coordinates
from tests.maps import POSITIVE, budget, normal, seeded
from tests.structured import brute
from tests.structured.embedded_problems import Problem, problem, problems

MAPS = [n for n in POSITIVE if not bochner.spec(n).changes_kernel]


def table(chain: LowRankChain) -> Tensor:
    """log K^ of every edge, from the features alone."""
    k = chain.transitions
    return brute.dense_from_features(k.log_left, k.log_right, chain.num_steps - 1)


class Exponential(bochner.FeatureMap):
    """exp(x y) in one dimension by Gauss-Hermite nodes instead of random directions: no error at all."""

    kernel, dim, batch_shape = Softmax(), 1, ()
    positive = unbiased = symmetric = True
    num_projections = 0

    def __init__(self, num_features: int = 40) -> None:
        import numpy as np

        super().__init__()
        points, weights = np.polynomial.hermite_e.hermegauss(num_features)
        self.points = torch.from_numpy(points)
        self.log_weights = torch.from_numpy(np.log(weights / weights.sum()))
        self.num_features = num_features

    def _query(self, x: Tensor) -> Features:
        return Features.from_logs(x * self.points + 0.5 * (self.log_weights - x.square()))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        log = x @ y.mT
        return SignedLog(log, torch.ones_like(log))

    def resample_(self, generator: torch.Generator) -> bochner.FeatureMap:
        return self

    def draws(self) -> list[Tensor]:
        return []


# -- the model that the features make -----------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 3))
def test_inference_is_exact_in_the_features_own_model(made: Problem, blocks: int) -> None:
    chain = LowRankChain.from_embeddings(
        *made.parts, num_features=3, blocks=blocks, lengths=made.lengths, generator=seeded(1)
    )
    every = brute.enumerate_batch(table(chain), made.unaries, made.lengths)
    log_z = torch.stack([p.log_partition for p in every]).reshape(chain.batch_shape)
    torch.testing.assert_close(chain.log_partition, log_z, rtol=0, atol=1e-10)
    expected = torch.stack([p.marginals for p in every]).reshape(made.unaries.shape)
    torch.testing.assert_close(chain.marginals, expected, rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_with_features_that_have_no_error_it_is_the_exact_chain(made: Problem) -> None:
    a, b = made.a[..., :1], made.b[..., :1]
    chain = LowRankChain.from_embeddings(
        a, b, made.unaries, feature_map=Exponential(), lengths=made.lengths
    )
    exact = ExactChain.from_embeddings(a, b, made.unaries, lengths=made.lengths)
    torch.testing.assert_close(chain.log_partition, exact.log_partition, rtol=0, atol=1e-9)
    torch.testing.assert_close(chain.marginals, exact.marginals, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MAPS)
def test_every_positive_map_of_the_catalogue(name: str) -> None:
    """log K^ is right to the map's own error: the mean over entries of (K^/K - 1) within 0.3, and the
    chain is that of these entries."""
    made = problem(30, 4, dim=3, scale=0.4, batch=(2,))
    columns = budget(name, 512)
    chain = LowRankChain.from_embeddings(
        *made.parts, feature_map=name, num_features=columns, generator=seeded(0)
    )
    found = table(chain)
    assert chain.transitions.rank == columns
    ratio = (found[0] - made.a @ made.b.mT).exp()
    assert abs(float(ratio.mean()) - 1) < 0.3
    dense = bochner.structured.Chain(
        bochner.structured.Dense(found), made.unaries, lengths=torch.tensor([4, 4])
    )
    torch.testing.assert_close(chain.log_partition, dense.log_partition, rtol=0, atol=1e-9)


def test_a_map_of_ones_own_is_used_as_it_is() -> None:
    """Instance, unfitted instance, and one map for every block."""
    made = problem(6, 4, dim=3)
    g = seeded(0)
    maps = [bochner.make("positive", dim=3, num_features=8, generator=g) for _ in range(2)]
    chain = LowRankChain.from_embeddings(*made.parts, feature_map=maps)
    for edge in range(3):
        expected = maps[edge % 2].log_estimate(made.a, made.b).log_abs
        torch.testing.assert_close(chain.transitions.log_block(edge, slice(None)), expected)
    assert chain.source.feature_maps == tuple(maps)
    assert chain.source.left_points is made.a
    unfitted = bochner.make("gerf", dim=3, num_features=8, generator=seeded(1))
    chain = LowRankChain.from_embeddings(*made.parts, feature_map=unfitted)
    assert chain.source.num_features == 8


# -- exact transforms -----------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 4), st.sampled_from([(), (2,), (2, 1)]), st.integers(0, 999)
)
def test_centring_and_balancing_change_no_potential(
    states: int, dim: int, batch: tuple[int, ...], seed: int
) -> None:
    a = 3 + normal(*batch, states, dim, seed=seed) * torch.linspace(0.1, 2, dim).double()
    b = normal(states, dim, seed=seed + 1) - 2
    transform = balancing_coordinates(a, b)
    (left, f), (right, g) = transform.queries(a), transform.keys(b)
    total = left @ right.mT
    total = total + (0 if f is None else f) + (0 if g is None else g.mT)
    torch.testing.assert_close(total, (a @ b.mT).expand(total.shape), rtol=1e-8, atol=1e-8)


def test_shifted_and_stretched_embeddings_are_put_right_first() -> None:
    """Means of 3 and scales of 1/8 and 8: |a + b|^2 grows from 3 to over 150, log Z stays
    within 1.5 nats. Without the transforms positive features are more than 5 nats off."""
    made = problem(200, 8, dim=4, scale=0.4)
    stretch = torch.tensor([8.0, 0.125, 2.0, 1.0], dtype=torch.float64)
    moved = Problem(made.a * stretch + 3.0, made.b / stretch + 3.0, made.unaries, made.lengths)
    assert (moved.a[:, None] + moved.b).square().sum(-1).mean() > 150
    for name in ("positive", DEFAULT_MAP):
        errors = [
            abs(
                float(
                    LowRankChain.from_embeddings(
                        *p.parts, feature_map=name, num_features=256, generator=seeded(0)
                    ).log_partition
                    - ExactChain.from_embeddings(*p.parts).log_partition
                )
            )
            for p in (made, moved)
        ]
        assert max(errors) < 1.5
    bare = bochner.make("positive", dim=4, num_features=256, generator=seeded(0))
    plain = LowRankChain.from_embeddings(*moved.parts, feature_map=bare).log_partition
    assert abs(float(plain - ExactChain.from_embeddings(*moved.parts).log_partition)) > 5


def test_the_default_map_suits_embeddings_where_plain_ones_fail() -> None:
    """Logits of standard deviation 1, m = 256, root mean square over 6 draws."""
    made = problem(300, 16, dim=24, scale=0.45)
    exact = ExactChain.from_embeddings(*made.parts).log_partition
    errors = [
        math.sqrt(
            sum(
                float(
                    LowRankChain.from_embeddings(
                        *made.parts, num_features=256, generator=seeded(s), **chosen
                    ).log_partition
                    - exact
                )
                ** 2
                for s in range(6)
            )
            / 6
        )
        for chosen in ({}, {"feature_map": "positive"})
    ]
    assert errors[0] < 0.6 * errors[1]


# -- blocks ---------------------------------------------------------------------------------------------
def test_num_features_are_the_columns_of_an_edge_and_blocks_are_drawn_apart() -> None:
    made = problem(5, 6, dim=3, batch=(2,))
    chain = LowRankChain.from_embeddings(
        *made.parts, num_features=16, blocks=3, generator=seeded(0)
    )
    k = chain.transitions
    assert k.log_left.shape == k.log_right.shape == (3, 5, 16)
    assert (chain.source.num_features, chain.source.blocks) == (16, 3)
    first, second, third = (
        phi.inner.omega if hasattr(phi, "inner") else phi.omega for phi in chain.source.feature_maps
    )
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    again = LowRankChain.from_embeddings(
        *made.parts, num_features=16, blocks=3, generator=seeded(0)
    )
    assert torch.equal(again.transitions.log_left, k.log_left)
    for edge in range(5):
        assert torch.equal(k.log_block(edge, slice(None)), k.log_block(edge % 3, slice(None)))


def test_blocks_beyond_the_edges_are_not_drawn() -> None:
    for steps, expected in ((1, 1), (2, 1), (4, 3)):
        made = problem(4, steps)
        chain = LowRankChain.from_embeddings(*made.parts, num_features=4, blocks=8)
        assert chain.transitions.num_blocks == expected


def test_a_draw_an_edge_makes_z_unbiased_and_a_shared_one_does_not() -> None:
    """One feature exp(w x - x^2/2) an edge, the mean over w by 40 x 40 Gauss-Hermite nodes: no noise. The
    bias of a shared one, m = 1 and T = 3, is E_p[rho - 1] of the path's two edges."""
    made = problem(5, 3, dim=1, scale=0.5)
    nodes = Exponential(40)
    a, b = (
        nodes.points[:, None] * x.squeeze(-1) - 0.5 * x.squeeze(-1).square() for x in made.parts[:2]
    )
    left, right = (
        torch.stack(torch.broadcast_tensors(f[:, None], f[None]), 2).unsqueeze(-1) for f in (a, b)
    )
    chain = bochner.structured.Chain(bochner.structured.LowRank(left, right), made.unaries)
    exact = ExactChain.from_embeddings(*made.parts).log_partition
    ratio = (chain.log_partition - exact).exp()
    weights = nodes.log_weights.exp()
    assert abs(float((weights[:, None] * weights * ratio).sum()) - 1) < 1e-9
    paths = brute.enumerate_paths(made.potentials, made.unaries)
    exponents = made.a.squeeze(-1)[paths.states[:, :-1]] + made.b.squeeze(-1)[paths.states[:, 1:]]
    rho = paths.mean(exponents.prod(-1).exp())  # E_p e^{s.s'} of the two edges of a path
    assert abs(float(rho) - 1) > 0.005
    assert abs(float((weights * ratio.diagonal()).sum() - rho)) < 1e-9


# -- fitted to edges -------------------------------------------------------------------------------------
def test_chi_is_the_closed_form_in_a() -> None:
    """rho = ((1-4A)/sqrt(1-8A))^n exp((1-4A)|s+s'|^2/(2(1-8A)) - (|s|^2+|s'|^2)/2), v = 1 - 4A."""
    s = normal(7, 3, seed=1)
    for spread in (-0.3, -0.05, 0.0, 0.1):
        p, q = 1 - 4 * spread, 1 - 8 * spread
        sums = (s[:, None] + s).square().sum(-1)
        norms = s.square().sum(-1)
        logs = 3 * math.log(p / math.sqrt(q)) + p * sums / (2 * q) - 0.5 * (norms[:, None] + norms)
        expected = float(logs.flatten().logsumexp(0)) - math.log(49)
        assert abs(log_chi(s, p) - expected) < 1e-12
    best = log_chi(s, best_variance(s))
    assert all(best <= log_chi(s, v) + 1e-9 for v in torch.linspace(0.55, 8, 60).tolist())
    assert abs(best_variance(torch.zeros(4, 2)) - 1) < 1e-4


def test_states_that_are_never_visited_do_not_count() -> None:
    """Half of the states far out and forbidden by the unaries: a map fitted to all pairs of states wastes
    its spread on them, one fitted to sampled edges does not. Root mean square over 5 draws."""
    made = problem(120, 12, dim=8, scale=0.35)
    a, b = made.a.clone(), made.b.clone()
    a[60:] *= 6
    b[60:] *= 6
    unaries = made.unaries.clone()
    unaries[:, 60:] = -torch.inf
    exact = ExactChain.from_embeddings(a, b, unaries)
    paths = exact.sample((40,), generator=seeded(1))
    before, after = paths[:, :-1].flatten(), paths[:, 1:].flatten()
    errors: dict[str, float] = {"pairs": 0.0, "edges": 0.0}
    for seed in range(5):
        g = seeded(seed)
        maps = {
            "pairs": "gerf",
            "edges": fit_to_edges(a[before], b[after], num_features=128, generator=g),
        }
        for kind, phi in maps.items():
            chain = LowRankChain.from_embeddings(
                a, b, unaries, feature_map=phi, num_features=128, generator=g
            )
            errors[kind] += float(chain.log_partition - exact.log_partition) ** 2
    assert errors["edges"] ** 0.5 < 0.5 * errors["pairs"] ** 0.5


# -- gradients, dtypes -----------------------------------------------------------------------------------
def test_gradients_reach_the_embeddings() -> None:
    """Of given directions and coordinates, by differences."""
    made = problem(4, 3)
    phi = bochner.make("positive", dim=2, num_features=5, generator=seeded(0), dtype=torch.float64)

    def value(*parts: Tensor) -> Tensor:
        return LowRankChain.from_embeddings(*parts, feature_map=phi, blocks=1).log_partition

    assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in made.parts])
    chain = LowRankChain.from_embeddings(*made.parts, num_features=8)
    grads = torch.autograd.grad(chain.log_partition, made.parts[:2])
    assert all(g.abs().max() > 0 for g in grads)


def test_float32_agrees() -> None:
    """The same draw in either dtype: a map of one's own, and one by name."""
    made = problem(100, 20, dim=4, scale=0.5, batch=(2,))
    for name in ("positive", DEFAULT_MAP):
        values = []
        for p in (made, made.to(torch.float32)):
            chain = LowRankChain.from_embeddings(
                *p.parts, feature_map=name, num_features=32, blocks=2, generator=seeded(0)
            )
            assert chain.log_partition.dtype == p.a.dtype
            values.append(chain.log_partition.double())
        torch.testing.assert_close(*values, rtol=1e-6, atol=1e-4)


def test_nothing_that_comes_in_is_changed() -> None:
    made = problem(6, 4, dim=3)
    before = [t.clone() for t in made.parts]
    LowRankChain.from_embeddings(*made.parts, num_features=8, blocks=2)
    assert all(torch.equal(*pair) for pair in zip(before, made.parts, strict=True))


# -- errors ------------------------------------------------------------------------------------------------
def test_errors() -> None:
    parts = problem(5, 3, dim=2).parts
    with pytest.raises(ValueError, match="num_features=None with feature_map='gerf'"):
        LowRankChain.from_embeddings(*parts)
    with pytest.raises(ValueError, match="blocks=0"):
        LowRankChain.from_embeddings(*parts, num_features=4, blocks=0)
    with pytest.raises(bochner.UnknownNameError, match="positive"):
        LowRankChain.from_embeddings(*parts, feature_map="postive", num_features=4)
    phi = bochner.make("positive", dim=2, num_features=8)
    with pytest.raises(ValueError, match="num_features=4, but the given feature_map has 8"):
        LowRankChain.from_embeddings(*parts, feature_map=phi, num_features=4)
    with pytest.raises(ValueError, match="blocks=3 with 2 feature maps"):
        LowRankChain.from_embeddings(*parts, feature_map=[phi, phi], blocks=3)
    with pytest.raises(ValueError, match="feature_map is empty"):
        LowRankChain.from_embeddings(*parts, feature_map=[])
    with pytest.raises(TypeError, match="holds a int"):
        LowRankChain.from_embeddings(*parts, feature_map=[1])
    other = bochner.make("positive", dim=2, num_features=16)
    with pytest.raises(ValueError, match=r"maps of \[8, 16\] columns"):
        LowRankChain.from_embeddings(*parts, feature_map=[phi, other])
    wrong = bochner.make("positive", dim=3, num_features=8)
    with pytest.raises(ValueError, match="expected dim=3"):
        LowRankChain.from_embeddings(*parts, feature_map=wrong)
    for other in ("dark", bochner.make("positive", dim=2, num_features=8, kernel="gaussian")):
        with pytest.raises(ValueError, match=r"does not estimate exp\(a\.b\)"):
            LowRankChain.from_embeddings(*parts, feature_map=other, num_features=8)
    with pytest.raises(ValueError, match=r"left has shape \[3, 2\], right \[4, 2\]"):
        fit_to_edges(torch.zeros(3, 2), torch.zeros(4, 2), num_features=4)
