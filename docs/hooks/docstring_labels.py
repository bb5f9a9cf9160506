"""griffe extension: shows the labelled lines of bochner's docstrings as a list of definitions.

Our docstrings put the text on the line of its label and align what follows:

    Cost:       O(n d r) time,
                O(n m) memory.

Google style knows only labels that stand alone on their line, so they are rewritten for the page.
"""

import ast
import re
from pathlib import Path
from typing import Any

from griffe import Extension, GriffeLoader, Object

LABEL = re.compile(r"(?P<label>[A-Z][\w-]*(?: [a-z]+)?):(?P<text>\s+\S.*)?")
# Sections of Google style, which griffe itself reads where they stand alone on their line.
GOOGLE = {"Args", "Arguments", "Attributes", "Raises", "Returns", "Yields", "Warns", "Examples"}


class DocstringLabels(Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: Object, loader: GriffeLoader, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if obj.is_module and isinstance(obj.filepath, Path):
            # The cleaned text has lost the indentation of a formula that stands alone below the title.
            tree = ast.parse(obj.filepath.read_text(encoding="utf-8"))
            text = (ast.get_docstring(tree, clean=False) or text).strip()
        obj.docstring.value = as_definitions(text)


def as_definitions(docstring: str) -> str:
    """The docstring with each labelled block as a Markdown definition."""
    lines = docstring.splitlines()
    out: list[str] = []
    while lines:
        line = lines.pop(0)
        match = LABEL.fullmatch(line)
        if match is None or is_sentence(match, lines):
            out.append(escape_shapes(line))
            continue
        text = (match["text"] or "").strip()
        block = take_block(lines)
        if match["label"] == "Example":  # griffe sets it as code
            out += ["", "Examples:", *([f"    {text}"] if text else []), *block]
        elif not text and (match["label"] in GOOGLE or not any(block)):
            out += [line, *block]
        else:
            out += ["", *definition(match["label"], text, dedent(block)), ""]
    return "\n".join(out)


def is_sentence(match: re.Match[str], following: list[str]) -> bool:
    """Whether what looks like a label only begins a sentence, which goes on without indentation."""
    aligned = (match["text"] or "").startswith("  ")
    goes_on = bool(following and following[0]) and not following[0].startswith(" ")
    return not aligned and goes_on and LABEL.fullmatch(following[0]) is None


def take_block(lines: list[str]) -> list[str]:
    """Remove and return the indented lines, and blank ones between them, at the front."""
    end = 0
    for index, line in enumerate(lines):
        if line.startswith(" "):
            end = index + 1
        elif line:
            break
    block = lines[:end]
    del lines[:end]
    return block


def dedent(block: list[str]) -> list[str]:
    """Lines without their common indentation."""
    margin = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [line[margin:] for line in block]


def definition(label: str, text: str, block: list[str]) -> list[str]:
    """One entry of a Markdown definition list."""
    head, *tail = [escape(line) for line in ([text, *block] if text else block)]
    return [f"**{label}**", f":   {head}", *(f"    {line}" if line else "" for line in tail)]


def escape(line: str) -> str:
    """Plain text as Markdown: formulas keep their stars, bars and angles; `code` is left alone."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_|\\])", r"\\\1", part).replace("<", "&lt;")
        for part in parts
    )


def escape_shapes(line: str) -> str:
    """Keep the star of a shape such as [*b, n, d] from starting an emphasis."""
    if line.startswith("    "):
        return line
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.replace("[*", r"[\*") for part in parts)
