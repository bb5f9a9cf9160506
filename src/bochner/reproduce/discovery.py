"""Finds the experiments: scripts experiments/<paper>/<script>.py that define EXPERIMENT."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bochner.reproduce.experiment import Experiment, ExperimentError

PACKAGE = "experiments"
"""The scripts are imported as experiments.<paper>.<script>, whatever their folder is called."""
_DEFINES_ONE = re.compile(r"^EXPERIMENT\b", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """An experiment and its script; claims and results lie beside the script."""

    experiment: Experiment
    script: Path

    @property
    def claims(self) -> Path:
        """What was published, claims/<script>.toml."""
        return self.script.parent / "claims" / f"{self.script.stem}.toml"

    def folder(self, quick: bool, out: Path | None = None) -> Path:
        """Where a run writes: `out`/NAME; else results/NAME of the paper, or build/ if quick."""
        name = self.experiment.name + ("-quick" if quick else "")
        if out is not None:
            return out / name
        paper = self.script.parent
        return paper.parents[1] / "build/reproduce" / name if quick else paper / "results" / name


def experiments_folder(given: Path | None = None) -> Path:
    """The folder of experiments: the given one, else above the current directory, else the checkout's.

    Raises:     ExperimentError if there is none.
    """
    if given is not None:
        if not _scripts(given):
            raise ExperimentError(
                f"{given} has no script <paper>/<script>.py that defines EXPERIMENT; name the folder"
                f" {PACKAGE}/ of a source checkout."
            )
        return given.resolve()
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[3]  # if src/bochner is installed as editable
    for above in (here, *here.parents, checkout):
        if _scripts(above / PACKAGE):
            return above / PACKAGE
    raise ExperimentError(
        f"no folder {PACKAGE}/ at or above {here}: experiments come with the source of bochner and not"
        " with the installed package; run this in a source checkout, or name the folder with"
        " --experiments DIR."
    )


def discover(folder: Path) -> list[Found]:
    """All experiments of a folder, by name.

    Raises:     ExperimentError if a script cannot be imported, defines something else, or shares its
                name with another.
    """
    found: dict[str, Found] = {}
    for script in _scripts(folder):
        experiment = load(script)
        if experiment.name in found:
            raise ExperimentError(
                f"two experiments are called {experiment.name!r}: {found[experiment.name].script}"
                f" and {script}; rename one."
            )
        found[experiment.name] = Found(experiment, script)
    return [found[name] for name in sorted(found)]


def select(found: Sequence[Found], names: Sequence[str]) -> list[Found]:
    """Those that are named, in the order of the names; all of them without a name.

    Raises:     ExperimentError with the nearest names for one that is not known.
    """
    by_name = {entry.experiment.name: entry for entry in found}
    for name in names:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=3, cutoff=0.4)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(by_name)}."
            )
            raise ExperimentError(f"no experiment is called {name!r}; {hint}")
    return [by_name[name] for name in dict.fromkeys(names)] if names else list(found)


def load(script: Path) -> Experiment:
    """The EXPERIMENT of a script, imported as experiments.<paper>.<script>.

    Raises:     ExperimentError if it cannot be imported or EXPERIMENT is no Experiment.
    """
    paper = script.parent
    importlib.invalidate_caches()
    _make_package(PACKAGE, paper.parent)
    _make_package(f"{PACKAGE}.{paper.name}", paper)
    try:
        module = importlib.import_module(f"{PACKAGE}.{paper.name}.{script.stem}")
    except ImportError as error:
        raise ExperimentError(
            f"{script} cannot be imported ({error}); what an experiment needs beyond bochner is"
            " imported inside its functions and named in `requires`."
        ) from error
    if not isinstance(experiment := module.EXPERIMENT, Experiment):
        raise ExperimentError(
            f"{script}: EXPERIMENT is of type {type(experiment).__name__}; expected"
            " bochner.reproduce.Experiment."
        )
    return experiment


def _scripts(folder: Path) -> list[Path]:
    files = sorted(file.resolve() for file in folder.glob("*/*.py"))
    return [file for file in files if _DEFINES_ONE.search(file.read_text(encoding="utf-8"))]


def _make_package(name: str, folder: Path) -> None:
    """Let `name` be a package whose modules are the files of the folder, and forget any other one."""
    known = sys.modules.get(name)
    if known is not None and list(known.__path__)[:1] == [str(folder)]:
        return
    for other in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[other]
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)
