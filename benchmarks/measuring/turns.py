"""Contestants in turn, A B C A B C ..., each for as many rounds as its time allows; medians.

What would take too long or too much memory is not started: the time is predicted from the contestant's
own shorter lengths. It is left out with its reason, never silently.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST_SECONDS = 60.0
MOST_BYTES = 6e9


@dataclass
class Timing:
    """What became of one contestant at one length: median seconds of `runs`, or why there are none."""

    seconds: float | None = None
    runs: int = 0
    reason: str | None = None


@dataclass
class Predictor:
    """The next length's time of each contestant: a power law through its last two lengths."""

    known: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def learn(self, name: str, length: int, seconds: float) -> None:
        """A measured time."""
        self.known.setdefault(name, []).append((length, seconds))

    def predict(self, name: str, length: int) -> float | None:
        """Seconds, at least linear and at most quadratic in the length; None with nothing to go by."""
        points = self.known.get(name, [])
        if not points:
            return None
        last_length, last = points[-1]
        power = 1.0
        if len(points) > 1:
            before_length, before = points[-2]
            power = math.log(last / before) / math.log(last_length / before_length)
        return last * (length / last_length) ** min(max(power, 1.0), 2.0)


def too_much(
    predicted: float | None, needed_bytes: float | None, *, longest: float = LONGEST_SECONDS
) -> str | None:
    """Why a contestant is not started, or None."""
    if needed_bytes is not None and needed_bytes > MOST_BYTES:
        return f"would need about {needed_bytes / 1e9:.0f} GB"
    if predicted is not None and predicted > longest:
        return f"would take about {predicted:.0f} s"
    return None


def rounds_for(seconds: float, *, budget: float, most: int) -> int:
    """How often something of this length is timed: as the budget allows, at least 3 and at most `most`."""
    return min(most, max(3, int(budget / max(seconds, 1e-9))))


def time_in_turn(
    runs: dict[str, Callable[[], object]], *, budget: float = 0.7, most: int = 21
) -> dict[str, Timing]:
    """Median wall time of each: one untimed round, then rounds in which each still takes part.

    A contestant whose first round took more than 3 s is not run again: that round counts.
    """
    timings, left = {}, {}
    for name, run in runs.items():
        seconds = _seconds(run)
        if seconds > 3.0:
            timings[name] = Timing(seconds, 1)
        else:
            left[name] = rounds_for(seconds, budget=budget, most=most)
    found: dict[str, list[float]] = {name: [] for name in left}
    for number in range(max(left.values(), default=0)):
        for name, rounds in left.items():
            if number < rounds:
                found[name].append(_seconds(runs[name]))
    for name, seconds in found.items():
        timings[name] = Timing(statistics.median(seconds), len(seconds))
    return {name: timings[name] for name in runs}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
