"""Learned embeddings: the three chains that are made of them, and what training sees."""

import copy

import pytest
import torch

from bochner.structured import (
    CRF,
    HMM,
    CategoricalEmissions,
    EmbeddingTransitions,
    ExactChain,
    HybridChain,
    HybridTransitions,
    LowRankChain,
    RandomFeatureTransitions,
)

SIZES = {"num_features": 16}


def kinds(generator):
    return {
        "exact": EmbeddingTransitions(7, 3, generator=generator),
        "features": RandomFeatureTransitions(7, 3, **SIZES, blocks=2, generator=generator),
        "hybrid": HybridTransitions(7, 3, **SIZES, beam=3, generator=generator),
    }


CHAINS = {"exact": ExactChain, "features": LowRankChain, "hybrid": HybridChain}


@pytest.fixture
def unaries(generator):
    return torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)


LENGTHS = torch.tensor([5, 1, 3])


@pytest.mark.parametrize("kind", CHAINS)
def test_the_chain_is_that_of_the_embeddings(generator, unaries, kind):
    part = kinds(generator)[kind].double()
    chain = part.chain(unaries, lengths=LENGTHS)
    assert type(chain) is CHAINS[kind]
    options = {}
    if kind != "exact":
        options = SIZES | {"generator": torch.Generator().manual_seed(int(part.seed))}
        options |= {"blocks": 2} if kind == "features" else {"beam": 3}
    expected = CHAINS[kind].from_embeddings(
        part.before, part.after, unaries, lengths=LENGTHS, **options
    )
    assert torch.equal(chain.log_partition, expected.log_partition)
    chain.log_partition.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in part.parameters())


@pytest.mark.parametrize("kind", ["features", "hybrid"])
def test_the_draw_stays_until_it_is_resampled(generator, unaries, kind):
    part = kinds(generator)[kind]
    first = part.chain(unaries).log_partition
    assert torch.equal(part.chain(unaries).log_partition, first)
    other = copy.deepcopy(part)
    with torch.no_grad():
        other.before.zero_()
        other.seed.zero_()
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.chain(unaries).log_partition, first)
    embeddings = part.before.clone()
    assert part.resample_(generator) is part
    assert not torch.equal(part.chain(unaries).log_partition, first)
    assert torch.equal(part.before, embeddings)


def test_a_beam_of_all_states_is_exact(generator, unaries):
    hybrid = HybridTransitions(7, 3, **SIZES, beam=7, generator=generator).double()
    exact = EmbeddingTransitions(7, 3).double()
    exact.load_state_dict({k: v for k, v in hybrid.state_dict().items() if k != "seed"})
    crfs = [CRF(7, True, transitions=part).double() for part in (hybrid, exact)]
    crfs[1].load_state_dict({k: v for k, v in crfs[0].state_dict().items() if "seed" not in k})
    tags = torch.randint(7, (3, 5), generator=generator)
    mask = torch.arange(5) < LENGTHS.unsqueeze(-1)
    values = [crf(unaries, tags, mask, reduction="none") for crf in crfs]
    assert torch.allclose(*values, rtol=1e-12)
    assert crfs[0].decode(unaries, mask) == crfs[1].decode(unaries, mask)
    one, other = (
        torch.autograd.grad(value.sum(), [crf.transitions.before])[0]
        for value, crf in zip(values, crfs, strict=True)
    )
    assert torch.allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("kind", CHAINS)
def test_a_crf_trains_and_never_exceeds_probability_one(generator, kind):
    crf = CRF(7, True, transitions=kinds(generator)[kind], generator=generator)
    tags = (torch.arange(6) + torch.arange(8).unsqueeze(-1)) % 7  # 0 1 2 3 ...: from any start
    emissions = torch.zeros(8, 6, 7)
    optimiser = torch.optim.Adam(crf.parameters(), lr=0.1)
    before = crf(emissions, tags, reduction="token_mean").item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = -crf(emissions, tags, reduction="token_mean")
        loss.backward()
        optimiser.step()
    # nothing but the transitions can tell these sequences apart; log 7 = 1.95 is chance
    assert before < -1.5
    assert before + 0.5 < -loss.item() < 0
    assert crf(emissions, tags, reduction="none").max().item() < 0


def test_embeddings_do_not_make_an_hmm(generator):
    with pytest.raises(ValueError, match="HybridTransitions has rows that do not sum to one"):
        HMM(kinds(generator)["hybrid"], CategoricalEmissions(7, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EmbeddingTransitions(3, 0),
        lambda: RandomFeatureTransitions(3, 2, num_features=0),
        lambda: RandomFeatureTransitions(3, 2, num_features=4, blocks=0),
        lambda: HybridTransitions(3, 2, num_features=4, beam=0),
    ],
)
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        make()
