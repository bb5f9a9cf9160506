"""Finished cells, one JSON line each, appended as they finish: what an interrupted run goes on from.

The first line says of what the journal is one: the cells and the source that determines the rows.
A line torn by the interruption is dropped, and its cell runs again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bochner.reproduce.experiment import Cell, ExperimentError, Row


@dataclass(frozen=True)
class Finished:
    """The rows of a cell, and the seconds they took."""

    rows: list[Row]
    seconds: float


class Journal:
    """The journal of one experiment in one folder.

    Arguments:
        path:       the file; begun if it does not exist.
        cells:      all cells of the run.
        source:     fingerprint of the source that determines the rows.

    Raises:     ExperimentError if the file is a journal of other cells or another source, or damaged.
    """

    def __init__(self, path: Path, cells: list[Cell], source: str) -> None:
        self.path = path
        self._header = {"cells": digest([key_of(cell) for cell in cells]), "source": source}
        self._finished: dict[str, Finished] = {}
        whole = self._whole_lines()
        if whole:
            self._check_header(whole[0])
            for line in whole[1:]:
                self._finished.setdefault(
                    key_of(line["cell"]), Finished(line["rows"], line["seconds"])
                )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(self._header)

    def finished(self, cell: Cell) -> Finished | None:
        """What a cell gave, if it is done."""
        return self._finished.get(key_of(cell))

    def add(self, cell: Cell, finished: Finished) -> None:
        """Keep a finished cell, on the disk before this returns."""
        self._append({"cell": cell, "rows": finished.rows, "seconds": finished.seconds})
        # what a later run would read
        rows = json.loads(json.dumps(finished.rows))
        self._finished[key_of(cell)] = Finished(rows, finished.seconds)

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """All lines that end; what follows the last of them is cut off the file."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise ExperimentError(
                f"{self.path} is damaged: a line before its last is no JSON; --fresh starts again."
            ) from None

    def _check_header(self, header: dict[str, Any]) -> None:
        changed = [name for name, value in self._header.items() if header.get(name) != value]
        if changed:
            what = {"cells": "its list of cells", "source": "the code of its cells"}
            raise ExperimentError(
                f"{self.path} was begun by a version of the experiment that differs in"
                f" {' and '.join(what[name] for name in changed)}, so its rows would not belong"
                " together with new ones. --fresh starts again, and removes this journal and the"
                " scratch folder beside it (to keep trained checkpoints, remove only the journal)."
            )


def key_of(cell: Cell) -> str:
    """A cell as text, the same for equal cells.

    Example:
        >>> key_of({"seed": 0, "r": 1.5}) == key_of({"r": 1.5, "seed": 0})
        True
    """
    return json.dumps(cell, sort_keys=True)


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
