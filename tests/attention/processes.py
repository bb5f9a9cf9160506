"""A few processes that stay alive between tests and run one function on all ranks, never for ever."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

COLLECTIVE_SECONDS = 60
"""After this a collective that not all ranks have entered fails; a hang is a failure, not a hang."""
ANSWER_SECONDS = 120


@dataclass(frozen=True)
class Raised:
    """What a rank raised: its type's name, its message, its traceback."""

    kind: str
    message: str
    where: str


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    while (message := pickle.loads(pipe.recv_bytes())) is not None:
        function, arguments = message
        try:
            answer = function(rank, *arguments)
        except Exception as error:
            answer = Raised(type(error).__name__, str(error), traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


class Ranks:
    """`size` gloo processes; the rendezvous is a file, so that no port can be taken."""

    def __init__(self, size: int) -> None:
        context = get_context("spawn")
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        store = os.path.join(self._folder.name, "store")
        pairs = [context.Pipe() for _ in range(size)]
        self._pipes = [ours for ours, _ in pairs]
        self._processes = [
            context.Process(target=_serve, args=(rank, size, store, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self._processes:
            process.start()

    def answers(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list:
        """function(rank, *arguments[rank]) of every rank; what a rank raised comes as Raised."""
        for pipe, own in zip(self._pipes, arguments, strict=True):
            pipe.send_bytes(pickle.dumps((function, own)))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(ANSWER_SECONDS):
                raise TimeoutError(f"rank {rank} of {self.size} gave no answer.")
            answers.append(pickle.loads(pipe.recv_bytes()))
        return answers

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list:
        """The same, raising what any rank raised."""
        answers = self.answers(function, arguments)
        for answer in answers:
            if isinstance(answer, Raised):
                raise RuntimeError(answer.where)
        return answers

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send_bytes(pickle.dumps(None))
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()
