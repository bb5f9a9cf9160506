"""One more token: a state of constant size against a cache of keys and values, by context length.

    python -m benchmarks.decoding [--quick]

One layer, batch 1. The cache is a preallocated tensor, as in static caches: the new key and value are
written into place, then the query attends to all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

import bochner
from benchmarks.attention import FORMAT, FULL, QUICK
from benchmarks.measuring.contestants import (
    WINDOW,
    WINDOWED,
    Missing,
    Setting,
    calibrated_map,
    positive_map,
)
from benchmarks.measuring.peers import ATTENTION, versions
from benchmarks.measuring.tables import decoding_table
from bochner.attention import ExactWindow
from bochner.report.results import environment, to_json, write_text

Decode = Callable[[], object]
PREFILL = 4096


def cached(setting: Setting, context: int, dtype: torch.dtype) -> Decode:
    """Exact attention of one query to a cache of `context` keys, the last of which is new."""
    q, k, v = (x.contiguous() for x in setting.points(1, dtype))
    keys, values = (x.contiguous() for x in setting.points(context, dtype, seed=1)[1:])
    attention = torch.nn.functional.scaled_dot_product_attention

    def decode() -> None:
        keys[..., -1:, :] = k
        values[..., -1:, :] = v
        attention(q, keys, values, scale=1.0)

    return decode


def streaming(
    make_map: Callable[[Setting], bochner.FeatureMap],
    dtype: torch.dtype,
    exact: ExactWindow | None = None,
) -> Callable[[Setting, int], Decode]:
    """`step` from a state that has seen `context` tokens; every call goes on from the one before."""

    def make(setting: Setting, context: int) -> Decode:
        phi = make_map(setting)
        state = bochner.AttentionState(phi, exact=exact)
        for start in range(0, context, PREFILL):
            points = setting.points(min(PREFILL, context - start), dtype, seed=start)
            _, state = bochner.step(state, *points)
        q, k, v = setting.points(1, dtype, seed=1)

        def decode() -> None:
            nonlocal state
            _, state = bochner.step(state, q, k, v)

        return decode

    return make


def darkformer(setting: Setting, context: int) -> Decode:
    """darkformer-pytorch's recurrent state."""
    try:
        from darkformer_pytorch import DarkformerKernelAttention
    except ImportError as error:
        raise Missing(f"not installed ({error}); pip install darkformer-pytorch") from error
    attention = DarkformerKernelAttention(
        setting.dim,
        setting.heads,
        num_features=setting.num_features,
        causal=True,
        projection_seed=0,
    ).eval()
    state = None
    for start in range(0, context, PREFILL):
        points = setting.points(min(PREFILL, context - start), torch.float32, seed=start)
        _, state = attention.forward_with_state(*points, state=state)
    q, k, v = setting.points(1, torch.float32, seed=1)

    def decode() -> None:
        nonlocal state
        _, state = attention.forward_with_state(q, k, v, state=state)

    return decode


FLOAT, HALF = torch.float32, torch.bfloat16
CONTESTANTS: dict[tuple[str, str], Callable[[Setting, int], Decode]] = {
    ("SDPA, KV cache", "float32"): lambda s, n: cached(s, n, FLOAT),
    ("SDPA, KV cache", "bfloat16"): lambda s, n: cached(s, n, HALF),
    ("darkformer-pytorch", "float32"): darkformer,
    ("bochner positive", "float32"): streaming(positive_map, FLOAT),
    ("bochner positive", "bfloat16"): streaming(positive_map, HALF),
    ("bochner calibrated", "float32"): streaming(calibrated_map, FLOAT),
    (WINDOWED, "float32"): streaming(calibrated_map, FLOAT, WINDOW),
}


def check_decoding(setting: Setting) -> None:
    """Refuse to time a step that is not the last row of the causal form."""
    for make_map, exact in ((positive_map, None), (calibrated_map, None), (calibrated_map, WINDOW)):
        try:
            phi = make_map(setting)
        except Missing:
            continue
        points = setting.points(300, FLOAT)
        whole = bochner.linear_attention(phi, *points, causal=True, exact=exact)
        state = bochner.AttentionState(phi, exact=exact)
        _, state = bochner.step(state, *(x[..., :299, :] for x in points))
        last, _ = bochner.step(state, *(x[..., 299:, :] for x in points))
        error = float((last - whole[..., 299:, :]).norm() / last.norm())
        if not error < 1e-3:
            raise SystemExit(f"correctness gate: step differs from causal by {error:.2g}")


@torch.no_grad()
def at(setting: Setting, context: int, tokens: int) -> list[dict[str, Any]]:
    """Microseconds per token of every contestant, in turn."""
    runs: dict[tuple[str, str], Decode] = {}
    absent: dict[tuple[str, str], str] = {}
    for label, make in CONTESTANTS.items():
        try:
            runs[label] = make(setting, context)
        except Missing as missing:
            absent[label] = f"missing: {missing}"
    for run in runs.values():
        for _ in range(3):
            run()
    seconds: dict[tuple[str, str], list[float]] = {label: [] for label in runs}
    for _ in range(tokens):
        for label, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[label].append(time.perf_counter() - start)
    return [
        {
            "contestant": label[0],
            "dtype": label[1],
            "context": context,
            "seconds": statistics.median(seconds[label]) if label in seconds else None,
            "reason": absent.get(label),
        }
        for label in CONTESTANTS
    ]


@click.command()
@click.option("--contexts", default="256,1024,4096,16384,65536", show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--num-features", default=128, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--quick", is_flag=True, help=f"A small version; writes to {QUICK}.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
def main(
    contexts: str, tokens: int, num_features: int, threads: int, quick: bool, out: Path | None
) -> None:
    """Time one token of a decoder's layer, 8 heads, d = 64."""
    torch.set_num_threads(threads)
    if quick:
        contexts, tokens = "256,1024", 16
    out = out or (QUICK if quick else FULL)
    setting = Setting(num_features=num_features)
    check_decoding(setting)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": {**environment(), "peers": versions(ATTENTION)},
        "heads": setting.heads,
        "dim": setting.dim,
        "num_features": setting.num_features,
        "tokens": tokens,
        "quick": quick,
        "complete": False,
        "rows": rows,
    }
    for context in (int(part) for part in contexts.split(",")):
        rows += at(setting, context, tokens)
        write_text(out / "decoding.json", to_json(result) + "\n")
    result["complete"] = True
    result["table"] = decoding_table(result)
    write_text(out / "decoding.json", to_json(result) + "\n")
    print(result["table"])


if __name__ == "__main__":
    main()
