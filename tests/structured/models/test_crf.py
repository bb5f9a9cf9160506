"""The CRF layer: against all paths one by one, against pytorch-crf call by call, and its errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bochner.structured import CRF, LowRankTransitions
from tests.structured.allocations import largest_tensor
from tests.structured.brute import enumerate_batch
from tests.structured.models.test_learned import dense

LENGTHS = torch.tensor([4, 1, 3])
MASK = torch.arange(4) < LENGTHS.unsqueeze(-1)


def table_crf(generator, **options) -> CRF:
    return CRF(3, **options, generator=generator).double()


def low_rank_crf(generator, **options) -> CRF:
    transitions = LowRankTransitions(3, 2, generator=generator)
    return CRF(3, **options, transitions=transitions, generator=generator).double()


KINDS = [table_crf, low_rank_crf]


def randomised(crf: CRF, generator) -> CRF:
    """Ends and tables of order 1, so that nothing is near uniform."""
    with torch.no_grad():
        for name, parameter in crf.named_parameters():
            if name.endswith("transitions"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return crf


def log_table(crf: CRF) -> torch.Tensor:
    """log K [C, C]."""
    if isinstance(crf.transitions, LowRankTransitions):
        return dense(crf.transitions).log()
    return crf.transitions


def paths(crf: CRF, emissions: torch.Tensor):
    """All paths of each sequence; emissions [3, 4, C], batch first."""
    unaries = emissions.clone()
    unaries[:, 0] += crf.start_transitions
    unaries[torch.arange(3), LENGTHS - 1] += crf.end_transitions
    return enumerate_batch(log_table(crf).expand(3, 3, 3, 3), unaries, LENGTHS)


@pytest.fixture
def emissions(generator):
    return torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)


@pytest.fixture
def tags(generator):
    return torch.randint(3, (3, 4), generator=generator).masked_fill(~MASK, -100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_all_paths_agree(generator, emissions, tags, kind, batch_first):
    crf = randomised(kind(generator, batch_first=batch_first), generator)

    def turned(x):
        return x if batch_first else x.transpose(0, 1)

    every = paths(crf, emissions)
    rows = zip(every, tags, LENGTHS, strict=True)
    expected = torch.stack([p.log_probs[p.index(row[:n])] for p, row, n in rows])
    given = turned(emissions), turned(tags), turned(MASK)
    found = crf(*given, reduction="none")
    assert torch.allclose(found, expected, rtol=1e-10)
    assert torch.allclose(crf(*given), expected.sum())
    assert torch.allclose(crf(*given, reduction="mean"), expected.mean())
    assert torch.allclose(crf(*given, reduction="token_mean"), expected.sum() / 8)
    marginals = torch.stack([p.marginals for p in every])
    assert torch.allclose(turned(crf.marginals(given[0], given[2])), marginals, atol=1e-10)
    best = [p.mode[0].tolist() for p in every]
    assert crf.decode(given[0], given[2]) == best
    likely = [row[:n].argmax(-1).tolist() for row, n in zip(marginals, LENGTHS, strict=True)]
    assert crf.posterior_decode(given[0], given[2]) == likely
    parameters = list(crf.parameters())
    ours = torch.autograd.grad(found.sum(), parameters)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tags=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    forbidden=st.floats(0.0, 0.6),
    rank=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_any_sizes_with_forbidden_tags(tags, lengths, forbidden, rank, seed):
    """One tag, one step, tags of weight 0; float64 to 1e-10 and float32 to 1e-4 of all paths."""
    generator = torch.Generator().manual_seed(seed)
    transitions = LowRankTransitions(tags, rank, generator=generator) if rank else None
    crf = CRF(tags, True, transitions=transitions, generator=generator).double()
    sizes = torch.tensor(lengths)
    shape = (len(lengths), max(lengths), tags)
    emissions = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    out = torch.rand(shape, generator=generator) < forbidden
    out[..., int(torch.randint(tags, (), generator=generator))] = False  # one path is left
    emissions = emissions.masked_fill(out, -torch.inf).requires_grad_()
    gold = torch.randint(tags, shape[:2], generator=generator)
    mask = torch.arange(shape[1]) < sizes.unsqueeze(-1)
    unaries = emissions.detach().clone()
    unaries[:, 0] += crf.start_transitions.detach()
    unaries[torch.arange(len(sizes)), sizes - 1] += crf.end_transitions.detach()
    every = enumerate_batch(log_table(crf).detach().expand(len(sizes), 3, -1, -1), unaries, sizes)
    rows = list(zip(every, gold, lengths, strict=True))
    expected = torch.stack([p.log_probs[p.index(row[:n])] for p, row, n in rows])
    found = crf(emissions, gold, mask, reduction="none")
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert (found <= 1e-12).all()
    single = crf.float()(emissions.float(), gold, mask, reduction="none")
    assert torch.allclose(single.double(), expected, rtol=1e-4, atol=1e-4)
    crf.double()
    # p(tag) - [tag is gold], and no NaN where a tag is forbidden
    allowed = found[torch.isfinite(found)]
    (gradient,) = torch.autograd.grad(allowed.sum(), emissions)
    assert gradient.isfinite().all()
    best = crf.decode(emissions, mask)
    for path, (p, _, n) in zip(best, rows, strict=True):
        assert p.scores[p.index(torch.tensor(path))] >= p.mode[1] - 1e-9
        assert len(path) == n


@pytest.mark.parametrize("kind", KINDS)
def test_all_tag_sequences_together_have_probability_one(generator, emissions, kind):
    crf = kind(generator, batch_first=True)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    found = crf(emissions[:1].expand(81, -1, -1), every, reduction="none")
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert found.max().item() < 0


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [torch.uint8, torch.bool, None])
def test_pytorch_crf_agrees_call_by_call(generator, batch_first, masked):
    torchcrf = pytest.importorskip("torchcrf")
    theirs = torchcrf.CRF(6, batch_first=batch_first)
    ours = CRF(6, batch_first)
    randomised(theirs, generator)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    lengths = torch.tensor([7, 1, 4, 7, 2])
    shape = (5, 7) if batch_first else (7, 5)
    emissions = torch.randn(*shape, 6, generator=generator, requires_grad=True)
    tags = torch.randint(6, shape, generator=generator)
    mask = torch.arange(7) < lengths.unsqueeze(-1)
    mask = None if masked is None else (mask if batch_first else mask.T).to(masked)
    if masked == torch.uint8:  # torch.where of pytorch-crf no longer takes a byte mask
        their_mask = mask.bool()
    else:
        their_mask = mask
    for reduction in ("none", "sum", "mean", "token_mean"):
        found = ours(emissions, tags, mask, reduction=reduction)
        expected = theirs(emissions, tags, their_mask, reduction=reduction)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert torch.allclose(found, expected, rtol=1e-5)
        one, other = (
            torch.autograd.grad(value.sum(), [emissions, *crf.parameters()])
            for value, crf in ((found, ours), (expected, theirs))
        )
        for gradient, their_gradient in zip(one, other, strict=True):
            assert torch.allclose(gradient, their_gradient, atol=1e-5)
    assert ours.decode(emissions, mask) == theirs.decode(emissions, their_mask)
    assert type(ours.decode(emissions, mask)[0][0]) is int


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(generator, kind, dtype):
    crf = kind(generator, batch_first=True).float()
    emissions = (10 * torch.randn(2, 60, 3, generator=generator)).to(dtype)
    tags = torch.randint(3, (2, 60), generator=generator)
    found = crf(emissions, tags, reduction="none")
    assert found.dtype == torch.float32
    assert torch.equal(found, crf(emissions.float(), tags, reduction="none"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crf(emissions, tags, reduction="none"), found)
        assert crf.marginals(emissions).dtype == torch.float32
    exact = crf.double()(emissions.double(), tags, reduction="none")
    assert torch.allclose(found.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_reset(kind):
    crf = kind(torch.Generator().manual_seed(1)).float()
    given = [p.clone() for p in crf.parameters()]
    randomised(crf, torch.Generator().manual_seed(2))
    assert max(p.abs().max() for p in (crf.start_transitions, crf.end_transitions)) > 0.5
    crf.reset_parameters(generator=torch.Generator().manual_seed(1))
    own = [p for name, p in crf.named_parameters() if name.endswith("transitions")]
    assert all(0.05 < p.abs().max() <= 0.1 for p in own)
    if kind is table_crf:
        assert all(torch.equal(p, q) for p, q in zip(crf.parameters(), given, strict=True))


def test_inputs_are_left_as_they_were(generator, emissions):
    crf = table_crf(generator, batch_first=True)
    before = emissions.clone()
    crf(emissions, torch.zeros(3, 4, dtype=torch.long), MASK)
    crf.decode(emissions, MASK)
    assert torch.equal(emissions, before)


def test_ten_thousand_tags_train(generator):
    """Nothing is larger than the emissions [2, 6, 10_000]: no tags times tags, no steps times that."""
    transitions = LowRankTransitions(10_000, 8, generator=generator)
    crf = CRF(10_000, batch_first=True, transitions=transitions, generator=generator)
    emissions = torch.zeros(2, 6, 10_000, requires_grad=True)
    tags = torch.randint(10_000, (2, 6), generator=generator)
    optimiser = torch.optim.Adam(crf.parameters(), lr=0.1)
    before = crf(emissions, tags).item()
    with largest_tensor() as seen:
        for _ in range(5):
            optimiser.zero_grad()
            (-crf(emissions, tags)).backward()
            optimiser.step()
        crf.posterior_decode(emissions)
    assert seen.elements <= 2 * 6 * 10_000
    assert crf(emissions, tags).item() > before + 5
    assert [len(row) for row in crf.posterior_decode(emissions)] == [6, 6]


GOOD = torch.zeros(2, 3, 4)
TAGS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            (GOOD[0], TAGS[0]),
            ValueError,
            r"emissions has shape \[3, 4\]; expected \[batch, steps, 4\]",
        ),
        ((GOOD[..., :3], TAGS), ValueError, r"emissions has shape \[2, 3, 3\]"),
        ((GOOD[:0], TAGS[:0]), ValueError, "nothing empty"),
        ((GOOD.long(), TAGS), TypeError, "emissions is torch.int64; expected a floating-point"),
        (("word", TAGS), TypeError, "emissions is str"),
        ((GOOD, TAGS.T), ValueError, r"tags is \[3, 2\]; expected a tensor of shape \[2, 3\]"),
        ((GOOD, TAGS + 4), ValueError, r"tags holds 4; expected integers in 0\.\.3"),
        ((GOOD, TAGS.float()), TypeError, "tags is torch.float32"),
        ((GOOD, TAGS, TAGS.T == 0), ValueError, r"mask is \[3, 2\]; expected .*\[2, 3\]"),
        ((GOOD, TAGS, [1, 1]), ValueError, "mask is list"),
        (
            (GOOD, TAGS, torch.tensor([[1, 1, 0], [1, 0, 1]])),
            ValueError,
            r"sequence 1 is \[1, 0, 1\]",
        ),
        (
            (GOOD, TAGS, torch.tensor([[0, 1, 1], [1, 1, 1]])),
            ValueError,
            "pad sequences on the right",
        ),
        ((GOOD, TAGS, torch.tensor([[0, 0, 0], [1, 1, 1]])), ValueError, "length of at least 1"),
        ((GOOD, TAGS, None, "max"), ValueError, "reduction='max'; expected one of none, sum, mean"),
        ((GOOD / 0.0, TAGS), ValueError, "NaN"),
    ],
)
def test_errors_name_the_argument(given, error, message):
    with pytest.raises(error, match=message):
        CRF(4, batch_first=True)(*given)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="num_tags=0 must be an integer"):
        CRF(0)
    with pytest.raises(ValueError, match="num_states=3; expected num_tags=4"):
        CRF(4, transitions=LowRankTransitions(3, 2))
    with pytest.raises(TypeError, match="transitions is Linear; expected None"):
        CRF(4, transitions=torch.nn.Linear(4, 4))
