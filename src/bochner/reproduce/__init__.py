"""Experiments that reproduce papers: cells that can be resumed, results, pictures, tables of claims.

experiments/<paper>/<script>.py             EXPERIMENT = Experiment(name=..., cells=..., run=...)
experiments/<paper>/claims/<script>.toml    what was published, with its place
experiments/<paper>/results/<name>/         what `bochner reproduce <name>` writes
"""

from bochner.reproduce.discovery import Found, discover, experiments_folder, select
from bochner.reproduce.experiment import Cell, Experiment, ExperimentError, Measured, Row, Value
from bochner.reproduce.reproduction import Outcome, Settings, reproduce

__all__ = [
    "Cell",
    "Experiment",
    "ExperimentError",
    "Found",
    "Measured",
    "Outcome",
    "Settings",
    "Row",
    "Value",
    "discover",
    "experiments_folder",
    "reproduce",
    "select",
]
