"""mkdocs hook: docs/catalogue.md, written from the SPECs that bochner.catalog collects.

The columns are the fields of the specification, whatever they are at the time of the build; what
can be called (the builder) is left out.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

INTRODUCTION = """# Catalogue

Every feature map that bochner knows by name, as `bochner list` prints it. This page is written from
the `SPEC` at the end of each file of [`bochner.feature_maps`](api/feature_maps.md) when the site is
built. Other packages can add maps through the entry-point group `bochner.feature_maps`.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    from bochner import catalog

    specs = sorted(catalog.specs().values(), key=lambda spec: spec.name)
    files.append(File.generated(config, "catalogue.md", content=page(specs)))
    return files


def page(specs: list[Any]) -> str:
    """A table of all names, then one section for each specification."""
    fields = shown_fields(specs)
    flags = [f for f in fields if all(isinstance(getattr(s, f), bool | None) for s in specs)]
    lines = [INTRODUCTION]
    lines += [row(["Name", "Summary", *(label(flag) for flag in flags)])]
    lines += [row(["---"] * (2 + len(flags)))]
    for spec in specs:
        values = [answer(getattr(spec, flag)) for flag in flags]
        lines += [row([f"[`{spec.name}`](#{spec.name})", cell(spec.summary), *values])]
    rest = [f for f in fields if f not in {"name", "summary", *flags}]
    for spec in specs:
        lines += ["", f"## {spec.name}", "", cell(spec.summary), ""]
        for field in rest:
            if (value := getattr(spec, field)) not in (None, "", (), []):
                lines += [f"- **{label(field)}:** {cell(shown(value))}"]
    return "\n".join(lines) + "\n"


def shown_fields(specs: Iterable[Any]) -> list[str]:
    """Fields that hold data, in the order of the dataclass."""
    names: dict[str, None] = {}
    for spec in specs:
        names |= dict.fromkeys(
            field.name
            for field in dataclasses.fields(spec)
            if field.repr and not callable(getattr(spec, field.name))
        )
    return list(names)


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def label(field: str) -> str:
    """A field's name as a person reads it."""
    return field.replace("_", " ").capitalize()


def answer(value: bool | None) -> str:
    """A flag as a word; nothing where the specification says nothing."""
    return {True: "yes", False: "no", None: ""}[value]


def shown(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, tuple | list | set | frozenset):
        return ", ".join(str(item) for item in value)
    return str(value)


def cell(text: str) -> str:
    """Plain text that Markdown shows as it is."""
    for character in "\\*_|[":
        text = text.replace(character, "\\" + character)
    return " ".join(text.replace("<", "&lt;").split())
