"""Passages of the Brown corpus, with what is known of each, and their MiniLM embeddings."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch

from bochner.data import brown_documents, load_minilm
from bochner.transformers.embeddings import sentence_embeddings

FICTION, PROSE = "klmnp", "abhj"  # novels and stories; press, government, learned prose
PERSON = re.compile(r"\b(I|me|my|mine|we|us|our|ours|you|your|yours)\b")
WORDS = 32  # of a passage, at most
FEWEST = 12
BATCH = 64


class Passage(NamedTuple):
    """The first words of a paragraph."""

    text: str
    document: str
    fiction: bool
    person: bool  # whether somebody says I, we or you


def passages(categories: str = FICTION + PROSE) -> list[Passage]:
    """One of every paragraph that is long enough."""
    found = []
    for name, text in brown_documents(categories).items():
        for paragraph in text.split("\n\n"):
            words = paragraph.split()[:WORDS]
            if len(words) >= FEWEST:
                start = " ".join(words)
                found.append(Passage(start, name, name[1] in FICTION, bool(PERSON.search(start))))
    return found


def embeddings(chosen: list[Passage]) -> np.ndarray:
    """Mean-pooled MiniLM embeddings of length 1, [n, 384] float32."""
    model, tokenizer = load_minilm()
    order = np.argsort([len(p.text) for p in chosen])  # alike lengths pad little
    out = np.empty((len(chosen), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(chosen), BATCH):
        rows = order[start : start + BATCH]
        tokens = tokenizer([chosen[i].text for i in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            out[rows] = sentence_embeddings(model, **tokens).numpy()
    return out
