"""Train a converted model: first each layer's attention output, then the model end to end.

Stage 1 distils attention: every converted layer is to give what exact attention gives, on the activations
of the exact model (`attention_losses`). Stage 2 distils the outputs of the whole model, or trains on labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bochner.report.table import markdown_table
from bochner.request import fresh_generator
from bochner.transformers.calibrate_sample import Inputs
from bochner.transformers.finetune_loop import Endless, Loop, Training
from bochner.transformers.finetune_losses import attention_losses, distillation_loss
from bochner.transformers.layer import LinearLayer
from bochner.transformers.observe import Call, check_fitted, observed

Train = Literal["attention", "all"]


@dataclass(frozen=True)
class FinetuneReport:
    """What was trained, how long, and the losses of every step.

    attention:  stage 1: mean over layers of sum |O^ - O|^2 / sum |O|^2.
    outputs:    stage 2: the distillation loss, or the model's own on labels.
    parameters: how many numbers were trained. seconds: wall time, of all runs if resumed.
    """

    train: str
    attention: list[float]
    outputs: list[float]
    parameters: int
    seconds: float

    @property
    def steps(self) -> int:
        """Optimiser steps of both stages."""
        return len(self.attention) + len(self.outputs)

    def __str__(self) -> str:
        rows = [
            [name, str(len(curve)), *(f"{x:.4g}" for x in ends(curve))]
            for name, curve in (("attention", self.attention), ("outputs", self.outputs))
            if curve
        ]
        return "\n".join(
            [
                f"Trained {self.parameters:,} numbers ({self.train}) in {self.seconds:.0f} s:",
                "",
                markdown_table(["stage", "steps", "loss at first", "at last"], rows),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings and lists, for JSON."""
        return vars(self) | {"steps": self.steps}


def ends(curve: list[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    tenth = max(1, len(curve) // 10)
    return math.fsum(curve[:tenth]) / tenth, math.fsum(curve[-tenth:]) / tenth


def finetune(
    model: PreTrainedModel,
    batches: Iterable[Inputs | Tensor],
    *,
    steps: int | tuple[int, int],
    train: Train = "attention",
    teacher: PreTrainedModel | None = None,
    training: Training | None = None,
    resume: str | Path | None = None,
    generator: torch.Generator | None = None,
) -> FinetuneReport:
    """Train a converted model, in place, to give what it gave with exact attention.

    Stage 1, attention: the parameters of the feature maps (M of `dark`), each layer against exact attention
    on the exact model's activations. Stage 2, end to end: KL divergence of the
    logits, or the distance of hidden states, from the teacher; or `Training(objective="labels")`, the
    model's own loss.

    Arguments:  batches: dictionaries of model inputs, or token numbers [batch, n]; read again when they
                end. A list is put in a new random order, from `generator`, each time; other iterables
                (a DataLoader) come in their own order.
                steps: of stage 1, or of both.
                train: "attention", the feature maps' parameters only; or "all" in stage 2.
                teacher: an exact model for stage 2. Unless given: the model itself with exact attention,
                of which "all" keeps a copy.
                training: learning rates, clipping, schedule, objective, progress bar.
                resume: a file for the state; a run that finds it goes on where it stopped, and ends as if
                it had not been interrupted (given the same arguments).
    Numerics:   AdamW; in evaluation mode, so no dropout; gradients clipped to norm 1 unless told.
    Cost:       stage 1: a forward pass without gradients, and each layer's attention, forward and
                backward, one after the other. Stage 2: two forward passes and one backward.
    Raises:     ValueError for a model that is not converted, for nothing to train, for steps below 0, for
                batches that are empty or end too early, for a state file of another run.
    Example:
        >>> import torch
        >>> from bochner.data import load_minilm
        >>> from bochner.transformers import Training, calibrate, finetune, linearize
        >>> model, _ = load_minilm()
        >>> g = torch.Generator().manual_seed(0)
        >>> model = linearize(model, "dark", 16, layers=[0], generator=g)
        >>> tokens = torch.randint(2000, 3000, (8, 64), generator=g).split(2)
        >>> _ = calibrate(model, tokens, generator=g)
        >>> quiet = Training(progress=False)
        >>> found = finetune(model, tokens, steps=10, training=quiet, generator=g)
        >>> found.parameters, found.steps, found.attention[-1] < found.attention[0]
        (12288, 10, True)
    """
    training = Training() if training is None else training
    counts = tuple(steps) if isinstance(steps, tuple | list) else (steps, 0)
    whole = all(isinstance(count, int) for count in counts)
    if len(counts) != 2 or not whole or min(counts) < 0 or sum(counts) == 0:
        raise ValueError(
            f"steps={steps!r} must be a number of steps, or a pair (attention, end to end), at least 1."
        )
    if train not in ("attention", "all"):
        raise ValueError(f"train={train!r} must be 'attention' or 'all'.")
    with observed(model, Call.exact) as layers:
        check_fitted(layers)
        maps = [p for layer in layers.values() for p in layer.feature_map.parameters()]
    if not maps and (counts[0] or train == "attention"):
        raise _nothing_to_train(layers)
    own = {id(p) for p in maps}
    rest = [p for p in model.parameters() if id(p) not in own] if train == "all" else []
    before, mode = {p: p.requires_grad for p in model.parameters()}, model.training
    try:
        model.eval()
        target = _teacher(model, teacher, copied=train == "all" and counts[1] > 0)
        for parameter in before:
            parameter.requires_grad_(id(parameter) in own or train == "all")
        loop = Loop(
            model,
            Endless(batches, fresh_generator() if generator is None else generator),
            training,
            None if resume is None else Path(resume),
            {"steps": list(counts), "train": train, "objective": training.objective},
        )
        rates = {"lr": training.learning_rate, "weight_decay": 0.0}
        groups = [{"params": maps} | rates] if maps else []
        loop.run("attention", counts[0], groups, partial(_attention_step, model))
        rates = {"lr": training.weights_learning_rate, "weight_decay": training.weight_decay}
        groups += [{"params": rest} | rates] if rest else []
        step = (
            _label_step if training.objective == "labels" else partial(_output_step, teacher=target)
        )
        loop.run("outputs", counts[1], groups, partial(step, model))
    finally:
        model.train(mode)
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None
    return FinetuneReport(
        train=train,
        attention=loop.losses.get("attention", []),
        outputs=loop.losses.get("outputs", []),
        parameters=sum(p.numel() for p in [*maps, *rest]),
        seconds=loop.seconds,
    )


def _attention_step(model: PreTrainedModel, inputs: Inputs) -> float:
    """Gradient of the sum of the layers' losses; their mean."""
    losses = attention_losses(model, inputs, backward=True)
    return sum(losses.values()) / len(losses)


Teacher = Callable[[Inputs], Any]
"""Inputs -> the outputs to imitate, without gradients."""


def _output_step(model: PreTrainedModel, inputs: Inputs, teacher: Teacher) -> float:
    """Gradient of the distance to the teacher's outputs."""
    wanted = teacher(inputs)
    loss = distillation_loss(model(**inputs), wanted, inputs)
    loss.backward()
    return float(loss.detach())


def _label_step(model: PreTrainedModel, inputs: Inputs) -> float:
    """Gradient of the model's own loss."""
    loss = model(**inputs).loss
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} gave no loss for a batch with {sorted(inputs)}; expected labels"
            " in each batch, for a model with a head for them. Or distil: Training(objective='distil')."
        )
    loss.backward()
    return float(loss.detach())


def _teacher(model: PreTrainedModel, teacher: PreTrainedModel | None, *, copied: bool) -> Teacher:
    """The given teacher, else the model with exact attention; a copy where its weights will change."""
    if teacher is not None:
        return partial(_outputs, teacher)
    own = copy.deepcopy(model) if copied else model

    def exact(inputs: Inputs) -> Any:
        with observed(own, Call.exact):
            return _outputs(own, inputs)

    return exact


def _outputs(model: PreTrainedModel, inputs: Inputs) -> Any:
    mode = model.training
    try:
        with torch.no_grad():
            return model.eval()(**inputs)
    finally:
        model.train(mode)


def _nothing_to_train(layers: dict[int, LinearLayer]) -> ValueError:
    kinds = sorted({type(layer.feature_map).__name__ for layer in layers.values()})
    return ValueError(
        f"the feature maps of the converted layers ({', '.join(kinds)}) have no parameters;"
        " expected maps that learn, such as 'dark'. Convert with it and calibrate, or make the landmarks of"
        " 'calibrated' maps parameters (feature_map.trainable_(), with a small learning rate), or"
        " train the model's weights end to end: train='all', steps=(0, n)."
    )
