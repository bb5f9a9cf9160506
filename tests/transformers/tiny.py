"""Tiny random models of every family, maps for them, and exact attention in the engine's signature."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import bochner
from bochner.nonlinearities import Positive
from bochner.projections import Orthogonal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.transformers import attention_places, linear_attention_swapped

TEXTS = [
    "The jury further said that the City Executive Committee deserves the praise of the city.",
    "A cat sat.",
]
VOCABULARY = 50
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = SIZES | {"intermediate_size": 16, "max_position_embeddings": 64, "initializer_range": 0.3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = SIZES | NO_DROPOUT | {"intermediate_size": 16, "initializer_range": 0.3}


def _llama(**sizes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**LLAMA | TOKENS | sizes))


def _gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 50}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drop, **TOKENS, initializer_range=0.3))


def _neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**LLAMA, **TOKENS, rotary_pct=0.5))


def _whisper() -> PreTrainedModel:
    config = WhisperConfig(
        vocab_size=50,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=20,
        max_target_positions=64,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.3,
        **TOKENS,
    )
    return WhisperForConditionalGeneration(config)


def _bart() -> PreTrainedModel:
    layers = {"encoder_layers": 1, "decoder_layers": 2, "d_model": 16, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
    config = BartConfig(
        **layers,
        **heads,
        **widths,
        **TOKENS,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        init_std=0.3,
        dropout=0.0,
    )
    return BartForConditionalGeneration(config)


def _images() -> dict[str, object]:
    return {"image_size": 12, "patch_size": 4, "initializer_range": 0.3} | NO_DROPOUT


def _ids(n: int = 9, seed: int = 1, lowest: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(lowest, VOCABULARY, (2, n), generator=g)


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": _ids(), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


def _pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))}


def _speech() -> dict[str, torch.Tensor]:
    features = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    return {
        "input_features": features,
        "decoder_input_ids": _ids(),
        "decoder_attention_mask": mask,
    }


def _translation() -> dict[str, torch.Tensor]:
    return _text() | {"decoder_input_ids": _ids(7, seed=2)}


@dataclass(frozen=True)
class Family:
    """A tiny model and its inputs.

    ids, mask: the names of the sequence whose causality or padding is looked at; None: it has none.
    causal: whether the output at a token must not know later tokens of `ids`.
    """

    build: Callable[[], PreTrainedModel]
    inputs: Callable[[], dict[str, torch.Tensor]]
    ids: str | None = "input_ids"
    mask: str | None = "attention_mask"
    causal: bool = False

    def model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        return self.build().eval()


FAMILIES = {
    "bert": Family(lambda: BertModel(BertConfig(**BERT)), _text),
    "albert": Family(lambda: AlbertModel(AlbertConfig(**BERT, embedding_size=8)), _text),
    "vit": Family(
        lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=16, **_images())), _pixels, None, None
    ),
    "dinov2": Family(lambda: Dinov2Model(Dinov2Config(**SIZES, **_images())), _pixels, None, None),
    "gpt2": Family(_gpt2, _text, causal=True),
    "neox": Family(_neox, _text, causal=True),
    "llama": Family(lambda: _llama(num_key_value_heads=2), _text, causal=True),
    "llama-grouped": Family(
        lambda: _llama(num_attention_heads=4, num_key_value_heads=2), _text, causal=True
    ),
    "whisper": Family(
        _whisper, _speech, "decoder_input_ids", "decoder_attention_mask", causal=True
    ),
    "bart-encoder": Family(_bart, _translation),
    "bart-decoder": Family(_bart, _translation, "decoder_input_ids", None, causal=True),
    "bert-decoder": Family(
        lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True)), _text, causal=True
    ),
}


def make_maps(layers, heads, dim, num_features=64):
    g = torch.Generator().manual_seed(2)
    request = Request(
        dim=dim,
        num_features=num_features,
        projection=Orthogonal(),
        generator=g,
        batch_shape=(heads,),
    )
    return [RandomFeatures(request, Positive()) for _ in range(layers)]


def maps_for(model, num_features=16):
    """One positive map for each attention module, its keys' features computed once per key head."""
    g = torch.Generator().manual_seed(2)
    places = attention_places(model)
    size = {"num_features": num_features, "generator": g}
    return [
        bochner.make("positive", dim=p.head_dim, batch_shape=(p.kv_heads,), **size) for p in places
    ]


def exact_attention(feature_map, q, k, v, *, causal=False, key_mask=None, exact=None):
    """The signature of linear_attention, with softmax attention inside."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    visible = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    visible = visible.tril(k.shape[-2] - q.shape[-2]) if causal else visible
    if key_mask is not None:
        visible = visible & key_mask.unsqueeze(-2)
    weights = torch.softmax((q @ k.mT).masked_fill(~visible, -torch.inf), dim=-1)
    return weights.nan_to_num() @ v.to(weights.dtype)


def blind_attention(feature_map, q, k, v, *, causal=False, key_mask=None, exact=None):
    """A mutant of exact_attention that loses the padding."""
    return exact_attention(feature_map, q, k, v, causal=causal)


def acausal_attention(feature_map, q, k, v, *, causal=False, key_mask=None, exact=None):
    """A mutant of exact_attention that loses causality."""
    return exact_attention(feature_map, q, k, v, key_mask=key_mask)


@torch.no_grad()
def hidden(model, inputs):
    """The last hidden state, or the logits."""
    return model(**inputs)[0]


@torch.no_grad()
def swapped_hidden(model, maps, inputs):
    with linear_attention_swapped(model, maps):
        return hidden(model, inputs)


def valid(x, inputs, mask="attention_mask"):
    """The rows of tokens that are not padding."""
    return x[inputs[mask].bool()]
