"""What a calibration did: errors per layer and head on held-out text, and which heads stay exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bochner.diagnostics.interval import median
from bochner.report.table import markdown_table


@dataclass(frozen=True)
class LayerErrors:
    """Relative errors |O^ - O|_F / |O|_F of one layer's heads, all [heads], on held-out tokens.

    measured:   of the calibrated attention, window and sinks included, every head linear.
    averaging:  of averaging the values: what a head has to beat.
    predicted:  by theory, without drawing; None where there is no closed form (biased maps, causal
                attention, exact windows).
    exact:      heads that stay exact, bool.
    """

    measured: Tensor
    averaging: Tensor
    predicted: Tensor | None
    exact: Tensor


@dataclass(frozen=True)
class SampleSizes:
    """How much a calibration saw.

    Sequences of `length` tokens were fitted on, from `batches` batches; `left_out` were shorter.
    held_out_*: what was measured on; longest: the longest of these sequences.
    """

    sequences: int
    length: int
    left_out: int
    batches: int
    held_out_sequences: int
    held_out_tokens: int
    held_out_batches: int
    longest: int

    @property
    def tokens(self) -> int:
        """Tokens that each layer was fitted on."""
        return self.sequences * self.length

    def __str__(self) -> str:
        left = f" ({self.left_out} shorter ones left out)" if self.left_out else ""
        return (
            f"fitted on {self.tokens} tokens, {self.sequences} sequences of {self.length}{left} from"
            f" {self.batches} batches; {self.measured}"
        )

    @property
    def measured(self) -> str:
        """What was measured on, in words."""
        return (
            f"measured on {self.held_out_tokens} tokens of {self.held_out_batches} held-out batches (every"
            " fourth)"
        )


@dataclass(frozen=True)
class CalibrationReport:
    """What was fitted, on how much, and how wrong each head is on text that the fit has not seen.

    layers:     number -> LayerErrors; sample: sizes of what was fitted and measured on.
    fitted_layers:  how many layers had a map that wanted data; the maps of the others stayed as they were.
    """

    feature_map: str
    num_features: int
    window: int
    sinks: int
    causal: bool
    sequential: bool
    layers: dict[int, LayerErrors]
    sample: SampleSizes
    fitted_layers: int

    @property
    def exact_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads that stay exact."""
        return [
            (n, h) for n, e in self.layers.items() for h in e.exact.nonzero().flatten().tolist()
        ]

    @property
    def num_heads(self) -> int:
        """All heads of the converted layers."""
        return sum(len(e.measured) for e in self.layers.values())

    @property
    def worse_than_averaging(self) -> list[tuple[int, int]]:
        """(layer, head) of linear heads that averaging the values would beat."""
        bad = {n: (e.measured >= e.averaging) & ~e.exact for n, e in self.layers.items()}
        return [(n, h) for n, heads in bad.items() for h in heads.nonzero().flatten().tolist()]

    @property
    def median_error(self) -> float:
        """Median measured error over all heads, those kept exact counted as 0."""
        return float(median(torch.cat([_with_exact(e) for e in self.layers.values()])))

    @property
    def median_averaging(self) -> float:
        """Median error of averaging the values over all heads."""
        return float(median(torch.cat([e.averaging for e in self.layers.values()])))

    @property
    def cost_ratio(self) -> float:
        """Multiplications of an exact head over those of a linear one, at the longest held-out sequence.

        n keys a query (half of them if causal) against 2 m, with d and dv alike.
        """
        keys = self.sample.longest / 2 if self.causal else self.sample.longest
        return keys / (2 * self.num_features)

    @property
    def verdict(self) -> str:
        """The outcome in a few sentences."""
        bad, kept = self.worse_than_averaging, self.exact_heads
        lines = [
            f"Median error {self.median_error:.3f} over {self.num_heads} heads (averaging the values:"
            f" {self.median_averaging:.3f})."
        ]
        if bad:
            lines.append(
                f"{len(bad)} of {self.num_heads} heads are worse than averaging: {_names(bad)}."
                " Keep them exact (exact_heads=), or take more features, a window, or sinks."
            )
        else:
            lines.append("No head is worse than averaging.")
        if kept:
            lines.append(
                f"{len(kept)} heads stay exact: {_names(kept)}. Their cost stays quadratic: about"
                f" {self.cost_ratio:.2g} times a linear head's at {self.sample.longest} tokens, and in"
                " proportion to the length; when decoding they keep their keys and values."
            )
        return " ".join(lines)

    @property
    def _what_was_done(self) -> str:
        if self.fitted_layers == len(self.layers):
            return str(self.sample)
        if self.fitted_layers:
            return f"{self.sample}; {self.fitted_layers} of {len(self.layers)} layers wanted a fit"
        return (
            "no map fitted, since none wants data, or none any more (to fit anew: restore(model), then"
            f" linearize again); {self.sample.measured}"
        )

    def __str__(self) -> str:
        order = "the model converted so far" if self.sequential else "the exact model"
        near = f", window {self.window}, {self.sinks} sinks" if self.window or self.sinks else ""
        header = [
            "layer",
            "error",
            "worst head",
            "averaging",
            "predicted",
            "worse than avg.",
            "exact",
        ]
        rows = [_row(number, errors) for number, errors in self.layers.items()]
        return "\n".join(
            [
                f"{self.feature_map}, {self.num_features} features{near}: {self._what_was_done}.",
                f"Relative error of the attention output on the activations of {order}:",
                "",
                markdown_table(header, rows),
                "",
                self.verdict,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings and lists, for JSON."""
        plain = {name: x for name, x in vars(self).items() if name not in ("layers", "sample")}
        return plain | {
            "sample": vars(self.sample) | {"tokens": self.sample.tokens},
            "median_error": self.median_error,
            "median_averaging": self.median_averaging,
            "exact_heads": [list(pair) for pair in self.exact_heads],
            "worse_than_averaging": [list(pair) for pair in self.worse_than_averaging],
            "verdict": self.verdict,
            "layers": {
                str(number): {
                    name: None if x is None else x.tolist() for name, x in vars(errors).items()
                }
                for number, errors in self.layers.items()
            },
        }


def _with_exact(errors: LayerErrors) -> Tensor:
    """Measured errors as the model now is: 0 for the heads that stay exact."""
    return errors.measured.masked_fill(errors.exact, 0.0)


def _row(number: int, errors: LayerErrors) -> list[str]:
    now = _with_exact(errors)
    bad = int(((errors.measured >= errors.averaging) & ~errors.exact).sum())
    predicted = "–" if errors.predicted is None else f"{float(median(errors.predicted)):.3g}"
    return [
        str(number),
        f"{float(median(now)):.3f}",
        f"{float(now.max()):.3f}",
        f"{float(median(errors.averaging)):.3f}",
        predicted,
        f"{bad} of {len(now)}",
        ", ".join(map(str, errors.exact.nonzero().flatten().tolist())) or "–",
    ]


def _names(heads: list[tuple[int, int]], most: int = 12) -> str:
    """layer.head, the first few."""
    names = ", ".join(f"{layer}.{head}" for layer, head in heads[:most])
    return names if len(heads) <= most else f"{names} and {len(heads) - most} more"
