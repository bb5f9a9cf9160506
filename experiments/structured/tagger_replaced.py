"""Given potentials exp(a_x . b_y) over all labels: exact, and every way around the exact table, in one table.

The emissions are those of the tagger without transitions after its second pass; a, b are fitted to the
bigrams of labels. This is not the learned low-rank CRF: there the features are the model, here they
approximate one.
The exact answer needs the whole table, 0.8 GB for 14,057 labels, and is given for some verses of the test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bochner.reproduce import Cell, Row
from bochner.structured import Chain, Dense, HybridChain, LowRankChain
from bochner.structured.edges.beams import strongest_states
from bochner.structured.errors.diagnose import diagnose
from experiments.structured.tagger_corpus import LabelCounts, bible
from experiments.structured.tagger_model import fitted_embeddings
from experiments.structured.tagger_training import Tagger, first_pass, second_pass

FIT_PASSES = 12
BATCH = 16  # verses
BEAM, RANK = 64, 64
FEATURES = (256, 1024)
DIAGNOSED = 2  # verses
Answer = tuple[Tensor, Tensor]  # marginals [b, T, X], log Z [b]


class Verses:
    """A batch: u [b, T, X], lengths [b], embeddings a, b [X, n]."""

    def __init__(self, unaries: Tensor, lengths: Tensor, a: Tensor, b: Tensor) -> None:
        self.unaries, self.lengths, self.a, self.b = unaries, lengths, a, b


def ours(chain: Chain) -> Answer:
    return chain.marginals, chain.log_partition


def without(batch: Verses) -> Answer:
    """K = 1."""
    one = torch.zeros(len(batch.a), 1)
    return ours(LowRankChain(one, one, batch.unaries, lengths=batch.lengths))


def features(count: int) -> Callable[[Verses], Answer]:
    """Positive random features, drawn once for all batches."""

    def answer(batch: Verses) -> Answer:
        generator = torch.Generator().manual_seed(0)
        chain = LowRankChain.from_embeddings(
            batch.a,
            batch.b,
            batch.unaries,
            num_features=count,
            lengths=batch.lengths,
            generator=generator,
        )
        return ours(chain)

    return answer


def hybrid(batch: Verses) -> Answer:
    """Exact between the beams, positive random features elsewhere."""
    chain = HybridChain.from_embeddings(
        batch.a,
        batch.b,
        batch.unaries,
        num_features=FEATURES[0],
        beam=min(BEAM, len(batch.a)),
        lengths=batch.lengths,
        generator=torch.Generator().manual_seed(0),
    )
    return ours(chain)


def beam(batch: Verses) -> Answer:
    """Exact between the beams, nothing elsewhere."""
    width = min(BEAM, len(batch.a))
    beams = strongest_states(batch.a, batch.b, batch.unaries, batch.lengths, beam=width)
    left, right = batch.a[beams[:, :-1]], batch.b[beams[:, 1:]]
    potentials = left @ right.transpose(-1, -2)
    if beams.shape[1] == 1:
        potentials = torch.zeros(len(beams), 1, width, width)
    chain = Chain(Dense(potentials), batch.unaries.gather(-1, beams), lengths=batch.lengths)
    found = torch.zeros_like(batch.unaries).scatter(-1, beams, chain.marginals)
    return found, chain.log_partition


def products(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]
) -> Callable[[Verses], Answer]:
    """The scaled recursion with any matrix K: v -> v K and v -> K v for rows v [b, X]. Signs may differ."""

    def answer(batch: Verses) -> Answer:
        steps = batch.unaries.shape[1]
        top = batch.unaries.amax(-1, keepdim=True)
        weights = torch.exp(batch.unaries - top)
        there = torch.arange(steps) < batch.lengths.unsqueeze(-1)
        log_z = torch.where(there, top.squeeze(-1), 0.0).sum(-1)
        messages = [weights[:, 0]]
        for step in range(1, steps):
            total = messages[-1].abs().sum(-1, keepdim=True)
            moved = forward(messages[-1] / total) * weights[:, step]
            live = there[:, step].unsqueeze(-1)
            log_z = log_z + torch.where(there[:, step], total.squeeze(-1).log(), 0.0)
            messages.append(torch.where(live, moved, messages[-1]))
        log_z = log_z + messages[-1].sum(-1).log()
        found, back = torch.zeros_like(weights), torch.ones_like(weights[:, 0])
        for step in reversed(range(steps)):
            both = messages[step] * back
            found[:, step] = both / both.sum(-1, keepdim=True)
            if step:
                moved = backward(back * weights[:, step])
                moved = moved / moved.abs().amax(-1, keepdim=True)
                back = torch.where(there[:, step].unsqueeze(-1), moved, back)
        return found * there.unsqueeze(-1), log_z

    return answer


def exact(a: Tensor, b: Tensor) -> Callable[[Verses], Answer]:
    """The whole table, stored."""
    matrix = (a @ b.T).exp_()
    return products(lambda v: v @ matrix, lambda v: v @ matrix.T)


def truncated(a: Tensor, b: Tensor, frequency: Tensor) -> Callable[[Verses], Answer]:
    """Largest singular values and vectors of sqrt(p_x) K(x, y) sqrt(p_y); signed.

    Without the frequencies p of the labels the largest values would be those of labels that hardly occur.
    """
    weight = frequency.sqrt()
    matrix = (a @ b.T).exp_().mul_(weight).mul_(weight.unsqueeze(-1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # svd_lowrank draws from the global generator
        u, s, v = torch.svd_lowrank(matrix, q=min(RANK, len(a)), niter=2)
    left, v = u * s / weight.unsqueeze(-1), v / weight.unsqueeze(-1)
    return products(lambda x: (x @ left) @ v.T, lambda x: (x @ v) @ left.T)


def contestants(
    a: Tensor, b: Tensor, frequency: Tensor
) -> dict[str, Callable[[], Callable[[Verses], Answer]]]:
    """Name -> what makes it; making it is timed apart."""
    return {
        "exact table": lambda: exact(a, b),
        "no transitions": lambda: without,
        f"beam {BEAM}": lambda: beam,
        **{f"random features, m = {m}": lambda m=m: features(m) for m in FEATURES},
        f"hybrid, beam {BEAM}, m = {FEATURES[0]}": lambda: hybrid,
        f"truncated SVD, rank {RANK}": lambda: truncated(a, b, frequency),
    }


def bytes_of(name: str, labels: int) -> float:
    """float32 numbers that stand for K, in bytes."""
    if name == "exact table":
        return 4.0 * labels**2
    if "SVD" in name:
        return 4.0 * labels**2 + 8.0 * labels * RANK  # the table, to be factored
    if "m = " in name:
        return 8.0 * labels * int(name.rsplit(" ", 1)[1])
    return 4.0 * BEAM**2 if "beam" in name else 0.0


@torch.no_grad()
def replaced_rows(cell: Cell, folder: Path) -> list[Row]:
    """One row for each way to log Z and the marginals; one for the diagnosis."""
    made, seed = bible(int(cell["verses"])), int(cell["seed"])
    tagger = Tagger(made, None, seed)
    with torch.enable_grad():
        tagger.emissions.load_state_dict(first_pass(made, seed, folder)["emissions"])
        second_pass(tagger, seed, folder / f"tagger-{made.num_labels}-0-{seed}.pt")
        generator = torch.Generator().manual_seed(seed)
        a, b = fitted_embeddings(made, int(cell["dim"]), FIT_PASSES, generator)
    tagger.eval()
    count = int(cell["tested"])
    verses = made.test[:: max(1, len(made.test) // count)][:count]
    batches = verses[made.lengths[verses].argsort(stable=True)].split(BATCH)
    truth = torch.cat([made.labels[made.tokens(batch)] for batch in batches])
    rows: list[Row] = []
    reference: tuple[Tensor, Tensor] | None = None
    frequency = LabelCounts(made, made.train).prior
    for name, make in contestants(a, b, frequency).items():
        clock = time.process_time()
        answer = make()
        making, clock = time.process_time() - clock, time.process_time()
        chosen, log_z, negative = [], [], 0.0
        for batch in batches:
            unaries, _ = tagger.emissions.padded(batch)
            marginals, value = answer(Verses(unaries, made.lengths[batch], a, b))
            own = marginals[made.places(batch)]
            chosen.append(own.argmax(-1))
            log_z.append(value.double())
            negative += float((own < 0).double().sum(-1).gt(0).sum())
        spent = time.process_time() - clock
        found, values = torch.cat(chosen), torch.cat(log_z)
        reference = reference or (found, values)
        lengths = torch.cat([made.lengths[batch] for batch in batches])
        error = (values - reference[1]) / lengths
        known = error[error.isfinite()]  # a signed sum may have no logarithm
        undefined = 1 - len(known) / len(error)
        rows.append(
            {
                **cell,
                "way": name,
                "labels": made.num_labels,
                "test_words": len(truth),
                "accuracy": float((found == truth).double().mean()),
                "agreement": float((found == reference[0]).double().mean()),
                "log_z_bias": float(known.mean()) if len(known) else None,
                "log_z_rms": float(known.square().mean().sqrt()) if len(known) else None,
                "undefined": undefined,
                "negative": negative / len(truth),
                "making_seconds": making,
                "cpu_seconds": spent,
                "bytes": bytes_of(name, made.num_labels),
            }
        )
    return [*rows, diagnosis(cell, tagger, a, b, verses[:DIAGNOSED])]


def diagnosis(cell: Cell, tagger: Tagger, a: Tensor, b: Tensor, verses: Tensor) -> Row:
    """What chain.diagnose() says of the random features, for some verses."""
    unaries, _ = tagger.emissions.padded(verses)
    generator = torch.Generator().manual_seed(0)
    chain = LowRankChain.from_embeddings(
        a,
        b,
        unaries,
        num_features=FEATURES[0],
        lengths=tagger.made.lengths[verses],
        generator=generator,
    )
    found = diagnose(chain, generator=generator)
    return {
        **cell,
        "way": "diagnosis",
        "verdict": found.verdict,
        "chi": float(found.chi.max()),
        "eta": float(found.eta.max()),
        "std": float(found.std.max()),
        "words": str(found),
    }
