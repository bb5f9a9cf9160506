"""The losses of distillation: attention outputs layer by layer, then the outputs of the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from bochner.transformers.calibrate_sample import Inputs, model_inputs, on_device
from bochner.transformers.observe import Call, observed
from bochner.transformers.report_outputs import positions


def attention_losses(
    model: PreTrainedModel, batch: Inputs | Tensor, *, backward: bool = False
) -> dict[int, float]:
    """How far each converted layer is from exact attention, on the activations of the exact model.

        loss_l = sum |O^ - O|^2 / sum |O|^2 over heads and tokens

    Normalised by the layer's energy: later layers' outputs are up to hundreds of times larger.

    Arguments:  backward: also add the gradient of the sum of all losses to the layers' parameters; each
                layer's graph is freed before the next one's is made.
    Cost:       one forward pass without gradients, and each layer's linear attention.
    Example:
        >>> import torch
        >>> from bochner.data import load_minilm
        >>> from bochner.transformers import attention_losses, linearize
        >>> model, _ = load_minilm()
        >>> g = torch.Generator().manual_seed(0)
        >>> model = linearize(model, "positive", 64, layers=[0, 5], generator=g)
        >>> losses = attention_losses(model, torch.randint(2000, 3000, (2, 64), generator=g))
        >>> list(losses), all(0 < loss < 1 for loss in losses.values())
        ([0, 5], True)
    """
    losses: dict[int, float] = {}

    def compare(call: Call) -> Tensor:
        with torch.no_grad():
            exact = call.exact()
        with torch.set_grad_enabled(backward):
            loss = relative_square(call.converted(layers[call.layer]), exact, call.tokens[:, None])
            if backward and loss.requires_grad:
                loss.backward()
        losses[call.layer] = losses.get(call.layer, 0.0) + float(loss.detach())
        return exact

    with torch.no_grad(), observed(model, compare) as layers:
        model(**on_device(model, model_inputs(batch)))
    return losses


def relative_square(approximate: Tensor, exact: Tensor, where: Tensor) -> Tensor:
    """sum |approximate - exact|^2 / sum |exact|^2 over the places `where` is True (last axis apart)."""
    weights = where.unsqueeze(-1)
    error = ((approximate.float() - exact.float()) * weights).square().sum()
    return error / (exact.float() * weights).square().sum()


def distillation_loss(student: Any, teacher: Any, inputs: Inputs) -> Tensor:
    """The distance of two models' outputs for the same inputs, to be minimised.

        logits: KL(teacher | student) per token, in nats;  hidden states: sum |h - h*|^2 / sum |h*|^2

    Shapes:     outputs of transformers with logits [b, n, c] or [b, c], else last_hidden_state [b, n, d];
                tokens that inputs["attention_mask"] hides are left out.
    """
    if getattr(teacher, "logits", None) is not None:
        where = positions(inputs, teacher.logits)
        log_student = torch.log_softmax(student.logits.float(), dim=-1)[where]
        log_teacher = torch.log_softmax(teacher.logits.float(), dim=-1)[where]
        return kl_div(log_student, log_teacher, reduction="sum", log_target=True) / len(log_student)
    hidden = teacher.last_hidden_state
    return relative_square(student.last_hidden_state, hidden, positions(inputs, hidden))
