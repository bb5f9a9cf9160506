"""Linear attention inside a with-block, for a model that is to stay as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel

from bochner.feature_map import FeatureMap
from bochner.transformers.convert import linearize, restore


@contextmanager
def linear_attention_swapped(
    model: PreTrainedModel, feature_maps: Sequence[FeatureMap]
) -> Iterator[None]:
    """Inside the with-block `model(...)` attends linearly, through one feature map per layer.

    Arguments:  feature_maps: one per attention module, in the order of `attention_places(model)`, each
                for the head dimension and with batch_shape=(kv heads,) or (heads,), or () to share it
                between heads. Weights stay as they are.
    Masks:      as in `linearize`, which does the work: padding and causality are kept, any other mask
                is refused.
    Raises:     on entry and in `model(...)` what `linearize` raises.
    Differs:    from `linearize`: the model's own attention is back at the end of the block, also after
                an error.
    Example:
        >>> import bochner, torch
        >>> from bochner.transformers import sentence_embeddings
        >>> from bochner.data import load_minilm
        >>> model, tokenizer = load_minilm()
        >>> tokens = tokenizer("A kitten is in the garden.", return_tensors="pt")
        >>> g = torch.Generator().manual_seed(0)
        >>> size = {"dim": 32, "num_features": 1024, "batch_shape": (12,), "generator": g}
        >>> maps = [bochner.make("positive", **size) for _ in range(6)]
        >>> with torch.no_grad():
        ...     exact = sentence_embeddings(model, **tokens)
        ...     with linear_attention_swapped(model, maps):
        ...         linear = sentence_embeddings(model, **tokens)
        >>> 0.5 < float(linear @ exact.T) < 0.9  # plain random features, fitted to nothing
        True
    """
    linearize(model, feature_maps)
    try:
        yield
    finally:
        restore(model)
