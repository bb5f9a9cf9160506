"""Fit the feature maps of a converted model to what its heads see, and measure them on other text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.request import fresh_generator
from bochner.transformers.calibrate_fit import first_call, fit_layers
from bochner.transformers.calibrate_report import CalibrationReport, LayerErrors
from bochner.transformers.calibrate_sample import Inputs, draw_sample
from bochner.transformers.observe import Call, observed
from bochner.validation import check_count


def calibrate(
    model: PreTrainedModel,
    batches: Iterable[Inputs | Tensor],
    *,
    sequential: bool = False,
    exact_heads: int | float = 0,
    max_tokens: int = 8192,
    theory: bool = True,
    generator: torch.Generator | None = None,
) -> CalibrationReport:
    """Fit every map of a converted model to its own layer, and measure each head on held-out text.

    Arguments:  model: after `linearize`, in evaluation mode. Its unfitted maps are replaced by fitted ones,
                one per head (per key/value head under grouped queries, whose queries are pooled); maps
                that need no data, or are fitted already, are measured only, and the report says so: to
                fit anew, `restore` and `linearize` again.
                batches: dictionaries of model inputs, or token numbers [batch, n]; read once. Every
                fourth batch is held out, the second of them first. Padding takes no part.
                sequential: fit layer by layer on the activations of the model converted so far, against
                exact attention on those.
                exact_heads: heads that stay exact, those with the largest error: a number (int), or a
                share of all heads (float).
                max_tokens: tokens that are kept to fit on, a random sample of whole sequences that
                `generator` draws; a third as many to measure on.
                theory: add the error that theory predicts, where it has one; for hybrids of many parts
                that takes longer than all the rest.
    Returns:    CalibrationReport; print it.
    Cost:       two passes over the sample, and the fits; sequential: as many passes as layers, each as
                deep as its layer. Memory for q, k, v of the sample up to 1 GiB (float32; for more, layers
                are taken in groups), plus one layer's.
    Raises:     TypeError for batches that are none; ValueError for a model that is not converted or is in
                training mode, fewer than two batches, or a budget out of range.
    Example:
        >>> import torch
        >>> from bochner.data import load_minilm
        >>> from bochner.transformers import calibrate, linearize
        >>> model, _ = load_minilm()
        >>> g = torch.Generator().manual_seed(0)
        >>> model = linearize(model, "data-aware", 16, layers=[0], generator=g)
        >>> tokens = torch.randint(2000, 3000, (8, 64), generator=g)
        >>> report = calibrate(model, tokens.split(2), generator=g)
        >>> report.sample.tokens, report.sample.held_out_tokens, report.num_heads
        (384, 128, 12)
    """
    check_count("max_tokens", max_tokens)
    if model.training:
        raise ValueError(
            "model is in training mode, so dropout would change what its heads see; call model.eval()"
            " first."
        )
    with observed(model, Call.exact) as layers:
        names = {_name(layer.feature_map) for layer in layers.values()}
    budget = _budget(exact_heads, sum(len(layer.exact_heads) for layer in layers.values()))
    wanting = sum(isinstance(layer.feature_map, UnfittedMap) for layer in layers.values())
    sample = draw_sample(
        batches,
        max_tokens=max_tokens,
        count=lambda row: first_call(model, row).q.shape[-2],
        generator=fresh_generator() if generator is None else generator,
    )
    some, call = next(iter(layers.values())), first_call(model, sample.fit[0])
    for layer in layers.values():
        layer.keep_exact([])
    errors = fit_layers(model, sample, in_turn=sequential, theory=theory)
    kept = _worst_heads(errors, budget)
    for number, heads in kept.items():
        layers[number].keep_exact(heads.nonzero().flatten().tolist())
    return CalibrationReport(
        feature_map=", ".join(sorted(names)),
        num_features=some.feature_map.num_features,
        window=0 if some.exact is None else some.exact.window,
        sinks=0 if some.exact is None else some.exact.sinks,
        causal=call.causal,
        sequential=sequential,
        layers={n: replace(e, exact=kept[n]) for n, e in errors.items()},
        sample=sample.sizes(),
        fitted_layers=wanting,
    )


def _name(feature_map: FeatureMap) -> str:
    return (
        str(feature_map.name)
        if isinstance(feature_map, UnfittedMap)
        else type(feature_map).__name__
    )


def _budget(exact_heads: int | float, num_heads: int) -> int:
    """The number of heads that stay exact, from a number or a share."""
    if not isinstance(exact_heads, int | float):
        raise TypeError(
            f"exact_heads={exact_heads!r} must be a number of heads, or a share of them."
        )
    fits = 0 <= exact_heads <= (1.0 if isinstance(exact_heads, float) else num_heads)
    if isinstance(exact_heads, bool) or not fits:
        raise ValueError(
            f"exact_heads={exact_heads!r} must be a number of heads between 0 and {num_heads}, or a share"
            " between 0.0 and 1.0."
        )
    return round(exact_heads * num_heads) if isinstance(exact_heads, float) else exact_heads


def _worst_heads(errors: dict[int, LayerErrors], budget: int) -> dict[int, Tensor]:
    """Which heads have the `budget` largest measured errors, a bool [heads] per layer."""
    all_errors = torch.cat([e.measured for e in errors.values()])
    chosen = torch.zeros(len(all_errors), dtype=torch.bool)
    chosen[all_errors.topk(budget).indices] = True
    parts = chosen.split([len(e.measured) for e in errors.values()])
    return dict(zip(errors, parts, strict=True))
