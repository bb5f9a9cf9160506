"""Runs the Python examples of README.md, CONTRIBUTING.md and docs/ as tests.

One document is one test: its examples share a namespace and run in order, so that they can build
on each other also when pytest-xdist spreads the tests over processes.
"""

from collections.abc import Iterator
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.example import SybilFailure
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

SYBIL = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE),
        SkipParser(),
    ],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/**/*.md"],
)


class MarkdownExamples(pytest.Item):
    """All examples of one document."""

    def runtest(self) -> None:
        """Evaluate the examples in the order of the document."""
        for example in SYBIL.parse(self.path):
            example.evaluate()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style=None):
        """Show a wrong output, or the document's own lines, without the runner's traceback."""
        if isinstance(excinfo.value, SybilFailure):
            return str(excinfo.value)
        excinfo.traceback = excinfo.traceback.cut(path=self.path)
        return super().repr_failure(excinfo, style=style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Name the document in the report."""
        return self.path, 0, f"examples of {self.path.name}"


class MarkdownFile(pytest.File):
    """A document; no test if it has no example."""

    def collect(self) -> Iterator[pytest.Item]:
        """Collect one test for the whole document."""
        if any(True for _ in SYBIL.parse(self.path)):
            yield MarkdownExamples.from_parent(self, name="examples")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> MarkdownFile | None:
    """Collect the documents that hold examples."""
    if SYBIL.should_parse(file_path):
        return MarkdownFile.from_parent(parent, path=file_path)
    return None
