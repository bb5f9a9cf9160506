"""A locomotion task of MuJoCo, one environment for each policy of a population, in lock step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

TASK = "HalfCheetah-v5"
STEPS = 150  # of an episode: 7.5 s of the 50 s by which the environment is registered
_CLIP = 5.0  # standard deviations


@dataclass
class Normaliser:
    """Running mean and variance of the observations seen so far."""

    size: int
    count: float = 0.0
    mean: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.squares = np.zeros(self.size), np.zeros(self.size)

    def add(self, observations: np.ndarray) -> None:
        """Observations [count, size]."""
        count, mean = len(observations), observations.mean(0)
        total, gap = self.count + count, mean - self.mean
        self.squares += count * observations.var(0) + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    def __call__(self, observations: np.ndarray) -> Tensor:
        """Centred, scaled and clipped; as they are before the first `add`."""
        if self.count:
            variance = self.squares / self.count
            deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
            observations = (observations - self.mean) / deviation
        return torch.from_numpy(observations.clip(-_CLIP, _CLIP)).float()


@dataclass(frozen=True)
class Episodes:
    """One episode of every environment: returns [count] and all observations, [steps, count, n]."""

    returns: np.ndarray
    observations: np.ndarray


class Arena:
    """`count` copies of the task, closed at the end of a `with`."""

    def __init__(self, count: int, *, steps: int = STEPS) -> None:
        os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is rendered
        import gymnasium

        self.count, self.steps = count, steps
        with _mujoco_warnings():
            self._environments = gymnasium.make_vec(
                TASK, num_envs=count, vectorization_mode="sync", max_episode_steps=steps
            )
        self.observed = int(self._environments.single_observation_space.shape[0])
        self.actions = int(self._environments.single_action_space.shape[0])

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._environments.close()

    def episodes(self, act: Callable[[np.ndarray], np.ndarray], seeds: list[int]) -> Episodes:
        """Play one episode each, from initial states that `seeds` determine.

        Raises:     ValueError for actions that are not finite, RuntimeError for an episode that ends
                    early (the task has no such state).
        """
        observations, _ = self._environments.reset(seed=seeds)
        returns, seen = np.zeros(self.count), []
        with _mujoco_warnings():
            for step in range(self.steps):
                seen.append(observations)
                actions = act(observations)
                if not np.isfinite(actions).all():
                    raise ValueError("the policy gave actions that are not finite.")
                observations, rewards, ended, cut, _ = self._environments.step(actions)
                returns += rewards
                if ended.any() or (cut.any() and step + 1 < self.steps):
                    raise RuntimeError(f"{TASK}: an episode ended at step {step + 1}.")
        return Episodes(returns, np.stack(seen))


def random_actions(arena: Arena, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Uniform actions in [-1, 1], whatever is observed."""
    generator = np.random.default_rng(seed)
    return lambda observations: generator.uniform(-1.0, 1.0, (arena.count, arena.actions))


@contextmanager
def _mujoco_warnings() -> Iterator[None]:
    """MuJoCo's warnings as Python's, instead of a file MUJOCO_LOG.TXT in the current directory.

    That the model's `settotalmass` is deprecated concerns the maintainers of Gymnasium.
    """
    import mujoco

    def handle(text: Any) -> None:
        if "settotalmass" not in str(text):
            warnings.warn(f"MuJoCo: {text}", RuntimeWarning, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(handle)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
