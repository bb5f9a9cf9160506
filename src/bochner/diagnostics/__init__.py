"""How wrong an approximation is: measured over redraws, predicted without drawing, and what to choose."""

from bochner.diagnostics.compare import Candidate, Comparison, Data, compare
from bochner.diagnostics.describe import DataSummary, describe
from bochner.diagnostics.interval import Interval
from bochner.diagnostics.measure import ErrorReport, measure
from bochner.diagnostics.predict import Prediction, predict
from bochner.diagnostics.recommend import Recommendation, choose, recommend

__all__ = [
    "Candidate",
    "Comparison",
    "Data",
    "DataSummary",
    "ErrorReport",
    "Interval",
    "Prediction",
    "Recommendation",
    "choose",
    "compare",
    "describe",
    "measure",
    "predict",
    "recommend",
]
