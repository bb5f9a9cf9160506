"""How far a converted model is from the model that it was: head by head, and at its outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bochner.algebra import Constant
from bochner.diagnostics.interval import median
from bochner.features import Features
from bochner.report.table import markdown_table
from bochner.transformers.calibrate_fit import never_ran
from bochner.transformers.calibrate_sample import Inputs, model_inputs, on_device
from bochner.transformers.layer import LinearLayer
from bochner.transformers.observe import Call, check_fitted, observed
from bochner.transformers.report_outputs import OutputDistance, OutputTotals


@dataclass(frozen=True)
class LayerAblation:
    """Relative errors |O^ - O|_F / |O|_F of one layer's heads against exact attention, all [heads].

    converted:  of the layer as it is, heads kept exact included (their error is 0).
    features:   of the feature map alone, without window and sinks.
    window:     of window and sinks alone, all other keys left out; None without them.
    averaging:  of averaging the values: what a head has to beat.
    """

    converted: Tensor
    features: Tensor
    window: Tensor | None
    averaging: Tensor


@dataclass(frozen=True)
class ConversionReport:
    """Errors of every converted layer on the exact model's activations, and of the model's outputs.

    A hybrid whose window alone does as well as window and features together has features that do not
    matter: `features_unused` names these heads.
    """

    layers: dict[int, LayerAblation]
    outputs: OutputDistance
    tokens: int

    @property
    def features_unused(self) -> list[tuple[int, int]]:
        """(layer, head) of linear heads that would be no worse with window and sinks alone."""
        return [
            (number, head)
            for number, e in self.layers.items()
            if e.window is not None
            for head in ((e.window <= e.converted) & (e.converted > 0)).nonzero().flatten().tolist()
        ]

    @property
    def worse_than_averaging(self) -> list[tuple[int, int]]:
        """(layer, head) of heads that averaging the values would beat."""
        return [
            (number, head)
            for number, e in self.layers.items()
            for head in (e.converted >= e.averaging).nonzero().flatten().tolist()
        ]

    def median(self, name: str) -> float | None:
        """The median over all heads of one field of LayerAblation; None where there is none."""
        parts = [getattr(errors, name) for errors in self.layers.values()]
        return None if any(x is None for x in parts) else float(median(torch.cat(parts)))

    def __str__(self) -> str:
        header = [
            "layer",
            "as converted",
            "features only",
            "window only",
            "averaging",
            "worst head",
        ]
        names = ("converted", "features", "window", "averaging")
        rows = [
            [
                str(n),
                *(_text(getattr(e, name)) for name in names),
                f"{float(e.converted.max()):.3f}",
            ]
            for n, e in self.layers.items()
        ]
        medians = ["–" if (x := self.median(name)) is None else f"{x:.3f}" for name in names]
        worst = max(float(e.converted.max()) for e in self.layers.values())
        rows.append(["all", *medians, f"{worst:.3f}"])
        heads = sum(len(e.converted) for e in self.layers.values())
        lines = [
            f"Relative error of the attention output, median over heads, {self.tokens} tokens:",
            "",
            markdown_table(header, rows),
            "",
            f"{len(self.worse_than_averaging)} of {heads} heads are worse than averaging.",
        ]
        if any(e.window is not None for e in self.layers.values()):
            lines.append(
                f"{len(self.features_unused)} of {heads} heads would do as well without features,"
                " with window and sinks alone."
            )
        return "\n".join([*lines, str(self.outputs)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings and lists, for JSON."""
        names = ("converted", "features", "window", "averaging")
        return {
            "tokens": self.tokens,
            "median": {name: self.median(name) for name in names},
            "worse_than_averaging": [list(pair) for pair in self.worse_than_averaging],
            "features_unused": [list(pair) for pair in self.features_unused],
            "outputs": self.outputs.to_dict(),
            "layers": {
                str(n): {
                    name: None if (x := getattr(e, name)) is None else x.tolist() for name in names
                }
                for n, e in self.layers.items()
            },
        }


def report(model: PreTrainedModel, batches: Iterable[Inputs | Tensor]) -> ConversionReport:
    """Compare a converted model with itself under exact attention, head by head and at its outputs.

    Arguments:  model: after `linearize` (and `calibrate`), in evaluation mode; batches: dictionaries of
                model inputs, or token numbers [batch, n], not those of the calibration. Padding takes
                no part.
    Returns:    ConversionReport; print it. Outputs: for language models the KL divergence of the next
                token's distribution and both perplexities (of `labels`, else of the tokens themselves);
                for encoders the cosine of the mean-pooled last hidden states.
    Cost:       two forward passes a batch, and four attentions per layer.
    Raises:     TypeError for batches that are none; ValueError for a model that is not converted or is
                in training mode, or without batches; NotFittedError for a model not calibrated.
    Example:
        >>> import torch
        >>> from bochner.data import load_minilm
        >>> from bochner.transformers import linearize, report
        >>> model, _ = load_minilm()
        >>> g = torch.Generator().manual_seed(0)
        >>> model = linearize(model, "positive", 64, layers=[0], generator=g)
        >>> found = report(model, [torch.randint(2000, 3000, (2, 64), generator=g)])
        >>> list(found.layers), found.tokens, 0 < found.outputs.mean_cosine < 1
        ([0], 128, True)
    """
    if model.training:
        raise ValueError(
            "model is in training mode, so dropout would add to the errors; call model.eval()."
        )
    with observed(model, Call.exact) as layers:
        check_fitted(layers)
    totals = {number: _Totals(layer) for number, layer in layers.items()}
    outputs = OutputTotals()

    def compare(call: Call) -> Tensor:
        return totals[call.layer].add(call)

    tokens = 0
    with torch.no_grad():
        for batch in batches:
            inputs = on_device(model, model_inputs(batch))
            with observed(model, compare):
                exact = model(**inputs)
            causal = any(total.causal for total in totals.values())
            outputs.add(inputs, exact, model(**inputs), causal=causal)
            tokens += next(iter(totals.values())).latest
    if any(total.calls for total in totals.values()):
        for number, total in totals.items():
            if not total.calls:
                raise never_ran(number, total.layer)
    if not tokens:
        raise ValueError("batches gave no batch with tokens; pass at least one.")
    return ConversionReport({n: t.errors() for n, t in totals.items()}, outputs.distance(), tokens)


class _Nothing(Constant):
    """Features so small that every other key outweighs them: what is left are window and sinks."""

    def _query(self, x: Tensor) -> Features:
        return Features.from_logs(torch.full_like(x[..., :1], -1e6))


class _Totals:
    """Squared errors of one layer's heads, summed over batches."""

    def __init__(self, layer: LinearLayer) -> None:
        self.layer = layer
        self.sums = torch.zeros(5, len(layer.exact_heads), dtype=torch.float64)
        self.latest, self.causal, self.calls = 0, False, 0

    def add(self, call: Call) -> Tensor:
        """Add one call; returns the exact output."""
        phi, near, exact = self.layer.feature_map, self.layer.exact, call.exact()
        where = call.tokens[:, None, :, None]
        self.latest, self.causal = int(call.tokens.sum()), call.causal
        self.calls += 1
        outs = [
            call.converted(self.layer) - exact,
            call.linear(phi, None) - exact,
            exact if near is None else call.linear(_Nothing(phi.dim), near) - exact,
            call.linear(Constant(phi.dim), None) - exact,
            exact,
        ]
        for total, out in zip(self.sums, outs, strict=True):
            total += (out * where).double().square().sum((0, 2, 3)).cpu()
        return exact

    def errors(self) -> LayerAblation:
        """The quotients."""
        converted, features, window, averaging = (self.sums[:4] / self.sums[4]).sqrt()
        return LayerAblation(
            converted, features, None if self.layer.exact is None else window, averaging
        )


def _text(errors: Tensor | None) -> str:
    return "–" if errors is None else f"{float(median(errors)):.3f}"
