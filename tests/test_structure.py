"""The house's order: no import runs backwards or in a circle, and no file outgrows one idea."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "bochner"
LAYERS = [
    "validation kernels features projections moments proposals nonlinearities statistics"
    " transforms request directions",
    "feature_map dependence exponents",
    "directional wrapped random_features spectral_features transformed exponential pair_matrices"
    " degree_plan maclaurin",
    "switches expressions",
    "algebra fitting balanced hybrids clusters landmarks binning nystroem nystroem_landmarks"
    " landmark_data landmark_points landmark_fit",
    "specification feature_maps catalog",
    "testing attention structured sampling gram gp worst_case",
    "diagnostics calibration",
    "data transformers sklearn gpytorch demonstration report reproduce cli",
]
"""Files and folders of src/bochner, from the ground up (design: the data flow runs one way)."""
LONGEST = 400

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(module: str) -> str | None:
    """bochner.diagnostics.measure -> diagnostics; None for what is not ours or is the package."""
    names = module.split(".")
    return names[1] if names[0] == "bochner" and len(names) > 1 else None


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST) -> set[str]:
    """All modules imported anywhere in a file, functions included, TYPE_CHECKING blocks left out."""
    found: set[str] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            assert node.module is not None
            found.add(node.module)
            if node.module == "bochner":
                found |= {f"bochner.{alias.name}" for alias in node.names}
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            pending += node.orelse
        else:
            pending += list(ast.iter_child_nodes(node))
    return found


def our_modules() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports; names of attributes are dropped."""
    known = {module_of(f) for f in FILES}
    graph = {}
    for file in FILES:
        found = imports(ast.parse(file.read_text()))
        graph[module_of(file)] = {m for m in found if m in known} - {module_of(file)}
    return graph


GRAPH = our_modules()


def test_every_part_has_a_layer() -> None:
    parts = {part_of(m) for m in GRAPH} - {None}
    assert parts <= set(RANK), f"give {sorted(parts - set(RANK))} a layer in {__file__}"


@pytest.mark.parametrize("module", sorted(m for m in GRAPH if part_of(m)))
def test_no_import_runs_backwards(module: str) -> None:
    rank = RANK[part_of(module)]
    backwards = {m for m in GRAPH[module] if part_of(m) and RANK[part_of(m)] > rank}
    assert not backwards, f"{module} must not know {sorted(backwards)}"


def test_only_the_edges_import_the_whole_package() -> None:
    whole = {m for m, found in GRAPH.items() if "bochner" in found}
    edges = {m for m in GRAPH if part_of(m) and RANK[part_of(m)] == len(LAYERS) - 1}
    assert whole <= edges


def test_no_circle() -> None:
    order: list[str] = []
    state: dict[str, str] = {}

    def visit(module: str, path: list[str]) -> None:
        assert state.get(module) != "open", " -> ".join([*path, module])
        if module in state:
            return
        state[module] = "open"
        for other in sorted(GRAPH[module] - {"bochner"}):
            # a package's front door imports its rooms; a room may import a neighbour, not the door
            if other != module.rpartition(".")[0]:
                visit(other, [*path, module])
        state[module] = "done"
        order.append(module)

    for module in sorted(GRAPH):
        visit(module, [])
    assert len(order) == len(GRAPH)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_no_file_is_too_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "helpers", "common", "base", "misc", "util", "helper"}
    assert not {f.stem for f in FILES} & drawers


def test_the_reader_of_imports_sees_functions_and_skips_type_checking() -> None:
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import bochner.cli
else:
    import bochner.kernels
def f():
    from bochner import attention
    import bochner.features as g
"""
    found = imports(ast.parse(code))
    assert {"bochner.kernels", "bochner.attention", "bochner.features"} <= found
    assert "bochner.cli" not in found
