"""Results as plain data: what `--json` writes, with the environment that produced it."""

from __future__ import annotations

import json
import math
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bochner.data import replacing
from bochner.diagnostics import Candidate, Comparison, DataSummary, Interval, Recommendation


def environment() -> dict[str, Any]:
    """Versions and threads: what a figure depends on."""
    import bochner

    return {
        "bochner": bochner.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def interval_dict(interval: Interval | None) -> dict[str, float] | None:
    """An interval as a dictionary."""
    if interval is None:
        return None
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "redraws": interval.redraws,
        "level": interval.level,
    }


def candidate_dict(candidate: Candidate) -> dict[str, Any]:
    """One row of a comparison."""
    report, prediction = candidate.report, candidate.prediction
    return {
        "map": candidate.name,
        "num_features": candidate.num_features,
        "columns": candidate.columns,
        "num_projections": candidate.feature_map.num_projections,
        "unbiased": candidate.feature_map.unbiased,
        "positive": candidate.feature_map.positive,
        "output_error": interval_dict(report.output_error),
        "kernel_error": interval_dict(report.kernel_error),
        "row_variation": interval_dict(report.row_variation),
        "negative_entries": report.negative_entries.value,
        "nonpositive_denominators": report.nonpositive_denominators.value,
        "predicted_output_error": None if prediction is None else prediction.output_error,
        "predicted_denominator_cv2": None if prediction is None else prediction.denominator_cv2,
    }


def comparison_dict(table: Comparison) -> dict[str, Any]:
    """A whole comparison, averaging the values beside it."""
    return {
        "averaging_the_values": table.trivial_output_error,
        "rows": [candidate_dict(c) for c in table.candidates],
        "skipped": table.skipped,
    }


def summary_dict(summary: DataSummary) -> dict[str, float]:
    """The data summary's fields."""
    return dict(vars(summary))


def recommendation_dict(recommendation: Recommendation) -> dict[str, Any]:
    """The choice, its reasons and its table."""
    return {
        "choice": recommendation.choice,
        "reasons": recommendation.reasons,
        "averaging_the_values": recommendation.trivial_output_error,
        "data": summary_dict(recommendation.summary),
        "rows": [candidate_dict(c) for c in recommendation.candidates],
        "skipped": recommendation.skipped,
    }


def to_json(result: dict[str, Any]) -> str:
    """Strict JSON: infinities and NaN become null."""
    return json.dumps(finite(result), indent=2, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a file whole: to a temporary one first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def finite(value: Any) -> Any:
    """The value with infinities and NaN, at any depth, replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
