import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bochner.data.minilm import load_minilm
from bochner.transformers import layer
from tests.transformers.tiny import LLAMA, TEXTS


@pytest.fixture(scope="module")
def minilm():
    return load_minilm()


@pytest.fixture(scope="module")
def batch(minilm):
    """Two sentences, the second padded."""
    tokens = minilm[1](TEXTS, padding=True, return_tensors="pt")
    assert tokens["attention_mask"].sum(dim=1).tolist() == [18, 6]
    return dict(tokens)


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA, num_key_value_heads=2)).eval()


@pytest.fixture
def tokens():
    """A left-padded batch for the tiny models."""
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    return {"input_ids": torch.randint(50, (2, 9), generator=g), "attention_mask": mask}


@pytest.fixture
def use_attention(monkeypatch):
    """Let converted layers compute with another function than linear_attention."""
    return lambda function: monkeypatch.setattr(layer, "linear_attention", function)
