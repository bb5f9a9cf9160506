"""Linear against exact attention, side by side in one run: medians, ratios, JSON.

Contestants take turns (A B A B ...) after a warm-up; nothing is timed before its output has passed a
correctness gate: linear attention must equal the dense sum with the same features to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch

import bochner
from bochner.demonstration import median_seconds
from bochner.report.results import environment, to_json, write_text
from bochner.report.table import markdown_table


def gate(phi: bochner.FeatureMap, dim: int, heads: int) -> None:
    """Refuse to time an attention that is not the dense one."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (0.3 * torch.randn(1, heads, 300, dim, generator=g) for _ in range(3))
    kernel = phi.estimate(q, k)
    for causal in (False, True):
        weights = kernel.tril() if causal else kernel
        dense = (weights @ v) / weights.sum(-1, keepdim=True)
        error = (bochner.linear_attention(phi, q, k, v, causal=causal) - dense).abs().max()
        if not error < 1e-4:
            raise SystemExit(f"correctness gate failed: causal={causal}, error {float(error):.2g}")


@click.command()
@click.option("--lengths", default="512,1024,2048,4096,16384", show_default=True)
@click.option("--training-lengths", default="1024,4096", show_default=True)
@click.option("--num-features", default=128, show_default=True)
@click.option("--heads", default=8, show_default=True)
@click.option("--dim", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--out", default="benchmarks/attention.json", type=click.Path(path_type=Path))
def main(
    lengths: str,
    training_lengths: str,
    num_features: int,
    heads: int,
    dim: int,
    threads: int,
    repeats: int,
    out: Path,
) -> None:
    """Time exact attention (torch SDPA) and linear attention, float32, batch 1."""
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    phi = bochner.make("positive", dim=dim, num_features=num_features, generator=g)
    gate(phi, dim, heads)
    settings = {"num_features": num_features, "heads": heads, "dim": dim, "repeats": repeats}
    rows, results = [], []
    for training, some in ((False, lengths), (True, training_lengths)):
        for length in (int(part) for part in some.split(",")):
            for causal in (False, True):
                q, k, v = (0.3 * torch.randn(1, heads, length, dim, generator=g) for _ in range(3))
                seconds = time_both(
                    phi, (q, k, v), causal=causal, training=training, repeats=repeats
                )
                ratio = seconds["exact"] / seconds["linear"]
                results.append(
                    {
                        "length": length,
                        "causal": causal,
                        "training": training,
                        "seconds": seconds,
                        "ratio": ratio,
                    }
                )
                form = "causal" if causal else "bidirectional"
                form += ", forward and backward" if training else ""
                times = [f"{1000 * seconds[name]:.1f}" for name in ("exact", "linear")]
                rows.append([f"{length:,} {form}", *times, f"{ratio:.2f}"])
    table = markdown_table(["tokens", "exact ms", "linear ms", "exact / linear"], rows)
    print(table)
    write_text(
        out,
        to_json({"environment": environment(), **settings, "results": results, "table": table})
        + "\n",
    )


def time_both(
    phi: bochner.FeatureMap,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    causal: bool,
    training: bool,
    repeats: int,
) -> dict[str, float]:
    """Median seconds of either attention, with its backward pass if training."""
    q, k, v = (x.requires_grad_(training) for x in inputs)

    def exact() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, scale=1.0, is_causal=causal
        )

    def linear() -> torch.Tensor:
        return bochner.linear_attention(phi, q, k, v, causal=causal)

    def with_backward(attend: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend().sum(), (q, k, v))

    if training:
        return median_seconds(
            {"exact": with_backward(exact), "linear": with_backward(linear)}, repeats
        )
    with torch.no_grad():
        return median_seconds({"exact": exact, "linear": linear}, repeats)


if __name__ == "__main__":
    main()
