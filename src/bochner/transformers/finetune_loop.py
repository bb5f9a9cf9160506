"""Optimiser steps over batches that begin again when they end, with a state that a later run takes up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from bochner.data import replacing
from bochner.transformers.calibrate_sample import Inputs, model_inputs, on_device

Step = Callable[[Inputs], float]
"""Adds the gradient for one batch to the parameters; returns the loss."""


@dataclass(frozen=True)
class Training:
    """How `finetune` trains: AdamW, linear warm-up, then a cosine down to 0 in each stage.

    Arguments:  learning_rate: of the feature maps; weights_learning_rate: of the model's own weights;
                weight_decay: AdamW's, for those weights only; warmup: share of a stage's steps;
                clip: largest norm of the gradient of all parameters; math.inf clips nothing;
                objective: of stage 2: "distil", or "labels" for the model's own loss;
                save_every: steps between two states, where `resume` names a file;
                progress: whether to draw a bar.
    """

    learning_rate: float = 1e-2
    weights_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip: float = 1.0
    objective: Literal["distil", "labels"] = "distil"
    save_every: int = 50
    progress: bool = True

    def __post_init__(self) -> None:
        if self.objective not in ("distil", "labels"):
            raise ValueError(f"objective={self.objective!r} must be 'distil' or 'labels'.")
        for name in ("learning_rate", "weights_learning_rate", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0.")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup={self.warmup!r} must be a share of the steps, from 0 to 1.")


class Endless:
    """Batches again and again; a sequence in a new random order each time, other iterables in their own."""

    def __init__(self, batches: Iterable[Inputs | Tensor], generator: torch.Generator) -> None:
        self.batches, self.generator = batches, generator
        self.start, self.position = generator.get_state(), 0
        self._round: Iterator[Inputs | Tensor] | None = None

    def __next__(self) -> Inputs:
        for fresh in (self._round is None, True):
            if fresh:
                self.start, self.position = self.generator.get_state(), 0
                self._round = self._begin()
            assert self._round is not None
            for batch in self._round:
                self.position += 1
                return model_inputs(batch)
        raise ValueError(
            "batches is empty, or was read to its end and cannot be read again; pass a list or a"
            " DataLoader (not a generator), or fewer steps."
        )

    def _begin(self) -> Iterator[Inputs | Tensor]:
        if not isinstance(self.batches, Sequence):
            return iter(self.batches)
        order = torch.randperm(len(self.batches), generator=self.generator).tolist()
        return (self.batches[i] for i in order)

    def state(self) -> dict[str, Any]:
        """Where the reading stands."""
        return {"generator": self.start, "position": self.position}

    def go_to(self, state: dict[str, Any]) -> None:
        """Read on from a state."""
        self.generator.set_state(state["generator"])
        for _ in range(state["position"]):
            next(self)


class Loop:
    """The stages of one training run, with their losses.

    Arguments:  trained: all parameters that some stage trains; path: the file for the state, or None;
                arguments: what must be the same when a run is taken up.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Endless,
        training: Training,
        path: Path | None,
        arguments: dict[str, Any],
    ) -> None:
        self.model, self.batches, self.training = model, batches, training
        self.path, self.arguments = path, arguments
        self.losses: dict[str, list[float]] = {}
        self.seconds = 0.0
        self._taken_up = self._load()

    def run(self, stage: str, steps: int, groups: list[dict[str, Any]], step: Step) -> None:
        """Take the steps of one stage that are still to be taken.

        Arguments:  groups: parameters and learning rates, as torch.optim takes them.
        """
        losses = self.losses.setdefault(stage, [])
        if len(losses) >= steps:
            return
        parameters = [p for group in groups for p in group["params"]]
        optimizer = torch.optim.AdamW(groups)
        warmup = round(self.training.warmup * steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
        if self._taken_up is not None and self._taken_up["stage"] == stage:
            optimizer.load_state_dict(self._taken_up["optimizer"])
            schedule.load_state_dict(self._taken_up["schedule"])
        bar = tqdm(total=steps, initial=len(losses), desc=stage, disable=not self.training.progress)
        began, before = time.perf_counter(), self.seconds
        with bar:
            while len(losses) < steps:
                optimizer.zero_grad()
                loss = step(on_device(self.model, next(self.batches)))
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss of stage {stage!r} is {loss} at step {len(losses)}; lower the learning"
                        " rate, or calibrate the model first."
                    )
                norm = nn.utils.clip_grad_norm_(parameters, self.training.clip)
                if not bool(norm.isfinite()):
                    raise FloatingPointError(
                        f"the gradient of stage {stage!r} has norm {float(norm)} at step {len(losses)}, its"
                        " loss is finite; nothing was changed by it. Give signed maps a window (its"
                        " denominator_floor keeps sums from 0), or lower the learning rate."
                    )
                optimizer.step()
                schedule.step()
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                bar.update()
                self.seconds = before + time.perf_counter() - began
                if len(losses) % self.training.save_every == 0 or len(losses) == steps:
                    self._save(stage, optimizer, schedule)

    def _weights(self) -> dict[str, Tensor]:
        """What training may have changed, and the maps' buffers, which must fit to it."""
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        return {
            name: x
            for name, x in self.model.state_dict().items()
            if name in trained or "bochner_attention." in name
        }

    def _save(self, stage: str, optimizer: Any, schedule: Any) -> None:
        if self.path is None:
            return
        state = {
            "arguments": self.arguments,
            "stage": stage,
            "losses": self.losses,
            "seconds": self.seconds,
            "weights": self._weights(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "batches": self.batches.state(),
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def _load(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["arguments"] != self.arguments:
            raise ValueError(
                f"resume={str(self.path)!r} is the state of a run with {state['arguments']}; this one has"
                f" {self.arguments}. Pass the same arguments, or another file."
            )
        self.model.load_state_dict(state["weights"], strict=False)
        self.losses, self.seconds = state["losses"], state["seconds"]
        self.batches.go_to(state["batches"])
        return state
