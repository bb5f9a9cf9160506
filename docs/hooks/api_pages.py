"""mkdocs hook: one API page for each module or package directly under src/bochner.

A new module appears by itself. Only the source is read; nothing is imported.
"""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = "bochner"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and their entries in the navigation under "API"."""
    root = Path(config.config_file_path).parent / "src" / PACKAGE
    groups = {name: modules for name, modules in module_groups(root) if modules}
    pages = {f"api/{name}.md": group_page(root, modules) for name, modules in groups.items()}
    pages["api/index.md"] = index_page(root, groups)
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))

    entries = [{"Overview": "api/index.md"}, *({name: f"api/{name}.md"} for name in groups)]
    for section in config.nav or []:
        if isinstance(section, dict) and "API" in section:
            section["API"] = entries
    return files


def module_groups(root: Path) -> list[tuple[str, list[Path]]]:
    """Name and files of each top-level module or package, in the order of their names."""
    groups = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("_"):
            continue
        if entry.suffix == ".py":
            groups.append((entry.stem, [entry]))
        elif (entry / "__init__.py").exists():
            public = (file for file in sorted(entry.rglob("*.py")) if is_public(file, entry))
            groups.append((entry.name, list(public)))
    return groups


def is_public(file: Path, package: Path) -> bool:
    """Whether no part of the module's path is private; a package's own file comes with it."""
    parts = file.relative_to(package).with_suffix("").parts
    return not any(part.startswith("_") and part != "__init__" for part in parts)


def dotted_name(root: Path, file: Path) -> str:
    """The name by which a file is imported."""
    parts = [PACKAGE, *file.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def summary(file: Path) -> str:
    """First paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def defined_names(file: Path) -> list[str]:
    """Public classes and functions that a file itself defines."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]


def group_page(root: Path, modules: list[Path]) -> str:
    """One section for each module of the group."""
    lines = [f"# {dotted_name(root, modules[0])}", ""]
    for module in modules:
        name = dotted_name(root, module)
        is_package = module.name == "__init__.py"
        if module is not modules[0]:
            lines += [f"## {name.removeprefix(PACKAGE + '.')}", ""]
        lines += [f"::: {name}", "    options:", "      show_root_heading: false"]
        lines += ["      show_root_toc_entry: false"]
        if is_package:  # what it imports appears below, where it is defined
            lines += [f"      members: {defined_names(module) or 'false'}"]
        lines += [""]
    return "\n".join(lines)


def index_page(root: Path, groups: dict[str, list[Path]]) -> str:
    """A table of the modules with their summaries."""
    lines = ["# API", "", "Generated from the docstrings of the source.", ""]
    lines += ["| Module | What it holds |", "| --- | --- |"]
    for name, modules in groups.items():
        text = summary(modules[0]).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
        lines.append(f"| [`{dotted_name(root, modules[0])}`]({name}.md) | {text} |")
    return "\n".join(lines) + "\n"
