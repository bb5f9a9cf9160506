"""Fit and measure the layers of a converted model, in groups or one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bochner.algebra import Constant
from bochner.attention.window import ExactWindow
from bochner.diagnostics import predict
from bochner.feature_map import FeatureMap
from bochner.feature_maps.calibrated import fit_calibrated
from bochner.fitting import UnfittedMap
from bochner.transformers.calibrate_report import LayerErrors
from bochner.transformers.calibrate_sample import Inputs, Sample, on_device, stacked
from bochner.transformers.convert import converted_layers
from bochner.transformers.layer import LinearLayer
from bochner.transformers.observe import Call, observed

_KEPT_ELEMENTS = 1 << 28
"""Queries, keys and values that are kept at one time: 1 GiB of float32. More layers mean more passes."""
_PREDICTED_QUERIES = 8
"""Queries of one held-out sequence for which theory predicts the error."""


def fit_layers(
    model: PreTrainedModel, sample: Sample, *, in_turn: bool, theory: bool = True
) -> dict[int, LayerErrors]:
    """Fit every layer that wants data, and measure all of them on the held-out sequences.

    Arguments:  in_turn: each layer on the activations of the model with all layers before it converted;
                else on those of the exact model. theory: predict errors, too.
    """
    layers = converted_layers(model)
    groups = [[number] for number in layers] if in_turn else _groups(model, sample)
    errors: dict[int, LayerErrors] = {}
    for group in groups:
        before = list(errors) if in_turn else []
        calls: dict[int, list[Call]] = {number: [] for number in group}
        if any(isinstance(layers[number].feature_map, UnfittedMap) for number in group):
            for call in _look(model, sample.fit, group, before):
                calls[call.layer].append(call)
        for number in group:
            layers[number].feature_map = _fitted(number, layers[number], calls.pop(number))
        totals = {number: _Totals(layers[number], theory) for number in group}
        for call in _look(model, sample.held_out, group, before):
            totals[call.layer].add(call)
        for number, total in totals.items():
            if not total.seen:
                raise never_ran(number, layers[number])
        errors |= {number: total.errors() for number, total in totals.items()}
    return errors


def first_call(model: PreTrainedModel, row: Inputs) -> Call:
    """What the first converted layer sees of one sequence, without padding."""
    number, layer = next(iter(converted_layers(model).items()))
    call = next(_look(model, [row], [number]), None)
    if call is None:
        raise never_ran(number, layer)
    return call


def never_ran(number: int, layer: LinearLayer) -> ValueError:
    """The error for a converted layer that no batch reaches."""
    return ValueError(
        f"converted layer {number} ({layer.place}) never ran on the batches, so nothing can be said of it;"
        " pass batches that use it (images to a vision model), or convert other layers: restore(model),"
        " then linearize(model, ..., layers=[...])."
    )


class _Enough(Exception):
    """Ends a forward pass after the layer that was wanted."""


class _Look:
    """An observer that keeps what the wanted layers see; `converted` ones answer linearly."""

    def __init__(
        self, layers: dict[int, LinearLayer], wanted: Collection[int], converted: Collection[int]
    ) -> None:
        self.layers, self.wanted, self.converted = layers, wanted, converted
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> Tensor:
        if call.layer in self.converted:
            return call.converted(self.layers[call.layer])
        if call.layer in self.wanted:
            self.calls.append(call.without_padding())
            if len(self.wanted) == 1 < len(self.layers):
                raise _Enough
        return call.exact()


def _look(
    model: PreTrainedModel,
    rows: Iterable[Inputs],
    wanted: Collection[int],
    converted: Collection[int] = (),
) -> Iterator[Call]:
    """What the wanted layers see of each sequence, without padding; one wanted layer ends the pass."""
    for row in rows:
        look = _Look(converted_layers(model), wanted, converted)
        with torch.no_grad(), observed(model, look), suppress(_Enough):
            model(**on_device(model, row))
        yield from look.calls


def _groups(model: PreTrainedModel, sample: Sample) -> list[list[int]]:
    """Layers whose queries, keys and values of the whole sample may be kept at one time."""
    layers = converted_layers(model)
    sizes = dict.fromkeys(layers, 0)
    for call in _look(model, sample.fit[:1], list(layers)):
        sizes[call.layer] += (call.q.numel() + call.k.numel() + call.v.numel()) * len(sample.fit)
    groups: list[list[int]] = []
    room = 0
    for number, size in sizes.items():
        if size > room:
            groups.append([])
            room = _KEPT_ELEMENTS
        groups[-1].append(number)
        room -= size
    return groups


def _fitted(number: int, layer: LinearLayer, calls: list[Call]) -> FeatureMap:
    """The layer's map, fitted if it wants data; `calibrated` also to what window and sinks leave it."""
    phi = layer.feature_map
    if not isinstance(phi, UnfittedMap):
        return phi
    if not calls:
        raise never_ran(number, layer)
    calibrated = phi.name == "calibrated"
    q, k, v = stacked(calls, phi.batch_shape, pooled=not calibrated)
    if not calibrated:
        return phi.fit(q, k)
    near = ExactWindow(0, 0) if layer.exact is None else layer.exact
    return fit_calibrated(
        phi.request, q, k, values=v, causal=calls[0].causal, window=near.window, sinks=near.sinks
    )


class _Totals:
    """Squared errors of one layer's heads, summed over held-out sequences."""

    def __init__(self, layer: LinearLayer, theory: bool) -> None:
        self.layer, self.theory = layer, theory
        self.sums = torch.zeros(3, len(layer.exact_heads), dtype=torch.float64)
        self.predicted: Tensor | None = None
        self.seen = 0

    @torch.no_grad()
    def add(self, call: Call) -> None:
        """Add one sequence."""
        phi, exact = self.layer.feature_map, call.exact()
        flat = call.linear(Constant(phi.dim), None)
        if self.theory and not (self.seen or call.causal or self.layer.exact):
            self.predicted = _predicted(phi, call)
        self.seen += 1
        for total, out in zip(
            self.sums,
            (call.linear(phi, self.layer.exact) - exact, flat - exact, exact),
            strict=True,
        ):
            total += out.double().square().sum((0, 2, 3)).cpu()

    def errors(self) -> LayerErrors:
        """The quotients."""
        measured, averaging = (self.sums[:2] / self.sums[2]).sqrt()
        return LayerErrors(measured, averaging, self.predicted, torch.zeros_like(measured).bool())


def _predicted(phi: FeatureMap, call: Call) -> Tensor | None:
    """Theory's error per head, or None where there is none."""
    q, k, v = stacked([call], phi.batch_shape)
    prediction = predict(phi, q, k, v, num_queries=_PREDICTED_QUERIES)
    # [1, heads] or [group, kv heads] -> heads, those of a kv head side by side
    return None if prediction is None else prediction.per_head.transpose(0, 1).flatten()
