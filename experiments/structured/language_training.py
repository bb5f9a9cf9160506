"""Hidden Markov language models: how one is built, trained with checkpoints, and measured.

Adam on the exact log-probability of the verses, in batches of one length. Both kinds of transitions are
the product's own: `SoftmaxTransitions` (a table, quadratic in the states) and `FeatureTransitions` of
rank m, whose features are trained and are the model.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bochner.data import replacing
from bochner.structured import (
    HMM,
    CategoricalEmissions,
    FeatureTransitions,
    LearnedTransitions,
    SoftmaxTransitions,
)
from experiments.structured.kjv_corpus import Corpus, batches

DIM = 32  # of all embeddings
BETAS = (0.9, 0.98)
WARM_UP, LAST_RATE = (
    0.05,
    0.02,
)  # share of the steps with a rising rate; what a falling rate ends at
NOISE = 0.5  # standard deviation of what a grown model's parameters get
SAVE_EVERY = 200.0  # seconds of work that an interruption may cost
ELEMENTS = 1 << 22  # of an evaluation: words of a batch times states


@dataclass(frozen=True)
class Recipe:
    """All that a trained model depends on.

    rank None: exact softmax transitions. tokens: of a batch, at most. verses: the first so many, None
    takes all. parent: the trained model that this one starts from, with a divisor of its states.
    """

    states: int
    rank: int | None
    seed: int
    epochs: float = 3.0
    tokens: int = 1_920
    rate: float = 0.1
    verses: int | None = None
    parent: Recipe | None = None

    @property
    def passes(self) -> float:
        """Epochs in all, those of the parents included."""
        return self.epochs + (self.parent.passes if self.parent else 0.0)

    @property
    def digest(self) -> str:
        """A short name for files: other recipes have other names."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:10]


def build(recipe: Recipe, corpus: Corpus) -> HMM:
    """The model before training: its words as frequent as in the training verses."""
    generator = torch.Generator().manual_seed(recipe.seed)
    transitions: LearnedTransitions
    if recipe.rank is None:
        transitions = SoftmaxTransitions(recipe.states, DIM, generator=generator)
    else:
        transitions = FeatureTransitions(recipe.states, recipe.rank, generator=generator)
    emissions = CategoricalEmissions(recipe.states, len(corpus.words), dim=DIM, generator=generator)
    with torch.no_grad():
        emissions.bias.copy_((corpus.counts.double() / corpus.counts.sum()).log())
    return HMM(transitions, emissions)


@torch.no_grad()
def grow_(hmm: HMM, parent: HMM, generator: torch.Generator) -> None:
    """Set the parameters to those of a smaller model, each of whose states becomes as many as fit.

    The noise lets the new states part; without it they would have one gradient for ever.
    """
    given = dict(parent.named_parameters())
    for name, parameter in hmm.named_parameters():
        value = given[name]
        times = len(parameter) // len(value)
        noise = torch.randn(parameter.shape, generator=generator) if times > 1 else 0.0
        parameter.copy_(value.repeat_interleave(times, dim=0) + NOISE * noise)


@torch.no_grad()
def perplexity(hmm: HMM, corpus: Corpus) -> float:
    """exp of the mean negative log-probability of a test word, END included."""
    tokens = max(1, ELEMENTS // hmm.num_states)
    total = sum(float(hmm.log_prob(batch).double().sum()) for batch in batches(corpus.test, tokens))
    return math.exp(-total / sum(map(len, corpus.test)))


def schedule(step: int, steps: int) -> float:
    """The learning rate as a share of the largest: up during WARM_UP, then down in a line."""
    rising = (step + 1) / (WARM_UP * steps)
    return min(1.0, rising, max(LAST_RATE, 1 - step / steps))


class Training:
    """A model on its way: what a checkpoint keeps."""

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        self.recipe, self.corpus = recipe, corpus
        self.hmm = build(recipe, corpus)
        self.optimizer = torch.optim.Adam(self.hmm.parameters(), lr=recipe.rate, betas=BETAS)
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[float, float]] = []  # (epochs, test perplexity)

    def epoch_batches(self, epoch: int) -> list[Tensor]:
        """In an order that the seed and the epoch decide, wherever a run starts."""
        generator = torch.Generator().manual_seed(1_000 * self.recipe.seed + epoch)
        return batches(self.corpus.train, self.recipe.tokens, generator)

    def run(self, path: Path) -> None:
        """To the end, from where it is, saving on the way."""
        saved = time.process_time()
        steps_per_epoch = len(self.epoch_batches(0))
        steps = math.ceil(self.recipe.epochs * steps_per_epoch)
        while self.step < steps:
            epoch, first = divmod(self.step, steps_per_epoch)
            last = min(steps_per_epoch, steps - epoch * steps_per_epoch)
            for batch in self.epoch_batches(epoch)[first:last]:
                started = time.process_time()
                self._update(batch, schedule(self.step, steps))
                self.step += 1
                self.seconds += time.process_time() - started
                if time.process_time() - saved > SAVE_EVERY:
                    self.save(path)
                    saved = time.process_time()
            self.curve.append((self.step / steps_per_epoch, perplexity(self.hmm, self.corpus)))
            self.save(path)

    def _update(self, batch: Tensor, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * share
        loss = -self.hmm.log_prob(batch).sum() / batch.numel()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save(self, path: Path) -> None:
        """All of it in one file."""
        state = {
            "hmm": self.hmm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": (self.step, self.seconds, self.curve),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go on from a file that `save` wrote."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.hmm.load_state_dict(state["hmm"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, curve = state["progress"]
        self.curve = [(float(epochs), float(found)) for epochs, found in curve]


def trained(recipe: Recipe, corpus: Corpus, folder: Path) -> Training:
    """The finished training, from the scratch folder where it is there; other processes wait."""
    path = folder / f"hmm-{recipe.digest}.pt"
    with locked(path.with_suffix(".lock")):
        training = Training(recipe, corpus)
        if path.exists():
            training.restore(path)
        elif recipe.parent is not None:
            generator = torch.Generator().manual_seed(recipe.seed)
            grow_(training.hmm, trained(recipe.parent, corpus, folder).hmm, generator)
        training.run(path)
    return training


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Other processes wait; the lock goes with the process that holds it, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
