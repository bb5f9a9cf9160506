"""For users of transformers.Trainer: the same distillation as a Trainer.

A converted model also trains with a plain Trainer on labels: its parameters are the model's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from bochner.transformers.finetune_losses import distillation_loss


class DistillationTrainer(Trainer):
    """A transformers.Trainer whose loss is the distance to a teacher's outputs (`distillation_loss`).

    Arguments:  teacher: the exact model, in evaluation mode and on the device of training; everything
                else as transformers.Trainer takes it.
    Raises:     TypeError without a teacher.
    """

    def __init__(self, *args: Any, teacher: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval()
        # this loss is a mean over the batch whatever the model's own loss does with the number of items,
        # so Trainer has to divide it by the pieces that a step is accumulated from
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The distillation loss of one batch; labels are left out of it."""
        inputs = {name: x for name, x in inputs.items() if name != "labels"}
        with torch.no_grad():
            wanted = self.teacher(**inputs)
        student = model(**inputs)
        loss = distillation_loss(student, wanted, inputs)
        return (loss, student) if return_outputs else loss
