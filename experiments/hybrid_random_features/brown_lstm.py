"""A 2-layer LSTM language model with tied embeddings on the Brown corpus: its queries and its keys.

    softmax row of a position:  p(w | history) proportional to exp(q . k_w)

q is the output of the LSTM (no projection after it), k_w the embedding of word w, which is the input
embedding too. There is no bias, so that the kernel sees all that the softmax sees.

The papers' corpus, the Penn Treebank, is not free. Brown stands in for it: other words, 15 genres,
so perplexities are not comparable with published ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bochner.data import replacing
from bochner.data.text import BROWN_CATEGORIES, brown_documents

UNKNOWN, END = "<unk>", "</s>"
WORD = re.compile(r"[^\W_]+(?:['.,&/-][^\W_]+)*")  # letters and digits; no punctuation, as in PTB


@dataclass(frozen=True)
class Recipe:
    """All that a trained model depends on; `documents` per genre (None takes all)."""

    documents: int | None = None
    vocabulary: int = 10_000
    hidden: int = 200
    dropout: float = 0.2
    bptt: int = 64
    batch: int = 32
    learning_rate: float = 4e-3
    clip: float = 1.0
    epochs: int = 7
    patience: int = 1  # epochs without a better validation loss before training ends
    seed: int = 0

    @property
    def digest(self) -> str:
        """A short name for files: other recipes have other names."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:10]


# Six documents of each genre: four to train on, one to validate, one to test.
QUICK = Recipe(
    documents=6, vocabulary=2_000, hidden=64, batch=8, bptt=16, learning_rate=1e-2, epochs=1
)
FULL = Recipe()


# -- text ------------------------------------------------------------------------------------------
class Corpus(NamedTuple):
    """Word numbers of three sets of documents; the vocabulary is that of the training set."""

    words: list[str]
    train: Tensor
    valid: Tensor
    test: Tensor


def split(documents: dict[str, str], limit: int | None) -> dict[str, list[str]]:
    """Names of documents for train, valid and test: of each genre's first `limit`, in turn.

    Of every ten documents of a genre the fourth validates and the sixth tests, so that each part has
    all 15 genres (the smallest has 6 documents).
    """
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for genre in BROWN_CATEGORIES:
        names = sorted(name for name in documents if name[1] == genre)[:limit]
        for index, name in enumerate(names):
            part = {3: "valid", 5: "test"}.get(index % 10, "train")
            parts[part].append(name)
    return parts


def tokens(text: str) -> list[str]:
    """Lower-case words, and END after each paragraph."""
    words: list[str] = []
    for paragraph in text.split("\n\n"):
        words += [*WORD.findall(paragraph.lower()), END]
    return words


def vocabulary(words: Sequence[str], size: int) -> list[str]:
    """UNKNOWN, END, then the most frequent words; equal counts in alphabetical order."""
    counts = Counter(words)
    counts.pop(END, None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [UNKNOWN, END, *ranked[: size - 2]]


def read_corpus(recipe: Recipe) -> Corpus:
    """Brown as three streams of word numbers; documents in a shuffled order that mixes genres."""
    documents = brown_documents()
    parts = split(documents, recipe.documents)
    generator = torch.Generator().manual_seed(recipe.seed)
    streams = {}
    for part, names in parts.items():
        order = torch.randperm(len(names), generator=generator).tolist()
        streams[part] = [word for i in order for word in tokens(documents[names[i]])]
    words = vocabulary(streams["train"], recipe.vocabulary)
    number = {word: i for i, word in enumerate(words)}
    ids = {
        part: torch.tensor([number.get(w, 0) for w in stream]) for part, stream in streams.items()
    }
    return Corpus(words, ids["train"], ids["valid"], ids["test"])


def columns(stream: Tensor, count: int) -> Tensor:
    """A stream as `count` contiguous columns [length, count]; the remainder is dropped."""
    length = len(stream) // count
    return stream[: length * count].view(count, length).t().contiguous()


def windows(stream: Tensor, count: int, bptt: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, next words), each [up to bptt, count], one after the other."""
    rows = columns(stream, count)
    for start in range(0, len(rows) - 1, bptt):
        stop = min(start + bptt, len(rows) - 1)
        yield rows[start:stop], rows[start + 1 : stop + 1]


# -- model -----------------------------------------------------------------------------------------
State = tuple[Tensor, Tensor]


class TiedCrossEntropy(torch.autograd.Function):
    """cross_entropy(q @ k.T, targets) in one matrix of logits, turned into its gradient in place.

    The softmax over 10,000 words is most of the training's time; this takes 0.6 of torch's.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, targets: Tensor) -> Tensor:
        """Mean loss; what is kept for the backward pass is (softmax - one-hot) / n."""
        rows = torch.arange(len(targets))
        work = queries @ keys.t()
        chosen = work[rows, targets]
        top = work.amax(dim=1, keepdim=True)
        total = work.sub_(top).exp_().sum(dim=1, keepdim=True)
        losses = (total.log() + top).squeeze(1) - chosen
        work.div_(total * len(targets))
        work[rows, targets] -= 1.0 / len(targets)
        ctx.save_for_backward(queries, keys, work)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """To the queries and to the keys."""
        queries, keys, work = ctx.saved_tensors
        return gradient * (work @ keys), gradient * (work.t() @ queries), None


class LanguageModel(nn.Module):
    """Embedding, two LSTM layers, logits against the same embedding."""

    def __init__(self, recipe: Recipe, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, recipe.hidden)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(recipe.hidden, recipe.hidden, 2, dropout=recipe.dropout)
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Queries [length, batch, hidden] and the state to go on from."""
        outputs, state = self.lstm(self.dropout(self.embedding(inputs)), state)
        return self.dropout(outputs), state

    def loss(self, queries: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of the next words."""
        return TiedCrossEntropy.apply(
            queries.flatten(0, 1), self.embedding.weight, targets.flatten()
        )


@torch.no_grad()
def outputs(model: LanguageModel, stream: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor, float]:
    """All queries [n, hidden] of a stream, their next words [n], and the mean loss."""
    model.eval()
    state, queries, targets, total = None, [], [], 0.0
    for inputs, following in windows(stream, 10, recipe.bptt):
        q, state = model(inputs, state)
        total += float(model.loss(q, following)) * following.numel()
        queries.append(q.flatten(0, 1))
        targets.append(following.flatten())
    all_targets = torch.cat(targets)
    return torch.cat(queries), all_targets, total / len(all_targets)


# -- training --------------------------------------------------------------------------------------
def train_epoch(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    stream: Tensor,
    recipe: Recipe,
    epoch: int,
) -> float:
    """One pass; Adam's step falls linearly to 0 over all epochs. The mean loss."""
    model.train()
    batches = list(windows(stream, recipe.batch, recipe.bptt))
    state, total = None, 0.0
    for index, (inputs, targets) in enumerate(batches):
        done = (epoch + index / len(batches)) / recipe.epochs
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1.0 - done)
        queries, (h, c) = model(inputs, state)
        state = (h.detach(), c.detach())
        loss = model.loss(queries, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        total += float(loss.detach())
    return total / len(batches)


def train(recipe: Recipe, corpus: Corpus, path: Path, say: Callable[[str], None]) -> LanguageModel:
    """The epoch with the best validation loss; `path` holds the state after each epoch.

    An interrupted training goes on after its last whole epoch, and ends at the same weights: the
    random numbers of an epoch depend on its index alone.
    """
    with torch.random.fork_rng():  # dropout and initialisation draw from torch's global generator
        torch.manual_seed(recipe.seed)
        model = LanguageModel(recipe, len(corpus.words))
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
        best, best_loss, history = None, math.inf, []
        if path.exists():
            saved = torch.load(path, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            best, best_loss, history = saved["best"], saved["best_loss"], saved["history"]
        while len(history) < recipe.epochs and not _stalled(history, recipe.patience):
            started, epoch = time.perf_counter(), len(history)
            torch.manual_seed(recipe.seed + 1 + epoch)
            train_loss = train_epoch(model, optimizer, corpus.train, recipe, epoch)
            valid_loss = outputs(model, corpus.valid, recipe)[2]
            history.append(valid_loss)
            if valid_loss < best_loss:
                best_loss = valid_loss
                best = {k: v.clone() for k, v in model.state_dict().items()}
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best,
                "best_loss": best_loss,
                "history": history,
            }
            save(state, path)
            say(
                f"epoch {epoch + 1}: train {train_loss:.4f}, valid {valid_loss:.4f} nats"
                f" (perplexity {math.exp(valid_loss):.1f}), {time.perf_counter() - started:.0f} s"
            )
        assert best is not None
        model.load_state_dict(best)
    return model


def _stalled(history: list[float], patience: int) -> bool:
    """Whether the best validation loss is `patience` or more epochs old."""
    return bool(history) and len(history) - 1 - history.index(min(history)) >= patience


def save(state: object, path: Path) -> None:
    """Readers see all of it or none: an interrupted write leaves the old file whole."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Other processes wait; the lock goes with the process that holds it, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- what the experiment wants ---------------------------------------------------------------------
class Softmax(NamedTuple):
    """Queries and keys of the trained model: what exp(q.k) is estimated on.

    `queries` are a random subset of all `positions` of the test documents, `valid_queries` one of the
    validation documents (to fit data-aware maps on); losses are over all of them, in nats.
    """

    queries: Tensor
    valid_queries: Tensor
    keys: Tensor
    positions: int
    valid_loss: float
    test_loss: float
    epochs: int
    unknown: float


def softmax_problem(
    recipe: Recipe, folder: Path, *, queries: int, say: Callable[[str], None] = print
) -> Softmax:
    """Trained once per recipe and kept in `folder`; processes that want the same one wait for it."""
    stem = f"lstm-{recipe.digest}"
    path = folder / f"{stem}-softmax-{queries}.pt"
    with locked(folder / f"{stem}.lock"):
        if not path.exists():
            corpus = read_corpus(recipe)
            model = train(recipe, corpus, folder / f"{stem}.pt", say)
            save(_extract(recipe, corpus, model, folder / f"{stem}.pt", queries), path)
    return Softmax(**torch.load(path, weights_only=True))


def _extract(
    recipe: Recipe, corpus: Corpus, model: LanguageModel, checkpoint: Path, count: int
) -> dict[str, object]:
    generator = torch.Generator().manual_seed(recipe.seed)
    test, _, test_loss = outputs(model, corpus.test, recipe)
    valid, _, valid_loss = outputs(model, corpus.valid, recipe)
    return {
        "queries": test[torch.randperm(len(test), generator=generator)[:count]].clone(),
        "valid_queries": valid[torch.randperm(len(valid), generator=generator)[:count]].clone(),
        "keys": model.embedding.weight.detach().clone(),
        "positions": len(test),
        "valid_loss": valid_loss,
        "test_loss": test_loss,
        "epochs": len(torch.load(checkpoint, weights_only=True)["history"]),
        "unknown": float((corpus.test == 0).double().mean()),
    }
