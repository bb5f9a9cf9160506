"""Random wavelet features: the contract with independent places, definition, proposal, sparse rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bochner.catalog import make, spec
from bochner.feature_maps.wavelet import WaveletFeatures
from bochner.kernels import Gaussian, Wavelet
from bochner.projections import IID, Hadamard, Sobol
from bochner.request import Request
from bochner.testing import ContractError, Plan, check_feature_map
from bochner.testing.estimates import check_estimates
from bochner.testing.subject import Subject

KERNEL = Wavelet(0.1, 2.0, 1.2)


def wavelets(generator, dim=2, num_features=64, projection=None, kernel=KERNEL, **more):
    return WaveletFeatures(
        Request(
            dim=dim,
            num_features=num_features,
            kernel=kernel,
            projection=Sobol() if projection is None else projection,
            generator=generator,
            dtype=torch.float64,
            **more,
        )
    )


def test_the_contract_with_independent_wavelets():
    """Forty thousand independent draws see a smaller bias than the thousand of Sobol's case."""
    report = check_feature_map(
        replace(spec("wavelet"), default_projection=IID()), plan=Plan(dims=(2,), replicates=20_000)
    )
    assert report.smallest_bias < 0.05


class Unweighted(WaveletFeatures):
    """Scales from the proposal, as if it were the kernel's own law."""

    def _proposed(self, quantiles):
        scales, log_weight = super()._proposed(quantiles)
        return scales, torch.zeros_like(log_weight)


class Skewed(WaveletFeatures):
    """Places around another point."""

    def _drawn(self, generator):
        drawn = super()._drawn(generator)
        drawn["places"] = drawn["places"] + 0.1
        return drawn


@pytest.mark.parametrize("mutant", [Unweighted, Skewed])
def test_mutants_are_rejected(mutant):
    found = replace(spec("wavelet"), build=mutant, default_projection=IID())
    with pytest.raises(ContractError) as caught:
        check_estimates(
            Subject(found, IID(), Wavelet(), seed=0),
            Plan(dims=(1,), num_features=16, replicates=40_000),
        )
    assert caught.value.failing == "unbiased", str(caught.value)


def test_by_definition(generator):
    phi = wavelets(generator)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    u = (x.unsqueeze(1) - phi.places) / phi.scales.unsqueeze(-1)
    squares = u.square().sum(-1)
    heights = torch.exp(KERNEL.log_amplitude(phi.scales, 2) + phi.log_weight) / 8.0  # sqrt(64)
    expected = heights * (2 - squares) * torch.exp(-squares / 2)
    assert torch.allclose(phi.query(x).materialise(), expected, rtol=1e-10, atol=1e-14)


def test_the_proposal_is_a_density(generator):
    """E_q[p / q] = 1, and p / q falls with how many small wavelets are drawn."""
    phi = wavelets(generator, num_features=1 << 14)
    weights = torch.exp(2 * phi.log_weight)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-3)
    low, high = phi.scales < 0.2, phi.scales > 1.0
    assert float(low.double().mean()) > 3 * float((weights * low).mean()) * 0.5
    assert float(weights[low].max()) < float(weights[high].min())
    octave = (phi.scales > 0.4) & (phi.scales < 0.8)  # p: log-uniform over log2(20) octaves
    assert float((weights * octave).mean()) == pytest.approx(1 / np.log2(20), abs=5e-3)


def test_the_proposal_and_sobol_places_lower_the_error(generator):
    kernel = Wavelet(0.02, 1.0, 1.0)
    x = torch.zeros(1, 1, dtype=torch.float64)
    truth = kernel(x, x)

    def error(build, projection):
        phi = build(
            Request(
                dim=1,
                num_features=256,
                kernel=kernel,
                projection=projection,
                batch_shape=(200,),
                generator=generator,
                dtype=torch.float64,
            )
        )
        return float((phi.estimate(x, x) - truth).square().mean().sqrt())

    class Plain(WaveletFeatures):
        """Scales from the kernel's own law."""

        def _proposed(self, quantiles):
            return self.kernel.scales(quantiles), torch.zeros_like(quantiles)

    plain, proposed = error(Plain, IID()), error(WaveletFeatures, IID())
    assert proposed < 0.85 * plain
    assert error(WaveletFeatures, Sobol()) < 0.6 * proposed


def test_sparse_rows_are_the_dense_ones(generator):
    phi = wavelets(generator, num_features=512, kernel=Wavelet(0.05, 0.5, 1.0))
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    dense = phi.query(x).materialise().numpy()
    sparse = phi.sparse_features(x.numpy())
    assert sparse.shape == dense.shape
    assert sparse.nnz < 0.3 * dense.size
    assert np.abs(sparse.toarray() - dense).max() < 1e-6 * np.abs(dense).max()
    fewer = phi.sparse_features(x.numpy(), radius=3.0)
    assert fewer.nnz < 0.5 * sparse.nnz
    kept = fewer.toarray() != 0
    assert np.allclose(fewer.toarray()[kept], dense[kept])


def test_what_is_refused(generator):
    with pytest.raises(ValueError, match="rows are not exactly normal"):
        wavelets(generator, projection=Hadamard())
    with pytest.raises(ValueError, match="wavelet features are those of Wavelet"):
        wavelets(generator, kernel=Gaussian())
    with pytest.raises(ValueError, match="must be at least sqrt"):
        wavelets(generator).sparse_features(np.zeros((2, 2)), radius=1.0)
    with pytest.raises(ValueError, match="of a single map"):
        wavelets(generator, batch_shape=(2,)).sparse_features(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="draws no random directions"):
        make("wavelet", dim=1, num_features=4, projection="orthogonal")


def test_small_scales_keep_their_digits_in_float32(generator):
    """Norms and products would leave |x - t|^2 / s^2 an error of 10^-7 * 10^4 / 10^-4 = 10."""
    phi = wavelets(generator, dim=1, kernel=Wavelet(0.01, 0.1, 1.0), num_features=256)
    phi.places += 100.0
    x = torch.linspace(99.5, 100.5, 64).unsqueeze(-1)
    found, truth = (phi.query(p).materialise().double() for p in (x, x.double()))
    assert float((found - truth).abs().max()) < 2e-3 * float(truth.abs().max())


def test_points_out_of_sight_have_features_of_zero():
    """Squares of scaled distances, multiplied, leave float32: 0, not inf times 0."""
    phi = wavelets(torch.Generator().manual_seed(0))
    x = torch.tensor([[1e15, 0.0], [0.0, 0.0]])
    estimate = phi.estimate(x, x)
    assert estimate[0].tolist() == [0.0, 0.0]
    assert float(estimate[1, 1]) > 0.5
