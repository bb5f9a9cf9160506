"""What this machine can do, measured in the same run, and the time that no attention can be below.

FLOPs = heads (8 L m d + 4 L m)       features of q and k, state, read-out; either direction
bytes = q, k, v and the output once
floor = max(FLOPs / gemm rate, bytes / copy rate);  forward and backward: 3 times that
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from benchmarks.measuring.contestants import Setting


@dataclass(frozen=True)
class Rates:
    """FLOP/s of a large matrix product by dtype, bytes/s of a copy (read and written)."""

    gemm: dict[str, float]
    copy: float

    def floor(
        self, setting: Setting, length: int, dtype: torch.dtype, *, training: bool = False
    ) -> float:
        """Seconds."""
        heads, m, d = setting.heads, setting.num_features, setting.dim
        flops = heads * (8 * length * m * d + 4 * length * m)
        moved = 4 * setting.one_tensor(length, dtype)
        seconds = max(flops / self.gemm[name_of(dtype)], moved / self.copy)
        return 3 * seconds if training else seconds

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def name_of(dtype: torch.dtype) -> str:
    """float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def measure_rates(*, size: int = 2048, megabytes: int = 256, repeats: int = 5) -> Rates:
    """The best of a few: a rate is what the machine can do, not what it does on average."""
    gemm = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        gemm[name_of(dtype)] = (
            2 * size**3 / _best(lambda a=a, b=b, o=out: torch.mm(a, b, out=o), repeats)
        )
    source = torch.zeros(megabytes << 18)
    target = torch.ones_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), repeats)
    return Rates(gemm, copy)


def _best(run, repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
