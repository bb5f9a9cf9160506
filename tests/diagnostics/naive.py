"""The metrics of an error report, straight from their definitions, one pair at a time."""

import math

from torch import Tensor

from bochner.feature_map import FeatureMap


def _rows(
    kernel: list[list[float]], *, causal: bool
) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Visible entries of each row, the row divided by its sum, and the sums."""
    seen = [row[: i + 1] if causal else row for i, row in enumerate(kernel)]
    sums = [math.fsum(row) for row in seen]
    return seen, [[e / s for e in row] for row, s in zip(seen, sums, strict=True)], sums


def _outputs(weights: list[list[float]], v: list[list[float]]) -> list[list[float]]:
    return [
        [
            math.fsum(w * value[c] for w, value in zip(row, v, strict=False))
            for c in range(len(v[0]))
        ]
        for row in weights
    ]


def _distance(a: list[list[float]], b: list[list[float]]) -> float:
    return math.sqrt(
        math.fsum(
            (s - t) ** 2 for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True)
        )
    )


def _size(a: list[list[float]]) -> float:
    return math.sqrt(math.fsum(s * s for x in a for s in x))


def _variation(a: list[list[float]], b: list[list[float]]) -> float:
    total = math.fsum(
        abs(s - t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True)
    )
    return 0.5 * total / len(a)


def errors(
    phi: FeatureMap, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False
) -> dict[str, float]:
    """One head, the present draw of phi; q, k [n, d], v [n', dv] float64."""
    estimate = phi.estimate(q, k).tolist()
    exact = [[_kernel(phi.kernel.name, x, y) for y in k.tolist()] for x in q.tolist()]
    seen, weights, sums = _rows(estimate, causal=causal)
    truth, attention, _ = _rows(exact, causal=causal)
    flat = [[1.0] * len(row) for row in exact]
    uniform = _rows(flat, causal=causal)[1]
    values = v.tolist()
    output = _outputs(attention, values)
    entries = [e for row in seen for e in row]
    return {
        "kernel": _distance(seen, truth) / _size(truth),
        "output": _distance(_outputs(weights, values), output) / _size(output),
        "variation": _variation(weights, attention),
        "negative_entries": sum(e < 0 for e in entries) / len(entries),
        "nonpositive_denominators": sum(s <= 0 for s in sums) / len(sums),
        "trivial_output": _distance(_outputs(uniform, values), output) / _size(output),
        "trivial_variation": _variation(uniform, attention),
    }


def _kernel(name: str, x: list[float], y: list[float]) -> float:
    if name == "softmax":
        return math.exp(math.fsum(a * b for a, b in zip(x, y, strict=True)))
    return math.exp(-0.5 * math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
