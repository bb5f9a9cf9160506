"""Sentence embeddings of the real MiniLM."""

import pytest
import torch

from bochner.transformers import sentence_embeddings
from tests.transformers.tiny import TEXTS


def test_sentence_embeddings_ignore_padding(minilm, batch):
    model, tokenizer = minilm
    with torch.no_grad():
        together = sentence_embeddings(model, **batch)
        alone = [sentence_embeddings(model, **tokenizer(t, return_tensors="pt")) for t in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    # the first numbers of sentence-transformers 6.2 for the same weights and texts
    reference = torch.tensor(
        [[0.0185823, 0.0097767, 0.0506417], [0.1257651, -0.0077912, -0.0087065]]
    )
    torch.testing.assert_close(together[:, :3], reference, rtol=0, atol=1e-5)


def test_sentence_embeddings_of_nothing(minilm, batch):
    mask = batch["attention_mask"] * torch.tensor([[1], [0]])
    with pytest.raises(ValueError, match=r"attends to nothing in rows \[1\]"):
        sentence_embeddings(minilm[0], batch["input_ids"], mask)
