"""Training of the tagger: one pass without transitions, then one with (or, to compare, without) them.

Both passes see every training verse once. What follows the first pass is the same for all contestants of a
seed: the same emissions, the same verses in the same order, the same rates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bochner.data import replacing
from bochner.structured import CRF, LearnedTransitions, LowRankTransitions
from experiments.structured.tagger_corpus import FOLDS, Corpus
from experiments.structured.tagger_model import Emissions, counted_features

BATCH = 32  # verses of about the same length, all of one fold
RATE, TRANSITION_RATE = 3e-3, 0.02
WARM = 100  # steps
# Adam's floor under the gradient of a transition feature: rare labels, whose gradients are tiny and noisy,
# would otherwise move as fast as common ones
TRANSITION_EPS = 1e-5
EVERY = 100  # steps between checkpoints


@dataclass(frozen=True)
class Judged:
    """What a model says of the held-out verses, by the likeliest label of every word."""

    accuracy: float
    testament: float  # share of words whose label is of the right testament
    nll: float  # -log p(all labels of a verse | its words), for each word, nats
    agreement: Tensor  # the labels that were chosen, [n]


class Tagger(nn.Module):
    """Emissions, and a CRF over all labels; without transitions every word by itself."""

    def __init__(self, made: Corpus, transitions: LearnedTransitions | None, seed: int) -> None:
        super().__init__()
        self.made = made
        self.emissions = Emissions(made, torch.Generator().manual_seed(seed))
        self.crf = None
        if transitions is not None:
            generator = torch.Generator().manual_seed(seed)
            self.crf = CRF(
                made.num_labels, batch_first=True, transitions=transitions, generator=generator
            )

    def log_likelihood(self, verses: Tensor, fold: int = FOLDS) -> Tensor:
        """Sum over the verses."""
        if self.crf is None:
            labels = self.made.labels[self.made.tokens(verses)]
            return -nn.functional.cross_entropy(
                self.emissions(verses, fold), labels, reduction="sum"
            )
        unaries, mask = self.emissions.padded(verses, fold)
        return self.crf(unaries, self.made.padded_labels(verses), mask, reduction="sum")

    @torch.no_grad()
    def marginals(self, verses: Tensor) -> Tensor:
        """p(label | verse) of every word, [n, labels]."""
        if self.crf is None:
            return self.emissions(verses).softmax(-1)
        unaries, mask = self.emissions.padded(verses)
        return self.crf.marginals(unaries, mask)[self.made.places(verses)]


def low_rank_transitions(made: Corpus, rank: int, seed: int) -> LowRankTransitions:
    """Learned features that start as counted ones."""
    generator = torch.Generator().manual_seed(seed)
    found = LowRankTransitions(made.num_labels, rank, generator=generator)
    left, right = counted_features(made, rank, generator)
    with torch.no_grad():
        found.before.copy_(left)
        found.after.copy_(right)
    return found


def batches(made: Corpus, seed: int) -> list[Tensor]:
    """All training verses in random order, batches of one fold and of similar length."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = made.train[torch.randperm(len(made.train), generator=generator)]
    ordered = shuffled[made.lengths[shuffled].argsort(stable=True)]
    found = [b for fold in range(FOLDS) for b in ordered[ordered % FOLDS == fold].split(BATCH)]
    return [found[i] for i in torch.randperm(len(found), generator=generator)]


def optimisers(tagger: Tagger) -> list[torch.optim.Optimizer]:
    """Of the emissions, and of the transitions."""
    found: list[torch.optim.Optimizer] = [torch.optim.Adam(tagger.emissions.parameters(), lr=RATE)]
    if tagger.crf is not None:
        found.append(
            torch.optim.Adam(tagger.crf.parameters(), lr=TRANSITION_RATE, eps=TRANSITION_EPS)
        )
    return found


def first_pass(made: Corpus, seed: int, folder: Path) -> dict:
    """States of emissions and optimiser after a pass without transitions; kept for all contestants."""
    path = folder / f"emissions-{made.num_labels}-{seed}.pt"
    if not path.exists():
        tagger = Tagger(made, None, seed)
        (optimiser,) = optimisers(tagger)
        for step, verses in enumerate(batches(made, 2 * seed)):
            optimiser.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARM)
            _step(tagger, verses, [optimiser])
        with replacing(path) as temporary:
            torch.save([tagger.emissions.state_dict(), optimiser.state_dict()], temporary)
    return dict(zip(("emissions", "optimiser"), torch.load(path), strict=True))


def second_pass(tagger: Tagger, seed: int, path: Path) -> float:
    """The other pass, its rate falling to zero; continues from the checkpoint at `path`. CPU seconds."""
    found = batches(tagger.made, 2 * seed + 1)
    optimiser, *others = optimisers(tagger)
    optimiser.load_state_dict(first_pass(tagger.made, seed, path.parent)["optimiser"])
    everyone = [optimiser, *others]
    begun, spent = 0, 0.0
    if path.exists():
        kept = torch.load(path)
        begun, spent = kept["step"], kept["spent"]
        tagger.load_state_dict(kept["tagger"])
        tagger.emissions.generator.set_state(kept["generator"])
        for one, state in zip(everyone, kept["optimisers"], strict=True):
            one.load_state_dict(state)
    clock = time.process_time()
    for step in range(begun, len(found)):
        for one, rate in zip(everyone, (RATE, TRANSITION_RATE), strict=False):
            one.param_groups[0]["lr"] = rate * (1 - step / len(found))
        _step(tagger, found[step], everyone)
        if (step + 1) % EVERY == 0 or step + 1 == len(found):
            with replacing(path) as temporary:
                kept = {"step": step + 1, "spent": spent + time.process_time() - clock}
                kept["tagger"] = tagger.state_dict()
                kept["generator"] = tagger.emissions.generator.get_state()
                kept["optimisers"] = [one.state_dict() for one in everyone]
                torch.save(kept, temporary)
    return spent + time.process_time() - clock


def _step(tagger: Tagger, verses: Tensor, everyone: list[torch.optim.Optimizer]) -> None:
    tagger.train()
    words = int(tagger.made.lengths[verses].sum())
    loss = -tagger.log_likelihood(verses, int(verses[0]) % FOLDS) / words
    for one in everyone:
        one.zero_grad()
    loss.backward()
    for one in everyone:
        one.step()


@torch.no_grad()
def judged(tagger: Tagger, verses: Tensor) -> Judged:
    """Accuracy by posterior decoding, on verses in batches of similar length."""
    tagger.eval()
    made, hebrew = tagger.made, tagger.made.hebrew()
    likelihood, chosen, truth = 0.0, [], []
    for batch in verses[made.lengths[verses].argsort(stable=True)].split(BATCH):
        chosen.append(tagger.marginals(batch).argmax(-1))
        truth.append(made.labels[made.tokens(batch)])
        likelihood += float(tagger.log_likelihood(batch))
    found, right = torch.cat(chosen), torch.cat(truth)
    return Judged(
        float((found == right).double().mean()),
        float((hebrew[found] == hebrew[right]).double().mean()),
        -likelihood / len(right),
        found,
    )
